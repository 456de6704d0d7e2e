//! list: from the newest item to the oldest, each is taken with the probability of its weight among those left
//! (`bucket_list_choose`).

use crate::hash::hash4_each;
use crate::lanes::{mask, padded};

/// How many items are looked at at once. Half of the walks end within the newest half.
const BLOCK: usize = 16;

/// Weights, and sums of weights up to each; 0 for what fills up the last lanes, so that it is never taken.
#[derive(Debug)]
pub(crate) struct Weights {
    weights: Box<[u32]>,
    sums: Box<[u32]>,
}

impl Weights {
    pub(crate) fn new(weights: &[u32], sums: &[u32]) -> Self {
        Self { weights: padded(weights.iter().copied(), 0), sums: padded(sums.iter().copied(), 0) }
    }
}

/// The index of the item that is taken from the bucket with a number, for an input and an attempt.
#[inline(always)]
pub(crate) fn choose(ids: &[u32], list: &Weights, bucket: u32, x: u32, r: u32) -> usize {
    let blocks = ids.chunks(BLOCK).zip(list.weights.chunks(BLOCK)).zip(list.sums.chunks(BLOCK));
    for (block, ((ids, weights), sums)) in blocks.enumerate().rev() {
        let (mut hashes, mut taken) = ([0; BLOCK], [false; BLOCK]);
        let len = ids.len().min(weights.len()).min(sums.len());
        let (hashes, taken) = (&mut hashes[..len], &mut taken[..len]);
        hash4_each(x, ids, r, bucket, hashes);
        for (((hash, weight), sum), taken) in hashes.iter().zip(weights).zip(sums).zip(&mut *taken)
        {
            *taken = part(hash & 0xffff, *sum) < *weight;
        }
        let taken = mask(taken, |taken| taken);
        if let Some(lane) = taken.checked_ilog2() {
            return block * BLOCK + lane as usize;
        }
    }
    0
}

/// (`hash` * `sum`) >> 16 for a hash of 16 bits. In two halves, of which neither needs more than 32.
#[inline(always)]
fn part(hash: u32, sum: u32) -> u32 {
    hash * (sum >> 16) + ((hash * (sum & 0xffff)) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash32_4;
    use crate::lanes;

    #[test]
    fn halves_multiply_as_a_whole() {
        for sum in [0, 1, 0xffff, 0x1_0000, 0x1_0001, 0x7fff_ffff, 0x8000_0001, u32::MAX] {
            for hash in [0, 1, 2, 0x7fff, 0x8000, 0xfffe, 0xffff] {
                let whole = (u64::from(hash) * u64::from(sum)) >> 16;
                assert_eq!(u64::from(part(hash, sum)), whole, "{hash:#x} * {sum:#x}");
            }
        }
    }

    #[test]
    fn the_newest_item_that_is_taken_is_found_as_one_by_one() {
        let ids: Vec<i32> = (0..77).collect();
        let weights: Vec<u32> =
            (0..77_u32).map(|item| [0x1_0000, 0, 1, 0x3_4567][item as usize % 4]).collect();
        let sums: Vec<u32> = weights
            .iter()
            .scan(0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            })
            .collect();
        for len in [1, 2, 7, 8, 9, 16, 17, 77] {
            let lanes = (lanes::ids(&ids[..len]), Weights::new(&weights[..len], &sums[..len]));
            for x in 0..500 {
                let taken = |&item: &usize| {
                    let hash = hash32_4(x, ids[item].cast_unsigned(), 5, 99) & 0xffff;
                    (u64::from(hash) * u64::from(sums[item])) >> 16 < u64::from(weights[item])
                };
                let expected = (0..len).rev().find(taken).unwrap_or(0);
                assert_eq!(
                    choose(&lanes.0, &lanes.1, 99, x, 5),
                    expected,
                    "{len} items, input {x}"
                );
            }
        }
    }
}
