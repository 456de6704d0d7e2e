//! A queue of operations on one file, whatever carries them out.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use crate::event::Event;
use crate::lane::Lane;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;
use crate::ring::Turn as _;
use crate::uring::{LONG, Ring, Unavailable};
use crate::writer::Writer;

/// What carries operations out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring, and threads for what it has no operation for.
    Uring,
    /// Threads.
    Threads,
}

/// A file as a queue has it open: once for its operations, and once more for [`Operation::Sync`].
///
/// A write-back that failed is told once to each open file description (Linux, `Documentation/core-api/errseq.rst`), by
/// whatever call comes first: a sync, a write that is to be durable, on NFS any write that finds no space. With a
/// description that nothing but syncs uses, no other call takes an error from them.
#[derive(Clone, Debug)]
pub struct Files {
    /// What is read and written.
    pub data: Arc<OwnedFd>,
    /// What is synced; another description of the same file, or the same one where nothing is ever synced.
    pub sync: Arc<OwnedFd>,
}

impl Files {
    /// One open file for both.
    #[must_use]
    pub fn one(file: &Arc<OwnedFd>) -> Self {
        Self { data: Arc::clone(file), sync: Arc::clone(file) }
    }

    pub(crate) fn of(&self, operation: &Operation) -> &Arc<OwnedFd> {
        if matches!(operation, Operation::Sync) { &self.sync } else { &self.data }
    }
}

/// Operations on a file: pushed, carried out while the caller does something else, and given back with a token
/// of the caller's.
///
/// One caller at a time uses it, from any thread; but a ring's operations are submitted by one thread only, see
/// [`IoQueue::submit_here`].
pub struct IoQueue<T> {
    ring: Option<Ring<T>>,
    lane: Lane<T>,
    /// What was pushed, and goes to the ring if it stays alone, and else to the lane.
    writes: Vec<(Operation, T)>,
    depth: usize,
    event: Arc<Event>,
    submitter: Option<ThreadId>,
}

thread_local! {
    static HERE: ThreadId = thread::current().id();
}

impl<T: Send + 'static> IoQueue<T> {
    /// A queue that holds `depth` operations on a file.
    ///
    /// # Errors
    /// Why there is no io_uring, if it was asked for; [`Unavailable::Failed`] where descriptors are used up.
    pub fn new(
        files: &Files,
        engine: IoEngine,
        pool: &Pool,
        depth: u32,
    ) -> Result<Self, Unavailable> {
        let event = Arc::new(Event::new().map_err(Unavailable::Failed)?);
        let ring = match engine {
            IoEngine::Uring => Some(Ring::new(files, Arc::clone(&event), depth)?),
            IoEngine::Threads => None,
        };
        let lane = Lane::new(files, pool.clone(), Arc::clone(&event));
        let (writes, depth) = (Vec::new(), depth as usize);
        Ok(Self { ring, lane, writes, depth, event, submitter: None })
    }

    /// From now on what that takes of writes is carried out by it, together with those of other queues of the same file.
    pub fn write_by(&mut self, writer: Writer<T>) {
        self.lane.set_writer(writer);
    }

    /// From now on the calling thread submits to the ring, and must not end before the queue does. What others push, and
    /// what was pushed before the first call, waits for its next [`IoQueue::turn`]; the event calls for that.
    ///
    /// To the kernel a request belongs to the thread that submitted it: if that ends, the request fails with `ECANCELED`
    /// or `EFAULT`, and may have been done in part (io_uring/io_uring.c, `io_uring_try_cancel_requests` and
    /// `io_fallback_tw`).
    pub fn submit_here(&mut self) {
        self.submitter = Some(HERE.with(|here| *here));
    }

    /// Becomes readable, edge by edge, when operations complete later than the [`IoQueue::turn`] that submitted
    /// them: time for another turn.
    #[must_use]
    pub fn event(&self) -> Arc<Event> {
        Arc::clone(&self.event)
    }

    /// Operations that have not come back.
    #[must_use]
    pub fn out(&self) -> usize {
        self.writes.len() + self.lane.out() + self.ring.as_ref().map_or(0, Ring::out)
    }

    /// Adds an operation, to be submitted by the next [`IoQueue::turn`].
    ///
    /// # Errors
    /// The operation and its token, if as many as the queue holds are out.
    ///
    /// # Panics
    /// If it has more than [`Operation::MAX_SEGMENTS`], or reads into read-only memory.
    pub fn push(&mut self, operation: Operation, token: T) -> Result<(), (Operation, T)> {
        if self.out() >= self.depth {
            return Err((operation, token));
        }
        match &mut self.ring {
            Some(_) if Ring::<T>::takes(&operation) && self.lane.is_for_writer(&operation) => {
                operation.assert_valid();
                self.writes.push((operation, token));
                Ok(())
            }
            Some(ring)
                if Ring::<T>::takes(&operation) && !self.lane.is_done_at_once(&operation) =>
            {
                ring.push(operation, token)
            }
            _ => self.push_blocking(operation, token),
        }
    }

    /// As [`IoQueue::push`], but a thread does it.
    ///
    /// # Errors
    /// As [`IoQueue::push`].
    ///
    /// # Panics
    /// As [`IoQueue::push`].
    pub fn push_blocking(&mut self, operation: Operation, token: T) -> Result<(), (Operation, T)> {
        if self.lane.out() >= self.depth {
            return Err((operation, token));
        }
        self.lane.push(operation, token);
        Ok(())
    }

    /// Submits all that was pushed, or calls the thread that does, and appends what has completed to `completions`.
    ///
    /// # Errors
    /// The kernel could not take all of it now; it stays in the queue for the next turn.
    pub fn turn(&mut self, completions: &mut Vec<Completion<T>>) -> io::Result<()> {
        if !self.writes.is_empty() {
            self.sort_writes();
        }
        if self.lane.out() > 0 {
            self.lane.turn(completions);
        }
        let Some(ring) = &mut self.ring else { return Ok(()) };
        if self.submitter == Some(HERE.with(|here| *here)) {
            return ring.turn(completions);
        }
        if ring.has_pushed() {
            self.event.signal();
        }
        ring.drain(completions);
        Ok(())
    }

    /// Writes that have come together are done by one thread, and long ones: for those of several queues the kernel's threads
    /// would spin for the file's lock. A short one alone is sooner done by the kernel's.
    fn sort_writes(&mut self) {
        if let Some(ring) = &mut self.ring
            && self.writes.len() == 1
            && self.writes.iter().all(|(operation, _)| operation.len() < LONG)
            && !self.lane.is_writing()
            && let Some((operation, token)) = self.writes.pop()
        {
            // There is room for as many as are out in all.
            self.writes.extend(ring.push(operation, token).err());
        }
        self.writes.drain(..).for_each(|(operation, token)| self.lane.push(operation, token));
    }
}
