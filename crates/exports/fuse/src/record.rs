//! What is on record of mounts: which of those that a killed server has left behind are ours.
//!
//! | file | what | locked by |
//! | --- | --- | --- |
//! | `MARK.json` | a mount with that mark is being made, or there is one | its server, as long as it lives |
//! | `.MARK.next` | the same, while it is written | |
//!
//! A mark is part of what the mount says it was mounted from, so that no other mount at the same place is mistaken for it. The
//! record is there, and locked, before the mount is. The kernel lets go of a lock when its owner has died, in whatever PID
//! namespace that was: a record that is not locked is of a server that is dead. What cannot be read is somebody's.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
const EXTENSION: &str = "json";

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
}

/// A record, locked by this process. It stays, unlocked, unless it is [removed](Self::remove).
#[derive(Debug)]
pub(crate) struct Held {
    record: Record,
    path: PathBuf,
    _lock: Lock,
}

impl Held {
    /// Takes the mount away if it is there still, though nobody serves it.
    pub(crate) fn unmount_dead(&self) -> io::Result<()> {
        if is_mounted(&self.record)? { fuse::unmount_dead(&self.record.path) } else { Ok(()) }
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
    let failed = |err| Error::io(format!("{} cannot be written to", directory.display()), err);
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let record = Record {
        version: VERSION,
        mark: mark.to_owned(),
        path: target.to_owned(),
        pid: std::process::id(),
    };
    let text = serde_json::to_vec(&record).map_err(|err| {
        let what =
            format!("{} cannot be put on record: use a path that is UTF-8", target.display());
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
    let failed = |err| Error::io(format!("{} cannot be read", directory.display()), err);
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
                tracing::warn!(path = %path.display(), %err, "this record of a mount is left alone");
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
        let what = format!("it is of version {}, and this program knows {VERSION}", record.version);
        return Err(io::Error::other(what));
    }
    if path.file_stem().is_none_or(|stem| stem != record.mark.as_str()) {
        return Err(io::Error::other("it is of another mount than its name says"));
    }
    Ok(Some(Held { record, path, _lock: lock }))
}

fn is_mounted(record: &Record) -> io::Result<bool> {
    let source = source(&record.mark);
    let is_it = |mount: &fuse::MountInfo| {
        mount.kind == KIND && mount.source == source && mount.target == record.path
    };
    Ok(fuse::mounts()?.iter().any(is_it))
}

/// What killed servers have left behind, by the records in `directory`.
///
/// # Errors
/// The records, or the list of mounts, cannot be read.
pub fn leftovers(directory: &Path) -> Result<Vec<Leftover>, Error> {
    let look = |held: Held| {
        let mounted = is_mounted(&held.record).map_err(no_mounts)?;
        Ok(leftover(&held.record, if mounted { Left::Mounted } else { Left::Nothing }))
    };
    find(directory)?.into_iter().map(look).collect()
}

fn leftover(record: &Record, left: Left) -> Leftover {
    Leftover { path: record.path.clone(), pid: record.pid, left }
}

fn no_mounts(err: io::Error) -> Error {
    Error::io("the list of mounts cannot be read", err)
}

/// Takes away what killed servers have left behind, by the records in `directory`, and says what that was. Mounts of others,
/// and of servers that live, are left alone.
///
/// # Errors
/// The records, or the list of mounts, cannot be read.
pub fn clean_up(directory: &Path) -> Result<Vec<Leftover>, Error> {
    let mut cleaned = Vec::new();
    for held in find(directory)? {
        let mut left = Left::Nothing;
        if is_mounted(&held.record).map_err(no_mounts)? {
            left = match fuse::unmount_dead(&held.record.path) {
                Ok(()) => Left::Cleaned,
                Err(err) => Left::Stuck(err.to_string()),
            };
        }
        let is_stuck = matches!(left, Left::Stuck(_));
        cleaned.push(leftover(&held.record, left));
        if !is_stuck {
            held.remove();
        }
    }
    Ok(cleaned)
}

/// The error of somebody else's dead mount at `path`.
pub(crate) fn not_ours(path: &Path) -> Error {
    let what = format!(
        "{} is what is left of a file system whose server is dead, and not one of ours; run: umount -l {}",
        path.display(),
        path.display()
    );
    Error::new(ErrorKind::Unsuitable, what)
}
