//! A running daemon: disks, queue threads, the NBD server, disks of virtual machines, the control socket, and an orderly end.

mod activation;
pub(crate) mod signals;
mod vhost_user;

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use blockyard_blkmq::{BlockLayer, Clock, Disk, MonotonicClock, OpenMode};
use blockyard_export_nbd::{self as nbd, Address, Export, Listener, Server, TlsMode};
use sd_notify::NotifyState;

pub use activation::Passed;

use crate::control::{self, report};
use crate::disks::DiskMaker;
use crate::error::{Error, ErrorKind, Result};
use crate::housekeeping::{self, Bell};
use crate::plan::{ExportPlan, Listen, TlsUse, VhostUserListen, YardPlan};
use crate::queue_threads::{OnPark, QueueThreads};
use crate::remote::Remote;
use crate::runner::Running;

/// The part of a daemon that answers questions.
pub struct Yard {
    plan: YardPlan,
    layer: BlockLayer,
    disks: Vec<Arc<Disk>>,
    server: Arc<Server>,
    back_ends: Vec<vhost_user::BackEnd>,
    addresses: Vec<Address>,
    started: Instant,
}

/// A daemon that accepts connections.
pub struct Daemon {
    yard: Arc<Yard>,
    threads: QueueThreads,
    remotes: Vec<Remote>,
    clock: Arc<dyn Clock>,
    bell: Arc<Bell>,
    notices: Vec<String>,
}

impl Daemon {
    /// Opens the disks and listens. Whatever fails, fails before anybody is served.
    ///
    /// # Errors
    /// What keeps it from starting, with what to do.
    pub fn start(plan: YardPlan, passed: Passed) -> Result<Self> {
        raise_file_limit();
        let mut notices = Vec::new();
        let listeners = listeners(&plan, passed, &mut notices)?;
        let machines = vhost_user::listeners(&plan)?;
        let bell = Arc::new(Bell::default());
        let ring = Arc::clone(&bell);
        let on_park: OnPark = Arc::new(move || ring.ring());
        let threads = QueueThreads::start_with(plan.threads, &on_park)?;
        let layer = BlockLayer::new();
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), Arc::clone(&clock));
        let disks = plan.disks.iter().map(|disk| maker.make(disk)).collect::<Result<Vec<_>>>()?;
        let remotes = maker.into_remotes();
        let config = nbd_config(&plan, &disks)?;
        let server = Server::new(config, threads.handles().to_vec()).map_err(nbd_error)?;
        let addresses = listeners.iter().flat_map(Listener::addresses).collect();
        listeners.into_iter().for_each(|listener| server.listen(listener));
        let back_ends = vhost_user::start(&plan, machines, &disks, threads.handles())?;
        let started = Instant::now();
        let yard = Yard { plan, layer, disks, server, back_ends, addresses, started };
        Ok(Self { yard: Arc::new(yard), threads, remotes, clock, bell, notices })
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
    /// The system has no room for what it needs.
    pub fn run(self, ready: impl FnOnce(&Self)) -> Result<()> {
        let yard = Arc::clone(&self.yard);
        let enough = async move |signals: &mut signals::Signals| {
            tokio::select! {
                () = signals.next() => {}
                () = yard.deserted() => {}
            }
            Ok(())
        };
        block_on(self.serve(ready, enough))
    }

    /// Serves until `command` has ended, which gets the signals that come. Returns its exit code.
    ///
    /// # Errors
    /// It cannot be started; those of [`Daemon::run`].
    pub fn run_beside(self, command: &mut Command) -> Result<u8> {
        let enough = async move |signals: &mut signals::Signals| {
            Running::start(command)?.wait(signals).await
        };
        block_on(self.serve(|_| {}, enough))
    }

    /// Serves until `enough` is ready, and returns what it gave. It is told of signals.
    async fn serve<T>(
        self,
        ready: impl FnOnce(&Self),
        enough: impl AsyncFnOnce(&mut signals::Signals) -> Result<T>,
    ) -> Result<T> {
        let mut signals = signals::Signals::new()?;
        let control = control::Server::bind(Arc::clone(&self.yard))?;
        let (disks, clock) = (self.yard.disks.clone(), Arc::clone(&self.clock));
        let housekeeper = tokio::spawn(housekeeping::keep(disks, clock, Arc::clone(&self.bell)));
        let control = tokio::spawn(control.serve());
        ready(&self);
        notify(&[NotifyState::Ready]);
        let given = enough(&mut signals).await;
        notify(&[NotifyState::Stopping]);
        let mut stop = Box::pin(self.stop());
        let stopped = tokio::select! {
            () = &mut stop => given,
            () = signals.next() => {
                // Dropping it would wait for what is in flight. All of it ends with the process.
                std::mem::forget(stop);
                Err(Error::failed("stopped at once by a second signal")
                    .help("what clients had not flushed may be lost"))
            }
        };
        housekeeper.abort();
        control.abort();
        // Cancelled: that removes its socket.
        let _ = control.await;
        stopped
    }

    async fn stop(self) {
        let grace = self.yard.plan.grace;
        // Each of them takes no more than the grace, and they end together.
        self.yard.back_ends.iter().for_each(|back_end| back_end.server.stop());
        self.yard.server.shutdown(grace).await;
        for back_end in &self.yard.back_ends {
            back_end.server.shutdown(grace).await;
        }
        for remote in &self.remotes {
            remote.leave(grace).await;
        }
        let ended = tokio::task::spawn_blocking(move || {
            for disk in self.yard.disks.iter().rev() {
                self.yard.layer.del_disk(disk);
            }
            self.threads.shutdown();
        });
        // A panic has been reported where it happened.
        let _ = ended.await;
    }
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
    let mut listeners = if plan.nbd.systemd { passed.listeners()? } else { Vec::new() };
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
    let tls = match &plan.nbd.tls {
        None | Some((TlsUse::Off, _)) => TlsMode::Off,
        Some((TlsUse::Allow, files)) => TlsMode::Allow(files.load().map_err(nbd_error)?),
        Some((TlsUse::Require, files)) => TlsMode::Require(files.load().map_err(nbd_error)?),
    };
    let exports = plan.exports.iter().map(|export| make_export(export, disks));
    Ok(nbd::Config {
        exports: exports.collect::<Result<_>>()?,
        default_export: plan.nbd.default_export.clone(),
        tls,
        limits: plan.nbd.limits.clone(),
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
    /// Waits until there is nobody left who could be served: the one front-end that was passed to this process is gone, and
    /// nothing listens.
    async fn deserted(&self) {
        let passed =
            |plan: &crate::plan::VhostUserPlan| matches!(plan.listen, VhostUserListen::Passed(_));
        let alone = self.addresses.is_empty() && self.plan.vhost_user.iter().all(passed);
        match self.back_ends.as_slice() {
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
        let machines = self.back_ends.iter().map(|back_end| back_end.report(&self.disks));
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
