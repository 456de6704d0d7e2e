//! A request on its way: which operations make it, one after the other.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{Flags, Op, Request, SECTOR_SIZE, Status};
use blockyard_buf::{Segment, Segments, copy_segments};
use blockyard_sys::Operation;
use blockyard_sys::fallocate::{Allocate, is_not_supported};

use crate::context::QueueContext;
use crate::driver::File;
use crate::extents::{data_from, in_blocks};
use crate::memory::{after, is_aligned, part};
use crate::paged;

/// Runs in one answer to a block status query: what is past them has to be asked for again.
const MAX_EXTENTS: usize = 1024;
/// Zeroes that are written at once where the file knows no better way.
const ZERO_CHUNK: u64 = 4 << 20;

/// A request, and how far it is.
pub(crate) struct Job {
    rq: Request<File>,
    step: Step,
    /// Bytes of it that are to be moved: the rest is padding, or what the file has lost, or other bios' turn.
    len: u64,
    /// From where on it is the page cache's to move them.
    cached_from: u64,
    /// What is under way goes through the page cache.
    is_buffered: bool,
    /// Something did, and is durable when it is synced.
    was_buffered: bool,
    /// What is behind `len` was cut off from the file: it fails.
    is_cut: bool,
    /// Of several bios the first alone, as memory of one of them is gone, or what one of them reads.
    is_alone: bool,
    /// Less than a block of what comes next has moved: it is tried once more.
    was_short: bool,
    /// What is under way has been tried already, and is carried out by a thread that may wait.
    waits: bool,
    /// Bytes that are done.
    done: u64,
    /// Memory of ours that is read into, or written from, if it is not the request's own.
    ours: Option<Segment>,
}

/// What is being done for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Bytes move, from or to the request's memory, ours, or zeroes, or from another file.
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
    /// It is done, and ends like that.
    End(Request<File>, Status),
    /// It has ended.
    Ended,
}

impl Job {
    /// The first operation for a request, unless that ends at once.
    pub(crate) fn start(rq: Request<File>, context: &QueueContext) -> Next {
        let rq = match paged::answer(rq, context) {
            Ok(()) => return Next::Ended,
            Err(rq) => rq,
        };
        let len = rq.len();
        Self::begin(rq, len, context)
    }

    /// The first operation for the first `len` bytes of a request: all of it, or its first bio.
    fn begin(rq: Request<File>, len: u64, context: &QueueContext) -> Next {
        let (is_alone, asked) = (len < rq.len(), len);
        let size = context.size.load(Ordering::Acquire);
        let mut job = Self {
            step: Step::Once,
            len: asked.min(size.saturating_sub(rq.offset())),
            cached_from: context.cached_from(size).saturating_sub(rq.offset()),
            is_buffered: false,
            was_buffered: false,
            is_cut: false,
            is_alone,
            was_short: false,
            waits: false,
            done: 0,
            ours: None,
            rq,
        };
        if job.len < asked && job.len == 0 {
            // The disk has shrunk since it was let through.
            return job.end(Status::OutOfRange);
        }
        let padded_to = asked;
        let is_there = job.stay_before_the_cut(context);
        if job.is_cut && job.rq.op() == Op::Read && job.rq.cur_bytes() < asked {
            // What was merged with it may be there.
            let first = job.rq.cur_bytes();
            return Self::begin(job.rq, first, context);
        }
        if !is_there {
            return job.end(Status::Io);
        }
        let range = job.range();
        let operation = match job.rq.op() {
            Op::Read => job.read(padded_to, context),
            Op::Write if job.is_durable() && context.health.has_failed_flush() => {
                return job.end(Status::Io);
            }
            Op::Write => job.write(context),
            Op::Flush => return job.sync(context),
            Op::Discard if context.is_block_device => {
                // What is left of the last block may stay as it is.
                let range = job.whole_blocks(context);
                if range.is_empty() {
                    return job.end(Status::Ok);
                }
                Operation::Discard { range }
            }
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

    /// What the file has lost fails, also where it was extended again: what is there now is a hole, or somebody else's.
    /// `false`: all of the request does, or it cannot be told apart.
    fn stay_before_the_cut(&mut self, context: &QueueContext) -> bool {
        let cut = context.health.cut_at();
        let offset = self.rq.offset();
        if offset + self.len <= cut
            || !matches!(self.rq.op(), Op::Read | Op::Write | Op::WriteZeroes)
        {
            return true;
        }
        (self.len, self.is_cut) = (cut.saturating_sub(offset), true);
        self.len -= self.len % (context.offset_align as u64).max(SECTOR_SIZE);
        self.len > 0 && self.rq.op() != Op::WriteZeroes && !self.rq.wants_supply()
    }

    /// An operation has ended.
    pub(crate) fn completed(
        operation: Operation,
        mut job: Self,
        result: io::Result<usize>,
        context: &QueueContext,
    ) -> Next {
        let has_waited = std::mem::take(&mut job.waits);
        match result {
            Ok(moved) if job.step == Step::Transfer => job.moved(operation, moved, context),
            Ok(_) => job.stepped(operation, context),
            Err(err) if is_to_be_tried_again(&err) && !has_waited => {
                Next::Wait(operation, Self { waits: true, ..job })
            }
            Err(err) => job.failed(&operation, &err, context),
        }
    }

    fn range(&self) -> Range<u64> {
        self.rq.offset()..self.rq.offset() + self.len
    }

    /// Of its range, what a device can zero and discard: an end that is shown within a block is not its own.
    fn whole_blocks(&self, context: &QueueContext) -> Range<u64> {
        let Range { start, end } = self.range();
        start..start + (end - start) / context.block * context.block
    }

    fn is_durable(&self) -> bool {
        self.rq.flags().contains(Flags::FUA)
    }

    /// The next bytes that are moved in one way: past the page cache, or through it. Says up to where.
    fn turn(&mut self) -> u64 {
        self.is_buffered = self.done >= self.cached_from;
        self.was_buffered |= self.is_buffered;
        if self.is_buffered { self.len } else { self.len.min(self.cached_from) }
    }

    /// Whether what is moved in this way is to be durable at once. Through the page cache of a device it is when it is
    /// synced: see the crate's documentation.
    fn is_durable_at_once(&self) -> bool {
        self.is_durable() && !self.is_buffered
    }

    /// A read or write, by the file's other description if need be.
    fn transfer(&self, operation: Operation, context: &QueueContext) -> Operation {
        match &context.buffered {
            Some(file) if self.is_buffered => {
                Operation::By { file: Arc::clone(file), transfer: Box::new(operation) }
            }
            _ => operation,
        }
    }

    fn read(&mut self, padded_to: u64, context: &QueueContext) -> Operation {
        self.step = Step::Transfer;
        // Of bios that became one request, some may want memory of ours.
        let is_short = || {
            self.rq.cur_bytes() < self.rq.len() && {
                self.rq.segments().map(|segment| segment.len() as u64).sum::<u64>() < self.rq.len()
            }
        };
        if self.rq.wants_supply() || self.needs_bounce(context) || is_short() {
            self.ours = Some(self.buffer(context));
        }
        if self.len < padded_to && !self.is_cut {
            self.memory(self.len..padded_to).iter().for_each(Segment::fill_zero);
        }
        self.next(context)
    }

    fn write(&mut self, context: &QueueContext) -> Operation {
        self.step = Step::Transfer;
        if let Some(from) = self.rq.file_range() {
            let may_share = self.rq.flags().contains(Flags::SHARE);
            let (offset, from) = (self.rq.offset(), from.first(self.len));
            return Operation::CopyRange { offset, from, may_share };
        }
        if self.needs_bounce(context) {
            let buffer = [self.buffer(context)];
            copy_segments(&buffer, &self.rq.segments().collect::<Segments>());
            let [buffer] = buffer;
            self.ours = Some(buffer);
        }
        self.next(context)
    }

    /// The read or write of what comes next.
    fn next(&mut self, context: &QueueContext) -> Operation {
        let end = self.turn();
        let (offset, memory) = (self.rq.offset() + self.done, self.memory(self.done..end));
        let operation = if self.rq.op() == Op::Read {
            Operation::Read { offset, memory }
        } else {
            Operation::Write { offset, memory, durable: self.is_durable_at_once() }
        };
        self.transfer(operation, context)
    }

    /// The memory of some of its bytes.
    fn memory(&self, range: Range<u64>) -> Segments {
        match &self.ours {
            Some(ours) => {
                let [start, end] =
                    [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
                std::iter::once(ours.slice(start, end - start)).collect()
            }
            None if range == (0..self.rq.len()) => self.rq.segments().collect(),
            None => part(self.rq.segments(), range),
        }
    }

    fn buffer(&self, context: &QueueContext) -> Segment {
        let len = usize::try_from(self.rq.len()).unwrap_or(usize::MAX);
        context.pool.get(len).into_segment_mut(len)
    }

    /// Whether the kernel would refuse the request's own memory.
    fn needs_bounce(&self, context: &QueueContext) -> bool {
        self.rq.segment_count() > Operation::MAX_SEGMENTS
            || (self.cached_from > 0
                && (context.memory_align > 1 || context.offset_align > 1)
                && self
                    .rq
                    .segments()
                    .any(|segment| !is_aligned(segment.as_ptr().addr(), segment.len(), context)))
    }

    /// The next way to make zeroes that the file may know. Keeping the space: zero range, or a hole that is
    /// allocated again. Not keeping it: a hole, or zero range. Writing zeroes is left when all else fails,
    /// unless that was ruled out.
    fn zero(mut self, context: &QueueContext) -> Next {
        let can_zero = !context.no_zero_range.load(Ordering::Relaxed);
        let can_punch = !context.no_punch_hole.load(Ordering::Relaxed);
        let keep = self.rq.flags().contains(Flags::NOUNMAP);
        let range = self.whole_blocks(context);
        if range.is_empty() {
            return self.write_zeroes(context);
        }
        let mode = if can_zero && (keep || !can_punch) {
            self.step = Step::ZeroRange;
            Allocate::ZeroRange
        } else if can_punch {
            self.step = Step::PunchHole;
            Allocate::PunchHole
        } else if self.rq.flags().contains(Flags::NOFALLBACK) {
            return self.end(Status::NotSupported);
        } else {
            return self.write_zeroes(context);
        };
        Next::Do(Operation::Allocate { mode, range }, self)
    }

    /// What is left of it becomes zeroes by being written.
    fn write_zeroes(mut self, context: &QueueContext) -> Next {
        self.step = Step::Transfer;
        Next::Do(self.zeroes(context), self)
    }

    /// Zeroes for the next part of what is left.
    fn zeroes(&mut self, context: &QueueContext) -> Operation {
        let mut memory = Segments::new();
        let chunk = (self.turn() - self.done).min(ZERO_CHUNK);
        Segment::zeroes(&mut memory, usize::try_from(chunk).unwrap_or(usize::MAX));
        let offset = self.rq.offset() + self.done;
        self.transfer(Operation::Write { offset, memory, durable: false }, context)
    }

    /// Some bytes have moved: all of them, or the rest is still to be moved.
    fn moved(mut self, operation: Operation, moved: usize, context: &QueueContext) -> Next {
        // Direct I/O goes on from an aligned offset only.
        let align = if self.is_buffered { 1 } else { context.offset_align };
        let part = moved % align;
        let moved = moved - part;
        if moved == 0 {
            let is_again = std::mem::replace(&mut self.was_short, true);
            let left = self.rq.offset() + self.done..self.rq.offset() + self.len;
            if context.was_cut(left) || part == 0 || is_again {
                return self.end(Status::Io);
            }
            // What keeps the rest of the block from moving is said when it is tried again.
            return Next::Do(operation, self);
        }
        self.was_short = false;
        self.done += moved as u64;
        if self.done == self.len {
            // Ours is dropped first, so that the reader has the only reference.
            drop(operation);
            return self.all_moved(context);
        }
        let offset = self.rq.offset() + self.done;
        let operation = match operation {
            Operation::By { transfer, .. } => *transfer,
            operation => operation,
        };
        let (rest, durable) = match operation {
            Operation::CopyRange { from, may_share, .. } => {
                let from = from.after(moved as u64);
                return Next::Do(Operation::CopyRange { offset, from, may_share }, self);
            }
            Operation::Read { memory, .. } => (after(memory, moved), false),
            Operation::Write { memory, durable, .. } => (after(memory, moved), durable),
            other => unreachable!("{other:?} moves no bytes"),
        };
        let next = match self.rq.op() {
            // It was all that is moved in this way, or as many zeroes as are at a time.
            Op::WriteZeroes if rest.is_empty() => self.zeroes(context),
            _ if rest.is_empty() => self.next(context),
            Op::Read => self.transfer(Operation::Read { offset, memory: rest }, context),
            _ => self.transfer(Operation::Write { offset, memory: rest, durable }, context),
        };
        Next::Do(next, self)
    }

    /// All bytes that were to be moved have moved.
    fn all_moved(mut self, context: &QueueContext) -> Next {
        if self.is_cut {
            return self.end(Status::Io);
        }
        if self.is_alone {
            let bytes = self.rq.cur_bytes();
            if let Some(ours) = self.ours.take().filter(|_| self.rq.op() == Op::Read) {
                self.rq.deliver(ours.slice(0, usize::try_from(bytes).unwrap_or(usize::MAX)));
            }
            return Self::go_on(self.rq.update(Status::Ok, bytes), context);
        }
        if self.rq.op() == Op::Read
            && let Some(ours) = self.ours.take()
        {
            self.rq.deliver(ours);
        }
        if self.rq.op() == Op::Write && !self.was_buffered {
            self.end(Status::Ok)
        } else {
            self.finish(context)
        }
    }

    /// The bios that are left of a request that is carried out one by one, the first of them next.
    fn go_on(rest: Option<Request<File>>, context: &QueueContext) -> Next {
        rest.map_or(Next::Ended, |rq| {
            let len = rq.cur_bytes();
            Self::begin(rq, len, context)
        })
    }

    /// The kernel cannot use the memory of some bio (`EFAULT`). The others have nothing to do with it.
    fn without_lost_memory(self, context: &QueueContext) -> Next {
        let done = self.done - self.done % SECTOR_SIZE;
        let Some(rq) = self.rq.update(Status::Ok, done) else { return Next::Ended };
        let first = rq.cur_bytes();
        if self.is_alone || first == rq.len() {
            return Self::go_on(rq.update(Status::Io, first), context);
        }
        Self::begin(rq, first, context)
    }

    /// A step that moves no bytes was done.
    fn stepped(mut self, operation: Operation, context: &QueueContext) -> Next {
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
                data_from(&mut found, context.health.cut_at().saturating_sub(self.rq.offset()));
                let block = (context.offset_align as u64).max(SECTOR_SIZE);
                in_blocks(&found, block, |extent| self.rq.push_extent(extent));
                self.end(Status::Ok)
            }
            (Step::ZeroRange | Step::PunchHole | Step::Reserve, _) => self.zeroed(context),
            _ => self.finish(context),
        }
    }

    /// The whole blocks of it are zeroes; the rest of the last one is written.
    fn zeroed(mut self, context: &QueueContext) -> Next {
        let Range { start, end } = self.whole_blocks(context);
        self.done = end - start;
        if self.done < self.len { self.write_zeroes(context) } else { self.finish(context) }
    }

    /// All is done; what has no durable form of its own is made durable by a sync.
    fn finish(self, context: &QueueContext) -> Next {
        if self.rq.op().is_write() && self.is_durable() {
            return self.sync(context);
        }
        self.end(Status::Ok)
    }

    fn sync(self, context: &QueueContext) -> Next {
        if context.health.has_failed_flush() {
            return self.end(Status::Io);
        }
        Next::Sync(self)
    }

    fn failed(self, operation: &Operation, err: &io::Error, context: &QueueContext) -> Next {
        let status = status(err);
        let is_own_memory = self.step == Step::Transfer && self.ours.is_none();
        match self.step {
            Step::Transfer if is_own_memory && is_fault(err) && self.rq.op() != Op::WriteZeroes => {
                return self.without_lost_memory(context);
            }
            Step::ZeroRange if is_refused(err) => {
                context.no_zero_range.store(true, Ordering::Relaxed);
                return self.zero(context);
            }
            Step::PunchHole if is_refused(err) => {
                context.no_punch_hole.store(true, Ordering::Relaxed);
                return self.zero(context);
            }
            // The zeroes are there; that their space is not kept is no harm where it cannot be.
            Step::Reserve if is_not_supported(err) => return self.zeroed(context),
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
            Operation::CopyRange { .. } if is_refused(err) => {
                return self.end(Status::NotSupported);
            }
            _ => {}
        }
        self.end(status)
    }

    /// Bios of a merged request that were done before it failed end well. What is to be durable is done when it is: not before
    /// its sync, of which this may be the failure.
    pub(crate) fn end(self, status: Status) -> Next {
        let own_memory =
            self.step == Step::Transfer && (self.ours.is_none() || self.rq.op() == Op::Write);
        if !status.is_ok() && own_memory && self.done > 0 && !self.is_durable() {
            let rest = self.rq.update(Status::Ok, self.done - self.done % 512);
            rest.map_or(Next::Ended, |rest| Next::End(rest, status))
        } else {
            Next::End(self.rq, status)
        }
    }
}

/// How a request ends of which the kernel says that. A thread has waited for it: that it would have to wait is no answer.
pub(crate) fn status(err: &io::Error) -> Status {
    match err.raw_os_error().map_or(Status::Io, Status::from_errno) {
        Status::Again => Status::Io,
        status => status,
    }
}

/// The kernel would have had to wait, or was interrupted. The server of a file (FUSE) may say so as well, each time.
fn is_to_be_tried_again(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Whether a file will not make zeroes in a certain way. Some servers of FUSE files answer `EINVAL` to a mode that they do
/// not know; the range is right. Or whether its file system gives or takes no pages by a pipe.
fn is_refused(err: &io::Error) -> bool {
    is_not_supported(err) || err.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error())
}

/// Whether the kernel could not use the memory of a read or write.
fn is_fault(err: &io::Error) -> bool {
    err.raw_os_error() == Some(rustix::io::Errno::FAULT.raw_os_error())
}

/// Whether a write failed for what it was asked with, before anything came to the file: memory that is gone, a range that
/// cannot be.
fn is_owners_fault(err: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::FAULT, Errno::INVAL]
        .iter()
        .any(|errno| err.raw_os_error() == Some(errno.raw_os_error()))
}
