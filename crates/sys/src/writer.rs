//! Writes through the page cache of a file system that does not take them without waiting, and copies from other files: one
//! thread at a time carries out all that the queues of a file have.
//!
//! io_uring would hand each of them to a thread of the kernel's, and have these go one after the other (`REQ_F_HASH`): a wake-up
//! and a switch for each. The file system lets one in at a time anyway.

use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::io_queue::Files;
use crate::lane::Done;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;

/// `EXT4_SUPER_MAGIC` of linux/magic.h, which is that of ext2 and ext3, too. ext4 refuses a buffered write that is not to
/// wait (fs/ext4/file.c, `ext4_buffered_write_iter`).
const EXT4_SUPER_MAGIC: libc::c_long = 0xef53;
/// Bytes that are written, and operations that are done, before they are told of.
const GROUP_BYTES: usize = 128 << 10;
const GROUP: usize = 16;
/// How often a thread looks for more before it lets others have their turn: it is one of a pool, which may have fewer than there
/// are queues.
const ROUNDS: usize = 16;

/// What all queues of a file have to be written, and whether somebody does it.
pub struct Writer<T> {
    list: Arc<Mutex<List<T>>>,
    /// Plain writes are for it, too.
    takes_writes: bool,
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        Self { list: Arc::clone(&self.list), takes_writes: self.takes_writes }
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
        let list = List { waiting: Vec::new(), is_running: false };
        let list = Arc::new(Mutex::new(list));
        (is_regular && is_buffered).then_some(Self { list, takes_writes: is_ext4 })
    }

    /// Whether the operation is one. A write that is to be durable waits for storage: others are not to wait behind it.
    pub(crate) fn takes(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Write { durable: false, .. } => self.takes_writes,
            Operation::CopyRange { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).is_running
    }

    /// Has `writes` carried out, which is empty then.
    pub(crate) fn send(
        &self,
        writes: &mut Vec<(Operation, T)>,
        file: &Arc<OwnedFd>,
        pool: &Pool,
        done: &Arc<Done<T>>,
    ) {
        let is_running = {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = writes.drain(..).map(|(what, token)| (what, token, Arc::clone(done)));
            list.waiting.extend(waiting);
            mem::replace(&mut list.is_running, true)
        };
        if !is_running {
            start(pool, Arc::clone(&self.list), Arc::clone(file));
        }
    }
}

/// Has a thread carry out what waits, and what comes meanwhile.
fn start<T: Send + 'static>(pool: &Pool, list: Arc<Mutex<List<T>>>, file: Arc<OwnedFd>) {
    let again = pool.clone();
    pool.execute(Box::new(move || {
        if let Some(file) = carry_out(&list, file) {
            start(&again, list, file);
        }
    }));
}

/// What is done for a queue, and not told yet.
struct Group<T> {
    list: Vec<Completion<T>>,
    of: Option<Arc<Done<T>>>,
    bytes: usize,
}

impl<T> Group<T> {
    fn add(&mut self, completion: Completion<T>, of: Arc<Done<T>>) {
        let is_same = self.of.as_ref().is_some_and(|before| Arc::ptr_eq(before, &of));
        if !is_same || self.bytes >= GROUP_BYTES || self.list.len() >= GROUP {
            self.tell();
        }
        self.bytes += completion.operation.len();
        self.list.push(completion);
        self.of = Some(of);
    }

    fn tell(&mut self) {
        if let Some(of) = &self.of {
            of.append(&mut self.list);
        }
        self.bytes = 0;
    }
}

/// Carries out what waits, and what comes meanwhile. Gives the file back if there may be more to do than that.
fn carry_out<T>(list: &Mutex<List<T>>, file: Arc<OwnedFd>) -> Option<Arc<OwnedFd>> {
    let mut waiting = Vec::new();
    let mut group = Group { list: Vec::with_capacity(GROUP), of: None, bytes: 0 };
    for _ in 0..ROUNDS {
        {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut waiting, &mut list.waiting);
            list.is_running = !waiting.is_empty();
        }
        if waiting.is_empty() {
            // Whoever hears of the end may close the file, and expect it to be closed then.
            drop(file);
            group.tell();
            return None;
        }
        group.tell();
        for (mut operation, token, of) in waiting.drain(..) {
            let result = operation.run(file.as_fd());
            // The last of all is told of above.
            group.add(Completion { operation, token, result }, of);
        }
    }
    group.tell();
    Some(file)
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
        assert!(carry_out(&list, file).is_none());
        assert!(kept.upgrade().is_none() && !list.lock().unwrap().is_running);
        let completions = done.take();
        assert!(completions.iter().map(|done| done.token).eq(0..100));
        for at in 0..100_u8 {
            let mut found = [0; 1];
            own.read_exact_at(&mut found, u64::from(at) * 512 + 1).unwrap();
            assert_eq!(found, [at], "the last one that wrote there");
        }
    }

    /// A thread is not one queue's for ever.
    #[test]
    fn others_have_their_turn_however_much_there_is_to_do() {
        let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let done = Arc::new(Done::new(Arc::new(Event::new().unwrap())));
        let waiting = vec![(write(0, 1, 512), 0, Arc::clone(&done))];
        let list = Arc::new(Mutex::new(List { waiting, is_running: true }));
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (more, until) = (Arc::clone(&list), Arc::clone(&stop));
        let feeder = std::thread::spawn(move || {
            while !until.load(std::sync::atomic::Ordering::Relaxed) {
                let mut list = more.lock().unwrap();
                if list.waiting.is_empty() {
                    list.waiting.push((write(0, 1, 512), 0, Arc::clone(&done)));
                }
            }
        });
        let pool = Pool::new(1);
        start(&pool, list, file);
        let (tell, told) = std::sync::mpsc::channel();
        pool.execute(Box::new(move || tell.send(()).unwrap()));
        told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        feeder.join().unwrap();
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
        let list = Arc::new(Mutex::new(List { waiting: Vec::new(), is_running: false }));
        let durable = Operation::Write { offset: 0, memory: Segments::new(), durable: true };
        let file = Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        let copy = Operation::CopyRange { offset: 0, from: FileRange::new(&file, 0, 1) };
        for takes_writes in [false, true] {
            let writer = Writer::<()> { list: Arc::clone(&list), takes_writes };
            assert!(!writer.takes(&durable) && !writer.takes(&Operation::Sync));
            assert_eq!(writer.takes(&write(0, 1, 1)), takes_writes);
            assert!(writer.takes(&copy));
        }
        let null = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        assert!(Writer::<()>::of(&Files::one(&null)).is_none());
    }
}
