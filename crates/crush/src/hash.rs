//! rjenkins1: Robert Jenkins' 32-bit mix (<https://burtleburtle.net/bob/hash/evahash.html>) over one to five numbers.
//!
//! It is the only hash that CRUSH knows (`crush_hash32*` of Ceph's `src/crush/hash.c`), and OSD maps use it too.

/// Hashes are salted with this, and with the two words below when a mix has no third operand.
const SEED: u32 = 1_315_423_911;
const X: u32 = 231_232;
const Y: u32 = 1_232;

/// The nine lines of Jenkins' mix.
#[inline(always)]
fn mix(a: &mut u32, b: &mut u32, c: &mut u32) {
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 13);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 8);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 13);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 12);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 16);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 5);
    *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> 3);
    *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << 10);
    *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> 15);
}

/// The hash of one number.
#[must_use]
pub fn hash32(mut a: u32) -> u32 {
    let mut hash = SEED ^ a;
    let (mut b, mut x, mut y) = (a, X, Y);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    hash
}

/// The hash of two numbers: of a placement group's seed and its pool, of an input and a device.
#[must_use]
#[inline]
pub fn hash32_2(mut a: u32, mut b: u32) -> u32 {
    let mut hash = SEED ^ a ^ b;
    let (mut x, mut y) = (X, Y);
    mix(&mut a, &mut b, &mut hash);
    mix(&mut x, &mut a, &mut hash);
    mix(&mut b, &mut y, &mut hash);
    hash
}

/// The hash of three numbers.
#[must_use]
#[inline(always)]
pub fn hash32_3(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    let mut hash = SEED ^ a ^ b ^ c;
    let (mut x, mut y) = (X, Y);
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    hash
}

/// The hash of four numbers.
#[must_use]
#[inline(always)]
pub fn hash32_4(mut a: u32, mut b: u32, mut c: u32, mut d: u32) -> u32 {
    let mut hash = SEED ^ a ^ b ^ c ^ d;
    let (mut x, mut y) = (X, Y);
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut a, &mut x, &mut hash);
    mix(&mut y, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut d, &mut hash);
    hash
}

/// The hash of five numbers.
#[must_use]
pub fn hash32_5(mut a: u32, mut b: u32, mut c: u32, mut d: u32, mut e: u32) -> u32 {
    let mut hash = SEED ^ a ^ b ^ c ^ d ^ e;
    let (mut x, mut y) = (X, Y);
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut e, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    mix(&mut d, &mut x, &mut hash);
    mix(&mut y, &mut e, &mut hash);
    hash
}

/// [`hash32_3`] of (`a`, each of `b`, `c`). Compilers make vector instructions of this loop as long as nothing else
/// is in it.
#[inline(always)]
pub(crate) fn hash3_each(a: u32, b: &[u32], c: u32, hashes: &mut [u32]) {
    for (hash, &b) in hashes.iter_mut().zip(b) {
        *hash = hash32_3(a, b, c);
    }
}

/// [`hash32_3`] of (`a`, `b`, each number from `c` on), the same way.
#[inline(always)]
pub(crate) fn hash3_from(a: u32, b: u32, c: u32, hashes: &mut [u32]) {
    for (hash, c) in hashes.iter_mut().zip(c..) {
        *hash = hash32_3(a, b, c);
    }
}

/// [`hash32_4`] of (`a`, each of `b`, `c`, `d`), the same way.
#[inline(always)]
pub(crate) fn hash4_each(a: u32, b: &[u32], c: u32, d: u32, hashes: &mut [u32]) {
    for (hash, &b) in hashes.iter_mut().zip(b) {
        *hash = hash32_4(a, b, c, d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lanes_hash_as_one() {
        let b = [0, 77, 0xffff_fffe, 0x8000_0000];
        let mut hashes = [0; 4];
        hash3_each(1_000, &b, 3, &mut hashes);
        assert_eq!(hashes, b.map(|b| hash32_3(1_000, b, 3)));
        hash4_each(1_000, &b, 3, 4, &mut hashes);
        assert_eq!(hashes, b.map(|b| hash32_4(1_000, b, 3, 4)));
        hash3_from(1_000, 3, 7, &mut hashes);
        assert_eq!(hashes, [7, 8, 9, 10].map(|c| hash32_3(1_000, 3, c)));
    }
}
