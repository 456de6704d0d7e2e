//! What the queues of a disk share once something is wrong: ranges that are fenced, and requests that wait for
//! a connection, or for a fence to fall; and which connections a flush has to reach.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_blkmq::{FailedFlush, Op};
use parking_lot::Mutex;

use crate::fence::{Fence, LinkId};
use crate::held::Past;
use crate::job::Job;
use crate::span::Span;
use crate::unflushed::{Epoch, FlushOut, Marks, Parts, Unflushed};

/// Stands for the connections of another process, which served this disk before and has died. None of ours has this id.
const INHERITED: LinkId = 0;

/// A request that waits.
pub(crate) struct Waiting<J> {
    pub(crate) job: J,
    pub(crate) past: Past,
    /// Since when it does so, other times included.
    since: Duration,
}

/// A connection, as far as flushes depend on it.
///
/// The answer to a flush tells of all that the server of that connection has answered (`CAN_MULTI_CONN`), on whatever
/// connection. But a server may have been started anew between two connections to it, with what the first one wrote
/// gone, before anybody notices that the first one is dead. So a flush covers another connection only if that has shown
/// since the flush's was made that its server lives: then both have one.
struct Known {
    id: LinkId,
    /// Which server it is to, counted by the moves of the disk.
    moves: u64,
    /// Not before then was its server reached.
    connected: Epoch,
    /// Then, or later, its server was alive. What is written on it is answered later than it was attached.
    alive: Epoch,
    /// `None`: there is no cache.
    marks: Option<Arc<Marks>>,
    /// Requests go to it.
    live: bool,
    /// Its server is going down, as it has said on this connection or another one.
    leaves: bool,
    /// A flush waits for one on this connection.
    asked: bool,
    /// A flush was out on it when we ended it, and may have failed.
    doubtful: bool,
}

impl Known {
    /// Whether a flush on this connection covers another: both are to one server, and that has not been started anew between
    /// them.
    fn covers(&self, other: &Self) -> bool {
        other.moves == self.moves && other.alive >= self.connected
    }

    fn is_dirty(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.is_dirty())
    }
}

/// The part that is locked. Nothing but a flush touches it while all connections are well.
pub(crate) struct Recovery<J> {
    fence: Fence,
    known: Vec<Known>,
    /// The server says that a flush covers what was answered on its other connections.
    covers_others: bool,
    moves: u64,
    /// The server of now has something of connections that are over, which is not flushed, and not lost as it is trusted: the
    /// next connection to it is to flush that.
    kept: bool,
    /// Connections were asked for a flush that have not been told.
    asks: bool,
    /// Bounded by the tags of the disk.
    waiting: VecDeque<Waiting<J>>,
    next_link: LinkId,
    /// When the fence around what another process has sent falls, or fell.
    inherited_until: Option<Duration>,
}

impl<J: Job> Recovery<J> {
    /// Since when a request's patience counts. What another process left behind is no reason to fail.
    fn counts_from(&self, waits: &Waiting<J>) -> Duration {
        match self.inherited_until {
            Some(until) if waits.job.ask().changes().is_some() => waits.since.max(until),
            _ => waits.since,
        }
    }

    /// Whether a request may be sent on a connection now. Where a flush may not, connections are asked for theirs.
    fn may_go(&mut self, job: &J, on: LinkId) -> bool {
        let ask = job.ask();
        match ask.changes() {
            Some(span) => !self.fence.overlaps(span),
            None => ask.op != Op::Flush || self.may_flush(on),
        }
    }

    fn may_flush(&mut self, on: LinkId) -> bool {
        let Some(at) = self.known.iter().position(|known| known.id == on) else { return true };
        // Its own needs no look: it covers that.
        let this = self.known.swap_remove(at);
        // Who waits for one that is left asks no other yet, which would be left for the same.
        let mut may = !self.known.iter().any(|other| !other.live && other.is_dirty());
        let may_ask = may;
        for other in self.known.iter_mut().filter(|other| other.is_dirty()) {
            // One that is left is flushed before that, or shows that it is lost.
            let is_covered = other.live && self.covers_others && this.covers(other);
            if may_ask && other.live && !is_covered {
                self.asks |= !std::mem::replace(&mut other.asked, true);
            }
            may &= is_covered;
        }
        self.known.push(this);
        may
    }

    /// Whether the next connection is to the server that has what was written on this one, so that a flush there covers
    /// it: not if the disk has left that server, nor where the answer to a flush is lost, which may have been the only
    /// one to tell of an error.
    fn may_be_flushed_elsewhere(&self, link: LinkId) -> bool {
        let known = self.known.iter().find(|known| known.id == link);
        known.is_some_and(|known| known.moves == self.moves && !known.doubtful)
    }

    /// What is not flushed of a connection that is over is for another one to flush.
    fn keep(&mut self) {
        let moves = self.moves;
        let mut others = self.known.iter().filter(|known| known.live && known.moves == moves);
        match others.find_map(|known| known.marks.as_ref()) {
            Some(marks) => marks.inherit(),
            None => self.kept = true,
        }
    }

    fn keeps_from_moving(&self, known: &Known) -> bool {
        known.moves != self.moves && (self.fence.has(known.id) || known.is_dirty())
    }

    fn of(&mut self, id: LinkId) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.id == id)
    }

    /// Whether there is no connection that a request may be sent on as soon as that has a look, or has room.
    fn is_stuck(&self, waits: &Waiting<J>) -> bool {
        let ask = waits.job.ask();
        let waits_for_others = match ask.changes() {
            Some(span) => self.fence.overlaps(span),
            None => {
                ask.op == Op::Flush
                    && self.known.iter().any(|known| !known.live && known.is_dirty())
            }
        };
        waits_for_others || !self.known.iter().any(|known| known.live && !known.leaves)
    }
}

/// When a connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Before anything was written: whatever is written on any other shows that the server lives.
    AtTheStart,
    /// In the place of one that was lost or left.
    Later,
}

/// Shared by the queues of a disk.
pub(crate) struct Common<J> {
    recovery: Mutex<Recovery<J>>,
    /// Whether any range is fenced.
    guarded: AtomicBool,
    /// Requests that wait, so that nobody has to lock for that.
    waiting: AtomicUsize,
    /// Whether requests fail at once: the disk was disconnected.
    closed: AtomicBool,
    /// What was written may be lost: flushes fail from then on.
    flush_failed: AtomicBool,
    /// Told of that, at once.
    on_failed_flush: OnceLock<FailedFlush>,
    /// `None`: there is no cache.
    unflushed: Option<Arc<Unflushed>>,
    /// A server that is started anew has lost nothing.
    trusting: bool,
}

impl<J> Default for Common<J> {
    fn default() -> Self {
        Self::new(None, false)
    }
}

impl<J> Common<J> {
    pub(crate) fn new(unflushed: Option<Arc<Unflushed>>, trusting: bool) -> Self {
        let recovery = Recovery {
            fence: Fence::default(),
            known: Vec::new(),
            covers_others: true,
            moves: 0,
            kept: false,
            asks: false,
            waiting: VecDeque::new(),
            next_link: INHERITED,
            inherited_until: None,
        };
        Self {
            recovery: Mutex::new(recovery),
            guarded: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            on_failed_flush: OnceLock::new(),
            unflushed,
            trusting,
        }
    }
}

impl<J: Job> Common<J> {
    /// A connection is put in use, to the server that the disk had after so many moves. Says its name, and where it is marked
    /// what was written on it.
    pub(crate) fn attach(&self, made: Made, moves: u64) -> (LinkId, Option<Arc<Marks>>) {
        let mut recovery = self.recovery.lock();
        recovery.next_link += 1;
        let (id, marks) = (recovery.next_link, self.unflushed.as_ref().map(Unflushed::marks));
        let now = self.unflushed.as_ref().map_or(0, |unflushed| unflushed.end_epoch() + 1);
        let connected = if made == Made::AtTheStart { 0 } else { now };
        if let Some(marks) = &marks
            && recovery.moves == moves
            && std::mem::take(&mut recovery.kept)
        {
            marks.inherit();
        }
        let known = Known {
            id,
            moves,
            connected,
            alive: now,
            marks: marks.clone(),
            live: true,
            leaves: false,
            asked: false,
            doubtful: false,
        };
        recovery.known.push(known);
        (id, marks)
    }

    /// A connection is not used any more.
    pub(crate) fn retire(&self, link: LinkId) {
        if let Some(known) = self.recovery.lock().of(link) {
            known.live = false;
        }
    }

    /// The server of a connection says that it is going down: all connections to it that there are by now are to be
    /// left. One that is made later is to another process; what the old one says late is no news.
    pub(crate) fn goes_down(&self, link: LinkId) {
        let mut recovery = self.recovery.lock();
        let Some(moves) = recovery.of(link).filter(|of| !of.leaves).map(|of| of.moves) else {
            return;
        };
        let all = recovery.known.iter_mut().filter(|known| known.moves == moves);
        all.for_each(|known| known.leaves = true);
    }

    /// Whether the server of a connection is going down.
    pub(crate) fn leaves(&self, link: LinkId) -> bool {
        self.recovery.lock().of(link).is_some_and(|known| known.leaves)
    }

    /// How often the disk has moved. Whoever is to attach a connection asks before it looks whether that is still wanted: one
    /// that the disk has left in between is not taken for one to the next server.
    pub(crate) fn moves(&self) -> u64 {
        self.recovery.lock().moves
    }

    /// The disk moves to another server.
    pub(crate) fn moved(&self) {
        let mut recovery = self.recovery.lock();
        recovery.moves += 1;
        let is_lost = std::mem::take(&mut recovery.kept);
        drop(recovery);
        if is_lost {
            // No connection to the server that has it is ever made again.
            self.fail_flushes();
        }
    }

    /// The server has something that was not flushed, of which no connection knows, and is trusted to keep it.
    pub(crate) fn keep(&self) {
        if self.unflushed.is_some() {
            self.recovery.lock().keep();
        }
    }

    /// The server says no more that its flushes cover several connections.
    pub(crate) fn covers_one(&self) {
        self.recovery.lock().covers_others = false;
    }

    /// Whether a flush waits for one on this connection.
    pub(crate) fn is_asked(&self, link: LinkId) -> bool {
        self.recovery.lock().of(link).is_some_and(|known| known.asked)
    }

    /// Whether connections were asked for a flush since this was asked last: somebody has to tell them.
    pub(crate) fn take_asks(&self) -> bool {
        std::mem::take(&mut self.recovery.lock().asks)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes a request that cannot be sent now.
    pub(crate) fn wait(&self, job: J, past: Past, now: Duration) {
        let mut recovery = self.recovery.lock();
        recovery.wait(job, past, now);
        self.count(&recovery);
    }

    /// Takes a request that must not be sent now on a connection: what it changes is fenced, or it is a flush that would
    /// not cover all that it has to. Gives all others back.
    pub(crate) fn hold(&self, job: J, on: LinkId, now: Duration) -> Option<J> {
        if job.ask().op != Op::Flush && !self.guarded.load(Ordering::Acquire) {
            return Some(job);
        }
        let mut recovery = self.recovery.lock();
        if recovery.may_go(&job, on) {
            return Some(job);
        }
        recovery.wait(job, Past::default(), now);
        self.count(&recovery);
        None
    }

    /// The first request that may be sent now on a connection, of those that are `wanted`.
    pub(crate) fn next_ready(
        &self,
        on: LinkId,
        wanted: impl Fn(&Waiting<J>) -> bool,
    ) -> Option<Waiting<J>> {
        let mut recovery = self.recovery.lock();
        let at = self.find_ready(&mut recovery, on, wanted)?;
        let mut waits = recovery.waiting.remove(at)?;
        // What another process left behind is no reason to fail later, either.
        waits.past.since = Some(recovery.counts_from(&waits));
        self.count(&recovery);
        Some(waits)
    }

    fn find_ready(
        &self,
        recovery: &mut Recovery<J>,
        on: LinkId,
        wanted: impl Fn(&Waiting<J>) -> bool,
    ) -> Option<usize> {
        if recovery.of(on).is_some_and(|known| known.leaves) {
            return None;
        }
        let failed = self.has_flush_failed();
        let waiting = std::mem::take(&mut recovery.waiting);
        let at = waiting.iter().position(|waits| {
            // A flush that fails need not wait.
            wanted(waits)
                && (failed && waits.job.ask().op == Op::Flush || recovery.may_go(&waits.job, on))
        });
        recovery.waiting = waiting;
        at
    }

    /// Whether a request waits to be sent with nothing beside it, and may be.
    pub(crate) fn has_suspect(&self, on: LinkId) -> bool {
        let mut recovery = self.recovery.lock();
        self.find_ready(&mut recovery, on, |waits| waits.past.is_suspect()).is_some()
    }

    /// Takes out who has waited for `limit` and finds no connection, or has lost too many.
    pub(crate) fn expire(&self, now: Duration, limit: Duration) -> Vec<J> {
        self.take_out(|recovery, waits| {
            let waited = now.saturating_sub(recovery.counts_from(waits));
            waits.past.is_hopeless() || waited >= limit && recovery.is_stuck(waits)
        })
    }

    /// Takes all out.
    pub(crate) fn take_all(&self) -> Vec<J> {
        self.take_out(|_, _| true)
    }

    fn take_out(&self, wanted: impl Fn(&Recovery<J>, &Waiting<J>) -> bool) -> Vec<J> {
        let mut recovery = self.recovery.lock();
        let mut out = Vec::new();
        let all = std::mem::take(&mut recovery.waiting);
        for waits in all {
            if wanted(&recovery, &waits) {
                out.push(waits.job);
            } else {
                recovery.waiting.push_back(waits);
            }
        }
        self.count(&recovery);
        out
    }

    fn count(&self, recovery: &Recovery<J>) {
        self.waiting.store(recovery.waiting.len(), Ordering::Release);
    }

    /// Since when the first of those does so whom [`Common::expire`] takes out once they have waited too long.
    pub(crate) fn waits_since(&self) -> Option<Duration> {
        let recovery = self.recovery.lock();
        let stuck = recovery.waiting.iter().filter(|waits| recovery.is_stuck(waits));
        stuck.map(|waits| recovery.counts_from(waits)).min()
    }

    /// Another process may have sent writes that are still to be carried out: until a time nothing is changed.
    pub(crate) fn inherit(&self, until: Duration) {
        self.change(|recovery| {
            recovery.fence.settle(INHERITED);
            recovery.fence.add(INHERITED, 0, Span::ALL);
            recovery.inherited_until = recovery.inherited_until.max(Some(until));
        });
    }

    /// When that time is over, if it is not.
    pub(crate) fn inherits_until(&self) -> Option<Duration> {
        if !self.guarded.load(Ordering::Acquire) {
            return None;
        }
        let recovery = self.recovery.lock();
        recovery.inherited_until.filter(|_| recovery.fence.has(INHERITED))
    }

    /// What another process has sent is taken for over if its time is. Says whether it is from now on.
    pub(crate) fn outlive(&self, now: Duration) -> bool {
        let over = self.inherits_until().is_some_and(|until| now >= until);
        if over {
            self.settle(INHERITED);
        }
        over
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn fence(&self, link: LinkId, cookie: u64, span: Span) {
        self.change(|recovery| recovery.fence.add(link, cookie, span));
    }

    pub(crate) fn resolve(&self, link: LinkId, cookie: u64) {
        if self.guarded.load(Ordering::Acquire) {
            self.change(|recovery| recovery.fence.resolve(link, cookie));
        }
    }

    /// Nothing that was sent on the connection will be carried out any more.
    pub(crate) fn settle(&self, link: LinkId) {
        self.change(|recovery| {
            recovery.fence.settle(link);
            recovery.known.retain(|known| known.id != link);
        });
    }

    /// Whether other requests wait until a connection is over, which may never answer.
    pub(crate) fn holds_others_up(&self, link: LinkId) -> bool {
        let recovery = self.recovery.lock();
        let known = recovery.known.iter().find(|known| known.id == link);
        recovery.fence.has(link) || known.is_some_and(|known| recovery.keeps_from_moving(known))
    }

    /// Whether the disk has left the server of a connection.
    pub(crate) fn has_left(&self, link: LinkId) -> bool {
        let recovery = self.recovery.lock();
        recovery.known.iter().any(|known| known.id == link && known.moves != recovery.moves)
    }

    /// Whether a server that the disk has left has something that is not durable, or may still write: to the bytes that
    /// the next one is to show.
    pub(crate) fn has_to_move(&self) -> bool {
        let recovery = self.recovery.lock();
        recovery.known.iter().any(|known| recovery.keeps_from_moving(known))
    }

    /// Whether any range is.
    pub(crate) fn is_fenced(&self) -> bool {
        self.guarded.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut Recovery<J>)) {
        let mut recovery = self.recovery.lock();
        change(&mut recovery);
        self.guarded.store(!recovery.fence.is_empty(), Ordering::Release);
    }

    /// A flush is about to be sent.
    pub(crate) fn begin_flush(&self) -> FlushOut {
        self.unflushed.as_ref().map(Unflushed::begin_flush).unwrap_or_default()
    }

    /// A flush that was sent on a connection at the end of an epoch has succeeded: what it covers is durable.
    pub(crate) fn flushed(&self, on: LinkId, flush: &mut FlushOut) {
        let epoch = flush.epoch;
        let mut recovery = self.recovery.lock();
        let covers_others = recovery.covers_others;
        let Some(this) = recovery.of(on) else { return };
        this.alive = this.alive.max(epoch);
        this.asked = false;
        let Some(this) = recovery.known.iter().find(|known| known.id == on) else { return };
        for known in &recovery.known {
            if let Some(marks) = &known.marks
                && (known.id == on || covers_others && this.covers(known))
            {
                marks.flushed(epoch);
            }
        }
        let mut marks = recovery.known.iter().filter_map(|known| known.marks.as_ref());
        flush.is_durable = marks.all(|marks| marks.are_durable_up_to(epoch));
    }

    /// What is kept of what is not flushed; none if there is no cache.
    pub(crate) fn unflushed(&self) -> Option<&Unflushed> {
        self.unflushed.as_deref()
    }

    /// What was written on a connection, and not flushed, may be lost: flushes fail from now on, unless that is known not
    /// to be so. Gives what is lost.
    pub(crate) fn default_on(&self, link: LinkId, marks: &Marks) -> Option<Parts> {
        if !marks.is_dirty() {
            return None;
        }
        let mut recovery = self.recovery.lock();
        let is_kept = self.trusting && recovery.may_be_flushed_elsewhere(link);
        if is_kept {
            recovery.keep();
        }
        drop(recovery);
        if !is_kept {
            self.fail_flushes();
        }
        // Now flushes that waited for this may go on.
        marks.take().filter(|_| !is_kept)
    }

    /// A connection is ended by us, with a flush out.
    pub(crate) fn doubt(&self, link: LinkId) {
        if let Some(known) = self.recovery.lock().of(link) {
            known.doubtful = true;
        }
    }

    /// Whether a server that is started anew is known to lose nothing.
    pub(crate) fn is_trusting(&self) -> bool {
        self.trusting
    }

    pub(crate) fn has_flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Flushes fail from now on: whatever they cover, it is not all.
    pub(crate) fn fail_flushes(&self) {
        if !self.flush_failed.swap(true, Ordering::AcqRel)
            && let Some(told) = self.on_failed_flush.get()
        {
            told();
        }
    }

    pub(crate) fn on_failed_flush(&self, told: FailedFlush) {
        // Whoever was first is told.
        let _ = self.on_failed_flush.set(told);
        if let Some(told) = self.on_failed_flush.get()
            && self.has_flush_failed()
        {
            told();
        }
    }
}

impl<J> Recovery<J> {
    fn wait(&mut self, job: J, past: Past, now: Duration) {
        let since = past.since.unwrap_or(now);
        let past = Past { since: Some(since), ..past };
        self.waiting.push_back(Waiting { job, past, since });
    }
}
