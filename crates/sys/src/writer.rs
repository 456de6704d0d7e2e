//! Writes through the page cache of a file system that does not take them without waiting, and copies from other files: one thread
//! at a time carries out all that a queue has.
//!
//! io_uring would hand each of them to a thread of the kernel's, and have these go one after the other (`REQ_F_HASH`): a wake-up
//! and a switch for each. The file system lets one in at a time anyway.

use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat, fstatfs};

use crate::lane::Done;
use crate::operation::{Completion, Operation};
use crate::pool::Pool;

/// `EXT4_SUPER_MAGIC` of linux/magic.h, which is that of ext2 and ext3, too. ext4 refuses a buffered write that is not to
/// wait (fs/ext4/file.c, `ext4_buffered_write_iter`).
const EXT4_SUPER_MAGIC: libc::c_long = 0xef53;
/// Bytes that are written, and operations that are done, before they are told of.
const GROUP_BYTES: usize = 128 << 10;
const GROUP: usize = 16;

/// What a queue has to be written, and whether somebody does it.
pub(crate) struct Writer<T> {
    list: Arc<Mutex<List<T>>>,
    /// Plain writes are for it, too.
    takes_writes: bool,
}

struct List<T> {
    waiting: Vec<(Operation, T)>,
    is_running: bool,
}

impl<T: Send + 'static> Writer<T> {
    /// If the file is one that this is for.
    pub(crate) fn of(file: &OwnedFd) -> Option<Self> {
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
            list.waiting.append(writes);
            mem::replace(&mut list.is_running, true)
        };
        if !is_running {
            let (list, file, done) = (Arc::clone(&self.list), Arc::clone(file), Arc::clone(done));
            pool.execute(Box::new(move || carry_out(&list, file, &done)));
        }
    }
}

/// Carries out what waits, and what comes meanwhile.
fn carry_out<T>(list: &Mutex<List<T>>, file: Arc<OwnedFd>, done: &Done<T>) {
    let (mut writes, mut group) = (Vec::new(), Vec::with_capacity(GROUP));
    loop {
        {
            let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut writes, &mut list.waiting);
            list.is_running = !writes.is_empty();
        }
        if writes.is_empty() {
            // Whoever hears of the end may close the file, and expect it to be closed then.
            drop(file);
            return done.append(&mut group);
        }
        done.append(&mut group);
        let mut bytes = 0;
        for (mut operation, token) in writes.drain(..) {
            let result = operation.run(file.as_fd());
            bytes += operation.len();
            group.push(Completion { operation, token, result });
            if bytes >= GROUP_BYTES || group.len() >= GROUP {
                // The last of all is told of above.
                let last = group.pop();
                done.append(&mut group);
                group.extend(last);
                bytes = 0;
            }
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
        let done = Done::new(Arc::new(Event::new().unwrap()));
        let waiting = (0..100_u8)
            .map(|at| (write(u64::from(at) * 512, at, if at % 10 == 0 { 65536 } else { 512 }), at))
            .collect();
        let list = Mutex::new(List { waiting, is_running: true });
        let kept = Arc::downgrade(&file);
        carry_out(&list, file, &done);
        assert!(kept.upgrade().is_none() && !list.lock().unwrap().is_running);
        let completions = done.take();
        assert!(completions.iter().map(|done| done.token).eq(0..100));
        for at in 0..100_u8 {
            let mut found = [0; 1];
            own.read_exact_at(&mut found, u64::from(at) * 512 + 1).unwrap();
            assert_eq!(found, [at], "the last one that wrote there");
        }
    }

    #[test]
    fn each_fails_for_itself() {
        let own = tempfile::tempfile().unwrap();
        let file = Arc::new(OwnedFd::from(own.try_clone().unwrap()));
        let done = Done::new(Arc::new(Event::new().unwrap()));
        let waiting =
            vec![(write(0, 1, 512), 0), (write(1 << 63, 2, 512), 1), (write(512, 3, 512), 2)];
        carry_out(&Mutex::new(List { waiting, is_running: true }), file, &done);
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
        let null = std::fs::File::open("/dev/null").unwrap().into();
        assert!(Writer::<()>::of(&null).is_none());
    }
}
