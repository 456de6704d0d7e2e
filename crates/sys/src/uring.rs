//! io_uring(7), for reading and writing one file.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use blockyard_buf::Segment;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::event::Event;
use crate::io_queue::Files;
use crate::operation::{Completion, Operation};
use crate::ring::{self, Turn};
use crate::transfer::{self, IoVec};

/// The most operations that wait in user space for one system call to submit them; more are submitted in
/// between.
const BATCH: u32 = 256;
/// Bytes whose copy takes longer than it takes to hand it to another thread.
pub(crate) const LONG: usize = 128 << 10;
/// What the queue needs; all of them are in Linux 5.6.
const NEEDED: [(u8, &str); 6] = [
    (opcode::Read::CODE, "read"),
    (opcode::Write::CODE, "write"),
    (opcode::Readv::CODE, "readv"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
];
/// The sysctl that forbids io_uring (Linux 6.6; Documentation/admin-guide/sysctl/kernel.rst).
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why there is no io_uring here.
#[derive(Debug)]
pub enum Unavailable {
    /// The kernel has none: older than 5.1, or built without.
    Missing,
    /// `kernel.io_uring_disabled` forbids it.
    Sysctl(String),
    /// A security policy does: seccomp (as container runtimes have it), or a security module.
    Policy,
    /// It lacks an operation.
    Operation(&'static str),
    /// It could not be set up: memory or descriptors are used up, say.
    Failed(io::Error),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("this kernel has no io_uring"),
            Self::Sysctl(value) => write!(
                f,
                "io_uring is forbidden by the sysctl kernel.io_uring_disabled = {value}; 0 allows it"
            ),
            Self::Policy => f.write_str(
                "io_uring is forbidden here, by seccomp or a security module; \
                 a container needs a profile that allows io_uring_setup",
            ),
            Self::Operation(name) => write!(f, "this kernel's io_uring has no {name}"),
            Self::Failed(err) => write!(f, "io_uring cannot be set up: {err}"),
        }
    }
}

impl std::error::Error for Unavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(err) => Some(err),
            _ => None,
        }
    }
}

impl From<io::Error> for Unavailable {
    fn from(err: io::Error) -> Self {
        match err.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EPERM | libc::EACCES) => {
                match std::fs::read_to_string(SYSCTL).unwrap_or_default().trim() {
                    "" | "0" => Self::Policy,
                    value => Self::Sysctl(value.to_owned()),
                }
            }
            _ => Self::Failed(err),
        }
    }
}

/// A ring on one file. It owns each operation, with its memory, from the push to the completion.
pub(crate) struct Ring<T> {
    ring: IoUring,
    slots: Vec<Option<(Operation, T)>>,
    /// The vector of the operation in the slot of the same number: the kernel may read it until the operation
    /// completes.
    vectors: Vec<Vec<IoVec>>,
    free: Vec<u32>,
    /// Slots that wait for room in the submission queue.
    pushed: VecDeque<u32>,
    files: Files,
    event: Arc<Event>,
    /// Reads are copied from the page cache.
    is_cached: bool,
}

impl<T> Ring<T> {
    /// A ring that holds `depth` operations on a file, and signals `event` when one completes while nobody
    /// looks.
    pub(crate) fn new(files: &Files, event: Arc<Event>, depth: u32) -> Result<Self, Unavailable> {
        let ring = set_up(depth)?;
        probe(&ring)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        ring.submitter().register_files(&[files.data.as_raw_fd(), files.sync.as_raw_fd()])?;
        Ok(Self {
            ring,
            slots: (0..depth).map(|_| None).collect(),
            vectors: (0..depth).map(|_| Vec::new()).collect(),
            free: (0..depth).rev().collect(),
            pushed: VecDeque::new(),
            files: files.clone(),
            event,
            is_cached: fcntl_getfl(&files.data).is_ok_and(|flags| !flags.contains(OFlags::DIRECT)),
        })
    }

    /// How many of the long reads that come together are to be copied by threads of the kernel: half of them, so that the
    /// others are copied here meanwhile. Past the page cache the device moves the bytes, and a thread would only wait for it.
    fn shared(&self) -> usize {
        if !self.is_cached || self.pushed.len() < 2 {
            return 0;
        }
        let is_long = |&&slot: &&u32| is_long_read(self.slots[slot as usize].as_ref());
        self.pushed.iter().filter(is_long).count() / 2
    }

    /// Whether the ring has this operation.
    pub(crate) fn takes(operation: &Operation) -> bool {
        matches!(
            operation,
            Operation::Read { .. }
                | Operation::Write { .. }
                | Operation::Sync
                | Operation::Allocate { .. }
        )
    }

    /// Operations that have not come back.
    pub(crate) fn out(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Queues an operation; [`Ring::turn`] submits it. Gives it back if `depth` are out.
    pub(crate) fn push(&mut self, operation: Operation, token: T) -> Result<(), (Operation, T)> {
        operation.assert_valid();
        let Some(index) = self.free.pop() else { return Err((operation, token)) };
        let slot = index as usize;
        let vector = &mut self.vectors[slot];
        vector.clear();
        vector.extend(operation.memory().iter().map(IoVec::of));
        self.slots[slot] = Some((operation, token));
        self.pushed.push_back(index);
        Ok(())
    }

    /// Submits what was pushed, and takes what has completed: what completes during its submission costs
    /// nothing more, and no signal.
    pub(crate) fn turn(&mut self, completions: &mut Vec<Completion<T>>) -> io::Result<()> {
        self.take_turn(|ring| ring.drain(completions))
    }

    pub(crate) fn drain(&mut self, completions: &mut Vec<Completion<T>>) {
        for entry in self.ring.completion() {
            let index = u32::try_from(entry.user_data()).unwrap_or(u32::MAX);
            let Some((operation, token)) =
                self.slots.get_mut(index as usize).and_then(Option::take)
            else {
                unreachable!("the kernel completes what was submitted, once")
            };
            self.free.push(index);
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            completions.push(Completion { operation, token, result });
        }
    }
}

impl<T> Turn for Ring<T> {
    fn ring(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    fn has_pushed(&self) -> bool {
        !self.pushed.is_empty()
    }

    fn fill(&mut self) {
        let mut shared = self.shared();
        let Self { ring, slots, vectors, pushed, .. } = self;
        let mut queue = ring.submission();
        while let Some(&index) = pushed.front() {
            let Some((operation, _)) = &slots[index as usize] else {
                unreachable!("a slot is full from its push to its completion")
            };
            let mut entry = entry(operation, &vectors[index as usize]).user_data(index.into());
            if shared > 0 && is_long_read(slots[index as usize].as_ref()) {
                // First, so that the others are done here meanwhile.
                shared -= 1;
                entry = entry.flags(squeue::Flags::ASYNC);
            }
            // SAFETY: the memory that the entry points to is a segment's, or the slot's vector; the slot keeps
            // both in place until the completion with its number has come, and the ring is not dropped before
            // (see `Drop`). Reads were checked to be to writable memory. Both files are registered.
            if unsafe { queue.push(&entry) }.is_err() {
                return;
            }
            pushed.pop_front();
        }
    }
}

impl<T> Drop for Ring<T> {
    /// Waits for what is out: until then the kernel may use its memory.
    fn drop(&mut self) {
        let mut ended = Vec::new();
        self.drain(&mut ended);
        while self.out() > 0 {
            self.fill();
            match self.ring.submit_and_wait(1) {
                Err(err) if err.kind() != io::ErrorKind::Interrupted => {
                    // There is no knowing when the kernel is through: the memory is its for ever.
                    mem::forget((mem::take(&mut self.slots), mem::take(&mut self.vectors)));
                    mem::forget((self.files.clone(), Arc::clone(&self.event)));
                    return;
                }
                _ => self.drain(&mut ended),
            }
        }
        // The kernel takes a ring down after its descriptor is closed; the file is let go now, so that it can
        // be unmounted or opened anew.
        let _ = self.ring.submitter().unregister_files();
    }
}

fn set_up(depth: u32) -> Result<IoUring, Unavailable> {
    let entries = depth.clamp(1, BATCH);
    let mut builder = IoUring::builder();
    // As many completions as operations: it never overflows.
    builder.setup_cqsize(depth.max(entries).next_power_of_two());
    Ok(ring::set_up(builder, entries)?)
}

fn probe(ring: &IoUring) -> Result<(), Unavailable> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match NEEDED.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(Unavailable::Operation(name)),
        None => Ok(()),
    }
}

/// Whether this process may use io_uring now.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), Unavailable> {
    probe(&set_up(1)?)
}

fn entry(operation: &Operation, vector: &[IoVec]) -> squeue::Entry {
    // As they are registered.
    const FILE: types::Fixed = types::Fixed(0);
    const SYNC: types::Fixed = types::Fixed(1);
    match operation {
        Operation::Read { offset, memory } => match memory.as_slice() {
            [only] => opcode::Read::new(FILE, only.as_ptr(), length(only)).offset(*offset).build(),
            _ => opcode::Readv::new(FILE, transfer::pointer(vector), transfer::count(vector))
                .offset(*offset)
                .build(),
        },
        Operation::Write { offset, memory, durable } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match memory.as_slice() {
                [only] => opcode::Write::new(FILE, only.as_ptr(), length(only))
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
                _ => opcode::Writev::new(FILE, transfer::pointer(vector), transfer::count(vector))
                    .offset(*offset)
                    .rw_flags(flags)
                    .build(),
            }
        }
        Operation::Sync => opcode::Fsync::new(SYNC).flags(types::FsyncFlags::DATASYNC).build(),
        Operation::Allocate { mode, range } => {
            opcode::Fallocate::new(FILE, range.end.saturating_sub(range.start))
                .offset(range.start)
                .mode(mode.flags().bits().cast_signed())
                .build()
        }
        Operation::By { .. }
        | Operation::CopyRange { .. }
        | Operation::Discard { .. }
        | Operation::Map { .. }
        | Operation::WillNeed { .. } => {
            unreachable!("not an operation of the ring: see `takes`")
        }
    }
}

/// Whether it is a read that takes longer to copy than it takes to hand over.
fn is_long_read<T>(slot: Option<&(Operation, T)>) -> bool {
    slot.is_some_and(|(operation, _)| {
        matches!(operation, Operation::Read { .. }) && operation.len() >= LONG
    })
}

/// A segment is at most 2 GiB long.
fn length(segment: &Segment) -> u32 {
    u32::try_from(segment.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use blockyard_buf::Segments;
    use rustix::fs::{Mode, open};

    use super::*;

    #[test]
    fn half_of_the_long_reads_are_shared_unless_the_device_moves_them() {
        if available().is_err() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 << 20).unwrap();
        for (flags, expected) in [(OFlags::empty(), 2), (OFlags::DIRECT, 0)] {
            // Not every file system takes direct I/O.
            let Ok(file) = open(file.path(), OFlags::RDONLY | flags, Mode::empty()) else {
                continue;
            };
            let event = Arc::new(Event::new().unwrap());
            let mut ring = Ring::new(&Files::one(&Arc::new(file)), event, 8).unwrap();
            assert_eq!(ring.shared(), 0);
            for (number, len) in (0..5).zip([LONG, 4096, LONG, 2 * LONG, LONG]) {
                let memory: Segments = [Segment::from_vec(vec![0; len])].into_iter().collect();
                let read = Operation::Read { offset: number << 20, memory };
                assert!(ring.push(read, number).is_ok());
            }
            assert_eq!(ring.shared(), expected, "{flags:?}");
        }
    }
}
