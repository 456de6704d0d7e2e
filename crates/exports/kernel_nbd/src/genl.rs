//! Generic netlink messages: bytes to values and back (`linux/netlink.h`, `linux/genetlink.h`,
//! Documentation/userspace-api/netlink/intro.rst).

/// Bytes of a message's header (`struct nlmsghdr`).
const HEADER: usize = 16;
/// Bytes of the header after that (`struct genlmsghdr`).
const GENERIC_HEADER: usize = 4;
/// Bytes of an attribute's header (`struct nlattr`).
const ATTRIBUTE: usize = 4;
/// `NLMSG_ERROR`: an answer with an errno, or 0.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST: u16 = 1 | 4;
/// `NLA_F_NESTED`: attributes within.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`.
const TYPE_MASK: u16 = 0x3fff;

/// A request under construction.
pub struct Request {
    bytes: Vec<u8>,
    /// Where attributes begin that are not closed yet.
    open: Vec<usize>,
}

impl Request {
    /// A request to a family of messages. `sequence` comes back with its answers.
    #[must_use]
    pub fn new(family: u16, command: u8, version: u8, sequence: u32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(family.to_ne_bytes());
        bytes.extend(REQUEST.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend([command, version, 0, 0]);
        Self { bytes, open: Vec::new() }
    }

    /// Adds a number.
    #[must_use]
    pub fn u32(self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Adds a number.
    #[must_use]
    pub fn u64(self, kind: u16, value: u64) -> Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// A text, with the zero at its end.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn attribute(mut self, kind: u16, payload: &[u8]) -> Self {
        let start = self.start(kind);
        self.bytes.extend_from_slice(payload);
        self.finish(start);
        self
    }

    /// Begins an attribute whose payload is the attributes up to [`Request::close`].
    #[must_use]
    pub fn open(mut self, kind: u16) -> Self {
        let start = self.start(kind | NESTED);
        self.open.push(start);
        self
    }

    /// Ends the attribute that was begun last.
    #[must_use]
    pub fn close(mut self) -> Self {
        if let Some(start) = self.open.pop() {
            self.finish(start);
        }
        self
    }

    fn start(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        start
    }

    /// The length is that of the attribute; what fills it up to four bytes is not counted.
    fn finish(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The message.
    #[must_use]
    pub fn build(mut self) -> Vec<u8> {
        debug_assert!(self.open.is_empty(), "an attribute is not closed");
        let len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// A message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// How a request ended: an errno, 0 if well.
    Ended {
        /// Which request.
        sequence: u32,
        /// How.
        errno: i32,
    },
    /// A message of a family.
    Family {
        /// Which family.
        family: u16,
        /// The request that it answers.
        sequence: u32,
        /// What it is.
        command: u8,
        /// What it says.
        attributes: Attributes<'a>,
    },
}

/// The messages in a datagram. What is not whole ends them.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
            let message = bytes.get(..len).filter(|message| message.len() >= HEADER)?;
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
            // One that is neither is not for us: the end of a dump, say.
            if let Some(message) = parse(message) {
                return Some(message);
            }
        }
    })
}

fn parse(message: &[u8]) -> Option<Message<'_>> {
    let (header, payload) = message.split_first_chunk::<HEADER>()?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let sequence = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    if kind == ERROR {
        let errno = i32::from_ne_bytes(*payload.first_chunk()?);
        return Some(Message::Ended { sequence, errno: errno.saturating_neg() });
    }
    let (generic, attributes) = payload.split_first_chunk::<GENERIC_HEADER>()?;
    let attributes = Attributes(attributes);
    Some(Message::Family { family: kind, sequence, command: generic[0], attributes })
}

/// Attributes, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Those of one kind; what is not whole ends them.
    pub fn all(self, wanted: u16) -> impl Iterator<Item = &'a [u8]> {
        self.filter(move |(kind, _)| *kind == wanted).map(|(_, payload)| payload)
    }

    /// A number of the first of a kind; none if there is no such, or it is too short.
    #[must_use]
    pub fn u8(mut self, wanted: u16) -> Option<u8> {
        self.find(|(kind, _)| *kind == wanted)?.1.first().copied()
    }

    /// As [`Attributes::u8`].
    #[must_use]
    pub fn u16(mut self, wanted: u16) -> Option<u16> {
        let payload = self.find(|(kind, _)| *kind == wanted)?.1;
        payload.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
    }

    /// As [`Attributes::u8`].
    #[must_use]
    pub fn u32(mut self, wanted: u16) -> Option<u32> {
        let payload = self.find(|(kind, _)| *kind == wanted)?.1;
        payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// A text up to its zero; none if it is not UTF-8.
    #[must_use]
    pub fn text(mut self, wanted: u16) -> Option<&'a str> {
        let payload = self.find(|(kind, _)| *kind == wanted)?.1;
        std::str::from_utf8(payload.split(|byte| *byte == 0).next()?).ok()
    }

    /// The attributes within an attribute.
    #[must_use]
    pub fn nested(mut self, wanted: u16) -> Option<Self> {
        self.find(|(kind, _)| *kind == wanted).map(|(_, payload)| Self(payload))
    }

    /// The attributes in a payload.
    #[must_use]
    pub const fn within(payload: &'a [u8]) -> Self {
        Self(payload)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<ATTRIBUTE>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let payload = self.0.get(ATTRIBUTE..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn a_request_is_laid_out_as_the_headers_say() {
        let request = Request::new(0x1b, 1, 1, 7)
            .u32(1, 3)
            .open(7)
            .open(1)
            .u32(1, 5)
            .close()
            .close()
            .text(10, "me")
            .build();
        let expected = [
            52, 0, 0, 0, 0x1b, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            1, 1, 0, 0, // genlmsghdr
            8, 0, 1, 0, 3, 0, 0, 0, // NBD_ATTR_INDEX
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 5, 0, 0,
            0, // sockets, a socket, its descriptor
            7, 0, 10, 0, b'm', b'e', 0, 0, // a text, filled up
        ];
        assert_eq!(request, expected);
    }

    #[test]
    fn what_was_built_is_read_back() {
        let request = Request::new(0x1b, 5, 1, 9)
            .open(9)
            .open(1)
            .u32(1, 12)
            .close()
            .open(1)
            .u32(1, 13)
            .close()
            .close()
            .u64(2, 1 << 40)
            .text(10, "x")
            .build();
        let found: Vec<_> = messages(&request).collect();
        let [Message::Family { family: 0x1b, sequence: 9, command: 5, attributes }] = found[..]
        else {
            panic!("{found:?}")
        };
        let items = attributes.nested(9).unwrap().all(1);
        let numbers: Vec<_> = items.filter_map(|item| Attributes::within(item).u32(1)).collect();
        assert_eq!(numbers, [12, 13]);
        assert_eq!(attributes.text(10), Some("x"));
        assert_eq!(attributes.u32(3), None);
    }

    #[test]
    fn an_error_says_which_request_failed_and_why() {
        let mut bytes = Vec::new();
        bytes.extend(20_u32.to_ne_bytes());
        bytes.extend(ERROR.to_ne_bytes());
        bytes.extend(0_u16.to_ne_bytes());
        bytes.extend(4_u32.to_ne_bytes());
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend((-16_i32).to_ne_bytes());
        let found: Vec<_> = messages(&bytes).collect();
        assert_eq!(found, [Message::Ended { sequence: 4, errno: 16 }]);
        // Cut anywhere, it is none, and nothing is read past its end.
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0, "cut to {cut}");
        }
        for len in [0_u32, 1, 15, 16, u32::MAX] {
            bytes[0..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(messages(&bytes).count(), 0, "a length of {len}");
        }
    }

    #[test]
    fn attributes_of_any_length_are_survived() {
        for len in [0_u16, 3, 4, 5, 200, u16::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend([1, 0, 9, 9, 9, 9]);
            assert!(Attributes::within(&bytes).count() <= 2);
        }
    }
}
