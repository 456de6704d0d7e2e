//! What a device is being made of: as the file of its mark has it, until the device is on record.

use serde::{Deserialize, Serialize};

use super::record::Record;
use super::store::{Begun, Store};
use super::{Fate, Standing, Wish};
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

    /// Notes that it is about to be attached, with that mark. Another one may have attached it, and died, since the `look` that
    /// came before this process.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody was first, also if that one is gone and its device is not. It cannot be looked at what is
    /// on record; the directory cannot be written to.
    pub(super) fn begin(
        &self,
        store: &Store,
        mark: u64,
        look: impl FnOnce() -> Result<Vec<(Record, Standing)>>,
    ) -> Result<Begun> {
        let begun = store.begin(mark, self)?;
        for (record, standing) in look()? {
            let is_left = matches!(standing, Standing::Left(Fate::Recoverable | Fate::Unknown));
            if is_left && self.identity.same_disk(&record.identity) {
                let path = record.path();
                let what =
                    format!("the disk was attached as {path} by another daemon, which has died");
                return Err(Error::new(ErrorKind::Busy, what).help("run the same command again"));
            }
        }
        Ok(begun)
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
    use super::super::record::tests::record;
    use super::*;

    /// As of a process that attaches that disk.
    pub(in crate::attach) fn wanted(uri: &str) -> Wanted {
        let wish = Wish { uri: uri.into(), ..Wish::default() };
        Wanted::new(&wish, &DiskIdentity::of(&uri.parse().unwrap()).unwrap())
    }

    /// As while one waits for its server: what it has looked at is of before that.
    #[test]
    fn a_device_that_another_leaves_behind_meanwhile_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let disk = wanted("nbd://host/x");
        let left = record(0, 1, "nbd://host/x");
        drop(store.save(&left).unwrap());
        let with = |fate: Fate, record: &Record| {
            let found = vec![(record.clone(), Standing::Left(fate))];
            disk.begin(&store, 2, || Ok(found)).map(drop)
        };
        for fate in [Fate::Recoverable, Fate::Unknown] {
            let refused = with(fate, &left).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Busy);
            assert!(refused.to_string().contains("attached as /dev/nbd0"), "{refused}");
            with(fate, &record(0, 1, "nbd://host/y")).unwrap();
        }
        // Nobody would go on with these.
        for fate in [Fate::Lost, Fate::Unused] {
            with(fate, &left).unwrap();
        }
        // Who is looked for is kept out until the look is over.
        let second = wanted("nbd://host/x");
        let look = || {
            assert_eq!(store.begin(3, &second).unwrap_err().kind(), ErrorKind::Busy);
            Ok(Vec::new())
        };
        drop(disk.begin(&store, 2, look).unwrap());
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
