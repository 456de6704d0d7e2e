//! A disk that keeps its requests until a test ends them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockyard_blkmq::{
    Busy, Disk, DiskConfig, Driver, HctxHandle, Limits, MonotonicClock, NoOps, Op, Request, Result,
    Sector, Status, TagSet, TagSetConfig,
};
use blockyard_buf::Segment;

/// The longest that requests are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is read where nobody says anything else.
const CONTENT: u8 = 7;

/// The driver. Operations that it does not keep succeed at once.
pub struct Held {
    keeps: fn(Op) -> bool,
    state: Mutex<State>,
    came: Condvar,
}

#[derive(Default)]
struct State {
    requests: Vec<Request<Held>>,
    is_over: bool,
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver for Held {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        if !(self.keeps)(rq.op()) {
            end(rq, Status::Ok);
            return Ok(());
        }
        let mut state = self.lock();
        if state.is_over {
            drop(state);
            rq.end(Status::Io);
            return Ok(());
        }
        state.requests.push(rq);
        self.came.notify_all();
        Ok(())
    }
}

/// Ends a request; what it reads is [`CONTENT`].
fn end(mut rq: Request<Held>, status: Status) {
    if rq.op() == Op::Read && status.is_ok() {
        let len = usize::try_from(rq.len()).unwrap_or(usize::MAX);
        rq.deliver(Segment::from_vec(vec![CONTENT; len]));
    }
    rq.end(status);
}

/// The disk and its requests. Whatever is left when this is dropped fails, so that a test that fails does not hang.
pub struct HeldDisk {
    driver: Arc<Held>,
    /// The disk.
    pub disk: Arc<Disk>,
}

impl HeldDisk {
    /// One that keeps every request.
    #[must_use]
    pub fn new(tags: TagSetConfig, bytes: u64, limits: Limits) -> Self {
        Self::keeping(|_| true, tags, bytes, limits)
    }

    /// One that keeps some operations.
    ///
    /// # Panics
    /// If there can be no such disk.
    #[must_use]
    pub fn keeping(keeps: fn(Op) -> bool, tags: TagSetConfig, bytes: u64, limits: Limits) -> Self {
        let driver = Arc::new(Held { keeps, state: Mutex::default(), came: Condvar::new() });
        let set = TagSet::new(Arc::clone(&driver), tags).unwrap();
        let config = DiskConfig::new("held0", Sector::from_bytes_floor(bytes), limits);
        let clock = Arc::new(MonotonicClock::new());
        Self { driver, disk: Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap() }
    }

    /// How many requests it has.
    #[must_use]
    pub fn held(&self) -> usize {
        self.driver.lock().requests.len()
    }

    /// Waits until it has so many.
    ///
    /// # Panics
    /// If they do not come.
    pub fn wait_for(&self, count: usize) {
        let few = |state: &mut State| state.requests.len() < count;
        let waited = self.driver.came.wait_timeout_while(self.driver.lock(), PATIENCE, few);
        let timed_out = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        assert!(!timed_out, "{count} requests did not come");
    }

    /// Takes the last request that came of those that are meant.
    pub fn take(&self, is_meant: impl Fn(&Request<Held>) -> bool) -> Option<Request<Held>> {
        let mut state = self.driver.lock();
        let at = state.requests.iter().rposition(is_meant)?;
        Some(state.requests.remove(at))
    }

    /// Ends all, from the calling thread, and says how many those were.
    pub fn release(&self, status: Status) -> usize {
        self.release_if(|_| true, status)
    }

    /// Ends those that are meant, and says how many those were.
    pub fn release_if(&self, is_meant: impl Fn(&Request<Held>) -> bool, status: Status) -> usize {
        let meant: Vec<_> = self.driver.lock().requests.extract_if(.., |rq| is_meant(rq)).collect();
        let count = meant.len();
        meant.into_iter().for_each(|rq| end(rq, status));
        count
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        self.driver.lock().is_over = true;
        self.release(Status::Io);
    }
}
