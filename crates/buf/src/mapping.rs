//! Anonymous memory straight from the kernel, which can be given back a page at a time.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::Segment;

/// Bytes in a page. Blockyard runs where pages are 4 KiB; a kernel with larger pages rounds what is given back
/// inwards.
pub const PAGE_SIZE: usize = 4096;

/// Zeroed memory that costs nothing until it is written: address space is reserved, pages come on first touch.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory, reached through raw pointers only (see `Segment`); it belongs to no
// thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; all access through `&Mapping` is by raw copies, whose races concern bytes and not
// references.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes, rounded up to whole pages. Small pages are asked for: a huge page would make a
    /// sparse write of 4 KiB cost 2 MiB.
    ///
    /// # Errors
    /// What `mmap(2)` says, mostly `ENOMEM` when the address space or the number of mappings is used up.
    pub fn new(len: usize) -> io::Result<Arc<Self>> {
        let len = len.max(1).next_multiple_of(PAGE_SIZE);
        // SAFETY: a null hint with no MAP_FIXED cannot replace an existing mapping.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned a null pointer"))?;
        let mapping = Self { base, len };
        // SAFETY: the range is exactly the mapping made above; this advice does not change its contents. A
        // kernel built without huge pages refuses the advice, and needs none.
        let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxNoHugepage) };
        Ok(Arc::new(mapping))
    }

    /// Bytes that are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least a page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes at `offset`, readable and writable, which keep the mapping alive.
    ///
    /// # Panics
    /// If the range is not inside the mapping: that is a bug of the caller.
    #[must_use]
    pub fn segment(self: &Arc<Self>, offset: usize, len: usize) -> Segment {
        let ptr = self.at(offset, len);
        // SAFETY: `at` checked the range; the Arc keeps the memory mapped; it was mapped writable.
        unsafe { Segment::from_raw(ptr, len, true, Some(Arc::<Self>::clone(self))) }
    }

    /// Copies `src` to `offset`.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn write_from(&self, offset: usize, src: &Segment) {
        let dst = self.at(offset, src.len());
        // SAFETY: both ranges are valid for `src.len()` bytes; `memmove` allows them to overlap. See `Segment`
        // on races.
        unsafe { libc::memmove(dst.as_ptr().cast(), src.as_ptr().cast(), src.len()) };
    }

    /// Sets `len` bytes at `offset` to zero, touching their pages.
    ///
    /// # Panics
    /// If the range is not inside the mapping.
    pub fn zero(&self, offset: usize, len: usize) {
        let dst = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { libc::memset(dst.as_ptr().cast(), 0, len) };
    }

    /// Gives whole pages back to the kernel: they read as zeroes until they are written again.
    ///
    /// # Panics
    /// If `offset` and `len` are not whole pages inside the mapping.
    pub fn discard(&self, offset: usize, len: usize) {
        assert!(
            offset.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE),
            "whole pages only"
        );
        if len == 0 {
            return;
        }
        let at = self.at(offset, len);
        // SAFETY: the range lies inside a private anonymous mapping of ours. No Rust reference points into it
        // (see `Segment`), so that its contents may change to zeroes.
        let given_back = unsafe { madvise(at.as_ptr().cast(), len, Advice::LinuxDontNeed) };
        if given_back.is_err() {
            self.zero(offset, len);
        }
    }

    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "range past the end of the mapping");
        // SAFETY: `offset <= self.len`, so that the result is inside the mapping or one past its end.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is what `mmap` returned, and nothing refers to it: every segment of it holds an Arc
        // of `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_zeroes_keeps_writes_and_forgets_what_is_discarded() {
        let map = Mapping::new(3 * PAGE_SIZE).unwrap();
        assert!(map.segment(0, map.len()).to_vec().iter().all(|&b| b == 0));
        map.segment(PAGE_SIZE - 2, 4).copy_from(b"abcd");
        assert_eq!(map.segment(PAGE_SIZE - 2, 4).to_vec(), b"abcd");
        map.discard(PAGE_SIZE, PAGE_SIZE);
        assert_eq!(map.segment(PAGE_SIZE - 2, 4).to_vec(), b"ab\0\0");
    }

    #[test]
    fn a_segment_outlives_the_handle_of_its_mapping() {
        let map = Mapping::new(PAGE_SIZE).unwrap();
        let segment = map.segment(16, 3);
        segment.copy_from(b"xyz");
        drop(map);
        assert_eq!(segment.to_vec(), b"xyz");
    }

    #[test]
    #[should_panic(expected = "past the end")]
    fn a_range_past_the_end_is_a_bug() {
        let _ = Mapping::new(PAGE_SIZE).unwrap().segment(PAGE_SIZE, 1);
    }
}
