//! Diffs: what changed between two snapshots, or since the beginning.

use super::{MAX_NAME, array, banner, bytes, number, put_text, skip, text};
use crate::error::{Error, Result};
use bytes::Bytes;
use std::io::Read;

/// Most bytes of a write that are read at a time.
pub const MAX_PIECE: u64 = 4 << 20;

const BANNER_V1: &[u8; 12] = b"rbd diff v1\n";
const BANNER_V2: &[u8; 12] = b"rbd diff v2\n";
const FROM: u8 = b'f';
const TO: u8 = b't';
const SIZE: u8 = b's';
const WRITE: u8 = b'w';
const ZERO: u8 = b'z';
const END: u8 = b'e';
/// Not in the document (ceph: `src/include/rbd_types.h`, `RBD_SNAP_PROTECTION_STATUS`).
const PROTECTED: u8 = b'p';
/// What Ceph says that its data are long; it writes a byte, and reads one whatever is said (ceph:
/// `src/tools/rbd/action/Export.cc`, `Import.cc`).
const PROTECTED_LENGTH: u64 = 8;

/// Of a diff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Alone, as `export-diff` writes it.
    V1,
    /// Within an exported image: records say how long they are.
    V2,
}

/// A record of a diff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiffRecord {
    /// The snapshot that it starts from.
    From(String),
    /// The snapshot that it leads to.
    To(String),
    /// Whether that is protected. Version 2 only.
    Protected(bool),
    /// Bytes of the image in the end.
    Size(u64),
    /// Bytes of the image. One that was written as a whole may be read in pieces of [`MAX_PIECE`].
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Bytes,
    },
    /// A range that is zeroes.
    Zero {
        /// From here on.
        offset: u64,
        /// So many.
        length: u64,
    },
    /// Nothing comes any more.
    End,
}

impl Version {
    /// Begins a diff.
    pub fn put_banner(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Self::V1 => BANNER_V1,
            Self::V2 => BANNER_V2,
        });
    }

    /// The head of a record, whose fields are so long.
    fn put_head(self, out: &mut Vec<u8>, tag: u8, length: u64) {
        out.push(tag);
        if self == Self::V2 {
            out.extend_from_slice(&length.to_le_bytes());
        }
    }

    /// What is in front of the bytes of a write.
    pub fn put_write(self, out: &mut Vec<u8>, offset: u64, length: u64) {
        self.put_head(out, WRITE, length.saturating_add(16));
        out.extend_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
    }

    /// Appends a record. Version 1 has none that tells of protection.
    pub fn put(self, out: &mut Vec<u8>, record: &DiffRecord) {
        match record {
            DiffRecord::From(name) | DiffRecord::To(name) => {
                let tag = if matches!(record, DiffRecord::From(_)) { FROM } else { TO };
                self.put_head(out, tag, name.len() as u64 + 4);
                put_text(out, name);
            }
            DiffRecord::Protected(_) if self == Self::V1 => {}
            DiffRecord::Protected(is_protected) => {
                self.put_head(out, PROTECTED, PROTECTED_LENGTH);
                out.push(u8::from(*is_protected));
            }
            DiffRecord::Size(size) => {
                self.put_head(out, SIZE, 8);
                out.extend_from_slice(&size.to_le_bytes());
            }
            DiffRecord::Write { offset, data } => {
                self.put_write(out, *offset, data.len() as u64);
                out.extend_from_slice(data);
            }
            DiffRecord::Zero { offset, length } => {
                self.put_head(out, ZERO, 16);
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(&length.to_le_bytes());
            }
            DiffRecord::End => out.push(END),
        }
    }
}

/// Reads a diff.
pub struct DiffReader<R> {
    input: R,
    version: Version,
    /// What is left of a write.
    rest: Option<(u64, u64)>,
    has_ended: bool,
}

impl<R: Read> DiffReader<R> {
    /// A diff that begins here, of either version.
    ///
    /// # Errors
    /// It is none, or cannot be read.
    pub fn new(mut input: R) -> Result<Self> {
        let version = match &array(&mut input)? {
            BANNER_V1 => Version::V1,
            BANNER_V2 => Version::V2,
            _ => return Err(Error::damaged("not a diff of an image")),
        };
        Ok(Self { input, version, rest: None, has_ended: false })
    }

    /// Its version.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// The next record; after [`DiffRecord::End`] that again.
    ///
    /// # Errors
    /// It is cut or damaged, or cannot be read.
    pub fn next_record(&mut self) -> Result<DiffRecord> {
        if self.has_ended {
            return Ok(DiffRecord::End);
        }
        loop {
            if let Some((offset, length)) = self.rest.take() {
                return self.piece(offset, length);
            }
            let [tag] = array(&mut self.input)?;
            if tag == END {
                self.has_ended = true;
                return Ok(DiffRecord::End);
            }
            let length = match self.version {
                Version::V1 => None,
                Version::V2 => Some(number(&mut self.input)?),
            };
            if let Some(record) = self.record(tag, length)? {
                return Ok(record);
            }
        }
    }

    /// What comes after a record's head; `None` if there is nothing to tell of it.
    fn record(&mut self, tag: u8, length: Option<u64>) -> Result<Option<DiffRecord>> {
        let fits = |expected: u64| match length {
            Some(length) if length != expected => Err(Error::damaged(format!(
                "a record {:?} of the stream has {length} bytes, not {expected}",
                char::from(tag)
            ))),
            _ => Ok(()),
        };
        let input = &mut self.input;
        Ok(Some(match tag {
            FROM | TO => {
                let name = text(input, MAX_NAME)?;
                fits(name.len() as u64 + 4)?;
                if tag == FROM { DiffRecord::From(name) } else { DiffRecord::To(name) }
            }
            PROTECTED if length.is_some() => {
                let [is_protected] = array(input)?;
                DiffRecord::Protected(is_protected != 0)
            }
            SIZE => {
                fits(8)?;
                DiffRecord::Size(number(input)?)
            }
            WRITE | ZERO => {
                let (offset, count) = (number(input)?, number(input)?);
                let end = offset.checked_add(count);
                end.ok_or_else(|| Error::damaged("a record of the stream is past the last byte"))?;
                if tag == ZERO {
                    fits(16)?;
                    return Ok(Some(DiffRecord::Zero { offset, length: count }));
                }
                fits(count.saturating_add(16))?;
                self.rest = (count > 0).then_some((offset, count));
                return Ok(None);
            }
            // What is newer than we are says how long it is.
            _ => match length {
                Some(length) => {
                    skip(input, length)?;
                    return Ok(None);
                }
                None => {
                    return Err(Error::damaged(format!("the stream has a record {tag:#04x}")));
                }
            },
        }))
    }

    fn piece(&mut self, offset: u64, length: u64) -> Result<DiffRecord> {
        let now = length.min(MAX_PIECE);
        let data = bytes(&mut self.input, now, MAX_PIECE)?;
        self.rest = (length > now).then_some((offset + now, length - now));
        Ok(DiffRecord::Write { offset, data: data.into() })
    }
}

/// What is in front of the diffs of an exported image is read by others.
pub(super) fn expect(input: &mut impl Read, expected: &[u8], what: &str) -> Result<()> {
    banner(input, expected, what)
}
