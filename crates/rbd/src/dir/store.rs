//! A store, without waiting for anybody but the disk.

use super::disk::{Disk, DiskFile};
use super::files::Files;
use super::peers::Peer;
use super::record::Seen;
use super::subject::{Leftovers, Subject, change, put, read, stored};
use super::tables::{
    CLONES, COUNTERS, FILES, GARBAGE, OBJECTS, REMOVED, SESSIONS, Transaction, leading_number,
    number,
};
use crate::class::{Caller, Object, method};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Answer, Extents, Guard, Mutation, NOSNAP, ObjectName, Op, Query, Request, SnapContext, Stat,
};
use blockyard_rados::encoding::{EntityAddr, EntityName, EntityType, Fsid, Utime};
use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use redb::{Builder, ConcurrencyMode, Database};
use rustix::io::Errno;
use std::io::ErrorKind as ErrorKindOfIo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a store says it is, and in which version.
const FORMAT: &[u8] = b"blockyard object store 1";
const FORMAT_NAME: &[u8] = b"blockyard object store ";
/// The database.
pub(super) const DATABASE: &str = "objects.redb";
/// One that is being made.
const NEW_DATABASE: &str = "objects.redb.new";
/// Memory for pages of the database.
const CACHE_BYTES: usize = 32 << 20;
/// Held while a process opens the store, or clears away what is left of the dead.
const OPENING: &str = "locks/open";
/// Objects whose writers wait for each other share one of so many locks.
const SHARDS: usize = 64;
/// How often a reader looks again for an object that gets another file while it looks.
const MAX_LOOKS: usize = 64;

/// A store in a directory.
pub(super) struct Store<D: Disk> {
    files: Files<D>,
    database: RwLock<Database>,
    /// The disk has failed the database, which fails whatever comes after that until it is opened again.
    has_failed: AtomicBool,
    shards: Vec<Mutex<()>>,
    id: Fsid,
    session: u32,
    /// What the process' socket is called, if others can have the folder.
    name: Option<String>,
    /// Held as long as this process lives.
    _alive: D::Lock,
    /// Files that are gone, and still in the database's table.
    removed: Mutex<Vec<u64>>,
    /// Somebody else, whom a test acts as.
    #[cfg(test)]
    pub(super) acting: Mutex<Option<Caller>>,
}

/// The key of an object: its namespace, and its name.
pub(super) fn key(namespace: &str, name: &[u8]) -> Vec<u8> {
    let length = u16::try_from(namespace.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&length[..], namespace.as_bytes(), name].concat()
}

/// Which lock the writers of an object take. All processes that have the store open have to agree on it, whatever they were
/// built with, so that it is part of the format.
fn shard(key: &[u8]) -> usize {
    crc32c::crc32c(key) as usize % SHARDS
}

fn alive(session: u64) -> String {
    format!("sessions/{session:08x}")
}

/// A name that nobody else guesses.
fn socket_name() -> Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// How the database is opened.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_concurrency_mode(ConcurrencyMode::MultiWriter);
    builder
}

fn disk_error(error: std::io::Error) -> Error {
    Error::io("opening the store")(error)
}

impl<D: Disk> Store<D> {
    /// Opens a store, or makes one where there is none.
    pub(super) fn open(disk: D) -> Result<Self> {
        for folder in ["data", "locks", "sessions"] {
            disk.make_folder(folder).map_err(disk_error)?;
        }
        // One opens at a time: what is left of the dead is cleared away once.
        let opening = disk.lock(OPENING).map_err(disk_error)?;
        let builder = builder();
        if disk.open(DATABASE).is_err_and(|error| error.kind() == ErrorKindOfIo::NotFound) {
            make(&disk, &builder)?;
        }
        let database = disk.database(DATABASE, &builder).map_err(Error::database)?;
        let transaction = Transaction::write(&database)?;
        let id = identity(&transaction)?;
        let session = transaction.next_number("sessions")?;
        let alive = disk.try_lock(&alive(session)).map_err(disk_error)?;
        let alive = alive.ok_or_else(|| Error::damaged("the number of a process is taken"))?;
        let name = if disk.is_shared() { Some(socket_name()?) } else { None };
        if let Some(name) = &name {
            disk.note(&alive, name).map_err(disk_error)?;
        }
        transaction.put(SESSIONS, &number(session), &[])?;
        transaction.commit()?;
        let session =
            u32::try_from(session).map_err(|_| Error::damaged("2^32 processes had the store"))?;
        let store = Self {
            files: Files::new(disk, session),
            database: RwLock::new(database),
            has_failed: AtomicBool::new(false),
            shards: (0..SHARDS).map(|_| Mutex::new(())).collect(),
            id,
            session,
            name,
            _alive: alive,
            removed: Mutex::default(),
            #[cfg(test)]
            acting: Mutex::default(),
        };
        store.clear_after_the_dead()?;
        drop(opening);
        Ok(store)
    }

    /// Makes durable what processes have written that died since the store was opened, and clears away what they have left.
    pub(super) fn take_over(&self) -> Result<()> {
        let _one_clears = self.files.disk.lock(OPENING).map_err(disk_error)?;
        self.note(self.clear_after_the_dead())
    }

    pub(super) const fn disk(&self) -> &D {
        &self.files.disk
    }

    /// What this process' socket is called; `None` if there can be no other process.
    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// This process' number.
    pub(super) const fn session(&self) -> u32 {
        self.session
    }

    /// The numbers of the other processes that have the store open, or had it and were killed.
    pub(super) fn others(&self) -> Result<Vec<Peer>> {
        let transaction = self.begin_read()?;
        let sessions = transaction.page(SESSIONS, &[], &[], u64::MAX)?;
        let sessions = sessions.values.keys().map(|key| leading_number(key));
        let sessions = sessions.filter_map(|session| u32::try_from(session).ok());
        let others = sessions.filter(|session| *session != self.session);
        // The file of one that has died may be gone.
        let name = |session| self.files.disk.note_of(&alive(u64::from(session))).ok();
        let named = others.filter_map(|session| Some(Peer { session, name: name(session)? }));
        Ok(named.filter(|peer| !peer.name.is_empty()).collect())
    }

    /// Whether the process with a number has the store open.
    pub(super) fn lives(&self, session: i64) -> Result<bool> {
        let Ok(session) = u64::try_from(session) else { return Ok(false) };
        if session == u64::from(self.session) {
            return Ok(true);
        }
        let transaction = self.begin_read()?;
        if transaction.get(SESSIONS, &number(session))?.is_none() {
            return Ok(false);
        }
        self.files.disk.try_lock(&alive(session)).map(|free| free.is_none()).map_err(disk_error)
    }

    /// The store's identity.
    pub(super) const fn id(&self) -> Fsid {
        self.id
    }

    /// The database; opened again if the disk has failed it.
    fn database(&self) -> Result<RwLockReadGuard<'_, Database>> {
        if self.has_failed.load(Ordering::Acquire) {
            let mut database = self.database.write();
            // Another thread may have done so.
            if self.has_failed.load(Ordering::Acquire) {
                let opened = self.files.disk.database(DATABASE, &builder());
                *database = opened.map_err(Error::database)?;
                self.has_failed.store(false, Ordering::Release);
            }
        }
        Ok(self.database.read())
    }

    /// What was done to the database; notes if the disk has failed it.
    fn note<T>(&self, done: Result<T>) -> Result<T> {
        if done.as_ref().is_err_and(Error::has_failed_database) {
            self.has_failed.store(true, Ordering::Release);
        }
        done
    }

    fn begin_read(&self) -> Result<Transaction> {
        Transaction::read(&*self.database()?)
    }

    fn begin_write(&self) -> Result<Transaction> {
        Transaction::write(&*self.database()?)
    }

    /// Clears away what processes have left behind that died.
    fn clear_after_the_dead(&self) -> Result<()> {
        let transaction = self.begin_write()?;
        let mut dead = Vec::new();
        for session in transaction.page(SESSIONS, &[], &[], u64::MAX)?.values.keys() {
            let session = leading_number(session);
            let is_other = session != u64::from(self.session);
            if is_other && self.files.disk.try_lock(&alive(session)).map_err(disk_error)?.is_some()
            {
                dead.push(session);
            }
        }
        // What the dead had been told is written is in the system's memory, and whoever takes over flushes it, too.
        if !dead.is_empty() {
            self.files.disk.sync_all().map_err(disk_error)?;
        }
        for session in dead {
            for file in self.files.of_session(u32::try_from(session).unwrap_or_default())? {
                if transaction.get(FILES, &number(file))?.is_none() {
                    self.files.remove(file)?;
                }
            }
            transaction.remove(SESSIONS, &number(session))?;
            // Nobody has a number again, so that nobody minds if its lock stays.
            let _gone = self.files.disk.remove(&alive(session));
        }
        for file in transaction.page(GARBAGE, &[], &[], u64::MAX)?.values.keys() {
            self.files.remove(leading_number(file))?;
            transaction.remove(GARBAGE, file)?;
        }
        transaction.commit()
    }

    /// This process, as locks and watches name it.
    pub(super) fn caller(&self) -> Caller {
        #[cfg(test)]
        if let Some(acting) = &*self.acting.lock() {
            return acting.clone();
        }
        let client = EntityName { kind: EntityType::CLIENT, number: self.session.into() };
        Caller { client, addr: EntityAddr { nonce: self.session, ..EntityAddr::default() } }
    }

    fn surroundings(&self) -> (Caller, Utime) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map(Utime::from);
        (self.caller(), now.unwrap_or_default())
    }

    /// Does something to an object.
    pub(super) fn operate(&self, key: &[u8], request: &Request) -> Result<Vec<Answer>> {
        match request {
            Request::Read { snap, ops } => {
                for _ in 1..MAX_LOOKS {
                    match self.note(self.read(key, *snap, ops)) {
                        Err(error) if error.errno() == Some(Errno::STALE) => {}
                        read => return read,
                    }
                }
                self.note(self.read(key, *snap, ops))
            }
            Request::Write { context, ops } => self.note(self.write(key, context, ops)),
        }
    }

    fn read(&self, key: &[u8], snap: u64, ops: &[Op]) -> Result<Vec<Answer>> {
        let transaction = self.begin_read()?;
        let context = SnapContext::default();
        let mut subject =
            Subject::new(&self.files, &transaction, key, self.surroundings(), context)?;
        if snap != NOSNAP {
            subject.look_at(snap);
        }
        ops.iter().map(|op| perform(&mut subject, op, false)).collect()
    }

    fn write(&self, key: &[u8], context: &SnapContext, ops: &[Op]) -> Result<Vec<Answer>> {
        let shard = shard(key);
        let _here = self.shards.get(shard).map(Mutex::lock);
        let elsewhere = self.files.disk.lock(&format!("locks/{shard:02x}"));
        let _elsewhere = elsewhere.map_err(Error::io("waiting for the lock on an object"))?;
        if let Some(answers) = self.write_in_place(key, context, ops)? {
            return Ok(answers);
        }
        let transaction = self.begin()?;
        let mut subject =
            Subject::new(&self.files, &transaction, key, self.surroundings(), context.clone())?;
        let done = ops.iter().map(|op| perform(&mut subject, op, true)).collect::<Result<Vec<_>>>();
        let finished = done.and_then(|answers| Ok((answers, subject.finish()?)));
        let (answers, leftovers) = finished?;
        if leftovers.changed {
            self.end(transaction, leftovers)?;
        }
        Ok(answers)
    }

    /// One write to the bytes of an object that are its head's alone needs no transaction. It may be torn by a power cut
    /// before it is flushed, as on any disk.
    fn write_in_place(
        &self,
        key: &[u8],
        context: &SnapContext,
        ops: &[Op],
    ) -> Result<Option<Vec<Answer>>> {
        let mut write = None;
        for op in ops {
            match op {
                Op::Guard(_) => {}
                Op::Mutate(
                    mutation @ (Mutation::Write { .. }
                    | Mutation::WriteSame { .. }
                    | Mutation::Zero { .. }
                    | Mutation::Truncate { .. }),
                ) if write.is_none() => write = Some(mutation),
                _ => return Ok(None),
            }
        }
        let Some(write) = write else { return Ok(None) };
        let transaction = self.begin_read()?;
        let mut subject = Subject::new(
            &self.files,
            &transaction,
            key,
            self.surroundings(),
            SnapContext::default(),
        )?;
        let Some((number, file)) = subject.file()? else { return Ok(None) };
        let is_shared = subject.record().clones.iter().any(|clone| clone.file == Some(number));
        if is_shared || context.snaps.first().is_some_and(|newest| *newest > subject.record().seq) {
            return Ok(None);
        }
        for op in ops.iter().filter(|op| matches!(op, Op::Guard(_))) {
            perform(&mut subject, op, false)?;
        }
        let changed = change(&*file, write);
        // Behind it, and if it has failed in part: a flush that goes on beside it takes the note away, and would not have what
        // comes after that.
        self.files.wrote(number, &file);
        changed?;
        Ok(Some(vec![Answer::Done; ops.len()]))
    }

    /// Begins to write; takes files that are gone by now out of the database.
    fn begin(&self) -> Result<Transaction> {
        let transaction = self.begin_write()?;
        for file in std::mem::take(&mut *self.removed.lock()) {
            transaction.remove(GARBAGE, &number(file))?;
        }
        Ok(transaction)
    }

    fn end(&self, transaction: Transaction, leftovers: Leftovers) -> Result<()> {
        transaction.commit()?;
        for file in leftovers.garbage {
            self.files.remove(file)?;
            self.removed.lock().push(file);
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.files.flush()
    }

    pub(super) fn create_snapshot(&self) -> Result<u64> {
        self.note(self.next_snapshot())
    }

    fn next_snapshot(&self) -> Result<u64> {
        let transaction = self.begin()?;
        let id = transaction.next_number("snapshots")?;
        transaction.commit()?;
        Ok(id)
    }

    pub(super) fn remove_snapshot(&self, id: u64) -> Result<()> {
        self.note(self.trim_all(id))
    }

    /// Drops what all objects keep only for a snapshot.
    fn trim_all(&self, id: u64) -> Result<()> {
        let transaction = self.begin()?;
        transaction.put(REMOVED, &number(id), &[])?;
        let mut leftovers = Leftovers::default();
        let clones = transaction.page(CLONES, &number(id), &number(id), u64::MAX)?;
        for index in clones.values.keys() {
            transaction.remove(CLONES, index)?;
            let key = index.get(8..).unwrap_or_default();
            self.trim(&transaction, key, id, &mut leftovers)?;
        }
        self.end(transaction, leftovers)
    }

    /// Drops what an object keeps only for a snapshot. Its head is not touched, so that its writers are not waited for.
    fn trim(
        &self,
        transaction: &Transaction,
        key: &[u8],
        id: u64,
        leftovers: &mut Leftovers,
    ) -> Result<()> {
        let Some(before) = stored(transaction, key)? else { return Ok(()) };
        let mut record = before.clone();
        record.clones.iter_mut().for_each(|clone| clone.snapshots.retain(|known| *known != id));
        record.clones.retain(|clone| !clone.snapshots.is_empty());
        leftovers.garbage.extend(put(transaction, key, Some(&before), &record)?);
        Ok(())
    }

    /// How many files objects have.
    #[cfg(test)]
    pub(super) fn files_in_use(&self) -> Result<usize> {
        let transaction = self.begin_read()?;
        Ok(transaction.page(FILES, &[], &[], u64::MAX)?.values.len())
    }

    /// How many files of objects there are.
    #[cfg(test)]
    pub(super) fn files_on_disk(&self) -> Result<usize> {
        let of_each = (1..=self.session).map(|session| Ok(self.files.of_session(session)?.len()));
        of_each.sum()
    }

    #[cfg(test)]
    pub(super) fn set_format(&self, format: &[u8]) -> Result<()> {
        let transaction = self.begin()?;
        transaction.put(COUNTERS, b"format", format)?;
        transaction.commit()
    }

    /// The names of objects of a namespace behind a place; and the next place.
    pub(super) fn list(
        &self,
        namespace: &str,
        after: Option<&[u8]>,
        max: usize,
    ) -> Result<(Vec<ObjectName>, Option<Bytes>)> {
        self.note(self.page(namespace, after, max))
    }

    fn page(
        &self,
        namespace: &str,
        after: Option<&[u8]>,
        max: usize,
    ) -> Result<(Vec<ObjectName>, Option<Bytes>)> {
        let transaction = self.begin_read()?;
        let prefix = key(namespace, b"");
        let after = after.unwrap_or(&prefix);
        let page = transaction.page(OBJECTS, after, &prefix, max as u64)?;
        let next = page.values.last_key_value().filter(|_| page.more);
        let next = next.map(|(key, _)| key.clone());
        let mut names = Vec::with_capacity(page.values.len());
        for key in page.values.keys() {
            // Of those that are removed only clones are left.
            if stored(&transaction, key)?.is_some_and(|record| record.head.is_some()) {
                names.push(key.get(prefix.len()..).unwrap_or_default().into());
            }
        }
        Ok((names, next))
    }
}

impl<D: Disk> Drop for Store<D> {
    /// Whoever says goodbye has left nothing behind. What is not said now, the next one sees by the lock.
    fn drop(&mut self) {
        if self.files.flush().is_ok()
            && let Ok(transaction) = self.begin()
            && transaction.remove(SESSIONS, &number(self.session.into())).is_ok()
            && transaction.commit().is_ok()
        {
            let _gone = self.files.disk.remove(&alive(self.session.into()));
        }
    }
}

/// Makes the database of a new store. It gets its name when all is in it that has to be: one that is half made is made anew.
fn make(disk: &impl Disk, builder: &Builder) -> Result<()> {
    match disk.remove(NEW_DATABASE) {
        Err(error) if error.kind() != ErrorKindOfIo::NotFound => return Err(disk_error(error)),
        _ => {}
    }
    let database = disk.database(NEW_DATABASE, builder).map_err(Error::database)?;
    let transaction = Transaction::write(&database)?;
    transaction.make_tables()?;
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    transaction.put(COUNTERS, b"format", FORMAT)?;
    transaction.put(COUNTERS, b"id", &id)?;
    transaction.commit()?;
    database.close().map_err(Error::database)?;
    disk.rename(NEW_DATABASE, DATABASE).map_err(disk_error)?;
    disk.sync_folder("").map_err(disk_error)
}

/// The store's identity.
fn identity(transaction: &Transaction) -> Result<Fsid> {
    match transaction.get(COUNTERS, b"format")? {
        Some(format) if format == FORMAT => {}
        Some(format) if format.starts_with(FORMAT_NAME) => {
            return Err(Error::bad(
                "the store was made by a newer version of Blockyard; use that one",
            ));
        }
        _ => return Err(Error::damaged("the database is of no store of objects")),
    }
    let id = transaction.get(COUNTERS, b"id")?;
    let id = id.and_then(|id| id[..].try_into().ok());
    id.map(Fsid).ok_or_else(|| Error::damaged("the store has no identity"))
}

/// Does one operation.
fn perform<D: Disk>(subject: &mut Subject<'_, D>, op: &Op, may_write: bool) -> Result<Answer> {
    match op {
        Op::Guard(guard) => check(subject, guard),
        Op::Query(query) => answer(subject, query),
        Op::Mutate(mutation) if may_write => subject.apply(mutation.clone()).map(|()| Answer::Done),
        Op::Mutate(_) => Err(Errno::INVAL.into()),
        Op::Exec { class, method: name, input } => {
            let method = method(class, name).ok_or(Errno::OPNOTSUPP)?;
            if method.writes && !may_write {
                return Err(Errno::INVAL.into());
            }
            method.run(subject, input).map(Answer::Data)
        }
    }
}

fn check<D: Disk>(subject: &mut Subject<'_, D>, guard: &Guard) -> Result<Answer> {
    match guard {
        Guard::Exists => subject.size()?.map(|_| Answer::Done).ok_or(Errno::NOENT.into()),
        Guard::CompareExtent { offset, data } => {
            let mut found = BytesMut::new();
            // A length of 0 would be up to the end.
            if !data.is_empty() && subject.size()?.is_some() {
                found = subject.read(*offset, data.len() as u64)?.into();
            }
            found.resize(data.len(), 0);
            match found.iter().zip(data).position(|(found, expected)| found != expected) {
                None => Ok(Answer::Done),
                Some(at) => {
                    let at = u32::try_from(at).unwrap_or(u32::MAX);
                    Err(ErrorKind::Mismatch { at }.into())
                }
            }
        }
    }
}

fn answer<D: Disk>(subject: &mut Subject<'_, D>, query: &Query) -> Result<Answer> {
    match query {
        Query::Read { offset, length } => subject.read(*offset, *length).map(Answer::Data),
        Query::SparseRead { offset, length } => {
            subject.size()?.ok_or(Errno::NOENT)?;
            let Some((_, file)) = subject.file()? else {
                return Ok(Answer::Extents(Extents::default()));
            };
            sparse_read(&*file, *offset, *length).map(Answer::Extents)
        }
        Query::Stat => {
            let size = subject.size()?.ok_or(Errno::NOENT)?;
            Ok(Answer::Stat(Stat { size, modified: subject.modified() }))
        }
        Query::Xattr(name) => subject.xattr(name)?.map(Answer::Data).ok_or(Errno::NODATA.into()),
        Query::OmapGet(keys) => {
            subject.size()?.ok_or(Errno::NOENT)?;
            let mut page = crate::store::ValuePage::default();
            for key in keys {
                if let Some(value) = subject.omap_get(key)? {
                    page.values.insert(key.clone(), value);
                }
            }
            Ok(Answer::Omap(page))
        }
        Query::OmapList { after, prefix, max } => {
            subject.omap_list(after, prefix, *max).map(Answer::Omap)
        }
        Query::Snapshots => subject.snapshots().map(Answer::Snapshots),
        Query::Watchers => Err(Errno::OPNOTSUPP.into()),
    }
}

fn sparse_read(file: &impl DiskFile, offset: u64, length: u64) -> Result<Extents> {
    let io = Error::io("reading the file of an object");
    let size = file.size();
    let end = size.map(|size| offset.saturating_add(length).min(size)).map_err(io)?;
    let (mut ranges, mut data) = (Vec::new(), BytesMut::new());
    if offset < end {
        let parts = file.data(offset..end).map_err(Error::io("reading the file of an object"))?;
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let bytes = read(file, part.start, part.end - part.start)?;
            ranges.push((part.start, bytes.len() as u64));
            data.extend_from_slice(&bytes);
        }
    }
    Ok(Extents { ranges, data: data.freeze() })
}

impl<D: Disk> Subject<'_, D> {
    /// Sees the object as it was in a snapshot. It is only read from then on.
    fn look_at(&mut self, snapshot: u64) {
        let seen = self.record().at(snapshot);
        self.replace_head(match seen {
            Seen::Nothing => None,
            Seen::Head(file) | Seen::Clone(file) => Some(file),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of format version 1: CRC-32C of the key, modulo 64. That of "123456789" is the check value of RFC 3720's polynomial.
    #[test]
    fn the_lock_of_an_object_is_part_of_the_format() {
        assert_eq!(shard(b"123456789"), 0xe306_9283 % 64);
        let of = |namespace, name: &str| shard(&key(namespace, name.as_bytes()));
        let shards =
            [of("", "rbd_directory"), of("", "rbd_header.1"), of("ns", "rbd_header.1"), of("", "")];
        assert_eq!(shards, [40, 17, 22, 18]);
    }
}
