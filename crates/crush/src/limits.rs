//! Bounds on what a map can make us do. None is near what a sensible map needs.

/// The longest result of one mapping; what is asked beyond is not filled.
pub const RESULTS: usize = 1 << 16;

/// The work of one mapping: the items that are looked at, and [`ATTEMPT`] for each attempt. A map that cannot
/// satisfy a rule, yet asks to try for ever, gives up here and leaves gaps; that is after a second or so.
pub const WORK: u32 = 1 << 27;

/// The work of one attempt, beside its items.
pub const ATTEMPT: u32 = 16;

/// The choose steps in one block of a multi-step retry rule. Each descends at least one level, and Ceph's trees
/// have 10 (`CRUSH_MAX_DEPTH`), so that a longer block chooses nothing.
pub const MSR_STEPS: usize = 64;

/// The weights that all weight sets of a map together may lack. An old fault of Ceph made sets that are shorter
/// than their bucket; what they lack is 0.
pub const MISSING_WEIGHTS: usize = 1 << 20;
