//! The connections of one hardware queue: the one that requests go to, and old ones that are waited for.
//! Without sockets: whoever has them says what happened, and is told what to do.

mod conn;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Op, Status};
use blockyard_nbd::Error;
use blockyard_nbd::wire::ErrorCode;

use conn::{Conn, Fate, OwnFlush, Phase};

use crate::fence::LinkId;
use crate::job::Job;
use crate::link::{Done, Link};
use crate::outbox::Sent;
use crate::recovery::{Common, Made};
use crate::unflushed::{FlushOut, Marks, Parts};

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
    /// What was written is flushed when nothing has come for so long. `None`: when somebody wants it.
    pub(crate) flush_after: Option<Duration>,
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
    /// There may be something to send.
    Send,
    /// It is over; say goodbye if there is a way.
    Close,
    /// It is given up: nothing more of it may leave this host.
    Abort,
    /// The server broke the protocol. Its end is waited for, unless nothing that matters is out.
    Lied { error: Error, is_over: bool },
}

/// Requests that ended, with how they did.
pub(crate) type Ended<J> = Vec<(J, Status)>;

pub(crate) struct Queue<J, S> {
    common: Arc<Common<J>>,
    policy: Policy,
    pub(crate) conns: Vec<Conn<J, S>>,
    done: Vec<Done<J>>,
    /// Requests that wait may go now.
    released: bool,
    /// What may be lost, to be told.
    lost: Option<Parts>,
    /// When to look whether what was written is to be flushed. `None`: nothing was written since it was.
    flush_look: Option<Duration>,
    /// When a write was answered last.
    wrote_at: Duration,
    /// The most requests on one connection.
    depth: usize,
}

impl<J: Job, S> Queue<J, S> {
    pub(crate) fn new(common: Arc<Common<J>>, policy: Policy, depth: usize) -> Self {
        let (conns, done, released) = (Vec::new(), Vec::new(), false);
        let (lost, flush_look, wrote_at) = (None, None, Duration::ZERO);
        Self { common, policy, conns, done, released, lost, flush_look, wrote_at, depth }
    }

    /// Puts a new connection in use, to the server that the disk had after so many moves. There must be none.
    pub(crate) fn attach(&mut self, link: Link<J>, io: S, made: Made, moves: u64) -> LinkId {
        assert!(self.live().is_none(), "two connections in use by one queue");
        let (id, marks) = self.common.attach(made, moves);
        let conn = Conn {
            id,
            link,
            io: Some(io),
            blocked: false,
            phase: Phase::Live,
            silent_since: None,
            alone: false,
            marks,
            own_flush: OwnFlush::None,
        };
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

    /// Takes a request; says whether it waits for other connections, which have to have a look.
    pub(crate) fn submit(&mut self, job: J, now: Duration, ended: &mut Ended<J>) -> bool {
        if self.common.is_closed() {
            ended.push((job, Status::Offline));
            return false;
        }
        let ask = job.ask();
        if ask.op == Op::Flush && self.common.has_flush_failed() {
            ended.push((job, Status::Io));
            return false;
        }
        let live = self.conns.first_mut().filter(|conn| conn.phase == Phase::Live && !conn.alone);
        let Some(conn) = live else {
            self.common.wait(job, <_>::default(), now);
            return true;
        };
        let Some(job) = self.common.hold(job, conn.id, now) else {
            return ask.op == Op::Flush && self.common.take_asks();
        };
        let is_flush = ask.op == Op::Flush;
        let flush = if is_flush { self.common.begin_flush() } else { FlushOut::default() };
        if let Err(refused) = conn.link.submit(job, &ask, <_>::default(), flush, now) {
            ended.push(refused);
        }
        false
    }

    /// Takes requests that wait, as many as there is room for; says whether it took any. One that may be what ended
    /// its connections is sent with nothing beside it.
    pub(crate) fn adopt(&mut self, now: Duration, ended: &mut Ended<J>) -> bool {
        let depth = self.depth;
        let common = Arc::clone(&self.common);
        let Some(conn) = self.live() else { return false };
        let id = conn.id;
        conn.alone = conn.alone && !conn.link.slots.is_empty() || common.has_suspect(id);
        let (mut any, mut flushes) = (false, false);
        while conn.link.slots.len() < depth && (!conn.alone || conn.link.slots.is_empty()) {
            let alone = conn.alone;
            let Some(waits) = common.next_ready(id, |waits| waits.past.is_suspect() == alone)
            else {
                if !alone {
                    break;
                }
                conn.alone = false;
                continue;
            };
            any = true;
            let ask = waits.job.ask();
            if ask.op == Op::Flush && common.has_flush_failed() {
                ended.push((waits.job, Status::Io));
                continue;
            }
            let is_flush = ask.op == Op::Flush;
            let flush = if is_flush { common.begin_flush() } else { FlushOut::default() };
            match conn.link.submit(waits.job, &ask, waits.past, flush, now) {
                Ok(()) => flushes |= is_flush,
                Err(refused) => ended.push(refused),
            }
        }
        // Somebody's flush does as well.
        any |= !flushes && conn.flush_if_asked(&common, now);
        self.released |= common.take_asks();
        any
    }

    /// Understands what came on a connection.
    pub(crate) fn read(&mut self, id: LinkId, now: Duration, ended: &mut Ended<J>) -> Todo {
        let mut done = std::mem::take(&mut self.done);
        let Some(conn) = self.conn(id) else { return Todo::Nothing };
        if conn.phase == Phase::Draining {
            conn.link.discard();
            self.done = done;
            return Todo::Nothing;
        }
        let result = conn.link.read(&mut done);
        let (live, leaving) = (conn.phase == Phase::Live, conn.link.shutting_down);
        let marks = conn.marks.clone();
        // Whoever was alone is through: others may go.
        self.released |= conn.alone && conn.link.slots.is_empty();
        for done in done.drain(..) {
            self.finish(id, marks.as_deref(), live, done, now, ended);
        }
        self.done = done;
        match result {
            Err(error) => {
                let then = self.lose(id, Loss::Lied, now);
                Todo::Lied { error, is_over: matches!(then, Todo::Close) }
            }
            Ok(()) if live && leaving => {
                self.common.goes_down(id);
                self.released = true;
                self.lose(id, Loss::Replaced, now)
            }
            Ok(()) if !live => self.see_off(id, now),
            Ok(()) => Todo::Nothing,
        }
    }

    /// A request was answered on a connection, which may have been left by now.
    fn finish(
        &mut self,
        id: LinkId,
        marks: Option<&Marks>,
        live: bool,
        mut done: Done<J>,
        now: Duration,
        ended: &mut Ended<J>,
    ) {
        // On the connection that it came by: that server has it, whichever is used now.
        if let (Some(marks), Some(span), Ok(()), false) =
            (marks, done.changed, done.result, done.durable)
        {
            marks.mark(span);
            self.wrote_at = now;
            if live && self.flush_look.is_none() {
                self.flush_look = self.policy.flush_after.map(|after| now.saturating_add(after));
                // Who waits for the time is told of it.
                self.released |= self.flush_look.is_some();
            }
        }
        // Once it is marked: what is neither fenced nor marked is durable.
        if done.changed.is_some() && (!live || done.job.is_none()) {
            self.common.resolve(id, done.cookie);
            self.released = true;
        }
        if done.op == Op::Flush {
            self.flush_ended(id, &mut done);
        }
        // The connection is not lost, and so it is no suspect; its patience is bounded all the same.
        let (refused, past) = (done.is_refused(), done.past);
        let limit = self.policy.dead_conn_timeout;
        let is_late = || past.since.is_some_and(|since| now >= since.saturating_add(limit));
        let mut status = done.status();
        match done.result {
            Err(error) if spoils_flushes(&done, error) => self.common.fail_flushes(),
            // What was written before it is not all there any more.
            Ok(()) if done.op == Op::Flush && self.common.has_flush_failed() => status = Status::Io,
            _ => {}
        }
        match done.job {
            Some(job) if refused && !is_late() => self.common.wait(job, past, now),
            Some(job) => ended.push((job, status)),
            None => {}
        }
    }

    /// A flush was answered, somebody's or one of our own.
    fn flush_ended(&mut self, id: LinkId, done: &mut Done<J>) {
        if done.result.is_ok() {
            self.common.flushed(id, &mut done.flush);
        }
        if let Some(conn) = self.conn(id)
            && conn.own_flush == OwnFlush::Out(done.cookie)
        {
            conn.own_flush = if done.result.is_ok() { OwnFlush::None } else { OwnFlush::Failed };
            // Others may have waited for it.
            self.released = true;
        }
    }

    /// Whether the server of the connection in use is going down, as it has said on another one.
    pub(crate) fn is_leaving(&mut self) -> bool {
        let id = self.live().map(|conn| conn.id);
        id.is_some_and(|id| self.common.leaves(id))
    }

    /// Whether requests that wait may go, since this was asked last.
    pub(crate) fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    /// What may be lost, since this was asked last.
    pub(crate) fn take_lost(&mut self) -> Option<Parts> {
        self.lost.take()
    }

    /// Flushes what was written on the connection in use if no write has been answered for a while, so that it costs nothing to
    /// lose a connection that nobody writes on; whatever is read meanwhile. Says whether there is something to send.
    pub(crate) fn flush_if_idle(&mut self, now: Duration) -> bool {
        let due = self.flush_look.take_if(|at| now >= *at);
        let (Some(_), Some(after)) = (due, self.policy.flush_after) else { return false };
        let idle_at = self.wrote_at.saturating_add(after);
        let common = Arc::clone(&self.common);
        let Some(conn) = self.live().filter(|conn| conn.wants_flush()) else { return false };
        if common.has_flush_failed() || conn.own_flush == OwnFlush::Failed {
            return false;
        }
        let flushes = now >= idle_at && !conn.link.awaits_change();
        if flushes {
            conn.flush(&common, now);
        }
        // What is written until then sets no time of its own.
        self.flush_look = Some(if now < idle_at { idle_at } else { now.saturating_add(after) });
        flushes
    }

    /// Sees to a connection that is left: it is flushed once it changes nothing any more, whatever else it still answers, as its
    /// server may count it as flushed by another; and once all is answered, there is nothing to wait for.
    fn see_off(&mut self, id: LinkId, now: Duration) -> Todo {
        let common = Arc::clone(&self.common);
        let Some(conn) = self.conn(id).filter(|conn| conn.phase != Phase::Live) else {
            return Todo::Nothing;
        };
        let is_over = conn.link.is_over();
        let leaves_dirty = conn.is_dirty() && conn.phase == Phase::Answering;
        if leaves_dirty
            && conn.own_flush == OwnFlush::None
            && (is_over || !conn.link.awaits_change())
        {
            conn.flush(&common, now);
        }
        let awaits_flush = leaves_dirty && matches!(conn.own_flush, OwnFlush::Out(_));
        if !is_over || awaits_flush { Todo::Send } else { Todo::Close }
    }

    /// A connection is lost. Whatever may be sent again at once waits for another.
    pub(crate) fn lose(&mut self, id: LinkId, loss: Loss, now: Duration) -> Todo {
        let common = Arc::clone(&self.common);
        let Some(conn) = self.conn(id) else { return Todo::Nothing };
        if loss != Loss::Replaced {
            conn.silent_since.get_or_insert(now);
        }
        if conn.phase == Phase::Live {
            common.retire(id);
            conn.retire(loss, true, now, &common);
        } else if loss != Loss::Replaced {
            conn.retire(loss, false, now, &common);
        }
        match (loss, conn.phase) {
            (Loss::Closed, _) => {
                self.settle(id, now);
                return Todo::Close;
            }
            (_, Phase::Gone(_)) => return Todo::Abort,
            (Loss::Broken, _) => conn.phase = Phase::Gone(now),
            (Loss::Lied, _) => conn.phase = Phase::Draining,
            (Loss::Silent | Loss::Replaced, Phase::Live) => conn.phase = Phase::Answering,
            (Loss::Silent | Loss::Replaced, _) => {}
        }
        if conn.phase != Phase::Answering {
            // It shows nothing any more.
            conn.link.fall_silent();
            self.default_on(id);
        }
        match loss {
            Loss::Broken => Todo::Abort,
            _ => self.see_off(id, now),
        }
    }

    /// What was written on a connection, and not flushed, may be lost.
    fn default_on(&mut self, id: LinkId) {
        let Some(marks) = self.conn(id).and_then(|conn| conn.marks.clone()) else { return };
        // Whoever waited for a flush of it need not any more.
        self.released |= marks.is_dirty();
        if let Some(parts) = self.common.default_on(id, &marks) {
            self.lost = Some(parts);
        }
    }

    /// Nothing that was sent on a connection will be carried out any more: it goes, and what was not answered
    /// waits for another.
    pub(crate) fn settle(&mut self, id: LinkId, now: Duration) {
        self.default_on(id);
        let Some(at) = self.conns.iter().position(|conn| conn.id == id) else { return };
        let mut conn = self.conns.remove(at);
        for mut entry in conn.link.slots.drain() {
            let past = entry.past().lost();
            if let Some(job) = entry.take_back() {
                self.common.wait(job, past, now);
            }
        }
        self.common.settle(id);
        self.released = true;
    }

    /// Sees to connections and requests whose time is over. Says which connections are to be aborted.
    pub(crate) fn expire(&mut self, now: Duration, ended: &mut Ended<J>) -> Expired {
        let mut expired = Expired { outlived: self.common.outlive(now), ..Expired::default() };
        let (policy, common) = (self.policy, Arc::clone(&self.common));
        for job in self.common.expire(now, policy.dead_conn_timeout) {
            expired.failed += 1;
            ended.push((job, Status::Transport));
        }
        let mut given_up = Vec::new();
        for conn in self.conns.iter_mut().filter(|conn| conn.phase != Phase::Live) {
            match conn.fate(policy, &common) {
                Some(Fate::Abort(at)) if now >= at => expired.abort.push(conn.id),
                Some(Fate::Fall(at)) if now >= at => given_up.push(conn.id),
                _ => {}
            }
            let late: Vec<u64> = conn.late(now, policy).map(|(cookie, _)| cookie).collect();
            for cookie in late {
                // The fence stays.
                if let Some((job, ..)) = conn.link.take_back(cookie) {
                    expired.failed += 1;
                    ended.push((job, Status::Transport));
                }
            }
        }
        for id in &expired.abort {
            if self.conn(*id).is_some_and(|conn| conn.link.awaits_flush()) {
                common.doubt(*id);
            }
            self.lose(*id, Loss::Broken, now);
        }
        for id in given_up {
            expired.given_up += 1;
            self.settle(id, now);
        }
        expired
    }

    /// When [`Queue::expire`] or [`Queue::find_dead`] has something to say next.
    pub(crate) fn deadline(&mut self) -> Option<Duration> {
        let (policy, common) = (self.policy, &self.common);
        let waits = common.waits_since().map(|since| since + policy.dead_conn_timeout);
        let conns = self.conns.iter_mut().flat_map(|conn| {
            let fate = conn.fate(policy, common).map(|(Fate::Abort(at) | Fate::Fall(at))| at);
            [
                conn.dead_at(policy, common),
                fate,
                conn.late(Duration::MAX, policy).map(|(_, at)| at).min(),
            ]
        });
        let times = conns.flatten().chain(waits).chain(common.inherits_until());
        times.chain(self.flush_look).min()
    }

    /// A connection that is dead rather than slow, and has not been lost for that.
    pub(crate) fn find_dead(&mut self, now: Duration) -> Option<LinkId> {
        let (policy, common) = (self.policy, &self.common);
        let dead = |conn: &mut Conn<J, S>| conn.dead_at(policy, common).filter(|at| now >= *at);
        self.conns.iter_mut().find_map(|conn| dead(conn).map(|_| conn.id))
    }

    /// Fails whatever is left. What may still change the disk stays fenced.
    pub(crate) fn clear(&mut self, status: Status, ended: &mut Ended<J>) {
        ended.extend(self.common.take_all().into_iter().map(|job| (job, status)));
        for conn in &mut self.conns {
            let live = conn.phase == Phase::Live;
            let out = conn.link.slots.entries().filter(|(_, entry)| entry.held.is_some());
            let out: Vec<_> = out.map(|(cookie, entry)| (cookie, entry.changes)).collect();
            for (cookie, changes) in out {
                let Some((job, _, sent)) = conn.link.take_back(cookie) else { continue };
                ended.push((job, status));
                if let Some(span) = changes.filter(|_| live && sent == Sent::Something) {
                    self.common.fence(conn.id, cookie, span);
                }
            }
        }
    }

    /// Requests that are out on any connection.
    pub(crate) fn in_flight(&mut self) -> usize {
        let jobs = |conn: &mut Conn<J, S>| {
            conn.link.slots.entries().filter(|(_, entry)| entry.held.is_some()).count()
        };
        self.conns.iter_mut().map(jobs).sum()
    }
}

/// Whether an error tells that something may be lost which was acknowledged before: a server that syncs for this
/// request is told only once of what went wrong in between.
fn spoils_flushes<J>(done: &Done<J>, error: ErrorCode) -> bool {
    let harmless = [
        ErrorCode::EPERM,
        ErrorCode::ENOMEM,
        ErrorCode::EINVAL,
        ErrorCode::EOVERFLOW,
        ErrorCode::ENOTSUP,
        ErrorCode::ESHUTDOWN,
    ];
    let syncs = done.op == Op::Flush && error != ErrorCode::ESHUTDOWN || done.durable;
    syncs && (done.op == Op::Flush || !harmless.contains(&error))
}

impl Policy {
    fn most_patient(&self) -> Duration {
        self.timeout.saturating_mul(self.patience)
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
    /// What another process had sent is taken for over.
    pub(crate) outlived: bool,
}
