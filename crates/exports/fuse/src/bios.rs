//! What a request asks of a disk, as a bio.

use blockyard_blkmq::{Bdev, Bio, Features, Flags, Op, Sector};
use blockyard_buf::Segment;
use blockyard_fuse::wire::{FallocateIn, LseekIn, ReadIn, WriteIn};
use blockyard_fuse::{Errno, Operation, Payload, Reply};

use crate::seek::{Seek, Whence};
use crate::tree::Node;

/// A write is to be durable (`O_DSYNC`, which is in `O_SYNC` too).
const O_DSYNC: u32 = 0o10_000;
/// What fallocate(2) is to do (`FALLOC_FL_*`).
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

/// What an answer is to say once its bio has ended.
#[derive(Clone, Copy)]
pub(crate) enum Asked {
    /// Nothing is asked.
    Nothing,
    Read,
    /// So many bytes.
    Write(u32),
    /// That it is done: a flush, zeroes.
    Done,
    Seek(Seek),
}

/// What is wanted of a disk. The data of a write are elsewhere.
#[derive(Clone, Copy)]
pub(crate) enum Wanted {
    Read(ReadIn),
    /// So many bytes.
    Write(WriteIn, usize),
    Flush,
    Allocate(FallocateIn),
    Seek(LseekIn),
}

impl Wanted {
    /// `None` of what is not asked of a disk.
    pub(crate) fn of(operation: &Operation<'_>) -> Option<Self> {
        Some(match operation {
            Operation::Read(args) => Self::Read(*args),
            Operation::Write(args, payload) => Self::Write(*args, payload.len()),
            Operation::Fsync(_) => Self::Flush,
            Operation::Fallocate(args) => Self::Allocate(*args),
            Operation::Lseek(args) => Self::Seek(*args),
            _ => return None,
        })
    }

    /// Bytes that come with it.
    pub(crate) fn data_len(&self) -> usize {
        if let Self::Write(_, len) = self { *len } else { 0 }
    }

    /// Makes the bio ask the disk of `node` for it, with `memory` for the data.
    pub(crate) fn ask(&self, bio: &mut Bio, node: &Node, memory: &Segment) -> Started {
        match self {
            Self::Read(args) => read(bio, node, memory, args),
            Self::Write(args, len) => write(bio, &node.bdev, memory, args, *len),
            Self::Flush => flush(bio, &node.bdev),
            Self::Allocate(args) => allocate(bio, &node.bdev, args),
            Self::Seek(args) => seek(bio, &node.bdev, node.id, args),
        }
    }
}

/// The answer to what the disk need not be asked.
#[derive(Clone, Copy)]
pub(crate) enum AtOnce {
    /// There are no data.
    NoData,
    /// Nothing had to be written.
    NoneWritten,
    Done,
    Failed(Errno),
}

impl AtOnce {
    pub(crate) fn reply(self) -> Reply<'static> {
        match self {
            Self::NoData => Reply::Data(Payload::default()),
            Self::NoneWritten => Reply::Written(0),
            Self::Done => Reply::Empty,
            Self::Failed(errno) => Reply::Error(errno),
        }
    }
}

pub(crate) type Started = Result<Asked, AtOnce>;

/// Where `len` bytes from `offset` on end on the disk; `None` if they are all behind its end.
fn end_within(bdev: &Bdev, offset: u64, len: u64) -> Option<u64> {
    let size = bdev.size_bytes();
    (offset < size).then(|| offset.saturating_add(len).min(size))
}

fn read(bio: &mut Bio, node: &Node, memory: &Segment, args: &ReadIn) -> Started {
    let nothing = Err(AtOnce::NoData);
    let Some(end) = end_within(&node.bdev, args.offset, args.size.into()) else { return nothing };
    let len = u32::try_from(end - args.offset).unwrap_or(args.size);
    if len == 0 {
        return nothing;
    }
    if node.supplies {
        bio.reset_bytes(Op::Read, args.offset, len.into());
    } else {
        bio.reset_bytes(Op::Read, args.offset, 0);
        bio.add_segment(memory.slice(0, len as usize));
    }
    Ok(Asked::Read)
}

fn write(bio: &mut Bio, bdev: &Bdev, memory: &Segment, args: &WriteIn, len: usize) -> Started {
    if bdev.is_read_only() {
        return Err(AtOnce::Failed(Errno::EROFS));
    }
    if len == 0 {
        return Err(AtOnce::NoneWritten);
    }
    let Some(end) = end_within(bdev, args.offset, len as u64) else {
        return Err(AtOnce::Failed(Errno::ENOSPC));
    };
    let len = u32::try_from(end - args.offset).unwrap_or(args.size);
    bio.reset_bytes(Op::Write, args.offset, 0);
    bio.add_segment(memory.slice(0, len as usize));
    bio.flags.set(Flags::FUA, args.flags & O_DSYNC != 0 && can_be_durable(bdev));
    Ok(Asked::Write(len))
}

fn flush(bio: &mut Bio, bdev: &Bdev) -> Started {
    if !can_flush(bdev) {
        return Err(AtOnce::Done);
    }
    bio.reset(Op::Flush, Sector::ZERO, 0);
    Ok(Asked::Done)
}

/// Whether there is a flush. Where there is none, programs go without, as they do on other file systems of such a disk:
/// that it cannot be helped is told where the disk is shown.
pub(crate) fn can_flush(bdev: &Bdev) -> bool {
    !bdev.limits().features.contains(Features::NO_FLUSH)
}

fn can_be_durable(bdev: &Bdev) -> bool {
    bdev.limits().features.contains(Features::FUA) || can_flush(bdev)
}

fn allocate(bio: &mut Bio, bdev: &Bdev, args: &FallocateIn) -> Started {
    let flags = match args.mode & !KEEP_SIZE {
        PUNCH_HOLE => Flags::empty(),
        ZERO_RANGE => Flags::NOUNMAP,
        _ => return Err(AtOnce::Failed(Errno::EOPNOTSUPP)),
    };
    if bdev.is_read_only() {
        return Err(AtOnce::Failed(Errno::EROFS));
    }
    let asked_end = args.offset.saturating_add(args.length);
    if args.mode & KEEP_SIZE == 0 && asked_end > bdev.size_bytes() {
        return Err(AtOnce::Failed(Errno::ENOSPC));
    }
    let Some(end) = end_within(bdev, args.offset, args.length) else {
        return Err(AtOnce::Done);
    };
    bio.reset_bytes(Op::WriteZeroes, args.offset, end - args.offset);
    // As slow as a write it is not to be: whoever asks can write by himself.
    bio.flags |= flags | Flags::NOFALLBACK;
    Ok(Asked::Done)
}

fn seek(bio: &mut Bio, bdev: &Bdev, node: u64, args: &LseekIn) -> Started {
    let whence = Whence::of(args.whence).ok_or(AtOnce::Failed(Errno::EINVAL))?;
    let end = bdev.size_bytes();
    if args.offset >= end {
        return Err(AtOnce::Failed(Errno::ENXIO));
    }
    let seek = Seek { node, whence, at: args.offset, end };
    ask_status(bio, &seek);
    Ok(Asked::Seek(seek))
}

pub(crate) fn ask_status(bio: &mut Bio, seek: &Seek) {
    bio.reset_bytes(Op::BlockStatus, seek.at, seek.end - seek.at);
    bio.flags |= Flags::FIRST_EXTENT;
}
