//! The first bytes of either side.

use crate::encoding::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};

const PREFIX: &[u8; 8] = b"ceph v2\n";
/// What a peer that speaks messenger 1 sends.
const MESSENGER_1: &[u8; 8] = b"ceph v02";
/// Bytes of what follows the length: two masks of features. More may come in the future.
const PAYLOAD_LEN: u16 = 16;
/// Bytes of a banner: text, u16 length, u64 supported, u64 required features.
pub const BANNER_LEN: usize = 8 + 2 + PAYLOAD_LEN as usize;

/// Frames of revision 1, which is the only one that this side speaks.
pub const FEATURE_REVISION_1: u64 = 1;
/// Compression of frames on the wire.
pub const FEATURE_COMPRESSION: u64 = 2;

/// A banner: what of the messenger its sender can do, and what it insists on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Banner {
    /// Features that the sender supports.
    pub supported: u64,
    /// Features that the sender requires.
    pub required: u64,
}

impl Banner {
    /// What this side sends. Compression is not offered.
    pub const OURS: Self = Self { supported: FEATURE_REVISION_1, required: 0 };
    const DOING: &'static str = "reading the banner";

    /// The banner as bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(PREFIX);
        writer.u16(PAYLOAD_LEN);
        writer.u64(self.supported);
        writer.u64(self.required);
        writer.into_bytes()
    }

    /// Reads a banner off the front of `input`: it and its length; nothing if there is too little yet.
    ///
    /// # Errors
    /// If the peer speaks something else, or a longer form of the banner.
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>> {
        let known = input.len().min(PREFIX.len());
        if input[..known] != PREFIX[..known] {
            let rule = if input[..known] == MESSENGER_1[..known] {
                "the peer speaks messenger 2, not 1: use the v2 address (port 3300)"
            } else {
                "a Ceph daemon starts with \"ceph v2\""
            };
            let differs = input.iter().zip(PREFIX).take_while(|(a, b)| a == b).count();
            return Err(Error::violation(Self::DOING, rule, u64::from(input[differs])));
        }
        let mut reader = Reader::new(Self::DOING, &input[known..]);
        let Ok(len) = reader.u16() else { return Ok(None) };
        if len != PAYLOAD_LEN {
            return Err(reader.violation("a banner has 16 bytes of features", len.into()));
        }
        let (Ok(supported), Ok(required)) = (reader.u64(), reader.u64()) else { return Ok(None) };
        Ok(Some((Self { supported, required }, BANNER_LEN)))
    }

    /// Checks what a peer supports and requires against this side.
    ///
    /// # Errors
    /// [`ErrorKind::Features`].
    pub fn check(self) -> Result<()> {
        let missing = self.required & !Self::OURS.supported;
        if missing != 0 {
            let problem = "the peer requires messenger features that this side lacks";
            let kind = ErrorKind::Features { problem, features: missing };
            return Err(Error::new(Self::DOING, kind));
        }
        if self.supported & FEATURE_REVISION_1 == 0 {
            let problem = "the peer lacks messenger 2.1, which came with 15.2.5 and 14.2.12";
            let kind = ErrorKind::Features { problem, features: FEATURE_REVISION_1 };
            return Err(Error::new(Self::DOING, kind));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Blame;

    /// From ceph-mon 16.2.15.
    const MONITOR: &[u8; BANNER_LEN] = b"ceph v2\n\x10\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

    #[test]
    fn a_banner_is_read_once_it_is_whole() {
        for len in 0..BANNER_LEN {
            assert_eq!(Banner::parse(&MONITOR[..len]).unwrap(), None);
        }
        assert_eq!(Banner::parse(MONITOR).unwrap(), Some((Banner::OURS, BANNER_LEN)));
        assert_eq!(Banner::OURS.encode(), MONITOR);
    }

    #[test]
    fn other_peers_are_told_from_the_first_byte_that_differs() {
        let old = Banner::parse(b"ceph v02").unwrap_err();
        assert!(old.to_string().contains("not 1"), "{old}");
        assert!(Banner::parse(b"SSH-2.0").is_err());
        assert!(Banner::parse(b"ceph v2\n\x11\0").is_err());
    }

    #[test]
    fn a_newer_peer_is_taken_unless_it_insists() {
        let newer = Banner { supported: 3, required: 0 };
        assert_eq!(newer.check(), Ok(()));
        for bad in [Banner { supported: 3, required: 2 }, Banner { supported: 2, required: 0 }] {
            assert_eq!(bad.check().unwrap_err().blame(), Blame::Policy);
        }
    }
}
