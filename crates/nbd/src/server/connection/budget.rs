//! Memory that all connections of a server share.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::queue::{Queue, Ticket};

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
/// [`Lease`] out of the [share](MemoryShare) of its export; who finds no room waits. Those who wait are served so that
/// all of them get as many bytes, however long their requests are.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Shared>);

/// What the connections of one export may lease.
///
/// A share takes no more than half of what the others have left, or what [it was made for](MemoryBudget::share) if that is
/// more and there. So an export whose disk does not answer keeps half of the memory from the others at most, and a second
/// one half of the rest, or what it was made for. That is not set apart for those that come later: several such exports
/// may leave nothing but what each connection has for itself.
#[derive(Clone, Debug)]
pub struct MemoryShare {
    part: Arc<Part>,
}

#[derive(Debug)]
struct Shared {
    /// Bytes that can be leased.
    total: usize,
    /// Bytes that a connection has without a lease.
    own: usize,
    taken: AtomicUsize,
    /// How many wait: whoever gives back looks at it without the lock.
    waiting: AtomicUsize,
    /// One of them waits for what connections of any share have.
    is_short: AtomicBool,
    /// How many shares there are, and how many there have been.
    shares: AtomicUsize,
    numbers: AtomicUsize,
    queue: Mutex<Queue<Waiter>>,
}

/// A share, as the budget sees it: until the last of its leases has gone.
#[derive(Debug)]
pub(super) struct Part {
    shared: Arc<Shared>,
    /// No other has had it.
    number: usize,
    /// What it may take if there is as much, whatever the others have.
    floor: usize,
    taken: AtomicUsize,
    /// How many of its connections wait.
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    seat: Arc<Seat>,
}

/// Where a lease is told that it has grown.
struct Seat {
    part: Arc<Part>,
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
            is_short: AtomicBool::new(false),
            shares: AtomicUsize::new(0),
            numbers: AtomicUsize::new(0),
            queue: Mutex::default(),
        }))
    }

    /// A share for connections that may lease `floor` bytes together whatever the others have, if there are as many. The only
    /// share takes all.
    #[must_use]
    pub fn share(&self, floor: usize) -> MemoryShare {
        self.0.shares.fetch_add(1, Ordering::Relaxed);
        let part = Part {
            shared: Arc::clone(&self.0),
            number: self.0.numbers.fetch_add(1, Ordering::Relaxed),
            floor: floor.min(self.0.total),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        };
        MemoryShare { part: Arc::new(part) }
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
}

impl MemoryShare {
    /// A lease of nothing. `waker` is woken when one that waits has grown.
    #[must_use]
    pub fn lease(&self, waker: Waker) -> Lease {
        let (shared, part) = (Arc::clone(&self.part.shared), Arc::clone(&self.part));
        let seat = Arc::new(Seat { part, granted: AtomicUsize::new(0), waker });
        Lease { shared, seat, bytes: 0, ticket: None, served_until: 0 }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // No look at who waits: this may be where they are served. Whoever may have more now gets it with the next bytes
        // that are given back, or when it asks again.
        self.shared.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue<Waiter>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a share may have so many bytes more, if they are there.
    fn admits(&self, part: &Part, bytes: usize) -> bool {
        if self.shares.load(Ordering::Relaxed) <= 1 {
            return true;
        }
        let mine = part.taken.load(Ordering::SeqCst);
        let others = self.taken.load(Ordering::SeqCst).saturating_sub(mine);
        let fair = self.total.saturating_sub(others) / 2;
        mine + bytes <= fair.max(part.floor)
    }

    fn take(&self, part: &Part, bytes: usize) -> bool {
        // Two threads that ask this at once may get past it together: the total is exact, the share need not be.
        if !self.admits(part, bytes) {
            return false;
        }
        let more = |taken: usize| taken.checked_add(bytes).filter(|&sum| sum <= self.total);
        let took = self.taken.fetch_update(Ordering::SeqCst, Ordering::Relaxed, more).is_ok();
        if took {
            part.taken.fetch_add(bytes, Ordering::SeqCst);
        }
        took
    }

    /// Without a look at who waits.
    fn release(&self, part: &Part, bytes: usize) {
        part.taken.fetch_sub(bytes, Ordering::SeqCst);
        self.taken.fetch_sub(bytes, Ordering::SeqCst);
    }

    fn give_back(&self, part: &Part, bytes: usize) {
        self.release(part, bytes);
        // In this order: who begins to wait is counted before it tries for the last time.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.serve(&mut self.lock());
        }
    }

    /// Grants what there is room for: first to whom has had least. The others of a share that has all it may have are
    /// not kept waiting by it.
    fn serve(&self, queue: &mut Queue<Waiter>) {
        let is_short = loop {
            let admits = |first: &Waiter| self.admits(&first.seat.part, first.bytes);
            let Some((ticket, first)) = queue.first(admits) else { break false };
            if !self.take(&first.seat.part, first.bytes) {
                break true;
            }
            let Some(Waiter { bytes, seat }) = queue.serve(ticket) else { break false };
            self.count_out(&seat.part);
            seat.granted.fetch_add(bytes, Ordering::SeqCst);
            seat.waker.wake_by_ref();
        };
        self.is_short.store(is_short, Ordering::SeqCst);
    }

    fn count_in(&self, part: &Part) {
        part.waiting.fetch_add(1, Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
    }

    fn count_out(&self, part: &Part) {
        part.waiting.fetch_sub(1, Ordering::SeqCst);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one connection has of a [`MemoryShare`]. Dropping it gives all back.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    seat: Arc<Seat>,
    bytes: usize,
    /// Its place in the queue, while it waits or has not looked at what it was granted.
    ticket: Option<Ticket>,
    /// What it was granted while memory was short, in the queue's time.
    served_until: u64,
}

impl Lease {
    /// Bytes that the connection has without it.
    pub(super) fn own(&self) -> usize {
        self.shared.own
    }

    /// The most bytes that the connection may have, whatever others have, when there are as many.
    pub(super) fn most(&self) -> usize {
        let is_only = self.shared.shares.load(Ordering::Relaxed) <= 1;
        self.shared.own + if is_only { self.shared.total } else { self.seat.part.floor }
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
        if self.is_waiting() || self.has_rivals() {
            return false;
        }
        let more = self.step_to(leased);
        let took = self.shared.take(&self.seat.part, more);
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
        match self.ticket {
            Some(ticket) => {
                if let Some(waiter) = queue.waiter(ticket) {
                    // It may have become less meanwhile.
                    self.served_until = ticket.end(more);
                    waiter.bytes = more;
                }
            }
            None => {
                let waiter = Waiter { bytes: more, seat: Arc::clone(&self.seat) };
                let ticket = queue.join(self.seat.part.number, self.served_until, waiter);
                self.served_until = ticket.end(more);
                self.ticket = Some(ticket);
                shared.count_in(&self.seat.part);
            }
        }
        // What was given back meanwhile was given before this one was counted.
        shared.serve(&mut queue);
        drop(queue);
        self.collect();
        leased <= self.bytes
    }

    /// How much more it takes to lease `bytes`, in whole steps as far as the budget has them.
    fn step_to(&self, bytes: usize) -> usize {
        let most = self.most() - self.shared.own;
        let stepped = bytes.next_multiple_of(STEP).min(most).max(bytes);
        stepped - self.bytes
    }

    /// Gives back what `bytes`, the connection's own included, do not need. Who waits for more keeps its place, and
    /// nothing but what it uses: else those who wait would wait for each other.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let leased = bytes.saturating_sub(self.shared.own).next_multiple_of(STEP);
        let Some(spare) = self.bytes.checked_sub(leased).filter(|&spare| spare > 0) else { return };
        let shared = Arc::clone(&self.shared);
        if let Some(ticket) = self.ticket {
            let mut queue = shared.lock();
            // What was granted has its use.
            let Some(waiter) = queue.waiter(ticket) else { return };
            waiter.bytes += spare;
            shared.release(&self.seat.part, spare);
            shared.serve(&mut queue);
        } else {
            shared.give_back(&self.seat.part, spare);
        }
        self.bytes = leased;
    }

    /// Whether it is of any bytes, or waits for some.
    pub(super) fn is_any(&self) -> bool {
        self.bytes > 0 || self.is_waiting()
    }

    /// Whether it waits for more, as far as it has looked.
    pub(super) fn is_waiting(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether others wait for memory that this one has some of.
    pub(super) fn is_wanted(&self) -> bool {
        self.bytes > 0 && self.has_rivals()
    }

    /// Whether anybody waits for memory that this one could have: those of a share that has all it may have wait for each
    /// other.
    fn has_rivals(&self) -> bool {
        self.seat.part.waiting.load(Ordering::SeqCst) > 0
            || self.shared.is_short.load(Ordering::SeqCst)
    }

    /// Takes what was granted.
    fn collect(&mut self) {
        if self.is_waiting() {
            let granted = self.seat.granted.swap(0, Ordering::SeqCst);
            if granted > 0 {
                self.bytes += granted;
                self.ticket = None;
            }
        }
    }

    /// Waits for no more memory.
    pub(super) fn leave_queue(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let shared = Arc::clone(&self.shared);
        let mut queue = shared.lock();
        if queue.leave(ticket).is_some() {
            self.served_until = ticket.end(0);
            shared.count_out(&self.seat.part);
        }
        // Those behind it may fit where it did not.
        shared.serve(&mut queue);
        drop(queue);
        self.collect();
        self.ticket = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leave_queue();
        if self.bytes > 0 {
            self.shared.give_back(&self.seat.part, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn budget() -> (MemoryBudget, MemoryShare) {
        let budget = MemoryBudget::new(64 * MIB, 128);
        let share = budget.share(8 * MIB);
        (budget, share)
    }

    fn lease(share: &MemoryShare) -> Lease {
        share.lease(Waker::noop().clone())
    }

    #[test]
    fn a_budget_leaves_something_for_everybody() {
        let (budget, share) = budget();
        assert_eq!(budget.own(), 64 << 10);
        assert_eq!(budget.largest_lease(), 56 * MIB);
        let mut hog = lease(&share);
        assert!(hog.covers(56 * MIB + budget.own()));
        let mut other = lease(&share);
        assert!(other.covers(budget.own()));
        assert!(!other.covers(budget.own() + 1));
        drop(hog);
        assert!(other.covers(budget.own() + 1));
        assert_eq!(budget.taken(), STEP);
        other.shrink_to(0);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn who_waits_is_served_in_turn() {
        let (budget, share) = budget();
        let own = budget.own();
        let mut first = lease(&share);
        assert!(first.covers(own + 40 * MIB));
        let mut large = lease(&share);
        let mut small = lease(&share);
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
        let (budget, share) = budget();
        let own = budget.own();
        let mut leases: Vec<_> = (0..3).map(|_| lease(&share)).collect();
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
    fn a_share_leaves_half_of_the_rest_to_the_others() {
        let budget = MemoryBudget::new(256 * MIB, 1024);
        let (own, total) = (budget.own(), budget.largest_lease());
        let shares: Vec<_> = (0..4).map(|_| budget.share(32 * MIB)).collect();
        let mut hung = Vec::new();
        for share in &shares[..2] {
            for _ in 0..64 {
                hung.push(lease(share));
                hung.last_mut().unwrap().covers_soon(own + 8 * MIB);
            }
        }
        assert!(budget.is_pressed() && budget.taken() <= total / 4 * 3);
        // One of a healthy share gets what it needs, again and again, and nobody waits for it.
        for _ in 0..4 {
            let mut healthy = lease(&shares[2]);
            assert!(healthy.covers_soon(own + 32 * MIB) && !healthy.is_wanted());
        }
        drop(hung);
        assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
    }

    #[test]
    fn a_share_has_its_place_until_the_last_of_it_has_gone() {
        let (budget, share) = budget();
        let (own, total) = (budget.own(), budget.largest_lease());
        for _ in 0..100 {
            let other = budget.share(8 * MIB);
            let mut first = lease(&share);
            assert!(first.covers(own + 4 * MIB) && !lease(&other).covers_soon(own + 48 * MIB));
        }
        assert!(lease(&share).covers(own + total), "it is the only one again");
        let last = lease(&budget.share(8 * MIB));
        assert!(!lease(&share).covers(own + total), "its connection is still there");
        drop(last);
        assert!(lease(&share).covers(own + total));
    }

    #[test]
    fn who_leaves_the_queue_lets_those_behind_pass() {
        let (budget, share) = budget();
        let own = budget.own();
        let mut first = lease(&share);
        assert!(first.covers(own + 40 * MIB));
        let mut large = lease(&share);
        let mut small = lease(&share);
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
            let (budget, share) = budget();
            let mut leases: Vec<_> = (0..8).map(|_| lease(&share)).collect();
            for (who, what, bytes) in steps {
                let bytes = bytes.min(budget.largest_lease());
                match what {
                    0 => drop(std::mem::replace(&mut leases[who], lease(&share))),
                    1 => leases[who].shrink_to(bytes),
                    2 => _ = leases[who].covers(bytes),
                    _ => _ = leases[who].covers_soon(bytes),
                }
                let granted = |lease: &Lease| lease.bytes + lease.seat.granted.load(Ordering::Relaxed);
                prop_assert_eq!(leases.iter().map(granted).sum::<usize>(), budget.taken());
                prop_assert!(budget.taken() <= budget.largest_lease());
                let waiting = leases.iter()
                    .filter(|lease| lease.is_waiting() && lease.seat.granted.load(Ordering::Relaxed) == 0);
                prop_assert_eq!(waiting.count() > 0, budget.is_pressed());
                prop_assert_eq!(share.part.taken.load(Ordering::Relaxed), budget.taken());
            }
            leases.clear();
            prop_assert_eq!((budget.taken(), budget.is_pressed()), (0, false));
        }
    }
}
