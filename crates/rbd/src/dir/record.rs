//! What the database has of an object.

use blockyard_rados::Result;
use blockyard_rados::encoding::{Decode, Encode, Reader, Utime, Writer};

/// The form of a record.
const VERSION: u8 = 1;

/// An object: its head, and what is kept of it for snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// The object's number, under which its keys and attributes are.
    pub(super) number: u64,
    /// The object as it is; `None` if it was removed, and only clones are left.
    pub(super) head: Option<Head>,
    /// The newest snapshot that a writer knew of.
    pub(super) seq: u64,
    /// Clones, the oldest first.
    pub(super) clones: Vec<CloneRecord>,
}

/// An object as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The file with its bytes; `None` if it has none.
    pub(super) file: Option<u64>,
    /// When a transaction wrote it last.
    pub(super) modified: Utime,
}

/// An object as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CloneRecord {
    /// The newest snapshot that the writer who made the clone knew of.
    pub(super) id: u64,
    /// The snapshots in which the object was like this: the newest first.
    pub(super) snapshots: Vec<u64>,
    /// The file with its bytes.
    pub(super) file: Option<u64>,
}

fn put_file(w: &mut Writer, file: Option<u64>) {
    crate::format::put_optional(w, file);
}

impl Encode for Record {
    fn encode(&self, writer: &mut Writer) {
        writer.versioned(VERSION, VERSION, |w| {
            w.u64(self.number);
            w.u64(self.seq);
            w.bool(self.head.is_some());
            if let Some(head) = &self.head {
                put_file(w, head.file);
                w.put(&head.modified);
            }
            w.vec(&self.clones, |w, clone| {
                w.u64(clone.id);
                w.vec(&clone.snapshots, |w, snapshot| w.u64(*snapshot));
                put_file(w, clone.file);
            });
        });
    }
}

impl Decode for Record {
    fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut r = reader.versioned(VERSION)?.fields;
        let (number, seq) = (r.u64()?, r.u64()?);
        let head = match r.bool()? {
            true => Some(Head { file: crate::format::optional(&mut r)?, modified: r.get()? }),
            false => None,
        };
        let clones = r.vec(8 + 4 + 1, |r| {
            let (id, snapshots) = (r.u64()?, r.vec(8, Reader::u64)?);
            Ok(CloneRecord { id, snapshots, file: crate::format::optional(r)? })
        })?;
        Ok(Self { number, head, seq, clones })
    }
}

/// Which bytes of an object a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// There was no object.
    Nothing,
    /// Those that it has now.
    Head(Option<u64>),
    /// Those of a clone.
    Clone(Option<u64>),
}

impl Record {
    /// The files that it uses: those of the clones, and the head's. Several may have one.
    pub(super) fn files(&self) -> impl Iterator<Item = u64> {
        let of_clones = self.clones.iter().filter_map(|clone| clone.file);
        of_clones.chain(self.head.as_ref().and_then(|head| head.file))
    }

    /// What the object was in a snapshot (ceph: `src/osd/PrimaryLogPG.cc`, `find_object_context`).
    pub(super) fn at(&self, snapshot: u64) -> Seen {
        if snapshot > self.seq {
            return self.head.as_ref().map_or(Seen::Nothing, |head| Seen::Head(head.file));
        }
        match self.clones.iter().find(|clone| clone.id >= snapshot) {
            Some(clone) if clone.snapshots.contains(&snapshot) => Seen::Clone(clone.file),
            _ => Seen::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockyard_rados::encoding::encoded;

    fn record() -> Record {
        Record {
            number: 7,
            head: Some(Head { file: Some(9), modified: Utime { seconds: 1, nanoseconds: 2 } }),
            seq: 6,
            clones: vec![CloneRecord { id: 5, snapshots: vec![4, 2], file: Some(8) }],
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for record in [record(), Record { head: None, ..record() }, Record::default()] {
            let bytes = encoded(&record);
            assert_eq!(Reader::new("testing", &bytes).get::<Record>().unwrap(), record);
        }
    }

    #[test]
    fn a_reader_sees_what_was_there_when_its_snapshot_was_made() {
        let record = record();
        assert_eq!(record.at(7), Seen::Head(Some(9)));
        // Written after snapshot 6 was known of, and nothing is kept for that.
        assert_eq!(record.at(6), Seen::Nothing);
        assert_eq!((record.at(4), record.at(2)), (Seen::Clone(Some(8)), Seen::Clone(Some(8))));
        assert_eq!((record.at(3), record.at(5)), (Seen::Nothing, Seen::Nothing));
    }
}
