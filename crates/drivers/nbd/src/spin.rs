//! Whether it is worth while to look for the next reply a little longer before going to sleep.
//!
//! With one request at a time, the reply comes some tens of microseconds after the request, and the wake-up
//! costs as much again. Looking at the socket instead costs CPU time where the server is not quick, so that a
//! connection has to earn it.

use std::time::Duration;

/// The longest look.
pub(crate) const MAX_SPIN: Duration = Duration::from_micros(50);
/// A reply that came so soon after falling asleep would have come within [`MAX_SPIN`] to one who was awake.
const QUICK_ASLEEP: Duration = Duration::from_micros(100);
/// With more requests out, a little patience gathers more replies.
const FEW: usize = 2;
/// The best record.
const BEST: u8 = 32;
/// The record from which on it looks.
const GOOD: u8 = 16;
/// What a miss costs of the record.
const MISS: u8 = 8;

/// The record of one connection.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    record: u8,
}

impl Spin {
    /// Whether to look, with so many requests out. Never with none.
    pub(crate) fn is_worth_while(&self, in_flight: usize) -> bool {
        (1..=FEW).contains(&in_flight) && self.record >= GOOD
    }

    /// Replies came while looking.
    pub(crate) fn hit(&mut self) {
        self.record = (self.record + 1).min(BEST);
    }

    /// It looked, and nothing came.
    pub(crate) fn missed(&mut self) {
        self.record = self.record.saturating_sub(MISS);
    }

    /// Replies came after so long a sleep, with so many requests out.
    pub(crate) fn slept(&mut self, asleep: Duration, in_flight: usize) {
        if (1..=FEW).contains(&in_flight) && asleep <= QUICK_ASLEEP {
            self.hit();
        } else {
            self.missed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_server_at_depth_one_earns_it() {
        let mut spin = Spin::default();
        for _ in 0..GOOD {
            assert!(!spin.is_worth_while(1));
            spin.slept(Duration::from_micros(60), 1);
        }
        assert!(spin.is_worth_while(1));
        assert!(!spin.is_worth_while(0), "an idle driver never spins");
        assert!(!spin.is_worth_while(32));
    }

    #[test]
    fn a_slow_server_or_a_deep_queue_never_earns_it() {
        let mut spin = Spin::default();
        for _ in 0..1000 {
            spin.slept(Duration::from_millis(1), 1);
            spin.slept(Duration::from_micros(10), 32);
            assert!(!spin.is_worth_while(1));
        }
    }

    #[test]
    fn a_server_that_becomes_slow_costs_three_looks() {
        let mut spin = Spin { record: BEST };
        let looks = std::iter::from_fn(|| spin.is_worth_while(1).then(|| spin.missed())).count();
        assert_eq!(looks, 3);
    }
}
