//! A process that serves a yard: its addresses, its control socket, signals, and an orderly end.

mod activation;
mod command;
mod ending;
pub mod runner;
pub(crate) mod signals;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::DiskFlags;
use blockyard_export_nbd::{Address, Listener};
use blockyard_sys::limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use activation::Passed;
use command::Command;
pub(crate) use ending::{FlushFailed, Losses};
use signals::Signals;

use crate::api;
use crate::error::{Error, Result};
use crate::exports::{self, Bound};
use crate::metrics::listener::Listeners;
use crate::yard::Yard;
use crate::yard::plan::YardPlan;

/// For how long the service manager is asked to wait at a time while an end goes on.
const EXTENSION: Duration = Duration::from_secs(30);
/// After that long the service manager's own patience decides.
const LONGEST_END: Duration = Duration::from_secs(15 * 60);

/// Disks that are opened, changed or closed at a time, each on a thread that comes when it is needed: those that are stuck are to
/// leave room for all others.
const BLOCKING_THREADS: usize = 1024;

/// A daemon whose disks are open and whose addresses are taken. Nobody is served before it runs.
pub struct Daemon {
    yard: Arc<Yard>,
    plan: YardPlan,
    listeners: Vec<Listener>,
    metrics: Listeners,
    notices: Vec<String>,
    signals: Signals,
    /// The limit of open files that it was started with.
    file_limit: Rlimit,
}

impl Daemon {
    /// Takes the addresses and opens the disks. Whatever fails, fails before anybody is served; so does a signal.
    ///
    /// # Errors
    /// What keeps it from starting, with what to do.
    pub fn start(plan: YardPlan, passed: Passed) -> Result<Self> {
        Self::start_with(plan, passed, |plan| {
            plan.exports.iter().map(|export| (export.kind.bind)(export)).collect()
        })
    }

    /// The same with exports whose places `bind` takes.
    pub(crate) fn start_with(
        plan: YardPlan,
        passed: Passed,
        bind: impl FnOnce(&YardPlan) -> Result<Vec<Bound>>,
    ) -> Result<Self> {
        let file_limit = raise_file_limit();
        if plan.exports.iter().any(|export| export.kind.local_kernel) {
            // Before there are other threads: they inherit it.
            enter_write_back_path();
        }
        let mut signals = Signals::with_a_last_word()?;
        check(&plan)?;
        let mut notices = Vec::new();
        let listeners = exports::nbd::listeners(&plan.nbd, passed, &mut notices)?;
        let metrics = Listeners::bind(&plan.metrics)?;
        let bound = bind(&plan)?;
        let wanted = plan.clone();
        let yard = block_on(async {
            // A server that does not answer, say, keeps nobody from ending this.
            let open = tokio::task::spawn_blocking(move || open(wanted, bound));
            tokio::select! {
                opened = open => opened.map_err(|err| Error::failed("cannot open the disks").caused_by(err))?,
                () = signals.next() => Err(Error::failed("stopped by a signal during startup")),
            }
        })?;
        Ok(Self { yard, plan, listeners, metrics, notices, signals, file_limit })
    }

    /// What the user should know of the start.
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        if self.listeners.is_empty() {
            return self.yard.addresses();
        }
        self.listeners.iter().flat_map(Listener::addresses).collect()
    }

    /// Where its metrics are.
    #[must_use]
    pub fn metrics_addresses(&self) -> Vec<SocketAddr> {
        self.metrics.addresses()
    }

    /// What is served at a place of its own, and where.
    #[must_use]
    pub fn places(&self) -> Vec<(String, String)> {
        let exports = self.yard.report().exports.into_iter();
        exports.filter_map(|it| Some((it.subject().to_owned(), it.served.address?))).collect()
    }

    /// Its disks and exports.
    #[must_use]
    pub fn plan(&self) -> &YardPlan {
        &self.plan
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
        // Ours is of no use to it: select(2) cannot do with more.
        limits::start_with(command, Resource::Nofile, self.file_limit);
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
        let control = api::Server::bind(Arc::clone(&self.yard), None)?;
        self.yard.serve(std::mem::take(&mut self.listeners))?;
        let until = async |this: &mut Self| {
            let metrics = std::mem::take(&mut this.metrics).serve(Arc::clone(&this.yard));
            let metrics = tokio::spawn(metrics);
            (until(&this.yard, &mut this.signals).await, metrics)
        };
        let end = async |this: Self, (given, metrics): (T, JoinHandle<()>)| {
            let stopped = this.stop().await;
            metrics.abort();
            stopped.map(|()| given)
        };
        let housekeeper = tokio::spawn(Arc::clone(&self.yard).keep());
        serve(housekeeper, control, self, ready, until, end).await
    }

    /// Ends it in order, or at once if there is a second signal.
    async fn stop(self) -> Result<()> {
        let Self { yard, plan, mut signals, .. } = self;
        if signals.count() > 1 {
            std::mem::forget(yard);
            return Err(signals::ended_at_once());
        }
        let mut ending = Box::pin(async move { yard.end(plan.grace).await });
        tokio::select! {
            lost = &mut ending => lost.into_result(),
            () = signals.second() => {
                // Dropping it would wait for what is in flight. All of it ends with the process.
                std::mem::forget(ending);
                Err(signals::ended_at_once())
            }
        }
    }
}

/// Serves a yard, whatever else there is to a daemon, which is `served`: its control socket is answered, and its disks are
/// seen to, by a task that is in [`Yard::keep`] already. `ready` is called when that has begun, `until` says when it is over,
/// and `end` ends it.
pub(crate) async fn serve<S, T, R>(
    housekeeper: JoinHandle<()>,
    control: api::Server,
    mut served: S,
    ready: impl FnOnce(&S),
    until: impl AsyncFnOnce(&mut S) -> T,
    end: impl AsyncFnOnce(S, T) -> R,
) -> R {
    let control = tokio::spawn(control.serve());
    ready(&served);
    notify(&[NotifyState::Ready]);
    let given = until(&mut served).await;
    notify(&[NotifyState::Stopping]);
    let ended = MoreTime::from_now().during(end(served, given)).await;
    housekeeper.abort();
    control.abort();
    // Cancelled: that removes its socket.
    let _ = control.await;
    ended
}

/// The kernel may write to our disk to get memory, and wait for us.
pub(crate) fn enter_write_back_path() {
    use blockyard_sys::write_back::{lock_memory, set_io_flusher};
    let done = [("PR_SET_IO_FLUSHER", set_io_flusher()), ("mlockall", lock_memory())];
    for (what, result) in done {
        if let Err(err) = result {
            tracing::info!(call = what, error = %err, "system call failed; write-back may deadlock when memory is short");
        }
    }
}

/// The same for a daemon that runs: each of its queue threads has to say so for itself, as a thread only inherits it from the one
/// that has started it. Threads that wait for a file or a server at this moment are not among them; they end when they have
/// nothing to do for some seconds.
pub(crate) async fn enter_write_back_path_with(queue_threads: &[Handle]) {
    enter_write_back_path();
    for thread in queue_threads {
        let entered = thread.spawn(async { blockyard_sys::write_back::set_io_flusher() }).await;
        // One that may not has said so for all.
        if let Ok(Err(err)) = entered {
            tracing::debug!(error = %err, "a queue thread cannot set the io flusher state");
        }
    }
}

/// What can be told to be wrong with a plan before anything is opened.
///
/// # Errors
/// Files of TLS that cannot be used.
pub fn check(plan: &YardPlan) -> Result<()> {
    exports::nbd::tls_mode(&plan.nbd).map(drop)
}

pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|err| Error::failed("cannot start the main loop").caused_by(err))?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    result
}

/// An end that takes long, as disks may to be flushed, is no hang: the service manager is asked for more time as it goes on
/// (`TimeoutStopSec=`, sd_notify(3)), though not for ever. All that an end is made of has one of these together, however often a
/// part of it is tried again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MoreTime {
    /// When it is asked for last.
    last: Instant,
}

impl MoreTime {
    /// For an end that begins now.
    pub(crate) fn from_now() -> Self {
        Self { last: Instant::now() + LONGEST_END }
    }

    /// Asks for it until `end` has ended.
    pub(crate) async fn during<T>(self, end: impl Future<Output = T>) -> T {
        let extension = u32::try_from(EXTENSION.as_micros()).unwrap_or(u32::MAX);
        self.ask_during(end, || notify(&[NotifyState::ExtendTimeoutUsec(extension)])).await
    }

    async fn ask_during<T>(self, end: impl Future<Output = T>, mut ask: impl FnMut()) -> T {
        let mut end = std::pin::pin!(end);
        let mut ticks = tokio::time::interval(EXTENSION / 3);
        loop {
            tokio::select! {
                ended = &mut end => return ended,
                now = ticks.tick() => {
                    if now < self.last {
                        ask();
                    }
                }
            }
        }
    }
}

pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(state) {
        tracing::warn!(error = %err, "sd_notify failed (NOTIFY_SOCKET)");
    }
}

/// Thousands of clients need thousands of file descriptors. The default soft limit, 1024, is for the sake of
/// select(2), which is not used here.
/// Says what it was.
pub(crate) fn raise_file_limit() -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    // It works with fewer too; each refused connection says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    limit
}

/// The disks and exports of a plan, in its order.
pub(crate) fn open(plan: YardPlan, bound: Vec<Bound>) -> Result<Arc<Yard>> {
    let yard = Yard::start(plan.threads, &plan.nbd)?;
    yard.give_grace(plan.grace);
    for disk in &plan.disks {
        yard.open_disk(disk, DiskFlags::empty())?;
    }
    for (export, bound) in plan.exports.into_iter().zip(bound) {
        yard.open_export(export, bound)?;
    }
    if let Some(file) = plan.file {
        yard.keep_in(file);
    }
    Ok(yard)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that is tried again every so often, for hours.
    #[tokio::test(start_paused = true)]
    async fn more_time_is_asked_for_until_the_same_moment_however_often_a_part_is_tried() {
        let (begun, part) = (Instant::now(), EXTENSION);
        let more_time = MoreTime::from_now();
        let (mut first, mut last) = (None, begun);
        while begun.elapsed() < 10 * LONGEST_END {
            let ask = || {
                last = Instant::now();
                first.get_or_insert(last);
            };
            let pending = std::future::pending::<()>();
            let _too_long = more_time.ask_during(tokio::time::timeout(part, pending), ask).await;
        }
        assert_eq!(first, Some(begun), "it is asked for at once");
        let asked_for = last - begun;
        assert!(asked_for <= LONGEST_END && asked_for + EXTENSION >= LONGEST_END, "{asked_for:?}");
    }
}
