//! A bounds-checked reader of untrusted bytes.

use std::fmt;

use crate::error::ErrorKind;

/// Bytes without a NUL, which stand in messages with one behind them: the target of a symbolic link, the name of an
/// extended attribute.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CBytes<'a>(&'a [u8]);

impl<'a> CBytes<'a> {
    /// These bytes.
    ///
    /// # Errors
    /// There is a NUL in them: the peer would take what follows it for something else.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ErrorKind> {
        if bytes.contains(&0) { Err(ErrorKind::Name("has a NUL in it")) } else { Ok(Self(bytes)) }
    }

    /// The bytes, which need not be UTF-8.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for CBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Takes little-endian numbers and byte strings off the front of a slice; `None` when too few bytes are left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    /// The bytes before the next NUL, which is taken too.
    pub(crate) fn string(&mut self) -> Option<CBytes<'a>> {
        let end = self.rest.iter().position(|&byte| byte == 0)?;
        let string = self.bytes(end)?;
        self.bytes(1)?;
        Some(CBytes(string))
    }

    pub(crate) fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    pub(crate) const fn len(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_end_at_a_nul_have_none_inside() {
        assert!(CBytes::new(b"a\0b").is_err());
        assert_eq!(CBytes::new(b"user.a").unwrap().bytes(), b"user.a");
    }

    #[test]
    fn reads_strings_and_never_past_the_end() {
        let mut r = Reader::new(b"ab\0\0c");
        assert_eq!(r.string(), Some(CBytes(b"ab")));
        assert_eq!(r.string(), Some(CBytes(b"")));
        assert_eq!(r.string(), None, "no NUL follows");
        assert_eq!(r.array::<2>(), None);
        assert_eq!(r.bytes(2), None);
        assert_eq!(r.len(), 1);
        assert_eq!(r.take_rest(), b"c");
        assert_eq!(r.len(), 0);
    }
}
