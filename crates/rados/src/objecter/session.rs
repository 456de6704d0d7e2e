//! The session with an OSD.

use super::confirm::Confirmation;
use super::event::ConnectionId;
use crate::auth::ServiceAuth;
use crate::encoding::{EntityAddr, Hobject, PgShard};
use crate::error::{Error, Result};
use crate::msgr::{Connection, Keepalive};
use crate::osd::Backoff;
use std::time::{Duration, Instant};

/// Most backoffs that an OSD may have in force in a session.
pub const MAX_BACKOFFS: usize = 4096;
/// From so many bytes on that wait to be sent on a stream, operations wait as they are.
const MAX_QUEUED: usize = 1 << 20;
/// How long a stream may take to open, and then the handshake.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Before a broken session is opened again, this long and then twice as long each time, up to a limit.
const RETRY: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// One that was open for this time is opened again at once: the OSD may have restarted. One that breaks sooner may do so
/// again and again, as when the OSD sends what cannot be read.
const STEADY: Duration = Duration::from_secs(10);
/// A session that nobody needs is closed after this time (Linux: `osd_idle_ttl`).
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// How an OSD that is gone without a word is found out. Monitors find out sooner, by its peers: one that the map says is up
/// may be busy, or frozen for a while, and what was sent to it is not done sooner by being sent again.
pub(super) const KEEPALIVE: Keepalive =
    Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(300) };

#[derive(Debug)]
pub(super) enum Link {
    /// No stream, and none to be opened before this time.
    Waiting(Instant),
    /// A stream was asked for.
    Opening(ConnectionId, Instant),
    /// A stream is there.
    Up(ConnectionId, Box<Connection<ServiceAuth>>),
}

/// The session with one incarnation of an OSD.
#[derive(Debug)]
pub(super) struct Session {
    pub addr: EntityAddr,
    pub link: Link,
    /// Whether the map is known to be the newest of a time after the stream was asked for: nothing is sent before.
    pub confirmation: Confirmation,
    /// Why it could not be opened, or broke, since it last was open.
    pub trouble: Option<Error>,
    /// How often in a row it could not be opened, or broke soon after.
    pub failures: u32,
    /// Since when messages can be sent.
    pub opened_at: Option<Instant>,
    /// Operations that are assigned to it.
    pub ops: usize,
    /// Since when nobody needs it.
    pub idle_since: Instant,
    /// Whether it is in the list of those that have something to send.
    pub dirty: bool,
    /// The stream takes no more for now.
    pub held: bool,
    /// Operations wait, as they are, until the stream takes more: what comes later goes behind them.
    pub backlog: bool,
    backoffs: Vec<Backoff>,
}

impl Session {
    pub(super) fn new(addr: EntityAddr, now: Instant) -> Self {
        Self {
            addr,
            link: Link::Waiting(now),
            confirmation: Confirmation::Done,
            trouble: None,
            failures: 0,
            opened_at: None,
            ops: 0,
            idle_since: now,
            dirty: false,
            held: false,
            backlog: false,
            backoffs: Vec::new(),
        }
    }

    pub(super) fn connection_id(&self) -> Option<ConnectionId> {
        match self.link {
            Link::Waiting(_) => None,
            Link::Opening(id, _) | Link::Up(id, _) => Some(id),
        }
    }

    /// The stream, if it is there and this is its number.
    pub(super) fn connection(
        &mut self,
        connection: ConnectionId,
    ) -> Option<&mut Connection<ServiceAuth>> {
        match &mut self.link {
            Link::Up(id, up) if *id == connection => Some(up),
            _ => None,
        }
    }

    /// The stream, if messages can be sent.
    pub(super) fn open(&mut self) -> Option<(ConnectionId, &mut Connection<ServiceAuth>)> {
        match &mut self.link {
            Link::Up(id, connection)
                if connection.is_open() && self.confirmation == Confirmation::Done =>
            {
                Some((*id, connection))
            }
            _ => None,
        }
    }

    /// Forgets what belongs to a stream that is gone, and waits before the next one.
    pub(super) fn broke(&mut self, now: Instant, why: Error) {
        self.trouble = Some(why);
        let opened_at = self.opened_at.take();
        if opened_at.is_some_and(|at| now.saturating_duration_since(at) >= STEADY) {
            self.failures = 0;
        }
        let pause = RETRY.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
        let pause = if self.failures == 0 { Duration::ZERO } else { pause };
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Waiting(now + pause);
        self.backoffs.clear();
        (self.held, self.backlog) = (false, false);
    }

    /// Whether messages have to wait for the stream, so that one that is given up meanwhile is never made.
    pub(super) fn is_full(&self) -> bool {
        let queued = match &self.link {
            Link::Up(_, connection) => connection.queued(),
            _ => 0,
        };
        self.held || self.backlog || queued >= MAX_QUEUED
    }

    /// Whether there is no backoff at all, which is the usual case.
    pub(super) const fn is_free(&self) -> bool {
        self.backoffs.is_empty()
    }

    /// Whether an object is to be left alone.
    pub(super) fn holds_back(&self, pg: PgShard, object: &Hobject) -> bool {
        self.backoffs.iter().any(|backoff| backoff.pg == pg && backoff.contains(object))
    }

    pub(super) fn block(&mut self, backoff: Backoff) -> Result<()> {
        if self.backoffs.len() >= MAX_BACKOFFS {
            let (got, limit) = (MAX_BACKOFFS as u64 + 1, MAX_BACKOFFS as u64);
            return Err(Error::too_big("holding requests back", "backoffs of an OSD", got, limit));
        }
        self.backoffs.push(backoff);
        Ok(())
    }

    /// Ends a backoff: which one it was.
    pub(super) fn unblock(&mut self, id: u64) -> Option<Backoff> {
        let at = self.backoffs.iter().position(|backoff| backoff.id == id)?;
        Some(self.backoffs.swap_remove(at))
    }

    /// When something is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let link = match &self.link {
            Link::Waiting(until) | Link::Opening(_, until) => Some(*until),
            Link::Up(_, connection) => connection.deadline(),
        };
        let idle = (self.ops == 0).then(|| self.idle_since + IDLE);
        link.into_iter().chain(idle).chain(self.confirmation.until()).min()
    }
}
