//! A frame and its preamble.

use super::crc::ceph_crc32c;
use crate::encoding::{Reader, Writer};
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;

/// Bytes of a preamble: tag, count of segments, 4 x (u32 length, u16 alignment), flags, reserved, crc.
pub const PREAMBLE_LEN: usize = 1 + 1 + MAX_SEGMENTS * (4 + 2) + 1 + 1 + 4;
/// Most segments of a frame.
pub const MAX_SEGMENTS: usize = 4;
const _: () = assert!(PREAMBLE_LEN == 32);

/// Bytes of the preamble that its own crc covers, and the crc's seed.
const PREAMBLE_CRC_AT: usize = PREAMBLE_LEN - 4;
const PREAMBLE_SEED: u32 = 0;
/// The alignment of everything but data, and that of data.
const DEFAULT_ALIGNMENT: u16 = 8;
const DATA_ALIGNMENT: u16 = 4096;
const DATA_SEGMENT: usize = 3;
/// Flag of a frame that is compressed.
const FLAG_COMPRESSED: u8 = 1;

/// What a frame is (ceph: `frames_v2.h`, `Tag`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u8);

impl Tag {
    /// Who is there, and how it sees the other's address.
    pub const HELLO: Self = Self(1);
    /// A client starts to authenticate.
    pub const AUTH_REQUEST: Self = Self(2);
    /// Not with that method.
    pub const AUTH_BAD_METHOD: Self = Self(3);
    /// The server needs more.
    pub const AUTH_REPLY_MORE: Self = Self(4);
    /// Here it is.
    pub const AUTH_REQUEST_MORE: Self = Self(5);
    /// The client is who it says.
    pub const AUTH_DONE: Self = Self(6);
    /// A code over everything that was received so far.
    pub const AUTH_SIGNATURE: Self = Self(7);
    /// A client opens a session.
    pub const CLIENT_IDENT: Self = Self(8);
    /// The session is open.
    pub const SERVER_IDENT: Self = Self(9);
    /// The client lacks features.
    pub const IDENT_MISSING_FEATURES: Self = Self(10);
    /// A client wants its session back.
    pub const SESSION_RECONNECT: Self = Self(11);
    /// There is no such session.
    pub const SESSION_RESET: Self = Self(12);
    /// Try to reconnect again.
    pub const SESSION_RETRY: Self = Self(13);
    /// Try to reconnect again, with a newer global sequence.
    pub const SESSION_RETRY_GLOBAL: Self = Self(14);
    /// The session is back.
    pub const SESSION_RECONNECT_OK: Self = Self(15);
    /// The server connects itself.
    pub const WAIT: Self = Self(16);
    /// A message.
    pub const MESSAGE: Self = Self(17);
    /// Are you there?
    pub const KEEPALIVE2: Self = Self(18);
    /// I am.
    pub const KEEPALIVE2_ACK: Self = Self(19);
    /// Messages up to this one came.
    pub const ACK: Self = Self(20);
}

/// The segments of a frame; those that are not used are empty.
pub type Segments = [Bytes; MAX_SEGMENTS];

/// A frame, checked and, in secure mode, decrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub tag: Tag,
    /// What is in it.
    pub segments: Segments,
    /// How many bytes behind the first segment were left out, as they were too many; 0 for a whole frame.
    pub left_out: u64,
}

impl Frame {
    /// A frame with one segment, as all are but messages.
    #[must_use]
    pub fn control(tag: Tag, payload: Vec<u8>) -> Self {
        let mut segments = Segments::default();
        segments[0] = payload.into();
        Self { tag, segments, left_out: 0 }
    }

    /// How many segments are sent: up to the last one that is not empty, and at least one.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.segments.iter().rposition(|segment| !segment.is_empty()).unwrap_or(0) + 1
    }
}

/// The lengths of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preamble {
    /// What the frame is.
    pub tag: Tag,
    /// How many segments there are, 1 to 4.
    pub count: usize,
    /// Their lengths in bytes; 0 behind `count`.
    pub lengths: [u32; MAX_SEGMENTS],
}

impl Preamble {
    const DOING: &'static str = "reading a frame's preamble";

    /// The preamble of a frame.
    ///
    /// # Panics
    /// If a segment has 4 GiB or more, which no message may have.
    #[must_use]
    pub fn of(frame: &Frame) -> Self {
        let lengths = frame.segments.each_ref().map(|segment| {
            u32::try_from(segment.len())
                .unwrap_or_else(|_| panic!("a segment of {} bytes", segment.len()))
        });
        Self { tag: frame.tag, count: frame.segment_count(), lengths }
    }

    /// Bytes of all segments together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lengths.iter().map(|&length| u64::from(length)).sum()
    }

    /// The preamble as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut writer = Writer::with_capacity(PREAMBLE_LEN);
        writer.u8(self.tag.0);
        writer.raw(&[self.count.to_le_bytes()[0]]);
        for (index, &length) in self.lengths.iter().enumerate() {
            writer.u32(length);
            let used = index < self.count;
            writer.u16(match index {
                DATA_SEGMENT if used => DATA_ALIGNMENT,
                _ if used => DEFAULT_ALIGNMENT,
                _ => 0,
            });
        }
        writer.raw(&[0; 2]);
        writer.u32(ceph_crc32c(PREAMBLE_SEED, writer.as_slice()));
        let mut bytes = [0; PREAMBLE_LEN];
        bytes.copy_from_slice(writer.as_slice());
        bytes
    }

    /// Reads a preamble. `max` is the most that all segments together may have, in bytes.
    ///
    /// # Errors
    /// A wrong checksum, a count out of range, a compressed frame, a frame over `max`.
    pub fn decode(bytes: &[u8; PREAMBLE_LEN], max: u64) -> Result<Self> {
        let mut reader = Reader::new(Self::DOING, bytes);
        let (tag, count) = (Tag(reader.u8()?), reader.u8()?);
        let mut lengths = [0; MAX_SEGMENTS];
        for length in &mut lengths {
            *length = reader.u32()?;
            reader.u16()?;
        }
        let flags = reader.u8()?;
        reader.u8()?;
        if reader.u32()? != ceph_crc32c(PREAMBLE_SEED, &bytes[..PREAMBLE_CRC_AT]) {
            return Err(Error::new(Self::DOING, ErrorKind::Corrupted { what: "preamble" }));
        }
        let count = usize::from(count);
        if !(1..=MAX_SEGMENTS).contains(&count) {
            return Err(reader.violation("a frame has 1 to 4 segments", count as u64));
        }
        if flags & FLAG_COMPRESSED != 0 {
            return Err(reader.violation("compression was not negotiated", flags.into()));
        }
        if lengths[count..].iter().any(|&length| length != 0) {
            return Err(reader.violation("segments that are not used are empty", count as u64));
        }
        let preamble = Self { tag, count, lengths };
        if preamble.total() > max {
            return Err(Error::too_big(Self::DOING, "bytes of a frame", preamble.total(), max));
        }
        Ok(preamble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_is_read_back_and_checked() {
        let mut frame = Frame::control(Tag::MESSAGE, vec![1; 41]);
        frame.segments[3] = vec![2; 5000].into();
        let preamble = Preamble::of(&frame);
        assert_eq!(preamble.lengths, [41, 0, 0, 5000]);
        let bytes = preamble.encode();
        assert_eq!(Preamble::decode(&bytes, 5041).unwrap(), preamble);
        assert_eq!(
            Preamble::decode(&bytes, 5040).unwrap_err().to_string(),
            "reading a frame's preamble: bytes of a frame is 5041, the limit is 5040"
        );
        for index in 0..PREAMBLE_LEN {
            let mut bad = bytes;
            bad[index] ^= 0x40;
            let error = Preamble::decode(&bad, u64::MAX).unwrap_err();
            assert_eq!(*error.kind(), ErrorKind::Corrupted { what: "preamble" });
        }
    }

    #[test]
    fn counts_and_flags_out_of_range_are_refused() {
        let signed = |mut bytes: [u8; PREAMBLE_LEN]| {
            let crc = ceph_crc32c(PREAMBLE_SEED, &bytes[..PREAMBLE_CRC_AT]);
            bytes[PREAMBLE_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        let good = Preamble::of(&Frame::control(Tag::ACK, vec![0; 8])).encode();
        for (at, value) in [(1, 0), (1, 5), (26, 1), (8, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Preamble::decode(&signed(bad), u64::MAX).is_err(), "{at} {value}");
        }
        assert!(Preamble::decode(&signed(good), u64::MAX).is_ok());
    }
}
