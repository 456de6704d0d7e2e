//! Operations that threads carry out: the fallback where there is no io_uring, and the way for what io_uring
//! has no operation for.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl};

use crate::event::Event;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;
use crate::transfer;

/// One queue's way to the threads and back.
pub(crate) struct Lane<T> {
    file: Arc<OwnedFd>,
    pool: Pool,
    done: Arc<Done<T>>,
    pushed: Vec<(Operation, T)>,
    out: usize,
    /// Whether reads are first tried without waiting.
    read_now: bool,
}

struct Done<T> {
    list: Mutex<Vec<Completion<T>>>,
    event: Arc<Event>,
}

impl<T> Done<T> {
    fn push(&self, completion: Completion<T>) {
        let first = {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.push(completion);
            list.len() == 1
        };
        // Whoever drains the list takes all of it, so that one signal is enough for what gathered since the
        // last time.
        if first {
            self.event.signal();
        }
    }
}

impl<T: Send + 'static> Lane<T> {
    pub(crate) fn new(file: Arc<OwnedFd>, pool: Pool, event: Arc<Event>) -> Self {
        let done = Arc::new(Done { list: Mutex::default(), event });
        // Direct I/O always waits for the device, whatever it was told.
        let read_now = fcntl_getfl(&file).is_ok_and(|flags| !flags.contains(OFlags::DIRECT));
        Self { file, pool, done, pushed: Vec::new(), out: 0, read_now }
    }

    pub(crate) fn push(&mut self, operation: Operation, token: T) {
        operation.assert_valid();
        self.pushed.push((operation, token));
    }

    /// Operations that have not come back.
    pub(crate) fn out(&self) -> usize {
        self.pushed.len() + self.out
    }

    /// Sends what was pushed, and takes what is done.
    pub(crate) fn turn(&mut self, completions: &mut Vec<Completion<T>>) {
        let mut pushed = mem::take(&mut self.pushed);
        for (operation, token) in pushed.drain(..) {
            if let Some(result) = self.try_now(&operation) {
                completions.push(Completion { operation, token, result: Ok(result) });
            } else {
                self.send(operation, token);
            }
        }
        self.pushed = pushed;
        if self.out > 0 {
            let mut list = self.done.list.lock().unwrap_or_else(PoisonError::into_inner);
            self.out -= list.len();
            completions.append(&mut list);
        }
    }

    fn send(&mut self, mut operation: Operation, token: T) {
        self.out += 1;
        let (file, done) = (Arc::clone(&self.file), Arc::clone(&self.done));
        self.pool.execute(Box::new(move || {
            let result = operation.run(file.as_fd());
            // Whoever hears of the end may close the file, and expect it to be closed then.
            drop(file);
            done.push(Completion { operation, token, result });
        }));
    }

    /// A read from the page cache takes less time than it takes to wake a thread.
    fn try_now(&mut self, operation: &Operation) -> Option<usize> {
        let Operation::Read { offset, memory } = operation else { return None };
        if !self.read_now {
            return None;
        }
        match transfer::read(self.file.as_fd(), *offset, memory, true) {
            // None at all may be the end of the file, or not: let the thread find out.
            Ok(0) => None,
            Ok(moved) => Some(moved),
            Err(err) => {
                self.read_now = err.kind() == io::ErrorKind::WouldBlock;
                None
            }
        }
    }
}
