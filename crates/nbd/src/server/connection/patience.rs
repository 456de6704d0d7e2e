//! How long a client may leave its connection as it is. The disk may take its time.
//!
//! A client that is slow may be one that is starved: suspended, swapping, or emulated. So it has a long time as long as
//! it is in nobody's way, and a shorter one while others wait for the memory that it keeps. Peers that are gone without
//! a word are found out by TCP's own timers.

use std::fmt;
use std::time::{Duration, Instant};

use super::input::Input;
use super::{Connection, Memory, Work};

/// How long a message may be half-way, without a byte moving, while others wait for the memory that it occupies.
pub const PRESSED_TIMEOUT: Duration = Duration::from_secs(30);
/// How often receive buffers are looked at that are still in use though what used them has ended.
const PINS_INTERVAL: Duration = Duration::from_millis(100);

/// A direction that bytes move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    In,
    /// To the client.
    Out,
}

/// What is half-way, and the client's to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfWay {
    /// The header of a request.
    Header,
    /// The payload of a request, of which so many bytes have not come.
    Payload(u64),
    /// Replies.
    Replies,
}

/// What has not happened in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// It was half-way, and stood still.
    Stalled(HalfWay, Duration),
    /// It was half-way and stood still while others waited for its memory.
    Pressed(HalfWay, Duration),
    /// The client asked for nothing.
    Idle(Duration),
}

/// A clock that runs only while something is the client's to do.
#[derive(Debug, Default)]
struct Clock {
    since: Option<Instant>,
    /// Bytes have moved since it was looked at.
    moved: bool,
}

impl Clock {
    /// Since when it runs.
    fn look(&mut self, runs: bool, now: Instant) -> Option<Instant> {
        let since = self.since.filter(|_| !self.moved).unwrap_or(now);
        self.moved = false;
        self.since = runs.then_some(since);
        self.since
    }

    /// For how long it has run.
    fn gone(&self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| !self.moved)?;
        Some(now.saturating_duration_since(since))
    }
}

/// The clocks of a connection: one for each direction, and one for when there is nothing in either.
#[derive(Debug, Default)]
pub(super) struct Patience {
    incoming: Clock,
    outgoing: Clock,
    idle: Clock,
}

impl Patience {
    pub(super) fn moved(&mut self, direction: Direction) {
        let clock = match direction {
            Direction::In => &mut self.incoming,
            Direction::Out => &mut self.outgoing,
        };
        clock.moved = true;
        self.idle.moved = true;
    }

    pub(super) fn restart(&mut self) {
        self.moved(Direction::In);
        self.moved(Direction::Out);
    }
}

impl<W: Work, M: Memory> Connection<W, M> {
    /// Nothing is left to be done at `now`: when to ask whether the time [has expired](Self::expired), if nothing
    /// happens before. Memory that is not in use becomes others'.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.lease.is_any() {
            let claimed = self.claimed();
            self.lease.shrink_to(claimed);
        }
        // Who is not received from is not waited for.
        let incoming = self.is_half_way() && self.may_receive();
        let idle = self.is_between_requests() && self.limits.idle_timeout.is_some();
        let patience = &mut self.patience;
        let stalls = [
            patience.incoming.look(incoming, now),
            patience.outgoing.look(!self.out.is_empty(), now),
        ];
        let idle = patience.idle.look(idle, now).zip(self.limits.idle_timeout);
        let first = stalls.into_iter().flatten().min();
        let mut end = first.map(|since| since + self.limits.stall_timeout);
        if let Some(since) = first.filter(|_| self.lease.is_any()) {
            // Whether others wait is looked at from time to time.
            let look = (since + PRESSED_TIMEOUT).max(now + PRESSED_TIMEOUT / 2);
            end = end.min(Some(look));
        }
        let pins = self.waits_for_pins().then(|| now + PINS_INTERVAL);
        let idle = idle.map(|(since, limit)| since + limit);
        [end, idle, pins].into_iter().flatten().min()
    }

    /// Whether the client has had its time.
    pub fn expired(&mut self, now: Instant) -> Option<Expired> {
        let limit = self.limits.stall_timeout;
        let is_wanted = self.lease.is_wanted();
        let stalls = [
            (self.patience.incoming.gone(now), self.incoming(), self.keeps_payload()),
            (self.patience.outgoing.gone(now), HalfWay::Replies, true),
        ];
        for (gone, half_way, keeps_memory) in stalls {
            match gone {
                Some(gone) if gone >= limit => return Some(Expired::Stalled(half_way, limit)),
                Some(gone) if is_wanted && keeps_memory && gone >= PRESSED_TIMEOUT => {
                    return Some(Expired::Pressed(half_way, PRESSED_TIMEOUT));
                }
                _ => {}
            }
        }
        let idle = self.limits.idle_timeout?;
        self.patience.idle.gone(now).filter(|gone| *gone >= idle).map(|_| Expired::Idle(idle))
    }

    fn incoming(&self) -> HalfWay {
        match &self.input {
            Input::Header { .. } | Input::Blocked { .. } => HalfWay::Header,
            Input::Payload(payload) => HalfWay::Payload(payload.left as u64),
            Input::Query { request, bytes } => {
                HalfWay::Payload(request.length.saturating_sub(bytes.len() as u64))
            }
            Input::Discard { left, .. } => HalfWay::Payload(*left),
        }
    }

    /// Whether what has come of a payload occupies memory.
    fn keeps_payload(&self) -> bool {
        matches!(&self.input, Input::Payload(payload) if payload.charge > 0)
    }
}

impl fmt::Display for HalfWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => write!(f, "the header of a request came in part"),
            Self::Payload(left) => {
                write!(f, "a request came in part ({left} bytes of its payload were missing)")
            }
            Self::Replies => write!(f, "the client did not take its replies"),
        }
    }
}
