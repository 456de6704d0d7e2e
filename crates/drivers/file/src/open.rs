//! Opening a file as a disk: what can be wrong with it is found here, and said with what to do.

use std::fs::{self, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockyard_buf::Pool;
use blockyard_error::quoted;
use blockyard_sys::block_device;
use blockyard_sys::direct::{self, Alignment, Direct};
use blockyard_sys::lock::{Lock, LockError, LockKind};
use blockyard_sys::{Files, Operation};
use rustix::fs::{Advice, OFlags, fadvise, fdatasync};

use crate::config::FileConfig;
use crate::error::{Error, ErrorKind};

/// The unit that a disk's size is counted in.
const SECTOR: u64 = 512;
/// How often, and after which time, a device that is busy is tried again: a fifth of a second in all.
const BUSY_TRIES: u32 = 10;
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// A file that can be a disk.
pub(crate) struct Opened {
    pub(crate) files: Files,
    pub(crate) lock: Option<Lock>,
    pub(crate) is_block_device: bool,
    pub(crate) size: u64,
    /// A file for direct I/O, open through the page cache as well.
    pub(crate) buffered: Option<Arc<OwnedFd>>,
    /// What direct I/O asks for, if it was asked for.
    pub(crate) alignment: Option<Alignment>,
    /// It was not there before.
    pub(crate) made: Option<Made>,
}

/// A file that was made just now. Unless it is kept, it goes again: what failed leaves nothing behind.
pub(crate) struct Made {
    path: PathBuf,
    /// Open, so that no other file gets its inode's number.
    file: fs::File,
    keep: bool,
}

impl Made {
    fn new(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Self { path: path.to_owned(), file, keep: false })
    }

    pub(crate) fn keep(mut self) {
        self.keep = true;
    }

    /// Whether its path still leads to it.
    fn is_there(&self) -> bool {
        let id = |stat: fs::Metadata| (stat.dev(), stat.ino());
        let found = fs::symlink_metadata(&self.path).map(id);
        matches!((found, self.file.metadata().map(id)), (Ok(found), Ok(own)) if found == own)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep && self.is_there() {
            // The error that is returned is of more interest than that of this.
            let _ = fs::remove_file(&self.path);
        }
    }
}

pub(crate) fn open(config: &FileConfig) -> Result<Opened, Error> {
    let path = &config.path;
    let mut made = None;
    let is_block_device = match fs::metadata(path) {
        Ok(found) => is_block_device(path, found.file_type())?,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            made = Some(create(config)?);
            false
        }
        Err(err) => return Err(refused(config, err)),
    };
    let file = Arc::new(open_file(config, is_block_device)?);
    let lock = match take_lock_if_wanted(config, &file) {
        Err(err) if err.kind() == ErrorKind::Locked => {
            // Somebody has found the file since it was made here, and has it as a disk: it is theirs now.
            if let Some(made) = made {
                made.keep();
            }
            return Err(err);
        }
        lock => lock?,
    };
    let size = size(config, file.as_fd(), is_block_device)?;
    let alignment =
        if config.direct { Some(alignment(path, file.as_fd(), is_block_device)?) } else { None };
    check_size(config, size, is_block_device)?;
    if is_block_device
        && !config.read_only
        && block_device::is_read_only(file.as_fd()).unwrap_or(false)
    {
        let shown = path.display();
        let error = Error::new(ErrorKind::NotPermitted, format!("{shown} is a read-only device"));
        return Err(
            error.help(format!("open it read-only, or run: blockdev --setrw {}", quoted(path)))
        );
    }
    if config.direct && !config.read_only {
        empty_the_cache(path, &file)?;
    }
    let buffered = config.direct.then(|| for_tail(config, &file).map(Arc::new)).transpose()?;
    // Nothing was written yet, so that it hears of all that is.
    let sync = if config.read_only { Arc::clone(&file) } else { Arc::new(for_syncs(path, &file)?) };
    let files = Files { data: file, sync };
    Ok(Opened { files, lock, is_block_device, size, buffered, alignment, made })
}

fn take_lock_if_wanted(config: &FileConfig, file: &Arc<OwnedFd>) -> Result<Option<Lock>, Error> {
    config.lock.then(|| take_lock(config, file)).transpose()
}

/// What others have left in the page cache is written first: a page that is dirty, or just being written, when a direct write
/// comes to it cannot be dropped, and the kernel then fails the next flush (`dio_warn_stale_pagecache`).
fn empty_the_cache(path: &Path, file: &OwnedFd) -> Result<(), Error> {
    fdatasync(file).map_err(|err| {
        let what = format!("earlier writes to {} are not durable", path.display());
        Error::io(what, err.into())
    })?;
    // Clean pages that somebody holds are dropped as they are written to.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    Ok(())
}

fn for_syncs(path: &Path, file: &OwnedFd) -> Result<OwnedFd, Error> {
    open_again(file).map_err(|err| {
        let what = format!("cannot reopen {} for flushes", path.display());
        Error::io(what, err)
    })
}

/// A file may end, or come to end, or be shown to, in the middle of what direct I/O can reach.
fn for_tail(config: &FileConfig, file: &OwnedFd) -> Result<OwnedFd, Error> {
    open_once_more(file, !config.read_only).map_err(|err| {
        let path = config.path.display();
        Error::io(format!("cannot reopen {path} for its tail"), err)
    })
}

/// The same file with an open file description of its own, for writing; by proc(5), as its path may be another's by now.
pub(crate) fn open_again(file: &OwnedFd) -> io::Result<OwnedFd> {
    open_once_more(file, true)
}

fn open_once_more(file: &OwnedFd, write: bool) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(OpenOptions::new().read(true).write(write).open(path)?.into())
}

fn is_block_device(path: &Path, kind: FileType) -> Result<bool, Error> {
    let what = match kind {
        kind if kind.is_file() => return Ok(false),
        kind if kind.is_block_device() => return Ok(true),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a pipe",
        kind if kind.is_socket() => "a socket",
        _ => "a character device",
    };
    let what =
        format!("{} is {what}; a disk needs a regular file or a block device", path.display());
    Err(Error::new(ErrorKind::NotAFile, what))
}

/// Makes the file, and sees to it that it is still there after a power cut.
fn create(config: &FileConfig) -> Result<Made, Error> {
    let path = &config.path;
    let Some(size) = config.create_size else {
        let shown = path.display();
        let remedy = if path.starts_with("/dev") {
            "list the devices: lsblk -p".to_owned()
        } else if config.read_only {
            "correct the path".to_owned()
        } else {
            let uri = quoted(format!("file:{shown}?create=1G"));
            format!("run: truncate -s 1G {}; or use the URI {uri}", quoted(path))
        };
        let error = Error::new(ErrorKind::NotFound, format!("{shown} does not exist"));
        return Err(error.help(remedy));
    };
    if config.read_only {
        let what =
            format!("{} does not exist, and a new read-only disk would stay empty", path.display());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    check_size(config, size, false)?;
    let made = || -> io::Result<Made> {
        let made = Made::new(path)?;
        made.file.set_len(size)?;
        made.file.sync_all()?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(made)
    };
    made().map_err(|err| {
        let what = match err.kind() {
            io::ErrorKind::NotFound => {
                format!("cannot create {}: its directory does not exist", path.display())
            }
            _ => format!("cannot create {} with {size} bytes", path.display()),
        };
        Error::io(what, err)
    })
}

fn open_file(config: &FileConfig, is_block_device: bool) -> Result<OwnedFd, Error> {
    let mut flags = OFlags::CLOEXEC;
    if config.direct {
        flags |= OFlags::DIRECT;
    }
    // For a block device this means: not while it is mounted, or part of another device (open(2)).
    if is_block_device && config.lock && !config.read_only {
        flags |= OFlags::EXCL;
    }
    let mut options = OpenOptions::new();
    options.read(true).write(!config.read_only).custom_flags(flags.bits().cast_signed());
    match patiently(|| options.open(&config.path)) {
        Ok(file) => Ok(file.into()),
        Err(err) if config.direct && err.kind() == io::ErrorKind::InvalidInput => {
            Err(no_direct(&config.path))
        }
        Err(err) => Err(refused(config, err)),
    }
}

/// A device that was just closed may still be held by the kernel's own threads, which complete asynchronous
/// I/O: it is given a moment.
fn patiently(mut open: impl FnMut() -> io::Result<fs::File>) -> io::Result<fs::File> {
    for _ in 0..BUSY_TRIES {
        match open() {
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(BUSY_WAIT),
            opened => return opened,
        }
    }
    open()
}

fn refused(config: &FileConfig, err: io::Error) -> Error {
    let (path, word) = (config.path.display(), quoted(&config.path));
    let (what, remedy) = match err.kind() {
        io::ErrorKind::PermissionDenied if config.read_only => {
            ("is not readable by this user", format!("see: ls -l {word}"))
        }
        io::ErrorKind::PermissionDenied => {
            ("is not writable by this user", format!("open it read-only, or see: ls -l {word}"))
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            ("is on a read-only file system", "open it read-only: read_only=1".to_owned())
        }
        io::ErrorKind::ResourceBusy => ("is in use, perhaps mounted", format!("see: lsblk {word}")),
        _ => return Error::io(format!("cannot open {path}"), err),
    };
    Error::io(format!("{path} {what}"), err).help(remedy)
}

fn no_direct(path: &Path) -> Error {
    let what = format!("the file system of {} does not support direct I/O", path.display());
    Error::new(ErrorKind::NotSupported, what).help("omit direct=1")
}

fn take_lock(config: &FileConfig, file: &Arc<OwnedFd>) -> Result<Lock, Error> {
    let (path, word) = (config.path.display(), quoted(&config.path));
    let kind = if config.read_only { LockKind::Shared } else { LockKind::Exclusive };
    Lock::take(file, kind).map_err(|err| match err {
        LockError::Held { kind: LockKind::Exclusive, qemu: true, .. } if config.read_only => {
            let what = format!("{path} is in use by QEMU, which writes to it; reads may be torn");
            let remedy = format!("stop QEMU (see: fuser -v {word}), or add lock=0 to read anyway");
            Error::new(ErrorKind::Locked, what).help(remedy).caused_by(err)
        }
        LockError::Held { kind: LockKind::Shared, qemu, .. } => {
            let who = if qemu { "QEMU, as a reader" } else { "a reader" };
            let remedy = format!(
                "open the file read-only, or stop the other process (see: fuser -v {word})"
            );
            Error::new(ErrorKind::Locked, format!("{path} is in use by {who}"))
                .help(remedy)
                .caused_by(err)
        }
        LockError::Held { qemu, .. } => {
            let who = if qemu { "QEMU, as a writer" } else { "a writer" };
            let what = format!("{path} is in use by {who}; a second writer would corrupt it");
            let remedy = format!("stop the other process (see: fuser -v {word})");
            Error::new(ErrorKind::Locked, what).help(remedy).caused_by(err)
        }
        LockError::Failed(_) => {
            let what = format!("the file system of {path} does not support locks");
            let remedy = "add lock=0 if no other process uses the file";
            Error::new(ErrorKind::NotSupported, what).help(remedy).caused_by(err)
        }
    })
}

fn size(config: &FileConfig, file: BorrowedFd<'_>, is_block_device: bool) -> Result<u64, Error> {
    let path = config.path.display();
    size_now(file, is_block_device)
        .map_err(|err| Error::io(format!("cannot determine the size of {path}"), err))
}

fn check_size(config: &FileConfig, size: u64, is_block_device: bool) -> Result<(), Error> {
    let path = config.path.display();
    let what = if size == 0 && is_block_device {
        format!("{path} is empty: no medium, or no backing device")
    } else if size > i64::MAX as u64 / SECTOR * SECTOR {
        format!("{path} is too large: {size} bytes of at most 2^63 - 512")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Size, what))
}

/// Bytes in the file or on the device, now.
pub(crate) fn size_now(file: BorrowedFd<'_>, is_block_device: bool) -> io::Result<u64> {
    if is_block_device {
        return block_device::size(file);
    }
    Ok(u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0))
}

/// What the kernel says, else what the device says, else what a read finds out.
fn alignment(path: &Path, file: BorrowedFd<'_>, is_block_device: bool) -> Result<Alignment, Error> {
    let asked = direct::alignment(file).map_err(|err| {
        Error::io(format!("cannot determine the alignment of {}", path.display()), err)
    })?;
    match asked {
        Direct::Aligned(alignment) => return Ok(alignment),
        Direct::Refused => return Err(no_direct(path)),
        Direct::Unknown => {}
    }
    if is_block_device && let Ok(block) = block_device::logical_block_size(file) {
        return Ok(Alignment { memory: block, offset: block });
    }
    let buffer = Pool::default().get(4096).into_segment_mut(4096);
    for align in [512, 4096] {
        let memory = std::iter::once(buffer.slice(0, align as usize)).collect();
        let tried = Operation::Read { offset: 0, memory }.run(file);
        if tried.is_ok() {
            return Ok(Alignment { memory: align, offset: align });
        }
    }
    Err(no_direct(path))
}
