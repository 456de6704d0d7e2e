//! The request message, compact and extended (`doc/proto.md`, "Request message").

use std::ops::Deref;

use super::{Command, CommandFlags, HeaderStyle, Reader};
use crate::error::{Error, ErrorKind};

/// A request without its payload. `offset` and `length` are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// How to do it; unknown bits are kept.
    pub flags: CommandFlags,
    /// The client's name for the request, opaque to the server.
    pub cookie: u64,
    /// Where in the export.
    pub offset: u64,
    /// How much of the export; of a request with [`CommandFlags::PAYLOAD_LEN`], how much payload follows.
    pub length: u64,
}

impl Request {
    /// Parses the header at the front of `bytes`; its length is [`HeaderStyle::request_len`].
    /// `None` if there are fewer bytes than that.
    ///
    /// Checks nothing but the magic: see [`RequestRules`](crate::server::RequestRules).
    ///
    /// # Errors
    ///
    /// A wrong magic: the stream cannot be followed any further. It is told from the first 4 bytes.
    #[inline]
    pub fn parse(style: HeaderStyle, bytes: &[u8]) -> Result<Option<Self>, Error> {
        let mut r = Reader::new(bytes);
        let Some(magic) = r.u32() else { return Ok(None) };
        if magic != style.request_magic() {
            return Err(Self::bad_magic(style, magic));
        }
        Ok(Self::parse_fields(style, r))
    }

    #[inline]
    fn parse_fields(style: HeaderStyle, mut r: Reader<'_>) -> Option<Self> {
        Some(Self {
            flags: CommandFlags::from_bits_retain(r.u16()?),
            command: Command::from(r.u16()?),
            cookie: r.u64()?,
            offset: r.u64()?,
            length: match style {
                HeaderStyle::Simple | HeaderStyle::Structured => u64::from(r.u32()?),
                HeaderStyle::Extended => r.u64()?,
            },
        })
    }

    #[cold]
    fn bad_magic(style: HeaderStyle, got: u32) -> Error {
        let expected = u64::from(style.request_magic());
        Error::new("reading a request", ErrorKind::BadMagic { expected, got: u64::from(got) })
    }

    /// Bytes that follow the header on the wire: the data of a WRITE, and with extended headers whatever
    /// [`CommandFlags::PAYLOAD_LEN`] announces, with any command.
    ///
    /// An extended WRITE "MUST use" that flag, but the client of QEMU (10.0, measured) sends its data without.
    #[inline]
    #[must_use]
    pub const fn payload_len(&self, style: HeaderStyle) -> u64 {
        let announced = self.flags.contains(CommandFlags::PAYLOAD_LEN);
        let follows = matches!(self.command, Command::Write)
            || announced && matches!(style, HeaderStyle::Extended);
        if follows { self.length } else { 0 }
    }

    /// The header as it goes over the wire. An extended WRITE gets the flag [`CommandFlags::PAYLOAD_LEN`], which it
    /// must have, so that clients need not look at the style.
    ///
    /// # Errors
    ///
    /// A length over 32 bits in a compact header.
    #[inline]
    pub fn encode(&self, style: HeaderStyle) -> Result<RequestHead, Error> {
        let mut bytes = [0; HeaderStyle::Extended.request_len()];
        let mut flags = self.flags;
        if style == HeaderStyle::Extended && self.command == Command::Write {
            flags |= CommandFlags::PAYLOAD_LEN;
        }
        let fields = [
            &style.request_magic().to_be_bytes()[..],
            &flags.bits().to_be_bytes(),
            &u16::from(self.command).to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
        ];
        let mut at = 0;
        for field in fields {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        }
        match style {
            HeaderStyle::Simple | HeaderStyle::Structured => {
                let length = u32::try_from(self.length).map_err(|_| {
                    Error::too_big(
                        "encoding a compact request",
                        "the length in bytes",
                        self.length,
                        u64::from(u32::MAX),
                    )
                })?;
                bytes[at..at + 4].copy_from_slice(&length.to_be_bytes());
            }
            HeaderStyle::Extended => bytes[at..].copy_from_slice(&self.length.to_be_bytes()),
        }
        Ok(RequestHead { bytes, len: style.request_len() })
    }
}

/// The bytes of a request's header, on the stack.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead {
    bytes: [u8; HeaderStyle::Extended.request_len()],
    len: usize,
}

impl Deref for RequestHead {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // "Request message", compact: a WRITE with FUA of 512 bytes at 4096.
    const COMPACT: [u8; 28] = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    // "Request message", extended (extension-ext-header): WRITE_ZEROES of 8 GiB at 4096 without holes.
    const EXTENDED: [u8; 32] = [
        0x21, 0xe4, 0x1c, 0x71, 0, 2, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 0, 2, 0, 0, 0, 0,
    ];

    #[test]
    fn golden_compact() {
        let request = Request {
            command: Command::Write,
            flags: CommandFlags::FUA,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 512,
        };
        for style in [HeaderStyle::Simple, HeaderStyle::Structured] {
            assert_eq!(Request::parse(style, &COMPACT), Ok(Some(request)));
            assert_eq!(*request.encode(style).unwrap(), COMPACT);
            assert_eq!(request.payload_len(style), 512);
        }
    }

    #[test]
    fn golden_extended() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: CommandFlags::NO_HOLE,
            cookie: 0x0102_0304_0506_0708,
            offset: 4096,
            length: 8 << 30,
        };
        assert_eq!(Request::parse(HeaderStyle::Extended, &EXTENDED), Ok(Some(request)));
        assert_eq!(*request.encode(HeaderStyle::Extended).unwrap(), EXTENDED);
        assert_eq!(request.payload_len(HeaderStyle::Extended), 0);
        let error = request.encode(HeaderStyle::Simple).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TooBig { got: 0x2_0000_0000, .. }));
    }

    // "With extended headers, the flag MUST be set for NBD_CMD_WRITE."
    #[test]
    fn golden_extended_write() {
        let flags = CommandFlags::FUA;
        let write =
            Request { command: Command::Write, flags, cookie: 7, offset: 4096, length: 512 };
        let head = write.encode(HeaderStyle::Extended).unwrap();
        let expected = b"\x21\xe4\x1c\x71\0\x21\0\x01\0\0\0\0\0\0\0\x07\
            \0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x02\0";
        assert_eq!(*head, *expected);
        let flags = flags | CommandFlags::PAYLOAD_LEN;
        let parsed = Request::parse(HeaderStyle::Extended, expected);
        assert_eq!(parsed, Ok(Some(Request { flags, ..write })));
    }

    #[test]
    fn a_wrong_magic_is_told_from_the_first_four_bytes() {
        // "Reserved Magic values": the historic request magic.
        let error = Request::parse(HeaderStyle::Simple, &[0x12, 0x56, 0x09, 0x53]).unwrap_err();
        let expected = ErrorKind::BadMagic { expected: 0x2560_9513, got: 0x1256_0953 };
        assert_eq!(*error.kind(), expected);
        assert!(Request::parse(HeaderStyle::Extended, &COMPACT).is_err(), "styles do not mix");
        assert!(Request::parse(HeaderStyle::Simple, &EXTENDED).is_err(), "styles do not mix");
    }

    fn style() -> impl Strategy<Value = HeaderStyle> {
        prop_oneof![
            Just(HeaderStyle::Simple),
            Just(HeaderStyle::Structured),
            Just(HeaderStyle::Extended)
        ]
    }

    proptest! {
        #[test]
        fn round_trip_at_any_length_of_input(
            style in style(),
            (flags, cookie, offset, length) in any::<(u16, u64, u64, u64)>(),
            command in prop_oneof![0_u16..10, any::<u16>()],
        ) {
            let length =
                if style == HeaderStyle::Extended { length } else { length & u64::from(u32::MAX) };
            let flags = CommandFlags::from_bits_retain(flags);
            let request = Request { command: command.into(), flags, cookie, offset, length };
            let bytes = request.encode(style).unwrap();
            prop_assert_eq!(bytes.len(), style.request_len());
            for cut in 0..bytes.len() {
                prop_assert_eq!(Request::parse(style, &bytes[..cut]), Ok(None));
            }
            let mut sent = request;
            if style == HeaderStyle::Extended && request.command == Command::Write {
                sent.flags |= CommandFlags::PAYLOAD_LEN;
            }
            prop_assert_eq!(Request::parse(style, &bytes), Ok(Some(sent)));
        }

        #[test]
        fn any_bytes_parse_or_fail(style in style(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(style, &bytes);
        }
    }
}
