//! A region: 64 MiB of the disk, with a note of which pages were written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockyard_buf::{Mapping, PAGE_SIZE, Segment};
use parking_lot::RwLock;

/// Bytes of a region. Large enough that a disk as large as the machine's memory stays well below the kernel's
/// limit of 65530 mappings (`vm.max_map_count`).
pub(crate) const REGION_SIZE: u64 = (PAGES * PAGE_SIZE) as u64;
const PAGES: usize = 16384;
const WORD: usize = u64::BITS as usize;

/// A stretch of a region with one answer.
pub(crate) enum Run {
    /// The disk's own memory.
    Data(Segment),
    /// Never written, or discarded.
    Hole,
}

/// Memory of a region, and a bit for each page that holds data.
///
/// Writers share the lock, as their copies may race like any two writes to a disk; a discard holds it alone, so
/// that a page never keeps data whose bit is clear.
pub(crate) struct Region {
    memory: Arc<Mapping>,
    written: Box<[AtomicU64]>,
    discarding: RwLock<()>,
}

impl Region {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = Mapping::new(PAGES * PAGE_SIZE)?;
        let written = (0..PAGES / WORD).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { memory, written, discarding: RwLock::new(()) })
    }

    /// Copies `src` to `offset`.
    pub(crate) fn write(&self, offset: usize, src: &Segment) {
        let _shared = self.discarding.read();
        self.memory.write_from(offset, src);
        self.mark(offset, src.len());
    }

    /// Fills with zeroes, keeping the memory.
    pub(crate) fn zero(&self, offset: usize, len: usize) {
        let _shared = self.discarding.read();
        self.memory.zero(offset, len);
        self.mark(offset, len);
    }

    /// Gives whole pages back, and zeroes what is written of the pages at the edges.
    pub(crate) fn discard(&self, offset: usize, len: usize) {
        let _alone = self.discarding.write();
        let end = offset + len;
        let (first, last) =
            (offset.next_multiple_of(PAGE_SIZE).min(end), end / PAGE_SIZE * PAGE_SIZE);
        if first < last {
            self.memory.discard(first, last - first);
            for page in first / PAGE_SIZE..last / PAGE_SIZE {
                self.written[page / WORD].fetch_and(!(1 << (page % WORD)), Ordering::Relaxed);
            }
        }
        let edges =
            if first < last { [(offset, first), (last, end)] } else { [(offset, end), (end, end)] };
        for (from, to) in edges {
            let mut at = from;
            while at < to {
                let next = (at / PAGE_SIZE + 1) * PAGE_SIZE;
                if self.is_written(at / PAGE_SIZE) {
                    self.memory.zero(at, to.min(next) - at);
                }
                at = next;
            }
        }
    }

    /// The stretches of a range, in order: whether each holds data, and its length. Pages are the finest that
    /// is told.
    pub(crate) fn stretches(
        &self,
        offset: usize,
        len: usize,
    ) -> impl Iterator<Item = (bool, usize)> + '_ {
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let data = self.is_written(at / PAGE_SIZE);
            let mut next = (at / PAGE_SIZE + 1) * PAGE_SIZE;
            while next < end && self.is_written(next / PAGE_SIZE) == data {
                next = self.skip_word(next / PAGE_SIZE, data) * PAGE_SIZE;
            }
            let here = next.min(end) - at;
            at += here;
            Some((data, here))
        })
    }

    /// The stretches of a range, with their memory.
    pub(crate) fn runs(&self, offset: usize, len: usize, mut each: impl FnMut(Run, usize)) {
        let mut at = offset;
        for (data, here) in self.stretches(offset, len) {
            each(if data { Run::Data(self.memory.segment(at, here)) } else { Run::Hole }, here);
            at += here;
        }
    }

    /// The page after `page`, or after its word if all of that has the same answer.
    fn skip_word(&self, page: usize, data: bool) -> usize {
        let uniform = if data { u64::MAX } else { 0 };
        if page.is_multiple_of(WORD) && self.written[page / WORD].load(Ordering::Relaxed) == uniform
        {
            page + WORD
        } else {
            page + 1
        }
    }

    fn is_written(&self, page: usize) -> bool {
        self.written[page / WORD].load(Ordering::Acquire) & (1 << (page % WORD)) != 0
    }

    fn mark(&self, offset: usize, len: usize) {
        for page in offset / PAGE_SIZE..(offset + len).div_ceil(PAGE_SIZE) {
            let (word, bit) = (&self.written[page / WORD], 1 << (page % WORD));
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Release);
            }
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        let pages: u64 = self
            .written
            .iter()
            .map(|word| u64::from(word.load(Ordering::Relaxed).count_ones()))
            .sum();
        pages * PAGE_SIZE as u64
    }
}
