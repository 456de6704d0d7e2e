//! Data of open files.

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use blockyard_fuse::Errno;
use blockyard_fuse::wire::{CopyFileRangeIn, FallocateIn, FopenFlags, LseekIn, OpenIn, OpenOut};
use blockyard_fuse::wire::{WriteFlags, WriteIn};
use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::ReadWriteFlags;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::memory::{Source, Target, write_most};
use super::{CachePolicy, Passthrough, errno, open_flags};
use crate::filesystem::Outcome;

/// The bits of `O_SYNC`: that of `O_DSYNC`, and one for all else that there is to a file.
const O_DSYNC: u32 = 0o10_000;
const O_SYNC_TOO: u32 = 0o4_000_000;

impl Passthrough {
    pub(super) fn open_file(&self, node: u64, args: &OpenIn) -> Outcome<OpenOut> {
        let flags = open_flags(args.flags);
        if (flags & OFlags::RWMODE) != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            self.may_change()?;
        }
        let inode = self.at(node)?;
        if inode.kind == FileType::Directory {
            return Err(Errno::EISDIR);
        }
        let appends = OFlags::from_bits_retain(args.flags).contains(OFlags::APPEND);
        let file = match self.reopen(&inode, flags) {
            // Some files can be nothing but appended to (chattr(1)).
            Err(Errno::EPERM) if appends => self.reopen(&inode, flags | OFlags::APPEND),
            opened => opened,
        };
        file.map(|file| self.opened(file))
    }

    /// A file that is open for the client.
    pub(super) fn opened(&self, file: OwnedFd) -> OpenOut {
        let open_flags = match self.options.cache {
            CachePolicy::Never => FopenFlags::DIRECT_IO,
            CachePolicy::Auto => FopenFlags::empty(),
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
        };
        OpenOut { fh: self.files.insert(file), open_flags, ..OpenOut::default() }
    }

    pub(super) fn write_file(&self, args: &WriteIn, data: &impl Source) -> Outcome<u32> {
        self.may_change()?;
        let file = self.files.find(args.fh)?;
        let kills = args.write_flags.contains(WriteFlags::KILL_SUIDGID);
        let _as_a_user = kills.then(AsUser::new).transpose()?;
        let to = Target { file: file.as_fd(), offset: args.offset, how: how(args) };
        let done = match write_most(to, data) {
            // The file knows of no ways to write (procfs).
            (0, Err(Errno::EOPNOTSUPP)) if !to.how.is_empty() => write_plainly(to, data)?,
            // All pages, or none: how much of them is written the kernel does not ask.
            (_, Err(errno)) if args.write_flags.contains(WriteFlags::CACHE) => return Err(errno),
            (0, outcome) => outcome.map(|()| 0)?,
            (done, _) => done,
        };
        Ok(u32::try_from(done).unwrap_or(u32::MAX))
    }
}

/// How data are written: each request says it, as a descriptor may be made another after it was opened (fcntl(2)), and one write
/// be durable of many that are not (pwritev2(2), a mount with `sync`). Pages are written to where they are, by any descriptor that
/// can write.
fn how(args: &WriteIn) -> ReadWriteFlags {
    let mut how = ReadWriteFlags::empty();
    if args.write_flags.contains(WriteFlags::CACHE) {
        return how;
    }
    how.set(ReadWriteFlags::APPEND, args.flags & OFlags::APPEND.bits() != 0);
    how.set(ReadWriteFlags::DSYNC, args.flags & O_DSYNC != 0);
    how.set(ReadWriteFlags::SYNC, args.flags & O_SYNC_TOO != 0);
    how
}

/// As far as it can be done by hand: there is no end of such a file to append to.
fn write_plainly(to: Target<'_>, data: &impl Source) -> Outcome<usize> {
    let (done, outcome) = write_most(Target { how: ReadWriteFlags::empty(), ..to }, data);
    if done == 0 {
        outcome?;
    }
    if to.how.intersects(ReadWriteFlags::DSYNC | ReadWriteFlags::SYNC) {
        sync(to.file, !to.how.contains(ReadWriteFlags::SYNC))?;
    }
    Ok(done)
}

/// As long as it lives, what the calling thread writes takes set-user-ID and set-group-ID away, as what a user writes does
/// (`CAP_FSETID`, capabilities(7)). The kernel takes them away itself, but not where it keeps no pages.
struct AsUser {
    before: CapabilitySets,
    /// It is of the thread that has made it.
    _thread: PhantomData<*const ()>,
}

impl AsUser {
    fn new() -> Outcome<Self> {
        let before = capabilities(None).map_err(errno)?;
        let effective = before.effective.difference(CapabilitySet::FSETID);
        set_capabilities(None, CapabilitySets { effective, ..before }).map_err(errno)?;
        Ok(Self { before, _thread: PhantomData })
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        // What a thread was permitted, it may always do again.
        let _ = set_capabilities(None, self.before);
    }
}

/// What who closes a descriptor is told: one of ours that is closed with it.
pub(super) fn flush(file: impl AsFd) -> Outcome {
    let with_it = rustix::io::fcntl_dupfd_cloexec(file, 0).map_err(errno)?;
    blockyard_sys::close(with_it)
        .map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(Errno::EIO.raw())))
}

pub(super) fn sync(file: impl AsFd, data_only: bool) -> Outcome {
    if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }.map_err(errno)
}

pub(super) fn allocate(file: impl AsFd, args: &FallocateIn) -> Outcome {
    let mode = FallocateFlags::from_bits(args.mode).ok_or(Errno::EOPNOTSUPP)?;
    rustix::fs::fallocate(file, mode, args.offset, args.length).map_err(errno)
}

/// The position of the open file is nobody's: reads and writes say where.
pub(super) fn seek(file: impl AsFd, args: &LseekIn) -> Outcome<u64> {
    // SEEK_DATA, SEEK_HOLE; all others the kernel does by itself.
    let to = match args.whence {
        3 => SeekFrom::Data(args.offset),
        4 => SeekFrom::Hole(args.offset),
        _ => return Err(Errno::EINVAL),
    };
    rustix::fs::seek(file, to).map_err(errno)
}

pub(super) fn copy(from: impl AsFd, to: impl AsFd, args: &CopyFileRangeIn) -> Outcome<u64> {
    /// What one call copies, so that its length fits an answer.
    const MOST: u64 = 1 << 30;
    if args.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let (mut off_in, mut off_out) = (args.off_in, args.off_out);
    let len = usize::try_from(args.len.min(MOST)).unwrap_or(usize::MAX);
    rustix::fs::copy_file_range(from, Some(&mut off_in), to, Some(&mut off_out), len)
        .map(|len| len as u64)
        .map_err(errno)
}
