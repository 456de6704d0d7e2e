//! rjenkins1: Robert Jenkins' 32-bit mix (<https://burtleburtle.net/bob/hash/evahash.html>) over one to five numbers.
//!
//! It is the only hash that CRUSH knows (`crush_hash32*` of Ceph's `src/crush/hash.c`), and OSD maps use it too.
//! Everything is written over [`Lanes`], so that one body of code hashes one input or several at once.

/// Hashes are salted with this, and with the two words below when a mix has no third operand.
const SEED: u32 = 1_315_423_911;
const X: u32 = 231_232;
const Y: u32 = 1_232;

/// How many items of a bucket are hashed at once: two vectors of 128 bits, which every x86-64 and aarch64 has.
pub(crate) const LANES: usize = 8;

/// Independent 32-bit words that go through the same operations.
#[derive(Clone, Copy)]
struct Lanes<const N: usize>([u32; N]);

impl<const N: usize> Lanes<N> {
    #[inline(always)]
    fn splat(word: u32) -> Self {
        Self([word; N])
    }

    /// One line of the mix: `self - b - c`, then exclusive or with `c` shifted right.
    #[inline(always)]
    fn right<const BITS: u32>(&mut self, b: Self, c: Self) {
        for lane in 0..N {
            let less = self.0[lane].wrapping_sub(b.0[lane]).wrapping_sub(c.0[lane]);
            self.0[lane] = less ^ (c.0[lane] >> BITS);
        }
    }

    /// The same with `c` shifted left.
    #[inline(always)]
    fn left<const BITS: u32>(&mut self, b: Self, c: Self) {
        for lane in 0..N {
            let less = self.0[lane].wrapping_sub(b.0[lane]).wrapping_sub(c.0[lane]);
            self.0[lane] = less ^ (c.0[lane] << BITS);
        }
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        let mut out = self;
        for lane in 0..N {
            out.0[lane] ^= other.0[lane];
        }
        out
    }
}

/// The nine lines of Jenkins' mix.
#[inline(always)]
fn mix<const N: usize>(a: &mut Lanes<N>, b: &mut Lanes<N>, c: &mut Lanes<N>) {
    a.right::<13>(*b, *c);
    b.left::<8>(*c, *a);
    c.right::<13>(*a, *b);
    a.right::<12>(*b, *c);
    b.left::<16>(*c, *a);
    c.right::<5>(*a, *b);
    a.right::<3>(*b, *c);
    b.left::<10>(*c, *a);
    c.right::<15>(*a, *b);
}

#[inline(always)]
fn hash3_lanes<const N: usize>(mut a: Lanes<N>, mut b: Lanes<N>, mut c: Lanes<N>) -> Lanes<N> {
    let mut hash = Lanes::splat(SEED).xor(a).xor(b).xor(c);
    let (mut x, mut y) = (Lanes::splat(X), Lanes::splat(Y));
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    hash
}

#[inline(always)]
fn hash4_lanes<const N: usize>(words: [Lanes<N>; 4]) -> Lanes<N> {
    let [mut a, mut b, mut c, mut d] = words;
    let mut hash = Lanes::splat(SEED).xor(a).xor(b).xor(c).xor(d);
    let (mut x, mut y) = (Lanes::splat(X), Lanes::splat(Y));
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut a, &mut x, &mut hash);
    mix(&mut y, &mut b, &mut hash);
    mix(&mut c, &mut x, &mut hash);
    mix(&mut y, &mut d, &mut hash);
    hash
}

/// The hash of one number.
#[must_use]
pub fn hash32(a: u32) -> u32 {
    let mut hash = Lanes([SEED ^ a]);
    let (mut a, mut b) = (Lanes([a]), Lanes([a]));
    let (mut x, mut y) = (Lanes([X]), Lanes([Y]));
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    hash.0[0]
}

/// The hash of two numbers: of a placement group's seed and its pool, of an input and a device.
#[must_use]
#[inline]
pub fn hash32_2(a: u32, b: u32) -> u32 {
    let mut hash = Lanes([SEED ^ a ^ b]);
    let (mut a, mut b) = (Lanes([a]), Lanes([b]));
    let (mut x, mut y) = (Lanes([X]), Lanes([Y]));
    mix(&mut a, &mut b, &mut hash);
    mix(&mut x, &mut a, &mut hash);
    mix(&mut b, &mut y, &mut hash);
    hash.0[0]
}

/// The hash of three numbers.
#[must_use]
#[inline]
pub fn hash32_3(a: u32, b: u32, c: u32) -> u32 {
    hash3_lanes(Lanes([a]), Lanes([b]), Lanes([c])).0[0]
}

/// The hash of four numbers.
#[must_use]
#[inline]
pub fn hash32_4(a: u32, b: u32, c: u32, d: u32) -> u32 {
    hash4_lanes([Lanes([a]), Lanes([b]), Lanes([c]), Lanes([d])]).0[0]
}

/// The hash of five numbers.
#[must_use]
pub fn hash32_5(a: u32, b: u32, c: u32, d: u32, e: u32) -> u32 {
    let mut hash = Lanes([SEED ^ a ^ b ^ c ^ d ^ e]);
    let [mut a, mut b, mut c, mut d, mut e] = [a, b, c, d, e].map(|word| Lanes([word]));
    let (mut x, mut y) = (Lanes([X]), Lanes([Y]));
    mix(&mut a, &mut b, &mut hash);
    mix(&mut c, &mut d, &mut hash);
    mix(&mut e, &mut x, &mut hash);
    mix(&mut y, &mut a, &mut hash);
    mix(&mut b, &mut x, &mut hash);
    mix(&mut y, &mut c, &mut hash);
    mix(&mut d, &mut x, &mut hash);
    mix(&mut y, &mut e, &mut hash);
    hash.0[0]
}

/// [`hash32_3`] of (`a`, each of `b`, `c`).
#[inline(always)]
pub(crate) fn hash3_each(a: u32, b: [u32; LANES], c: u32) -> [u32; LANES] {
    hash3_lanes(Lanes::splat(a), Lanes(b), Lanes::splat(c)).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lanes_hash_as_one() {
        let b = [0, 1, 2, 77, 0xffff_fffe, 0x8000_0000, 12_345, 99];
        let hashes = hash3_each(1_000, b, 3);
        for lane in 0..LANES {
            assert_eq!(hashes[lane], hash32_3(1_000, b[lane], 3));
        }
    }
}
