//! What the queues of a disk share once something is wrong: ranges that are fenced, and requests that wait for
//! a connection, or for a fence to fall; and what was written and not flushed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockyard_blkmq::Op;
use parking_lot::Mutex;

use crate::fence::{Fence, LinkId};
use crate::held::Past;
use crate::job::Job;
use crate::span::Span;
use crate::unflushed::{Parts, Unflushed, Window};

/// Stands for the connections of another process, which served this disk before and has died. None of ours has this id.
const INHERITED: LinkId = 0;

/// A request that waits.
pub(crate) struct Waiting<J> {
    pub(crate) job: J,
    pub(crate) past: Past,
    /// Since when it does so, other times included.
    since: Duration,
}

/// The part that is locked. Nothing in here is touched while all connections are well.
pub(crate) struct Recovery<J> {
    fence: Fence,
    /// Connections that are left and still have to be flushed, or to show that they live. Flushes wait for them.
    owing: Vec<LinkId>,
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

    fn is_free(&self, job: &J) -> bool {
        let ask = job.ask();
        match ask.changes() {
            Some(span) => !self.fence.overlaps(span),
            None => ask.op != Op::Flush || self.owing.is_empty(),
        }
    }
}

/// Shared by the queues of a disk.
pub(crate) struct Common<J> {
    recovery: Mutex<Recovery<J>>,
    /// Whether any range is fenced, or a connection owes a flush.
    guarded: AtomicBool,
    /// Whether requests fail at once: the disk was disconnected.
    closed: AtomicBool,
    /// What was written may be lost: flushes fail from then on.
    flush_failed: AtomicBool,
    /// `None`: nobody wants to know, or there is no cache.
    unflushed: Option<Arc<Unflushed>>,
}

impl<J> Default for Common<J> {
    fn default() -> Self {
        Self::new(None)
    }
}

impl<J> Common<J> {
    pub(crate) fn new(unflushed: Option<Arc<Unflushed>>) -> Self {
        let recovery = Recovery {
            fence: Fence::default(),
            owing: Vec::new(),
            waiting: VecDeque::new(),
            next_link: INHERITED,
            inherited_until: None,
        };
        Self {
            recovery: Mutex::new(recovery),
            guarded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            unflushed,
        }
    }
}

impl<J: Job> Common<J> {
    pub(crate) fn new_link(&self) -> LinkId {
        let mut recovery = self.recovery.lock();
        recovery.next_link += 1;
        recovery.next_link
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Takes a request that cannot be sent now.
    pub(crate) fn wait(&self, job: J, past: Past, now: Duration) {
        self.recovery.lock().wait(job, past, now);
    }

    /// Takes a request that must not be sent now: what it changes is fenced, or it is a flush that some connection
    /// owes. Gives all others back.
    pub(crate) fn hold(&self, job: J, now: Duration) -> Option<J> {
        if !self.guarded.load(Ordering::Acquire) {
            return Some(job);
        }
        let mut recovery = self.recovery.lock();
        if recovery.is_free(&job) {
            return Some(job);
        }
        recovery.wait(job, Past::default(), now);
        None
    }

    /// The first request that may be sent now, of those that are `wanted`.
    pub(crate) fn next_ready(&self, wanted: impl Fn(&Waiting<J>) -> bool) -> Option<Waiting<J>> {
        let mut recovery = self.recovery.lock();
        let at = recovery
            .waiting
            .iter()
            .position(|waits| wanted(waits) && recovery.is_free(&waits.job))?;
        recovery.waiting.remove(at)
    }

    /// Whether a request waits to be sent with nothing beside it, and may be.
    pub(crate) fn has_suspect(&self) -> bool {
        let recovery = self.recovery.lock();
        let mut waiting = recovery.waiting.iter();
        waiting.any(|waits| waits.past.is_suspect() && recovery.is_free(&waits.job))
    }

    /// Takes out who has waited for `limit`, or has lost too many connections.
    pub(crate) fn expire(&self, now: Duration, limit: Duration) -> Vec<J> {
        let mut recovery = self.recovery.lock();
        let mut expired = Vec::new();
        let all = std::mem::take(&mut recovery.waiting);
        for waits in all {
            let waited = now.saturating_sub(recovery.counts_from(&waits));
            if waited >= limit || waits.past.is_hopeless() {
                expired.push(waits.job);
            } else {
                recovery.waiting.push_back(waits);
            }
        }
        expired
    }

    /// Since when the first of those who wait does so.
    pub(crate) fn waits_since(&self) -> Option<Duration> {
        let recovery = self.recovery.lock();
        recovery.waiting.iter().map(|waits| recovery.counts_from(waits)).min()
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
        self.recovery.lock().waiting.len()
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
            recovery.owing.retain(|owing| *owing != link);
        });
    }

    /// Flushes wait until the connection has paid.
    pub(crate) fn owe(&self, link: LinkId) {
        self.change(|recovery| recovery.owing.push(link));
    }

    pub(crate) fn paid(&self, link: LinkId) {
        self.change(|recovery| recovery.owing.retain(|owing| *owing != link));
    }

    #[cfg(test)]
    pub(crate) fn is_fenced(&self) -> bool {
        self.guarded.load(Ordering::Acquire)
    }

    fn change(&self, change: impl FnOnce(&mut Recovery<J>)) {
        let mut recovery = self.recovery.lock();
        change(&mut recovery);
        let guarded = !recovery.fence.is_empty() || !recovery.owing.is_empty();
        self.guarded.store(guarded, Ordering::Release);
    }

    /// A write was answered.
    pub(crate) fn written(&self, queue: usize, span: Span) {
        if let Some(unflushed) = &self.unflushed {
            unflushed.mark(queue, span);
        }
    }

    /// What was written on a queue's connection and not flushed; the queue is not asked again.
    pub(crate) fn take_unflushed(&self, queue: usize) -> Option<Parts> {
        self.unflushed.as_ref()?.take(queue)
    }

    /// A flush is about to be sent.
    pub(crate) fn flushing(&self) -> Option<Window> {
        self.unflushed.as_ref()?.open_window()
    }

    pub(crate) fn has_flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    /// Flushes fail from now on: whatever they cover, it is not all.
    pub(crate) fn fail_flushes(&self) {
        self.flush_failed.store(true, Ordering::Release);
    }
}

impl<J> Recovery<J> {
    fn wait(&mut self, job: J, past: Past, now: Duration) {
        let since = past.since.unwrap_or(now);
        let past = Past { since: Some(since), ..past };
        self.waiting.push_back(Waiting { job, past, since });
    }
}
