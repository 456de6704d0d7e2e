//! The scheduler of a disk, where its queues reach it.

use parking_lot::Mutex;

use crate::driver::Driver;
use crate::op::Op;
use crate::request::Rq;
use crate::sched::{Candidate, Kind, MergeKind, Scheduler};

type Boxed<D> = Box<dyn Scheduler<Box<Rq<D>>>>;

/// None, or one that all hardware queues of the disk share. It is a leaf: nothing is called out of it.
pub(crate) struct Elevator<D: Driver>(Mutex<Option<Boxed<D>>>);

impl<D: Driver> Default for Elevator<D> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<D: Driver> Elevator<D> {
    pub(crate) fn kind(&self) -> Kind {
        self.0.lock().as_ref().map_or(Kind::None, |scheduler| scheduler.kind())
    }

    /// Only while the queue is frozen, so that nothing is left in the old one.
    pub(crate) fn replace(&self, scheduler: Option<Boxed<D>>) {
        let old = std::mem::replace(&mut *self.0.lock(), scheduler);
        assert!(
            old.is_none_or(|old| !old.has_work()),
            "a scheduler was replaced with requests in it"
        );
    }

    /// Works on the scheduler, if there is one.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut dyn Scheduler<Box<Rq<D>>>) -> R) -> Option<R> {
        let mut scheduler = self.0.lock();
        let scheduler: &mut dyn Scheduler<Box<Rq<D>>> = &mut **scheduler.as_mut()?;
        Some(f(scheduler))
    }

    pub(crate) fn insert(&self, rq: Box<Rq<D>>, now_ns: u64) {
        if self.with(|scheduler| scheduler.insert(rq, false, now_ns)).is_none() {
            unreachable!("it is switched while no request is in use");
        }
    }

    /// The next request of a hardware queue.
    pub(crate) fn dispatch(&self, queue: usize, now_ns: u64) -> Option<Box<Rq<D>>> {
        self.with(|scheduler| scheduler.dispatch(now_ns, &|rq| queue_of(rq) == queue)).flatten()
    }

    /// The hardware queue of the next request.
    pub(crate) fn next_queue(&self, now_ns: u64) -> Option<usize> {
        self.with(|scheduler| scheduler.peek(now_ns).map(|rq| queue_of(rq))).flatten()
    }

    /// How many requests may be in use before operations that the scheduler limits have to wait.
    pub(crate) fn async_depth(&self) -> usize {
        let limit = self.with(|scheduler| scheduler.depth_limit(Op::Write)).flatten();
        limit.map_or(usize::MAX, |limit| limit as usize)
    }

    /// Offers `merge` the requests of a hardware queue, whose lock the caller has: what is known of a request is kept
    /// in step with it under that lock.
    pub(crate) fn try_merge(
        &self,
        queue: usize,
        bio: Candidate,
        merge: &mut dyn FnMut(&mut Box<Rq<D>>, MergeKind) -> bool,
    ) -> bool {
        self.with(|scheduler| scheduler.try_merge(bio, &|rq| queue_of(rq) == queue, merge))
            .unwrap_or(false)
    }

    pub(crate) fn completed(&self, rq: &Rq<D>) {
        self.with(|scheduler| scheduler.completed(rq.prio));
    }
}

fn queue_of<D: Driver>(rq: &Rq<D>) -> usize {
    rq.hctx.as_ref().map_or(0, |hctx| hctx.index)
}
