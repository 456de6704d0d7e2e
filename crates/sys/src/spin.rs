//! Whether it is worth while to look for the next request a little longer before going to sleep.
//!
//! A client that sends a request only after the reply to the one before waits for two wake-ups per request, its
//! own and the server's. The server saves its own by looking at the socket for some microseconds. That costs
//! CPU time where the client is not quick, so the connection has to earn it: each time it runs dry counts for
//! or against, and only a good record buys a look.
//!
//! The clock is the caller's.

use std::time::Duration;

/// The longest look.
pub const MAX_SPIN: Duration = Duration::from_micros(50);
/// A request that comes so soon after the last reply, to a server that slept, would have come within
/// [`MAX_SPIN`] to one that did not: the rest is its wake-up.
const QUICK_ASLEEP: Duration = Duration::from_micros(150);
/// The most requests at a time for which waking up is worth saving: with more, a little patience gathers more.
const FEW: usize = 2;
/// The best record.
const BEST: u8 = 32;
/// The record from which on it spins.
const GOOD: u8 = 16;
/// What a miss costs of the record: one in nine may miss, no more.
const MISS: u8 = 8;

/// The record of one connection, or queue.
#[derive(Debug, Default)]
pub struct SpinPolicy {
    record: u8,
    /// How long it took the quick requests of late, in nanoseconds: a moving average.
    usual_ns: u64,
}

/// What came after the connection had run dry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Requests, while looking.
    Spinning,
    /// Requests, after a sleep.
    Asleep,
}

impl SpinPolicy {
    /// How long to look; not at all for most.
    #[must_use]
    pub fn budget(&self) -> Option<Duration> {
        if self.record < GOOD {
            return None;
        }
        // Four times the usual gap leaves few requests out.
        let budget = Duration::from_nanos(self.usual_ns.saturating_mul(4));
        Some(budget.clamp(MAX_SPIN / 5, MAX_SPIN))
    }

    /// So many `requests` came, `gap` after the last reply had been sent.
    pub fn arrived(&mut self, how: Arrival, gap: Duration, requests: usize) {
        let quick = match how {
            Arrival::Spinning => true,
            Arrival::Asleep => gap <= QUICK_ASLEEP,
        };
        if !quick || requests > FEW {
            return self.bad();
        }
        self.record = (self.record + 1).min(BEST);
        let gap_ns = u64::try_from(gap.min(MAX_SPIN).as_nanos()).unwrap_or(u64::MAX);
        self.usual_ns = (self.usual_ns * 7 + gap_ns) / 8;
    }

    /// It looked, and nothing came.
    pub fn missed(&mut self) {
        self.bad();
    }

    /// Others want the thread: start from nothing.
    pub fn not_alone(&mut self) {
        self.record = 0;
    }

    fn bad(&mut self) {
        self.record = self.record.saturating_sub(MISS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    /// A connection that has been quick for long enough, with this gap.
    fn quick(gap: Duration) -> SpinPolicy {
        let mut policy = SpinPolicy::default();
        (0..BEST).for_each(|_| policy.arrived(Arrival::Asleep, gap, 1));
        policy
    }

    #[test]
    fn a_new_connection_sleeps() {
        let mut policy = SpinPolicy::default();
        for _ in 1..GOOD {
            policy.arrived(Arrival::Asleep, us(30), 1);
            assert_eq!(policy.budget(), None);
        }
        policy.arrived(Arrival::Asleep, us(30), 1);
        assert!(policy.budget().is_some());
    }

    #[test]
    fn a_slow_or_deep_client_never_earns_a_spin() {
        let mut policy = SpinPolicy::default();
        for _ in 0..1000 {
            policy.arrived(Arrival::Asleep, us(1000), 1);
            assert_eq!(policy.budget(), None);
            policy.arrived(Arrival::Asleep, us(10), 32);
            assert_eq!(policy.budget(), None);
        }
    }

    #[test]
    fn a_quiet_client_costs_three_looks_at_most() {
        let mut policy = quick(us(20));
        let mut looked = Duration::ZERO;
        while let Some(budget) = policy.budget() {
            looked += budget;
            policy.missed();
        }
        assert!(looked <= 3 * MAX_SPIN, "{looked:?}");
    }

    #[test]
    fn one_miss_in_ten_is_forgiven_one_in_five_is_not() {
        for (hits, spins) in [(9, true), (4, false)] {
            let mut policy = quick(us(20));
            for _ in 0..100 {
                policy.missed();
                (0..hits).for_each(|_| policy.arrived(Arrival::Spinning, us(10), 1));
            }
            assert_eq!(policy.budget().is_some(), spins);
        }
    }

    #[test]
    fn the_budget_follows_the_usual_gap_within_its_bounds() {
        assert_eq!(quick(us(0)).budget(), Some(us(10)));
        let usual = quick(us(5)).budget().unwrap();
        assert!(usual > us(15) && usual <= us(20), "{usual:?}");
        assert_eq!(quick(us(100)).budget(), Some(MAX_SPIN));
    }

    #[test]
    fn others_on_the_thread_end_it_at_once() {
        let mut policy = quick(us(5));
        policy.not_alone();
        assert_eq!(policy.budget(), None);
    }
}
