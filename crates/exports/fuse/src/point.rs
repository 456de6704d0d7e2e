//! A place that a file system of ours is mounted at, on record.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};

use blockyard_error::quoted;
use blockyard_sys::fuse::{self, Channel, MountOptions, Unmount};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind};
use crate::record::{self, Held, SUBTYPE};

/// Where a file system is to be mounted, and how.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// A file or a directory.
    pub path: &'a Path,
    /// The directory of the records of mounts.
    pub records: &'a Path,
    /// Its root is a directory.
    pub is_directory: bool,
    /// Other users may use it, as far as its modes let them.
    pub allow_other: bool,
    /// Nothing can be changed.
    pub read_only: bool,
}

impl Place<'_> {
    /// Takes away what killed servers of ours have left, here too, and looks whether a file system can be mounted here. Says what
    /// its absolute path is. [`MountPoint::mount`] does the same.
    ///
    /// # Errors
    /// As those of [`MountPoint::mount`].
    pub fn prepare(&self) -> Result<PathBuf, Error> {
        clean_up(self.records)?;
        target(self.path, self.is_directory)
    }
}

/// A mounted file system, as long as it is on record. Dropping it does not unmount it.
pub struct MountPoint {
    path: PathBuf,
    /// Until it is unmounted by us.
    record: Mutex<Option<Held>>,
}

impl MountPoint {
    /// Mounts a file system, whose first request is soon on the channel. What a killed server of ours has left there is taken
    /// away before.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where there is no FUSE, [`ErrorKind::NotFound`] and [`ErrorKind::Unsuitable`] if the path is
    /// not what can be mounted on, and what else keeps it from being mounted. Nothing of it is left then.
    pub fn mount(place: &Place<'_>) -> Result<(Self, Channel), Error> {
        let path = place.prepare()?;
        let mark = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let record = record::begin(place.records, &mark, &path)?;
        let options = MountOptions {
            source: &record::source(&mark),
            subtype: SUBTYPE,
            directory: place.is_directory,
            allow_other: place.allow_other,
            read_only: place.read_only,
        };
        match fuse::mount(&path, &options) {
            Ok(channel) => Ok((Self { path, record: Mutex::new(Some(record)) }, channel)),
            Err(err) => {
                record.remove();
                Err(cannot_mount(&path, err))
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it could not be unmounted, or nobody has tried.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.record.lock().is_some()
    }

    /// Unmounts it as what a killed server has left: nobody has its device any more.
    pub fn unmount_dead(&self) {
        let mut held = self.record.lock();
        let Some(record) = held.take() else { return };
        match record.unmount(fuse::unmount_dead) {
            Ok(_) => record.remove(),
            Err(err) => {
                tracing::warn!(path = %self.path.display(), error = %err, "cannot unmount; the mount is left behind");
            }
        }
    }

    /// Unmounts it, unless that was done before; one whose session is over needs nobody to serve that. Must not be called on a
    /// thread that serves it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is used, or another mount covers it; what the system says.
    pub fn unmount(&self, how: Unmount, is_over: impl Fn() -> bool) -> Result<(), Error> {
        let mut held = self.record.lock();
        let Some(record) = &*held else { return Ok(()) };
        let unmounted = record.unmount(|path| {
            if is_over() {
                return fuse::unmount_dead(path);
            }
            match fuse::unmount(path, how) {
                // Who has ended the session may have left the mount.
                Err(_) if is_over() => fuse::unmount_dead(path),
                Err(err) if err.kind() == io::ErrorKind::ResourceBusy => {
                    Err(io::Error::new(err.kind(), "files are open in it"))
                }
                done => done,
            }
        });
        if let Err(err) = unmounted {
            let (path, word) = (self.path.display(), quoted(&self.path));
            if err.kind() == io::ErrorKind::ResourceBusy {
                let what = format!("cannot unmount {path}: {err}");
                let is_covered = what.ends_with(record::COVERED);
                return Err(Error::new(ErrorKind::Busy, what).help(if is_covered {
                    format!("unmount the other one first: umount {word}")
                } else {
                    format!("close its files, or run: umount -l {word}")
                }));
            }
            return Err(Error::io(format!("cannot unmount {path}"), err));
        }
        if let Some(record) = held.take() {
            record.remove();
        }
        Ok(())
    }
}

/// Takes away what killed servers of ours have left.
fn clean_up(records: &Path) -> Result<(), Error> {
    for leftover in record::clean_up(records)? {
        let (path, pid) = (leftover.path.display(), leftover.pid);
        match leftover.left {
            record::Left::Stuck(why) => {
                tracing::warn!(%path, pid, error = why, "mount of a dead daemon not cleaned up");
            }
            _ => tracing::info!(%path, pid, "mount of a dead daemon cleaned up"),
        }
    }
    Ok(())
}

/// The absolute path of what is mounted on.
fn target(path: &Path, is_directory: bool) -> Result<PathBuf, Error> {
    /// `ENOTCONN`: there is a file system, and its server is dead.
    const DEAD: i32 = 107;
    let failed = |err: io::Error| {
        if err.raw_os_error() == Some(DEAD) {
            return record::not_ours(path);
        }
        let make = if is_directory { "mkdir" } else { "touch" };
        let shown = path.display();
        let is_missing = err.kind() == io::ErrorKind::NotFound;
        let error = Error::io(format!("cannot mount on {shown}"), err);
        if is_missing { error.help(format!("run: {make} {}", quoted(path))) } else { error }
    };
    let path = std::fs::canonicalize(path).map_err(failed)?;
    let found = std::fs::metadata(&path).map_err(failed)?;
    if found.is_dir() != is_directory || !(found.is_dir() || found.is_file()) {
        let what = if is_directory {
            format!("{} is not a directory", path.display())
        } else {
            format!("{} is not a regular file", path.display())
        };
        return Err(Error::new(ErrorKind::Unsuitable, what));
    }
    record::refuse_ours(&path)?;
    Ok(path)
}

fn cannot_mount(path: &Path, err: io::Error) -> Error {
    /// `ENODEV`: the kernel knows no such file system.
    const UNKNOWN: i32 = 19;
    let shown = path.display();
    match err.kind() {
        _ if err.raw_os_error() == Some(UNKNOWN) => {
            let what = format!("cannot mount on {shown}: the kernel has no FUSE");
            Error::new(ErrorKind::Unavailable, what).help("run: modprobe fuse").caused_by(err)
        }
        io::ErrorKind::NotFound => {
            let what = format!("cannot mount on {shown}: /dev/fuse or fusermount3 is missing");
            Error::new(ErrorKind::Unavailable, what)
                .help("install fuse3; as root, run: modprobe fuse")
                .caused_by(err)
        }
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::NotPermitted, format!("cannot mount on {shown}"))
                .help(
                    "use a file or directory of your own; --allow-other needs user_allow_other in \
                     /etc/fuse.conf",
                )
                .caused_by(err)
        }
        _ => Error::io(format!("cannot mount on {shown}"), err),
    }
}
