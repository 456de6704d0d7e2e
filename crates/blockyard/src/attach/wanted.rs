//! What a device is being made of: as the file of its mark has it, until the device is on record.

use serde::{Deserialize, Serialize};

use super::Wish;
use super::record::Record;
use crate::disks::identity::DiskIdentity;
use crate::error::{Error, ErrorKind, Result};

/// A disk that somebody is about to attach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    identity: DiskIdentity,
    only_reads: bool,
    pid: u32,
}

impl Wanted {
    /// By this process.
    pub(super) fn new(wish: &Wish, identity: &DiskIdentity) -> Self {
        let (identity, only_reads) = (identity.clone(), wish.only_reads());
        Self { identity, only_reads, pid: std::process::id() }
    }

    /// A file that is empty, or of another version, says nothing.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    pub(super) fn text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }

    /// Whether both cannot be attached: who only reads is in nobody's way who does the same.
    fn excludes(&self, identity: &DiskIdentity, only_reads: bool) -> bool {
        self.identity.same_disk(identity) && !(self.only_reads && only_reads)
    }

    /// Nobody who serves a disk has this one.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: somebody has.
    pub(super) fn check_served(&self, record: &Record) -> Result<()> {
        if !self.excludes(&record.identity, record.wish.only_reads()) {
            return Ok(());
        }
        let (path, pid) = (record.path(), record.pid);
        let what = format!("the disk is already attached as {path} by {pid}");
        Err(Error::new(ErrorKind::Busy, what))
    }

    /// Nobody who is about to attach a disk has this one.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`]: somebody has.
    pub(super) fn check_begun(&self, other: &Self) -> Result<()> {
        if !self.excludes(&other.identity, other.only_reads) {
            return Ok(());
        }
        let what = format!("the disk is being attached by {}", other.pid);
        Err(Error::new(ErrorKind::Busy, what))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As of a process that attaches that disk.
    pub(in crate::attach) fn wanted(uri: &str) -> Wanted {
        let wish = Wish { uri: uri.into(), ..Wish::default() };
        Wanted::new(&wish, &DiskIdentity::of(&uri.parse().unwrap()).unwrap())
    }

    #[test]
    fn who_only_reads_is_in_nobodys_way_who_does_the_same() {
        let (writes, reads) = (wanted("nbd://host/x"), wanted("nbd://host/x?read_only=1"));
        for (one, other, busy) in
            [(&writes, &writes, true), (&writes, &reads, true), (&reads, &reads, false)]
        {
            assert_eq!(one.check_begun(other).is_err(), busy);
            assert_eq!(other.check_begun(one).is_err(), busy);
        }
        assert!(writes.check_begun(&wanted("nbd://host/y")).is_ok());
        let memory = wanted("ram:1M");
        assert!(memory.check_begun(&memory).is_ok(), "each has its own");
        assert_eq!(Wanted::parse(&writes.text().unwrap()), Some(writes));
        assert_eq!(Wanted::parse(b""), None);
    }
}
