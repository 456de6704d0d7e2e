//! Units: sectors and block sizes are types, so that bytes are never mistaken for either.

use std::fmt;
use std::ops::{Add, Sub};

/// Bytes in a [`Sector`]. Always 512, whatever the logical block size of a disk.
pub const SECTOR_SIZE: u64 = 512;
/// `log2` of [`SECTOR_SIZE`].
pub const SECTOR_SHIFT: u32 = 9;

/// A position or a length in sectors of 512 bytes, as `sector_t` is in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The first sector of a disk, or no sectors at all.
    pub const ZERO: Self = Self(0);
    /// The largest capacity: 2^63 - 1 bytes, rounded down to a whole sector.
    pub const MAX: Self = Self(i64::MAX as u64 >> SECTOR_SHIFT);

    /// The sectors wholly inside `bytes`.
    #[must_use]
    pub const fn from_bytes_floor(bytes: u64) -> Self {
        Self(bytes >> SECTOR_SHIFT)
    }

    /// In bytes. Saturates: no valid position does.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(SECTOR_SIZE)
    }

    /// `self + other`, or `None` past 2^64 - 1.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Add for Sector {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sub for Sector {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A block size: a power of two from 512 bytes to 64 KiB, so that no other can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 512 bytes.
    pub const B512: Self = Self(512);
    /// 4096 bytes.
    pub const B4096: Self = Self(4096);
    /// The largest: 64 KiB, as the kernel's `BLK_MAX_BLOCK_SIZE`.
    pub const MAX: Self = Self(65536);

    /// A block size of so many bytes, if it is one.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= Self::MAX.0 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// In sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        (self.0 >> SECTOR_SHIFT) as u64
    }

    /// Whether `bytes` is a whole number of blocks.
    #[must_use]
    pub const fn divides(self, bytes: u64) -> bool {
        bytes & (self.0 as u64 - 1) == 0
    }

    /// The whole blocks that hold `bytes`, and how many bytes of the last one are padding. Saturates: no valid size does.
    #[must_use]
    pub const fn padded(self, bytes: u64) -> (Sector, u32) {
        let padding = bytes.wrapping_neg() & (self.0 as u64 - 1);
        #[expect(clippy::cast_possible_truncation, reason = "less than a block")]
        (Sector::from_bytes_floor(bytes.saturating_add(padding)), padding as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_from_512_to_64k_are_block_sizes() {
        let good: Vec<u32> = (0..=70_000).filter(|&b| BlockSize::new(b).is_some()).collect();
        assert_eq!(good, [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]);
    }

    #[test]
    fn what_is_no_whole_block_is_padded_to_one() {
        assert_eq!(BlockSize::B512.padded(0), (Sector(0), 0));
        assert_eq!(BlockSize::B512.padded(512), (Sector(1), 0));
        assert_eq!(BlockSize::B512.padded(241_059), (Sector(471), 93));
        assert_eq!(BlockSize::B4096.padded(1), (Sector(8), 4095));
        assert!(BlockSize::B4096.padded(u64::MAX).0 > Sector::MAX);
    }

    #[test]
    fn the_largest_capacity_is_just_under_two_to_the_63_bytes() {
        assert_eq!(Sector::MAX.bytes(), (1 << 63) - 512);
    }
}
