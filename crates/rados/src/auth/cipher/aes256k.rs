//! The cipher of key type 2, "aes256k" (ceph 20: `src/auth/Crypto.cc`, `CryptoAES256KRB5`): what RFC 8009 calls
//! aes256-cts-hmac-sha384-192, with Ceph's numbers of usages.

use super::{BLOCK, xor};
use aes::Aes256;
use aes::cipher::{BlockDecrypt, BlockEncrypt, KeyInit};
use hmac::{Hmac, Mac};
use sha2::Sha384;

/// Bytes of the random block in front of what is encrypted.
const CONFOUNDER: usize = BLOCK;
/// Bytes of the code behind it, and of the key that makes it.
const MAC_LEN: usize = 24;
/// What tells the two derived keys of a usage apart.
const LABEL_ENCRYPT: u8 = 0xaa;
const LABEL_INTEGRITY: u8 = 0x55;

/// The keys of one usage.
pub(in crate::auth) struct Aes256k {
    encrypt: Aes256,
    integrity: [u8; MAC_LEN],
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha384> {
    let mac = <Hmac<Sha384> as Mac>::new_from_slice(key);
    let mut mac = match mac {
        Ok(mac) => mac,
        Err(_) => unreachable!("HMAC takes keys of any length"),
    };
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// RFC 8009, section 3: KDF-HMAC-SHA2, with the usage and a label byte as its label.
fn derive<const LEN: usize>(key: &[u8], usage: u32, label: u8) -> [u8; LEN] {
    let bits = u32::try_from(LEN * 8).unwrap_or(u32::MAX).to_be_bytes();
    let parts = [&1_u32.to_be_bytes()[..], &usage.to_be_bytes(), &[label, 0], &bits];
    let full: [u8; 48] = hmac(key, &parts).finalize().into_bytes().into();
    std::array::from_fn(|at| full[at])
}

impl Aes256k {
    /// Bytes of a key.
    pub(in crate::auth) const KEY_LEN: usize = 32;

    /// The keys for a usage.
    pub(in crate::auth) fn new(key: &[u8; Self::KEY_LEN], usage: u32) -> Self {
        let encrypt = derive::<32>(key, usage, LABEL_ENCRYPT);
        Self {
            encrypt: Aes256::new(&encrypt.into()),
            integrity: derive(key, usage, LABEL_INTEGRITY),
        }
    }

    /// Encrypts behind a random block.
    pub(in crate::auth) fn encrypt(&self, confounder: [u8; CONFOUNDER], plain: &[u8]) -> Vec<u8> {
        let mut bytes = [&confounder, plain].concat();
        self.encrypt_cts(&mut bytes);
        let code = hmac(&self.integrity, &[&[0; BLOCK], &bytes]).finalize().into_bytes();
        bytes.extend_from_slice(&code[..MAC_LEN]);
        bytes
    }

    /// What was encrypted; nothing if it was not with this key, for this usage.
    pub(in crate::auth) fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let (bytes, code) = cipher.split_at_checked(cipher.len().checked_sub(MAC_LEN)?)?;
        if bytes.len() < CONFOUNDER {
            return None;
        }
        hmac(&self.integrity, &[&[0; BLOCK], bytes]).verify_truncated_left(code).ok()?;
        let mut bytes = bytes.to_vec();
        self.decrypt_cts(&mut bytes);
        Some(bytes.split_off(CONFOUNDER))
    }

    /// CBC from an initialization vector of zeroes; the last two blocks change places, and the one that is then last
    /// is cut to the length of the text ("CS3"). A single block is encrypted as it is.
    fn encrypt_cts(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        bytes.resize(len.next_multiple_of(BLOCK), 0);
        let mut previous = [0; BLOCK];
        let blocks = bytes.as_chunks_mut::<BLOCK>().0;
        for block in &mut *blocks {
            xor(block, &previous);
            self.encrypt.encrypt_block(block.into());
            previous = *block;
        }
        if let [.., before, last] = blocks {
            std::mem::swap(before, last);
        }
        bytes.truncate(len);
    }

    fn decrypt_cts(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let whole = len.next_multiple_of(BLOCK);
        bytes.resize(whole, 0);
        let cut = whole - len;
        let blocks = bytes.as_chunks_mut::<BLOCK>().0;
        if let [.., before, last] = &mut *blocks {
            // What `before` decrypts to ends with the bytes that were cut off, since the text ends with zeroes there.
            let mut tail = *before;
            self.encrypt.decrypt_block((&mut tail).into());
            last[BLOCK - cut..].copy_from_slice(&tail[BLOCK - cut..]);
            std::mem::swap(before, last);
        }
        let mut previous = [0; BLOCK];
        for block in blocks {
            let encrypted = *block;
            self.encrypt.decrypt_block(block.into());
            xor(block, &previous);
            previous = encrypted;
        }
        bytes.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
        let byte =
            |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    fn key() -> [u8; 32] {
        let key = "6D404D37FAF79F9DF0D33568D320669800EB4836472EA8A026D16B7182460C52";
        hex(key).try_into().unwrap()
    }

    /// RFC 8009, appendix A: key derivation and encryption for usage 2.
    #[test]
    fn the_vectors_of_rfc_8009_are_met() {
        let integrity = "69B16514E3CD8E56B82010D5C73012B622C4D00FFC23ED1F";
        assert_eq!(derive::<24>(&key(), 2, LABEL_INTEGRITY)[..], hex(integrity));
        let encrypt = "56AB22BEE63D82D7BC5227F6773F8EA7A5EB1C825160C38312980C442E5C7E49";
        assert_eq!(derive::<32>(&key(), 2, LABEL_ENCRYPT)[..], hex(encrypt));
        let vectors = [
            (
                "",
                "F764E9FA15C276478B2C7D0C4E5F58E4",
                "41F53FA5BFE7026D91FAF9BE959195A058707273A96A40F0A01960621AC612748B9BBFBE7EB4CE3C",
            ),
            (
                "000102030405",
                "B80D3251C1F6471494256FFE712D0B9A",
                "4ED7B37C2BCAC8F74F23C1CF07E62BC7B75FB3F637B9F559C7F664F69EAB7B6092237526EA0D1F61CB20D69D10F2",
            ),
        ];
        let aes = Aes256k::new(&key(), 2);
        for (plain, confounder, cipher) in vectors {
            let confounder = hex(confounder).try_into().unwrap();
            assert_eq!(aes.encrypt(confounder, &hex(plain)), hex(cipher), "{plain}");
            assert_eq!(aes.decrypt(&hex(cipher)), Some(hex(plain)));
        }
    }

    #[test]
    fn any_length_comes_back_and_a_change_is_told() {
        let aes = Aes256k::new(&key(), 0x10);
        for len in 0..70 {
            let plain = vec![7; len];
            let mut cipher = aes.encrypt([3; 16], &plain);
            assert_eq!(aes.decrypt(&cipher), Some(plain));
            assert_eq!(Aes256k::new(&key(), 0x11).decrypt(&cipher), None);
            cipher[len] ^= 1;
            assert_eq!(aes.decrypt(&cipher), None);
        }
        assert_eq!(aes.decrypt(&[0; 39]), None);
    }
}
