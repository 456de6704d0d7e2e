//! The memory of requests, cut to what is moved.

use std::ops::Range;

use blockyard_buf::{Segment, Segments};

use crate::context::Context;

/// Whether direct I/O takes a segment: its address is a matter of the memory's alignment, its length of the file's
/// (statx(2), `stx_dio_offset_align`; kernels before 6.18 refuse others).
pub(crate) fn is_aligned(address: usize, len: usize, context: &Context) -> bool {
    address.is_multiple_of(context.memory_align) && len.is_multiple_of(context.offset_align)
}

/// A range of some memory.
pub(crate) fn part(memory: impl Iterator<Item = Segment>, range: Range<u64>) -> Segments {
    let [mut skip, mut left] = [range.start, range.end - range.start]
        .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut part = Segments::new();
    for segment in memory {
        let start = skip.min(segment.len());
        let here = left.min(segment.len() - start);
        (skip, left) = (skip - start, left - here);
        if here > 0 {
            part.push(segment.into_slice(start, here));
        }
    }
    part
}

/// What is left of some memory behind its first `done` bytes.
pub(crate) fn after(memory: Segments, mut done: usize) -> Segments {
    let mut rest = Segments::new();
    for segment in memory {
        let here = done.min(segment.len());
        done -= here;
        let left = segment.len() - here;
        if left > 0 {
            rest.push(segment.into_slice(here, left));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_aligned_as_memory_and_lengths_as_the_file() {
        let context =
            Context { memory_align: 512, offset_align: 4096, ..Context::of("/disk".into(), 0) };
        assert!(is_aligned(512, 8192, &context));
        assert!(!is_aligned(0, 3584, &context) && !is_aligned(0, 512, &context));
        assert!(!is_aligned(100, 4096, &context));
    }

    #[test]
    fn a_part_of_memory_is_that_part() {
        let parts = || [b"abc".to_vec(), b"defg".to_vec()].into_iter().map(Segment::from_vec);
        let of =
            |range| -> Vec<u8> { part(parts(), range).iter().flat_map(Segment::to_vec).collect() };
        assert_eq!(of(0..7), b"abcdefg");
        assert_eq!(of(1..5), b"bcde");
        assert_eq!(of(3..4), b"d");
        assert!(of(7..7).is_empty() && part(parts(), 3..3).is_empty());
    }

    #[test]
    fn what_is_left_of_memory_begins_where_the_transfer_stopped() {
        let parts = || [b"abc".to_vec(), b"defg".to_vec()].into_iter().map(Segment::from_vec);
        let rest = |done| -> Vec<u8> {
            after(parts().collect(), done).iter().flat_map(Segment::to_vec).collect()
        };
        assert_eq!(rest(0), b"abcdefg");
        assert_eq!(rest(2), b"cdefg");
        assert_eq!(rest(3), b"defg");
        assert_eq!(rest(5), b"fg");
        assert!(after(parts().collect(), 7).is_empty());
    }
}
