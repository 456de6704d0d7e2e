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
//!
//! # Most items cannot win
//!
//! Looking a logarithm up costs more than a hash does. So each draw is first bounded, in floats and for many items
//! at once, by a polynomial that is close to `crush_ln`: not below `low`, not above `high` ([`bounds`]). An item
//! whose `low` is above the least `high` of all cannot win; one item in thirty is left in addition to the winner.

use crate::hash::hash3_each;
use crate::lanes::{BLOCK, mask, padded};
use crate::ln::Negated;

/// What weights come to, filled up with weights of 0.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Infinite for a weight of 0.
    reciprocals: Box<[f64]>,
    /// [`UNIT`] / weight, rounded; [`WEIGHTLESS`] for a weight of 0.
    scales: Box<[f32]>,
    /// Whether a weight counts as negative, which no bound is made for.
    unbounded: bool,
}

/// What bounds count in: 2^44, one power of two of the hash.
const UNIT: f32 = 17_592_186_044_416.0;

/// In the place of the scale of a weight of 0: what is drawn with it is beyond [`DRAWS`], yet finite or infinite, and
/// no error of rounding makes it less.
const WEIGHTLESS: f32 = 1e30;

/// Above all draws of weights that are not 0: those are at most 16 * [`UNIT`].
const DRAWS: f32 = 1e15;

impl Weights {
    pub(crate) fn new(weights: &[u32]) -> Self {
        let reciprocal = |&weight: &u32| 1.0 / f64::from(weight.cast_signed());
        #[allow(clippy::cast_possible_truncation, reason = "rounds, which bounds allow for")]
        let scale = |weight: &u32| match weight {
            0 => WEIGHTLESS,
            _ => (f64::from(UNIT) * reciprocal(weight)) as f32,
        };
        Self {
            reciprocals: padded(weights.iter().map(reciprocal), f64::INFINITY),
            scales: padded(weights.iter().map(scale), WEIGHTLESS),
            unbounded: weights.iter().any(|weight| weight.cast_signed() < 0),
        }
    }
}

/// Bounds of (2^48 - `crush_ln(hash & 0xffff)`) / [`UNIT`]. Both leave room for the roundings of a product, 2^-20.
///
/// With v = hash + 1 = 2^e * f, it is about 16 - log2(v) = (15 - e) + (1 - log2(f)); the second part is
/// g * P(g) where g = 2 - f, with P a polynomial that is off by 0.07 %. `crush_ln` is off by up to 2^-15.5.
#[inline(always)]
fn bounds(hash: u32) -> (f32, f32) {
    const P: [f32; 4] = [0.721_15, 0.186_93, 0.031_13, 0.060_79];
    const RELATIVE: f32 = 0.001;
    const ABSOLUTE: f32 = 2.5e-5;
    /// Below all of them.
    const LEAST: f32 = 1e-6;
    // The hash has 16 bits, which a float holds.
    #[allow(clippy::cast_precision_loss)]
    let bits = (((hash & 0xffff) + 1).cast_signed() as f32).to_bits();
    // Exponents are biased by 127.
    #[allow(clippy::cast_precision_loss)]
    let whole = (142 - (bits >> 23).cast_signed()) as f32;
    let g = 2.0 - f32::from_bits(bits & 0x7f_ffff | 0x3f80_0000);
    let about = whole + g * (P[0] + g * (P[1] + g * (P[2] + g * P[3])));
    let low = about * (1.0 - RELATIVE) - ABSOLUTE;
    let high = about * (1.0 + RELATIVE) + ABSOLUTE;
    (if low > LEAST { low } else { LEAST }, high)
}

/// The best item so far.
struct Winner {
    index: usize,
    draw: f64,
}

impl Winner {
    /// The first item wins if none weighs anything.
    const NONE: Self = Self { index: 0, draw: f64::INFINITY };

    #[inline(always)]
    fn challenge(&mut self, index: usize, draw: f64) {
        if draw < self.draw && truncate(draw) < truncate(self.draw) {
            *self = Self { index, draw };
        }
    }
}

/// The index of the item that wins for an input and an attempt.
#[inline(always)]
pub(crate) fn choose(
    logarithms: &Negated,
    ids: &[u32],
    weights: &Weights,
    x: u32,
    r: u32,
) -> usize {
    let mut winner = Winner::NONE;
    let mut least_high = f32::INFINITY;
    let Weights { reciprocals, scales, unbounded } = weights;
    for (block, (ids, scales)) in ids.chunks(BLOCK).zip(scales.chunks(BLOCK)).enumerate() {
        let (mut hashes, mut lows, mut highs) = ([0; BLOCK], [0.0; BLOCK], [0; BLOCK]);
        let len = ids.len().min(scales.len());
        let (hashes, lows, highs) = (&mut hashes[..len], &mut lows[..len], &mut highs[..len]);
        hash3_each(x, ids, r, hashes);
        for (((hash, scale), low), high) in
            hashes.iter().zip(scales).zip(&mut *lows).zip(&mut *highs)
        {
            let (least, most) = bounds(*hash);
            *low = least * scale;
            // Floats that are not negative are in the order of their bits, of which compilers find the least faster.
            *high = (most * scale).to_bits().cast_signed();
        }
        let high = highs.iter().fold(i32::MAX, |least, &high| least.min(high));
        least_high = least_high.min(f32::from_bits(high.cast_unsigned()));
        // Draws are truncated before they are compared.
        let limit = least_high + 1.0;
        let mut candidates = mask(lows, |low| low <= limit);
        if *unbounded {
            candidates = u32::MAX;
        } else if candidates.is_power_of_two() && limit < DRAWS && reciprocals.len() <= BLOCK {
            return candidates.trailing_zeros() as usize;
        }
        while candidates != 0 {
            let lane = candidates.trailing_zeros() as usize;
            candidates &= candidates - 1;
            let index = block * BLOCK + lane;
            let (Some(hash), Some(reciprocal)) = (hashes.get(lane), reciprocals.get(index)) else {
                break;
            };
            winner.challenge(index, logarithms[(hash & 0xffff) as usize] * reciprocal);
        }
    }
    winner.index
}

/// Rounds towards 0; infinity becomes the greatest number.
#[allow(clippy::cast_possible_truncation, reason = "saturates, and draws are below 2^49")]
fn truncate(draw: f64) -> i64 {
    draw as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::hash32_3;
    use crate::{lanes, ln};

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
            let reciprocal = Weights::new(&[weight]).reciprocals[0];
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
            let reciprocal = Weights::new(&[weight]).reciprocals[0];
            for quotient in [1_u64, 2, 3, 1_000_003] {
                for magnitude in [quotient * u64::from(weight) - 1, quotient * u64::from(weight)] {
                    let drawn = truncate((magnitude as f64 + 0.5) * reciprocal);
                    assert_eq!(drawn, divided(magnitude, weight), "{magnitude} / {weight}");
                }
            }
        }
    }

    #[test]
    fn all_logarithms_are_within_their_bounds_with_room_for_roundings() {
        const ROOM: f64 = 1.0 / (1 << 20) as f64;
        for hash in 0..=0xffff_u32 {
            let magnitude = logarithms(hash).floor() / f64::from(UNIT);
            let (low, high) = bounds(hash | 0xabcd_0000);
            assert!(low > 0.0 && f64::from(low) * (1.0 + ROOM) <= magnitude, "{hash:#x}");
            assert!(magnitude <= f64::from(high) * (1.0 - ROOM), "{hash:#x}");
            assert!(magnitude <= 16.0 && f64::from(high) * f64::from(UNIT) < f64::from(DRAWS));
        }
        assert!(f64::from(bounds(0xffff).0) * f64::from(WEIGHTLESS) > f64::from(DRAWS));
    }

    fn logarithms(hash: u32) -> f64 {
        ln::negated()[hash as usize]
    }

    /// Every item in turn.
    fn one_by_one(ids: &[i32], weights: &[u32], x: u32, r: u32) -> usize {
        let (mut winner, mut least) = (0, i64::MAX);
        for (item, (id, &weight)) in ids.iter().zip(weights).enumerate() {
            let hash = hash32_3(x, id.cast_unsigned(), r) & 0xffff;
            let drawn = divided(truncate(logarithms(hash)).cast_unsigned(), weight);
            if drawn < least {
                (winner, least) = (item, drawn);
            }
        }
        winner
    }

    #[test]
    fn the_winner_is_that_of_all_draws() {
        // Same ids draw the same; heavy ones draw 0, 1 and 2, often the same, too.
        let ids: Vec<i32> = (0..300).map(|item: i32| item % 199).collect();
        let kinds: [fn(u32) -> u32; 12] = [
            |_| 0x1_0000,
            |_| 1,
            |_| 0x7fff_ffff,
            |_| 0,
            |item| if item % 61 == 7 { 5 } else { 0 },
            |item| 0x1_0000 + item % 2,
            |item| 0x7fff_ffff - item,
            |item| 0x2000_0000 >> (item % 30),
            |item| item.wrapping_mul(2_654_435_761) >> 1,
            |item| item.wrapping_mul(2_654_435_761) >> 13,
            |item| item.wrapping_mul(2_654_435_761),
            |item| if item == 40 { u32::MAX } else { item % 3 },
        ];
        for (kind, weight) in kinds.into_iter().enumerate() {
            let weights: Vec<u32> = (0..300).map(weight).collect();
            for len in [1, 2, 7, 8, 9, 20, 31, 32, 33, 64, 65, 300] {
                let (ids, weights) = (&ids[..len], &weights[..len]);
                let lanes = (lanes::ids(ids), Weights::new(weights));
                for x in 0..300 {
                    let chosen = choose(ln::negated(), &lanes.0, &lanes.1, x, 2);
                    let expected = one_by_one(ids, weights, x, 2);
                    assert_eq!(chosen, expected, "weights {kind}, {len} items, input {x}");
                }
            }
        }
    }
}
