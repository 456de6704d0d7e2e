//! A bounds-checked reader of untrusted bytes.

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
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&byte| byte == 0)?;
        let string = self.bytes(end)?;
        self.bytes(1)?;
        Some(string)
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
    fn reads_strings_and_never_past_the_end() {
        let mut r = Reader::new(b"ab\0\0c");
        assert_eq!(r.string(), Some(&b"ab"[..]));
        assert_eq!(r.string(), Some(&b""[..]));
        assert_eq!(r.string(), None, "no NUL follows");
        assert_eq!(r.array::<2>(), None);
        assert_eq!(r.bytes(2), None);
        assert_eq!(r.len(), 1);
        assert_eq!(r.take_rest(), b"c");
        assert_eq!(r.len(), 0);
    }
}
