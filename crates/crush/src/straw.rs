//! straw: each item draws a straw of a length between 0 and its own factor, and the first of the longest wins
//! (`bucket_straw_choose`).

use crate::hash::hash3_each;
use crate::lanes::{BLOCK, mask, padded};

/// The factors of straws, in doubles, which hold their products with 16 bits exactly; filled up with 0.
#[derive(Debug)]
pub(crate) struct Straws(Box<[f64]>);

impl Straws {
    pub(crate) fn new(straws: &[u32]) -> Self {
        Self(padded(straws.iter().map(|&straw| f64::from(straw)), 0.0))
    }
}

/// The index of the item that wins for an input and an attempt.
#[inline(always)]
pub(crate) fn choose(ids: &[u32], straws: &Straws, x: u32, r: u32) -> usize {
    let (mut winner, mut longest) = (0, 0.0);
    for (block, (ids, straws)) in ids.chunks(BLOCK).zip(straws.0.chunks(BLOCK)).enumerate() {
        let (mut hashes, mut lengths) = ([0; BLOCK], [0.0; BLOCK]);
        let len = ids.len().min(straws.len());
        let (hashes, lengths) = (&mut hashes[..len], &mut lengths[..len]);
        hash3_each(x, ids, r, hashes);
        for ((hash, straw), length) in hashes.iter().zip(straws).zip(&mut *lengths) {
            *length = f64::from((hash & 0xffff).cast_signed()) * straw;
        }
        // Floats that are not negative are in the order of their bits, of which compilers find the greatest faster.
        let bits = |length: &f64| length.to_bits().cast_signed();
        let most = f64::from_bits(lengths.iter().map(bits).fold(0, i64::max).cast_unsigned());
        if most > longest {
            longest = most;
            let lane = mask(lengths, |length| length >= most).trailing_zeros() as usize;
            winner = block * BLOCK + lane;
        }
    }
    winner
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash32_3;
    use crate::lanes;

    #[test]
    fn the_first_of_the_longest_straws_wins_as_one_by_one() {
        let ids: Vec<i32> = (0..77).map(|id| id / 2).collect(); // pairs hash the same
        let straws: Vec<u32> =
            (0..77).map(|item| [0x1_0000, 0x1_0000, 0, u32::MAX][item / 2 % 4]).collect();
        for len in [1, 2, 7, 8, 9, 32, 33, 77] {
            let lanes = (lanes::ids(&ids[..len]), Straws::new(&straws[..len]));
            for x in 0..500 {
                let (mut winner, mut longest) = (0, 0);
                for item in 0..len {
                    let hash = hash32_3(x, ids[item].cast_unsigned(), 5) & 0xffff;
                    let length = u64::from(hash) * u64::from(straws[item]);
                    if length > longest {
                        (winner, longest) = (item, length);
                    }
                }
                assert_eq!(choose(&lanes.0, &lanes.1, x, 5), winner, "{len} items, input {x}");
            }
        }
    }
}
