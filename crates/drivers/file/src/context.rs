//! What all jobs of a file, and those of a hardware queue, have in common.

use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_buf::{PagePool, Pool};
use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::health::Health;
use crate::sync::Syncs;

/// What all jobs of a file need to know of it.
pub(crate) struct Context {
    pub(crate) is_block_device: bool,
    /// Bytes of what is zeroed and discarded at least: a block of a device, a byte of a file.
    pub(crate) block: u64,
    /// It, where its size is to be asked for.
    pub(crate) file: Option<Arc<OwnedFd>>,
    /// Bytes of the disk. What lies past them in its last block is padding: it reads as zeroes, and is never written. It changes
    /// only while the disk has nothing out.
    pub(crate) size: AtomicU64,
    /// A file that is open for direct I/O once more through the page cache, for an end that is no whole block.
    pub(crate) buffered: Option<Arc<OwnedFd>>,
    /// What memory and offsets are aligned to for direct I/O; 1 without.
    pub(crate) memory_align: usize,
    pub(crate) offset_align: usize,
    /// Bytes of a page of the page cache, and of a block.
    pub(crate) page: u64,
    /// All of it goes through the page cache, by `file`: reads may be answered with ranges of that. Not where a server is asked
    /// for it, which may not answer: whoever has the range would wait for it, within a request of another disk.
    pub(crate) gives_ranges: bool,
    /// Where reads may be answered with pages of the page cache: it is known what is in there, and all of the file goes
    /// through it.
    pub(crate) pages: Option<PagePool>,
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
            block: 1,
            file: None,
            size: AtomicU64::new(size),
            buffered: None,
            memory_align: 1,
            offset_align: 1,
            page: 1,
            gives_ranges: false,
            pages: None,
            health: Health::new(path),
            syncs: Syncs::default(),
            no_zero_range: AtomicBool::new(false),
            no_punch_hole: AtomicBool::new(false),
        }
    }

    /// Where the page cache's part of a disk of `size` bytes begins: the page in which an end is that direct I/O cannot
    /// reach. All of it goes through the cache, and nothing else does: of what is written past the cache into a page that is
    /// in it, one or the other is lost.
    pub(crate) fn cached_from(&self, size: u64) -> u64 {
        if self.buffered.is_none() || size.is_multiple_of(self.offset_align as u64) {
            return u64::MAX;
        }
        size - size % self.page
    }

    /// A read or write of those bytes stopped before it was through. Says whether it came to the end of what there is: storage
    /// may take less than it is given for other reasons, and only the size tells.
    pub(crate) fn was_cut(&self, range: Range<u64>) -> bool {
        let end = if self.is_block_device { Some(range.start) } else { self.size_of_file() };
        let Some(end) = end.filter(|end| *end < range.end) else { return false };
        self.health.was_cut(end, self.is_block_device);
        true
    }

    /// Whether the file is all there, as far as can be told: if it is not, what was written past its end is gone, however well it
    /// was synced.
    pub(crate) fn is_whole(&self) -> bool {
        let promised = self.size.load(Ordering::Acquire);
        if let Some(size) = self.size_of_file().filter(|size| *size < promised) {
            self.health.was_cut(size, false);
        }
        self.health.cut_at() >= promised
    }

    /// Bytes in a regular file, as far as this kernel knows: to ask whoever has it, over a network perhaps, may take long, and a
    /// queue thread waits for nothing.
    fn size_of_file(&self) -> Option<u64> {
        let file = self.file.as_ref().filter(|_| !self.is_block_device)?;
        let as_known = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        statx(file, "", as_known, StatxFlags::SIZE).ok().map(|stat| stat.stx_size)
    }
}

/// What the jobs of a hardware queue need to know: what those of all queues do, and where its own memory comes from.
pub(crate) struct QueueContext {
    pub(crate) shared: Arc<Context>,
    pub(crate) pool: Pool,
}

impl Deref for QueueContext {
    type Target = Context;
    fn deref(&self) -> &Context {
        &self.shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_with_an_odd_end_is_the_page_caches() {
        let buffered = std::fs::File::open("/dev/null").unwrap().into();
        let mut context = Context {
            buffered: Some(Arc::new(buffered)),
            offset_align: 512,
            page: 4096,
            ..Context::of("/disk".into(), 0)
        };
        assert_eq!(context.cached_from(8192 + 700), 8192);
        assert_eq!(context.cached_from(8192 + 512), u64::MAX, "direct I/O reaches all of it");
        assert_eq!(context.cached_from(100), 0);
        context.buffered = None;
        assert_eq!(context.cached_from(8192 + 700), u64::MAX);
    }
}
