//! A bounds-checked reader of untrusted bytes.

use super::ObjectName;
use crate::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// A structure that can be read.
pub trait Decode: Sized {
    /// Takes the structure off the front of the reader.
    ///
    /// # Errors
    /// What the bytes break: too few of them, a value out of range, an encoding that is too new.
    fn decode(reader: &mut Reader<'_>) -> Result<Self>;
}

/// Takes fields off the front of a slice. Errors name what is being read.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    doing: &'static str,
    rest: &'a [u8],
}

/// The inside of a versioned structure.
#[derive(Clone, Copy, Debug)]
pub struct Versioned<'a> {
    /// The writer's version of the structure.
    pub version: u8,
    /// Its fields, and whatever newer fields follow.
    pub fields: Reader<'a>,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`; `doing` names the operation in errors, such as "reading an OSD map".
    #[must_use]
    pub const fn new(doing: &'static str, bytes: &'a [u8]) -> Self {
        Self { doing, rest: bytes }
    }

    /// What was not taken yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything was taken.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// An error of this operation.
    pub(crate) const fn violation(&self, rule: &'static str, got: u64) -> Error {
        Error::violation(self.doing, rule, got)
    }

    /// The operation's name.
    pub(crate) const fn doing(&self) -> &'static str {
        self.doing
    }

    /// Takes `count` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(self.truncated(count as u64));
        };
        self.rest = rest;
        Ok(taken)
    }

    const fn truncated(&self, needed: u64) -> Error {
        Error::new(self.doing, ErrorKind::Truncated { needed, left: self.rest.len() as u64 })
    }

    /// Takes an array of bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(self.truncated(N as u64));
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// Takes bytes behind their u32 count.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let count = self.u32()?;
        self.raw(count as usize)
    }

    /// Takes text behind its u32 count. Ceph's strings are bytes; the ones read with this are names, which are UTF-8.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`], or a violation if it is not UTF-8.
    pub fn string(&mut self) -> Result<String> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(self.violation("a name is UTF-8", error.valid_up_to() as u64)),
        }
    }

    /// Takes text behind its u32 count that is shown, or compared with what people type: what is not UTF-8 in it is replaced,
    /// as Ceph takes any bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn text(&mut self) -> Result<String> {
        self.bytes().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    /// Takes a u32 length and as many bytes, which are a name.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn name(&mut self) -> Result<ObjectName> {
        self.bytes().map(ObjectName::from)
    }

    /// Takes a bool, which is a byte that is 0 or not.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`].
    pub fn bool(&mut self) -> Result<bool> {
        Ok(self.u8()? != 0)
    }

    /// Takes a u32 count of things that have at least `each` bytes, which bounds what may be reserved for them.
    ///
    /// # Errors
    /// [`ErrorKind::Truncated`] if there cannot be that many.
    pub fn count(&mut self, each: usize) -> Result<usize> {
        let count = self.u32()?;
        let needed = u64::from(count) * each as u64;
        if needed > self.rest.len() as u64 {
            return Err(self.truncated(needed));
        }
        Ok(count as usize)
    }

    /// Takes a vector: a u32 count, then the elements, each of at least `each` bytes.
    ///
    /// # Errors
    /// Those of `element`, and [`ErrorKind::Truncated`].
    pub fn vec<T>(
        &mut self,
        each: usize,
        mut element: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let count = self.count(each)?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    /// Takes a map: a u32 count, then pairs, each of at least `each` bytes. Of two equal keys the last one stays.
    ///
    /// # Errors
    /// Those of `pair`, and [`ErrorKind::Truncated`].
    pub fn map<K: Ord, V>(
        &mut self,
        each: usize,
        mut pair: impl FnMut(&mut Self) -> Result<(K, V)>,
    ) -> Result<BTreeMap<K, V>> {
        let count = self.count(each)?;
        let mut pairs = BTreeMap::new();
        for _ in 0..count {
            let (key, value) = pair(self)?;
            pairs.insert(key, value);
        }
        Ok(pairs)
    }

    /// Takes a whole versioned structure (`DECODE_START`), of which versions up to `known` are understood.
    ///
    /// # Errors
    /// [`ErrorKind::TooNew`] if readers of `known` may not read it, [`ErrorKind::Truncated`].
    pub fn versioned(&mut self, known: u8) -> Result<Versioned<'a>> {
        let (version, compat) = (self.u8()?, self.u8()?);
        if compat > known {
            return Err(Error::new(self.doing, ErrorKind::TooNew { compat, known }));
        }
        let fields = Self { doing: self.doing, rest: self.bytes()? };
        Ok(Versioned { version, fields })
    }

    /// Takes a structure.
    ///
    /// # Errors
    /// Those of [`Decode::decode`].
    pub fn get<T: Decode>(&mut self) -> Result<T> {
        T::decode(self)
    }
}

macro_rules! integers {
    ($($name:ident)*) => {
        impl Reader<'_> {
            $(
                #[doc = concat!("Takes a little-endian ", stringify!($name), ".")]
                ///
                /// # Errors
                /// [`ErrorKind::Truncated`].
                pub fn $name(&mut self) -> Result<$name> {
                    Ok($name::from_le_bytes(self.array()?))
                }
            )*
        }
        $(
            impl Decode for $name {
                fn decode(reader: &mut Reader<'_>) -> Result<Self> {
                    reader.$name()
                }
            }
        )*
    };
}
integers!(u8 i8 u16 u32 i32 u64 i64);

impl Decode for String {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        reader.string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Writer;
    use proptest::prelude::*;

    fn reader(bytes: &[u8]) -> Reader<'_> {
        Reader::new("testing", bytes)
    }

    #[test]
    fn a_newer_tail_is_skipped_and_a_newer_compat_refused() {
        let mut writer = Writer::new();
        writer.versioned(9, 2, |w| {
            w.u32(7);
            w.raw(b"new field");
        });
        writer.u8(0x55);
        let bytes = writer.into_bytes();
        let mut outer = reader(&bytes);
        let mut inner = outer.versioned(2).unwrap();
        assert_eq!((inner.version, inner.fields.u32().unwrap()), (9, 7));
        assert_eq!(inner.fields.rest(), b"new field");
        assert_eq!(outer.u8().unwrap(), 0x55);
        let error = reader(&bytes).versioned(1).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::TooNew { compat: 2, known: 1 });
    }

    #[test]
    fn a_structure_cannot_read_behind_its_end() {
        let mut bytes = reader(&[1, 1, 2, 0, 0, 0, 0xaa, 0xbb, 0xcc, 0xdd]);
        let mut inner = bytes.versioned(1).unwrap().fields;
        let error = inner.u32().unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Truncated { needed: 4, left: 2 });
    }

    #[test]
    fn a_count_that_cannot_be_true_reserves_nothing() {
        let error = reader(&[0xff; 8]).vec(1, Reader::u8).unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Truncated { needed: u64::from(u32::MAX), left: 4 });
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(a: u64, b: i32, text in ".{0,20}", list: Vec<u16>) {
            let mut writer = Writer::new();
            writer.u64(a);
            writer.versioned(3, 1, |w| {
                w.i32(b);
                w.string(&text);
                w.vec(&list, |w, item| w.u16(*item));
            });
            let bytes = writer.into_bytes();
            let mut outer = reader(&bytes);
            prop_assert_eq!(outer.u64().unwrap(), a);
            let mut inner = outer.versioned(3).unwrap().fields;
            prop_assert_eq!(inner.i32().unwrap(), b);
            prop_assert_eq!(inner.string().unwrap(), text);
            prop_assert_eq!(inner.vec(2, Reader::u16).unwrap(), list);
            prop_assert!(inner.is_empty() && outer.is_empty());
            for cut in 0..bytes.len() {
                let mut outer = reader(&bytes[..cut]);
                let whole = outer.u64().and_then(|_| outer.versioned(3));
                prop_assert!(whole.is_err());
            }
        }
    }
}
