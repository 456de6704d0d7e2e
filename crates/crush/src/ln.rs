//! The logarithm that straw2 draws with: `crush_ln` of Ceph's `src/crush/mapper.c`, bit for bit.
//!
//! `crush_ln(u)` is about 2^44 log2(u + 1) in fixed point. Ceph looks it up in three tables
//! (`src/crush/crush_ln_table.h`), whose values are derived here:
//!
//! - of the reciprocal: 2^48 / (1 + k/128), rounded up, for k of 0 to 128;
//! - of the logarithm: 2^48 log2(1 + k/128), rounded down, but 0xffff00000000 for k = 128;
//! - of the fine logarithm: 2^48 log2(1 + k/2^15), rounded down, plus an error of 5,493,489,664 that all clusters
//!   share, but for the entries of [`FINE_ERRORS`]. It makes `crush_ln` fall in some places where it should rise.
//!
//! A test pins all 65,536 results.

use std::sync::LazyLock;

/// The error of the fine logarithm in most entries.
const FINE_ERROR: u64 = 5_493_489_664;

/// The entries of the fine logarithm that have another error.
const FINE_ERRORS: [(usize, u64); 44] = [
    (0, 0),
    (1, 0),
    (56, 5_349_423_536),
    (127, 978_272_901),
    (134, 3_588_789_669),
    (181, 4_007_963_589),
    (184, 5_423_282_367),
    (188, 2_201_924_427),
    (193, 3_829_329_171),
    (198, 2_511_158_322),
    (199, 2_670_353_280),
    (200, 3_807_665_765),
    (203, 0),
    (207, 5_045_407_031),
    (210, 4_635_559_696),
    (212, 3_670_382_108),
    (216, 0),
    (222, 0),
    (225, 3_209_098_745),
    (227, 1_514_328_394),
    (228, 2_662_093_655),
    (229, 561_838_844),
    (231, 3_537_203_772),
    (233, 0),
    (235, 4_861_921_003),
    (236, 5_281_046_906),
    (237, 0),
    (238, 0),
    (239, 0),
    (240, 2_650_193_885),
    (241, 4_203_558_265),
    (243, 0),
    (244, 0),
    (245, 0),
    (246, 0),
    (247, 362_109_528),
    (248, 0),
    (249, 0),
    (250, 0),
    (251, 0),
    (252, 0),
    (253, 0),
    (254, 0),
    (255, 0),
];

/// floor(2^48 log2(`mantissa` / 2^63)) for a mantissa in [2^63, 2^64): squaring yields a binary digit at a time.
fn log2(mantissa: u64) -> u64 {
    let mut mantissa = u128::from(mantissa);
    let mut digits = 0;
    for _ in 0..48 {
        mantissa = (mantissa * mantissa) >> 63;
        digits <<= 1;
        if mantissa >> 64 != 0 {
            mantissa >>= 1;
            digits |= 1;
        }
    }
    digits
}

/// Ceph's three tables.
struct Tables {
    reciprocal: [u64; 129],
    coarse: [u64; 129],
    fine: [u64; 256],
}

impl Tables {
    fn derive() -> Self {
        let reciprocal = std::array::from_fn(|k| (1_u64 << 55).div_ceil(128 + k as u64));
        let coarse = std::array::from_fn(|k| match k {
            128 => 0xffff_0000_0000,
            _ => log2((128 + k as u64) << 56),
        });
        let mut fine = std::array::from_fn(|k| log2((32_768 + k as u64) << 48) + FINE_ERROR);
        for (k, error) in FINE_ERRORS {
            fine[k] = fine[k] - FINE_ERROR + error;
        }
        Self { reciprocal, coarse, fine }
    }

    /// `crush_ln(u)`. The operand u + 1 is shifted into [2^15, 2^16]; `coarse` takes its upper bits, and `fine` what
    /// remains when those are divided out.
    fn ln(&self, u: u16) -> u64 {
        let operand = u32::from(u) + 1;
        let shift = (operand.leading_zeros()).saturating_sub(16);
        let operand = operand << shift;
        let k = (operand >> 8) as usize - 128;
        let rest = u64::from(operand).wrapping_mul(self.reciprocal[k]) >> 48;
        let logarithm = self.coarse[k] + self.fine[(rest & 0xff) as usize];
        (u64::from(15 - shift) << 44) + (logarithm >> 4)
    }
}

/// Per 16-bit hash u: 2^48 - `crush_ln(u)`, plus a half, which is exact in a double.
pub(crate) type Negated = [f64; 1 << 16];

static NEGATED: LazyLock<Box<Negated>> = LazyLock::new(|| {
    let tables = Tables::derive();
    let mut negated = Box::new([0.0; 1 << 16]);
    for u in 0..=u16::MAX {
        let magnitude = (1_u64 << 48) - tables.ln(u);
        negated[usize::from(u)] = magnitude as f64 + 0.5;
    }
    negated
});

/// The table that straw2 reads, derived at first use.
pub(crate) fn negated() -> &'static Negated {
    &NEGATED
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a of the 65,536 results of Ceph 16.2.15 as little-endian 64-bit numbers.
    const CEPH: u64 = 0xf2dc_9fa8_d124_387e;

    #[test]
    fn every_logarithm_is_cephs() {
        let tables = Tables::derive();
        let mut sum = 0xcbf2_9ce4_8422_2325_u64;
        for u in 0..=u16::MAX {
            for byte in tables.ln(u).to_le_bytes() {
                sum = (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        assert_eq!(sum, CEPH);
        assert_eq!(tables.ln(0), 0);
        assert_eq!(tables.ln(1_000), 175_345_047_775_141);
        assert_eq!(tables.ln(u16::MAX), 0xffff_f000_0000);
    }
}
