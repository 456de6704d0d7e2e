//! What bytes ranges of a disk have, by their CRC-32C.

use std::collections::BTreeMap;
use std::ops::Range;

use blockyard_buf::Segment;

use super::cut::cut;
use super::ranges::Ranges;

/// The shortest stretch of a disk for which there is one sum, and with that what is read, or copied again, at least.
const MIN_STRETCH: u64 = 64 << 20;
/// Stretches that a disk is divided into at most.
const MAX_STRETCHES: u64 = 1 << 14;
/// Bytes that are looked at together.
const BLOCK: usize = 64 << 10;

/// Ranges that do not overlap, with the sums of their bytes. Those that touch are one, within a stretch of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    stretch: u64,
    /// From where each begins to where it ends, and its sum.
    ends: BTreeMap<u64, (u64, u32)>,
}

impl Sums {
    /// None yet, of a disk of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let stretch = size.div_ceil(MAX_STRETCHES).max(MIN_STRETCH).next_power_of_two();
        Self { stretch, ends: BTreeMap::new() }
    }

    /// Adds a range that is none yet, and lies within a stretch: a piece of a disk does.
    pub fn insert(&mut self, range: Range<u64>, mut sum: u32) {
        let Range { mut start, mut end } = range;
        if start >= end {
            return;
        }
        let stretch = |at: u64| at / self.stretch;
        if let Some((&before, &(until, first))) = self.ends.range(..start).next_back()
            && until == start
            && stretch(before) == stretch(start)
        {
            sum = combine(first, sum, end - start);
            start = before;
        }
        if let Some(&(until, last)) = self.ends.get(&end)
            && stretch(end) == stretch(start)
        {
            self.ends.remove(&end);
            sum = combine(sum, last, until - end);
            end = until;
        }
        self.ends.insert(start, (end, sum));
    }

    /// Adds a range of zeroes that is none yet.
    pub fn insert_zeroes(&mut self, range: Range<u64>) {
        for (start, len) in cut(range.start, range.end, self.stretch) {
            self.insert(start..start + len, of_zeroes(len));
        }
    }

    /// The ranges with their sums, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u64>, u32)> + '_ {
        self.ends.iter().map(|(&start, &(end, sum))| (start..end, sum))
    }

    /// The ranges alone.
    #[must_use]
    pub fn ranges(&self) -> Ranges {
        self.iter().map(|(range, _)| range).collect()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// The sum of two texts, one after the other, of which the latter has `len` bytes.
fn combine(first: u32, second: u32, len: u64) -> u32 {
    // What is longer than memory is no piece of a disk.
    crc32c::crc32c_combine(first, second, usize::try_from(len).unwrap_or(usize::MAX))
}

/// The sum of `len` zeroes.
#[must_use]
pub fn of_zeroes(mut len: u64) -> u32 {
    let (mut sum, mut power, mut bytes) = (0, crc32c::crc32c(&[0]), 1_u64);
    while len > 0 {
        if len & 1 == 1 {
            sum = combine(sum, power, bytes);
        }
        len >>= 1;
        if len > 0 {
            power = combine(power, power, bytes);
            bytes *= 2;
        }
    }
    sum
}

/// Goes on with a sum.
#[must_use]
pub fn append(mut sum: u32, data: &[Segment]) -> u32 {
    let mut block = vec![0; BLOCK];
    for segment in data {
        let mut at = 0;
        while at < segment.len() {
            let part = segment.slice(at, (segment.len() - at).min(BLOCK));
            let bytes = &mut block[..part.len()];
            part.copy_to(bytes);
            sum = crc32c::crc32c_append(sum, bytes);
            at += part.len();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeroes_have_the_sum_of_zeroes() {
        for len in [0, 1, 2, 3, 511, 512, 4096, 1 << 20, (1 << 20) + 7] {
            assert_eq!(of_zeroes(len as u64), crc32c::crc32c(&vec![0; len]), "{len}");
        }
    }

    #[test]
    fn neighbours_are_one_within_a_stretch() {
        let mut sums = Sums::new(1 << 30);
        sums.insert_zeroes(0..3 * MIN_STRETCH / 2);
        assert_eq!(sums.iter().count(), 2);
        sums.insert_zeroes(3 * MIN_STRETCH / 2..2 * MIN_STRETCH);
        let found: Vec<_> = sums.iter().collect();
        let sum = of_zeroes(MIN_STRETCH);
        assert_eq!(found, [(0..MIN_STRETCH, sum), (MIN_STRETCH..2 * MIN_STRETCH, sum)]);
        assert_eq!(sums.ranges().bytes(), 2 * MIN_STRETCH);
        assert_eq!(sums.ranges().len(), 1);
        // The largest disk has no more of them than a file may be long.
        let most = Sums::new(u64::MAX >> 1);
        assert!((u64::MAX >> 1) / most.stretch <= MAX_STRETCHES);
    }

    proptest! {
        /// In whatever order pieces come.
        #[test]
        fn a_sum_is_that_of_the_bytes(
            bytes in prop::collection::vec(any::<u8>(), 1..4096),
            order in Just((0..32_usize).collect::<Vec<_>>()).prop_shuffle(),
            len in 1_usize..200,
        ) {
            let mut sums = Sums::new(bytes.len() as u64);
            for index in order {
                let start = (index * len).min(bytes.len());
                let end = (start + len).min(bytes.len());
                let data = [Segment::from_vec(bytes[start..end].to_vec())];
                sums.insert(start as u64..end as u64, append(0, &data));
            }
            let covered = (32 * len).min(bytes.len());
            let found: Vec<_> = sums.iter().collect();
            prop_assert_eq!(found, [(0..covered as u64, crc32c::crc32c(&bytes[..covered]))]);
        }
    }
}
