//! Directories of this machine that are mounted at another place of it, and what they have in common with those in virtual
//! machines. A daemon that shares one has no umask, and serves nothing else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_fuse::{self as fuse, MountPoint, Place, Unmount};
use blockyard_fs::{FileSystem, Options, Passthrough, Server};
use rustix::fs::Mode;

use super::fuse::{error, not_unmounted, records};
use super::{Bound, Doing, Export, ExportKind, only_by_command};
use crate::error::{Error, Result};
use crate::yard::report;

/// The kind of directories that are mounted elsewhere.
pub static KIND: ExportKind = ExportKind {
    // No disk is named.
    whole_yard: true,
    local_kernel: true,
    ..ExportKind::new("share", "", "a directory mounted at another place", only_by_command)
};

/// Requests at a time, unless told otherwise: that many for each CPU, within these bounds.
const THREADS_PER_CPU: usize = 2;
const THREADS: std::ops::RangeInclusive<usize> = 4..=32;

/// A directory to share.
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// How it is passed through.
    pub options: Options,
}

impl Directory {
    pub(super) fn passed_through(&self) -> Result<Arc<dyn FileSystem>> {
        // What it is to take away, the client's kernel has taken from what programs ask for.
        rustix::process::umask(Mode::empty());
        match Passthrough::new(&self.path, self.options) {
            Ok(passed) => Ok(Arc::new(passed)),
            Err(err) => Err(self.failed(err)),
        }
    }

    fn failed(&self, err: io::Error) -> Error {
        let what = format!("cannot share {}", self.path.display());
        let remedy = match err.kind() {
            io::ErrorKind::NotFound => "create it, or correct the path",
            io::ErrorKind::NotADirectory => "share the directory that it is in",
            _ => return Error::failed(what).caused_by(err),
        };
        Error::failed(what).caused_by(err).help(remedy)
    }
}

/// Where a directory is mounted.
pub struct MountAt {
    /// An existing directory, outside of it.
    pub path: PathBuf,
    /// Other users may use it.
    pub allow_other: bool,
    /// Requests at a time.
    pub threads: Option<u16>,
}

/// Looks whether it can be mounted there; that is done when the export starts.
///
/// # Errors
/// What keeps it from being shared there.
pub fn bind(directory: Directory, at: MountAt) -> Result<Bound> {
    apart(&directory.path, &at.path)?;
    let passed = directory.passed_through()?;
    let share = Share { directory, at, passed, mount: OnceLock::new(), is_over: Arc::default() };
    Ok(Box::new(|_| Ok(Arc::new(share))))
}

/// A directory that is inside of itself would be looked for by who serves it.
fn apart(directory: &Path, mount: &Path) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (shared, place) = (real(directory), real(mount));
    if place.starts_with(&shared) {
        let what = format!("mount point {} is inside {}", mount.display(), directory.display());
        return Err(Error::usage(what).help("choose a mount point outside of the shared directory"));
    }
    Ok(())
}

/// A directory that is shared, and its mount once that is there.
struct Share {
    directory: Directory,
    at: MountAt,
    passed: Arc<dyn FileSystem>,
    mount: OnceLock<Mounted>,
    is_over: Arc<AtomicBool>,
}

struct Mounted {
    point: Arc<MountPoint>,
    /// Closed when it is not mounted any more, and nobody uses it.
    over: tokio::sync::watch::Receiver<()>,
}

impl Mounted {
    async fn over(&self) {
        let mut over = self.over.clone();
        // Nothing is ever sent.
        while over.changed().await.is_ok() {}
    }
}

impl Share {
    fn mounted(&self) -> Result<Mounted> {
        let Self { directory, at, .. } = self;
        let records = records()?;
        let place = Place {
            path: &at.path,
            records: &records,
            is_directory: true,
            allow_other: at.allow_other,
            read_only: directory.options.read_only,
        };
        let (point, channel) = MountPoint::mount(&place).map_err(error)?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let usual = (cpus * THREADS_PER_CPU).clamp(*THREADS.start(), *THREADS.end());
        let threads = at.threads.map_or(usual, usize::from);
        let server = Server::start(channel, &self.passed, threads).map_err(|err| {
            point.unmount_dead();
            directory.failed(err)
        })?;
        let (ended, over) = tokio::sync::watch::channel(());
        let said = Arc::clone(&self.is_over);
        let waiter = std::thread::Builder::new().name("share-over".into());
        let wait = move || {
            server.wait();
            said.store(true, Ordering::Release);
            drop(ended);
        };
        waiter.spawn(wait).map_err(|err| directory.failed(err))?;
        Ok(Mounted { point: Arc::new(point), over })
    }

    async fn unmount(&self, mounted: &Mounted, how: Unmount) -> Result<Result<(), fuse::Error>> {
        let (point, is_over) = (Arc::clone(&mounted.point), Arc::clone(&self.is_over));
        let done = tokio::task::spawn_blocking(move || {
            point.unmount(how, || is_over.load(Ordering::Acquire))
        });
        done.await.map_err(|err| Error::failed("cannot unmount").caused_by(err))
    }
}

impl Export for Share {
    fn start(&self) -> Result<()> {
        // It is started once.
        let _ = self.mount.set(self.mounted()?);
        Ok(())
    }

    fn end(&self, clients: Duration, _grace: Duration) -> Doing<'_, Result<()>> {
        Box::pin(async move {
            let Some(mounted) = self.mount.get() else { return Ok(()) };
            let (was_over, point) = (self.is_over(), &mounted.point);
            let mut unmounted = self.unmount(mounted, Unmount::IfUnused).await?;
            if matches!(&unmounted, Err(err) if err.kind() == fuse::ErrorKind::Busy) {
                let path = point.path().display();
                tracing::warn!(%path, "mount in use; unmounting it lazily");
                unmounted = self.unmount(mounted, Unmount::Lazily).await?;
            }
            unmounted.map_err(|err| not_unmounted(point.path(), point.is_mounted(), err))?;
            if !was_over && tokio::time::timeout(clients, mounted.over()).await.is_err() {
                tracing::warn!("mount still in use; its users get errors from now on");
            }
            Ok(())
        })
    }

    fn deserted(&self) -> Option<Doing<'_>> {
        Some(Box::pin(self.mount.get()?.over()))
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn report(&self) -> report::Served {
        let Some(mounted) = self.mount.get() else { return report::Served::default() };
        report::Served {
            address: Some(format!("fuse:{}", mounted.point.path().display())),
            clients: u64::from(!self.is_over()),
            ..report::Served::default()
        }
    }
}
