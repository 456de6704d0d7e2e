//! Exports of the NBD server of a yard, and what that is made from.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_nbd::{self as nbd, Address, Listener, RemovedExport, Server, TlsMode};

use super::{Bound, Doing, Export, ExportKind, ExportPlan, InFlight};
use crate::daemon::Passed;
use crate::disks::{OptionSpec, ValueKind};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::plan::{Listen, NbdPlan, TlsUse};
use crate::yard::report;

/// The kind of exports of the NBD server.
pub static KIND: ExportKind = ExportKind {
    options: &[
        OptionSpec::new(
            "description",
            ValueKind::Text,
            "none",
            "description, sent to clients that list exports",
        ),
        OptionSpec::new("tls_only", ValueKind::Flag, "0", "refuse clients that do not use TLS"),
        OptionSpec::new(
            "preferred_block_size",
            ValueKind::PowerOfTwo { least: 512, most: 32 << 20 },
            "like the disk",
            "preferred block size, sent to clients",
        ),
        OptionSpec::new(
            "whole_blocks",
            ValueKind::Flag,
            "0, unless the disk has the option block",
            "refuse requests that are not aligned to the block size of the disk",
        ),
    ],
    ..ExportKind::new("nbd", "[[export]]", "an export of the NBD server", bind)
};

fn bind(_: &ExportPlan) -> Result<Bound> {
    Ok(Box::new(|front| {
        let set = &front.plan.settings;
        let mut export = nbd::Export::new(front.plan.name.clone(), front.bdev()?);
        export.description = set.text("description").unwrap_or_default().to_owned();
        export.read_only = front.plan.read_only();
        export.tls_only = set.flag("tls_only").unwrap_or(false);
        export.preferred_block_size =
            set.number("preferred_block_size").and_then(|size| u32::try_from(size).ok());
        // A block size that somebody has chosen is enforced; without, clients may ask for any bytes.
        let enforced =
            set.flag("whole_blocks").unwrap_or(front.disk()?.plan.options.block.is_some());
        let block = export.bdev.limits().logical_block_size.bytes();
        export.minimum_block_size = enforced.then_some(block);
        let (server, removed) = (Arc::clone(front.nbd), OnceLock::new());
        Ok(Arc::new(Offer { export, server, removed }))
    }))
}

/// An export on offer.
struct Offer {
    export: nbd::Export,
    server: Arc<Server>,
    /// Once it has ended.
    removed: OnceLock<RemovedExport>,
}

impl Export for Offer {
    fn start(&self) -> Result<()> {
        self.server.add_export(self.export.clone()).map_err(error)
    }

    fn end(&self, _clients: Duration, grace: Duration) -> Doing<'_, Result<()>> {
        Box::pin(async move {
            // It may not have started.
            if let Some(removed) = self.server.remove_export(&self.export.name, grace).await {
                let _only_once = self.removed.set(removed);
            }
            Ok(())
        })
    }

    fn in_flight(&self) -> Option<InFlight> {
        let (server, removed) = (Arc::clone(&self.server), *self.removed.get()?);
        Some(Box::new(move || server.in_flight_of(removed)))
    }

    fn report(&self) -> report::Served {
        let clients = self.server.clients();
        let uses = |client: &&nbd::ClientInfo| {
            client.session.as_ref().is_some_and(|session| session.export == self.export.name)
        };
        let users: Vec<_> = clients.iter().filter(uses).collect();
        let requests = users.iter().map(|client| client.requests).sum();
        report::Served { address: None, clients: users.len() as u64, queues: None, requests }
    }
}

/// A server with nothing on offer.
pub(crate) fn server(
    plan: &NbdPlan,
    tls: TlsMode,
    threads: &[tokio::runtime::Handle],
) -> Result<Arc<Server>> {
    let config = nbd::Config { tls, limits: plan.limits.clone(), ..nbd::Config::default() };
    Server::new(config, threads.to_vec()).map_err(error)
}

/// The files of TLS, loaded.
pub(crate) fn tls_mode(plan: &NbdPlan) -> Result<TlsMode> {
    Ok(match &plan.tls {
        None | Some((TlsUse::Off, _)) => TlsMode::Off,
        Some((TlsUse::Allow, files)) => TlsMode::Allow(files.load().map_err(error)?),
        Some((TlsUse::Require, files)) => TlsMode::Require(files.load().map_err(error)?),
    })
}

/// Listens at all addresses, where nobody is answered yet. What the user should know of it goes to `notices`.
pub(crate) fn listeners(
    plan: &NbdPlan,
    passed: Passed,
    notices: &mut Vec<String>,
) -> Result<Vec<Listener>> {
    let mut listeners = match (plan.systemd, passed.len()) {
        (true, _) => passed.listeners()?,
        (false, 0) => Vec::new(),
        // Clients could connect to them, and would wait for ever.
        (false, count) => {
            let what = format!("sockets passed by systemd ({count}) are not used");
            let help = "add systemd to the addresses (--nbd systemd, or listen in yard.toml), or start it without \
                        the .socket unit";
            return Err(Error::usage(what).help(help));
        }
    };
    for listen in &plan.listen {
        listeners.push(listener(listen, plan.socket_mode, notices)?);
    }
    Ok(listeners)
}

fn listener(listen: &Listen, mode: Option<u32>, notices: &mut Vec<String>) -> Result<Listener> {
    match (nbd::bind(&listen.address, mode), &listen.address) {
        (Err(err), Address::Tcp { host, port })
            if listen.or_another_port && err.kind() == nbd::ErrorKind::InUse =>
        {
            let free = Address::Tcp { host: host.clone(), port: 0 };
            let listener = nbd::bind(&free, mode).map_err(error)?;
            let chosen = listener.addresses().first().map(ToString::to_string);
            let chosen = chosen.unwrap_or_default();
            notices.push(format!("port {port} is in use; the demo uses {chosen}"));
            Ok(listener)
        }
        (bound, _) => bound.map_err(error),
    }
}

pub(crate) fn error(err: nbd::Error) -> Error {
    use nbd::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::InUse => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Address | Kind::Config => ErrorKind::Usage,
        Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Tls | Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "cannot serve NBD").caused_by(err)
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{
        Bio, BlockLayer, Clock, Limits, MonotonicClock, Op, OpenMode, Sector, Status, TagSetConfig,
    };
    use blockyard_buf::Segment;
    use blockyard_conformance::HeldDisk;

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Whoever has removed it may think that its disk is free.
    #[test]
    fn an_end_that_leaves_requests_at_the_disk_says_so() {
        let tags = TagSetConfig { cpus: 1, hw_queues: [1, 0, 0], ..TagSetConfig::default() };
        let held = HeldDisk::keeping(|op| op == Op::Write, tags, 1 << 20, Limits::default());
        let threads = QueueThreads::start(1).unwrap();
        let server = Server::new(nbd::Config::default(), threads.handles().to_vec()).unwrap();
        let bdev = Arc::new(held.disk.open(None, OpenMode::ReadWrite).unwrap());
        let (export, removed) = (nbd::Export::new("x", bdev), OnceLock::new());
        let offer = Offer { export, server: Arc::clone(&server), removed };
        offer.start().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        server.listen(nbd::bind(&Address::Unix(socket.clone()), None).unwrap());
        let (layer, clock) = (Arc::new(BlockLayer::new()), Arc::new(MonotonicClock::new()));
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock as Arc<dyn Clock>);
        let uri = format!("nbd+unix:///x?socket={}&connections=1", socket.display());
        let open = maker.open(&uri.parse().unwrap()).unwrap();
        let client = open.disk().open(None, OpenMode::ReadWrite).unwrap();
        let mut write = Bio::new(Op::Write, Sector(0), 0);
        write.add_segment(Segment::from_vec(vec![1; 512]));
        client.submit(0, write);
        held.wait_for(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(offer.in_flight().is_none(), "it has not ended");
        let ended = runtime.block_on(offer.end(Duration::ZERO, Duration::from_millis(10)));
        let in_flight = offer.in_flight().unwrap();
        let before = in_flight();
        held.release(Status::Ok);
        drop(client);
        open.abandon();
        let _ = open.close_now(&layer, Duration::ZERO);
        ended.unwrap();
        assert_eq!(before, 1);
        runtime.block_on(server.shutdown(PATIENCE));
        assert_eq!(in_flight(), 0);
        threads.shutdown();
    }
}
