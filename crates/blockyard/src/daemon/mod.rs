//! A running daemon: disks, queue threads, the NBD server, disks of virtual machines, the control socket, and an orderly end.

mod activation;
mod command;
mod ending;
pub mod runner;
pub(crate) mod signals;
mod vhost_user;

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use blockyard_blkmq::{BlockLayer, Clock, Disk, MonotonicClock, OpenMode};
use blockyard_export_nbd::{self as nbd, Address, Export, Listener, Server, TlsMode};
use sd_notify::NotifyState;

pub use activation::Passed;
use command::Command;
pub(crate) use ending::{FlushFailed, Losses};
use signals::Signals;

use crate::control;
use crate::disks::{DiskMaker, OpenDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::housekeeping::{self, Bell};
use crate::yard::plan::{ExportPlan, Listen, TlsUse, VhostUserListen, YardPlan};
use crate::yard::queue_threads::{OnPark, QueueThreads};
use crate::yard::report;

/// The part of a daemon that answers questions.
pub struct Yard {
    plan: YardPlan,
    layer: Arc<BlockLayer>,
    disks: Vec<Arc<Disk>>,
    server: Arc<Server>,
    /// Set when they start to serve.
    back_ends: OnceLock<Vec<vhost_user::BackEnd>>,
    addresses: Vec<Address>,
    started: Instant,
}

/// A daemon whose disks are open and whose addresses are taken. Nobody is served before it runs.
pub struct Daemon {
    yard: Arc<Yard>,
    listeners: Vec<Listener>,
    machines: Vec<blockyard_export_vhost_user_blk::Listener>,
    threads: QueueThreads,
    open: Vec<OpenDisk>,
    clock: Arc<dyn Clock>,
    bell: Arc<Bell>,
    notices: Vec<String>,
    signals: Signals,
}

/// Open disks, and what they live on.
struct Opened {
    layer: Arc<BlockLayer>,
    disks: Vec<OpenDisk>,
    threads: QueueThreads,
    clock: Arc<dyn Clock>,
    bell: Arc<Bell>,
}

impl Opened {
    fn open(plan: &YardPlan) -> Result<Self> {
        let bell = Arc::new(Bell::default());
        let ring = Arc::clone(&bell);
        let on_park: OnPark = Arc::new(move || ring.ring());
        let threads = QueueThreads::start_with(plan.threads, &on_park)?;
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), Arc::clone(&clock));
        let disks = plan.disks.iter().map(|disk| maker.open(disk)).collect::<Result<Vec<_>>>()?;
        Ok(Self { layer, disks, threads, clock, bell })
    }
}

impl Daemon {
    /// Takes the addresses and opens the disks. Whatever fails, fails before anybody is served; so does a signal.
    ///
    /// # Errors
    /// What keeps it from starting, with what to do.
    pub fn start(plan: YardPlan, passed: Passed) -> Result<Self> {
        raise_file_limit();
        let mut signals = Signals::with_a_last_word()?;
        let tls = tls_mode(&plan)?;
        let mut notices = Vec::new();
        let listeners = listeners(&plan, passed, &mut notices)?;
        let machines = vhost_user::listeners(&plan)?;
        let wanted = plan.clone();
        let Opened { layer, disks: open, threads, clock, bell } = block_on(async {
            // A server that does not answer, say, keeps nobody from ending this.
            let open = tokio::task::spawn_blocking(move || Opened::open(&wanted));
            tokio::select! {
                opened = open => opened.map_err(|err| Error::failed("cannot open the disks").caused_by(err))?,
                () = signals.next() => Err(Error::failed("stopped by a signal before anything was served")),
            }
        })?;
        let disks: Vec<_> = open.iter().map(|open| Arc::clone(open.disk())).collect();
        let config = nbd_config_with(&plan, &disks, tls)?;
        let server = Server::new(config, threads.handles().to_vec()).map_err(nbd_error)?;
        let addresses = listeners.iter().flat_map(Listener::addresses).collect();
        let (back_ends, started) = (OnceLock::new(), Instant::now());
        let yard = Arc::new(Yard { plan, layer, disks, server, back_ends, addresses, started });
        Ok(Self { yard, listeners, machines, threads, open, clock, bell, notices, signals })
    }

    /// What the user should know of the start.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.yard.addresses
    }

    /// Its disks and exports.
    #[must_use]
    pub fn plan(&self) -> &YardPlan {
        &self.yard.plan
    }

    /// Serves until a signal says to stop; a second one ends it at once. `ready` is called when all is set up.
    ///
    /// # Errors
    /// The system has no room for what it needs, or something is lost in the end.
    pub fn run(self, ready: impl FnOnce(&Self)) -> Result<()> {
        block_on(self.serve(ready, async |yard: &Yard, signals: &mut Signals| {
            tokio::select! {
                () = yard.deserted() => {}
                () = signals.next() => {}
            }
        }))
    }

    /// Serves until a command has ended, which is told of signals. Returns its exit code.
    ///
    /// # Errors
    /// The command cannot be started, and those of [`Daemon::run`].
    pub fn run_beside(self, command: &mut std::process::Command) -> Result<u8> {
        let ended = async |_: &Yard, signals: &mut Signals| -> Result<u8> {
            Command::start(command)?.supervise(signals).await
        };
        block_on(self.serve(|_| {}, ended)).flatten()
    }

    /// Starts to serve, and stops when `until` has ended.
    async fn serve<T>(
        mut self,
        ready: impl FnOnce(&Self),
        until: impl AsyncFnOnce(&Yard, &mut Signals) -> T,
    ) -> Result<T> {
        let control = control::Server::bind(Arc::clone(&self.yard))?;
        self.open_the_gates()?;
        let layers = self.open.iter().flat_map(OpenDisk::layers);
        let disks = layers.map(|open| Arc::clone(open.disk())).collect();
        let clock = Arc::clone(&self.clock);
        let housekeeper = tokio::spawn(housekeeping::keep(disks, clock, Arc::clone(&self.bell)));
        let control = tokio::spawn(control.serve());
        ready(&self);
        notify(&[NotifyState::Ready]);
        let given = until(&self.yard, &mut self.signals).await;
        notify(&[NotifyState::Stopping]);
        let stopped = self.stop().await;
        housekeeper.abort();
        control.abort();
        // Cancelled: that removes its socket.
        let _ = control.await;
        stopped.map(|()| given)
    }

    /// All is set up: from now on clients are served.
    fn open_the_gates(&mut self) -> Result<()> {
        let yard = &self.yard;
        let machines = std::mem::take(&mut self.machines);
        let back_ends =
            vhost_user::start(&yard.plan, machines, &self.open, self.threads.handles())?;
        // It is done once.
        let _ = yard.back_ends.set(back_ends);
        self.listeners.drain(..).for_each(|listener| yard.server.listen(listener));
        Ok(())
    }

    /// Ends it in order, or at once if there is a second signal.
    async fn stop(self) -> Result<()> {
        let Self { yard, threads, open, mut signals, .. } = self;
        if signals.count() > 1 {
            std::mem::forget((yard, threads, open));
            return Err(signals::ended_at_once());
        }
        let mut ending = Box::pin(ending::end(yard, threads, open));
        tokio::select! {
            lost = &mut ending => lost,
            () = signals.second() => {
                // Dropping it would wait for what is in flight. All of it ends with the process.
                std::mem::forget(ending);
                Err(signals::ended_at_once())
            }
        }
    }
}

/// What can be told to be wrong with a plan before anything is opened.
///
/// # Errors
/// Files of TLS that cannot be used.
pub fn check(plan: &YardPlan) -> Result<()> {
    tls_mode(plan).map(drop)
}

pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|err| Error::failed("cannot start the main loop").caused_by(err))?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(state) {
        tracing::warn!(error = %err, "the service manager cannot be told (NOTIFY_SOCKET)");
    }
}

/// Thousands of clients need thousands of file descriptors. The default soft limit, 1024, is for the sake of
/// select(2), which is not used here.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // It works with fewer too; each refused connection says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn listeners(plan: &YardPlan, passed: Passed, notices: &mut Vec<String>) -> Result<Vec<Listener>> {
    let mut listeners = match (plan.nbd.systemd, passed.len()) {
        (true, _) => passed.listeners()?,
        (false, 0) => Vec::new(),
        // Clients could connect to them, and would wait for ever.
        (false, count) => {
            let what =
                format!("systemd passes sockets ({count}), and nothing is to be served there");
            let help = "add systemd to the addresses (--nbd systemd, or listen in yard.toml), or start it without \
                        the .socket unit";
            return Err(Error::usage(what).help(help));
        }
    };
    for listen in &plan.nbd.listen {
        listeners.push(bind(listen, plan.nbd.socket_mode, notices)?);
    }
    Ok(listeners)
}

fn bind(listen: &Listen, mode: Option<u32>, notices: &mut Vec<String>) -> Result<Listener> {
    match (nbd::bind(&listen.address, mode), &listen.address) {
        (Err(err), Address::Tcp { host, port })
            if listen.or_another_port && err.kind() == nbd::ErrorKind::InUse =>
        {
            let free = Address::Tcp { host: host.clone(), port: 0 };
            let listener = nbd::bind(&free, mode).map_err(nbd_error)?;
            let chosen = listener.addresses().first().map(ToString::to_string);
            let chosen = chosen.unwrap_or_default();
            notices.push(format!("port {port} is in use; this demo takes {chosen} instead"));
            Ok(listener)
        }
        (bound, _) => bound.map_err(nbd_error),
    }
}

pub(crate) fn nbd_error(err: nbd::Error) -> Error {
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

pub(crate) fn nbd_config(plan: &YardPlan, disks: &[Arc<Disk>]) -> Result<nbd::Config> {
    nbd_config_with(plan, disks, tls_mode(plan)?)
}

fn nbd_config_with(plan: &YardPlan, disks: &[Arc<Disk>], tls: TlsMode) -> Result<nbd::Config> {
    let exports = plan.exports.iter().map(|export| {
        let block = plan.disks.get(export.disk).and_then(|disk| disk.options.block);
        let made = make_export(export, disks)?;
        // A block size that somebody has chosen is enforced; without, clients may ask for any bytes.
        Ok(Export { minimum_block_size: block.map(|block| block.bytes()), ..made })
    });
    Ok(nbd::Config {
        exports: exports.collect::<Result<_>>()?,
        default_export: plan.nbd.default_export.clone(),
        tls,
        limits: plan.nbd.limits.clone(),
    })
}

fn tls_mode(plan: &YardPlan) -> Result<TlsMode> {
    Ok(match &plan.nbd.tls {
        None | Some((TlsUse::Off, _)) => TlsMode::Off,
        Some((TlsUse::Allow, files)) => TlsMode::Allow(files.load().map_err(nbd_error)?),
        Some((TlsUse::Require, files)) => TlsMode::Require(files.load().map_err(nbd_error)?),
    })
}

fn make_export(plan: &ExportPlan, disks: &[Arc<Disk>]) -> Result<Export> {
    let disk = disks.get(plan.disk);
    let disk = disk.ok_or_else(|| Error::usage(format!("export {:?} has no disk", plan.name)))?;
    let read_only = plan.read_only || disk.is_read_only();
    let mode = if read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let bdev = disk
        .open(None, mode)
        .map_err(|err| Error::failed(format!("cannot export {}", disk.name())).caused_by(err))?;
    let mut export = Export::new(plan.name.clone(), Arc::new(bdev));
    export.description.clone_from(&plan.description);
    export.read_only = plan.read_only;
    export.tls_only = plan.tls_only;
    export.preferred_block_size = plan.preferred_block_size;
    Ok(export)
}

impl Yard {
    fn back_ends(&self) -> &[vhost_user::BackEnd] {
        self.back_ends.get().map_or(&[], Vec::as_slice)
    }

    /// Waits until there is nobody left who could be served: the one front-end that was passed to this process is gone, and
    /// nothing listens.
    async fn deserted(&self) {
        let passed = |plan: &crate::yard::plan::VhostUserPlan| {
            matches!(plan.listen, VhostUserListen::Passed(_))
        };
        let alone = self.addresses.is_empty() && self.plan.vhost_user.iter().all(passed);
        match self.back_ends() {
            [only] if alone => only.server.ended().await,
            _ => std::future::pending().await,
        }
    }
}

impl control::Answers for Yard {
    fn report(&self) -> report::Daemon {
        let (server, addresses) = (&self.server, &self.addresses);
        let mut daemon =
            report::Daemon::of(&self.plan, &self.disks, server, addresses, self.started);
        let machines = self.back_ends().iter().map(|back_end| back_end.report(&self.disks));
        daemon.vhost_user = machines.collect();
        daemon
    }

    fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    fn diskstats(&self) -> String {
        self.layer.proc_diskstats()
    }

    fn partitions(&self) -> String {
        self.layer.proc_partitions()
    }
}
