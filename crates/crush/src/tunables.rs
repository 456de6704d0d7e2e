//! Tunables: how hard placement tries, which changed from release to release. A map carries its own.

use crate::data::Algorithm;

/// The numbers that steer retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Retries in the same bucket after a collision.
    pub choose_local_tries: u32,
    /// Retries in the same bucket by permutation.
    pub choose_local_fallback_tries: u32,
    /// Retries from the top.
    pub choose_total_tries: u32,
    /// Whether the device below an item is looked for once only, in firstn rules.
    pub chooseleaf_descend_once: u32,
    /// Not 0: the attempt, shifted right by one less than this, varies the device below an item.
    pub chooseleaf_vary_r: u8,
    /// How straws were computed from weights; placement does not read it.
    pub straw_calc_version: u8,
    /// Bit n: buckets of algorithm n may be made; placement does not read it.
    pub allowed_bucket_algs: u32,
    /// Not 0: the device below an item does not depend on the position.
    pub chooseleaf_stable: u8,
    /// Attempts of a block of a multi-step retry rule.
    pub msr_descents: u32,
    /// Attempts to avoid a collision in such a rule.
    pub msr_collision_tries: u32,
}

/// Uniform, list and straw buckets.
const LEGACY_ALGS: u32 = 1 << 1 | 1 << 2 | 1 << 4;

impl Tunables {
    /// What a map means that does not say: those of Ceph 0.48.
    pub const ARGONAUT: Self = Self {
        choose_local_tries: 2,
        choose_local_fallback_tries: 5,
        choose_total_tries: 19,
        chooseleaf_descend_once: 0,
        chooseleaf_vary_r: 0,
        straw_calc_version: 0,
        allowed_bucket_algs: LEGACY_ALGS,
        chooseleaf_stable: 0,
        msr_descents: 100,
        msr_collision_tries: 100,
    };
    /// Those of Ceph 0.56.
    pub const BOBTAIL: Self = Self {
        choose_local_tries: 0,
        choose_local_fallback_tries: 0,
        choose_total_tries: 50,
        chooseleaf_descend_once: 1,
        ..Self::ARGONAUT
    };
    /// Those of Ceph 0.80.
    pub const FIREFLY: Self = Self { chooseleaf_vary_r: 1, ..Self::BOBTAIL };
    /// Those of Ceph 0.94.
    pub const HAMMER: Self =
        Self { straw_calc_version: 1, allowed_bucket_algs: LEGACY_ALGS | 1 << 5, ..Self::FIREFLY };
    /// Those of Ceph 10.2, and the default since.
    pub const JEWEL: Self = Self { chooseleaf_stable: 1, ..Self::HAMMER };

    /// Whether new buckets may have this algorithm.
    #[must_use]
    pub fn allows(&self, algorithm: &Algorithm) -> bool {
        self.allowed_bucket_algs & 1 << algorithm.code() != 0
    }
}

impl Default for Tunables {
    fn default() -> Self {
        Self::JEWEL
    }
}
