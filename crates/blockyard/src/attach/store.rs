//! The files about attached disks, in the directory `attached` of the runtime directory. They are gone with the machine's
//! next start, as are the kernel's disks.
//!
//! | name | what | locked by |
//! | --- | --- | --- |
//! | `nbd0.json` | the [`Record`] of a device, written whole or not at all | its daemon, or who recovers it |
//! | `MARK.begun` | the disk ([`Wanted`]) that a device with that mark is being made of, which is not on record yet | its maker |
//! | `MARK.failed` | a flush of the device with that mark has failed | nobody: it is there or not |
//! | `MARK.unflushed` | a byte: whether a server has unflushed writes to it, and a flush is out | nobody: its daemon writes |
//! | `MARK.handed` | who has left the device with that mark, and nothing that may come late | nobody: who goes on removes it |
//! | `*.log`, `*.old.log` | what a daemon in the background says ([`log`]) | all who write to it |
//! | `.lock`, `.next` | taken for each change; a record that is being written | whoever changes something |
//!
//! The kernel lets go of locks when their owner has died, in whatever PID namespace that was: what is not locked has nobody
//! who answers for it. What cannot be read is somebody's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_sys::lock::{self, Lock, LockError, LockKind};
use rustix::fs::{FlockOperation, flock};

use super::log;
use super::record::Record;
use super::wanted::Wanted;
use crate::api::{make_runtime_dir, runtime_dir};
use crate::error::{Error, ErrorKind, Result};

/// The largest record that is read.
const MAX_BYTES: u64 = 64 << 10;
/// How long another may take to change something.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const LOCK: &str = ".lock";
const NEXT: &str = ".next";
const RECORD: &str = "json";
const BEGUN: &str = "begun";
const FAILED: &str = "failed";
const UNFLUSHED: &str = "unflushed";
const HANDED: &str = "handed";
const LOG: &str = "log";

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

/// What is in it.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// In the order of the devices.
    pub(crate) records: Vec<Stored>,
    pub(crate) unreadable: Vec<Unreadable>,
    pub(crate) begun: Vec<BegunMark>,
}

/// A record.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub(crate) record: Record,
    /// Its daemon lives, or another is about to go on with it.
    pub(crate) is_served: bool,
}

/// A record that this program does not understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) path: PathBuf,
    /// The device that it is of, by its name.
    pub(crate) device: String,
    pub(crate) why: String,
}

/// A device is being made, or its maker has died at that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BegunMark {
    pub(crate) mark: u64,
    pub(crate) is_served: bool,
}

/// A record is ours as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    file: Arc<OwnedFd>,
    _lock: Lock,
}

/// A device is being made. Dropped, it is on record, or there is none.
#[derive(Debug)]
pub(crate) struct Begun {
    path: PathBuf,
    _lock: Lock,
}

impl Drop for Begun {
    fn drop(&mut self) {
        // Somebody may have removed the directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a flush of a device has failed: what was promised to be durable may be lost, whoever serves it next.
#[derive(Clone, Debug)]
pub(crate) struct FailedFlush(PathBuf);

impl FailedFlush {
    /// Takes it down.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn note(&self) -> io::Result<()> {
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&self.0)
            .map(drop)
    }

    /// Whether it was taken down; where nobody can tell, it may have been.
    pub(crate) fn is_noted(&self) -> bool {
        self.0.try_exists().unwrap_or(true)
    }

    /// For good: nobody serves the device any more.
    fn forget(&self) {
        // There is none for most.
        let _ = fs::remove_file(&self.0);
    }
}

/// Nobody else changes anything as long as this lives.
struct Changing {
    _lock: Lock,
}

impl Store {
    /// That of this user.
    ///
    /// # Errors
    /// The runtime directory is not to be used.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self { directory: runtime_dir()?.join("attached") })
    }

    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.join("attached") }
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{name}.{extension}"))
    }

    fn failed(&self, err: io::Error) -> Error {
        let what = format!("cannot use {}", self.directory.display());
        Error::failed(what).caused_by(err)
    }

    fn change(&self) -> Result<Changing> {
        let open = || -> io::Result<Arc<OwnedFd>> {
            make_runtime_dir(&self.directory)?;
            let mut options = OpenOptions::new();
            options.create(true).truncate(false).read(true).write(true).mode(0o600);
            Ok(Arc::new(options.open(self.directory.join(LOCK))?.into()))
        };
        let file = open().map_err(|err| self.failed(err))?;
        let end = Instant::now() + PATIENCE;
        loop {
            match Lock::take(&file, LockKind::Exclusive) {
                Ok(lock) => return Ok(Changing { _lock: lock }),
                Err(LockError::Held { .. }) if Instant::now() < end => std::thread::sleep(POLL),
                Err(LockError::Held { pid, .. }) => {
                    let who = pid.map_or("another process".into(), |pid| format!("process {pid}"));
                    let what = format!("{who} holds the lock of {}", self.directory.display());
                    return Err(Error::new(ErrorKind::Busy, what));
                }
                Err(LockError::Failed(err)) => return Err(self.failed(err)),
            }
        }
    }

    /// What is there.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn read(&self) -> Result<Contents> {
        if !self.directory.exists() {
            return Ok(Contents::default());
        }
        // Or a record and its lock might be of two daemons.
        let _changing = self.change()?;
        self.list().map_err(|err| self.failed(err))
    }

    fn list(&self) -> io::Result<Contents> {
        let mut contents = Contents::default();
        for path in fs::read_dir(&self.directory)?.flatten().map(|entry| entry.path()) {
            let (Some(stem), Some(extension)) = (path.file_stem(), path.extension()) else {
                continue;
            };
            let name = stem.to_string_lossy().into_owned();
            match extension.to_str() {
                Some(RECORD) => match read(&name, &path) {
                    Ok(stored) => contents.records.push(stored),
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                    Err(err) => {
                        let why = err.to_string();
                        contents.unreadable.push(Unreadable { path, device: name, why });
                    }
                },
                Some(BEGUN) => {
                    let Ok(mark) = u64::from_str_radix(&name, 16) else { continue };
                    let is_served = match File::open(&path) {
                        Ok(file) => lock::is_held(file.as_fd()).unwrap_or(true),
                        Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                        Err(_) => true,
                    };
                    contents.begun.push(BegunMark { mark, is_served });
                }
                _ => {}
            }
        }
        contents.records.sort_by_key(|stored| (stored.record.via.stem(), stored.record.number));
        Ok(contents)
    }

    /// Puts a device on record, in the place of what was there.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub(crate) fn save(&self, record: &Record) -> Result<Held> {
        let _changing = self.change()?;
        let write = || -> io::Result<Held> {
            let next = self.directory.join(NEXT);
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).read(true).write(true).mode(0o600);
            let mut file = options.open(&next)?;
            file.write_all(serde_json::to_string_pretty(record)?.as_bytes())?;
            file.sync_all()?;
            let (file, lock) = hold(file)?;
            fs::rename(&next, self.path(&record.device, RECORD))?;
            Ok(Held { file, _lock: lock })
        };
        write().map_err(|err| self.failed(err))
    }

    /// Takes over a record that nobody has.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody has it; it is not there any more.
    pub(crate) fn claim(&self, record: &Record) -> Result<Held> {
        let _changing = self.change()?;
        let path = self.path(&record.device, RECORD);
        let gone = || Error::failed(format!("the attach record of {} is gone", record.path()));
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Err(gone()),
            Err(err) => return Err(self.failed(err)),
        };
        let found = content(&record.device, &file).map_err(|err| self.failed(err))?;
        if (found.mark, found.pid) != (record.mark, record.pid) {
            return Err(gone());
        }
        hold(file).map(|(file, lock)| Held { file, _lock: lock }).map_err(|err| match err.kind() {
            io::ErrorKind::ResourceBusy => {
                let what = format!("another process serves or recovers {}", record.path());
                Error::new(ErrorKind::Busy, what)
            }
            _ => self.failed(err),
        })
    }

    /// Takes a device off record that is no more, with what its daemon had to say.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub(crate) fn forget(&self, record: &Record, held: &Held) -> Result<()> {
        let _changing = self.change()?;
        let path = self.path(&record.device, RECORD);
        let found = fs::symlink_metadata(&path).map(|found| (found.dev(), found.ino()));
        let ours = rustix::fs::fstat(&held.file).map(|ours| (ours.st_dev, ours.st_ino));
        if found.ok() != ours.ok() {
            return Ok(());
        }
        forget_log_of(record);
        self.forget_notes(record.mark);
        fs::remove_file(&path).map_err(|err| self.failed(err))
    }

    /// What notes that a flush of a device with that mark has failed, at once: it waits for nobody.
    pub(crate) fn failed_flush_of(&self, mark: u64) -> FailedFlush {
        FailedFlush(self.path(&format!("{mark:016x}"), FAILED))
    }

    /// Nobody goes on with a device of that mark: what might be lost of it has no meaning any more.
    pub(super) fn forget_notes(&self, mark: u64) {
        self.failed_flush_of(mark).forget();
        // There is none for most.
        let _ = fs::remove_file(self.unflushed_of(mark));
        let _ = fs::remove_file(self.handed(mark));
    }

    fn handed(&self, mark: u64) -> PathBuf {
        self.path(&format!("{mark:016x}"), HANDED)
    }

    /// Notes that the daemon of a device leaves it, and that nothing it has sent is still to be carried out.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn note_handed_over(&self, record: &Record) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true).mode(0o600);
        let mut file = options.open(self.handed(record.mark))?;
        write!(file, "{}", record.pid)
    }

    /// Whether the daemon that is on record has noted that. For whoever goes on with the device, once.
    pub(super) fn take_handed_over(&self, record: &Record) -> bool {
        let path = self.handed(record.mark);
        let found = fs::read_to_string(&path).unwrap_or_default();
        // One that stays would be believed again.
        fs::remove_file(&path).is_ok() && found == record.pid.to_string()
    }

    /// Where a daemon keeps whether something that was written to the device with that mark is not flushed.
    pub(super) fn unflushed_of(&self, mark: u64) -> PathBuf {
        self.path(&format!("{mark:016x}"), UNFLUSHED)
    }

    /// Notes that a device with that mark is about to be made. Whoever has noted the same disk, or serves it, was first: from
    /// then on two would write to it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody was first; the directory cannot be written to.
    pub(crate) fn begin(&self, mark: u64, wanted: &Wanted) -> Result<Begun> {
        let _changing = self.change()?;
        let contents = self.list().map_err(|err| self.failed(err))?;
        for stored in contents.records.iter().filter(|stored| stored.is_served) {
            wanted.check_served(&stored.record)?;
        }
        for begun in contents.begun.iter().filter(|begun| begun.is_served) {
            // One that cannot be read any more is over.
            let text = fs::read(self.begun(begun.mark)).unwrap_or_default();
            Wanted::parse(&text).map_or(Ok(()), |other| wanted.check_begun(&other))?;
        }
        let path = self.begun(mark);
        let write = || -> io::Result<Lock> {
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).read(true).write(true).mode(0o600);
            let mut file = options.open(&path)?;
            file.write_all(&wanted.text()?)?;
            hold(file).map(|(_, lock)| lock)
        };
        let lock = write().map_err(|err| self.failed(err))?;
        Ok(Begun { path, _lock: lock })
    }

    fn begun(&self, mark: u64) -> PathBuf {
        self.path(&format!("{mark:016x}"), BEGUN)
    }

    /// Takes note that there is no device with that mark, whose maker has died.
    pub(crate) fn end(&self, mark: u64) {
        let Ok(_changing) = self.change() else { return };
        let path = self.begun(mark);
        if File::open(&path).is_ok_and(|file| lock::is_held(file.as_fd()).is_ok_and(|held| !held)) {
            // Somebody may have been faster.
            let _ = fs::remove_file(&path);
        }
    }

    /// A file for what a daemon has to say.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub(crate) fn new_log(&self) -> Result<(PathBuf, File)> {
        let _changing = self.change()?;
        let make = || -> io::Result<(PathBuf, File)> {
            let (file, path) = new_log_file(&self.directory)?;
            Ok((path, file))
        };
        make().map_err(|err| self.failed(err))
    }

    /// Removes what those left who died at a change, and logs that nobody writes to and no record names.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn sweep(&self) -> Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _changing = self.change()?;
        let contents = self.list().map_err(|err| self.failed(err))?;
        // Somebody may have been faster, with each of these.
        let _ = fs::remove_file(self.directory.join(NEXT));
        if !contents.unreadable.is_empty() {
            return Ok(());
        }
        let marks: Vec<u64> = contents
            .records
            .iter()
            .map(|stored| stored.record.mark)
            .chain(contents.begun.iter().map(|begun| begun.mark))
            .collect();
        let is_nobodys = |path: &Path| {
            let mark =
                path.file_stem().and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok());
            mark.is_some_and(|mark| !marks.contains(&mark))
        };
        let named = |path: &Path| {
            let mut logs = contents.records.iter().filter_map(|it| it.record.log.as_deref());
            logs.any(|log| log == path || log::old(log) == path)
        };
        let entries = fs::read_dir(&self.directory).map_err(|err| self.failed(err))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let is = |wanted: &str| path.extension().is_some_and(|extension| extension == wanted);
            let is_written_to = || {
                !File::open(&path).is_ok_and(|file| {
                    flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                })
            };
            let is_left_log = || is(LOG) && !named(&path) && !is_written_to();
            if (is(FAILED) || is(UNFLUSHED) || is(HANDED)) && is_nobodys(&path) || is_left_log() {
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }
}

/// What its daemon had to say is of no interest any more.
pub(super) fn forget_log_of(record: &Record) {
    if let Some(log) = &record.log {
        forget_log(log);
    }
}

/// As [`forget_log_of`], of a daemon that is not on record.
pub(super) fn forget_log(log: &Path) {
    // Somebody may have looked at it and removed it.
    let _ = fs::remove_file(log);
    let _ = fs::remove_file(log::old(log));
}

/// A new file whose name nobody has.
fn new_log_file(directory: &Path) -> io::Result<(File, PathBuf)> {
    for number in 0..u32::MAX {
        let path = directory.join(format!("{}-{number}.{LOG}", std::process::id()));
        match log::open(&path, OpenOptions::new().create_new(true)) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|file| (file, path)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Locks a file; [`io::ErrorKind::ResourceBusy`] if another has.
fn hold(file: File) -> io::Result<(Arc<OwnedFd>, Lock)> {
    let file: Arc<OwnedFd> = Arc::new(file.into());
    match Lock::take(&file, LockKind::Exclusive) {
        Ok(lock) => Ok((file, lock)),
        Err(LockError::Held { .. }) => Err(io::ErrorKind::ResourceBusy.into()),
        Err(LockError::Failed(err)) => Err(err),
    }
}

fn read(device: &str, path: &Path) -> io::Result<Stored> {
    let file = File::open(path)?;
    let record = content(device, &file)?;
    // Where there are no locks, nobody knows: it may be served.
    let is_served = lock::is_held(file.as_fd()).unwrap_or(true);
    Ok(Stored { record, is_served })
}

fn content(device: &str, file: &File) -> io::Result<Record> {
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_BYTES} bytes")));
    }
    Record::parse(device, &text)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::wanted::tests::wanted;
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().join("attached");
        (dir, Store { directory })
    }

    fn names(store: &Store) -> Vec<String> {
        let entries = fs::read_dir(&store.directory).unwrap();
        let name =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).filter(|name| name != LOCK).collect();
        names.sort();
        names
    }

    #[test]
    fn a_record_is_served_as_long_as_its_owner_lives() {
        let (_dir, store) = store();
        assert!(store.read().unwrap().records.is_empty());
        let record = record(0, 7, "ram:1M");
        let held = store.save(&record).unwrap();
        let is_served = || {
            let records = store.read().unwrap().records;
            assert_eq!(records[0].record, record);
            records[0].is_served
        };
        assert!(is_served());
        assert_eq!(store.claim(&record).unwrap_err().kind(), ErrorKind::Busy);
        drop(held);
        assert!(!is_served());
        // Whoever recovers it, recovers it alone.
        let claimed = store.claim(&record).unwrap();
        assert!(is_served());
        assert_eq!(store.claim(&record).unwrap_err().kind(), ErrorKind::Busy);
        store.forget(&record, &claimed).unwrap();
        assert!(names(&store).is_empty());
        assert_eq!(store.claim(&record).unwrap_err().kind(), ErrorKind::Failed);
    }

    #[test]
    fn a_record_is_forgotten_by_its_owner_only() {
        let (_dir, store) = store();
        let (old, new) = (record(0, 7, "ram:1M"), record(0, 8, "ram:1M"));
        let first = store.save(&old).unwrap();
        let second = store.save(&new).unwrap();
        store.forget(&old, &first).unwrap();
        assert_eq!(store.read().unwrap().records[0].record, new);
        drop(second);
        assert!(store.claim(&old).is_err(), "it is another device's");
    }

    #[test]
    fn what_a_newer_version_has_on_record_is_told_and_stays() {
        let (_dir, store) = store();
        drop(store.save(&record(0, 7, "ram:1M")).unwrap());
        let path = store.path("nbd5", RECORD);
        fs::write(&path, "{\"version\": 3, \"device\": \"nbd5\"}").unwrap();
        fs::write(store.path("of-a-newer-one", LOG), "text").unwrap();
        store.sweep().unwrap();
        let contents = store.read().unwrap();
        assert_eq!(contents.records.len(), 1);
        let [unreadable] = &contents.unreadable[..] else { panic!("{contents:?}") };
        assert_eq!((&*unreadable.device, &unreadable.path), ("nbd5", &path));
        assert!(unreadable.why.contains("version 3"), "{unreadable:?}");
        assert_eq!(names(&store), ["nbd0.json", "nbd5.json", "of-a-newer-one.log"]);
    }

    /// Both have looked at what is on record before either was.
    #[test]
    fn of_two_that_attach_a_disk_at_a_time_one_does() {
        let (_dir, store) = store();
        let disk = wanted("nbd://host/x");
        let first = store.begin(1, &disk).unwrap();
        let refused = store.begin(2, &disk).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("is being attached by"), "{refused}");
        drop(store.begin(2, &wanted("nbd://host/y")).unwrap());
        let served = store.save(&record(0, 1, "nbd://host/x")).unwrap();
        drop(first);
        let refused = store.begin(2, &disk).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert!(refused.to_string().contains("already attached as /dev/nbd0"), "{refused}");
        drop(served);
        // What a daemon that has died has left is for the look before this.
        drop(store.begin(2, &disk).unwrap());
        assert_eq!(names(&store), ["nbd0.json"]);
        // As a death at this, and an older version, leave it.
        fs::write(store.begun(3), disk.text().unwrap()).unwrap();
        fs::write(store.begun(4), "").unwrap();
        drop(store.begin(2, &disk).unwrap());
    }

    #[test]
    fn both_logs_of_a_device_go_with_its_record() {
        let (_dir, store) = store();
        let (path, writer) = store.new_log().unwrap();
        fs::write(log::old(&path), "text").unwrap();
        let mut record = record(0, 7, "ram:1M");
        record.log = Some(path);
        let held = store.save(&record).unwrap();
        drop(writer);
        store.sweep().unwrap();
        assert_eq!(names(&store).len(), 3, "{:?}", names(&store));
        store.forget(&record, &held).unwrap();
        assert!(names(&store).is_empty(), "{:?}", names(&store));
    }

    #[test]
    fn that_a_flush_has_failed_is_known_as_long_as_the_device_is_on_record() {
        let (_dir, store) = store();
        let record = record(0, 7, "ram:1M");
        drop(store.save(&record).unwrap());
        let failed = store.failed_flush_of(7);
        assert!(!failed.is_noted());
        failed.note().unwrap();
        failed.note().unwrap();
        store.sweep().unwrap();
        assert!(failed.is_noted() && !store.failed_flush_of(8).is_noted());
        let held = store.claim(&record).unwrap();
        store.forget(&record, &held).unwrap();
        assert!(!failed.is_noted());
        // As a death between both leaves it.
        failed.note().unwrap();
        store.sweep().unwrap();
        assert!(names(&store).is_empty(), "{:?}", names(&store));
    }

    #[test]
    fn that_a_daemon_has_handed_over_is_believed_once_and_of_no_other() {
        let (_dir, store) = store();
        let record = record(0, 7, "ram:1M");
        let held = store.save(&record).unwrap();
        assert!(!store.take_handed_over(&record));
        store.note_handed_over(&record).unwrap();
        store.sweep().unwrap();
        assert!(store.take_handed_over(&record) && !store.take_handed_over(&record));
        // A daemon that does not look at it has served the device since.
        store.note_handed_over(&record).unwrap();
        let mut next = record.clone();
        next.pid += 1;
        assert!(!store.take_handed_over(&next) && !store.take_handed_over(&record));
        store.note_handed_over(&record).unwrap();
        store.forget(&record, &held).unwrap();
        assert!(names(&store).is_empty(), "{:?}", names(&store));
    }

    /// A daemon may be killed at any point.
    #[test]
    fn what_is_left_of_an_owner_that_died_is_swept() {
        let (_dir, store) = store();
        let begun = store.begin(0x42, &wanted("ram:1M")).unwrap();
        let (log, writer) = store.new_log().unwrap();
        let (other, _) = store.new_log().unwrap();
        assert_ne!(log, other);
        fs::write(store.directory.join(NEXT), "{\"ver").unwrap();
        fs::write(log::old(&other), "text").unwrap();
        fs::write(store.unflushed_of(0x42), "1").unwrap();
        fs::write(store.unflushed_of(0x43), "1").unwrap();
        store.sweep().unwrap();
        assert!(log.exists() && !other.exists() && !log::old(&other).exists(), "one is written to");
        assert!(store.unflushed_of(0x42).exists() && !store.unflushed_of(0x43).exists());
        let alive = BegunMark { mark: 0x42, is_served: true };
        assert_eq!(store.read().unwrap().begun, [alive]);
        store.end(0x42);
        assert_eq!(store.read().unwrap().begun, [alive]);
        // As a death leaves it.
        let path = begun.path.clone();
        drop(begun);
        fs::write(&path, "").unwrap();
        assert_eq!(store.read().unwrap().begun, [BegunMark { is_served: false, ..alive }]);
        store.end(0x42);
        drop(writer);
        store.sweep().unwrap();
        assert!(names(&store).is_empty(), "{:?}", names(&store));
    }
}
