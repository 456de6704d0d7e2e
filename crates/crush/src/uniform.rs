//! uniform: all items weigh the same, and attempt r takes item number r of a random permutation of them
//! (`bucket_perm_choose`).
//!
//! The permutation swaps each position p in turn with a later one, p + hash(p) % (size - p). Only one position is
//! asked for, so nothing is stored: what ends up there is traced back through the swaps.

use crate::hash::{hash3_from, hash32_3};

/// How many positions are hashed at once. Few attempts ask for a later one.
const LANES: u32 = 8;

/// The index of the item that attempt `r` takes from the bucket with a number.
#[inline(always)]
pub(crate) fn choose(size: usize, bucket: u32, x: u32, r: u32) -> usize {
    let wanted = u32::try_from(size).ok().and_then(|size| Some((size, r.checked_rem(size)?)));
    let Some((size, wanted)) = wanted else { return 0 };
    if wanted == 0 {
        return (hash32_3(x, bucket, 0) % size) as usize;
    }
    let mut end = wanted + 1;
    let mut from = None;
    while end > 0 {
        let start = (end - 1) / LANES * LANES;
        let mut hashes = [0; LANES as usize];
        hash3_from(x, bucket, start, &mut hashes);
        for (p, hash) in (start..end).zip(hashes).rev() {
            let swapped = p + hash % (size - p);
            let traced = from.unwrap_or(swapped);
            from = Some(if swapped == traced && p != wanted { p } else { traced });
        }
        end = start;
    }
    from.unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole permutation, as Ceph makes it.
    fn permutation(size: u32, bucket: u32, x: u32) -> Vec<usize> {
        let mut items: Vec<usize> = (0..size as usize).collect();
        for p in 0..size {
            let swapped = p + hash32_3(x, bucket, p) % (size - p);
            items.swap(p as usize, swapped as usize);
        }
        items
    }

    #[test]
    fn each_position_of_a_permutation_is_found_on_its_own() {
        for size in [1, 2, 3, 7, 8, 9, 16, 17, 40] {
            for x in 0..50 {
                let expected = permutation(size, 77, x);
                let found: Vec<usize> =
                    (0..size).map(|r| choose(size as usize, 77, x, r + 3 * size)).collect();
                assert_eq!(found, expected, "{size} items, input {x}");
            }
        }
        assert_eq!(choose(0, 77, 0, 3), 0);
    }
}
