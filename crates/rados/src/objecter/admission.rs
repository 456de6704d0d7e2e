//! How much may be in flight, and whose turn it is.
//!
//! There is a bound on operations and one on bytes, and whoever shares them has a share: half of each bound is divided among
//! the shares for good, the other half is whoever's comes first. So one whose placement group does not answer may take the
//! second half, and stops nobody else. Within a share operations start in the order in which they came.

use std::collections::{BTreeMap, VecDeque};

/// Somebody's share of what may be in flight, such as an image's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareId(u64);

#[derive(Debug, Default)]
struct Share {
    ops: usize,
    bytes: u64,
    /// What waits, with its bytes.
    waiting: VecDeque<(u64, u64)>,
    /// Nobody has it any more: it goes when nothing of it is left.
    closed: bool,
}

/// The bounds, and what is in flight.
#[derive(Debug)]
pub(super) struct Admission {
    max_ops: usize,
    max_bytes: u64,
    shares: BTreeMap<ShareId, Share>,
    last_share: u64,
    in_flight: (usize, u64),
    /// Shares with operations that wait, the next one first.
    turns: VecDeque<ShareId>,
}

/// What a share has for itself, and what all have together beyond that.
struct Parts {
    own: (usize, u64),
    common: (usize, u64),
}

impl Admission {
    pub(super) fn new(max_ops: usize, max_bytes: u64) -> Self {
        Self {
            max_ops,
            max_bytes,
            shares: BTreeMap::new(),
            last_share: 0,
            in_flight: (0, 0),
            turns: VecDeque::new(),
        }
    }

    /// How many operations are in flight, and their bytes.
    pub(super) const fn in_flight(&self) -> (usize, u64) {
        self.in_flight
    }

    /// How many of a share's wait.
    pub(super) fn waiting(&self, id: ShareId) -> usize {
        self.shares.get(&id).map_or(0, |share| share.waiting.len())
    }

    pub(super) fn open(&mut self) -> ShareId {
        self.last_share += 1;
        let id = ShareId(self.last_share);
        self.shares.insert(id, Share::default());
        id
    }

    pub(super) fn close(&mut self, id: ShareId) {
        if let Some(share) = self.shares.get_mut(&id) {
            share.closed = true;
        }
        self.drop_unused(id);
    }

    fn drop_unused(&mut self, id: ShareId) {
        let unused = |share: &Share| share.closed && share.ops == 0 && share.waiting.is_empty();
        if self.shares.get(&id).is_some_and(unused) {
            self.shares.remove(&id);
        }
    }

    fn parts(&self) -> Parts {
        let count = self.shares.len().max(1);
        let own = ((self.max_ops / 2 / count).max(1), self.max_bytes / 2 / count as u64);
        let common = (
            self.max_ops.saturating_sub(own.0.saturating_mul(count)),
            self.max_bytes.saturating_sub(own.1.saturating_mul(count as u64)),
        );
        Parts { own, common }
    }

    /// Whether one more may start. `own_part` says that nothing is left of what all have in common, as others wait for it.
    fn fits(&self, id: ShareId, bytes: u64, own_part: bool) -> bool {
        let Some(share) = self.shares.get(&id) else { return false };
        // One alone may have more than there is.
        if share.ops == 0 {
            return true;
        }
        let parts = self.parts();
        let (ops, bytes) = (share.ops + 1, share.bytes.saturating_add(bytes));
        let within = (ops <= parts.own.0, bytes <= parts.own.1);
        if within == (true, true) || own_part {
            return within == (true, true);
        }
        let over = |has: (usize, u64)| {
            (has.0.saturating_sub(parts.own.0), has.1.saturating_sub(parts.own.1))
        };
        let others = self.shares.iter().filter(|(other, _)| **other != id);
        let used = others.map(|(_, other)| over((other.ops, other.bytes)));
        let used = used.fold(over((ops, bytes)), |(ops, bytes), other| {
            (ops + other.0, bytes.saturating_add(other.1))
        });
        (within.0 || used.0 <= parts.common.0) && (within.1 || used.1 <= parts.common.1)
    }

    fn start(&mut self, id: ShareId, bytes: u64) {
        if let Some(share) = self.shares.get_mut(&id) {
            share.ops += 1;
            share.bytes += bytes;
            self.in_flight = (self.in_flight.0 + 1, self.in_flight.1 + bytes);
        }
    }

    /// Whether an operation starts at once; it waits if not.
    pub(super) fn submit(&mut self, id: ShareId, tid: u64, bytes: u64) -> bool {
        let waits = !self.shares.entry(id).or_default().waiting.is_empty();
        if !waits && self.fits(id, bytes, !self.turns.is_empty()) {
            self.start(id, bytes);
            return true;
        }
        if let Some(share) = self.shares.get_mut(&id) {
            share.waiting.push_back((tid, bytes));
        }
        if !waits {
            self.turns.push_back(id);
        }
        false
    }

    /// One that started has ended.
    pub(super) fn ended(&mut self, id: ShareId, bytes: u64) {
        if let Some(share) = self.shares.get_mut(&id) {
            share.ops -= 1;
            share.bytes -= bytes;
            self.in_flight = (self.in_flight.0 - 1, self.in_flight.1 - bytes);
        }
        self.drop_unused(id);
    }

    /// One that waits is given up.
    pub(super) fn forget(&mut self, id: ShareId, tid: u64) {
        let Some(share) = self.shares.get_mut(&id) else { return };
        share.waiting.retain(|&(other, _)| other != tid);
        if share.waiting.is_empty() {
            self.turns.retain(|&other| other != id);
        }
        self.drop_unused(id);
    }

    /// The next one to start, whose share then stands behind the others.
    pub(super) fn next(&mut self) -> Option<u64> {
        let mut own_part = false;
        for at in 0..self.turns.len() {
            let id = *self.turns.get(at)?;
            let &(tid, bytes) = self.shares.get(&id)?.waiting.front()?;
            if !self.fits(id, bytes, own_part) {
                own_part = true;
                continue;
            }
            self.turns.remove(at);
            let share = self.shares.get_mut(&id)?;
            share.waiting.pop_front();
            if !share.waiting.is_empty() {
                self.turns.push_back(id);
            }
            self.start(id, bytes);
            return Some(tid);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_may_have_all_and_the_order_is_kept() {
        let mut admission = Admission::new(4, 1000);
        let share = admission.open();
        let started: Vec<_> = (1..=7).map(|tid| admission.submit(share, tid, 10)).collect();
        assert_eq!(started, [true, true, true, true, false, false, false]);
        assert_eq!(admission.next(), None);
        admission.forget(share, 6);
        admission.ended(share, 10);
        assert_eq!(admission.next(), Some(5));
        assert!(!admission.submit(share, 8, 10), "it does not pass the one that waits");
        admission.ended(share, 10);
        assert_eq!((admission.next(), admission.next()), (Some(7), None));
        assert_eq!((admission.in_flight(), admission.waiting(share)), ((4, 40), 1));
    }

    /// What is small does not pass what is large.
    #[test]
    fn bytes_count_in_order_too() {
        let mut admission = Admission::new(100, 100);
        let share = admission.open();
        assert!(admission.submit(share, 1, 5000), "one alone may have more");
        assert!(!admission.submit(share, 2, 90));
        assert!(
            !admission.submit(share, 3, 0),
            "nothing is nothing, and has its turn all the same"
        );
        admission.ended(share, 5000);
        assert_eq!((admission.next(), admission.next()), (Some(2), Some(3)));
        assert!(!admission.submit(share, 4, 20) && !admission.submit(share, 5, 1));
        admission.ended(share, 90);
        assert_eq!((admission.next(), admission.next()), (Some(4), Some(5)));
    }

    #[test]
    fn whoever_does_not_get_on_stops_nobody_else() {
        let mut admission = Admission::new(16, 1 << 20);
        let shares = [admission.open(), admission.open(), admission.open(), admission.open()];
        let mut tid = 0;
        let mut submit = |admission: &mut Admission, share| {
            tid += 1;
            admission.submit(share, tid, 1)
        };
        // Two take what they can, and nothing of them ever ends.
        for share in [shares[0], shares[1]] {
            while submit(&mut admission, share) {}
        }
        assert_eq!(admission.in_flight().0, 12);
        for share in [shares[2], shares[3]] {
            assert!(submit(&mut admission, share) && submit(&mut admission, share));
            assert!(!submit(&mut admission, share), "its part is used");
            admission.ended(share, 1);
            assert_eq!(admission.next().map(|_| ()), Some(()), "its own goes on");
        }
        assert_eq!(admission.in_flight().0, 16);
        for share in shares {
            admission.close(share);
        }
        assert_eq!(admission.shares.len(), 4, "what is in flight has to end");
    }

    #[test]
    fn what_all_have_in_common_goes_in_turn() {
        let mut admission = Admission::new(4, 1 << 20);
        let (a, b) = (admission.open(), admission.open());
        for tid in 1..=5 {
            admission.submit(a, tid, 1);
        }
        for tid in 11..=13 {
            admission.submit(b, tid, 1);
        }
        assert_eq!(admission.in_flight().0, 4, "three of the one, one of the other");
        // It is the turn of `a`, which waited first, and then of `b`.
        admission.ended(a, 1);
        assert_eq!((admission.next(), admission.next()), (Some(4), None));
        admission.ended(a, 1);
        assert_eq!((admission.next(), admission.next()), (Some(12), None));
    }
}
