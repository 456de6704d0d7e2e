//! One object in one transaction: what the operations of a request, and methods of classes, see and change.

use super::disk::{Disk, DiskFile};
use super::files::{Files, copy};
use super::record::{CloneRecord, Head, Record, Seen};
use super::tables::{CLONES, FILES, GARBAGE, OBJECTS, OMAP, REMOVED, Transaction, XATTRS, number};
use crate::class::{Caller, Object};
use crate::error::{Error, Result};
use crate::store::{
    MAX_OBJECT_BYTES, Mutation, NOSNAP, ObjectClone, SnapContext, Snapshots, ValuePage,
};
use blockyard_rados::encoding::{Reader, Utime, encoded};
use bytes::Bytes;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The object.
pub(super) struct Subject<'a, D: Disk> {
    files: &'a Files<D>,
    transaction: &'a Transaction,
    key: &'a [u8],
    caller: Caller,
    now: Utime,
    context: SnapContext,
    record: Record,
    /// The record as it is stored.
    stored: Option<Record>,
    /// A file that takes the head's place when all is done.
    new_file: Option<(u64, Arc<D::File>)>,
    /// Whether the clone for newer snapshots was made, if one was to be made.
    is_cloned: bool,
    changed: bool,
}

/// What a transaction leaves to be done when it is committed.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Files that no object has any more.
    pub(super) garbage: Vec<u64>,
    /// Whether anything was changed.
    pub(super) changed: bool,
}

/// Reads a record.
pub(super) fn stored(transaction: &Transaction, key: &[u8]) -> Result<Option<Record>> {
    let Some(bytes) = transaction.get(OBJECTS, key)? else { return Ok(None) };
    let record = Reader::new("reading the record of an object", &bytes).get();
    record.map(Some).map_err(|error| Error::damaged(error.to_string()))
}

/// Puts a record in the place of the one that is stored, or removes it if nothing is left of the object: the files that it
/// has used, and does not use any more.
pub(super) fn put(
    transaction: &Transaction,
    key: &[u8],
    stored: Option<&Record>,
    record: &Record,
) -> Result<Vec<u64>> {
    let before: BTreeSet<u64> = stored.into_iter().flat_map(Record::files).collect();
    let after: BTreeSet<u64> = record.files().collect();
    let garbage: Vec<u64> = before.difference(&after).copied().collect();
    for file in &garbage {
        transaction.remove(FILES, &number(*file))?;
        transaction.put(GARBAGE, &number(*file), &[])?;
    }
    for file in after.difference(&before) {
        transaction.put(FILES, &number(*file), key)?;
    }
    if record.head.is_none() && record.clones.is_empty() {
        transaction.remove(OBJECTS, key)?;
    } else {
        transaction.put(OBJECTS, key, &encoded(record))?;
    }
    Ok(garbage)
}

fn io(error: std::io::Error) -> Error {
    Error::io("reading or writing the file of an object")(error)
}

impl<'a, D: Disk> Subject<'a, D> {
    pub(super) fn new(
        files: &'a Files<D>,
        transaction: &'a Transaction,
        key: &'a [u8],
        (caller, now): (Caller, Utime),
        context: SnapContext,
    ) -> Result<Self> {
        let stored = stored(transaction, key)?;
        let record = stored.clone().unwrap_or_default();
        Ok(Self {
            files,
            transaction,
            key,
            caller,
            now,
            context,
            record,
            stored,
            new_file: None,
            is_cloned: false,
            changed: false,
        })
    }

    /// The file of the head, if it has one.
    pub(super) fn file(&self) -> Result<Option<(u64, Arc<D::File>)>> {
        if let Some(new) = &self.new_file {
            return Ok(Some(new.clone()));
        }
        match self.record.head.as_ref().and_then(|head| head.file) {
            Some(number) => Ok(Some((number, self.files.open(number)?))),
            None => Ok(None),
        }
    }

    pub(super) fn modified(&self) -> Utime {
        self.record.head.as_ref().map(|head| head.modified).unwrap_or_default()
    }

    /// The clones for snapshots, and the head behind them.
    pub(super) fn snapshots(&self) -> Result<Snapshots> {
        if self.stored.is_none() {
            return Err(Errno::NOENT.into());
        }
        let size = |file: Option<u64>| match file {
            Some(number) => self.files.open(number)?.size().map_err(io),
            None => Ok(0),
        };
        let head = self.record.head.as_ref().map(|head| head.file);
        let of_clones = self.record.clones.iter().map(|clone| clone.file);
        // What comes after each: the next clone, or the head, or nothing.
        let mut newer = of_clones.skip(1).map(Some).chain([head]);
        let mut clones = Vec::with_capacity(self.record.clones.len() + 1);
        for clone in &self.record.clones {
            let mut snapshots = clone.snapshots.clone();
            snapshots.reverse();
            let (id, size) = (clone.id, size(clone.file)?);
            let overlap = self.overlap(clone.file, newer.next().flatten().flatten(), size)?;
            clones.push(ObjectClone { id, snapshots, overlap, size });
        }
        if let Some(file) = head {
            let (snapshots, overlap) = (Vec::new(), Vec::new());
            clones.push(ObjectClone { id: NOSNAP, snapshots, overlap, size: size(file)? });
        }
        Ok(Snapshots { clones, seq: self.record.seq })
    }

    /// What a clone has in common with what came after it.
    fn overlap(&self, file: Option<u64>, newer: Option<u64>, size: u64) -> Result<Vec<(u64, u64)>> {
        let (Some(file), Some(newer)) = (file, newer) else { return Ok(Vec::new()) };
        if size == 0 {
            return Ok(Vec::new());
        }
        if file == newer {
            return Ok(vec![(0, size)]);
        }
        let (file, newer) = (self.files.open(file)?, self.files.open(newer)?);
        super::overlap::overlap(&*file, &*newer).map_err(io)
    }

    /// Keeps the object as it is for snapshots that are newer than it (ceph: `PrimaryLogPG::make_writeable`). The head
    /// keeps the clone's file until it gets one of its own.
    fn keep_for_snapshots(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_cloned, true) || self.context.seq <= self.record.seq {
            return Ok(());
        }
        let mut newer = Vec::new();
        for &snapshot in self.context.snaps.iter().filter(|snap| **snap > self.record.seq) {
            if self.transaction.get(REMOVED, &number(snapshot))?.is_none() {
                newer.push(snapshot);
            }
        }
        if let Some(head) = &self.record.head
            && !newer.is_empty()
        {
            for snapshot in &newer {
                self.transaction.put(CLONES, &[&number(*snapshot), self.key].concat(), &[])?;
            }
            let clone = CloneRecord { id: self.context.seq, snapshots: newer, file: head.file };
            self.record.clones.push(clone);
        }
        self.record.seq = self.context.seq;
        Ok(())
    }

    /// Makes the object, if it is not there.
    fn make(&mut self) -> Result<()> {
        self.keep_for_snapshots()?;
        if self.stored.is_none() && self.record.number == 0 {
            // Numbers begin with those of the first session, which are not 0.
            self.record.number = self.files.next_number()?;
        }
        self.changed = true;
        let modified = self.now;
        self.record.head.get_or_insert_default().modified = modified;
        Ok(())
    }

    /// A file that is the head's alone and that nobody has seen yet; with the head's bytes, if they are needed.
    fn own_file(&mut self, with_bytes: bool) -> Result<Arc<D::File>> {
        self.make()?;
        if let Some((_, file)) = &self.new_file {
            if !with_bytes {
                file.set_size(0).map_err(io)?;
            }
            return Ok(Arc::clone(file));
        }
        let old = self.file()?.filter(|_| with_bytes);
        let number = self.files.next_number()?;
        let file = self.files.create(number)?;
        if let Some((_, old)) = old {
            copy(&*old, &*file, old.size().map_err(io)?).map_err(io)?;
        }
        self.new_file = Some((number, Arc::clone(&file)));
        Ok(file)
    }

    fn remove(&mut self) -> Result<()> {
        if self.record.head.is_none() {
            return Err(Errno::NOENT.into());
        }
        self.keep_for_snapshots()?;
        self.changed = true;
        self.drop_new_file()?;
        self.record.head = None;
        self.transaction.remove_all(OMAP, self.record.number)?;
        self.transaction.remove_all(XATTRS, self.record.number)
    }

    /// Forgets a file that was made in this transaction.
    pub(super) fn drop_new_file(&mut self) -> Result<()> {
        match self.new_file.take() {
            Some((number, _)) => self.files.remove(number),
            None => Ok(()),
        }
    }

    fn rollback(&mut self, snapshot: u64) -> Result<()> {
        self.keep_for_snapshots()?;
        match self.record.at(snapshot) {
            Seen::Head(_) => Ok(()),
            Seen::Nothing if self.record.head.is_none() => Ok(()),
            Seen::Nothing => self.remove(),
            Seen::Clone(from) => {
                let file = self.own_file(false)?;
                if let Some(from) = from {
                    let from = self.files.open(from)?;
                    copy(&*from, &*file, from.size().map_err(io)?).map_err(io)?;
                }
                Ok(())
            }
        }
    }

    fn write(&mut self, mutation: &Mutation) -> Result<()> {
        let is_there = self.record.head.is_some();
        match mutation {
            Mutation::Zero { .. } | Mutation::Truncate { .. } if !is_there => return Ok(()),
            // As OSDs do it (`PrimaryLogPG::do_osd_ops`): nothing is kept for snapshots where nothing changes.
            Mutation::Zero { offset, .. } if self.size()?.is_none_or(|size| *offset >= size) => {
                return Ok(());
            }
            Mutation::WriteFull(data) => {
                check_size(0, data.len() as u64)?;
                let file = self.own_file(false)?;
                return file.write_at(data, 0).map_err(io);
            }
            _ => {}
        }
        let file = self.own_file(true)?;
        change(&*file, mutation)
    }

    /// Puts what was changed into the transaction: what is left to be done after it.
    pub(super) fn finish(mut self) -> Result<Leftovers> {
        let mut leftovers = Leftovers { changed: self.changed, ..Leftovers::default() };
        if !self.changed {
            return Ok(leftovers);
        }
        if let Some((number, file)) = self.new_file.clone() {
            self.files.sync_new(number, &file)?;
            self.files.keep(number, &file);
            if let Some(head) = &mut self.record.head {
                head.file = Some(number);
            }
        }
        leftovers.garbage = put(self.transaction, self.key, self.stored.as_ref(), &self.record)?;
        self.new_file = None;
        Ok(leftovers)
    }

    /// The key of a key or an attribute of the object.
    fn key_of(&self, key: &[u8]) -> Vec<u8> {
        [&number(self.record.number), key].concat()
    }

    fn check(&self) -> Result<()> {
        if self.record.head.is_some() { Ok(()) } else { Err(Errno::NOENT.into()) }
    }
}

fn check_size(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= MAX_OBJECT_BYTES => Ok(()),
        _ => Err(Errno::FBIG.into()),
    }
}

/// Does to a file what an operation does to an object's bytes.
pub(super) fn change(file: &impl DiskFile, mutation: &Mutation) -> Result<()> {
    match mutation {
        Mutation::Write { offset, data } => {
            check_size(*offset, data.len() as u64)?;
            file.write_at(data, *offset).map_err(io)
        }
        Mutation::WriteSame { offset, length, data } => {
            check_size(*offset, *length)?;
            let times = length.checked_div(data.len() as u64).unwrap_or_default();
            if times * data.len() as u64 != *length {
                return Err(Errno::INVAL.into());
            }
            file.write_at(&data.repeat(usize::try_from(times).unwrap_or_default()), *offset)
                .map_err(io)
        }
        Mutation::Zero { offset, length } => {
            let end = offset.saturating_add(*length).min(file.size().map_err(io)?);
            if *offset < end { file.zero(*offset..end).map_err(io) } else { Ok(()) }
        }
        Mutation::Truncate { size } => {
            check_size(0, *size)?;
            file.set_size(*size).map_err(io)
        }
        _ => Err(Errno::INVAL.into()),
    }
}

/// Reads a range of a file, as far as it goes. A length of 0 is up to the end.
pub(super) fn read(file: &impl DiskFile, offset: u64, length: u64) -> Result<Bytes> {
    let left = file.size().map_err(io)?.saturating_sub(offset);
    let length = if length == 0 { left } else { length.min(left) };
    let mut buffer = vec![0; usize::try_from(length).map_err(|_| Errno::FBIG)?];
    let read = file.read_at(&mut buffer, offset).map_err(io)?;
    buffer.truncate(read);
    Ok(buffer.into())
}

impl<D: Disk> Object for Subject<'_, D> {
    fn size(&mut self) -> Result<Option<u64>> {
        if self.record.head.is_none() {
            return Ok(None);
        }
        match self.file()? {
            Some((_, file)) => file.size().map(Some).map_err(io),
            None => Ok(Some(0)),
        }
    }

    fn read(&mut self, offset: u64, length: u64) -> Result<Bytes> {
        self.check()?;
        match self.file()? {
            Some((_, file)) => read(&*file, offset, length),
            None => Ok(Bytes::new()),
        }
    }

    fn omap_get(&mut self, key: &[u8]) -> Result<Option<Bytes>> {
        if self.record.head.is_none() {
            return Ok(None);
        }
        self.transaction.get(OMAP, &self.key_of(key))
    }

    fn omap_list(&mut self, after: &[u8], prefix: &[u8], max: u64) -> Result<ValuePage> {
        self.check()?;
        let (after, prefix) = (self.key_of(after), self.key_of(prefix));
        let page = self.transaction.page(OMAP, &after, &prefix, max)?;
        let values = page.values.into_iter().map(|(key, value)| (key.slice(8..), value));
        Ok(ValuePage { values: values.collect(), more: page.more })
    }

    fn xattr(&mut self, name: &str) -> Result<Option<Bytes>> {
        self.check()?;
        self.transaction.get(XATTRS, &self.key_of(name.as_bytes()))
    }

    fn xattr_names(&mut self) -> Result<Vec<String>> {
        self.check()?;
        let prefix = self.key_of(b"");
        let page = self.transaction.page(XATTRS, &prefix, &prefix, u64::MAX)?;
        let names = page.values.keys().map(|key| String::from_utf8_lossy(&key[8..]).into_owned());
        Ok(names.collect())
    }

    fn snap_seq(&mut self) -> Result<Option<u64>> {
        Ok(self.record.head.as_ref().map(|_| self.record.seq))
    }

    fn apply(&mut self, mutation: Mutation) -> Result<()> {
        match mutation {
            Mutation::Create { exclusive } if exclusive && self.record.head.is_some() => {
                Err(Errno::EXIST.into())
            }
            Mutation::Create { .. } if self.record.head.is_some() => Ok(()),
            Mutation::Create { .. } => self.make(),
            Mutation::Remove => self.remove(),
            Mutation::Rollback { snap } => self.rollback(snap),
            Mutation::SetXattr(name, value) => {
                self.make()?;
                self.transaction.put(XATTRS, &self.key_of(name.as_bytes()), &value)
            }
            Mutation::RemoveXattr(name) => {
                self.check()?;
                self.changed = true;
                self.transaction.remove(XATTRS, &self.key_of(name.as_bytes()))
            }
            Mutation::OmapSet(pairs) => {
                self.make()?;
                let mut pairs = pairs.iter();
                pairs.try_for_each(|(key, value)| {
                    self.transaction.put(OMAP, &self.key_of(key), value)
                })
            }
            Mutation::OmapRemove(keys) => {
                self.check()?;
                self.changed = true;
                keys.iter().try_for_each(|key| self.transaction.remove(OMAP, &self.key_of(key)))
            }
            Mutation::OmapClear => {
                self.check()?;
                self.changed = true;
                self.transaction.remove_all(OMAP, self.record.number)
            }
            write => self.write(&write),
        }
    }

    fn caller(&self) -> Caller {
        self.caller.clone()
    }

    fn now(&self) -> Utime {
        self.now
    }

    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // It gives all of so few bytes, or none if the kernel has none yet; a name that is not unique is refused later.
        let _filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        bytes
    }
}

impl<D: Disk> Subject<'_, D> {
    /// The record as it is by now.
    pub(super) const fn record(&self) -> &Record {
        &self.record
    }

    /// Takes other bytes for the head's; for one who reads.
    pub(super) fn replace_head(&mut self, file: Option<Option<u64>>) {
        let modified = self.modified();
        self.record.head = file.map(|file| Head { file, modified });
    }
}

impl<D: Disk> Drop for Subject<'_, D> {
    /// What was begun and not finished leaves no file behind. If that fails, its process' end clears it away.
    fn drop(&mut self) {
        let _removed = self.drop_new_file();
    }
}
