//! Keys of entities, sessions and tickets.

use super::base64;
use super::cipher::{Aes128Cbc, Aes256k};
use super::random::Random;
use crate::encoding::{Decode, Encode, Reader, Utime, Writer, encoded};
use crate::error::{Error, ErrorKind, Result};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::fmt;

/// The kinds of keys (ceph: `src/include/ceph_fs.h`, `CEPH_CRYPTO_*`).
const TYPE_AES: u16 = 1;
const TYPE_AES256K: u16 = 2;

/// What a key is used for: keys of type 2 derive others from it (ceph 20: `src/auth/cephx/CephxProtocol.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    ConnectionSecret = 0x03,
    TicketSessionKey = 0x04,
    TicketBlob = 0x05,
    Authorize = 0x10,
    AuthorizeChallenge = 0x11,
    AuthorizeReply = 0x12,
}

/// What everything that is encrypted starts with: a version, and a number that tells whether the key was right (ceph:
/// `CephxProtocol.h`, `AUTH_ENC_MAGIC`).
const ENVELOPE_VERSION: u8 = 1;
const ENVELOPE_MAGIC: u64 = 0xff00_9cad_8826_aa55;

fn envelope(plain: &[u8]) -> Vec<u8> {
    let mut writer = Writer::new();
    writer.u8(ENVELOPE_VERSION);
    writer.u64(ENVELOPE_MAGIC);
    writer.raw(plain);
    writer.into_bytes()
}

#[derive(Clone, PartialEq, Eq)]
enum Secret {
    Aes([u8; Aes128Cbc::KEY_LEN]),
    Aes256k([u8; Aes256k::KEY_LEN]),
}

/// A cephx key. It does not print, and is compared only by tests.
#[derive(Clone, PartialEq, Eq)]
pub struct CryptoKey {
    created: Utime,
    secret: Secret,
}

impl fmt::Debug for CryptoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.secret {
            Secret::Aes(_) => "CryptoKey(aes)",
            Secret::Aes256k(_) => "CryptoKey(aes256k)",
        })
    }
}

impl CryptoKey {
    /// Reads the text form of keyrings: base64 of the encoding.
    ///
    /// # Errors
    /// If it is no key. The text is not in the error.
    pub fn from_base64(text: &str) -> Result<Self> {
        let bytes = base64::decode(text.trim()).ok_or_else(|| Self::no_key("a key is base64"))?;
        let mut reader = Reader::new("reading a key", &bytes);
        let key = reader.get::<Self>().map_err(|error| match error.kind() {
            ErrorKind::Violation { rule, .. } => Self::no_key(rule),
            _ => Self::no_key("a key is cut short"),
        })?;
        Ok(key)
    }

    fn no_key(problem: &'static str) -> Error {
        let text = "(the key is not shown)".to_owned();
        Error::new("reading a key", ErrorKind::BadParameter { problem, text })
    }

    /// The bytes of the secret.
    pub(super) fn secret(&self) -> &[u8] {
        match &self.secret {
            Secret::Aes(key) => key,
            Secret::Aes256k(key) => key,
        }
    }

    /// Encrypts a structure.
    pub(super) fn seal(&self, usage: Usage, random: &mut Random, value: &impl Encode) -> Vec<u8> {
        let plain = envelope(&encoded(value));
        match &self.secret {
            Secret::Aes(key) => Aes128Cbc::new(key).encrypt(&plain),
            Secret::Aes256k(key) => Aes256k::new(key, usage as u32).encrypt(random.array(), &plain),
        }
    }

    /// Decrypts a structure; nothing if it was not encrypted with this key, for this usage.
    ///
    /// # Errors
    /// If it was, but is malformed.
    pub(super) fn open<T: Decode>(&self, usage: Usage, cipher: &[u8]) -> Result<Option<T>> {
        let plain = match &self.secret {
            Secret::Aes(key) => Aes128Cbc::new(key).decrypt(cipher),
            Secret::Aes256k(key) => Aes256k::new(key, usage as u32).decrypt(cipher),
        };
        let Some(plain) = plain else { return Ok(None) };
        let mut reader = Reader::new("decrypting", &plain);
        match (reader.u8(), reader.u64()) {
            (Ok(_), Ok(ENVELOPE_MAGIC)) => reader.get().map(Some),
            _ => Ok(None),
        }
    }

    /// What proves to a monitor that this key is known, given the server's and the client's challenge: the words of
    /// their encryption behind its length, or of their hash where encryption is not deterministic, XORed (ceph:
    /// `cephx_calc_client_server_challenge`).
    pub(super) fn prove(&self, server_challenge: u64, client_challenge: u64) -> u64 {
        let blob = [server_challenge, client_challenge].map(u64::to_le_bytes).concat();
        let words = match &self.secret {
            Secret::Aes(key) => {
                let cipher = Aes128Cbc::new(key).encrypt(&envelope(&blob));
                let mut writer = Writer::new();
                writer.bytes(&cipher);
                writer.into_bytes()
            }
            Secret::Aes256k(key) => match Hmac::<Sha256>::new_from_slice(key) {
                Ok(mac) => mac.chain_update(&blob).finalize().into_bytes().to_vec(),
                Err(_) => unreachable!("HMAC takes keys of any length"),
            },
        };
        let (words, _) = words.as_chunks::<8>();
        words.iter().fold(0, |sum, word| sum ^ u64::from_le_bytes(*word))
    }
}

impl Decode for CryptoKey {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let kind = reader.u16()?;
        let created = reader.get()?;
        let len = reader.u16()?;
        let secret = reader.raw(len.into())?;
        let short = "a key of this type is longer";
        let secret = match kind {
            TYPE_AES => secret.first_chunk().copied().map(Secret::Aes),
            TYPE_AES256K => secret.first_chunk().copied().map(Secret::Aes256k),
            _ => return Err(reader.violation("a key has type 1 (aes) or 2 (aes256k)", kind.into())),
        };
        let secret = secret.ok_or_else(|| reader.violation(short, len.into()))?;
        Ok(Self { created, secret })
    }
}

impl Encode for CryptoKey {
    fn encode(&self, writer: &mut Writer) {
        let (kind, len) = match self.secret {
            Secret::Aes(_) => (TYPE_AES, 16),
            Secret::Aes256k(_) => (TYPE_AES256K, 32),
        };
        writer.u16(kind);
        writer.put(&self.created);
        writer.u16(len);
        writer.raw(self.secret());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_keyring_is_read_and_does_not_print() {
        let key = CryptoKey::from_base64("AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==").unwrap();
        assert_eq!(format!("{key:?}"), "CryptoKey(aes)");
        assert_eq!(encoded(&key).len(), 28);
        assert_eq!(key.secret().len(), 16);
        let mut random = Random::new(|bytes| bytes.fill(5));
        for other in [Usage::Authorize, Usage::TicketBlob] {
            let cipher = key.seal(other, &mut random, &7_u64);
            assert_eq!(key.open::<u64>(other, &cipher).unwrap(), Some(7));
            assert!(key.open::<String>(other, &cipher).is_err());
        }
        for bad in ["", "AQCz", "AwCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==", "AQCz4gJrSu1bCxA*"] {
            let error = CryptoKey::from_base64(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
}
