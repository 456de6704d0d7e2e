//! Heads, sectors, cylinders: what old partitioning tools ask for (kernel: `struct hd_geometry`,
//! `include/uapi/linux/hdreg.h`).

use crate::units::Sector;

/// A disk as it would be if it were made of platters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Heads, at least 1.
    pub heads: u8,
    /// Sectors per track, at least 1.
    pub sectors: u8,
    /// Cylinders; 65535 stands for that many or more, as the field that user space reads has 16 bits.
    pub cylinders: u16,
    /// Where a partition starts; 0 for a disk.
    pub start: Sector,
}

impl Geometry {
    /// The geometry of a disk that has none: 64 heads of 32 sectors, so that a cylinder is a mebibyte (kernel:
    /// the `getgeo` of virtio-blk, NVMe and sd).
    #[must_use]
    pub fn of_capacity(capacity: Sector) -> Self {
        Self::with(64, 32, capacity)
    }

    /// As many cylinders of `heads` heads of `sectors` sectors as are full. Zero heads or sectors count as one.
    #[must_use]
    pub fn with(heads: u8, sectors: u8, capacity: Sector) -> Self {
        let (heads, sectors) = (heads.max(1), sectors.max(1));
        let cylinders = capacity.0 / (u64::from(heads) * u64::from(sectors));
        let cylinders = u16::try_from(cylinders).unwrap_or(u16::MAX);
        Self { heads, sectors, cylinders, start: Sector::ZERO }
    }

    /// The geometry of a partition: its disk's, and where it starts (kernel: `blkdev_getgeo`).
    #[must_use]
    pub const fn of_partition(self, start: Sector) -> Self {
        Self { start, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_a_cylinder_is_a_mebibyte() {
        let geometry = Geometry::of_capacity(Sector(20 * 2048 + 2047));
        assert_eq!((geometry.heads, geometry.sectors, geometry.cylinders), (64, 32, 20));
    }

    #[test]
    fn a_small_disk_of_two_heads_has_32_cylinders() {
        assert_eq!(Geometry::with(2, 64, Sector(4096)).cylinders, 32);
    }

    #[test]
    fn more_cylinders_than_fit_saturate_and_nothing_divides_by_zero() {
        assert_eq!(Geometry::of_capacity(Sector::MAX).cylinders, u16::MAX);
        assert_eq!(Geometry::with(0, 0, Sector(7)).cylinders, 7);
    }

    #[test]
    fn a_partition_has_the_geometry_of_its_disk_and_its_own_start() {
        let disk = Geometry::of_capacity(Sector(4096));
        let part = disk.of_partition(Sector(2048));
        assert_eq!((part.start, part.heads), (Sector(2048), disk.heads));
    }
}
