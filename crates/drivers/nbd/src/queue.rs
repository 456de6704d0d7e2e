//! The connections of one hardware queue: the one that requests go to, and old ones that are waited for.
//! Without sockets: whoever has them says what happened, and is told what to do.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Status;
use blockyard_nbd::Error;

use crate::fence::LinkId;
use crate::job::Job;
use crate::link::{Done, Link};
use crate::recovery::Common;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// A connection on which nothing came for so long, though something was waited for, is not used any more.
    pub(crate) timeout: Duration,
    /// A request may be out for so many timeouts while other replies come.
    pub(crate) patience: u32,
    /// Requests wait so long for a connection.
    pub(crate) dead_conn_timeout: Duration,
    /// What was sent on a connection that the server neither answers nor closes is taken for over after so
    /// long.
    pub(crate) fence_timeout: Duration,
}

/// How a connection was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The server closed it, or reset it: it will not carry out what it did not answer.
    Closed,
    /// The network failed; nothing is known of the server.
    Broken,
    /// Nothing came in time.
    Silent,
    /// The server broke the protocol: what it sends cannot be understood.
    Lied,
    /// Another takes its place, or the server is going down: it still answers what it has.
    Replaced,
}

/// What is to be done about the socket of a connection.
#[derive(Debug)]
pub(crate) enum Todo {
    /// Nothing.
    Nothing,
    /// It is not sent to any more, but still listened to.
    Listen,
    /// It is not sent to any more, and the server is to be told; it is still listened to.
    HalfClose,
    /// It is over; say goodbye if there is a way.
    Close,
    /// The server broke the protocol; then as [`Todo::HalfClose`].
    Lied(Error),
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Requests go to it.
    Live,
    /// Replies are still understood.
    Answering,
    /// What comes is not understood; its end is waited for.
    Draining,
    /// There is no socket any more.
    Gone,
}

pub(crate) struct Conn<J, S> {
    pub(crate) id: LinkId,
    pub(crate) link: Link<J>,
    /// The socket. `None` once it was given up.
    pub(crate) io: Option<S>,
    phase: Phase,
    /// When it ceased to be used.
    since: Duration,
}

/// Requests that ended, with how they did.
pub(crate) type Ended<J> = Vec<(J, Status)>;

pub(crate) struct Queue<J, S> {
    common: Arc<Common<J>>,
    policy: Policy,
    pub(crate) conns: Vec<Conn<J, S>>,
    done: Vec<Done<J>>,
    /// A range has left the fence, so that requests which wait may go.
    released: bool,
    /// The most requests on one connection.
    depth: usize,
}

impl<J: Job, S> Queue<J, S> {
    pub(crate) fn new(common: Arc<Common<J>>, policy: Policy, depth: usize) -> Self {
        Self { common, policy, conns: Vec::new(), done: Vec::new(), released: false, depth }
    }

    /// Puts a new connection in use. There must be none.
    pub(crate) fn attach(&mut self, link: Link<J>, io: S) -> LinkId {
        assert!(self.live().is_none(), "two connections in use by one queue");
        let id = self.common.new_link();
        let conn = Conn { id, link, io: Some(io), phase: Phase::Live, since: Duration::ZERO };
        // In front, where it is found first.
        self.conns.insert(0, conn);
        id
    }

    /// The connection in use.
    pub(crate) fn live(&mut self) -> Option<&mut Conn<J, S>> {
        self.conns.first_mut().filter(|conn| conn.phase == Phase::Live)
    }

    pub(crate) fn conn(&mut self, id: LinkId) -> Option<&mut Conn<J, S>> {
        self.conns.iter_mut().find(|conn| conn.id == id)
    }

    /// Takes a request; says whether it waits for another connection.
    pub(crate) fn submit(&mut self, job: J, now: Duration, ended: &mut Ended<J>) -> bool {
        if self.common.is_closed() {
            ended.push((job, Status::Offline));
            return false;
        }
        let Some(conn) = self.conns.first_mut().filter(|conn| conn.phase == Phase::Live) else {
            self.common.wait(job, now);
            return true;
        };
        if let Some(job) = self.common.hold(job, now)
            && let Err(refused) = conn.link.submit(job, now)
        {
            ended.push(refused);
        }
        false
    }

    /// Takes requests that wait, as many as there is room for; says whether it took any.
    pub(crate) fn adopt(&mut self, now: Duration, ended: &mut Ended<J>) -> bool {
        let depth = self.depth;
        let common = Arc::clone(&self.common);
        let Some(conn) = self.live() else { return false };
        let mut any = false;
        while conn.link.slots.len() < depth
            && let Some(job) = common.next_ready()
        {
            any = true;
            if let Err(refused) = conn.link.submit(job, now) {
                ended.push(refused);
            }
        }
        any
    }

    /// Understands what came on a connection.
    pub(crate) fn read(&mut self, id: LinkId, now: Duration, ended: &mut Ended<J>) -> Todo {
        let mut done = std::mem::take(&mut self.done);
        let Some(conn) = self.conn(id) else { return Todo::Nothing };
        if conn.phase == Phase::Draining {
            conn.link.inbox.discard();
            self.done = done;
            return Todo::Nothing;
        }
        let result = conn.link.read(&mut done);
        let (live, leaving) = (conn.phase == Phase::Live, conn.link.shutting_down);
        for done in done.drain(..) {
            if done.changed.is_some() && (!live || done.job.is_none()) {
                self.common.resolve(id, done.cookie);
                self.released = true;
            }
            match done.job {
                Some(job) if done.refused => self.common.wait(job, now),
                Some(job) => ended.push((job, done.status)),
                None => {}
            }
        }
        self.done = done;
        match result {
            Err(error) => match self.lose(id, Loss::Lied, now) {
                Todo::Nothing => Todo::Nothing,
                _ => Todo::Lied(error),
            },
            Ok(()) if live && leaving => self.lose(id, Loss::Replaced, now),
            Ok(()) => self.over(id),
        }
    }

    /// Whether a range has left the fence since this was asked last.
    pub(crate) fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    /// Whether a connection that is not used any more has nothing left to wait for.
    fn over(&mut self, id: LinkId) -> Todo {
        let over = self.conn(id).is_some_and(|conn| {
            conn.phase == Phase::Answering
                && conn.link.slots.entries().all(|(_, e)| e.job.is_none() && e.changes.is_none())
        });
        if over { Todo::Close } else { Todo::Nothing }
    }

    /// A connection is lost. Whatever may be sent again at once waits for another.
    pub(crate) fn lose(&mut self, id: LinkId, loss: Loss, now: Duration) -> Todo {
        let common = Arc::clone(&self.common);
        let Some(conn) = self.conn(id) else { return Todo::Nothing };
        if loss == Loss::Closed {
            self.settle(id, now);
            return Todo::Nothing;
        }
        let was_live = conn.phase == Phase::Live;
        let phase = match loss {
            Loss::Lied => Phase::Draining,
            Loss::Broken => Phase::Gone,
            Loss::Closed | Loss::Silent | Loss::Replaced => Phase::Answering,
        };
        if was_live {
            conn.since = now;
        }
        conn.phase = phase;
        let cut_short = conn.retire(loss, was_live, now, &common);
        let over = conn.link.slots.entries().all(|(_, e)| e.job.is_none() && e.changes.is_none());
        match loss {
            _ if over => Todo::Close,
            Loss::Lied => Todo::HalfClose,
            Loss::Silent if cut_short => Todo::HalfClose,
            _ => Todo::Listen,
        }
    }

    /// Nothing that was sent on a connection will be carried out any more: it goes, and what was not answered
    /// waits for another.
    pub(crate) fn settle(&mut self, id: LinkId, now: Duration) {
        let Some(at) = self.conns.iter().position(|conn| conn.id == id) else { return };
        let mut conn = self.conns.remove(at);
        for entry in conn.link.slots.drain() {
            if let Some(job) = entry.job {
                self.common.wait(job, now);
            }
        }
        self.common.settle(id);
    }

    /// Sees to connections and requests whose time is over. Says which connections are to be aborted.
    pub(crate) fn expire(&mut self, now: Duration, ended: &mut Ended<J>) -> Expired {
        let mut expired = Expired::default();
        for job in self.common.expire(now, self.policy.dead_conn_timeout) {
            expired.failed += 1;
            ended.push((job, Status::Transport));
        }
        let policy = self.policy;
        let mut given_up = Vec::new();
        for conn in self.conns.iter_mut().filter(|conn| conn.phase != Phase::Live) {
            let age = now.saturating_sub(conn.since);
            if age >= policy.fence_timeout {
                given_up.push(conn.id);
            } else if age >= policy.fence_timeout / 2 && conn.phase != Phase::Gone {
                conn.phase = Phase::Gone;
                conn.retire(Loss::Broken, false, now, &self.common);
                expired.abort.push(conn.id);
            }
            if age >= policy.dead_conn_timeout {
                for (_, entry) in conn.link.slots.entries() {
                    // The fence stays.
                    if let Some(job) = entry.job.take() {
                        expired.failed += 1;
                        ended.push((job, Status::Transport));
                    }
                }
            }
        }
        for id in given_up {
            expired.given_up += 1;
            self.settle(id, now);
        }
        expired
    }

    /// When [`Queue::expire`] has something to do next.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let Policy { dead_conn_timeout, fence_timeout, .. } = self.policy;
        let waits = self.common.waits_since().map(|since| since + dead_conn_timeout);
        let retired = self.conns.iter().filter(|conn| conn.phase != Phase::Live);
        let retired = retired.map(|conn| match conn.phase {
            Phase::Gone => conn.since + fence_timeout,
            _ => conn.since + (fence_timeout / 2).min(dead_conn_timeout),
        });
        retired.chain(waits).min()
    }

    /// A request is out for too long: whether its connection is dead rather than slow.
    pub(crate) fn is_dead(&mut self, now: Duration) -> bool {
        let Policy { timeout, patience, .. } = self.policy;
        self.live().is_some_and(|conn| {
            conn.link.silence(now) >= timeout
                || conn.link.oldest(now) >= timeout.saturating_mul(patience)
        })
    }

    /// Fails whatever is left. What may still change the disk stays fenced.
    pub(crate) fn clear(&mut self, status: Status, ended: &mut Ended<J>) {
        for job in self.common.expire(Duration::MAX, Duration::ZERO) {
            ended.push((job, status));
        }
        for conn in &mut self.conns {
            let live = conn.phase == Phase::Live;
            for (cookie, entry) in conn.link.slots.entries() {
                let Some(job) = entry.job.take() else { continue };
                ended.push((job, status));
                if let Some(span) = entry.changes.filter(|_| live) {
                    self.common.fence(conn.id, cookie, span);
                }
            }
        }
    }

    /// Requests that are out on any connection.
    pub(crate) fn in_flight(&mut self) -> usize {
        let jobs = |conn: &mut Conn<J, S>| {
            conn.link.slots.entries().filter(|(_, entry)| entry.job.is_some()).count()
        };
        self.conns.iter_mut().map(jobs).sum()
    }
}

/// What [`Queue::expire`] has done.
#[derive(Debug, Default)]
pub(crate) struct Expired {
    /// Requests that failed.
    pub(crate) failed: usize,
    /// Connections that are taken for over, though the server neither answered nor closed them.
    pub(crate) given_up: usize,
    /// Connections whose socket is to be aborted, so that nothing more of them leaves this host.
    pub(crate) abort: Vec<LinkId>,
}

impl<J: Job, S> Conn<J, S> {
    /// Takes the connection out of use: what was not sent, or changes nothing, waits for another; what may
    /// change the disk is fenced, and stays to be answered. Says whether a message was cut short.
    fn retire(&mut self, loss: Loss, was_live: bool, now: Duration, common: &Common<J>) -> bool {
        // All that a connection has which is replaced will be sent and answered.
        let sent = if loss == Loss::Replaced { u64::MAX } else { self.link.outbox.sent() };
        let mut unsent = Vec::new();
        let mut boundary = self.link.outbox.queued();
        for (cookie, entry) in self.link.slots.entries() {
            if entry.sent_at >= sent {
                boundary = boundary.min(entry.sent_at);
                unsent.push(cookie);
                continue;
            }
            match entry.changes {
                // One that was given up, or is of a connection that was retired before, is fenced already.
                Some(span) if was_live && entry.job.is_some() => {
                    common.fence(self.id, cookie, span);
                }
                None if loss != Loss::Replaced => {
                    entry.job.take().into_iter().for_each(|job| common.wait(job, now));
                }
                _ => {}
            }
        }
        for cookie in unsent {
            if let Some(entry) = self.link.slots.remove(cookie) {
                common.resolve(self.id, cookie);
                if let Some(job) = entry.job {
                    common.wait(job, now);
                }
            }
        }
        loss != Loss::Replaced && self.link.outbox.cut(boundary)
    }
}
