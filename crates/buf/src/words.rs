//! Numbers in memory that another process reads and writes at the same time: rings and what describes them.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::Segment;

/// A run of bytes that is read and written as numbers, little-endian ones. Each access is atomic, so that a number is never
/// torn; what it is worth is for the caller to judge, as it may change at any time.
#[derive(Clone)]
pub struct SharedWords(Segment);

macro_rules! access {
    ($load:ident, $store:ident, $atomic:ty, $number:ty) => {
        /// The number at `offset`.
        ///
        /// # Panics
        /// If it is not inside, or `offset` is no multiple of its size: that is a bug of the caller.
        #[must_use]
        #[inline]
        pub fn $load(&self, offset: usize, order: Ordering) -> $number {
            let ptr = self.at(offset, size_of::<$number>()).cast::<$number>();
            // SAFETY: `at` checked that the number is inside and aligned; the segment keeps the memory mapped and
            // readable, and nobody borrows it (see `Segment::from_raw`). What others write to it, they write
            // atomically, or are another process.
            <$number>::from_le(unsafe { <$atomic>::from_ptr(ptr) }.load(order))
        }

        /// Sets the number at `offset`.
        ///
        /// # Panics
        /// If it is not inside, or `offset` is no multiple of its size: that is a bug of the caller.
        #[inline]
        pub fn $store(&self, offset: usize, number: $number, order: Ordering) {
            let ptr = self.at(offset, size_of::<$number>()).cast::<$number>();
            // SAFETY: as for loading; that the segment is writable was checked when this was made.
            unsafe { <$atomic>::from_ptr(ptr) }.store(number.to_le(), order);
        }
    };
}

impl SharedWords {
    /// The bytes of `segment` as numbers; `None` if they cannot be written, or do not start at a multiple of 8, so that
    /// numbers of any size may be read from them.
    #[must_use]
    pub fn new(segment: Segment) -> Option<Self> {
        Self::with_alignment(segment, align_of::<u64>())
    }

    /// As [`SharedWords::new`] for numbers of at most `alignment` bytes.
    #[must_use]
    pub fn with_alignment(segment: Segment, alignment: usize) -> Option<Self> {
        let aligned = segment.as_ptr().addr().is_multiple_of(alignment);
        (segment.is_writable() && aligned).then_some(Self(segment))
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    access!(load_u8, store_u8, AtomicU8, u8);
    access!(load_u16, store_u16, AtomicU16, u16);
    access!(load_u32, store_u32, AtomicU32, u32);
    access!(load_u64, store_u64, AtomicU64, u64);

    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let ptr = self.0.as_ptr().wrapping_add(offset);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.0.len());
        assert!(
            inside && ptr.addr().is_multiple_of(len),
            "a number that is outside, or not aligned"
        );
        ptr
    }
}

impl fmt::Debug for SharedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedWords({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mapping, PAGE_SIZE};

    #[test]
    fn numbers_are_little_endian_and_the_same_bytes() {
        let map = Mapping::new(PAGE_SIZE).unwrap();
        let words = SharedWords::new(map.segment(8, 16)).unwrap();
        words.store_u64(0, 0x0807_0605_0403_0201, Ordering::Release);
        words.store_u16(8, 0x0a09, Ordering::Relaxed);
        words.store_u8(10, 0x0b, Ordering::Relaxed);
        assert_eq!(map.segment(8, 11).to_vec(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(words.load_u16(2, Ordering::Acquire), 0x0403);
        assert_eq!(words.load_u32(4, Ordering::Relaxed), 0x0807_0605);
    }

    #[test]
    fn what_is_not_aligned_or_read_only_is_refused() {
        let map = Mapping::new(PAGE_SIZE).unwrap();
        assert!(SharedWords::new(map.segment(4, 16)).is_none());
        assert!(SharedWords::with_alignment(map.segment(4, 16), 4).is_some());
        assert!(SharedWords::new(Segment::zero_run(16)).is_none());
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn a_number_past_the_end_is_a_bug() {
        let map = Mapping::new(PAGE_SIZE).unwrap();
        let _ = SharedWords::new(map.segment(0, 16)).unwrap().load_u32(14, Ordering::Relaxed);
    }
}
