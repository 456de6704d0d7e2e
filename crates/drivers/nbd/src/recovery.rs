//! What the queues of a disk share once something is wrong: ranges that are fenced, and requests that wait for
//! a connection, or for a fence to fall.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::fence::{Fence, LinkId};
use crate::job::Job;
use crate::span::Span;

struct Waiting<J> {
    job: J,
    since: Duration,
}

/// The part that is locked. Nothing in here is touched while all connections are well.
pub(crate) struct Recovery<J> {
    fence: Fence,
    /// Bounded by the tags of the disk.
    waiting: VecDeque<Waiting<J>>,
    next_link: LinkId,
}

/// Shared by the queues of a disk.
pub(crate) struct Common<J> {
    recovery: Mutex<Recovery<J>>,
    /// Whether any range is fenced.
    fenced: AtomicBool,
    /// Whether requests fail at once: the disk was disconnected.
    closed: AtomicBool,
}

impl<J> Default for Common<J> {
    fn default() -> Self {
        let recovery = Recovery { fence: Fence::default(), waiting: VecDeque::new(), next_link: 0 };
        Self {
            recovery: Mutex::new(recovery),
            fenced: AtomicBool::new(false),
            closed: AtomicBool::new(false),
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
    pub(crate) fn wait(&self, job: J, now: Duration) {
        self.recovery.lock().waiting.push_back(Waiting { job, since: now });
    }

    /// Takes a request that changes what is fenced; gives all others back.
    pub(crate) fn hold(&self, job: J, now: Duration) -> Option<J> {
        if !self.fenced.load(Ordering::Acquire) {
            return Some(job);
        }
        let Some(span) = job.ask().changes() else { return Some(job) };
        let mut recovery = self.recovery.lock();
        if !recovery.fence.overlaps(span) {
            return Some(job);
        }
        recovery.waiting.push_back(Waiting { job, since: now });
        None
    }

    /// The first request that may be sent now.
    pub(crate) fn next_ready(&self) -> Option<J> {
        let mut recovery = self.recovery.lock();
        let Recovery { fence, waiting, .. } = &mut *recovery;
        let free =
            |waits: &Waiting<J>| waits.job.ask().changes().is_none_or(|span| !fence.overlaps(span));
        let at = waiting.iter().position(free)?;
        waiting.remove(at).map(|waits| waits.job)
    }

    /// Takes out who has waited for `limit`.
    pub(crate) fn expire(&self, now: Duration, limit: Duration) -> Vec<J> {
        let mut recovery = self.recovery.lock();
        let mut expired = Vec::new();
        let all = std::mem::take(&mut recovery.waiting);
        for waits in all {
            if now.saturating_sub(waits.since) >= limit {
                expired.push(waits.job);
            } else {
                recovery.waiting.push_back(waits);
            }
        }
        expired
    }

    /// Since when the first of those who wait does so.
    pub(crate) fn waits_since(&self) -> Option<Duration> {
        self.recovery.lock().waiting.iter().map(|waits| waits.since).min()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.recovery.lock().waiting.len()
    }

    pub(crate) fn fence(&self, link: LinkId, cookie: u64, span: Span) {
        self.change_fence(|fence| fence.add(link, cookie, span));
    }

    pub(crate) fn resolve(&self, link: LinkId, cookie: u64) {
        if self.fenced.load(Ordering::Acquire) {
            self.change_fence(|fence| fence.resolve(link, cookie));
        }
    }

    pub(crate) fn settle(&self, link: LinkId) {
        self.change_fence(|fence| fence.settle(link));
    }

    #[cfg(test)]
    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Acquire)
    }

    fn change_fence(&self, change: impl FnOnce(&mut Fence)) {
        let mut recovery = self.recovery.lock();
        change(&mut recovery.fence);
        self.fenced.store(!recovery.fence.is_empty(), Ordering::Release);
    }
}
