//! What is on record of mounts: which of those that a killed server has left behind are ours.
//!
//! | file | what | locked by |
//! | --- | --- | --- |
//! | `MARK.json` | a mount with that mark is being made, or there is one | its server, as long as it lives |
//! | `.MARK.next` | the same, while it is written | |
//!
//! A mark is part of what the mount says it was mounted from: by it alone a mount is found, wherever it is by now, and no other
//! at the same place is mistaken for it. It is unmounted where the list of mounts shows it, if a path leads there and not into
//! what others have mounted upon it. The list is that of a mount namespace, which is on record: what is seen in another one
//! are copies.
//!
//! The record is there, and locked, before the mount is. The kernel lets go of a lock when its owner has died, in whatever PID
//! namespace that was: a record that is not locked is of a server that is dead. What cannot be read is somebody's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_error::quoted;
use blockyard_sys::fuse;
use blockyard_sys::lock::{Lock, LockError, LockKind};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The form of the files.
const VERSION: u32 = 1;
/// The largest record that is read.
const MAX_BYTES: u64 = 64 << 10;
/// What mounts say they are.
pub(crate) const SUBTYPE: &str = "blockyard";
const KIND: &str = "fuse.blockyard";
/// How the error of a mount ends that another one is upon.
pub(crate) const COVERED: &str = "is covered by another mount";
const EXTENSION: &str = "json";
/// Mounts with one mark that are taken away in one go: copies of it are mounted by others (`mount --bind`).
const MAX_COPIES: usize = 64;

/// A mount that a dead server has left behind, or will not have: its record says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Where it is mounted.
    pub path: PathBuf,
    /// The process that served it.
    pub pid: u32,
    /// What became of it.
    pub left: Left,
}

/// What is left of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// A mount point that answers nothing.
    Mounted,
    /// Nothing but its record.
    Nothing,
    /// The mount is gone now, and its record.
    Cleaned,
    /// It is still there, for this reason.
    Stuck(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    mark: String,
    path: PathBuf,
    pid: u32,
    /// The mount namespace that it is mounted in. What an older version has recorded has none.
    #[serde(default)]
    namespace: Option<String>,
}

/// A record, locked by this process. It stays, unlocked, unless it is [removed](Self::remove).
#[derive(Debug)]
pub(crate) struct Held {
    record: Record,
    path: PathBuf,
    _lock: Lock,
}

impl Held {
    /// Takes the mount away by `unmount`, wherever it is, and all copies of it in this namespace. That there is none is as
    /// good. Says where the last one was.
    pub(crate) fn unmount(
        &self,
        unmount: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<Option<PathBuf>> {
        let mut last = None;
        for _ in 0..MAX_COPIES {
            let mounts = fuse::mounts()?;
            // One that was mounted later may be upon another.
            let Some(mount) = mounts.iter().rev().find(|mount| is_of(&self.record, mount)) else {
                return Ok(last);
            };
            if fuse::reached(&mounts, &mount.target).is_none_or(|other| other.id != mount.id) {
                let what = format!("{} {COVERED}", mount.target.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
            }
            if let Err(err) = unmount(&mount.target) {
                // Somebody else may have been faster.
                if fuse::mounts()?.iter().any(|other| other.id == mount.id) {
                    return Err(err);
                }
            }
            last = Some(mount.target.clone());
        }
        Err(io::Error::other("new copies of the mount keep appearing"))
    }

    /// The mount is gone.
    pub(crate) fn remove(self) {
        // Somebody may have removed the directory.
        let _ = fs::remove_file(&self.path);
    }
}

/// What a mount with this mark says that it was mounted from.
pub(crate) fn source(mark: &str) -> String {
    format!("{SUBTYPE}:{mark}")
}

/// Puts a mount on record that is about to be made at `target`.
pub(crate) fn begin(directory: &Path, mark: &str, target: &Path) -> Result<Held, Error> {
    let failed = |err| Error::io(format!("cannot write to {}", directory.display()), err);
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let record = Record {
        version: VERSION,
        mark: mark.to_owned(),
        path: target.to_owned(),
        pid: std::process::id(),
        namespace: namespace("self").ok(),
    };
    let text = serde_json::to_vec(&record).map_err(|err| {
        let what =
            format!("cannot record the mount at {}: the path is not UTF-8", target.display());
        Error::io(what, err.into())
    })?;
    let next = directory.join(format!(".{mark}.next"));
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).read(true).write(true).mode(0o600).open(&next)?;
        file.write_all(&text)?;
        let file: Arc<OwnedFd> = Arc::new(file.into());
        let lock = Lock::take(&file, LockKind::Exclusive).map_err(io::Error::other)?;
        let path = directory.join(format!("{mark}.{EXTENSION}"));
        fs::rename(&next, &path)?;
        Ok((path, lock))
    })();
    match written {
        Ok((path, lock)) => Ok(Held { record, path, _lock: lock }),
        Err(err) => {
            let _ = fs::remove_file(&next);
            Err(failed(err))
        }
    }
}

/// Records in `directory` whose servers are dead, locked by this process now; none if there is no directory.
fn find(directory: &Path) -> Result<Vec<Held>, Error> {
    let failed = |err| Error::io(format!("cannot read {}", directory.display()), err);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(failed(err)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        match dead(path.clone()) {
            Ok(Some(dead)) => found.push(dead),
            Ok(None) => {}
            Err(err) => {
                tracing::warn!(path = %path.display(), error = %err, "mount record ignored");
            }
        }
    }
    Ok(found)
}

/// The record, if its server is dead.
fn dead(path: PathBuf) -> io::Result<Option<Held>> {
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let file = match opened {
        Ok(file) => file,
        // Its mount went away meanwhile.
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut text = Vec::new();
    file.try_clone()?.take(MAX_BYTES).read_to_end(&mut text)?;
    let file: Arc<OwnedFd> = Arc::new(File::into(file));
    let lock = match Lock::take(&file, LockKind::Exclusive) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => return Ok(None),
        Err(LockError::Failed(err)) => return Err(err),
    };
    let record: Record = serde_json::from_slice(&text)?;
    if record.version != VERSION {
        let what = format!("record version {} is not supported, only {VERSION}", record.version);
        return Err(io::Error::other(what));
    }
    if path.file_stem().is_none_or(|stem| stem != record.mark.as_str()) {
        return Err(io::Error::other("the record does not belong to its file name"));
    }
    Ok(Some(Held { record, path, _lock: lock }))
}

fn is_of(record: &Record, mount: &fuse::MountInfo) -> bool {
    mount.kind == KIND && mount.source == source(&record.mark)
}

/// The mount namespace of a process, as `mnt:[4026531841]` (namespaces(7)).
fn namespace(process: &str) -> io::Result<String> {
    let link = fs::read_link(Path::new("/proc").join(process).join("ns/mnt"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// Why the mounts of this namespace say nothing of the record: it is of another one, which somebody may be in. One that
/// nobody is in has taken its mounts along. Its number may have been given to another since: then it is cleaned up later.
fn elsewhere(record: &Record) -> io::Result<Option<String>> {
    let Some(other) =
        record.namespace.as_deref().filter(|_| record.namespace != namespace("self").ok())
    else {
        return Ok(None);
    };
    for process in fs::read_dir("/proc")? {
        let name = process?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else { continue };
        // One that may not be looked at is somebody else's, as pid 1 may be for ever: it does not count.
        let is_there = namespace(pid).is_ok_and(|namespace| namespace == other);
        if is_there {
            return Ok(Some(format!(
                "mounted in the mount namespace of process {pid}; run: nsenter -t {pid} -m umount -l {}",
                quoted(&record.path)
            )));
        }
    }
    Ok(None)
}

/// What killed servers have left behind, by the records in `directory`.
///
/// # Errors
/// The records, or the list of mounts, cannot be read.
pub fn leftovers(directory: &Path) -> Result<Vec<Leftover>, Error> {
    let look = |held: Held| {
        let record = &held.record;
        if let Some(why) = elsewhere(record).map_err(no_mounts)? {
            return Ok(leftover(record, None, Left::Stuck(why)));
        }
        let mounts = fuse::mounts().map_err(no_mounts)?;
        let mount = mounts.into_iter().rev().find(|mount| is_of(record, mount));
        let left = if mount.is_some() { Left::Mounted } else { Left::Nothing };
        Ok(leftover(record, mount.map(|mount| mount.target), left))
    };
    find(directory)?.into_iter().map(look).collect()
}

/// Where it is, or where it was mounted.
fn leftover(record: &Record, path: Option<PathBuf>, left: Left) -> Leftover {
    let path = path.unwrap_or_else(|| record.path.clone());
    Leftover { path, pid: record.pid, left }
}

fn no_mounts(err: io::Error) -> Error {
    Error::io("cannot read the list of mounts", err)
}

/// Takes away what killed servers have left behind, by the records in `directory`, and says what that was. Mounts of others,
/// and of servers that live, are left alone.
///
/// # Errors
/// The records, or the list of mounts, cannot be read.
pub fn clean_up(directory: &Path) -> Result<Vec<Leftover>, Error> {
    let mut cleaned = Vec::new();
    for held in find(directory)? {
        let (path, left) = match elsewhere(&held.record).map_err(no_mounts)? {
            Some(why) => (None, Left::Stuck(why)),
            None => match held.unmount(fuse::unmount_dead) {
                Ok(None) => (None, Left::Nothing),
                Ok(path) => (path, Left::Cleaned),
                Err(err) => (None, Left::Stuck(err.to_string())),
            },
        };
        let is_stuck = matches!(left, Left::Stuck(_));
        cleaned.push(leftover(&held.record, path, left));
        if !is_stuck {
            held.remove();
        }
    }
    Ok(cleaned)
}

/// Refuses a path that is one of our mounts already, here or of another process.
pub(crate) fn refuse_ours(path: &Path) -> Result<(), Error> {
    let mounts = fuse::mounts().map_err(no_mounts)?;
    match fuse::reached(&mounts, path) {
        Some(mount) if mount.kind == KIND && mount.target == path => {
            let shown = path.display();
            Err(Error::new(ErrorKind::Busy, format!("{shown} is already a mount of Blockyard"))
                .help("stop the daemon that serves it, or use another path"))
        }
        _ => Ok(()),
    }
}

/// The error of somebody else's dead mount at `path`.
pub(crate) fn not_ours(path: &Path) -> Error {
    let shown = path.display();
    let what = format!("{shown} is the mount of a dead FUSE server of another program");
    Error::new(ErrorKind::Unsuitable, what).help(format!("run: umount -l {}", quoted(path)))
}
