//! Cutting a disk into pieces by its block map.

use blockyard_blkmq::Status;

use super::PIECE;
use super::extents::Run;

/// Bytes of zeroes that are told apart from data: less is not worth a request of its own.
const LEAST_ZEROES: u64 = 4096;

/// A part of a disk, in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    /// It reads as zeroes.
    pub(super) zero: bool,
}

/// Gives the parts of the first `size` bytes of a disk, in order, with borders that are multiples of `block`
/// (or the end): data is rounded up, zeroes are rounded down. `take` says whether it wants more.
pub(super) fn parts<E: From<Status>>(
    runs: impl Iterator<Item = Result<Run, Status>>,
    block: u64,
    size: u64,
    mut take: impl FnMut(Part) -> Result<bool, E>,
) -> Result<(), E> {
    let mut at = 0;
    for run in runs {
        let run = run?;
        let end = run.end().min(size);
        let whole_end = if end == size { size } else { end / block * block };
        if run.zero {
            let start = run.start.div_ceil(block).saturating_mul(block);
            if whole_end < start.saturating_add(LEAST_ZEROES) && end != size || whole_end <= start {
                continue;
            }
            if at < start && !take(Part { start: at, end: start, zero: false })? {
                return Ok(());
            }
            if !take(Part { start, end: whole_end, zero: true })? {
                return Ok(());
            }
            at = whole_end;
        } else if at < whole_end {
            if !take(Part { start: at, end: whole_end, zero: false })? {
                return Ok(());
            }
            at = whole_end;
        }
        if end == size {
            break;
        }
    }
    if at < size {
        take(Part { start: at, end: size, zero: false })?;
    }
    Ok(())
}

/// Cuts a range at multiples of a length.
pub(super) fn cut(start: u64, end: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = start;
    std::iter::from_fn(move || {
        let from = at;
        at = (from / len + 1).saturating_mul(len).min(end);
        (from < end).then_some((from, at - from))
    })
}

/// Cuts data into pieces.
pub(super) fn pieces(start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    cut(start, end, PIECE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn collect(lens: &[(u64, bool)], block: u64, size: u64) -> Vec<Part> {
        let mut start = 0;
        let runs: Vec<_> = lens
            .iter()
            .map(|&(len, zero)| {
                start += len;
                Ok(Run { start: start - len, len, hole: zero, zero })
            })
            .collect();
        let mut found = Vec::new();
        parts::<Status>(runs.into_iter(), block, size, |part| {
            found.push(part);
            Ok(true)
        })
        .unwrap();
        found
    }

    #[test]
    fn data_grows_to_whole_blocks_and_zeroes_shrink() {
        let found = collect(&[(5000, false), (20000, true), (7768, false)], 4096, 32768);
        let part = |start, end, zero| Part { start, end, zero };
        assert_eq!(
            found,
            [
                part(0, 4096, false),
                part(4096, 8192, false),
                part(8192, 24576, true),
                part(24576, 32768, false)
            ]
        );
    }

    proptest! {
        #[test]
        fn parts_cover_the_disk_and_zeroes_are_zeroes(
            lens in prop::collection::vec((1_u64..40, any::<bool>()), 1..20),
            shift in 9_u32..13,
        ) {
            let lens: Vec<_> = lens.into_iter().map(|(len, zero)| (len * 512, zero)).collect();
            let total: u64 = lens.iter().map(|(len, _)| len).sum();
            let block = 1 << shift;
            let size = total / block * block;
            let mut at = 0;
            for part in collect(&lens, block, size) {
                prop_assert_eq!(part.start, at);
                prop_assert!(part.end > part.start && (part.end % block == 0 || part.end == size));
                let mut start = 0;
                for &(len, zero) in &lens {
                    let overlaps = start < part.end && start + len > part.start;
                    prop_assert!(!part.zero || zero || !overlaps);
                    start += len;
                }
                at = part.end;
            }
            prop_assert_eq!(at, size);
        }
    }

    #[test]
    fn cuts_are_at_multiples() {
        assert_eq!(cut(3, 12, 5).collect::<Vec<_>>(), [(3, 2), (5, 5), (10, 2)]);
        assert_eq!(cut(3, 3, 5).count(), 0);
    }
}
