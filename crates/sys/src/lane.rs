//! Operations that threads carry out: the fallback where there is no io_uring, and the way for what io_uring
//! has no operation for. What takes no time is done by the caller itself.

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use blockyard_buf::Segment;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::event::Event;
use crate::io_queue::Files;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;
use crate::transfer;
use crate::uring::LONG;
use crate::writer::Writer;

/// The most bytes that are moved at once, on the caller's thread.
const MOST_AT_ONCE: usize = 256 << 10;
/// Threads that copy from the page cache for a queue: a thread copies faster than its client takes.
const MOST_COPIERS: usize = 4;
/// `RAMFS_MAGIC` of linux/magic.h.
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

/// One queue's way to the threads and back.
pub(crate) struct Lane<T> {
    files: Files,
    pool: Pool,
    /// Who copies what the page cache has, and waits for nothing.
    copiers: Pool,
    /// Who syncs: behind no operations that wait.
    syncer: Pool,
    done: Arc<Done<T>>,
    pushed: Vec<(Operation, T)>,
    out: usize,
    now: Now,
    /// Where writes are carried out, if that is not each by itself, and those that are to be.
    writer: Option<Writer<T>>,
    writes: Vec<(Operation, T)>,
}

/// What is done at once, on the caller's thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Now {
    Nothing,
    /// Reads, as far as the page cache has what they want.
    CachedReads,
    /// Reads, writes and syncs: the file is in memory, and nowhere else.
    Transfers,
}

/// What is done, for the queue to take.
pub(crate) struct Done<T> {
    state: Mutex<Gathered<T>>,
    event: Arc<Event>,
}

struct Gathered<T> {
    list: Vec<Completion<T>>,
    /// The queue is told that there is something. Whoever takes it takes all, so that once is enough.
    told: bool,
}

impl<T> Done<T> {
    pub(crate) fn new(event: Arc<Event>) -> Self {
        Self { state: Mutex::new(Gathered { list: Vec::new(), told: false }), event }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn take(&self) -> Vec<Completion<T>> {
        let mut taken = Vec::new();
        self.take_to(&mut taken);
        taken
    }

    /// Appends all that is there; says how much that was.
    fn take_to(&self, completions: &mut Vec<Completion<T>>) -> usize {
        let mut state = self.lock();
        state.told = false;
        let count = state.list.len();
        completions.append(&mut state.list);
        count
    }

    fn push(&self, completion: Completion<T>) {
        let tells = {
            let mut state = self.lock();
            state.list.push(completion);
            !mem::replace(&mut state.told, true)
        };
        if tells {
            self.event.signal();
        }
    }

    /// It is there for the queue if that happens to look. It is told of it by [`Done::tell`].
    pub(crate) fn put(&self, completion: Completion<T>) {
        self.lock().list.push(completion);
    }

    /// Tells the queue that something is there, unless it knows, or has it.
    pub(crate) fn tell(&self) {
        let tells = {
            let mut state = self.lock();
            !state.list.is_empty() && !mem::replace(&mut state.told, true)
        };
        if tells {
            self.event.signal();
        }
    }
}

impl<T: Send + 'static> Lane<T> {
    pub(crate) fn new(files: &Files, pool: Pool, event: Arc<Event>) -> Self {
        let file = &files.data;
        let done = Arc::new(Done::new(event));
        let now = if is_in_memory(file.as_fd()) {
            Now::Transfers
        } else if fcntl_getfl(file).is_ok_and(|flags| !flags.contains(OFlags::DIRECT)) {
            Now::CachedReads
        } else {
            // Direct I/O always waits for the device, whatever it was told.
            Now::Nothing
        };
        let files = files.clone();
        Self {
            files,
            pool,
            copiers: Pool::new(MOST_COPIERS),
            syncer: Pool::new(1),
            done,
            pushed: Vec::new(),
            out: 0,
            now,
            writer: None,
            writes: Vec::new(),
        }
    }

    pub(crate) fn set_writer(&mut self, writer: Writer<T>) {
        self.writer = Some(writer);
    }

    /// Whether it is one of those that one thread does together.
    pub(crate) fn is_for_writer(&self, operation: &Operation) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.takes(operation))
    }

    /// Whether this takes no longer here than it takes to hand it to another: the kernel would have threads of its own do what
    /// is asked of a file in memory by io_uring.
    pub(crate) fn is_done_at_once(&self, operation: &Operation) -> bool {
        self.now == Now::Transfers
            && match operation {
                Operation::Read { .. } | Operation::Write { .. } => operation.len() <= MOST_AT_ONCE,
                Operation::Sync => true,
                _ => false,
            }
    }

    /// Whether that thread is at work.
    pub(crate) fn is_writing(&self) -> bool {
        self.writer.as_ref().is_some_and(Writer::is_running)
    }

    /// Whether it is a read that is done here, as far as that goes, and long. Writes would wait for each other.
    fn is_long(&self, operation: &Operation) -> bool {
        let is_here = match self.now {
            Now::Nothing => false,
            Now::CachedReads => true,
            Now::Transfers => self.is_done_at_once(operation),
        };
        is_here && matches!(operation, Operation::Read { .. }) && operation.len() >= LONG
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
        // Of several that take longer to copy than to hand over, half are others', and the first, so that the rest is done here
        // meanwhile.
        let mut shared = pushed.iter().filter(|(operation, _)| self.is_long(operation)).count() / 2;
        for (mut operation, token) in pushed.drain(..) {
            if shared > 0 && self.is_long(&operation) {
                shared -= 1;
                self.share(operation, token);
            } else if self.is_done_at_once(&operation) {
                let result = operation.run(self.files.of(&operation).as_fd());
                completions.push(Completion { operation, token, result });
            } else if self.is_for_writer(&operation) {
                self.writes.push((operation, token));
            } else if let Some(result) = self.try_now(&operation) {
                completions.push(Completion { operation, token, result: Ok(result) });
            } else {
                self.send(operation, token);
            }
        }
        self.pushed = pushed;
        if let Some(writer) = self.writer.as_ref().filter(|_| !self.writes.is_empty()) {
            self.out += self.writes.len();
            writer.send(&mut self.writes, &self.files.data, &self.done);
        }
        if self.out > 0 {
            self.out -= self.done.take_to(completions);
        }
    }

    fn send(&mut self, operation: Operation, token: T) {
        self.out += 1;
        let file = Arc::clone(self.files.of(&operation));
        let is_sync = matches!(operation, Operation::Sync);
        let pool = if is_sync { &self.syncer } else { &self.pool };
        carry_out(pool, (operation, token), file, Arc::clone(&self.done));
    }

    /// Has a read copied by a thread that does nothing else, so that it is behind no operation that waits for storage. What
    /// turns out not to be cached is one of these.
    fn share(&mut self, mut operation: Operation, token: T) {
        self.out += 1;
        let (file, done) = (Arc::clone(&self.files.data), Arc::clone(&self.done));
        let (pool, is_in_memory) = (self.pool.clone(), self.now == Now::Transfers);
        self.copiers.execute(Box::new(move || {
            let copied = match &operation {
                _ if is_in_memory => Some(operation.run(file.as_fd())),
                Operation::Read { offset, memory } => {
                    read_cached(file.as_fd(), *offset, memory).ok().flatten().map(Ok)
                }
                _ => None,
            };
            match copied {
                Some(result) => {
                    drop(file);
                    done.push(Completion { operation, token, result });
                }
                None => carry_out(&pool, (operation, token), file, done),
            }
        }));
    }

    /// A read from the page cache takes less time than it takes to wake a thread.
    fn try_now(&mut self, operation: &Operation) -> Option<usize> {
        let Operation::Read { offset, memory } = operation else { return None };
        if self.now != Now::CachedReads {
            return None;
        }
        read_cached(self.files.data.as_fd(), *offset, memory).unwrap_or_else(|_| {
            self.now = Now::Nothing;
            None
        })
    }
}

/// Has an operation carried out by a thread that may wait.
fn carry_out<T: Send + 'static>(
    pool: &Pool,
    (mut operation, token): (Operation, T),
    file: Arc<OwnedFd>,
    done: Arc<Done<T>>,
) {
    pool.execute(Box::new(move || {
        let result = operation.run(file.as_fd());
        // Whoever hears of the end may close the file, and expect it to be closed then.
        drop(file);
        done.push(Completion { operation, token, result });
    }));
}

/// Reads what the page cache has of it: `None` if that is nothing.
///
/// # Errors
/// The file is not read so.
fn read_cached(file: BorrowedFd<'_>, offset: u64, memory: &[Segment]) -> io::Result<Option<usize>> {
    match transfer::read(file, offset, memory, true) {
        // None at all may be the end of the file, or not: let a thread that may wait find out.
        Ok(0) => Ok(None),
        Ok(moved) => Ok(Some(moved)),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(err) => Err(err),
    }
}

/// Whether a file is in memory and nowhere else (tmpfs(5)), so that nothing it is asked waits for storage.
pub(crate) fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    // The nodes of devices are on such a file system, too.
    let is_regular = fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    is_regular
        && fstatfs(file).is_ok_and(|fs| [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.f_type))
}
