//! A queue of operations on one file, whatever carries them out.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::event::Event;
use crate::lane::Lane;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;
use crate::uring::{Ring, Unavailable};

/// What carries operations out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring, and threads for what it has no operation for.
    Uring,
    /// Threads.
    Threads,
}

/// Operations on a file: pushed, carried out while the caller does something else, and given back with a token
/// of the caller's.
///
/// One caller at a time uses it; which thread that is does not matter.
pub struct IoQueue<T> {
    ring: Option<Ring<T>>,
    lane: Lane<T>,
    depth: usize,
    event: Arc<Event>,
}

impl<T: Send + 'static> IoQueue<T> {
    /// A queue that holds `depth` operations on `file`.
    ///
    /// # Errors
    /// Why there is no io_uring, if it was asked for; [`Unavailable::Failed`] where descriptors are used up.
    pub fn new(
        file: &Arc<OwnedFd>,
        engine: IoEngine,
        pool: &Pool,
        depth: u32,
    ) -> Result<Self, Unavailable> {
        let event = Arc::new(Event::new().map_err(Unavailable::Failed)?);
        let ring = match engine {
            IoEngine::Uring => Some(Ring::new(Arc::clone(file), Arc::clone(&event), depth)?),
            IoEngine::Threads => None,
        };
        let lane = Lane::new(Arc::clone(file), pool.clone(), Arc::clone(&event));
        Ok(Self { ring, lane, depth: depth as usize, event })
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
        self.lane.out() + self.ring.as_ref().map_or(0, Ring::out)
    }

    /// Adds an operation, to be submitted by the next [`IoQueue::turn`].
    ///
    /// # Errors
    /// The operation and its token, if as many as the queue holds are out.
    ///
    /// # Panics
    /// If it has more than [`Operation::MAX_SEGMENTS`], or reads into read-only memory.
    pub fn push(&mut self, operation: Operation, token: T) -> Result<(), (Operation, T)> {
        match &mut self.ring {
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

    /// Submits all that was pushed, and appends what has completed to `completions`.
    ///
    /// # Errors
    /// The kernel could not take all of it now; it stays in the queue for the next turn.
    pub fn turn(&mut self, completions: &mut Vec<Completion<T>>) -> io::Result<()> {
        if self.lane.out() > 0 {
            self.lane.turn(completions);
        }
        self.ring.as_mut().map_or(Ok(()), |ring| ring.turn(completions))
    }
}
