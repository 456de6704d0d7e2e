//! AES-128-CBC with one initialization vector for everything (ceph: `src/auth/Crypto.cc`, `CryptoAES`).

use super::{BLOCK, xor};
use aes::Aes128;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};

/// `CEPH_AES_IV` (ceph: `src/include/ceph_fs.h`).
const IV: &[u8; BLOCK] = b"cephsageyudagreg";

/// The cipher of key type 1. What it encrypts is filled up with 1 to 16 bytes that tell their number (PKCS #7).
pub(in crate::auth) struct Aes128Cbc(Aes128);

impl Aes128Cbc {
    /// Bytes of a key.
    pub(in crate::auth) const KEY_LEN: usize = 16;

    pub(in crate::auth) fn new(key: &[u8; Self::KEY_LEN]) -> Self {
        Self(Aes128::new(key.into()))
    }

    pub(in crate::auth) fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        let padding = BLOCK - plain.len() % BLOCK;
        let mut bytes = plain.to_vec();
        bytes.resize(plain.len() + padding, padding.to_le_bytes()[0]);
        let mut previous = *IV;
        for block in bytes.as_chunks_mut::<BLOCK>().0 {
            xor(block, &previous);
            self.0.encrypt_block(block.into());
            previous = *block;
        }
        bytes
    }

    /// What was encrypted; nothing if it was not with this key.
    pub(in crate::auth) fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = cipher.to_vec();
        let (blocks, rest) = bytes.as_chunks_mut::<BLOCK>();
        if !rest.is_empty() {
            return None;
        }
        let mut previous = *IV;
        for block in blocks {
            let encrypted = *block;
            self.0.decrypt_block(block.into());
            xor(block, &previous);
            previous = encrypted;
        }
        let padding = usize::from(*bytes.last()?);
        let plain = bytes.len().checked_sub(padding)?;
        let whole = (1..=BLOCK).contains(&padding)
            && bytes[plain..].iter().all(|&byte| usize::from(byte) == padding);
        bytes.truncate(plain);
        whole.then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ceph: `src/test/crypto.cc`, "AES.Encrypt".
    #[test]
    fn the_vector_of_ceph_is_met() {
        let key: [u8; 16] = std::array::from_fn(|at| at.to_le_bytes()[0]);
        let plain: Vec<u8> = (0..=0xff).step_by(0x11).collect();
        let cipher = [
            0xb3, 0x8f, 0x5b, 0xc9, 0x35, 0x4c, 0xf8, 0xc6, 0x13, 0x15, 0x66, 0x6f, 0x37, 0xd7,
            0x79, 0x3a, 0x11, 0x90, 0x7b, 0xe9, 0xd8, 0x3c, 0x35, 0x70, 0x58, 0x7b, 0x97, 0x9b,
            0x03, 0xd2, 0xa5, 0x01,
        ];
        let aes = Aes128Cbc::new(&key);
        assert_eq!(aes.encrypt(&plain), cipher);
        assert_eq!(aes.decrypt(&cipher), Some(plain));
    }

    #[test]
    fn any_length_comes_back_and_a_wrong_key_is_told() {
        let aes = Aes128Cbc::new(&[1; 16]);
        for len in 0..50 {
            assert_eq!(aes.decrypt(&aes.encrypt(&vec![7; len])), Some(vec![7; len]));
        }
        assert_eq!(aes.decrypt(b""), None);
        assert_eq!(aes.decrypt(&[0; 15]), None);
        assert_eq!(Aes128Cbc::new(&[2; 16]).decrypt(&aes.encrypt(b"text")), None);
    }
}
