//! What is done when its time has come.

use super::machine::{Objecter, earlier};
use super::operation::Operation;
use super::session::{IDLE, KEEPALIVE, Link, Session};
use crate::error::{Error, ErrorKind};
use std::time::Instant;

impl Objecter {
    /// When [`expire`](Self::expire) is to be called.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// An operation's time is up then.
    pub(super) fn ops_wake_at(&mut self, at: Instant) {
        earlier(&mut self.ops_wake, at);
        earlier(&mut self.wake, at);
    }

    /// Something is due then.
    pub(super) fn wake_at(&mut self, at: Instant) {
        earlier(&mut self.wake, at);
    }

    /// Does what is due: gives up operations, opens sessions again, asks silent OSDs, keeps watches.
    pub fn expire(&mut self, now: Instant) {
        if self.wake.is_none_or(|wake| now < wake) {
            return;
        }
        self.wake = None;
        if self.ops_wake.is_some_and(|wake| now >= wake) {
            self.expire_ops(now);
        }
        let osds: Vec<_> = self.sessions.keys().copied().collect();
        for osd in osds {
            self.expire_session(now, osd);
        }
        self.expire_watches(now);
        self.expire_map(now);
        let due = self.sessions.values().filter_map(Session::deadline).min();
        // An OSD that answers is asked again sooner than this one is given up.
        let due = due.map(|at| at.min(now + KEEPALIVE.interval));
        for at in due.into_iter().chain(self.ops_wake).chain(self.map_retry) {
            earlier(&mut self.wake, at);
        }
    }

    fn expire_ops(&mut self, now: Instant) {
        let late = |op: &Operation| op.deadline.is_some_and(|at| at <= now);
        let all = self.waiting.iter().chain(&self.ops);
        let tids: Vec<_> = all.filter(|(_, op)| late(op)).map(|(&tid, _)| tid).collect();
        for tid in tids {
            if self.waiting.contains_key(&tid) {
                const DOING: &str = "waiting for operations before";
                self.fail(now, tid, Error::new(DOING, ErrorKind::TimedOut));
                continue;
            }
            let Some(op) = self.ops.get(&tid) else { continue };
            let session = op.osd.and_then(|osd| self.sessions.get(&osd));
            let trouble = session.and_then(|session| session.trouble.clone());
            let error = Error::new(op.waits_for(), ErrorKind::TimedOut).after(trouble);
            match self.unwatch_alone(now, tid) {
                Some(request) => self.completed(tid, request, Err(error)),
                None => self.fail(now, tid, error),
            }
        }
        let all = self.ops.values().chain(self.waiting.values());
        self.ops_wake = all.filter_map(|op| op.deadline).min();
    }

    fn expire_session(&mut self, now: Instant, osd: i32) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        if session.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if session.ops == 0 && now >= session.idle_since + IDLE {
            if !self.watches.values().any(|watch| watch.osd() == Some(osd)) {
                self.end_session(now, osd);
                return;
            }
            session.idle_since = now;
        }
        self.expire_confirmation(now, osd);
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        match &mut session.link {
            Link::Waiting(until) if now >= *until => self.connect(now, osd),
            Link::Opening(_, until) if now >= *until => {
                let error = Error::new("connecting to an OSD", ErrorKind::TimedOut);
                self.lose(now, osd, error, true);
            }
            Link::Up(_, connection) => match connection.expire(now) {
                Ok(()) => self.mark(osd),
                Err(error) => self.lose(now, osd, error, true),
            },
            _ => {}
        }
    }
}
