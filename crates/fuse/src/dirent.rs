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
        entry_len(self.name.bytes().len())
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

/// Bytes of an entry with a name of so many.
const fn entry_len(name: usize) -> usize {
    (HEAD_LEN + name).next_multiple_of(ALIGNMENT)
}

/// Entries for a reply, in order, as many as the client has room for. The first that there is no room for ends them: a
/// shorter one behind it would hide it, as the client goes on behind the last that it has got.
#[derive(Debug)]
pub struct Entries<'v> {
    out: &'v mut Vec<u8>,
    end: usize,
    /// Bytes of what precedes each entry.
    found_len: usize,
    full: bool,
}

impl<'v> Entries<'v> {
    /// Those of a READDIR; appends to `out`, at most `size` bytes.
    #[must_use]
    pub fn new(out: &'v mut Vec<u8>, size: u32) -> Self {
        let end = out.len().saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        Self { out, end, found_len: 0, full: false }
    }

    /// Those of a READDIRPLUS.
    #[must_use]
    pub fn plus(out: &'v mut Vec<u8>, size: u32) -> Self {
        Self { found_len: EntryOut::LEN, ..Self::new(out, size) }
    }

    /// Whether there is room for an entry of this name: to be asked before a READDIRPLUS looks it up, as a lookup that is
    /// not told of is never given back. Once there is none, there is none for any.
    pub fn room_for(&mut self, name: Name<'_>) -> bool {
        let len = self.found_len + entry_len(name.bytes().len());
        self.full |= self.out.len() + len > self.end;
        !self.full
    }

    /// Adds an entry of READDIR; `false` if there is no room for it.
    ///
    /// # Panics
    /// They are those of a READDIRPLUS.
    pub fn add(&mut self, entry: &Dirent<'_>) -> bool {
        assert_eq!(self.found_len, 0, "an entry without what a lookup of it answers");
        self.room_for(entry.name) && {
            entry.write(self.out);
            true
        }
    }

    /// Adds an entry of READDIRPLUS; `false` if there is no room for it. Its lookup counts, as of a LOOKUP, unless its node
    /// is 0. `.` and `..` go without, whatever was found: nobody gives their lookups back.
    ///
    /// # Panics
    /// They are those of a READDIR.
    pub fn add_plus(&mut self, found: &EntryOut, entry: &Dirent<'_>) -> bool {
        assert_ne!(self.found_len, 0, "an entry with what a lookup of it answers");
        self.room_for(entry.name) && {
            let nodeid = if entry.name.is_dots() { 0 } else { found.nodeid };
            EntryOut { nodeid, ..*found }.write(self.out);
            entry.write(self.out);
            true
        }
    }
}

/// An entry of a reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Listed<'a> {
    /// The entry.
    pub entry: Dirent<'a>,
    /// With READDIRPLUS: what a lookup of it answers.
    pub found: Option<EntryOut>,
    /// Whether there was a lookup, which is to be given back.
    pub counts: bool,
}

/// Reads the entries of a reply, one after the other. It ends with the first that is wrong, and without a word before one
/// that is cut off, as Linux does.
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
    type Item = Result<Listed<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry()?.map_err(|kind| Error::new(self.opcode, kind));
        if entry.is_err() {
            self.reader.take_rest();
        }
        Some(entry)
    }
}

impl<'a> Parsed<'a> {
    fn entry(&mut self) -> Option<std::result::Result<Listed<'a>, ErrorKind>> {
        let r = &mut self.reader;
        let is_plus = self.opcode == Opcode::Readdirplus;
        let found = if is_plus { Some(EntryOut::read(r)?) } else { None };
        let ino = u64::read(r)?;
        let next = u64::read(r)?;
        let namelen = u32::read(r)? as usize;
        let kind = u32::read(r)?;
        let name = match Name::new(r.bytes(namelen)?) {
            Ok(name) => name,
            Err(kind) => return Some(Err(kind)),
        };
        // What pads the last one may be left out.
        let padding = entry_len(namelen) - HEAD_LEN - namelen;
        r.bytes(padding.min(r.len()))?;
        let counts = found.is_some_and(|found| found.nodeid != 0) && !name.is_dots();
        Some(Ok(Listed { entry: Dirent { ino, next, kind, name }, found, counts }))
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
        let parsed: Vec<_> = parse(&out[1..]).map(|listed| listed.unwrap().entry).collect();
        assert_eq!(parsed, [entry(b"abc", 1), entry(b"eight888", 2)]);
    }

    #[test]
    fn what_there_is_no_room_for_ends_the_list() {
        let mut out = Vec::new();
        let mut entries = Entries::new(&mut out, 64);
        assert!(entries.add(&entry(b"abc", 1)));
        assert!(!entries.add(&entry(b"longer-than-there-is-room", 2)));
        assert!(!entries.add(&entry(b"c", 3)), "it would hide the one before");
        assert_eq!(parse(&out).count(), 1);
    }

    #[test]
    fn entries_with_lookups_come_back() {
        let found = EntryOut { nodeid: 7, ..EntryOut::default() };
        let mut out = Vec::new();
        let mut entries = Entries::plus(&mut out, 160);
        assert!(entries.add_plus(&found, &entry(b"abc", 1)));
        assert!(!entries.add_plus(&found, &entry(b"abc", 2)));
        assert_eq!(out.len(), 160);
        let parsed: Vec<_> = parse_plus(&out).map(|listed| listed.unwrap()).collect();
        let listed = Listed { entry: entry(b"abc", 1), found: Some(found), counts: true };
        assert_eq!(parsed, [listed]);
    }

    /// What the client has of a server's lookups, after it has listed a directory in pieces.
    fn lookups(names: &[Vec<u8>], size: u32) -> (Vec<u64>, Vec<Vec<u8>>) {
        let mut counts = vec![0; names.len()];
        let mut listed_names = Vec::new();
        let mut at = 0;
        loop {
            let mut out = Vec::new();
            let mut entries = Entries::plus(&mut out, size);
            for (index, bytes) in names.iter().enumerate().skip(at) {
                let name = Name::new(bytes).unwrap();
                if !entries.room_for(name) {
                    continue;
                }
                // The server looks it up, whatever that is.
                counts[index] += u64::from(!name.is_dots());
                let found = EntryOut { nodeid: index as u64 + 2, ..EntryOut::default() };
                let next = index as u64 + 1;
                assert!(entries.add_plus(&found, &Dirent { ino: 1, next, kind: 8, name }));
            }
            let before = at;
            for listed in parse_plus(&out).map(Result::unwrap) {
                at = usize::try_from(listed.entry.next).unwrap();
                listed_names.push(listed.entry.name.bytes().to_vec());
                if listed.counts {
                    let node = usize::try_from(listed.found.unwrap().nodeid).unwrap();
                    counts[node - 2] -= 1;
                }
            }
            if at == before {
                return (counts, listed_names);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn lookups_of_a_listing_are_all_given_back(
            mut names in proptest::collection::vec("[a-z]{1,40}", 0..30),
            size in 300u32..2000,
        ) {
            names.insert(0, "..".to_owned());
            names.insert(0, ".".to_owned());
            let names: Vec<_> = names.into_iter().map(String::into_bytes).collect();
            let (counts, listed) = lookups(&names, size);
            proptest::prop_assert!(counts.iter().all(|count| *count == 0), "{counts:?}");
            proptest::prop_assert_eq!(listed, names);
        }
    }

    #[test]
    fn hostile_entries_end_the_list() {
        let mut out = Vec::new();
        assert!(Entries::new(&mut out, 100).add(&entry(b"ab", 1)));
        for len in 0..26 {
            assert!(parse(&out[..len]).next().is_none(), "cut at {len}");
        }
        let mut long = out.clone();
        long[19] = 1;
        assert!(parse(&long).next().is_none(), "a name that goes on behind the end");
        for (at, byte) in [(24, b'/'), (25, 0), (16, 0)] {
            let mut bad = out.clone();
            bad[at] = byte;
            let mut parsed = parse(&bad);
            assert!(parsed.next().unwrap().is_err(), "{at}");
            assert!(parsed.next().is_none());
        }
    }
}
