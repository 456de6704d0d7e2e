//! Ceph's use of CRC-32C.

/// CRC-32C as Ceph computes it: `seed` is the register's start, and the register is not inverted in the end (ceph:
/// `src/include/crc32c.h`). Feed the result back as seed to go on.
#[must_use]
pub fn ceph_crc32c(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

/// The seed for data; that for preambles is 0.
pub(super) const DATA_SEED: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_is_not_inverted() {
        // ceph: src/test/common/test_crc32c.cc, "Small".
        let text = b"foo bar baz";
        assert_eq!(ceph_crc32c(0, text), 4_119_623_852);
        assert_eq!(ceph_crc32c(1234, text), 881_700_046);
        assert_eq!(ceph_crc32c(ceph_crc32c(1234, &text[..4]), &text[4..]), 881_700_046);
        assert_eq!(ceph_crc32c(DATA_SEED, b""), DATA_SEED);
    }
}
