//! One hardware queue: its operations, and the task that waits for them.

use std::io;
use std::mem;
use std::sync::Arc;

use blockyard_blkmq::{Busy, HctxHandle, Request};
use blockyard_sys::{Completion, EventWatch, IoEngine, IoQueue, Pool, uring};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::driver::File;
use crate::job::{Context, Job, Next};

/// The most operations that a hardware queue has out, whatever its depth. Beyond, the block layer keeps them.
pub(crate) const MAX_OUT: u32 = 1024;

/// A hardware queue of a disk in a file.
pub struct Queue {
    operations: IoQueue<Job>,
    context: Arc<Context>,
    handle: HctxHandle<File>,
    completed: Vec<Completion<Job>>,
    /// A request was handed back.
    refused: bool,
    reaper: JoinHandle<()>,
}

impl Queue {
    /// A queue on `file`, whose completions come by `runtime`.
    pub(crate) fn new(
        handle: HctxHandle<File>,
        engine: IoEngine,
        file: &Arc<std::os::fd::OwnedFd>,
        threads: &Pool,
        runtime: &Handle,
        context: Arc<Context>,
    ) -> Result<Self, uring::Unavailable> {
        let depth = handle.depth().clamp(1, MAX_OUT);
        let operations = IoQueue::new(file, engine, threads, depth)?;
        let event = EventWatch::new(operations.event(), runtime)?;
        let reaper = runtime.spawn(reap(event, handle.clone()));
        Ok(Self { operations, context, handle, completed: Vec::new(), refused: false, reaper })
    }

    /// Takes a request; [`Queue::turn`] sends it.
    pub(crate) fn take(&mut self, rq: Request<File>) -> Result<(), Busy<File>> {
        if self.operations.out() >= MAX_OUT as usize {
            self.refused = true;
            return Err(Busy::Device(rq));
        }
        let next = Job::start(rq, &self.context);
        self.go_on(next);
        Ok(())
    }

    /// Sends what was taken and ends what is done, until neither has anything left to do; says how many
    /// operations completed.
    pub(crate) fn turn(&mut self) -> usize {
        let mut count = 0;
        loop {
            let mut completed = mem::take(&mut self.completed);
            if let Err(err) = self.operations.turn(&mut completed) {
                self.not_taken(&err);
            }
            count += completed.len();
            let before = self.operations.out();
            for completion in completed.drain(..) {
                let next = Job::completed(completion, &self.context);
                self.go_on(next);
            }
            self.completed = completed;
            if self.operations.out() == before {
                break;
            }
        }
        if count > 0 && mem::take(&mut self.refused) {
            self.handle.run();
        }
        count
    }

    fn go_on(&mut self, next: Next) {
        let pushed = match next {
            Next::Do(operation, job) => self.operations.push(operation, job),
            Next::Wait(operation, job) => self.operations.push_blocking(operation, job),
            Next::Ended => return,
        };
        // A job has one operation out at a time, and `take` counts them: there is room. If not, dropping the
        // job ends its request.
        debug_assert!(pushed.is_ok(), "more operations than requests");
    }

    /// Memory for the kernel's own part of an operation is short. What was pushed stays; whoever waits for the
    /// event tries again.
    fn not_taken(&mut self, err: &io::Error) {
        self.context.health.kernel_refused(err);
        self.operations.event().signal();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.reaper.abort();
    }
}

/// Waits for completions that came after their submission, as long as the hardware queue lives.
async fn reap(event: EventWatch, handle: HctxHandle<File>) {
    while event.happened().await.is_ok() && handle.with(Queue::turn).is_some() {}
}
