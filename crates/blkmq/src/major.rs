//! Device numbers: who owns which major, and minors for partitions past those of their disk.
//!
//! Nothing here is global: a yard has one [`Majors`] and one [`ExtMinors`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Majors are below this (kernel: `BLKDEV_MAJOR_MAX`, `include/linux/major.h` and `block/genhd.c`).
pub const MAJOR_MAX: u32 = 512;
/// A free major is searched downwards from below this (kernel: `BLKDEV_MAJOR_HASH_SIZE`, the size of
/// `major_names`).
const HASH_SIZE: u32 = 255;
/// Longest name of a major in bytes; what is longer is cut off (kernel: `struct blk_major_name`, 16 with the
/// final 0).
const NAME_MAX: usize = 15;
/// The major of partitions past the minors of their disk (kernel: `BLOCK_EXT_MAJOR`).
pub const EXT_MAJOR: u32 = 259;
/// Bits of a minor (kernel: `MINORBITS`, `include/linux/kdev_t.h`).
pub const MINOR_BITS: u32 = 20;
/// Most minors of one disk, itself included (kernel: `DISK_MAX_PARTS`).
pub const DISK_MAX_PARTS: u32 = 256;

/// A device number. Shown as `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNum {
    /// Which registered driver's.
    pub major: u32,
    /// Which of its devices; below 2^[`MINOR_BITS`].
    pub minor: u32,
}

impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Why a major was not to be had, or not to be given back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MajorError {
    /// It is another's, or all are taken (EBUSY). Numbers a multiple of 255 apart share a place when a free one
    /// is searched.
    #[error("major {major} is taken by {by:?}")]
    Busy {
        /// The number asked for.
        major: u32,
        /// Who has it.
        by: String,
    },
    /// All majors from 254 down to 1 are taken (EBUSY).
    #[error("no major is free")]
    NoneFree,
    /// Not below [`MAJOR_MAX`] (EINVAL).
    #[error("major {0} is greater than the maximum, 511")]
    TooLarge(u32),
    /// Nobody has that number under that name (EINVAL).
    #[error("major {major} is not registered as {name:?}")]
    NotRegistered {
        /// The number.
        major: u32,
        /// The name.
        name: String,
    },
}

impl MajorError {
    /// The errno of the kernel's `register_blkdev`, as a positive number.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Busy { .. } | Self::NoneFree => 16, // EBUSY
            Self::TooLarge(_) | Self::NotRegistered { .. } => 22, // EINVAL
        }
    }
}

/// The registry of majors (kernel: `major_names` in `block/genhd.c`).
#[derive(Clone, Debug, Default)]
pub struct Majors {
    names: BTreeMap<u32, String>,
}

impl Majors {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `name` for `major`, or for a free one if `major` is 0; returns the number (kernel:
    /// `register_blkdev`).
    ///
    /// A free one is searched from 254 down to 1. As in the kernel, where the registry is a hash of 255 places,
    /// one whose place is taken by a number 255 higher is not free.
    ///
    /// # Errors
    ///
    /// [`MajorError::Busy`], [`MajorError::NoneFree`], [`MajorError::TooLarge`].
    pub fn register(&mut self, major: u32, name: &str) -> Result<u32, MajorError> {
        let major = if major == 0 { self.free().ok_or(MajorError::NoneFree)? } else { major };
        if major >= MAJOR_MAX {
            return Err(MajorError::TooLarge(major));
        }
        if let Some(by) = self.names.get(&major) {
            return Err(MajorError::Busy { major, by: by.clone() });
        }
        self.names.insert(major, cut(name).to_owned());
        Ok(major)
    }

    /// Gives `major` back, if `name` has it (kernel: `unregister_blkdev`).
    ///
    /// # Errors
    ///
    /// [`MajorError::NotRegistered`], and nothing has changed.
    pub fn unregister(&mut self, major: u32, name: &str) -> Result<(), MajorError> {
        if self.name(major) != Some(cut(name)) {
            return Err(MajorError::NotRegistered { major, name: name.to_owned() });
        }
        self.names.remove(&major);
        Ok(())
    }

    /// Who has `major`.
    #[must_use]
    pub fn name(&self, major: u32) -> Option<&str> {
        self.names.get(&major).map(String::as_str)
    }

    /// All that are registered, lowest first, as the second half of `/proc/devices` shows them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().map(|(&major, name)| (major, name.as_str()))
    }

    fn free(&self) -> Option<u32> {
        let taken = |place: u32| self.names.keys().any(|major| major % HASH_SIZE == place);
        (1..HASH_SIZE).rev().find(|&place| !taken(place))
    }
}

/// The part of a name that is kept.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// The device number of a partition, or of the disk itself as partition 0, if it is within the disk's own
/// minors; from [`ExtMinors`] otherwise (kernel: `add_partition` in `block/partitions/core.c`).
#[must_use]
pub fn own_devnum(disk: DevNum, minors: u32, partition: u32) -> Option<DevNum> {
    let minor = disk.minor.checked_add(partition)?;
    (partition < minors && minor < 1 << MINOR_BITS).then_some(DevNum { minor, ..disk })
}

/// Minors of [`EXT_MAJOR`], lowest free first (kernel: `ext_devt_ida`).
#[derive(Clone, Debug, Default)]
pub struct ExtMinors {
    taken: BTreeSet<u32>,
}

impl ExtMinors {
    /// Takes the lowest that is free; `None` when all 2^20 are taken.
    pub fn take(&mut self) -> Option<DevNum> {
        let mut minor = 0;
        for &taken in &self.taken {
            if taken != minor {
                break;
            }
            minor += 1;
        }
        if minor >= 1 << MINOR_BITS {
            return None;
        }
        self.taken.insert(minor);
        Some(DevNum { major: EXT_MAJOR, minor })
    }

    /// Gives one back. A number of another major is none of ours, and ignored (kernel: `blk_free_devt`).
    pub fn give_back(&mut self, dev: DevNum) {
        if dev.major == EXT_MAJOR {
            self.taken.remove(&dev.minor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_major_is_the_highest_below_255() {
        let mut majors = Majors::new();
        assert_eq!(majors.register(0, "a"), Ok(254));
        assert_eq!(majors.register(0, "b"), Ok(253));
        assert_eq!(majors.register(252 + 255, "far"), Ok(507));
        assert_eq!(majors.register(0, "c"), Ok(251), "252 shares its place with 507");
        assert_eq!(majors.register(252, "near"), Ok(252), "asked for by number it is free");
    }

    #[test]
    fn taken_and_too_large_majors_are_refused() {
        let mut majors = Majors::new();
        assert_eq!(majors.register(8, "sd"), Ok(8));
        let busy = majors.register(8, "other").unwrap_err();
        assert_eq!(busy, MajorError::Busy { major: 8, by: "sd".into() });
        assert_eq!(busy.errno(), 16);
        assert_eq!(majors.register(511, "last"), Ok(511));
        assert_eq!(majors.register(512, "past").unwrap_err().errno(), 22);
    }

    #[test]
    fn when_254_are_taken_none_is_free() {
        let mut majors = Majors::new();
        for expected in (1..=254).rev() {
            assert_eq!(majors.register(0, "x"), Ok(expected));
        }
        assert_eq!(majors.register(0, "x"), Err(MajorError::NoneFree));
    }

    #[test]
    fn unregistering_needs_the_number_and_the_name() {
        let mut majors = Majors::new();
        majors.register(8, "sd").unwrap();
        assert!(majors.unregister(8, "hd").is_err());
        assert!(majors.unregister(9, "sd").is_err());
        assert_eq!(majors.name(8), Some("sd"));
        majors.unregister(8, "sd").unwrap();
        assert_eq!(majors.iter().count(), 0);
    }

    #[test]
    fn a_long_name_is_cut_and_still_unregisters() {
        let mut majors = Majors::new();
        majors.register(8, "a-name-of-twenty-one-b").unwrap();
        assert_eq!(majors.name(8), Some("a-name-of-twent"));
        majors.unregister(8, "a-name-of-twenty-one-b").unwrap();
    }

    #[test]
    fn partitions_past_the_minors_of_their_disk_go_to_the_extended_major() {
        let disk = DevNum { major: 8, minor: 16 };
        assert_eq!(own_devnum(disk, 3, 2), Some(DevNum { major: 8, minor: 18 }));
        assert_eq!(own_devnum(disk, 3, 3), None);
        let mut ext = ExtMinors::default();
        let (a, b) = (ext.take().unwrap(), ext.take().unwrap());
        assert_eq!((a.to_string(), b.to_string()), ("259:0".into(), "259:1".into()));
        ext.give_back(a);
        ext.give_back(disk);
        assert_eq!(ext.take(), Some(a));
    }
}
