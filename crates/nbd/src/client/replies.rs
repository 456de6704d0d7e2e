//! Replies as a client reads them ("Simple reply message", "Structured reply types", branch
//! `extension-ext-header`), held against what was asked.

use super::expected::{Expected, InFlight};
use crate::error::{Error, ErrorKind};
use crate::wire::{
    ChunkFlags, ChunkType, Command, CommandFlags, ErrorCode, HeaderStyle, MAX_STATUS_DESCRIPTORS,
    MAX_STRING_LEN, Reader, SIMPLE_REPLY_LEN, SIMPLE_REPLY_MAGIC,
};

pub(super) const DOING: &str = "reading a reply";
/// The fields of the largest error chunk and as much again for fields of kinds that are not known yet.
const MAX_ERROR_LEN: u64 = 2 * (MAX_STRING_LEN as u64 + 14);

/// Parses the replies of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyParser {
    style: HeaderStyle,
}

/// What stands at the front of the bytes from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// More bytes are needed: this many, counted from the front.
    NeedMore(usize),
    /// A reply, or a chunk of one.
    Reply {
        /// What it says.
        reply: Reply<'a>,
        /// Its length in bytes, without the data that follows a [`Chunk::Data`].
        consumed: usize,
    },
}

/// A reply, or a chunk of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The request that it belongs to.
    pub cookie: u64,
    /// What it says.
    pub chunk: Chunk<'a>,
    /// Nothing more comes for this request; see [`Expected::result`] for how it ended.
    pub done: bool,
}

/// A piece of a reply. Offsets are positions in the export, and lie within the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// No more to say.
    None,
    /// `length` bytes of data follow on the wire; take them off before parsing again.
    Data {
        /// Where in the export they are from.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// Zeroes.
    Hole {
        /// Where in the export.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Extents from the offset of the request on.
    Status {
        /// The id of the metadata context.
        context: u32,
        /// At least one.
        extents: StatusExtents<'a>,
    },
    /// The request failed, wholly or at an offset.
    Error {
        /// How; a value that is not defined reads as `EINVAL`.
        error: ErrorCode,
        /// Where in the export, if the server said so.
        offset: Option<u64>,
        /// The server's words, mostly empty; not checked to be UTF-8.
        message: &'a [u8],
    },
}

/// Extents as `(length in bytes, status)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusExtents<'a> {
    bytes: &'a [u8],
    wide: bool,
}

impl Iterator for StatusExtents<'_> {
    type Item = (u64, u64);
    fn next(&mut self) -> Option<(u64, u64)> {
        let mut r = Reader::new(self.bytes);
        let extent =
            if self.wide { (r.u64()?, r.u64()?) } else { (r.u32()?.into(), r.u32()?.into()) };
        self.bytes = r.rest();
        Some(extent)
    }
}

/// Appends the payload of a BLOCK_STATUS that asks for `length` bytes of some contexts only (branch
/// `extension-ext-header`). The request needs [`CommandFlags::PAYLOAD_LEN`] and the payload's length.
pub fn status_payload(out: &mut Vec<u8>, length: u64, contexts: &[u32]) {
    out.extend_from_slice(&length.to_be_bytes());
    for id in contexts {
        out.extend_from_slice(&id.to_be_bytes());
    }
}

/// The fields of a chunk's header, in either style.
#[derive(Clone, Copy)]
struct Header {
    flags: ChunkFlags,
    kind: ChunkType,
    cookie: u64,
    /// Repeated by extended headers.
    offset: Option<u64>,
    len: u64,
}

fn violation(rule: &'static str, got: u64) -> Error {
    Error::violation(DOING, rule, got)
}

impl ReplyParser {
    /// For a connection that agreed on these headers.
    #[must_use]
    pub const fn new(style: HeaderStyle) -> Self {
        Self { style }
    }

    /// Parses what stands at the front of `bytes`, and holds it against the request that it belongs to. Nothing is
    /// changed when more bytes are needed; never more than those of the longest chunk that the request allows.
    ///
    /// After a reply that is `done`, the request must be taken out of those in flight.
    ///
    /// # Errors
    ///
    /// The server sent what no request asked for, or lost the stream: the connection must be closed.
    pub fn parse<'a>(
        &self,
        bytes: &'a [u8],
        in_flight: &mut impl InFlight,
    ) -> Result<Parsed<'a>, Error> {
        let mut r = Reader::new(bytes);
        let Some(magic) = r.u32() else { return Ok(Parsed::NeedMore(4)) };
        let simple = magic == SIMPLE_REPLY_MAGIC && self.style != HeaderStyle::Extended;
        if simple {
            return Self::parse_simple(self.style, r, in_flight);
        }
        if magic != self.style.reply_magic() {
            let expected = self.style.reply_magic().into();
            return Err(Error::new(DOING, ErrorKind::BadMagic { expected, got: magic.into() }));
        }
        let Some(header) = self.header(&mut r) else {
            return Ok(Parsed::NeedMore(self.style.reply_len()));
        };
        let expected = find(in_flight, header.cookie)?;
        self.check_header(&header, expected)?;
        let inline = if header.kind == ChunkType::OFFSET_DATA { 8 } else { header.len };
        // Bounded by check_header, so that it fits.
        let inline = usize::try_from(inline).unwrap_or(usize::MAX);
        let consumed = self.style.reply_len() + inline;
        let Some(payload) = r.bytes(inline) else { return Ok(Parsed::NeedMore(consumed)) };
        let chunk = Self::chunk(&header, payload, expected)?;
        let done = header.flags.contains(ChunkFlags::DONE);
        if done {
            expected.complete()?;
        }
        Ok(Parsed::Reply { reply: Reply { cookie: header.cookie, chunk, done }, consumed })
    }

    fn parse_simple<'a>(
        style: HeaderStyle,
        mut r: Reader<'a>,
        in_flight: &mut impl InFlight,
    ) -> Result<Parsed<'a>, Error> {
        let (Some(error), Some(cookie)) = (r.u32(), r.u64()) else {
            return Ok(Parsed::NeedMore(SIMPLE_REPLY_LEN));
        };
        let expected = find(in_flight, cookie)?;
        let request = expected.request;
        // "If structured replies are negotiated, the server MUST NOT use a simple reply for NBD_CMD_READ." An error is
        // taken nevertheless, as libnbd does: it says all that there is to say, and asking again would not help.
        if style.has_chunks() && request.command == Command::Read && error == 0 {
            return Err(violation("a simple reply to a READ with structured replies", cookie));
        }
        let chunk = if error != 0 {
            expected.fail(ErrorCode(error));
            Chunk::Error { error: ErrorCode(error).known(), offset: None, message: &[] }
        } else if request.command == Command::Read && request.length > 0 {
            expected.cover(request.offset, request.length)?;
            Chunk::Data { offset: request.offset, length: request.length }
        } else {
            Chunk::None
        };
        expected.complete()?;
        let reply = Reply { cookie, chunk, done: true };
        Ok(Parsed::Reply { reply, consumed: SIMPLE_REPLY_LEN })
    }

    fn header(self, r: &mut Reader<'_>) -> Option<Header> {
        let flags = ChunkFlags::from_bits_retain(r.u16()?);
        let kind = ChunkType(r.u16()?);
        let cookie = r.u64()?;
        let (offset, len) = if self.style == HeaderStyle::Extended {
            (Some(r.u64()?), r.u64()?)
        } else {
            (None, r.u32()?.into())
        };
        Some(Header { flags, kind, cookie, offset, len })
    }

    /// What can be said before the payload is there: above all that it is bounded.
    fn check_header(self, header: &Header, expected: &Expected) -> Result<(), Error> {
        let request = &expected.request;
        if let Some(offset) = header.offset.filter(|&offset| offset != request.offset) {
            return Err(violation("the offset in the header is not that of the request", offset));
        }
        let len = header.len;
        let lengths = match (header.kind, request.command) {
            (ChunkType::NONE, _) if !header.flags.contains(ChunkFlags::DONE) => {
                return Err(violation("a chunk of type NONE is not the last", header.cookie));
            }
            (ChunkType::NONE, _) => len == 0,
            (ChunkType::OFFSET_DATA, Command::Read) => len > 8 && len - 8 <= request.length,
            (ChunkType::OFFSET_HOLE, Command::Read) => len == 12,
            (ChunkType::BLOCK_STATUS, Command::BlockStatus)
                if self.style == HeaderStyle::Structured =>
            {
                len > 4 && (len - 4).is_multiple_of(8) && (len - 4) / 8 <= most_extents(expected)
            }
            (ChunkType::BLOCK_STATUS_EXT, Command::BlockStatus)
                if self.style == HeaderStyle::Extended =>
            {
                len > 8 && (len - 8).is_multiple_of(16) && (len - 8) / 16 <= most_extents(expected)
            }
            (kind, _) if kind.is_error() => (4..=MAX_ERROR_LEN).contains(&len),
            (kind, _) => {
                let rule = "a chunk of a type that does not answer the request";
                return Err(violation(rule, kind.0.into()));
            }
        };
        if lengths {
            Ok(())
        } else {
            Err(violation("the length of a chunk does not fit its type or the request", len))
        }
    }

    fn chunk<'a>(
        header: &Header,
        payload: &'a [u8],
        expected: &mut Expected,
    ) -> Result<Chunk<'a>, Error> {
        let short = || violation("a chunk is too short for its fields", header.len);
        let mut r = Reader::new(payload);
        match header.kind {
            ChunkType::NONE => Ok(Chunk::None),
            ChunkType::OFFSET_DATA => {
                let (offset, length) = (r.u64().ok_or_else(short)?, header.len - 8);
                expected.cover(offset, length)?;
                Ok(Chunk::Data { offset, length })
            }
            ChunkType::OFFSET_HOLE => {
                let offset = r.u64().ok_or_else(short)?;
                let length = r.u32().ok_or_else(short)?.into();
                if length == 0 {
                    return Err(violation("a hole of no bytes", offset));
                }
                expected.cover(offset, length)?;
                Ok(Chunk::Hole { offset, length })
            }
            ChunkType::BLOCK_STATUS | ChunkType::BLOCK_STATUS_EXT => {
                let context = r.u32().ok_or_else(short)?;
                let wide = header.kind == ChunkType::BLOCK_STATUS_EXT;
                if wide {
                    let count = u64::from(r.u32().ok_or_else(short)?);
                    if count * 16 + 8 != header.len {
                        let rule = "the count of extents does not fit the length of the chunk";
                        return Err(violation(rule, count));
                    }
                }
                let extents = StatusExtents { bytes: r.rest(), wide };
                check_extents(expected, context, extents.clone())?;
                expected.context_came(context);
                Ok(Chunk::Status { context, extents })
            }
            kind => {
                let error = ErrorCode(r.u32().ok_or_else(short)?);
                // nbd-server counts its messages wrongly. The error is what matters.
                let message = r.u16().and_then(|len| r.bytes(usize::from(len)));
                let offset = if kind == ChunkType::ERROR_OFFSET && message.is_some() {
                    r.u64()
                } else {
                    None
                };
                let message = message.unwrap_or_default();
                if error.0 == 0 {
                    return Err(violation("an error chunk without an error", header.cookie));
                }
                if let Some(offset) = offset.filter(|&offset| !expected.contains(offset, 0)) {
                    return Err(violation("an error at an offset outside the request", offset));
                }
                expected.fail(error);
                Ok(Chunk::Error { error: error.known(), offset, message })
            }
        }
    }
}

fn find(in_flight: &mut impl InFlight, cookie: u64) -> Result<&mut Expected, Error> {
    let rule = "a reply with a cookie that no request in flight has";
    in_flight.expected(cookie).ok_or_else(|| violation(rule, cookie))
}

/// Each extent but the last lies within the request and has at least one byte.
fn most_extents(expected: &Expected) -> u64 {
    if expected.request.flags.contains(CommandFlags::REQ_ONE) {
        return 1;
    }
    expected.request.length.min(MAX_STATUS_DESCRIPTORS as u64)
}

/// The rules of `NBD_REPLY_TYPE_BLOCK_STATUS`.
fn check_extents(
    expected: &Expected,
    context: u32,
    extents: StatusExtents<'_>,
) -> Result<(), Error> {
    if !expected.awaits_context(context) {
        let rule = "block status of a context that was not asked for, or twice";
        return Err(violation(rule, context.into()));
    }
    let asked = expected.request.length;
    let mut sum = 0_u64;
    for (length, _) in extents {
        if length == 0 {
            return Err(violation("an extent of no bytes", context.into()));
        }
        if sum >= asked {
            return Err(violation("extents past the range that was asked for", sum));
        }
        sum = sum.saturating_add(length);
    }
    if expected.request.flags.contains(CommandFlags::REQ_ONE) && sum > asked {
        return Err(violation("an extent longer than the range of a REQ_ONE", sum));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::server::{ExtentList, ReplyEncoder, ReplyTo};
    use crate::wire::Request;

    const OFFSET: u64 = 0x1000;
    const LENGTH: u64 = 0x1000;
    const TO: ReplyTo = ReplyTo { cookie: 9, offset: OFFSET };

    fn flight(command: Command, flags: CommandFlags) -> HashMap<u64, Expected> {
        let request = Request { command, flags, cookie: 9, offset: OFFSET, length: LENGTH };
        let expected = if command == Command::BlockStatus {
            Expected::block_status(request, &[4, 5])
        } else {
            Expected::new(request)
        };
        HashMap::from([(9, expected)])
    }

    fn read() -> HashMap<u64, Expected> {
        flight(Command::Read, CommandFlags::empty())
    }

    /// Parses one reply, which must be all of `bytes`, and no prefix may be enough for it.
    fn one<'a>(
        style: HeaderStyle,
        bytes: &'a [u8],
        flight: &mut HashMap<u64, Expected>,
    ) -> Result<(Chunk<'a>, bool), Error> {
        let parser = ReplyParser::new(style);
        for cut in 0..bytes.len() {
            match parser.parse(&bytes[..cut], flight)? {
                Parsed::NeedMore(need) => assert!(need > cut && need <= bytes.len()),
                Parsed::Reply { .. } => panic!("{cut} bytes were enough"),
            }
        }
        match parser.parse(bytes, flight)? {
            Parsed::Reply { reply, consumed } => {
                assert_eq!((reply.cookie, consumed), (9, bytes.len()));
                Ok((reply.chunk, reply.done))
            }
            Parsed::NeedMore(need) => panic!("{need} bytes are needed"),
        }
    }

    use HeaderStyle::{Extended, Simple, Structured};

    // The bytes of these replies are pinned beside the encoder.
    #[test]
    fn reads_in_all_styles() {
        for style in [Simple, Structured, Extended] {
            let head = ReplyEncoder::new(style).data(TO, OFFSET, 0x1000, true);
            let mut flight = read();
            let got = one(style, &head, &mut flight);
            assert_eq!(got, Ok((Chunk::Data { offset: OFFSET, length: LENGTH }, true)));
            assert_eq!(flight[&9].result(), Ok(()));
        }
    }

    #[test]
    fn data_holes_and_the_end_in_any_order() {
        for style in [Structured, Extended] {
            let encoder = ReplyEncoder::new(style);
            let mut flight = read();
            let hole = encoder.hole(TO, 0x1800, 0x800, false);
            let expected = Chunk::Hole { offset: 0x1800, length: 0x800 };
            assert_eq!(one(style, &hole, &mut flight), Ok((expected, false)));
            let data = encoder.data(TO, 0x1000, 0x800, false);
            let expected = Chunk::Data { offset: 0x1000, length: 0x800 };
            assert_eq!(one(style, &data, &mut flight), Ok((expected, false)));
            assert_eq!(one(style, &encoder.ok(TO), &mut flight), Ok((Chunk::None, true)));
        }
    }

    #[test]
    fn errors_in_all_styles() {
        let io = |offset, message| Chunk::Error { error: ErrorCode::EIO, offset, message };
        for style in [Simple, Structured, Extended] {
            let encoder = ReplyEncoder::new(style);
            let mut flight = read();
            let head = encoder.error(TO, ErrorCode::EIO);
            assert_eq!(one(style, &head, &mut flight), Ok((io(None, b""), true)));
            assert_eq!(flight[&9].result(), Err(ErrorCode::EIO));
        }
        let mut out = Vec::new();
        let encoder = ReplyEncoder::new(Structured);
        encoder.error_message(&mut out, TO, ErrorCode::EIO, "bad disk");
        assert_eq!(one(Structured, &out, &mut read()), Ok((io(None, b"bad disk"), true)));
        let head = encoder.error_at(TO, ErrorCode::EIO, 0x1200, true);
        assert_eq!(one(Structured, &head, &mut read()), Ok((io(Some(0x1200), b""), true)));
        // "The client SHOULD treat an unexpected error value as if it had been NBD_EINVAL."
        let mut flight = flight(Command::Write, CommandFlags::empty());
        one(Simple, &ReplyEncoder::new(Simple).error(TO, ErrorCode(1234)), &mut flight).unwrap();
        assert_eq!(flight[&9].result(), Err(ErrorCode::EINVAL));
    }

    #[test]
    fn block_status_in_both_styles() {
        for style in [Structured, Extended] {
            let encoder = ReplyEncoder::new(style);
            let mut list = ExtentList::new(LENGTH, false, u32::MAX);
            list.push(0x400, 3);
            list.push(0xc00, 0);
            let mut flight = flight(Command::BlockStatus, CommandFlags::empty());
            for (context, done) in [(5, false), (4, true)] {
                let mut out = Vec::new();
                encoder.block_status(&mut out, TO, context, &list, done);
                let (chunk, was_done) = one(style, &out, &mut flight).unwrap();
                let Chunk::Status { context: of, extents } = chunk else { panic!("{chunk:?}") };
                assert_eq!((of, was_done), (context, done));
                assert_eq!(extents.collect::<Vec<_>>(), [(0x400, 3), (0xc00, 0)]);
            }
        }
    }

    #[test]
    fn a_structured_server_may_answer_writes_simply_but_not_reads() {
        let ok = ReplyEncoder::new(Simple).ok(TO);
        let mut write = flight(Command::Write, CommandFlags::empty());
        assert_eq!(one(Structured, &ok, &mut write), Ok((Chunk::None, true)));
        assert!(one(Structured, &ok, &mut read()).is_err());
        assert!(one(Extended, &ok, &mut write).is_err());
        let mut status = flight(Command::BlockStatus, CommandFlags::empty());
        assert!(one(Structured, &ok, &mut status).is_err(), "without its extents");
    }

    #[test]
    fn lies_are_violations() {
        let encoder = ReplyEncoder::new(Structured);
        let status_of = |context, length, flags| {
            let mut list = ExtentList::new(1 << 30, false, u32::MAX);
            list.push(length, 0);
            let mut out = Vec::new();
            encoder.block_status(&mut out, TO, context, &list, false);
            one(Structured, &out, &mut flight(Command::BlockStatus, flags)).map(|_| ())
        };
        let none = CommandFlags::empty();
        assert!(status_of(4, LENGTH, CommandFlags::REQ_ONE).is_ok());
        assert!(status_of(4, 2 * LENGTH, none).is_ok(), "the last extent may be longer");
        assert!(status_of(4, 2 * LENGTH, CommandFlags::REQ_ONE).is_err());
        assert!(status_of(6, LENGTH, none).is_err(), "not a context of ours");
        // Two extents, of which the first covers all that was asked for.
        let mut list = ExtentList::new(0x1001, false, u32::MAX);
        list.push(LENGTH, 3);
        list.push(1, 0);
        let mut out = Vec::new();
        encoder.block_status(&mut out, TO, 4, &list, false);
        let mut asked = flight(Command::BlockStatus, none);
        assert!(one(Structured, &out, &mut asked).is_err());
        for lie in [
            encoder.data(TO, 0x1000, 0x1001, true),
            encoder.data(TO, 0xfff, 0x1000, true),
            encoder.data(TO, 0x1001, 0x1000, true),
            encoder.data(TO, u64::MAX, 0x1000, true),
            encoder.data(TO, 0x1000, 0, false),
            encoder.data(TO, 0x1000, 0x800, true),
            encoder.hole(TO, 0x1000, 0x800, true),
            encoder.hole(TO, 0x1000, 0, false),
            encoder.hole(TO, 0x1000, u32::MAX, false),
            encoder.ok(TO),
            encoder.ok(ReplyTo { cookie: 10, ..TO }),
            encoder.error(TO, ErrorCode(0)),
            encoder.error_at(TO, ErrorCode::EIO, 0x2001, true),
        ] {
            assert!(one(Structured, &lie, &mut read()).is_err(), "{:?}", &*lie);
        }
        let mut twice = read();
        let data = encoder.data(TO, 0x1000, 0x800, false);
        assert!(one(Structured, &data, &mut twice).is_ok());
        assert!(one(Structured, &data, &mut twice).is_err());
        let wrong_offset =
            ReplyEncoder::new(Extended).data(ReplyTo { offset: 0, ..TO }, OFFSET, 0x1000, true);
        assert!(one(Extended, &wrong_offset, &mut read()).is_err());
        let mut fragmented = flight(Command::Read, CommandFlags::DF);
        assert!(one(Structured, &data, &mut fragmented).is_ok());
        let rest = encoder.hole(TO, 0x1800, 0x800, true);
        assert!(one(Structured, &rest, &mut fragmented).is_err());
    }

    // "If the client receives an unknown or unexpected type with bit 15 set, it MUST consider the current reply as
    // errored, but MAY continue transmission."
    #[test]
    fn unknown_errors_are_errors_and_unknown_content_is_a_violation() {
        let mut head = ReplyEncoder::new(Structured).error(TO, ErrorCode::EIO).to_vec();
        head[7] = 0x77;
        let mut flight = read();
        assert!(one(Structured, &head, &mut flight).is_ok());
        assert_eq!(flight[&9].result(), Err(ErrorCode::EIO));
        head[6] = 0;
        assert!(one(Structured, &head, &mut read()).is_err());
    }

    // A server that sends the request's error in a form that it must not have: the request has failed, and would
    // fail again on another connection.
    #[test]
    fn an_error_counts_whatever_its_message_is_like() {
        for style in [Structured, Extended] {
            let good = ReplyEncoder::new(style).error(TO, ErrorCode::ENOSPC).to_vec();
            let mut too_long = good.clone();
            *too_long.last_mut().unwrap() = 1;
            let at = ReplyEncoder::new(style).error_at(TO, ErrorCode::ENOSPC, OFFSET, true);
            let mut without_offset = at.to_vec();
            let len = without_offset.len();
            without_offset[len - 9] = 200;
            for reply in [good, too_long, without_offset] {
                let mut flight = read();
                assert!(one(style, &reply, &mut flight).is_ok(), "{reply:?}");
                assert_eq!(flight[&9].result(), Err(ErrorCode::ENOSPC));
            }
        }
        let simple = ReplyEncoder::new(Simple).error(TO, ErrorCode::EIO);
        let mut flight = read();
        assert!(one(Structured, &simple, &mut flight).is_ok());
        assert_eq!(flight[&9].result(), Err(ErrorCode::EIO));
    }

    #[test]
    fn golden_status_payload() {
        let mut out = Vec::new();
        status_payload(&mut out, 4096, &[5, 3]);
        assert_eq!(out, b"\0\0\0\0\0\0\x10\0\0\0\0\x05\0\0\0\x03");
    }
}
