//! Log lines that must not come by the thousand.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At most one line in this time.
const INTERVAL: Duration = Duration::from_secs(5);

/// Says when a line may be written, and how many were not.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Something happened at `now`: if it may be told, how often it did since it was last told, this time
    /// included.
    pub(crate) fn occurred(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        state.suppressed += 1;
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_rest_together() {
        let (limit, start) = (RateLimit::default(), Instant::now());
        assert_eq!(limit.occurred(start), Some(1));
        for _ in 0..10_000 {
            assert_eq!(limit.occurred(start + INTERVAL / 2), None);
        }
        assert_eq!(limit.occurred(start + INTERVAL), Some(10_001));
        assert_eq!(limit.occurred(start + INTERVAL), None);
    }
}
