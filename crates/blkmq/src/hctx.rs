//! A hardware queue: the way of a request from a bio to the driver, and back.
//!
//! Two locks, never held by one thread at the same time but in this order, and never while a bio ends:
//! - `driver`: whoever holds it is the one who talks to the driver for this queue. It is only tried for on the
//!   way in: who fails leaves its requests in the lists and sets `rerun`, which the holder looks at after it
//!   has let go. So a bio that ends within `queue_rq` may submit the next one: that joins the list, and nobody
//!   waits for himself.
//! - `state`: the lists, held for a few instructions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;

use crate::bio::Bio;
use crate::bytes::WritesOut;
use crate::driver::Driver;
use crate::fault::FaultSet;
use crate::flush::FlushQueue;
use crate::limits::Limits;
use crate::op::{Op, Status};
use crate::queue::QueueShared;
use crate::queue_map::QueueType;
use crate::request::Rq;
use crate::stats::QueueStats;
use crate::tags::Tags;
use crate::units::{BlockSize, Sector};

mod check;
mod complete;
mod dispatch;
mod gate;
mod handle;
mod held;
mod inject;
mod show;
mod stand_in;
mod submit;
mod tagging;
mod timer;
mod waiting;

use gate::Gate;
pub use handle::HctxHandle;
use held::Held;
pub(crate) use inject::Mark;
pub(crate) use waiting::Arrival;
use waiting::Waiting;

/// Requests that are taken from the lists at a time.
const BATCH: usize = 32;
/// A driver that was short of something is tried again after this long (kernel: `BLK_MQ_RESOURCE_DELAY`, 3 ms).
const RESOURCE_DELAY_NS: u64 = 3_000_000;

/// The deadline of a request that has none.
const NEVER: u64 = u64::MAX;

type Requests<D> = SmallVec<[Box<Rq<D>>; BATCH]>;

pub(crate) struct Hctx<D: Driver> {
    pub(crate) index: usize,
    pub(crate) kind: QueueType,
    pub(crate) shared: Arc<QueueShared<D>>,
    tags: Arc<Tags>,
    state: CachePadded<Mutex<State<D>>>,
    driver: CachePadded<Mutex<Option<Part<D>>>>,
    rerun: AtomicBool,
    /// Whether it is quiesced, for whoever has got the driver and does not look at the state.
    quiesced: AtomicBool,
}

/// What whoever talks to the driver holds.
struct Part<D: Driver> {
    hctx: D::Hctx,
    /// What is done to requests before the driver sees them. `None`: nothing.
    faults: Option<Arc<FaultSet>>,
}

pub(crate) struct State<D: Driver> {
    free: Vec<Box<Rq<D>>>,
    flush_rq: Option<Box<Rq<D>>>,
    /// Requests in use, wherever they are.
    pub(crate) allocated: usize,
    /// When the disk was asked for the oldest bio of each of them, by its internal tag. 0: it is not in use.
    came_ns: Vec<u64>,
    tags_held: u32,
    /// Whether it is counted among those who share the tags and hold some.
    tags_active: bool,
    /// The software queues: requests that wait for the driver, by the CPU that they came from.
    ctxs: Vec<VecDeque<Box<Rq<D>>>>,
    next_ctx: usize,
    staged: usize,
    /// Go first: handed back by the driver, or between the steps of a flush. Those that have a tag are before
    /// those that wait for one, which may be theirs.
    dispatch: VecDeque<Box<Rq<D>>>,
    /// Bios that found no free request or tag, or a frozen queue.
    waiting: Waiting,
    /// Keeps bios back that the limits of the disk do not allow yet. `None`: there are none.
    gate: Option<Box<Gate>>,
    /// For how long at most, also if there is one later.
    longest_wait_ns: u64,
    /// What came until then is not kept at all.
    admitted_until_ns: u64,
    /// The writes that are out, once there are locks which they may have to be kept from.
    pub(crate) writes: Option<Box<WritesOut>>,
    /// Whether it is in the queues for ordinary and for reserved tags.
    waits_for_tag: [bool; 2],
    /// Begun, and given back until the next tick.
    later: VecDeque<Box<Rq<D>>>,
    /// Kept from the driver by faults, with their tags.
    held: Vec<Held<D>>,
    flush: FlushQueue<Box<Rq<D>>>,
    slots: Box<[Slot]>,
    pub(crate) limits: Limits,
    quiesced: u32,
    frozen: u32,
    dying: bool,
    /// Whether a scheduler orders the requests.
    elevator: bool,
    /// Requests that may be in use before operations wait which a scheduler limits.
    async_depth: usize,
    /// When the driver is to be tried again.
    retry_at_ns: Option<u64>,
    pub(crate) stats: QueueStats,
}

/// What is out under a tag.
#[derive(Clone, Copy, Default)]
struct Slot {
    what: Option<(Op, Sector, u64)>,
    generation: u32,
    since_ns: u64,
    deadline_ns: u64,
}

/// What is to be done once the state is let go.
struct Todo<D: Driver> {
    issue: Requests<D>,
    ended_bios: SmallVec<[(Box<Bio>, Status); 4]>,
    ended: SmallVec<[(Box<Rq<D>>, Status); 4]>,
    unaligned: Vec<(Arrival, BlockSize)>,
    run: bool,
    /// Others may have tags now.
    wake: bool,
    /// There is a tick to come that was not known before.
    alarm: bool,
}

impl<D: Driver> Default for Todo<D> {
    fn default() -> Self {
        Self {
            issue: SmallVec::new(),
            ended_bios: SmallVec::new(),
            ended: SmallVec::new(),
            unaligned: Vec::new(),
            run: false,
            wake: false,
            alarm: false,
        }
    }
}

impl<D: Driver> State<D> {
    /// The first of those that were to be resumed later goes first now: it has a tag, which others may wait for. The next has
    /// its turn at the next tick, so that what has come meanwhile waits for one turn, not for one of each.
    fn resume_next(&mut self, now_ns: u64) {
        if let Some(rq) = self.later.pop_front() {
            self.dispatch.push_front(rq);
        }
        if !self.later.is_empty() {
            self.retry_at_ns = Some(now_ns);
        }
    }
}

impl<D: Driver> Hctx<D> {
    /// A hardware queue with `requests` requests; the driver's part is set by [`Hctx::attach`].
    pub(crate) fn new(
        shared: Arc<QueueShared<D>>,
        index: usize,
        kind: QueueType,
        tags: Arc<Tags>,
        ctxs: usize,
        limits: Limits,
    ) -> Arc<Self> {
        let state = State {
            free: Vec::new(),
            flush_rq: None,
            allocated: 0,
            came_ns: Vec::new(),
            tags_held: 0,
            tags_active: false,
            ctxs: (0..ctxs).map(|_| VecDeque::new()).collect(),
            next_ctx: 0,
            staged: 0,
            dispatch: VecDeque::new(),
            waiting: Waiting::default(),
            gate: None,
            longest_wait_ns: NEVER,
            admitted_until_ns: 0,
            writes: None,
            waits_for_tag: [false; 2],
            later: VecDeque::new(),
            held: Vec::new(),
            flush: FlushQueue::default(),
            slots: vec![Slot::default(); tags.depth() as usize].into(),
            limits,
            quiesced: 0,
            frozen: 0,
            dying: false,
            elevator: false,
            async_depth: usize::MAX,
            retry_at_ns: None,
            stats: QueueStats::default(),
        };
        Arc::new(Self {
            index,
            kind,
            shared,
            tags,
            state: CachePadded::new(Mutex::new(state)),
            driver: CachePadded::default(),
            rerun: AtomicBool::new(false),
            quiesced: AtomicBool::new(false),
        })
    }

    /// Lets the driver set its part up, and makes the requests.
    pub(crate) fn attach(self: &Arc<Self>) -> crate::error::Result<()> {
        let part =
            self.shared.driver.init_hctx(&self.shared.disk, HctxHandle(Arc::downgrade(self)))?;
        *self.driver.lock() = Some(Part { hctx: part, faults: None });
        self.tags.attach();
        let made =
            self.resize_pool(self.tags.depth() as usize).and_then(|()| self.make_request(u32::MAX));
        match made {
            Ok(flush) => self.state.lock().flush_rq = Some(flush),
            Err(err) => {
                self.detach();
                return Err(err);
            }
        }
        Ok(())
    }

    /// Makes the number of requests `count`, or leaves it as it is. Only when none is in use.
    pub(crate) fn resize_pool(&self, count: usize) -> crate::error::Result<()> {
        let have = self.state.lock().free.len();
        let mut made = Vec::new();
        for tag in have..count {
            match self.make_request(u32::try_from(tag).unwrap_or(u32::MAX)) {
                Ok(rq) => made.push(rq),
                Err(err) => {
                    self.unmake(made);
                    return Err(err);
                }
            }
        }
        let extra = {
            let mut st = self.state.lock();
            st.free.sort_unstable_by_key(|rq| rq.internal_tag);
            let extra = st.free.split_off(count.min(have));
            st.free.append(&mut made);
            st.came_ns.resize(count, 0);
            extra
        };
        self.unmake(extra);
        Ok(())
    }

    fn unmake(&self, requests: impl IntoIterator<Item = Box<Rq<D>>>) {
        for mut rq in requests {
            self.shared.driver.exit_request(&self.shared.disk, &mut rq.cmd, self.index);
        }
    }

    fn make_request(&self, internal_tag: u32) -> crate::error::Result<Box<Rq<D>>> {
        let mut cmd = D::Cmd::default();
        self.shared.driver.init_request(&self.shared.disk, &mut cmd, self.index)?;
        Ok(Rq::new(cmd, internal_tag))
    }

    /// Takes the driver's part down. No request is in use any more.
    pub(crate) fn detach(&self) {
        let Some(part) = self.driver.lock().take() else { return };
        let (free, flush) = {
            let mut st = self.state.lock();
            if std::mem::take(&mut st.tags_active) {
                self.tags.set_active(false);
            }
            (std::mem::take(&mut st.free), st.flush_rq.take())
        };
        self.unmake(free.into_iter().chain(flush));
        self.tags.detach();
        // The shares of others have become larger.
        self.tags.wake();
        self.shared.driver.exit_hctx(&self.shared.disk, part.hctx);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock()
    }

    pub(crate) fn poll(self: &Arc<Self>) -> usize {
        self.with_driver(|part| self.shared.driver.poll(part)).unwrap_or(0)
    }

    pub(crate) fn freeze(&self) {
        self.state.lock().frozen += 1;
    }

    pub(crate) fn unfreeze(self: &Arc<Self>) {
        self.state.lock().frozen -= 1;
        self.run();
    }

    /// No request goes to the driver from now on.
    pub(crate) fn quiesce(self: &Arc<Self>) {
        self.quiesce_nowait();
        // Whoever is with the driver saw the old state: wait until it is through.
        self.with_driver(|_| ());
    }

    /// The same, without waiting for whoever is with the driver.
    pub(crate) fn quiesce_nowait(&self) {
        let mut st = self.state.lock();
        st.quiesced += 1;
        self.quiesced.store(true, Ordering::SeqCst);
    }

    pub(crate) fn unquiesce(self: &Arc<Self>) {
        {
            let mut st = self.state.lock();
            st.quiesced = st.quiesced.saturating_sub(1);
            self.quiesced.store(st.quiesced > 0, Ordering::SeqCst);
        }
        self.run();
    }

    /// Sends to the driver again, however often it was quiesced.
    pub(crate) fn end_quiesce(self: &Arc<Self>) {
        {
            let mut st = self.state.lock();
            st.quiesced = 0;
            self.quiesced.store(false, Ordering::SeqCst);
        }
        self.run();
    }

    /// Fails what waits, and all that comes.
    pub(crate) fn die(self: &Arc<Self>) {
        let waiting = {
            let mut st = self.state.lock();
            st.dying = true;
            let later = std::mem::take(&mut st.later);
            let held = std::mem::take(&mut st.held).into_iter().map(Held::into_rq);
            later.into_iter().chain(held).rev().for_each(|rq| st.dispatch.push_front(rq));
            let waiting = st.waiting.take_all().chain(st.take_kept());
            let _woken_below = self.leave_tags_if_idle(&mut st);
            waiting
        };
        for arrival in waiting {
            arrival.bio.end(Status::Offline);
        }
        self.tags.wake();
        self.run();
    }

    pub(crate) fn set_elevator(&self, on: bool) {
        self.state.lock().elevator = on;
    }

    /// How many requests may be in use before what the scheduler limits has to wait.
    pub(crate) fn set_async_depth(self: &Arc<Self>, depth: usize) {
        self.state.lock().async_depth = depth;
        self.run();
    }

    /// Whether another hardware queue of the disk has requests in use, as far as that can be told without waiting.
    fn others_are_busy(&self) -> bool {
        self.shared
            .queues()
            .filter(|other| other.index != self.index)
            .any(|other| other.state.try_lock().is_none_or(|st| st.allocated > 0))
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.state.lock().limits = limits;
    }
}
