//! straw2: each item draws a number that is exponentially distributed by its weight, and the least wins.
//!
//! Ceph draws `(crush_ln(hash & 0xffff) - 2^48) / weight` with signed 64-bit division, which rounds towards 0; the
//! greatest draw wins, and the first of equal draws (`bucket_straw2_choose` of `src/crush/mapper.c`). A weight of 0
//! draws the least number there is, and a weight of 2^31 or more counts as negative, since it passes through a C
//! `int`.
//!
//! Here, with n = 2^48 - `crush_ln`, an item draws (n + 1/2) * (1 / weight) in doubles, and the least wins, so that
//! nothing is divided. That number lies between two multiples of 1 / weight, half of 1 / weight away from either,
//! while the two roundings are off by at most 2^48 / weight * 2^-52 together; therefore it truncates to exactly n /
//! weight. As truncation is monotonic, only draws that look better need to be truncated to see whether they are.

use crate::hash::{LANES, hash3_each};
use crate::ln::Negated;

/// Ids as they are hashed, in lanes.
pub(crate) type Ids = Box<[[u32; LANES]]>;
/// Reciprocals of weights, in lanes; infinite for a weight of 0, and for what fills up the last lanes.
pub(crate) type Weights = Box<[[f64; LANES]]>;

pub(crate) fn ids(ids: &[i32]) -> Ids {
    let chunk = |chunk: &[i32]| {
        let mut lanes = [0; LANES];
        lanes.iter_mut().zip(chunk).for_each(|(lane, id)| *lane = id.cast_unsigned());
        lanes
    };
    ids.chunks(LANES).map(chunk).collect()
}

pub(crate) fn weights(weights: &[u32]) -> Weights {
    let chunk = |chunk: &[u32]| {
        let mut lanes = [f64::INFINITY; LANES];
        // The reciprocal of 0 is infinite, too.
        lanes.iter_mut().zip(chunk).for_each(|(lane, weight)| {
            *lane = 1.0 / f64::from(weight.cast_signed());
        });
        lanes
    };
    weights.chunks(LANES).map(chunk).collect()
}

/// The index of the item that wins for an input and an attempt.
#[inline]
pub(crate) fn choose(
    logarithms: &Negated,
    ids: &[[u32; LANES]],
    weights: &[[f64; LANES]],
    x: u32,
    r: u32,
) -> usize {
    let mut winner = 0;
    let mut least = f64::INFINITY;
    for (chunk, (ids, weights)) in ids.iter().zip(weights).enumerate() {
        let hashes = hash3_each(x, ids, r);
        for lane in 0..LANES {
            let draw = logarithms[(hashes[lane] & 0xffff) as usize] * weights[lane];
            if draw < least && truncate(draw) < truncate(least) {
                least = draw;
                winner = chunk * LANES + lane;
            }
        }
    }
    winner
}

/// Rounds towards 0; infinity becomes the greatest number.
#[allow(clippy::cast_possible_truncation, reason = "saturates, and draws are below 2^49")]
fn truncate(draw: f64) -> i64 {
    draw as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ln;

    /// Ceph's way to draw.
    fn divided(magnitude: u64, weight: u32) -> i64 {
        if weight == 0 { i64::MAX } else { magnitude as i64 / i64::from(weight.cast_signed()) }
    }

    #[test]
    fn a_product_truncates_to_the_quotient() {
        let logarithms = ln::negated();
        let ones = (1..=16).map(|n| n * 0x1_0000);
        let edges =
            [0, 1, 2, 3, 5, 7, 0xffff, 0x1_0001, 0x7fff_ffff, 0x8000_0000, 0xffff_0000, u32::MAX];
        let odd = (0..200_u32).map(|n| n.wrapping_mul(2_654_435_761));
        for weight in ones.chain(edges).chain(odd) {
            let reciprocal = weights(&[weight])[0][0];
            for u in (0..=0xffff).step_by(7).chain([0, 1, 0xffff]) {
                let drawn = truncate(logarithms[u] * reciprocal);
                let magnitude = truncate(logarithms[u]) as u64;
                assert_eq!(drawn, divided(magnitude, weight), "weight {weight:#x}, hash {u:#x}");
            }
        }
    }

    #[test]
    fn multiples_of_the_weight_are_not_missed() {
        for weight in [3_u32, 7, 0x1_0000, 0x1_2345, 0xa_0007, 0x7fff_fff1] {
            let reciprocal = weights(&[weight])[0][0];
            for quotient in [1_u64, 2, 3, 1_000_003] {
                for magnitude in [quotient * u64::from(weight) - 1, quotient * u64::from(weight)] {
                    let drawn = truncate((magnitude as f64 + 0.5) * reciprocal);
                    assert_eq!(drawn, divided(magnitude, weight), "{magnitude} / {weight}");
                }
            }
        }
    }

    #[test]
    fn the_first_item_wins_when_all_weigh_nothing() {
        let (ids, weights) = (ids(&[3, 4, 5]), weights(&[0, 0, 0]));
        assert_eq!(choose(ln::negated(), &ids, &weights, 1, 2), 0);
    }
}
