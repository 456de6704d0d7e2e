//! Messages: what the upper layers exchange.

use super::frame::{Frame, Tag};
use crate::encoding::{Reader, Writer};
use crate::error::Result;
use bytes::Bytes;

/// Bytes of a message's header (ceph: `src/include/msgr.h`, `ceph_msg_header2`).
pub const MESSAGE_HEADER_LEN: usize = 8 + 8 + 2 + 2 + 2 + 4 + 2 + 8 + 1 + 2 + 2;
const _: () = assert!(MESSAGE_HEADER_LEN == 41);

/// The middle of the priorities (`CEPH_MSG_PRIO_DEFAULT`).
const PRIORITY_DEFAULT: u16 = 127;
/// Flags that every message of a v2 session has: complete, no crc of its own.
const FLAGS: u8 = 3;

/// A message: its type and version tell what is in the three parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it is (`MSG_*`, `CEPH_MSG_*`).
    pub kind: u16,
    /// The version of its encoding.
    pub version: u16,
    /// The oldest version that can read it.
    pub compat: u16,
    /// How urgent it is; 127 is usual, 0 stands for it here.
    pub priority: u16,
    /// The sender's number of a request, which a reply repeats.
    pub tid: u64,
    /// The fields.
    pub front: Bytes,
    /// More fields, which few messages have.
    pub middle: Bytes,
    /// Data.
    pub data: Bytes,
}

impl Message {
    /// A message with fields only.
    #[must_use]
    pub fn new(kind: u16, version: u16, compat: u16, front: Vec<u8>) -> Self {
        Self { kind, version, compat, front: front.into(), ..Self::default() }
    }

    /// A reader of the fields; `doing` names the operation in errors.
    #[must_use]
    pub fn reader(&self, doing: &'static str) -> Reader<'_> {
        Reader::new(doing, &self.front)
    }

    /// The message as a frame: the `seq`th of its session, when `ack` was the last one to come.
    #[must_use]
    pub fn into_frame(self, seq: u64, ack: u64) -> Frame {
        let mut header = Writer::with_capacity(MESSAGE_HEADER_LEN);
        header.u64(seq);
        header.u64(self.tid);
        header.u16(self.kind);
        header.u16(if self.priority == 0 { PRIORITY_DEFAULT } else { self.priority });
        header.u16(self.version);
        header.u32(0);
        header.u16(0);
        header.u64(ack);
        header.u8(FLAGS);
        header.u16(self.compat);
        header.u16(0);
        let header = header.into_bytes().into();
        let segments = [header, self.front, self.middle, self.data];
        Frame { tag: Tag::MESSAGE, segments, left_out: 0 }
    }

    /// The message in a frame, and its number in the session.
    ///
    /// # Errors
    /// If the first segment is no header of a message.
    pub fn from_frame(frame: Frame) -> Result<(Self, u64)> {
        let [header, front, middle, data] = frame.segments;
        let mut reader = Reader::new("reading a message's header", &header);
        if header.len() != MESSAGE_HEADER_LEN {
            return Err(reader.violation("a message's header has 41 bytes", header.len() as u64));
        }
        let (seq, tid) = (reader.u64()?, reader.u64()?);
        let (kind, priority, version) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let padding = reader.u32()?;
        if padding != 0 {
            return Err(reader.violation("data is not padded", padding.into()));
        }
        // The offset that data should have in memory, the last message that the peer got, flags.
        reader.u16()?;
        reader.u64()?;
        reader.u8()?;
        let compat = reader.u16()?;
        Ok((Self { kind, version, compat, priority, tid, front, middle, data }, seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back() {
        let message = Message {
            priority: 63,
            tid: 77,
            middle: vec![4].into(),
            data: vec![5; 9].into(),
            ..Message::new(42, 8, 3, vec![1, 2, 3])
        };
        let frame = message.clone().into_frame(5, 4);
        assert_eq!(frame.segment_count(), 4);
        assert_eq!(Message::from_frame(frame.clone()).unwrap(), (message, 5));
        let mut short = frame;
        short.segments[0].truncate(40);
        assert!(Message::from_frame(short).is_err());
    }

    /// `mon_getmap`, the first message of a client of 16.2.15.
    #[test]
    fn the_header_is_that_of_a_real_client() {
        let frame = Message::new(5, 1, 1, vec![]).into_frame(1, 0);
        let expected = b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\x7f\0\x01\0\0\0\0\0\0\0\
            \0\0\0\0\0\0\0\0\x03\x01\0\0\0";
        assert_eq!(frame.segments[0], expected[..]);
        assert_eq!(frame.segment_count(), 1);
    }
}
