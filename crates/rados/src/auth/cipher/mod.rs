//! The two ciphers of cephx keys.

mod aes128;
mod aes256k;

pub(super) use aes128::Aes128Cbc;
pub(super) use aes256k::Aes256k;

/// Bytes of a block of AES.
const BLOCK: usize = 16;

/// XORs `with` into `block`.
fn xor(block: &mut [u8; BLOCK], with: &[u8; BLOCK]) {
    block.iter_mut().zip(with).for_each(|(byte, with)| *byte ^= with);
}
