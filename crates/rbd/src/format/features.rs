//! What an image can have (ceph: `src/include/rbd/features.h`).

use bitflags::bitflags;

bitflags! {
    /// Features of an image. Bits without a name are kept: newer versions have more.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Clones of snapshots.
        const LAYERING = 1;
        /// Stripes over several objects ("fancy").
        const STRIPINGV2 = 1 << 1;
        /// One writer at a time.
        const EXCLUSIVE_LOCK = 1 << 2;
        /// A map of the objects that are there.
        const OBJECT_MAP = 1 << 3;
        /// The map knows what changed since the last snapshot.
        const FAST_DIFF = 1 << 4;
        /// Flattening covers snapshots.
        const DEEP_FLATTEN = 1 << 5;
        /// Writes go to a journal first.
        const JOURNALING = 1 << 6;
        /// The bytes are in another pool.
        const DATA_POOL = 1 << 7;
        /// There are features by operation: see [`OpFeatures`].
        const OPERATIONS = 1 << 8;
        /// It is being moved.
        const MIGRATING = 1 << 9;
        /// It is a mirror's copy.
        const NON_PRIMARY = 1 << 10;
        /// A client's cache has data that the image has not.
        const DIRTY_CACHE = 1 << 11;
        const _ = !0;
    }

    /// Features that operations give an image and take away again.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpFeatures: u64 {
        /// A snapshot has clones that know of it (version 2).
        const CLONE_PARENT = 1;
        /// It is such a clone.
        const CLONE_CHILD = 1 << 1;
        /// It belongs to a group.
        const GROUP = 1 << 2;
        /// It has removed snapshots that clones still need.
        const SNAP_TRASH = 1 << 3;
        const _ = !0;
    }

    /// What is wrong with an image (ceph: `src/include/rbd/librbd.h`, `RBD_FLAG_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ImageFlags: u64 {
        /// The object map may be wrong.
        const OBJECT_MAP_INVALID = 1;
        /// What it says of changes may be wrong.
        const FAST_DIFF_INVALID = 1 << 1;
        const _ = !0;
    }
}

/// Names as `rbd` has them, in the order of bits.
const NAMES: [(Features, &str); 12] = [
    (Features::LAYERING, "layering"),
    (Features::STRIPINGV2, "striping"),
    (Features::EXCLUSIVE_LOCK, "exclusive-lock"),
    (Features::OBJECT_MAP, "object-map"),
    (Features::FAST_DIFF, "fast-diff"),
    (Features::DEEP_FLATTEN, "deep-flatten"),
    (Features::JOURNALING, "journaling"),
    (Features::DATA_POOL, "data-pool"),
    (Features::OPERATIONS, "operations"),
    (Features::MIGRATING, "migrating"),
    (Features::NON_PRIMARY, "non-primary"),
    (Features::DIRTY_CACHE, "dirty-cache"),
];

impl Features {
    /// What images are made with if nothing else is asked for: 61.
    pub const DEFAULT: Self = Self::LAYERING
        .union(Self::EXCLUSIVE_LOCK)
        .union(Self::OBJECT_MAP)
        .union(Self::FAST_DIFF)
        .union(Self::DEEP_FLATTEN);
    /// All that the format's classes know.
    pub const KNOWN: Self = Self::from_bits_retain((1 << 12) - 1);
    /// Who does not know one of these cannot read.
    pub const INCOMPATIBLE: Self =
        Self::LAYERING.union(Self::STRIPINGV2).union(Self::DATA_POOL).union(Self::DIRTY_CACHE);
    /// Who does not know one of these cannot write.
    pub const RW_INCOMPATIBLE: Self = Self::INCOMPATIBLE
        .union(Self::DEFAULT)
        .union(Self::JOURNALING)
        .union(Self::OPERATIONS)
        .union(Self::MIGRATING)
        .union(Self::NON_PRIMARY);
    /// Those that can be switched on and off.
    pub const MUTABLE: Self = Self::EXCLUSIVE_LOCK
        .union(Self::OBJECT_MAP)
        .union(Self::FAST_DIFF)
        .union(Self::JOURNALING)
        .union(Self::NON_PRIMARY)
        .union(Self::DIRTY_CACHE);
    /// Those that can be switched off only.
    pub const DISABLE_ONLY: Self = Self::DEEP_FLATTEN;
    /// Those that nobody switches by hand.
    pub const INTERNAL: Self = Self::OPERATIONS.union(Self::MIGRATING);

    /// Their names; bits without one as numbers.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let known = NAMES.iter().filter(|(bit, _)| self.contains(*bit));
        let mut names: Vec<String> = known.map(|(_, name)| (*name).to_owned()).collect();
        let unknown = self.difference(Self::KNOWN).bits();
        let bits = (0..u64::BITS).filter(|bit| unknown >> bit & 1 == 1);
        names.extend(bits.map(|bit| format!("bit {bit}")));
        names
    }

    /// The feature of a name.
    #[must_use]
    pub fn with_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(bit, _)| *bit)
    }
}

impl OpFeatures {
    /// All that the format's classes know.
    pub const KNOWN: Self = Self::from_bits_retain((1 << 4) - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_numbers_and_names_of_ceph() {
        assert_eq!(Features::DEFAULT.bits(), 61);
        assert_eq!(Features::KNOWN.bits(), 0xfff);
        assert_eq!(Features::INCOMPATIBLE.bits(), 0x883);
        assert_eq!(Features::RW_INCOMPATIBLE.bits(), 0xfff);
        assert_eq!(
            Features::DEFAULT.names(),
            ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"]
        );
        let newer = Features::from_bits_retain(1 << 40) | Features::STRIPINGV2;
        assert_eq!(newer.names(), ["striping", "bit 40"]);
        for (bit, name) in NAMES {
            assert_eq!(Features::with_name(name), Some(bit));
        }
        assert_eq!(Features::with_name("encryption"), None);
    }
}
