//! Entries of directories, as READDIR and READDIRPLUS answer them.
//!
//! An entry is an inode number, the cookie of what follows it, a type and a name, padded to 8 bytes; with
//! READDIRPLUS, behind what a LOOKUP of it would answer (`fuse_dirent`, `fuse_direntplus`).

use crate::error::{Error, ErrorKind, Result};
use crate::request::Name;
use crate::wire::{EntryOut, Opcode, Reader, Wire};

/// Bytes before the name.
const HEAD_LEN: usize = 24;
/// What entries are padded to.
const ALIGNMENT: usize = 8;
/// The longest name that a client takes, in bytes (`FUSE_NAME_MAX`).
const NAME_MAX: usize = 1024;

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The inode number, as readdir(3) shows it.
    pub ino: u64,
    /// Where to go on after it.
    pub next: u64,
    /// `DT_*`.
    pub kind: u32,
    /// Its name.
    pub name: Name<'a>,
}

impl Dirent<'_> {
    /// Bytes that it takes.
    #[must_use]
    pub const fn len(&self) -> usize {
        (HEAD_LEN + self.name.bytes().len()).next_multiple_of(ALIGNMENT)
    }

    /// Never.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    fn write(&self, out: &mut Vec<u8>) {
        let end = out.len() + self.len();
        self.ino.write(out);
        self.next.write(out);
        u32::try_from(self.name.bytes().len()).unwrap_or(u32::MAX).write(out);
        self.kind.write(out);
        out.extend_from_slice(self.name.bytes());
        out.resize(end, 0);
    }
}

/// Entries for a reply, as many as the client has room for.
#[derive(Debug)]
pub struct Entries<'v> {
    out: &'v mut Vec<u8>,
    end: usize,
}

impl<'v> Entries<'v> {
    /// Appends to `out`, at most `size` bytes.
    #[must_use]
    pub fn new(out: &'v mut Vec<u8>, size: u32) -> Self {
        let end = out.len().saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        Self { out, end }
    }

    /// Adds an entry of READDIR; `false` if there is no room for it.
    pub fn add(&mut self, entry: &Dirent<'_>) -> bool {
        self.fits(entry.len()) && {
            entry.write(self.out);
            true
        }
    }

    /// Adds an entry of READDIRPLUS, whose lookup counts unless its node is 0; `false` if there is no room for it.
    pub fn add_plus(&mut self, found: &EntryOut, entry: &Dirent<'_>) -> bool {
        self.fits(EntryOut::LEN + entry.len()) && {
            found.write(self.out);
            entry.write(self.out);
            true
        }
    }

    fn fits(&self, len: usize) -> bool {
        self.out.len() + len <= self.end
    }
}

/// Reads the entries of a reply, one after the other. It ends with the first that is wrong.
#[derive(Clone, Debug)]
pub struct Parsed<'a> {
    reader: Reader<'a>,
    opcode: Opcode,
}

/// The entries of a READDIR's reply.
#[must_use]
pub const fn parse(data: &[u8]) -> Parsed<'_> {
    Parsed { reader: Reader::new(data), opcode: Opcode::Readdir }
}

/// The entries of a READDIRPLUS's reply.
#[must_use]
pub const fn parse_plus(data: &[u8]) -> Parsed<'_> {
    Parsed { reader: Reader::new(data), opcode: Opcode::Readdirplus }
}

impl<'a> Iterator for Parsed<'a> {
    /// An entry, with what a lookup of it answers for READDIRPLUS.
    type Item = Result<(Option<EntryOut>, Dirent<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.len() == 0 {
            return None;
        }
        let entry = self.entry().map_err(|kind| Error::of(self.opcode, kind));
        if entry.is_err() {
            self.reader.take_rest();
        }
        Some(entry)
    }
}

impl<'a> Parsed<'a> {
    fn entry(&mut self) -> std::result::Result<(Option<EntryOut>, Dirent<'a>), ErrorKind> {
        let short = || ErrorKind::Truncated("entries");
        let r = &mut self.reader;
        let is_plus = self.opcode == Opcode::Readdirplus;
        let found = if is_plus { Some(EntryOut::read(r).ok_or_else(short)?) } else { None };
        let ino = u64::read(r).ok_or_else(short)?;
        let next = u64::read(r).ok_or_else(short)?;
        let namelen = u32::read(r).ok_or_else(short)? as usize;
        let kind = u32::read(r).ok_or_else(short)?;
        if namelen > NAME_MAX {
            let (got, expected) = (namelen as u64, NAME_MAX as u64);
            return Err(ErrorKind::Length { what: "name in bytes", got, expected });
        }
        let name = Name::new(r.bytes(namelen).ok_or_else(short)?)?;
        // What pads the last one may be left out.
        let padding = (HEAD_LEN + namelen).next_multiple_of(ALIGNMENT) - HEAD_LEN - namelen;
        r.bytes(padding.min(r.len())).ok_or_else(short)?;
        Ok((found, Dirent { ino, next, kind, name }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], next: u64) -> Dirent<'_> {
        Dirent { ino: 5, next, kind: 8, name: Name::new(name).unwrap() }
    }

    #[test]
    fn entries_are_padded_and_stop_where_the_room_ends() {
        let mut out = vec![0xee];
        let mut entries = Entries::new(&mut out, 64);
        assert!(entries.add(&entry(b"abc", 1)));
        assert!(entries.add(&entry(b"eight888", 2)));
        assert!(!entries.add(&entry(b"x", 3)));
        // struct fuse_dirent: ino, off, namelen, type, name.
        let golden = [
            &[5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 8, 0, 0, 0][..],
            b"abc\0\0\0\0\0",
        ]
        .concat();
        assert_eq!(out[1..33], golden);
        assert_eq!(out.len(), 65);
        let parsed: Vec<_> = parse(&out[1..]).map(|entry| entry.unwrap()).collect();
        assert_eq!(parsed, [(None, entry(b"abc", 1)), (None, entry(b"eight888", 2))]);
    }

    #[test]
    fn entries_with_lookups_come_back() {
        let found = EntryOut { nodeid: 7, ..EntryOut::default() };
        let mut out = Vec::new();
        let mut entries = Entries::new(&mut out, 160);
        assert!(entries.add_plus(&found, &entry(b"abc", 1)));
        assert!(!entries.add_plus(&found, &entry(b"abc", 2)));
        assert_eq!(out.len(), 160);
        let parsed: Vec<_> = parse_plus(&out).map(|entry| entry.unwrap()).collect();
        assert_eq!(parsed, [(Some(found), entry(b"abc", 1))]);
    }

    #[test]
    fn hostile_entries_end_the_list() {
        let mut out = Vec::new();
        assert!(Entries::new(&mut out, 100).add(&entry(b"ab", 1)));
        for len in 1..26 {
            assert!(parse(&out[..len]).next().unwrap().is_err(), "cut at {len}");
        }
        for (at, byte) in [(24, b'/'), (25, 0), (16, 0), (19, 1)] {
            let mut bad = out.clone();
            bad[at] = byte;
            let mut parsed = parse(&bad);
            assert!(parsed.next().unwrap().is_err(), "{at}");
            assert!(parsed.next().is_none());
        }
    }
}
