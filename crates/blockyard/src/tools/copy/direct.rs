//! Data of a file that goes to the target without passing through this process: within the kernel to another file, or from the
//! page cache to a socket.
//!
//! The source answers a read with the range of its file, and the target writes that ([`Flags::RANGE`], [`Bio::write_range`]):
//! both as requests of their disks, so that whatever holds of these holds of such a copy, a flush at its end and at each
//! checkpoint among it. What does not go that way, or fails, is read and written as everything else, which says precisely what
//! is wrong.
//!
//! XFS and btrfs can have the same blocks in both files, which takes no time and no space, until either is overwritten: that
//! takes new blocks then, and fails on a full file system. A target that has its space (written or preallocated) keeps it, and
//! so do both disks of a copy that a daemon makes while they are served. Else it is as with `cp`, whose user knows of that.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_blkmq::{Bdev, Bio, Features, Flags, Op, Status};
use blockyard_buf::Segments;
use blockyard_sys::page_cache;

use super::work::Shared;

/// Whether data goes that way, and how.
pub(super) struct Direct {
    /// It does, as far as is known.
    works: AtomicBool,
    /// The target is a file.
    to_file: bool,
    /// Which may share blocks with the source.
    shares_blocks: bool,
}

/// What has become of a piece.
pub(super) enum Moved {
    /// It is on the target.
    Yes,
    /// It was read.
    Read(Segments),
    /// It is to be read and written.
    No,
}

impl Direct {
    /// To a target, which may be a file, and share blocks. `sees_data`: somebody wants to look at the data.
    pub(super) fn new(
        target: &Bdev,
        (is_file, shares_blocks): (bool, bool),
        sees_data: bool,
    ) -> Self {
        let can = target.limits().features.contains(Features::FILE_RANGES);
        Self { works: AtomicBool::new(can && !sees_data), to_file: is_file, shares_blocks }
    }

    fn works(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    fn does_not(&self) -> Moved {
        self.works.store(false, Ordering::Relaxed);
        Moved::No
    }
}

impl Shared {
    /// Copies a piece that way, if it goes.
    pub(super) async fn move_directly(&self, cpu: usize, start: u64, len: u64) -> Moved {
        let direct = &self.direct;
        if !direct.works() {
            return Moved::No;
        }
        let read = Bio::at_bytes(Op::Read, start, len).with_flags(Flags::RANGE | Flags::NOMERGE);
        let mut read = self.source.submit_async(cpu, read).await;
        if !read.status().is_ok() {
            return Moved::No;
        }
        let Some(range) = read.take_range() else { return Moved::Read(read.take_data()) };
        if !direct.to_file && !page_cache::has(range.file().as_fd(), range.offset(), range.len()) {
            // Storage would be waited for by the socket's thread.
            return Moved::No;
        }
        let mut write = Bio::write_range(start, range.clone());
        write.flags.set(Flags::SHARE, direct.shares_blocks);
        // A file system lets one write to a file at a time, and whoever else wants to spins: one queue does all.
        let cpu = if direct.to_file { 0 } else { cpu };
        let status = self.target.submit_async(cpu, write).await.status();
        match status {
            // Of a file that became shorter meanwhile there is no telling what was copied.
            Status::Ok if range.is_there() => Moved::Yes,
            // The end of a disk may be no whole block.
            Status::NotSupported if self.is_aligned(start, len) => direct.does_not(),
            _ => Moved::No,
        }
    }

    fn is_aligned(&self, start: u64, len: u64) -> bool {
        self.target.limits().logical_block_size.divides(start | len)
    }
}
