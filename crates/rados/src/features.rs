//! Features of messages that a side supports (ceph: `src/include/ceph_features.h`). The bits were used more than once:
//! a feature is a bit *and* the bits of its incarnation, and is there only if all of them are.

/// Bits that tell the second and third use of a bit from the first: SERVER_JEWEL, and that with SERVER_MIMIC.
const INCARNATION_2: u64 = 1 << 57;
const INCARNATION_3: u64 = INCARNATION_2 | 1 << 28;

/// Addresses have a type, and there may be several of them: no peer that speaks messenger 2 lacks it.
pub const MSG_ADDR2: u64 = 1 << 59;
/// Replies of OSDs say which request of a client they answer.
pub const OSD_REPLY_MUX: u64 = 1 << 12;
/// Ceph 17.
pub const SERVER_QUINCY: u64 = 1 << 33 | INCARNATION_3;
/// Ceph 18, and its map items: chosen primaries.
pub const SERVER_REEF: u64 = 1 << 31 | INCARNATION_3;
/// CRUSH rules that retry whole domains (Ceph 19).
pub const CRUSH_MSR: u64 = 1 << 38 | INCARNATION_2;
/// Everything that a client of Ceph 16.2.15 says it supports (measured).
const PACIFIC_CLIENT: u64 = 0x3f01_cfbd_fffd_ffff;

/// What this side supports. Monitors encode maps for it.
pub const SUPPORTED: u64 = PACIFIC_CLIENT | SERVER_QUINCY | SERVER_REEF | CRUSH_MSR;
/// What this side needs of every peer.
pub const REQUIRED: u64 = MSG_ADDR2 | OSD_REPLY_MUX;

/// Whether all bits of a feature are there.
#[must_use]
pub const fn has(features: u64, feature: u64) -> bool {
    features & feature == feature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_without_its_incarnation_is_another_feature() {
        assert!(has(SUPPORTED, SERVER_REEF) && has(SUPPORTED, REQUIRED));
        assert!(!has(1 << 31, SERVER_REEF));
        assert!(!has(PACIFIC_CLIENT, SERVER_QUINCY) && !has(PACIFIC_CLIENT, CRUSH_MSR));
    }
}
