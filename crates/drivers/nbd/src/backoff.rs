//! When to try to connect again.

use std::time::Duration;

/// How long to wait between attempts to connect: twice as long after each, up to a bound, and less by a random
/// part of a quarter, so that many disks do not come back to their server in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub most: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), most: Duration::from_secs(5) }
    }
}

impl Backoff {
    /// The time to wait after `failures` in a row. `chance` is any number.
    #[must_use]
    pub fn after(&self, failures: u32, chance: u64) -> Duration {
        let times = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.first.saturating_mul(times).min(self.most);
        // From 1024 to 768 parts of 1024.
        let parts = 1024 - u32::try_from(chance % 257).unwrap_or(0);
        wait / 1024 * parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_its_bound() {
        let backoff = Backoff { first: Duration::from_millis(1024), most: Duration::from_secs(4) };
        let waits = [1, 2, 3, 40, u32::MAX].map(|failures| backoff.after(failures, 0).as_millis());
        assert_eq!(waits, [1024, 2048, 4000, 4000, 4000]);
        for chance in 0..1000 {
            let wait = backoff.after(1, chance);
            assert!(wait <= backoff.first && wait >= backoff.first * 3 / 4, "{wait:?}");
        }
    }
}
