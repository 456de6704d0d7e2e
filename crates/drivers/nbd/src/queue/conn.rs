//! A connection of a queue: in use, left and waited for, or over.

use std::sync::Arc;
use std::time::Duration;

use super::{Loss, Policy};
use crate::fence::LinkId;
use crate::job::Job;
use crate::link::Link;
use crate::recovery::Common;
use crate::unflushed::Marks;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Requests go to it.
    Live,
    /// Replies are still understood.
    Answering,
    /// What comes is not understood; its end is waited for.
    Draining,
    /// The socket was aborted, at that time.
    Gone(Duration),
}

pub(crate) struct Conn<J, S> {
    pub(crate) id: LinkId,
    pub(crate) link: Link<J>,
    /// The socket. `None` once it was given up.
    pub(crate) io: Option<S>,
    /// The socket has no room: its task sends when it has.
    pub(crate) blocked: bool,
    pub(super) phase: Phase,
    /// Since when no answer is counted on. `None`: it is used, or its server lives and finishes what it has.
    pub(super) silent_since: Option<Duration>,
    /// A request has it for itself, or will as soon as nothing else is out.
    pub(super) alone: bool,
    /// What was written on it and is not flushed. `None`: there is no cache.
    pub(super) marks: Option<Arc<Marks>>,
    pub(super) own_flush: OwnFlush,
}

/// A flush that nobody has asked for: it comes before the goodbye, or shows that the server still is the one that has
/// what was written on this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnFlush {
    /// None is out.
    None,
    /// The one with that cookie is.
    Out(u64),
    /// The server has refused it.
    Failed,
}

/// What comes next for a connection that is left.
pub(super) enum Fate {
    /// Its socket is aborted at that time.
    Abort(Duration),
    /// It is taken for over.
    Fall(Duration),
}

impl<J: Job, S> Conn<J, S> {
    /// When it is dead if nothing comes, where that is still to be found.
    pub(super) fn dead_at(&mut self, policy: Policy, common: &Common<J>) -> Option<Duration> {
        if self.silent_since.is_some() {
            return None;
        }
        let mut patience = policy.most_patient();
        if self.phase != Phase::Live && common.has_left(self.id) {
            // All requests wait for it.
            patience = patience.min(policy.fence_timeout);
        }
        self.link.dead_at(policy.timeout, patience)
    }

    /// The fence falls after its abort only, and as long after it as what was on its way may take, however late
    /// anybody looked. `None`: its answers, or its end, are waited for. Whoever waits for a flush of it has a time of
    /// his own.
    pub(super) fn fate(&self, policy: Policy, common: &Common<J>) -> Option<Fate> {
        let (since, half) = (self.silent_since?, policy.fence_timeout / 2);
        match self.phase {
            Phase::Gone(at) => Some(Fate::Fall((since + policy.fence_timeout).max(at + half))),
            _ => common.holds_others_up(self.id).then_some(Fate::Abort(since + half)),
        }
    }

    /// Requests that nobody waits for any more at `now`, with the time since when. None of a server that lives.
    pub(super) fn late(
        &mut self,
        now: Duration,
        policy: Policy,
    ) -> impl Iterator<Item = (u64, Duration)> + '_ {
        let silent_since = self.silent_since;
        self.link.slots.entries().filter_map(move |(cookie, entry)| {
            let since = entry.held.as_ref()?.past().since.or(silent_since)?;
            let at = since.saturating_add(policy.dead_conn_timeout);
            (silent_since.is_some() && at <= now).then_some((cookie, at))
        })
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.is_dirty())
    }

    pub(super) fn wants_flush(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.wants_flush())
    }

    /// Puts a flush of our own in line.
    pub(super) fn flush(&mut self, common: &Common<J>, now: Duration) {
        let cookie = self.link.flush(common.begin_flush(), now);
        self.own_flush = cookie.map_or(OwnFlush::Failed, OwnFlush::Out);
    }

    /// Puts one in line if somebody's flush waits for it; says whether it did. Nothing goes beside who is alone.
    pub(super) fn flush_if_asked(&mut self, common: &Common<J>, now: Duration) -> bool {
        let may = self.own_flush == OwnFlush::None && (!self.alone || self.link.slots.is_empty());
        let asked = may && common.is_asked(self.id);
        if asked {
            self.flush(common, now);
        }
        asked
    }

    /// Takes the connection out of use: what was not sent, or changes nothing, waits for another; what may
    /// change the disk is fenced, and stays to be answered.
    pub(super) fn retire(&mut self, loss: Loss, was_live: bool, now: Duration, common: &Common<J>) {
        let (id, own_flush) = (self.id, &mut self.own_flush);
        self.link.withdraw_unsent(|cookie, job, past| {
            common.resolve(id, cookie);
            if *own_flush == OwnFlush::Out(cookie) {
                *own_flush = OwnFlush::None;
            }
            if let Some(job) = job {
                common.wait(job, past, now);
            }
        });
        let mut again = Vec::new();
        for (cookie, entry) in self.link.slots.entries() {
            match entry.changes {
                // One that was given up, or is of a connection that was retired before, is fenced already.
                Some(span) if was_live && entry.held.is_some() => {
                    common.fence(self.id, cookie, span);
                }
                None if loss != Loss::Replaced => again.push(cookie),
                _ => {}
            }
        }
        for cookie in again {
            if let Some((job, past, _)) = self.link.take_back(cookie) {
                common.wait(job, past.lost(), now);
            }
        }
    }
}
