//! Until when the map that is in use was known to be the newest one.
//!
//! In a session with a monitor each new map comes at once. So whoever has the newest one, and hears of a monitor, still has it:
//! the map of a quiet cluster is old, and its clients have missed nothing.

use crate::encoding::Utime;
use std::time::{Duration, Instant};

/// In a session a monitor is heard of more often than this. After a longer time, what it says may have been said before it.
const SILENCE: Duration = Duration::from_secs(30);

/// What is known of the age of the map.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Until when it was the newest, by the monitors' clocks.
    until: Duration,
    /// What the monitor has said is the newest epoch, in the session that there is.
    newest: Option<u32>,
    /// What the last one said who did.
    said: u32,
    /// When the monitor was heard of last, while the map is the newest one.
    heard: Option<Instant>,
    /// The same, of sessions that are over, too.
    last: Option<Instant>,
}

impl Known {
    /// Until when the map was the newest, by the monitors' clocks.
    pub(super) const fn until(&self) -> Duration {
        self.until
    }

    /// When a map was in use that was the newest, by this side's clock.
    pub(super) const fn last(&self) -> Option<Instant> {
        self.last
    }

    /// The monitor is heard of: false if what it has said is of no use any more.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        let Some(before) = self.heard else { return true };
        let since = now.saturating_duration_since(before);
        if since > SILENCE {
            self.is_lost();
            return false;
        }
        self.until = self.until.saturating_add(since);
        (self.heard, self.last) = (Some(now), Some(now));
        true
    }

    /// The monitor has said which epoch is the newest.
    pub(super) fn newest_is(&mut self, now: Instant, newest: u32, in_use: u32) {
        (self.newest, self.said) = (Some(newest), newest);
        self.follow(now, in_use);
    }

    /// The newest epoch that monitors have named, if it is not here yet.
    pub(super) fn missing(&self, in_use: u32) -> Option<u32> {
        Some(self.said).filter(|&said| said > in_use)
    }

    /// Another map is in use.
    pub(super) fn uses(&mut self, now: Instant, epoch: u32, modified: Utime) {
        self.until = modified.duration();
        self.follow(now, epoch);
    }

    fn follow(&mut self, now: Instant, in_use: u32) {
        let is_newest = self.newest.is_some_and(|newest| newest <= in_use);
        self.heard = is_newest.then_some(now);
        self.last = self.heard.or(self.last);
    }

    /// The session with the monitor is over, or a map cannot be used: what it has said is of no use any more.
    pub(super) const fn is_lost(&mut self) {
        (self.newest, self.heard) = (None, None);
    }
}
