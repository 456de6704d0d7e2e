//! Writes through the page cache of a file system that does not take them without waiting, and copies from other files: one
//! thread at a time carries out all that the queues of a file have.
//!
//! io_uring would hand each of them to a thread of the kernel's, and have these go one after the other (`REQ_F_HASH`): a wake-up
//! and a switch for each. The file system lets one in at a time anyway.

use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::io_queue::Files;
use crate::lane::Done;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;

/// `EXT4_SUPER_MAGIC` of linux/magic.h, which is that of ext2 and ext3, too. ext4 refuses a buffered write that is not to
/// wait (fs/ext4/file.c, `ext4_buffered_write_iter`).
const EXT4_SUPER_MAGIC: libc::c_long = 0xef53;
/// Bytes that are written, operations that are done, and time that has passed, before a queue is woken for them.
const GROUP_BYTES: usize = 128 << 10;
const GROUP: usize = 16;
const GROUP_TIME: Duration = Duration::from_millis(1);

/// What all queues of a file have to be written, and have to be copied to it: a write does not wait behind a copy, which may wait
/// for the storage of another file.
pub struct Writer<T> {
    /// Plain writes, if they are for it.
    writes: Option<Work<T>>,
    copies: Work<T>,
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        Self { writes: self.writes.clone(), copies: self.copies.clone() }
    }
}

/// A list, and the thread that carries it out while there is something on it: of its own, as what others have for theirs may take
/// long.
struct Work<T> {
    list: Arc<Mutex<List<T>>>,
    thread: Pool,
}

impl<T> Clone for Work<T> {
    fn clone(&self) -> Self {
        Self { list: Arc::clone(&self.list), thread: self.thread.clone() }
    }
}

struct List<T> {
    waiting: Vec<Waiting<T>>,
    is_running: bool,
}

/// An operation with its token, and whose queue is told.
type Waiting<T> = (Operation, T, Arc<Done<T>>);

impl<T: Send + 'static> Writer<T> {
    /// For the file, if it is one that this is for.
    #[must_use]
    pub fn of(files: &Files) -> Option<Self> {
        let file = &files.data;
        let is_regular =
            fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        let is_buffered = fcntl_getfl(file).is_ok_and(|flags| !flags.contains(OFlags::DIRECT));
        let is_ext4 = fstatfs(file).is_ok_and(|fs| fs.f_type == EXT4_SUPER_MAGIC);
        (is_regular && is_buffered).then(|| Self::new(is_ext4))
    }

    fn new(takes_writes: bool) -> Self {
        Self { writes: takes_writes.then(Work::new), copies: Work::new() }
    }

    /// Whether the operation is one. A write that is to be durable waits for storage: others are not to wait behind it.
    pub(crate) fn takes(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Write { durable: false, .. } => self.writes.is_some(),
            Operation::CopyRange { .. } => true,
            _ => false,
        }
    }

    /// Whether writes are carried out just now.
    pub(crate) fn is_running(&self) -> bool {
        self.writes.as_ref().is_some_and(|work| work.lock().is_running)
    }

    /// Has `operations` carried out, which is empty then.
    pub(crate) fn send(
        &self,
        operations: &mut Vec<(Operation, T)>,
        file: &Arc<OwnedFd>,
        done: &Arc<Done<T>>,
    ) {
        let is_copy = |(what, _): &mut (Operation, T)| matches!(what, Operation::CopyRange { .. });
        self.copies.add(operations.extract_if(.., is_copy), file, done);
        if let Some(writes) = &self.writes {
            writes.add(operations.drain(..), file, done);
        }
    }
}

impl<T: Send + 'static> Work<T> {
    fn new() -> Self {
        let list = List { waiting: Vec::new(), is_running: false };
        Self { list: Arc::new(Mutex::new(list)), thread: Pool::new(1) }
    }

    fn add(
        &self,
        operations: impl Iterator<Item = (Operation, T)>,
        file: &Arc<OwnedFd>,
        done: &Arc<Done<T>>,
    ) {
        let is_running = {
            let mut list = self.lock();
            list.waiting.extend(operations.map(|(what, token)| (what, token, Arc::clone(done))));
            let is_running = list.is_running || list.waiting.is_empty();
            list.is_running |= !list.waiting.is_empty();
            is_running
        };
        if !is_running {
            let (list, file) = (Arc::clone(&self.list), Arc::clone(file));
            self.thread.execute(Box::new(move || carry_out(&list, file)));
        }
    }
}

impl<T> Work<T> {
    fn lock(&self) -> MutexGuard<'_, List<T>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is done for a queue that was not woken for it.
struct Group<T> {
    /// What was done last: the queue has it before something else is begun.
    last: Option<Completion<T>>,
    of: Option<Arc<Done<T>>>,
    bytes: usize,
    count: usize,
    told: Instant,
}

impl<T> Group<T> {
    fn new() -> Self {
        Self { last: None, of: None, bytes: 0, count: 0, told: Instant::now() }
    }

    /// Hands over what is done before something for that queue is begun, however long that takes, and wakes its queue, unless
    /// that can wait.
    fn give_before(&mut self, next: &Arc<Done<T>>) {
        let is_copy =
            matches!(self.last, Some(Completion { operation: Operation::CopyRange { .. }, .. }));
        let is_same = self.of.as_ref().is_some_and(|before| Arc::ptr_eq(before, next));
        let is_full = self.bytes >= GROUP_BYTES || self.count >= GROUP;
        if is_copy || !is_same || is_full || self.told.elapsed() >= GROUP_TIME {
            return self.tell();
        }
        self.give();
    }

    fn add(&mut self, completion: Completion<T>, of: Arc<Done<T>>) {
        self.bytes += completion.operation.len();
        self.count += 1;
        (self.last, self.of) = (Some(completion), Some(of));
    }

    fn give(&mut self) {
        if let (Some(of), Some(last)) = (&self.of, self.last.take()) {
            of.put(last);
        }
    }

    fn tell(&mut self) {
        self.give();
        if let Some(of) = &self.of {
            of.tell();
        }
        (self.bytes, self.count, self.told) = (0, 0, Instant::now());
    }
}

/// Carries out what waits, and what comes meanwhile.
fn carry_out<T>(list: &Mutex<List<T>>, file: Arc<OwnedFd>) {
    carry_out_by(list, file, |operation, file| operation.run(file.as_fd()));
}

fn carry_out_by<T>(
    list: &Mutex<List<T>>,
    file: Arc<OwnedFd>,
    mut run: impl FnMut(&mut Operation, &OwnedFd) -> io::Result<usize>,
) {
    let (mut waiting, mut group) = (Vec::new(), Group::new());
    loop {
        {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut waiting, &mut list.waiting);
            list.is_running = !waiting.is_empty();
        }
        if waiting.is_empty() {
            // Whoever hears of the end may close the file, and expect it to be closed then.
            drop(file);
            group.tell();
            return;
        }
        for (mut operation, token, of) in waiting.drain(..) {
            group.give_before(&of);
            let result = run(&mut operation, &file);
            group.add(Completion { operation, token, result }, of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use blockyard_buf::{FileRange, Segment, Segments};

    use super::*;
    use crate::event::Event;

    fn write(offset: u64, byte: u8, len: usize) -> Operation {
        let memory = std::iter::once(Segment::from_vec(vec![byte; len])).collect();
        Operation::Write { offset, memory, durable: false }
    }

    #[test]
    fn all_are_carried_out_in_order_and_the_file_is_let_go_before_the_last_is_told_of() {
        let own = tempfile::tempfile().unwrap();
        let file = Arc::new(OwnedFd::from(own.try_clone().unwrap()));
        let done = Arc::new(Done::new(Arc::new(Event::new().unwrap())));
        let waiting = (0..100_u8)
            .map(|at| {
                let len = if at % 10 == 0 { 65536 } else { 512 };
                (write(u64::from(at) * 512, at, len), at, Arc::clone(&done))
            })
            .collect();
        let list = Mutex::new(List { waiting, is_running: true });
        let kept = Arc::downgrade(&file);
        carry_out(&list, file);
        assert!(kept.upgrade().is_none() && !list.lock().unwrap().is_running);
        let completions = done.take();
        assert!(completions.iter().map(|done| done.token).eq(0..100));
        for at in 0..100_u8 {
            let mut found = [0; 1];
            own.read_exact_at(&mut found, u64::from(at) * 512 + 1).unwrap();
            assert_eq!(found, [at], "the last one that wrote there");
        }
    }

    /// A file that others serve, which takes its time.
    #[test]
    fn a_write_waits_for_no_copy_and_what_is_done_for_no_other_queue() {
        let own = tempfile::tempfile().unwrap();
        let file = Arc::new(OwnedFd::from(own));
        let (stand, stands) = std::sync::mpsc::channel::<()>();
        let writer = Writer::new(true);
        // The thread of copies is kept by something else.
        writer.copies.thread.execute(Box::new(move || _ = stands.recv()));
        let queues = [(); 2].map(|()| Arc::new(Done::new(Arc::new(Event::new().unwrap()))));
        let mut operations = vec![(copy(&file), 0), (write(0, 1, 512), 1)];
        writer.send(&mut operations, &file, &queues[0]);
        writer.send(&mut vec![(write(0, 2, 512), 2)], &file, &queues[1]);
        assert!(operations.is_empty());
        let told = |queue: &Done<u8>| {
            let begun = Instant::now();
            loop {
                let told: Vec<u8> = queue.take().iter().map(|done| done.token).collect();
                if !told.is_empty() {
                    return told;
                }
                assert!(begun.elapsed() < Duration::from_secs(60), "nothing is told");
                std::thread::yield_now();
            }
        };
        assert_eq!((told(&queues[0]), told(&queues[1])), (vec![1], vec![2]));
        drop(stand);
        assert_eq!(told(&queues[0]), [0]);
    }

    fn copy(file: &Arc<OwnedFd>) -> Operation {
        let from = FileRange::new(file, 0, 512);
        Operation::CopyRange { offset: 0, from, may_share: false }
    }

    /// Whatever it waits for: storage that is slow, or room in memory.
    #[test]
    fn what_is_done_is_there_while_the_next_one_waits() {
        let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let event = Arc::new(Event::new().unwrap());
        let done = Arc::new(Done::new(Arc::clone(&event)));
        let is_told = || rustix::io::read(&*event, &mut [0; 8]).is_ok();
        let operations = [write(0, 1, 512), write(512, 2, 512), copy(&file), copy(&file)];
        let waiting = (0..).zip(operations).map(|(at, what)| (what, at, Arc::clone(&done)));
        let list = Mutex::new(List { waiting: waiting.collect(), is_running: true });
        let (mut taken, mut at) = (Vec::new(), 0);
        carry_out_by(&list, file, |operation, file| {
            let tokens = done.take().into_iter().map(|done| done.token);
            taken.extend(tokens);
            assert!(taken.iter().copied().eq(0..at), "{taken:?} before {at}");
            // Whoever copies is not held up for what comes next.
            assert!(is_told() || at != 3);
            at += 1;
            operation.run(file.as_fd())
        });
        assert!(is_told() && done.take().len() == 1);
    }

    #[test]
    fn each_queue_is_told_of_its_own() {
        let own = tempfile::tempfile().unwrap();
        let queues = [(); 3].map(|()| Arc::new(Done::new(Arc::new(Event::new().unwrap()))));
        let waiting = (0..60_u8)
            .map(|at| (write(0, at, 512), at, Arc::clone(&queues[usize::from(at / 5) % 3])))
            .collect();
        carry_out(&Mutex::new(List { waiting, is_running: true }), Arc::new(own.into()));
        for (number, done) in (0..).zip(&queues) {
            let told: Vec<u8> = done.take().iter().map(|done| done.token).collect();
            let own: Vec<u8> = (0..60).filter(|at| at / 5 % 3 == number).collect();
            assert_eq!(told, own);
        }
    }

    #[test]
    fn each_fails_for_itself() {
        let own = tempfile::tempfile().unwrap();
        let file = Arc::new(OwnedFd::from(own.try_clone().unwrap()));
        let done = Arc::new(Done::new(Arc::new(Event::new().unwrap())));
        let waiting = [(write(0, 1, 512), 0), (write(1 << 63, 2, 512), 1), (write(512, 3, 512), 2)];
        let waiting = waiting.map(|(what, token)| (what, token, Arc::clone(&done))).into();
        carry_out(&Mutex::new(List { waiting, is_running: true }), file);
        let ends: Vec<_> = done.take().into_iter().map(|done| done.result.ok()).collect();
        assert_eq!(ends, [Some(512), None, Some(512)]);
    }

    #[test]
    fn it_is_for_plain_writes_to_regular_files_of_that_kind_and_for_copies_to_all() {
        let durable = Operation::Write { offset: 0, memory: Segments::new(), durable: true };
        let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let copy = copy(&file);
        for takes_writes in [false, true] {
            let writer = Writer::<()>::new(takes_writes);
            assert!(!writer.takes(&durable) && !writer.takes(&Operation::Sync));
            assert_eq!(writer.takes(&write(0, 1, 1)), takes_writes);
            assert!(writer.takes(&copy));
        }
        let null = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        assert!(Writer::<()>::of(&Files::one(&null)).is_none());
    }
}
