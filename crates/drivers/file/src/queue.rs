//! One hardware queue: its operations, and the task that waits for them.

use std::io;
use std::mem;
use std::sync::Arc;

use blockyard_blkmq::{Busy, EndBatch, HctxHandle, Request, Status};
use blockyard_buf::Pool as BufferPool;
use blockyard_sys::{
    Completion, EventWatch, Files, IoEngine, IoQueue, Operation, Pool, Writer, uring,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::context::{Context, QueueContext};
use crate::driver::File;
use crate::job::{self, Job, Next};
use crate::sync::{Batch, Syncs};

/// The most operations that a hardware queue has out, whatever its depth. Beyond, the block layer keeps them.
pub(crate) const MAX_OUT: u32 = 1024;

/// Whose an operation is.
pub(crate) enum Owner {
    Job(Job),
    /// A sync: this queue's and others'.
    Syncs(Batch),
}

/// A hardware queue of a disk in a file.
pub struct Queue {
    operations: IoQueue<Owner>,
    context: QueueContext,
    handle: HctxHandle<File>,
    completed: Vec<Completion<Owner>>,
    ended: EndBatch<File>,
    /// A request was handed back.
    refused: bool,
    reaper: JoinHandle<()>,
}

impl Queue {
    /// A queue on a file, whose completions come by `runtime`.
    pub(crate) fn new(
        handle: HctxHandle<File>,
        engine: IoEngine,
        files: &Files,
        (threads, writer): (&Pool, Option<Writer<Owner>>),
        runtime: &Handle,
        shared: Arc<Context>,
    ) -> Result<Self, uring::Unavailable> {
        // One more for a sync, which may be for other queues' jobs only.
        let depth = handle.depth().clamp(1, MAX_OUT) + 1;
        let mut operations = IoQueue::new(files, engine, threads, depth)?;
        if let Some(writer) = writer {
            operations.write_by(writer);
        }
        let event = EventWatch::new(operations.event(), runtime)?;
        let context = QueueContext { shared, pool: BufferPool::default() };
        let reaper = runtime.spawn(reap(event, handle.clone()));
        Ok(Self {
            operations,
            context,
            handle,
            completed: Vec::new(),
            ended: EndBatch::default(),
            refused: false,
            reaper,
        })
    }

    /// Takes a request; [`Queue::turn`] sends it.
    pub(crate) fn take(&mut self, rq: Request<File>) -> Result<(), Busy<File>> {
        if self.operations.out() >= MAX_OUT as usize {
            self.refused = true;
            return Err(Busy::Device(rq));
        }
        match Job::start(rq, &self.context) {
            // Nothing of it is out, and there may be no turn for it.
            Next::End(rq, status) => rq.end(status),
            next => self.go_on(next),
        }
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
                self.completed(completion);
            }
            self.completed = completed;
            self.ended.end();
            if self.operations.out() == before {
                break;
            }
        }
        if count > 0 && mem::take(&mut self.refused) {
            self.handle.run();
        }
        count
    }

    fn completed(&mut self, completion: Completion<Owner>) {
        let Completion { operation, token, result } = completion;
        match token {
            Owner::Job(job) => {
                let next = Job::completed(operation, job, result, &self.context);
                self.go_on(next);
            }
            Owner::Syncs(batch) => self.synced(batch, result),
        }
    }

    fn synced(&mut self, batch: Batch, result: io::Result<usize>) {
        let next = match result {
            Ok(_) if self.context.is_whole() => batch.ended(Status::Ok),
            Ok(_) => batch.ended(Status::Io),
            // Whatever it is called: `EAGAIN`, say, may be what became of a write, and is told once.
            Err(err) => {
                self.context.health.flush_failed(&err);
                batch.ended(job::status(&err))
            }
        };
        self.sync(next);
    }

    fn sync(&mut self, batch: Option<Batch>) {
        if let Some(batch) = batch {
            let pushed = self.operations.push(Operation::Sync, Owner::Syncs(batch));
            debug_assert!(pushed.is_ok(), "one sync is out at a time, and has room of its own");
        }
    }

    fn go_on(&mut self, next: Next) {
        let pushed = match next {
            Next::Do(operation, job) => self.operations.push(operation, Owner::Job(job)),
            Next::Wait(operation, job) => self.operations.push_blocking(operation, Owner::Job(job)),
            Next::Sync(job) => return self.sync(Syncs::join(job, &self.context.shared)),
            Next::End(rq, status) => return self.ended.add(rq, status),
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

/// Waits for completions that came after their submission, and for what others have pushed, as long as the hardware queue
/// lives. The thread that runs this outlives the queue, others may not.
async fn reap(event: EventWatch, handle: HctxHandle<File>) {
    let turn = |queue: &mut Queue| {
        queue.operations.submit_here();
        queue.turn();
    };
    while event.happened().await.is_ok() && handle.with(turn).is_some() {}
}
