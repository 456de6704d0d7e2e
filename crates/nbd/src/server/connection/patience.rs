//! How long a client may leave its connection as it is. The disk may take its time.

use std::time::{Duration, Instant};

use super::input::Input;
use super::{Connection, Memory, Work};

/// How long replies may wait to be taken, without a byte moving, while others wait for the memory that they
/// occupy.
pub const PRESSED_TIMEOUT: Duration = Duration::from_secs(5);

/// What has not happened in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// A message was half-way, in one direction or the other, and stood still.
    Stalled(Duration),
    /// Replies were not taken while others waited for their memory.
    Pressed(Duration),
    /// The client asked for nothing.
    Idle(Duration),
}

impl<W: Work, M: Memory> Connection<W, M> {
    /// Nothing is left to be done at `now`: when to ask whether the time [has expired](Self::expired), if nothing
    /// happens before. Memory that is not in use becomes others'.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::take(&mut self.moved) {
            self.since = now;
        }
        if self.lease.is_any() {
            let held = self.held_now();
            self.lease.shrink_to(held);
        }
        let end = self.since + self.patience()?.limit();
        if self.out.is_empty() || !self.lease.is_any() {
            return Some(end);
        }
        // Whether others wait is looked at from time to time.
        let look = (self.since + PRESSED_TIMEOUT).max(now + PRESSED_TIMEOUT / 2);
        Some(end.min(look))
    }

    /// Whether the client has had its time.
    pub fn expired(&mut self, now: Instant) -> Option<Expired> {
        if self.moved {
            return None;
        }
        let gone = now.saturating_duration_since(self.since);
        let patience = self.patience()?;
        if gone >= patience.limit() {
            return Some(patience);
        }
        let pressed = !self.out.is_empty() && self.lease.is_wanted();
        (pressed && gone >= PRESSED_TIMEOUT).then_some(Expired::Pressed(PRESSED_TIMEOUT))
    }

    fn patience(&self) -> Option<Expired> {
        let starved = matches!(&self.input, Input::Payload(payload) if payload.starved);
        if !self.out.is_empty() || (self.is_half_way() && !starved) {
            return Some(Expired::Stalled(self.limits.stall_timeout));
        }
        let idle = self.limits.idle_timeout.filter(|_| self.slots.len() == 0)?;
        Some(Expired::Idle(idle))
    }
}

impl Expired {
    fn limit(self) -> Duration {
        match self {
            Self::Stalled(limit) | Self::Pressed(limit) | Self::Idle(limit) => limit,
        }
    }
}
