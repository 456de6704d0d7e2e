//! The one place that reads bytes of a map.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};

/// A cursor over bytes that nobody vouches for.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.offset == self.bytes.len()
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    /// An error at this place.
    pub(crate) fn error(&self, kind: ErrorKind, subject: impl Into<String>) -> Error {
        Error::at(kind, self.offset, subject)
    }

    pub(crate) fn take(&mut self, len: usize, subject: &str) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let Some(taken) = rest.get(..len) else {
            return Err(self.error(ErrorKind::Truncated, subject));
        };
        self.offset += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, subject: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, subject)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self, subject: &str) -> Result<u8> {
        Ok(u8::from_le_bytes(self.array(subject)?))
    }

    pub(crate) fn u16(&mut self, subject: &str) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array(subject)?))
    }

    pub(crate) fn u32(&mut self, subject: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(subject)?))
    }

    pub(crate) fn i32(&mut self, subject: &str) -> Result<i32> {
        Ok(i32::from_le_bytes(self.array(subject)?))
    }

    pub(crate) fn i64(&mut self, subject: &str) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array(subject)?))
    }

    /// A count that is checked against what is left: each element takes at least `smallest` bytes.
    pub(crate) fn fits(&self, count: u32, smallest: usize, subject: &str) -> Result<usize> {
        let most = self.remaining() / smallest;
        match usize::try_from(count) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(self.error(ErrorKind::TooMany, format!("{count} {subject}"))),
        }
    }

    pub(crate) fn count(&mut self, smallest: usize, subject: &str) -> Result<usize> {
        let count = self.u32(subject)?;
        self.fits(count, smallest, subject)
    }

    pub(crate) fn u32s(&mut self, count: usize, subject: &str) -> Result<Vec<u32>> {
        (0..count).map(|_| self.u32(subject)).collect()
    }

    pub(crate) fn i32s(&mut self, count: usize, subject: &str) -> Result<Vec<i32>> {
        (0..count).map(|_| self.i32(subject)).collect()
    }

    /// So many bytes of text. Ceph allows letters, digits and `-_.~` only; anything else is replaced where it is no
    /// UTF-8.
    fn text(&mut self, len: usize, subject: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(self.take(len, subject)?).into_owned())
    }

    /// Numbers and their names.
    pub(crate) fn names(&mut self, subject: &str) -> Result<BTreeMap<i32, String>> {
        let count = self.count(8, subject)?;
        let mut names = BTreeMap::new();
        for _ in 0..count {
            let key = self.i32(subject)?;
            let len = self.u32(subject)? as usize;
            names.insert(key, self.text(len, subject)?);
        }
        Ok(names)
    }

    /// Numbers and names, where old encoders wrote some numbers with 64 bits. No name is empty, so that a length of
    /// 0 is the upper half of such a number.
    pub(crate) fn names_of_either_width(&mut self, subject: &str) -> Result<BTreeMap<i32, String>> {
        let count = self.count(8, subject)?;
        let mut names = BTreeMap::new();
        for _ in 0..count {
            let key = self.i32(subject)?;
            let len = match self.u32(subject)? {
                0 => self.u32(subject)?,
                len => len,
            };
            let name = self.text(len as usize, subject)?;
            if !name.is_empty() {
                names.insert(key, name);
            }
        }
        Ok(names)
    }

    /// Numbers and numbers.
    pub(crate) fn numbers(&mut self, subject: &str) -> Result<BTreeMap<i32, i32>> {
        let count = self.count(8, subject)?;
        let mut numbers = BTreeMap::new();
        for _ in 0..count {
            let key = self.i32(subject)?;
            numbers.insert(key, self.i32(subject)?);
        }
        Ok(numbers)
    }
}
