//! Syncing the file. All queues have one owner of it: a sync that fails is told to one who asked and no other, and takes
//! the error along (see `Files` in `sys`), so that of two at once the second would promise what is lost.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockyard_blkmq::Status;

use crate::context::Context;
use crate::job::{Job, Next};

/// Which jobs wait for a sync. One sync is out at a time; whoever comes meanwhile waits for the next, as what is out may
/// not cover what he wants to be durable.
#[derive(Default)]
pub(crate) struct Syncs(Mutex<State>);

#[derive(Default)]
struct State {
    is_out: bool,
    waiting: Vec<Job>,
}

/// Jobs of any queues that one sync is for. If it is dropped before that has ended, they fail.
pub(crate) struct Batch {
    jobs: Vec<Job>,
    context: Arc<Context>,
}

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `job` wants to be durable. `Some`: a sync is to be made for it now; else it goes along with the next.
    pub(crate) fn join(job: Job, context: &Arc<Context>) -> Option<Batch> {
        let mut state = context.syncs.lock();
        state.waiting.push(job);
        state.next(context)
    }
}

impl State {
    fn next(&mut self, context: &Arc<Context>) -> Option<Batch> {
        if self.is_out || self.waiting.is_empty() {
            return None;
        }
        self.is_out = true;
        Some(Batch { jobs: mem::take(&mut self.waiting), context: Arc::clone(context) })
    }
}

impl Batch {
    /// The sync has ended. Gives those that are to be synced next.
    pub(crate) fn ended(mut self, mut status: Status) -> Option<Self> {
        let context = Arc::clone(&self.context);
        // Somebody else may have heard meanwhile of what this sync did not.
        if context.health.has_failed_flush() {
            status = Status::Io;
        }
        loop {
            // A failure is known before anybody hears of it, and is everybody's who waits.
            for job in self.jobs.drain(..) {
                if let Next::End(rq, status) = job.end(status) {
                    rq.end(status);
                }
            }
            let mut state = context.syncs.lock();
            state.is_out = false;
            let next = state.next(&context);
            if state.waiting.capacity() == 0 {
                state.waiting = mem::take(&mut self.jobs);
            }
            drop(state);
            match next {
                Some(next) if context.health.has_failed_flush() => {
                    self = next;
                    status = Status::Io;
                }
                next => return next,
            }
        }
    }
}

impl Drop for Batch {
    /// The queue that synced is gone, with what it had out: nobody waits for a sync that will not end.
    fn drop(&mut self) {
        if !self.jobs.is_empty() {
            let mut state = self.context.syncs.lock();
            state.is_out = false;
            let waiting = mem::take(&mut state.waiting);
            drop(state);
            drop(waiting);
        }
    }
}
