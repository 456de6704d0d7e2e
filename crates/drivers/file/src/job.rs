//! A request on its way: which operations make it, one after the other.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_blkmq::{Flags, Op, Request, SECTOR_SIZE, Status};
use blockyard_buf::{Pool, Segment, Segments, copy_segments};
use blockyard_sys::Operation;
use blockyard_sys::fallocate::{Allocate, is_not_supported};

use crate::driver::File;
use crate::extents::in_blocks;
use crate::health::Health;
use crate::queue::is_to_be_tried_again;
use crate::sync::Syncs;

/// Runs in one answer to a block status query: what is past them has to be asked for again.
const MAX_EXTENTS: usize = 1024;
/// Zeroes that are written at once where the file knows no better way.
const ZERO_CHUNK: u64 = 4 << 20;

/// What all jobs of a file need to know of it.
pub(crate) struct Context {
    pub(crate) is_block_device: bool,
    /// Bytes of the disk. What lies past them in its last block is padding: it reads as zeroes, and is never written.
    pub(crate) size: AtomicU64,
    /// A file that is open for direct I/O once more through the page cache, for an end that is no whole block.
    pub(crate) buffered: Option<Arc<OwnedFd>>,
    /// What memory and offsets are aligned to for direct I/O; 1 without.
    pub(crate) memory_align: usize,
    pub(crate) offset_align: usize,
    pub(crate) pool: Pool,
    pub(crate) health: Health,
    pub(crate) syncs: Syncs,
    /// Ways to make zeroes that the file was found not to know.
    pub(crate) no_zero_range: AtomicBool,
    pub(crate) no_punch_hole: AtomicBool,
}

impl Context {
    /// A regular file of `size` bytes, through the page cache.
    pub(crate) fn of(path: PathBuf, size: u64) -> Self {
        Self {
            is_block_device: false,
            size: AtomicU64::new(size),
            buffered: None,
            memory_align: 1,
            offset_align: 1,
            pool: Pool::default(),
            health: Health::new(path),
            syncs: Syncs::default(),
            no_zero_range: AtomicBool::new(false),
            no_punch_hole: AtomicBool::new(false),
        }
    }
}

/// A request, and how far it is.
pub(crate) struct Job {
    rq: Request<File>,
    step: Step,
    /// Bytes of it that the disk has; the rest is padding.
    len: u64,
    /// It goes through the page cache, as its end is out of reach for direct I/O.
    is_buffered: bool,
    /// Bytes that are done.
    done: u64,
    /// Memory of ours that is read into, if it is not the request's own.
    supplied: Option<Segment>,
}

/// What is being done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes move, from or to the request's memory, ours, or zeroes.
    Transfer,
    /// A range becomes zeroes, its space kept.
    ZeroRange,
    /// A range becomes a hole; it is then allocated again if its space is to be kept.
    PunchHole,
    /// Space is kept for what was punched.
    Reserve,
    /// Whatever it is, it is done in one operation.
    Once,
}

/// How a job goes on.
pub(crate) enum Next {
    /// By another operation.
    Do(Operation, Job),
    /// By the same operation, on a thread that may wait.
    Wait(Operation, Job),
    /// All of it is done; it ends well once that is durable.
    Sync(Job),
    /// It has ended.
    Ended,
}

impl Job {
    /// The first operation for a request, unless that ends at once.
    pub(crate) fn start(rq: Request<File>, context: &Context) -> Next {
        let left = context.size.load(Ordering::Acquire).saturating_sub(rq.offset());
        let len = rq.len().min(left);
        let mut job =
            Self { rq, step: Step::Once, len, is_buffered: false, done: 0, supplied: None };
        if job.is_padded() {
            if len == 0 {
                // The disk has shrunk since it was let through.
                return job.end(Status::OutOfRange);
            }
            job.is_buffered = !len.is_multiple_of(context.offset_align as u64);
        }
        let range = job.range();
        let operation = match job.rq.op() {
            Op::Read => job.read(context),
            Op::Write if job.is_durable() && context.health.has_failed_flush() => {
                return job.end(Status::Io);
            }
            Op::Write => job.write(context),
            Op::Flush => return job.sync(context),
            Op::Discard if context.is_block_device => Operation::Discard { range },
            Op::Discard => Operation::Allocate { mode: Allocate::PunchHole, range },
            Op::WriteZeroes => return job.zero(context),
            Op::BlockStatus => {
                let first = job.rq.flags().contains(Flags::FIRST_EXTENT);
                let most = if first { 1 } else { MAX_EXTENTS };
                Operation::Map { range, most, found: Vec::new() }
            }
            Op::Prefetch => Operation::WillNeed { range },
            Op::SecureErase => return job.end(Status::NotSupported),
        };
        Next::Do(operation, job)
    }

    /// An operation has ended.
    pub(crate) fn completed(
        operation: Operation,
        job: Self,
        result: io::Result<usize>,
        context: &Context,
    ) -> Next {
        match result {
            Ok(moved) if job.step == Step::Transfer => job.moved(operation, moved, context),
            Ok(_) => job.stepped(operation, context),
            Err(err) => job.failed(operation, &err, context),
        }
    }

    fn range(&self) -> Range<u64> {
        self.rq.offset()..self.rq.offset() + self.len
    }

    /// Whether it reaches past the disk's end, into the padding of the last block.
    fn is_padded(&self) -> bool {
        self.len < self.rq.len()
    }

    fn is_durable(&self) -> bool {
        self.rq.flags().contains(Flags::FUA)
    }

    /// A read or write, by the file's other description if need be.
    fn transfer(&self, operation: Operation, context: &Context) -> Operation {
        match &context.buffered {
            Some(file) if self.is_buffered => {
                Operation::By { file: Arc::clone(file), transfer: Box::new(operation) }
            }
            _ => operation,
        }
    }

    fn read(&mut self, context: &Context) -> Operation {
        self.step = Step::Transfer;
        let mut memory: Segments = if self.rq.wants_supply() || self.needs_bounce(context) {
            let supplied = self.buffer(context);
            self.supplied = Some(supplied.clone());
            std::iter::once(supplied).collect()
        } else {
            self.rq.segments().collect()
        };
        if self.is_padded() {
            let padding;
            (memory, padding) = split(memory, self.len);
            padding.iter().for_each(Segment::fill_zero);
        }
        self.transfer(Operation::Read { offset: self.rq.offset(), memory }, context)
    }

    fn write(&mut self, context: &Context) -> Operation {
        self.step = Step::Transfer;
        let mut memory: Segments = self.rq.segments().collect();
        if self.needs_bounce(context) {
            let buffer = [self.buffer(context)];
            copy_segments(&buffer, &memory);
            memory = buffer.into_iter().collect();
        }
        if self.is_padded() {
            (memory, _) = split(memory, self.len);
        }
        let write =
            Operation::Write { offset: self.rq.offset(), memory, durable: self.is_durable() };
        self.transfer(write, context)
    }

    fn buffer(&self, context: &Context) -> Segment {
        let len = usize::try_from(self.rq.len()).unwrap_or(usize::MAX);
        context.pool.get(len).into_segment_mut(len)
    }

    /// Whether the kernel would refuse the request's own memory.
    fn needs_bounce(&self, context: &Context) -> bool {
        self.rq.segment_count() > Operation::MAX_SEGMENTS
            || (!self.is_buffered
                && (context.memory_align > 1 || context.offset_align > 1)
                && self
                    .rq
                    .segments()
                    .any(|segment| !is_aligned(segment.as_ptr().addr(), segment.len(), context)))
    }

    /// The next way to make zeroes that the file may know. Keeping the space: zero range, or a hole that is
    /// allocated again. Not keeping it: a hole, or zero range. Writing zeroes is left when all else fails,
    /// unless that was ruled out.
    fn zero(mut self, context: &Context) -> Next {
        let can_zero = !context.no_zero_range.load(Ordering::Relaxed);
        let can_punch = !context.no_punch_hole.load(Ordering::Relaxed);
        let keep = self.rq.flags().contains(Flags::NOUNMAP);
        let mode = if can_zero && (keep || !can_punch) {
            self.step = Step::ZeroRange;
            Allocate::ZeroRange
        } else if can_punch {
            self.step = Step::PunchHole;
            Allocate::PunchHole
        } else if self.rq.flags().contains(Flags::NOFALLBACK) {
            return self.end(Status::NotSupported);
        } else {
            self.step = Step::Transfer;
            return Next::Do(self.zeroes(context), self);
        };
        Next::Do(Operation::Allocate { mode, range: self.range() }, self)
    }

    /// Zeroes for the next part of what is left.
    fn zeroes(&self, context: &Context) -> Operation {
        let mut memory = Segments::new();
        let chunk = (self.len - self.done).min(ZERO_CHUNK);
        Segment::zeroes(&mut memory, usize::try_from(chunk).unwrap_or(usize::MAX));
        let offset = self.rq.offset() + self.done;
        self.transfer(Operation::Write { offset, memory, durable: false }, context)
    }

    /// Some bytes have moved: all of them, or the rest is still to be moved.
    fn moved(mut self, operation: Operation, moved: usize, context: &Context) -> Next {
        // Direct I/O goes on from an aligned offset only.
        let align = if self.is_buffered { 1 } else { context.offset_align };
        let moved = moved - moved % align;
        if moved == 0 {
            let status = context.health.ended_early(self.rq.offset() + self.done);
            return self.end(status);
        }
        self.done += moved as u64;
        let offset = self.rq.offset() + self.done;
        if self.done == self.len {
            if let Some(supplied) = self.supplied.take() {
                // Ours is dropped first, so that the reader has the only reference.
                drop(operation);
                self.rq.deliver(supplied);
            }
            return if self.rq.op() == Op::Write {
                self.end(Status::Ok)
            } else {
                self.finish(context)
            };
        }
        let operation = match operation {
            Operation::By { transfer, .. } => *transfer,
            operation => operation,
        };
        let next = match operation {
            Operation::Read { memory, .. } => {
                Operation::Read { offset, memory: after(memory, moved) }
            }
            Operation::Write { memory, durable, .. } => {
                let rest = after(memory, moved);
                if rest.is_empty() {
                    return Next::Do(self.zeroes(context), self);
                } else {
                    Operation::Write { offset, memory: rest, durable }
                }
            }
            other => unreachable!("{other:?} moves no bytes"),
        };
        Next::Do(self.transfer(next, context), self)
    }

    /// A step that moves no bytes was done.
    fn stepped(mut self, operation: Operation, context: &Context) -> Next {
        match (self.step, operation) {
            (Step::PunchHole, Operation::Allocate { range, .. })
                if self.rq.flags().contains(Flags::NOUNMAP) && !context.is_block_device =>
            {
                self.step = Step::Reserve;
                Next::Do(Operation::Allocate { mode: Allocate::Reserve, range }, self)
            }
            (_, Operation::Map { mut found, .. }) => {
                let told: u64 = found.iter().map(|run| run.len).sum();
                if told == self.len
                    && let Some(last) = found.last_mut()
                {
                    last.len += self.rq.len() - self.len;
                }
                let block = (context.offset_align as u64).max(SECTOR_SIZE);
                in_blocks(&found, block, |extent| self.rq.push_extent(extent));
                self.end(Status::Ok)
            }
            _ => self.finish(context),
        }
    }

    /// All is done; what has no durable form of its own is made durable by a sync.
    fn finish(self, context: &Context) -> Next {
        if self.rq.op().is_write() && self.is_durable() {
            return self.sync(context);
        }
        self.end(Status::Ok)
    }

    fn sync(self, context: &Context) -> Next {
        if context.health.has_failed_flush() {
            return self.end(Status::Io);
        }
        Next::Sync(self)
    }

    fn failed(self, operation: Operation, err: &io::Error, context: &Context) -> Next {
        if is_to_be_tried_again(err) {
            return Next::Wait(operation, self);
        }
        let status = err.raw_os_error().map_or(Status::Io, Status::from_errno);
        match self.step {
            Step::ZeroRange if is_refused(err) => {
                context.no_zero_range.store(true, Ordering::Relaxed);
                return self.zero(context);
            }
            Step::PunchHole if is_refused(err) => {
                context.no_punch_hole.store(true, Ordering::Relaxed);
                return self.zero(context);
            }
            // The zeroes are there; that their space is not kept is no harm where it cannot be.
            Step::Reserve if is_not_supported(err) => return self.finish(context),
            _ => {}
        }
        match operation {
            // The memory of its owner is gone, or what it asked for cannot be: nothing came to the device.
            Operation::Write { durable: true, .. } if is_owners_fault(err) => {}
            // Its own bytes were not written, or its flush of the device's cache failed, which held others' too.
            Operation::Write { durable: true, .. } => context.health.flush_failed(err),
            Operation::Discard { .. } | Operation::Allocate { .. }
                if self.rq.op() == Op::Discard && is_not_supported(err) =>
            {
                return self.end(Status::NotSupported);
            }
            Operation::WillNeed { .. } => return self.end(Status::Ok),
            _ => {}
        }
        self.end(status)
    }

    /// Bios of a merged request that were done before it failed end well.
    pub(crate) fn end(self, status: Status) -> Next {
        let own_memory = self.supplied.is_none() && self.step == Step::Transfer;
        if !status.is_ok() && own_memory && self.done > 0 {
            if let Some(rest) = self.rq.update(Status::Ok, self.done - self.done % 512) {
                rest.end(status);
            }
        } else {
            self.rq.end(status);
        }
        Next::Ended
    }
}

/// Whether a file will not make zeroes in a certain way. Some servers of FUSE files answer `EINVAL` to a mode that they do
/// not know; the range is right.
fn is_refused(err: &io::Error) -> bool {
    is_not_supported(err) || err.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

/// Whether a write failed for what it was asked with, before anything came to the file: memory that is gone, a range that
/// cannot be.
fn is_owners_fault(err: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::FAULT, Errno::INVAL]
        .iter()
        .any(|errno| err.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether direct I/O takes a segment: its address is a matter of the memory's alignment, its length of the file's
/// (statx(2), `stx_dio_offset_align`; kernels before 6.18 refuse others).
fn is_aligned(address: usize, len: usize, context: &Context) -> bool {
    address.is_multiple_of(context.memory_align) && len.is_multiple_of(context.offset_align)
}

/// Some memory, and what is behind its first `len` bytes.
fn split(memory: Segments, len: u64) -> (Segments, Segments) {
    let (mut head, mut rest) = (Segments::new(), Segments::new());
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    for segment in memory {
        let here = left.min(segment.len());
        left -= here;
        if here > 0 {
            head.push(segment.slice(0, here));
        }
        if here < segment.len() {
            let behind = segment.len() - here;
            rest.push(segment.into_slice(here, behind));
        }
    }
    (head, rest)
}

/// What is left of some memory behind its first `done` bytes.
fn after(memory: Segments, mut done: usize) -> Segments {
    let mut rest = Segments::new();
    for segment in memory {
        let here = done.min(segment.len());
        done -= here;
        let left = segment.len() - here;
        if left > 0 {
            rest.push(segment.into_slice(here, left));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_as_memory_and_lengths_as_the_file() {
        let context =
            Context { memory_align: 512, offset_align: 4096, ..Context::of("/disk".into(), 0) };
        assert!(is_aligned(512, 8192, &context));
        assert!(!is_aligned(0, 3584, &context) && !is_aligned(0, 512, &context));
        assert!(!is_aligned(100, 4096, &context));
    }

    #[test]
    fn what_is_left_of_memory_begins_where_the_transfer_stopped() {
        let parts = || [b"abc".to_vec(), b"defg".to_vec()].into_iter().map(Segment::from_vec);
        let rest = |done| -> Vec<u8> {
            after(parts().collect(), done).iter().flat_map(Segment::to_vec).collect()
        };
        assert_eq!(rest(0), b"abcdefg");
        assert_eq!(rest(2), b"cdefg");
        assert_eq!(rest(3), b"defg");
        assert_eq!(rest(5), b"fg");
        assert!(after(parts().collect(), 7).is_empty());
    }
}
