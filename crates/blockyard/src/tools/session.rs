//! Disks for the length of a command: queue threads, disks on them, and a clock that ticks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use blockyard_blkmq::{BlockLayer, Clock, Disk, DiskFlags, MonotonicClock};
use tokio::runtime::Handle;

use super::progress::Progress;
use crate::daemon::Losses;
use crate::disks::{DiskMaker, DiskPlan, OpenDisk};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::queue_threads::QueueThreads;

/// How often timeouts are looked at, at least.
const TICK: Duration = Duration::from_secs(1);
/// The same, at most.
const SHORTEST_TICK: Duration = Duration::from_millis(1);
/// How long a server has to take the last flush.
const LEAVE_LIMIT: Duration = Duration::from_secs(30);

/// How much is done of something long, for whoever asks.
#[derive(Debug, Default)]
pub struct Amount {
    done: AtomicU64,
    total: AtomicU64,
}

impl Amount {
    /// Bytes that are done, and all that there are to do.
    #[must_use]
    pub fn so_far(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, done: u64, total: u64) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }
}

/// A thread that ticks disks when they want it.
struct Ticker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Ticker {
    fn start(disks: &Arc<Mutex<Vec<Arc<Disk>>>>, clock: &Arc<dyn Clock>) -> Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (disks, clock, stopped) = (Arc::clone(disks), Arc::clone(clock), Arc::clone(&stop));
        let tick = move || {
            while !stopped.load(Ordering::Acquire) {
                let disks = disks.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let next_ns = disks.iter().filter_map(|disk| disk.tick()).min();
                let wait = next_ns.map_or(TICK, |at_ns| {
                    Duration::from_nanos(at_ns.saturating_sub(clock.now_ns()))
                });
                std::thread::park_timeout(wait.clamp(SHORTEST_TICK, TICK));
            }
        };
        let thread = std::thread::Builder::new().name("tick".into()).spawn(tick);
        let thread = thread.map_err(|err| Error::failed("cannot start a thread").caused_by(err))?;
        Ok(Self { stop, thread })
    }

    /// Has the disk call for a tick that is due sooner than it said.
    fn see_to(&self, disk: &Disk) {
        let thread = self.thread.thread().clone();
        disk.set_alarm(Arc::new(move || thread.unpark()));
    }

    fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // A panic has been reported where it happened.
        let _ = self.thread.join();
    }
}

/// Open disks. Dropping it closes them; who has written to them calls [`Session::close`].
pub struct Session {
    threads: Vec<Handle>,
    /// Those threads, if they are its own.
    _own: Option<QueueThreads>,
    /// Where it is told how much is done; on a terminal without.
    told: Option<Arc<Amount>>,
    layer: Arc<BlockLayer>,
    maker: DiskMaker,
    disks: Arc<Mutex<Vec<Arc<Disk>>>>,
    open: Vec<OpenDisk>,
    clock: Arc<dyn Clock>,
    ticker: Option<Ticker>,
}

impl Session {
    /// No disks yet, on so many queue threads.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(threads: usize) -> Result<Self> {
        let own = QueueThreads::start(threads)?;
        let handles = own.handles().to_vec();
        let mut session = Self::of(&handles, Some(own));
        session.ticker = Some(Ticker::start(&session.disks, &session.clock)?);
        Ok(session)
    }

    /// For work on disks that others have opened, on their queue threads.
    #[must_use]
    pub fn on(threads: &[Handle], told: Arc<Amount>) -> Self {
        let mut session = Self::of(threads, None);
        session.told = Some(told);
        session
    }

    fn of(threads: &[Handle], own: Option<QueueThreads>) -> Self {
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        Self {
            maker: DiskMaker::new(&layer, threads, Arc::clone(&clock)),
            clock,
            threads: threads.to_vec(),
            _own: own,
            told: None,
            layer,
            disks: Arc::default(),
            open: Vec::new(),
            ticker: None,
        }
    }

    /// The queue threads.
    #[must_use]
    pub fn threads(&self) -> &[Handle] {
        &self.threads
    }

    /// Tells of the progress of something long.
    pub(super) fn progress(&self, what: &'static str, bytes: u64) -> Progress {
        Progress::told(what, bytes, self.told.clone())
    }

    /// Opens a disk.
    ///
    /// # Errors
    /// What keeps it from being made, with what to do.
    pub fn open(&mut self, plan: &DiskPlan, flags: DiskFlags) -> Result<Arc<Disk>> {
        let plan = &self.named(plan);
        let open = self.maker.open_with(plan, flags)?;
        let disk = Arc::clone(open.disk());
        let layers: Vec<_> = open.layers().map(|layer| Arc::clone(layer.disk())).collect();
        if let Some(ticker) = &self.ticker {
            layers.iter().for_each(|disk| ticker.see_to(disk));
        }
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).extend(layers);
        self.open.push(open);
        Ok(disk)
    }

    /// Disks of the same name may be used together, unless the user has named both.
    fn named(&self, plan: &DiskPlan) -> DiskPlan {
        let mut plan = plan.clone();
        if plan.options.name.is_none() {
            let name = plan.default_name(0);
            let taken = self.layer.lookup(&name).is_some();
            let count = self.layer.disks().len();
            plan.options.name = Some(if taken { format!("{name}-{count}") } else { name });
        }
        plan
    }

    /// Fails all that disks at servers still wait for: a server that is lost keeps nobody from ending. Whoever calls it
    /// starts nothing any more.
    pub fn abandon(&self) {
        self.open.iter().for_each(OpenDisk::abandon);
    }

    /// Opens a disk only to look at it: whoever else uses it, and without writing. What is not there is not made by
    /// looking, and nobody who waits for the end of writing (udev) is woken.
    ///
    /// # Errors
    /// As those of [`Session::open`].
    pub fn look_at(&mut self, plan: &DiskPlan, flags: DiskFlags) -> Result<Arc<Disk>> {
        let mut plan = plan.clone();
        plan.options.read_only = true;
        plan.share();
        self.open(&plan, flags)
    }

    /// The same, to find out what could be done with it: that of a file is known only to those who may write.
    ///
    /// # Errors
    /// As those of [`Session::open`].
    pub fn look_into(&mut self, plan: &DiskPlan, flags: DiskFlags) -> Result<Arc<Disk>> {
        let mut open = plan.clone();
        if open.source.file().is_some_and(|path| !path.is_file()) {
            return self.look_at(plan, flags);
        }
        open.share();
        match self.open(&open, flags) {
            Err(err) if err.kind() == ErrorKind::NotPermitted => self.look_at(plan, flags),
            made => made,
        }
    }

    /// Closes all disks.
    ///
    /// # Errors
    /// A last flush failed: what was written may be lost.
    pub fn close(mut self) -> Result<()> {
        self.end().into_result()
    }

    fn end(&mut self) -> Losses {
        let mut losses = Losses::default();
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for open in self.open.drain(..).rev() {
            losses.extend(open.close_now(&self.layer, LEAVE_LIMIT));
        }
        losses
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(err) = self.end().into_result() {
            tracing::error!(error = %err, "writes since the last successful flush may be lost");
        }
        if let Some(ticker) = self.ticker.take() {
            ticker.end();
        }
    }
}
