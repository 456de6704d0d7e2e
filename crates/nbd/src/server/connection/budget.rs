//! Memory that all connections of a server share.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The part of a budget that is set apart for small requests: each connection has its share of that, whatever
/// the others hold.
const SET_APART: usize = 8;
/// The least and the most that a connection has for itself, in bytes.
const OWN: (usize, usize) = (4 << 10, 64 << 10);
/// What leases grow by, in bytes.
const STEP: usize = 64 << 10;

/// Bytes that the requests and replies of all connections together may occupy.
///
/// Each connection has some bytes [for itself](Self::own), so that small requests always pass. For more it takes a
/// [`Lease`]; who finds no room waits, and is served in the order of coming.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Bytes that can be leased.
    total: usize,
    /// Bytes that a connection has without a lease.
    own: usize,
    taken: AtomicUsize,
    /// The length of `queue`: whoever gives back looks at it without the lock.
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    seat: Arc<Seat>,
}

/// Where a lease is told that it has grown.
struct Seat {
    granted: AtomicUsize,
    waker: Waker,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("granted", &self.granted).finish_non_exhaustive()
    }
}

impl MemoryBudget {
    /// `bytes` for up to `connections` of them.
    #[must_use]
    pub fn new(bytes: usize, connections: usize) -> Self {
        let connections = connections.max(1);
        let own = (bytes / SET_APART / connections).clamp(OWN.0, OWN.1);
        let total = bytes.saturating_sub(own.saturating_mul(connections).min(bytes / 2));
        Self(Arc::new(Shared {
            total,
            own,
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }))
    }

    /// Bytes that each connection has for itself.
    #[must_use]
    pub fn own(&self) -> usize {
        self.0.own
    }

    /// The most that one lease can ever be.
    #[must_use]
    pub fn largest_lease(&self) -> usize {
        self.0.total
    }

    /// Bytes that are leased.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for memory.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }

    /// A lease of nothing. `waker` is woken when one that waits has grown.
    #[must_use]
    pub fn lease(&self, waker: Waker) -> Lease {
        let seat = Arc::new(Seat { granted: AtomicUsize::new(0), waker });
        Lease { shared: Arc::clone(&self.0), seat, bytes: 0, is_waiting: false }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= self.total);
        self.taken.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
        // In this order: who begins to wait is counted before it tries for the last time.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.serve(&mut self.lock());
        }
    }

    /// Grants what there is room for, the first first.
    fn serve(&self, queue: &mut VecDeque<Waiter>) {
        while let Some(first) = queue.front() {
            if !self.take(first.bytes) {
                return;
            }
            let Some(Waiter { bytes, seat }) = queue.pop_front() else { return };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            seat.granted.fetch_add(bytes, Ordering::SeqCst);
            seat.waker.wake_by_ref();
        }
    }
}

/// What one connection has of a [`MemoryBudget`]. Dropping it gives all back.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    bytes: usize,
    is_waiting: bool,
}

impl Lease {
    /// Bytes that the connection has without it.
    pub(super) fn own(&self) -> usize {
        self.shared.own
    }

    /// The most bytes that the connection can ever hold.
    pub(super) fn most(&self) -> usize {
        self.shared.own + self.shared.total
    }

    /// Whether the connection may hold `bytes`, its own included: the lease grows for it, if there is room and
    /// nobody waits.
    pub(super) fn covers(&mut self, bytes: usize) -> bool {
        let leased = bytes.saturating_sub(self.shared.own);
        self.collect();
        if leased <= self.bytes {
            // What it waited for is not needed any more.
            self.leave_queue();
            return true;
        }
        if self.is_waiting || self.shared.waiting.load(Ordering::SeqCst) > 0 {
            return false;
        }
        let more = self.step_to(leased);
        let took = self.shared.take(more);
        self.bytes += if took { more } else { 0 };
        took
    }

    /// As [`Lease::covers`], and waits for its turn if there is no room.
    pub(super) fn covers_soon(&mut self, bytes: usize) -> bool {
        if self.covers(bytes) {
            return true;
        }
        let leased = bytes - self.shared.own;
        assert!(leased <= self.shared.total, "{bytes} bytes are never to be had");
        let more = self.step_to(leased);
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        if let Some(waiter) = self.waiter(&mut queue) {
            // It may have become less meanwhile.
            waiter.bytes = more;
        } else if !self.is_waiting {
            queue.push_back(Waiter { bytes: more, seat: Arc::clone(&self.seat) });
            shared.waiting.fetch_add(1, Ordering::SeqCst);
            self.is_waiting = true;
        }
        // What was given back meanwhile was given before this one was counted.
        shared.serve(&mut queue);
        drop(queue);
        self.collect();
        leased <= self.bytes
    }

    fn waiter<'a>(&self, queue: &'a mut VecDeque<Waiter>) -> Option<&'a mut Waiter> {
        queue.iter_mut().find(|waiter| Arc::ptr_eq(&waiter.seat, &self.seat))
    }

    /// How much more it takes to lease `bytes`, in whole steps as far as the budget has them.
    fn step_to(&self, bytes: usize) -> usize {
        let stepped = bytes.next_multiple_of(STEP).min(self.shared.total).max(bytes);
        stepped - self.bytes
    }

    /// Gives back what `bytes`, the connection's own included, do not need. Who waits for more keeps its place, and
    /// nothing but what it uses: else those who wait would wait for each other.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let leased = bytes.saturating_sub(self.shared.own).next_multiple_of(STEP);
        let Some(spare) = self.bytes.checked_sub(leased).filter(|&spare| spare > 0) else { return };
        let shared = Arc::clone(&self.shared);
        if self.is_waiting {
            let mut queue = shared.lock();
            // What was granted has its use.
            let Some(waiter) = self.waiter(&mut queue) else { return };
            waiter.bytes += spare;
            shared.taken.fetch_sub(spare, Ordering::SeqCst);
            shared.serve(&mut queue);
        } else {
            shared.give_back(spare);
        }
        self.bytes = leased;
    }

    /// Whether it is of any bytes, or waits for some.
    pub(super) fn is_any(&self) -> bool {
        self.bytes > 0 || self.is_waiting
    }

    /// Whether others wait for memory while this one has some.
    pub(super) fn is_wanted(&self) -> bool {
        self.bytes > 0 && self.shared.waiting.load(Ordering::Relaxed) > 0
    }

    /// Takes what was granted.
    fn collect(&mut self) {
        if self.is_waiting {
            let granted = self.seat.granted.swap(0, Ordering::SeqCst);
            self.bytes += granted;
            self.is_waiting = granted == 0;
        }
    }

    /// Waits for no more memory.
    pub(super) fn leave_queue(&mut self) {
        if !self.is_waiting {
            return;
        }
        let mut queue = self.shared.lock();
        let before = queue.len();
        queue.retain(|waiter| !Arc::ptr_eq(&waiter.seat, &self.seat));
        self.shared.waiting.fetch_sub(before - queue.len(), Ordering::SeqCst);
        // Those behind it may fit where it did not.
        self.shared.serve(&mut queue);
        drop(queue);
        self.collect();
        self.is_waiting = false;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave_queue();
        if self.bytes > 0 {
            self.shared.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn budget() -> MemoryBudget {
        MemoryBudget::new(64 * MIB, 128)
    }

    #[test]
    fn a_budget_leaves_something_for_everybody() {
        let budget = budget();
        assert_eq!(budget.own(), 64 << 10);
        assert_eq!(budget.largest_lease(), 56 * MIB);
        let mut hog = budget.lease(Waker::noop().clone());
        assert!(hog.covers(56 * MIB + budget.own()));
        let mut other = budget.lease(Waker::noop().clone());
        assert!(other.covers(budget.own()));
        assert!(!other.covers(budget.own() + 1));
        drop(hog);
        assert!(other.covers(budget.own() + 1));
        assert_eq!(budget.taken(), STEP);
        other.shrink_to(0);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn who_waits_is_served_in_the_order_of_coming() {
        let budget = budget();
        let own = budget.own();
        let mut first = budget.lease(Waker::noop().clone());
        assert!(first.covers(own + 40 * MIB));
        let mut large = budget.lease(Waker::noop().clone());
        let mut small = budget.lease(Waker::noop().clone());
        assert!(!large.covers_soon(own + 32 * MIB));
        assert!(!small.covers_soon(own + MIB), "there is room, but another has come before");
        assert!(budget.is_pressed() && first.is_wanted() && !large.is_wanted());
        first.shrink_to(own + 30 * MIB);
        assert!(!large.covers_soon(own + 32 * MIB) && !small.covers_soon(own + MIB));
        first.shrink_to(own + 20 * MIB);
        assert!(large.covers_soon(own + 32 * MIB) && small.covers_soon(own + MIB));
        assert!(!budget.is_pressed());
        drop((first, large, small));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn those_who_wait_do_not_wait_for_each_other() {
        let budget = budget();
        let own = budget.own();
        let mut leases: Vec<_> = (0..3).map(|_| budget.lease(Waker::noop().clone())).collect();
        assert!(leases.iter_mut().all(|lease| lease.covers(own + 18 * MIB)));
        assert!(leases.iter_mut().all(|lease| !lease.covers_soon(own + 24 * MIB)));
        // None of them uses what it has, nor gives up what it waits for.
        for lease in &mut leases {
            lease.shrink_to(0);
        }
        assert!(leases[0].covers_soon(own + 24 * MIB) && leases[1].covers_soon(own + 24 * MIB));
        assert!(!leases[2].covers_soon(own + 24 * MIB));
        // Nor does one wait for what it does not need any more.
        assert!(leases[2].covers_soon(own + 8 * MIB));
        assert!(!budget.is_pressed());
    }

    #[test]
    fn who_leaves_the_queue_lets_those_behind_pass() {
        let budget = budget();
        let own = budget.own();
        let mut first = budget.lease(Waker::noop().clone());
        assert!(first.covers(own + 40 * MIB));
        let mut large = budget.lease(Waker::noop().clone());
        let mut small = budget.lease(Waker::noop().clone());
        assert!(!large.covers_soon(own + 32 * MIB) && !small.covers_soon(own + MIB));
        drop(large);
        assert!(small.covers_soon(own + MIB));
        drop((first, small));
        assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_too_much(
            steps in prop::collection::vec((0_usize..8, 0_usize..4, 1_usize..(60 * MIB)), 1..200),
        ) {
            let budget = budget();
            let lease = || budget.lease(Waker::noop().clone());
            let mut leases: Vec<_> = (0..8).map(|_| lease()).collect();
            for (who, what, bytes) in steps {
                let bytes = bytes.min(budget.largest_lease());
                match what {
                    0 => drop(std::mem::replace(&mut leases[who], lease())),
                    1 => leases[who].shrink_to(bytes),
                    2 => _ = leases[who].covers(bytes),
                    _ => _ = leases[who].covers_soon(bytes),
                }
                let granted = |lease: &Lease| lease.bytes + lease.seat.granted.load(Ordering::Relaxed);
                prop_assert_eq!(leases.iter().map(granted).sum::<usize>(), budget.taken());
                prop_assert!(budget.taken() <= budget.largest_lease());
                let waiting = leases.iter()
                    .filter(|lease| lease.is_waiting && lease.seat.granted.load(Ordering::Relaxed) == 0);
                prop_assert_eq!(waiting.count() > 0, budget.is_pressed());
            }
            leases.clear();
            prop_assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
        }
    }
}
