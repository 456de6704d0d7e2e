//! Those who wait for memory, in an order that is fair by bytes.

use std::collections::BTreeMap;

/// A place in the queue. Who has had fewer bytes comes first, and of several the first to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    share: usize,
    key: (u64, u64),
}

impl Ticket {
    /// The time at which it has been served with `bytes`.
    pub(super) fn end(self, bytes: usize) -> u64 {
        self.key.0.saturating_add(bytes as u64)
    }
}

/// What becomes of one who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It may be served.
    Now,
    /// It may not, nor may those of its share behind it.
    Waits,
    /// It may not, but those behind it need not wait for it.
    LetsPass,
}

/// How many bytes somebody may catch up on who was served before, and whose place others took until it came again: the largest
/// usual request.
const CATCH_UP: u64 = 32 << 20;

/// Start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996): time goes by bytes. Who was served with many of them at once
/// comes again when all others who wait have had as many; who did not wait has little saved up.
#[derive(Debug)]
pub(super) struct Queue<W> {
    /// Those of each share where any wait.
    shares: BTreeMap<usize, BTreeMap<(u64, u64), W>>,
    /// The start of who was served last.
    now: u64,
    /// Tells apart who starts at the same time.
    serial: u64,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { shares: BTreeMap::new(), now: 0, serial: 0 }
    }
}

impl<W> Queue<W> {
    /// One more, who was served until then, or never yet.
    pub(super) fn join(&mut self, share: usize, served_until: u64, waiter: W) -> Ticket {
        self.serial += 1;
        let start = match served_until {
            0 => self.now,
            _ => served_until.max(self.now.saturating_sub(CATCH_UP)),
        };
        let key = (start, self.serial);
        self.shares.entry(share).or_default().insert(key, waiter);
        Ticket { share, key }
    }

    /// The first of those who may be served, of those of their share that nobody before them keeps waiting.
    pub(super) fn first(&self, turn: impl Fn(&W) -> Turn) -> Option<(Ticket, &W)> {
        let firsts = self.shares.iter().filter_map(|(&share, waiters)| {
            let turns = waiters.iter().map(|(&key, waiter)| (turn(waiter), key, waiter));
            let (turn, key, waiter) = turns.into_iter().find(|(it, ..)| *it != Turn::LetsPass)?;
            (turn == Turn::Now).then_some((Ticket { share, key }, waiter))
        });
        firsts.min_by_key(|(ticket, _)| ticket.key)
    }

    /// It is served, and waits no more.
    pub(super) fn serve(&mut self, ticket: Ticket) -> Option<W> {
        self.now = self.now.max(ticket.key.0);
        self.leave(ticket)
    }

    /// It waits no more.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let waiters = self.shares.get_mut(&ticket.share)?;
        let waiter = waiters.remove(&ticket.key);
        if waiters.is_empty() {
            self.shares.remove(&ticket.share);
        }
        waiter
    }

    /// Who waits there, if it still does.
    pub(super) fn waiter(&mut self, ticket: Ticket) -> Option<&mut W> {
        self.shares.get_mut(&ticket.share)?.get_mut(&ticket.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_had_least_comes_first_and_a_share_that_may_not_keeps_nobody_waiting() {
        let mut queue = Queue::default();
        let large = queue.join(0, 0, "large");
        let ticket = queue.first(|_| Turn::Now).unwrap().0;
        assert_eq!((ticket, queue.serve(ticket)), (large, Some("large")));
        queue.join(0, large.end(1000), "large");
        let mut small = queue.join(1, 0, "small");
        for _ in 0..10 {
            assert_eq!(queue.first(|_| Turn::Now), Some((small, &"small")));
            queue.serve(small);
            small = queue.join(1, small.end(100), "small");
        }
        assert_eq!(queue.first(|_| Turn::Now).unwrap().1, &"large", "it was here first");
        let only =
            |wanted| move |&name: &&str| if name == wanted { Turn::Now } else { Turn::Waits };
        assert_eq!(queue.first(only("small")).unwrap().1, &"small");
        // Nor does one within a share, where it lets others pass.
        let last = queue.join(0, 5000, "last");
        assert_eq!(queue.first(only("last")), None);
        let passed = |&name: &&str| if name == "last" { Turn::Now } else { Turn::LetsPass };
        assert_eq!(queue.first(passed), Some((last, &"last")));
        queue.leave(last);
        assert_eq!(queue.leave(small), Some("small"));
        assert_eq!((queue.leave(small), queue.waiter(small)), (None, None));
        queue.leave(queue.first(|_| Turn::Now).unwrap().0);
        assert_eq!(queue.shares.len(), 0, "nothing is kept of a share where nobody waits");
    }
}
