//! The cipher of secure mode (ceph: `src/msg/async/crypto_onwire.cc`): AES-128-GCM, a counter in the nonce.

use crate::error::{Error, ErrorKind, Result};
use aes_gcm::aead::{AeadInPlace, KeyInit};
use aes_gcm::{Aes128Gcm, Key, Nonce, Tag};
use std::fmt;

/// Bytes of the secret that monitors and daemons make for a connection. It is longer than what is used.
pub const CONNECTION_SECRET_LEN: usize = 64;
/// Bytes of an authentication code.
pub(super) const CODE_LEN: usize = 16;
/// What is encrypted comes in blocks of this many bytes, although GCM would not need it.
pub(super) const BLOCK: usize = 16;

const KEY_LEN: usize = 16;
const NONCE_LEN: usize = 12;
/// The nonce's constant part; the rest is a little-endian counter.
const NONCE_FIXED: usize = 4;

/// What both ends derive key and nonces of a connection from.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionSecret {
    key: [u8; KEY_LEN],
    from_server: [u8; NONCE_LEN],
    from_client: [u8; NONCE_LEN],
}

impl ConnectionSecret {
    /// The key, then the first nonce of the server, then that of the client. What follows is for later versions.
    ///
    /// # Errors
    /// If there is too little.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut reader = crate::encoding::Reader::new("reading a connection secret", bytes);
        Ok(Self {
            key: reader.array()?,
            from_server: reader.array()?,
            from_client: reader.array()?,
        })
    }

    /// The cipher of what the server sends.
    #[must_use]
    pub(super) fn server_cipher(&self) -> Gcm {
        Gcm::new(&self.key, self.from_server)
    }

    /// The cipher of what the client sends.
    #[must_use]
    pub(super) fn client_cipher(&self) -> Gcm {
        Gcm::new(&self.key, self.from_client)
    }
}

impl fmt::Debug for ConnectionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConnectionSecret")
    }
}

/// One direction of a connection.
pub(super) struct Gcm {
    cipher: Aes128Gcm,
    fixed: [u8; NONCE_FIXED],
    counter: u64,
}

impl fmt::Debug for Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gcm")
    }
}

impl Gcm {
    fn new(key: &[u8; KEY_LEN], nonce: [u8; NONCE_LEN]) -> Self {
        let [a, b, c, d, counter @ ..] = nonce;
        Self {
            cipher: Aes128Gcm::new(Key::<Aes128Gcm>::from_slice(key)),
            fixed: [a, b, c, d],
            counter: u64::from_le_bytes(counter),
        }
    }

    fn next_nonce(&mut self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..NONCE_FIXED].copy_from_slice(&self.fixed);
        nonce[NONCE_FIXED..].copy_from_slice(&self.counter.to_le_bytes());
        self.counter = self.counter.wrapping_add(1);
        nonce
    }

    /// Leaves a block out that is neither checked nor read.
    pub(super) fn skip(&mut self) {
        self.next_nonce();
    }

    /// Encrypts bytes in place, and gives the code that goes behind them.
    pub(super) fn seal(&mut self, bytes: &mut [u8]) -> [u8; CODE_LEN] {
        let nonce = self.next_nonce();
        let code = self.cipher.encrypt_in_place_detached(Nonce::from_slice(&nonce), b"", bytes);
        match code {
            Ok(code) => code.into(),
            Err(_) => unreachable!("frames are far below the cipher's limit of 64 GiB"),
        }
    }

    /// Checks and decrypts bytes in place.
    ///
    /// # Errors
    /// If the code does not fit: the stream was changed, or the keys differ.
    pub(super) fn open(&mut self, bytes: &mut [u8], code: &[u8; CODE_LEN]) -> Result<()> {
        let nonce = self.next_nonce();
        let (nonce, code) = (Nonce::from_slice(&nonce), Tag::from_slice(code));
        self.cipher.decrypt_in_place_detached(nonce, b"", bytes, code).map_err(|_| {
            Error::new("decrypting a frame", ErrorKind::Corrupted { what: "encrypted frame" })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_end_reads_the_other_and_nonces_are_used_once() {
        let secret = ConnectionSecret::parse(&[7; CONNECTION_SECRET_LEN]).unwrap();
        let (mut seal, mut open) = (secret.client_cipher(), secret.client_cipher());
        let (mut first, mut second) = ([1; 32], [1; 32]);
        let codes = [seal.seal(&mut first), seal.seal(&mut second)];
        assert_ne!(first, second);
        open.open(&mut first, &codes[0]).unwrap();
        assert_eq!(first, [1; 32]);
        assert!(open.open(&mut second, &codes[0]).is_err());
        assert_eq!(format!("{secret:?} {seal:?}"), "ConnectionSecret Gcm");
        assert!(ConnectionSecret::parse(&[7; 39]).is_err());
    }
}
