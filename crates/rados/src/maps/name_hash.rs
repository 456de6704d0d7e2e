//! Hashes of objects' names (ceph: `src/common/ceph_hash.cc`).

/// The golden ratio, which the hash starts from.
const GOLDEN: u32 = 0x9e37_79b9;

/// The hash of a name by a pool's method: 1 is that of Linux's directory cache, 2 that of Robert Jenkins. None for
/// methods that there are not.
#[must_use]
pub fn name_hash(method: u8, name: &[u8]) -> Option<u32> {
    match method {
        1 => Some(dcache(name)),
        2 => Some(jenkins(name)),
        _ => None,
    }
}

fn dcache(name: &[u8]) -> u32 {
    name.iter().fold(0, |hash: u32, &byte| {
        let byte = u32::from(byte);
        hash.wrapping_add(byte << 4).wrapping_add(byte >> 4).wrapping_mul(11)
    })
}

/// The hash of <http://burtleburtle.net/bob/hash/evahash.html>, for names of up to 4 GiB.
fn jenkins(name: &[u8]) -> u32 {
    let (blocks, tail) = name.as_chunks::<12>();
    let mut state = [GOLDEN, GOLDEN, 0];
    let add = |state: &mut [u32; 3], block: &[u8; 12]| {
        for (sum, word) in state.iter_mut().zip(block.as_chunks::<4>().0) {
            *sum = sum.wrapping_add(u32::from_le_bytes(*word));
        }
    };
    for block in blocks {
        add(&mut state, block);
        mix(&mut state);
    }
    // The last word begins with the length, so that its bytes move up by one.
    let mut last = [0; 13];
    last[..tail.len()].copy_from_slice(tail);
    last.copy_within(8..12, 9);
    last[8] = 0;
    let [block @ .., _] = last;
    add(&mut state, &block);
    let [.., len] = &mut state;
    *len = len.wrapping_add(u32::try_from(name.len()).unwrap_or(u32::MAX));
    mix(&mut state);
    state[2]
}

fn mix([a, b, c]: &mut [u32; 3]) {
    let step = |x: &mut u32, y: u32, z: u32, shifted: u32| {
        *x = x.wrapping_sub(y).wrapping_sub(z) ^ shifted;
    };
    for (right, left, again) in [(13, 8, 13), (12, 16, 5), (3, 10, 15)] {
        step(a, *b, *c, *c >> right);
        step(b, *c, *a, *a << left);
        step(c, *a, *b, *b >> again);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From `ceph osd map` of 16.2.15, which prints the hash.
    #[test]
    fn hashes_are_those_of_ceph() {
        let hash = |name: &[u8]| name_hash(2, name).unwrap();
        assert_eq!(hash(b"a"), 0x29ee_c818);
        assert_eq!(hash(b"b"), 0x54ac_a597);
        assert_eq!(hash(b"c"), 0x4fa4_bedb);
        assert_eq!(hash(b"obj1"), 0x6cf8_deff);
        assert_eq!(hash(b"ns1\x1fa"), 0x8b6b_b4ad);
        assert_eq!(name_hash(1, b""), Some(0));
        assert_eq!(name_hash(1, b"a"), Some((0x610 + 6) * 11));
        assert_eq!(name_hash(3, b"a"), None);
    }
}
