//! What is asked of a disk, and how it ended.

use std::fmt;

/// An operation, as `enum req_op` has it, with two that user space adds ([`Op::BlockStatus`] and
/// [`Op::Prefetch`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Bytes from the disk.
    Read,
    /// Bytes to the disk.
    Write,
    /// All writes that completed before this was submitted are durable once it completes.
    Flush,
    /// The range is not needed any more; it may read as anything that it read as before, or as zeroes.
    Discard,
    /// The range can not be read back by any means.
    SecureErase,
    /// The range reads as zeroes from now on.
    WriteZeroes,
    /// Which parts of the range are holes, or read as zeroes ([`crate::Extent`]).
    BlockStatus,
    /// The range will be read soon.
    Prefetch,
}

impl Op {
    /// How many operations there are.
    pub const COUNT: usize = 8;

    /// Whether the operation changes what is on the disk.
    #[must_use]
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::SecureErase | Self::WriteZeroes)
    }

    /// Whether bytes travel with the operation.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }

    /// Which of the statistics' groups it is counted in. Flushes have their own; what moves no bytes and changes none
    /// is counted in none.
    #[must_use]
    pub const fn group(self) -> Option<StatGroup> {
        match self {
            Self::Read => Some(StatGroup::Read),
            Self::Write | Self::WriteZeroes => Some(StatGroup::Write),
            Self::Discard | Self::SecureErase => Some(StatGroup::Discard),
            Self::Flush => Some(StatGroup::Flush),
            Self::BlockStatus | Self::Prefetch => None,
        }
    }
}

/// The groups that `/proc/diskstats` counts by (kernel: `enum stat_group`,
/// Documentation/admin-guide/iostats.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatGroup {
    /// Reads.
    Read = 0,
    /// Writes, write-zeroes included.
    Write = 1,
    /// Discards and secure erases.
    Discard = 2,
    /// Flushes.
    Flush = 3,
}

impl StatGroup {
    /// How many groups there are.
    pub const COUNT: usize = 4;
    /// All of them, in the order of `/proc/diskstats`.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Discard, Self::Flush];
}

bitflags::bitflags! {
    /// How an operation is to be done (kernel: `REQ_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Flags: u32 {
        /// The data is durable when the write completes.
        const FUA = 1 << 0;
        /// A flush goes before the data.
        const PREFLUSH = 1 << 1;
        /// Somebody waits for it.
        const SYNC = 1 << 2;
        /// It is metadata.
        const META = 1 << 3;
        /// Never merge it with another.
        const NOMERGE = 1 << 4;
        /// Fail with [`Status::Again`] rather than wait for a tag.
        const NOWAIT = 1 << 5;
        /// The submitter polls for its completion.
        const POLLED = 1 << 6;
        /// A write-zeroes keeps the range allocated (kernel: `REQ_NOUNMAP`).
        const NOUNMAP = 1 << 7;
        /// A write-zeroes fails with [`Status::NotSupported`] rather than be as slow as a write (kernel:
        /// `BLKDEV_ZERO_NOFALLBACK`).
        const NOFALLBACK = 1 << 8;
        /// A read's memory may be the driver's own: the bio has no segments when it is submitted, and the
        /// driver's when it ends.
        const SUPPLY = 1 << 9;
        /// What answers a read with [`Flags::SUPPLY`] may be pages of a file, held by reference
        /// ([`crate::Bio::take_pages`]): its submitter can send them, and does not look at them. Whatever is made of
        /// such a read on its way, if it is cut or trimmed, asks for memory.
        const PAGES = 1 << 12;
        /// What answers a read with [`Flags::SUPPLY`] may be the range of a file that it is in, of which nothing was read
        /// ([`crate::Bio::take_range`]). As of [`Flags::PAGES`], what is cut or trimmed asks for memory.
        const RANGE = 1 << 13;
        /// A write of a range of a file ([`crate::Bio::write_range`]) may share the blocks of that file, where the disk is a
        /// file, too, and has no space of its own for them yet. Whoever overwrites either needs more space then.
        const SHARE = 1 << 14;
        /// A block status query wants the first extent only.
        const FIRST_EXTENT = 1 << 10;
        /// It may have one of the tags that are kept for what must not wait behind ordinary I/O (kernel:
        /// `BLK_MQ_REQ_RESERVED`).
        const RESERVED = 1 << 11;
    }
}

/// How an operation ended (kernel: `blk_status_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    #[default]
    Ok,
    /// The disk cannot do that.
    NotSupported,
    /// It took longer than the queue's timeout.
    Timeout,
    /// No room left where the bytes live.
    NoSpace,
    /// The way to where the bytes live is broken.
    Transport,
    /// A reservation of another holds the disk.
    ReservationConflict,
    /// The medium cannot be read or written there.
    Medium,
    /// The disk, or the way it was opened, is read-only; or the caller is not allowed to.
    NotPermitted,
    /// Out of memory or another resource.
    Resource,
    /// Anything else that went wrong below.
    Io,
    /// It would have had to wait, and was told not to.
    Again,
    /// The disk is gone, or going.
    Offline,
    /// Unaligned, or otherwise not a valid operation on this disk.
    Invalid,
    /// Past the end of the disk.
    OutOfRange,
}

impl Status {
    /// Whether it went well.
    #[must_use]
    pub const fn is_ok(self) -> bool {
        matches!(self, Self::Ok)
    }

    /// The errno of the kernel's own table (`block/blk-core.c`, `blk_errors`), as a positive number; 0 for
    /// [`Status::Ok`].
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::NotSupported => 95,         // EOPNOTSUPP
            Self::Timeout => 110,             // ETIMEDOUT
            Self::NoSpace => 28,              // ENOSPC
            Self::Transport => 67,            // ENOLINK
            Self::ReservationConflict => 52,  // EBADE
            Self::Medium => 61,               // ENODATA
            Self::NotPermitted => 1,          // EPERM
            Self::Resource => 12,             // ENOMEM
            Self::Io | Self::OutOfRange => 5, // EIO
            Self::Again => 11,                // EAGAIN
            Self::Offline => 19,              // ENODEV
            Self::Invalid => 22,              // EINVAL
        }
    }

    /// What an errno from below means for an operation.
    #[must_use]
    pub const fn from_errno(errno: i32) -> Self {
        match errno.unsigned_abs() {
            0 => Self::Ok,
            95 => Self::NotSupported,
            110 => Self::Timeout,
            28 | 27 | 122 => Self::NoSpace,   // ENOSPC, EFBIG, EDQUOT
            67 | 104 | 32 => Self::Transport, // ENOLINK, ECONNRESET, EPIPE
            52 => Self::ReservationConflict,
            61 => Self::Medium,
            1 | 13 | 30 => Self::NotPermitted, // EPERM, EACCES, EROFS
            12 => Self::Resource,
            11 => Self::Again,
            19 | 6 | 108 => Self::Offline, // ENODEV, ENXIO, ESHUTDOWN
            22 => Self::Invalid,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "done",
            Self::NotSupported => "operation not supported by the disk",
            Self::Timeout => "timed out",
            Self::NoSpace => "no space left",
            Self::Transport => "connection to the disk lost",
            Self::ReservationConflict => "reserved by another",
            Self::Medium => "medium error",
            Self::NotPermitted => "not permitted",
            Self::Resource => "out of resources",
            Self::Io => "I/O error",
            Self::Again => "would have to wait",
            Self::Offline => "the disk is gone",
            Self::Invalid => "not a valid operation on this disk",
            Self::OutOfRange => "past the end of the disk",
        })
    }
}

impl std::error::Error for Status {}

/// A priority class and a level within it (kernel: `ioprio`). Lower sorts first and is served first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IoPrio {
    /// Before all others. Levels 0 (first) to 7.
    RealTime(u8),
    /// Between the two others. Levels 0 (first) to 7.
    BestEffort(u8),
    /// None asked for: as [`IoPrio::BestEffort`].
    #[default]
    None,
    /// When nothing else is left.
    Idle,
}

/// How long the data is thought to live (kernel: `enum rw_hint`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum WriteHint {
    /// Nothing known.
    #[default]
    NotSet,
    /// Short.
    Short,
    /// Medium.
    Medium,
    /// Long.
    Long,
    /// Extreme.
    Extreme,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_survives_the_way_there_and_back() {
        for errno in [0, 95, 110, 28, 67, 52, 61, 1, 12, 5, 11, 19, 22] {
            assert_eq!(Status::from_errno(errno).errno(), errno);
            assert_eq!(Status::from_errno(-errno).errno(), errno);
        }
    }
}
