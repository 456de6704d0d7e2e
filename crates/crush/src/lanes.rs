//! Looking at many items of a bucket at once, in vector registers.
//!
//! Buckets keep what they draw with in plain lists, one per field, filled up to whole vectors. Compilers turn short
//! loops over these into vector instructions: of 128 bits, which every x86-64 and aarch64 has, or of 256 or 512 bits
//! where [`pulp`] finds AVX2 or AVX-512 at run time. Only what is inlined into `Choice::with_simd` of `bucket.rs` is
//! compiled for each of these.

/// Lists are filled up to a multiple of this: one vector of 512 bits.
pub(crate) const LANES: usize = 16;

/// How many items are looked at before anything is decided: as many as [`mask`] has bits.
pub(crate) const BLOCK: usize = 32;

const _: () = assert!(BLOCK.is_multiple_of(LANES) && BLOCK == u32::BITS as usize);

/// A list, filled up to whole vectors.
pub(crate) fn padded<T: Clone>(values: impl IntoIterator<Item = T>, fill: T) -> Box<[T]> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.resize(values.len().next_multiple_of(LANES), fill);
    values.into()
}

/// The ids of items as they are hashed.
pub(crate) fn ids(ids: &[i32]) -> Box<[u32]> {
    padded(ids.iter().map(|id| id.cast_unsigned()), 0)
}

/// Each lane's bit of a mask.
const BITS: [u32; BLOCK] = {
    let mut bits = [0; BLOCK];
    let mut lane = 0;
    while lane < BLOCK {
        bits[lane] = 1 << lane;
        lane += 1;
    }
    bits
};

/// A bit for each of the values that pass, the first one's lowest. No more than [`BLOCK`] are looked at.
#[inline(always)]
pub(crate) fn mask<T: Copy>(values: &[T], passes: impl Fn(T) -> bool) -> u32 {
    let bits = values.iter().zip(&BITS);
    bits.fold(0, |mask, (&value, &bit)| mask | if passes(value) { bit } else { 0 })
}
