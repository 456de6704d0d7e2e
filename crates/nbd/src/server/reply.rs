//! Replies in all three styles of headers ("Simple reply message", "Structured reply chunk message",
//! "Extended reply chunk message", "Structured reply types").

use std::ops::Deref;

use super::extents::ExtentList;
use super::options::clipped;
use crate::wire::{ChunkFlags, ChunkType, ErrorCode, HeaderStyle, Request};

/// Longest [`ReplyHead`] in bytes: an extended header and the fields of `NBD_REPLY_TYPE_ERROR_OFFSET`.
pub const MAX_REPLY_HEAD_LEN: usize = 46;
const _: () = assert!(MAX_REPLY_HEAD_LEN == HeaderStyle::Extended.reply_len() + 4 + 2 + 8);

/// Which request a reply is for: all that must be kept of it until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// The client's name for the request.
    pub cookie: u64,
    /// The request's offset, which extended headers repeat.
    pub offset: u64,
}

impl From<&Request> for ReplyTo {
    fn from(request: &Request) -> Self {
        Self { cookie: request.cookie, offset: request.offset }
    }
}

/// The bytes of a reply without data, on the stack.
#[derive(Clone, Copy, Debug)]
pub struct ReplyHead {
    bytes: [u8; MAX_REPLY_HEAD_LEN],
    len: usize,
}

impl ReplyHead {
    const EMPTY: Self = Self { bytes: [0; MAX_REPLY_HEAD_LEN], len: 0 };

    /// Appends a field whose place depends on the style.
    #[inline]
    fn put<const N: usize>(&mut self, field: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&field);
        self.len += N;
    }
}

impl Deref for ReplyHead {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes replies in the style of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyEncoder {
    style: HeaderStyle,
}

impl ReplyEncoder {
    /// For a connection that agreed on these headers.
    #[must_use]
    pub const fn new(style: HeaderStyle) -> Self {
        Self { style }
    }

    /// Whether a READ can be answered in several pieces, and by [`hole`](Self::hole). Otherwise all of its data
    /// must follow one [`data`](Self::data), zeroes too, and no error can be told any more.
    #[must_use]
    pub const fn can_send_holes(self) -> bool {
        self.style.has_chunks()
    }

    /// Success without data.
    #[inline]
    #[must_use]
    pub fn ok(self, to: ReplyTo) -> ReplyHead {
        match self.style {
            HeaderStyle::Simple => Self::simple(to, 0),
            _ => self.chunk(to, ChunkType::NONE, true, 0),
        }
    }

    /// What stands before `length` bytes of data from `offset` of the export. `done` says that it is the last
    /// chunk of the reply.
    ///
    /// # Panics
    ///
    /// In simple style, if it is not the one piece from the offset of the request on. In structured style,
    /// if the length does not fit 32 bits with the 8 bytes of the offset.
    #[inline]
    #[must_use]
    pub fn data(self, to: ReplyTo, offset: u64, length: u32, done: bool) -> ReplyHead {
        if self.style == HeaderStyle::Simple {
            assert!(done && offset == to.offset, "a simple reply has one piece");
            return Self::simple(to, 0);
        }
        let mut head = self.chunk(to, ChunkType::OFFSET_DATA, done, 8 + u64::from(length));
        head.put(offset.to_be_bytes());
        head
    }

    /// `length` bytes of zeroes, at least 1, from `offset` of the export.
    ///
    /// # Panics
    ///
    /// If not [`can_send_holes`](Self::can_send_holes).
    #[inline]
    #[must_use]
    pub fn hole(self, to: ReplyTo, offset: u64, length: u32, done: bool) -> ReplyHead {
        assert!(self.can_send_holes(), "a simple reply has no holes");
        let mut head = self.chunk(to, ChunkType::OFFSET_HOLE, done, 12);
        head.put(offset.to_be_bytes());
        head.put(length.to_be_bytes());
        head
    }

    /// Failure of the whole request. It is the last chunk.
    #[inline]
    #[must_use]
    pub fn error(self, to: ReplyTo, error: ErrorCode) -> ReplyHead {
        if self.style == HeaderStyle::Simple {
            return Self::simple(to, error.0);
        }
        let mut head = self.chunk(to, ChunkType::ERROR, true, 6);
        head.put(error.0.to_be_bytes());
        head.put(0_u16.to_be_bytes());
        head
    }

    /// Failure at an offset of the export within the request: the data sent before that is good.
    /// In simple style the failure of the whole request, which must be the only reply.
    #[inline]
    #[must_use]
    pub fn error_at(self, to: ReplyTo, error: ErrorCode, offset: u64, done: bool) -> ReplyHead {
        if self.style == HeaderStyle::Simple {
            return Self::simple(to, error.0);
        }
        let mut head = self.chunk(to, ChunkType::ERROR_OFFSET, done, 14);
        head.put(error.0.to_be_bytes());
        head.put(0_u16.to_be_bytes());
        head.put(offset.to_be_bytes());
        head
    }

    /// Failure of the whole request with words for the client's user, appended to `out`. The words are cut at
    /// 4096 bytes, and left out in simple style.
    pub fn error_message(self, out: &mut Vec<u8>, to: ReplyTo, error: ErrorCode, message: &str) {
        if self.style == HeaderStyle::Simple {
            out.extend_from_slice(&Self::simple(to, error.0));
            return;
        }
        let message = clipped(message);
        let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
        let mut head = self.chunk(to, ChunkType::ERROR, true, 6 + u64::from(len));
        head.put(error.0.to_be_bytes());
        head.put(len.to_be_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(message.as_bytes());
    }

    /// The extents of one context, appended to `out`. There must be one such chunk for each context.
    ///
    /// # Panics
    ///
    /// If there is no extent, or no chunks in this style: BLOCK_STATUS is not valid then.
    pub fn block_status(
        self,
        out: &mut Vec<u8>,
        to: ReplyTo,
        context: u32,
        list: &ExtentList,
        done: bool,
    ) {
        let extents = list.extents();
        assert!(!extents.is_empty(), "a reply to BLOCK_STATUS has at least one extent");
        assert!(self.style.has_chunks(), "a simple reply has no extents");
        // ExtentList keeps the count below 2^20, so that neither cast can fail.
        let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        if self.style == HeaderStyle::Extended {
            let len = 8 + 16 * u64::from(count);
            let mut head = self.chunk(to, ChunkType::BLOCK_STATUS_EXT, done, len);
            head.put(context.to_be_bytes());
            head.put(count.to_be_bytes());
            out.extend_from_slice(&head);
            for extent in extents {
                out.extend_from_slice(&extent.length.to_be_bytes());
                out.extend_from_slice(&extent.status.to_be_bytes());
            }
        } else {
            let len = 4 + 8 * u64::from(count);
            let mut head = self.chunk(to, ChunkType::BLOCK_STATUS, done, len);
            head.put(context.to_be_bytes());
            out.extend_from_slice(&head);
            for extent in extents {
                let (length, status) = (u32::try_from(extent.length), u32::try_from(extent.status));
                assert!(length.is_ok() && status.is_ok(), "the extent needs extended headers");
                out.extend_from_slice(&length.unwrap_or(0).to_be_bytes());
                out.extend_from_slice(&status.unwrap_or(0).to_be_bytes());
            }
        }
    }

    #[inline]
    fn simple(to: ReplyTo, error: u32) -> ReplyHead {
        let mut head = ReplyHead::EMPTY;
        head.bytes[..4].copy_from_slice(&HeaderStyle::Simple.reply_magic().to_be_bytes());
        head.bytes[4..8].copy_from_slice(&error.to_be_bytes());
        head.bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
        head.len = HeaderStyle::Simple.reply_len();
        head
    }

    #[inline]
    fn chunk(self, to: ReplyTo, kind: ChunkType, done: bool, len: u64) -> ReplyHead {
        let flags = if done { ChunkFlags::DONE } else { ChunkFlags::empty() };
        let mut head = ReplyHead::EMPTY;
        head.bytes[..4].copy_from_slice(&self.style.reply_magic().to_be_bytes());
        head.bytes[4..6].copy_from_slice(&flags.bits().to_be_bytes());
        head.bytes[6..8].copy_from_slice(&kind.0.to_be_bytes());
        head.bytes[8..16].copy_from_slice(&to.cookie.to_be_bytes());
        if self.style == HeaderStyle::Extended {
            head.bytes[16..24].copy_from_slice(&to.offset.to_be_bytes());
            head.bytes[24..32].copy_from_slice(&len.to_be_bytes());
            head.len = HeaderStyle::Extended.reply_len();
        } else {
            let short = u32::try_from(len);
            assert!(short.is_ok(), "a structured chunk is shorter than 4 GiB");
            head.bytes[16..20].copy_from_slice(&short.unwrap_or(0).to_be_bytes());
            head.len = HeaderStyle::Structured.reply_len();
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: ReplyTo = ReplyTo { cookie: 0x0102_0304_0506_0708, offset: 0x1000 };
    const SIMPLE: ReplyEncoder = ReplyEncoder::new(HeaderStyle::Simple);
    const STRUCTURED: ReplyEncoder = ReplyEncoder::new(HeaderStyle::Structured);
    const EXTENDED: ReplyEncoder = ReplyEncoder::new(HeaderStyle::Extended);

    /// Bytes written as hexadecimal digits with blanks.
    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
    }

    // "Simple reply message".
    #[test]
    fn golden_simple() {
        assert_eq!(*SIMPLE.ok(TO), hex("67446698 00000000 0102030405060708"));
        assert_eq!(*SIMPLE.data(TO, 0x1000, 512, true), *SIMPLE.ok(TO));
        let error = hex("67446698 0000001c 0102030405060708");
        assert_eq!(*SIMPLE.error(TO, ErrorCode::ENOSPC), error);
        assert_eq!(*SIMPLE.error_at(TO, ErrorCode::ENOSPC, 0x1200, true), error);
        let mut out = Vec::new();
        SIMPLE.error_message(&mut out, TO, ErrorCode::ENOSPC, "full");
        assert_eq!(out, error);
        assert!(!SIMPLE.can_send_holes() && STRUCTURED.can_send_holes());
    }

    // "Structured reply chunk message", "Structured reply types".
    #[test]
    fn golden_structured() {
        for (got, expected) in [
            (STRUCTURED.ok(TO), "668e33ef 0001 0000 0102030405060708 00000000"),
            (
                STRUCTURED.data(TO, 0x1200, 512, false),
                "668e33ef 0000 0001 0102030405060708 00000208 0000000000001200",
            ),
            (
                STRUCTURED.hole(TO, 0x1400, 0x200, true),
                "668e33ef 0001 0002 0102030405060708 0000000c 0000000000001400 00000200",
            ),
            (
                STRUCTURED.error(TO, ErrorCode::EIO),
                "668e33ef 0001 8001 0102030405060708 00000006 00000005 0000",
            ),
            (
                STRUCTURED.error_at(TO, ErrorCode::EIO, 0x1200, false),
                "668e33ef 0000 8002 0102030405060708 0000000e 00000005 0000 0000000000001200",
            ),
        ] {
            assert_eq!(*got, hex(expected));
        }
        let mut out = Vec::new();
        STRUCTURED.error_message(&mut out, TO, ErrorCode::EINVAL, "no");
        let expected = "668e33ef 0001 8001 0102030405060708 00000008 00000016 0002 6e6f";
        assert_eq!(out, hex(expected));
    }

    // "Extended reply chunk message" (extension-ext-header): the offset is the request's.
    #[test]
    fn golden_extended() {
        for (got, expected) in [
            (
                EXTENDED.ok(TO),
                "6e8a278c 0001 0000 0102030405060708 0000000000001000 0000000000000000",
            ),
            (
                EXTENDED.data(TO, 0x1200, 512, true),
                "6e8a278c 0001 0001 0102030405060708 0000000000001000 0000000000000208
                 0000000000001200",
            ),
            (
                EXTENDED.hole(TO, 0x1400, 0x200, false),
                "6e8a278c 0000 0002 0102030405060708 0000000000001000 000000000000000c
                 0000000000001400 00000200",
            ),
            (
                EXTENDED.error(TO, ErrorCode::EIO),
                "6e8a278c 0001 8001 0102030405060708 0000000000001000 0000000000000006
                 00000005 0000",
            ),
            (
                EXTENDED.error_at(TO, ErrorCode::EIO, 0x1200, true),
                "6e8a278c 0001 8002 0102030405060708 0000000000001000 000000000000000e
                 00000005 0000 0000000000001200",
            ),
        ] {
            assert_eq!(*got, hex(expected));
        }
    }

    // NBD_REPLY_TYPE_BLOCK_STATUS and NBD_REPLY_TYPE_BLOCK_STATUS_EXT.
    #[test]
    fn golden_block_status() {
        let mut list = ExtentList::new(0x3000, false, u32::MAX);
        list.push(0x1000, 0);
        list.push(0x2000, 3);
        let mut out = Vec::new();
        STRUCTURED.block_status(&mut out, TO, 9, &list, true);
        let expected = "668e33ef 0001 0005 0102030405060708 00000014
             00000009 00001000 00000000 00002000 00000003";
        assert_eq!(out, hex(expected));
        out.clear();
        EXTENDED.block_status(&mut out, TO, 9, &list, false);
        let expected = "6e8a278c 0000 0006 0102030405060708 0000000000001000 0000000000000028
             00000009 00000002
             0000000000001000 0000000000000000 0000000000002000 0000000000000003";
        assert_eq!(out, hex(expected));
    }

    #[test]
    fn long_messages_are_cut() {
        let mut out = Vec::new();
        STRUCTURED.error_message(&mut out, TO, ErrorCode::EIO, &"x".repeat(70_000));
        assert_eq!(out.len(), 20 + 6 + 4096);
    }

    #[test]
    #[should_panic(expected = "a simple reply has no holes")]
    fn holes_need_chunks() {
        let _ = SIMPLE.hole(TO, 0, 1, true);
    }
}
