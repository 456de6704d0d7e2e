//! What can be asked of a file, with the memory that it concerns.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use blockyard_buf::{FileRange, Segments, total_len};
use rustix::fs::{Advice, fadvise, fdatasync};
use rustix::io::ReadWriteFlags;

use crate::fallocate::Allocate;
use crate::holes::{self, Run};
use crate::interrupted::uninterrupted;
use crate::{block_device, copy_range, fallocate, transfer};

/// An operation on a file. It owns the memory it concerns until it comes back in its [`Completion`].
#[derive(Debug)]
pub enum Operation {
    /// Bytes from the file, from `offset` on, into `memory`: preadv2(2). Fewer than asked for is a success,
    /// none the end of the file.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// To where; all of it writable, at most [`Operation::MAX_SEGMENTS`] segments.
        memory: Segments,
    },
    /// Bytes to the file: pwritev2(2). Fewer than asked for is a success.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// From where; at most [`Operation::MAX_SEGMENTS`] segments.
        memory: Segments,
        /// It completes only when these bytes are durable (`RWF_DSYNC`).
        durable: bool,
    },
    /// Bytes of another file to this one, within the kernel: splice(2). Fewer than asked for is a success, none the end of
    /// the other file.
    CopyRange {
        /// Where, in bytes.
        offset: u64,
        /// From where.
        from: FileRange,
        /// Both files may have the same blocks from then on (copy_file_range(2), on XFS and btrfs) where this one has no space
        /// of its own.
        may_share: bool,
    },
    /// All that was written before is durable: fdatasync(2).
    Sync,
    /// Changes how a range is allocated: fallocate(2).
    Allocate {
        /// To what.
        mode: Allocate,
        /// Bytes.
        range: Range<u64>,
    },
    /// A block device may forget a range: `BLKDISCARD`.
    Discard {
        /// Bytes, in whole logical blocks.
        range: Range<u64>,
    },
    /// A read or write by another open file description, on a thread: the end of a file that is no whole block is out of
    /// reach for direct I/O.
    By {
        /// The file, open in another way.
        file: Arc<OwnedFd>,
        /// The read or write.
        transfer: Box<Self>,
    },
    /// Where data and holes of a range are: lseek(2), `SEEK_DATA` and `SEEK_HOLE`.
    Map {
        /// Bytes.
        range: Range<u64>,
        /// The most runs to look for.
        most: usize,
        /// The answer, from the start of the range; it may end before the range does.
        found: Vec<Run>,
    },
    /// A range will be read soon: posix_fadvise(2), `POSIX_FADV_WILLNEED`.
    WillNeed {
        /// Bytes.
        range: Range<u64>,
    },
}

impl Operation {
    /// The most segments of one read or write: Linux' `UIO_MAXIOV`.
    pub const MAX_SEGMENTS: usize = 1024;

    /// The memory of a read or write.
    #[must_use]
    pub fn memory(&self) -> &[blockyard_buf::Segment] {
        match self {
            Self::Read { memory, .. } | Self::Write { memory, .. } => memory,
            Self::By { transfer, .. } => transfer.memory(),
            _ => &[],
        }
    }

    /// Bytes that it moves.
    pub(crate) fn len(&self) -> usize {
        total_len(self.memory())
    }

    /// Does it at once, on the caller's thread, which may take as long as the storage takes. Says how many
    /// bytes were moved. What is interrupted is tried again, but for a sync, which says once of what was not written.
    ///
    /// # Errors
    /// What the system call says; of `EINTR` see [`uninterrupted`].
    pub fn run(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        if matches!(self, Self::Sync) {
            return self.run_once(file);
        }
        uninterrupted(|| self.run_once(file))
    }

    fn run_once(&mut self, file: BorrowedFd<'_>) -> io::Result<usize> {
        match self {
            Self::Read { offset, memory } => transfer::read(file, *offset, memory, false),
            Self::Write { offset, memory, durable } => {
                let how = if *durable { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
                transfer::write(file, *offset, memory, how)
            }
            Self::CopyRange { offset, from, may_share } => {
                copy_range::copy(file, *offset, from, *may_share)
            }
            Self::By { file, transfer } => transfer.run_once(file.as_fd()),
            Self::Sync => Ok(fdatasync(file).map(|()| 0)?),
            Self::Allocate { mode, range } => fallocate::allocate(file, *mode, range).map(|()| 0),
            Self::Discard { range } => block_device::discard(file, range).map(|()| 0),
            Self::Map { range, most, found } => {
                *found = holes::map(file, range.clone(), *most)?;
                Ok(0)
            }
            Self::WillNeed { range } => {
                let len = std::num::NonZeroU64::new(range.end.saturating_sub(range.start));
                Ok(fadvise(file, range.start, len, Advice::WillNeed).map(|()| 0)?)
            }
        }
    }

    /// A bug of whoever made it would let the kernel write to memory that must not change, or be refused as a
    /// whole.
    pub(crate) fn assert_valid(&self) {
        if let Self::By { transfer, .. } = self {
            return transfer.assert_valid();
        }
        assert!(self.memory().len() <= Self::MAX_SEGMENTS, "more segments than one call takes");
        if let Self::Read { memory, .. } = self {
            assert!(memory.iter().all(|s| s.is_writable()), "read into a read-only segment");
        }
    }
}

/// An operation that has ended, with what was handed over with it.
pub struct Completion<T> {
    /// The operation, and its memory.
    pub operation: Operation,
    /// Its submitter's own.
    pub token: T,
    /// Bytes that were moved, or why it failed.
    pub result: io::Result<usize>,
}

impl<T> fmt::Debug for Completion<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.operation, self.result)
    }
}
