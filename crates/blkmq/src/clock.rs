//! Time, as the block layer is told it.

use std::time::Instant;

/// Tells the time. The block layer asks it and nothing else, so that a simulation can own the time.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since some fixed moment; never runs backwards.
    fn now_ns(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// A clock that starts at zero now.
    #[must_use]
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for MonotonicClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for MonotonicClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
