//! `share --mount`: a directory of this machine, mounted at another place of it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockyard_export_fuse::{self as fuse, MountPoint, Place, Unmount};
use blockyard_fs::Server;
use sd_notify::NotifyState;

use super::{directory, failed, passed_through};
use crate::cli::ShareArgs;
use crate::daemon::signals::{Signals, ended_at_once};
use crate::daemon::{block_on, enter_write_back_path, extending, notify, raise_file_limit};
use crate::error::{Error, Result};
use crate::exports::fuse::{error, records};
use crate::text::term;

/// Requests at a time, unless told otherwise: that many for each CPU, within these bounds.
const THREADS_PER_CPU: usize = 2;
const THREADS: std::ops::RangeInclusive<usize> = 4..=32;
/// How long those who use it have at its end.
const GRACE: Duration = Duration::from_secs(10);

pub(super) fn run(args: &ShareArgs, mount: &Path) -> Result<()> {
    // Each file that the kernel knows is open here.
    let _ = raise_file_limit();
    // Before there are other threads: they inherit it.
    enter_write_back_path();
    let mut signals = Signals::with_a_last_word()?;
    let share = Share::start(args, mount)?;
    let (directory, path) = (directory(args).display(), share.point.path().display());
    term::tell(format_args!("serving {directory} at {path}"));
    notify(&[NotifyState::Ready]);
    block_on(async move {
        let over = tokio::select! {
            () = signals.next() => false,
            () = share.over() => true,
        };
        notify(&[NotifyState::Stopping]);
        let ending = share.end(over);
        tokio::select! {
            ended = extending(ending) => ended,
            () = signals.second() => Err(ended_at_once()),
        }
    })
}

/// A directory that is mounted.
struct Share {
    point: Arc<MountPoint>,
    is_over: Arc<AtomicBool>,
    over: tokio::sync::watch::Receiver<()>,
}

impl Share {
    fn start(args: &ShareArgs, mount: &Path) -> Result<Self> {
        apart(directory(args), mount)?;
        let records = records()?;
        let passed = passed_through(args)?;
        let place = Place {
            path: mount,
            records: &records,
            is_directory: true,
            allow_other: args.allow_other,
            read_only: args.read_only,
        };
        let (point, channel) = MountPoint::mount(&place).map_err(error)?;
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let usual = (cpus * THREADS_PER_CPU).clamp(*THREADS.start(), *THREADS.end());
        let threads = args.threads.map_or(usual, usize::from);
        let server = Server::start(channel, &passed, threads).map_err(|err| {
            point.unmount_dead();
            failed(args, err)
        })?;
        let (ended, over) = tokio::sync::watch::channel(());
        let is_over = Arc::new(AtomicBool::new(false));
        let said = Arc::clone(&is_over);
        let waiter = std::thread::Builder::new().name("share-over".into());
        let wait = move || {
            server.wait();
            said.store(true, Ordering::Release);
            drop(ended);
        };
        waiter.spawn(wait).map_err(|err| failed(args, err))?;
        Ok(Self { point: Arc::new(point), is_over, over })
    }

    /// Waits until it is not mounted any more, and nobody uses it.
    async fn over(&self) {
        let mut over = self.over.clone();
        // Nothing is ever sent: it is closed in the end.
        while over.changed().await.is_ok() {}
    }

    /// Unmounts it. Who uses it still has some seconds.
    async fn end(&self, is_over: bool) -> Result<()> {
        match self.unmount(Unmount::IfUnused).await? {
            Err(err) if err.kind() == fuse::ErrorKind::Busy => {
                let path = self.point.path().display();
                tracing::warn!(%path, "mount in use; unmounting it lazily");
                self.unmount(Unmount::Lazily).await?.map_err(error)?;
            }
            done => done.map_err(error)?,
        }
        if !is_over && tokio::time::timeout(GRACE, self.over()).await.is_err() {
            tracing::warn!("mount still in use; its users get errors from now on");
        }
        Ok(())
    }

    async fn unmount(&self, how: Unmount) -> Result<std::result::Result<(), fuse::Error>> {
        let (point, is_over) = (Arc::clone(&self.point), Arc::clone(&self.is_over));
        let done = tokio::task::spawn_blocking(move || {
            point.unmount(how, || is_over.load(Ordering::Acquire))
        });
        done.await.map_err(|err| Error::failed("cannot unmount").caused_by(err))
    }
}

/// A directory that is mounted inside of itself would be looked for by who serves it.
fn apart(directory: &Path, mount: &Path) -> Result<()> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (shared, place) = (real(directory), real(mount));
    if place.starts_with(&shared) {
        let what = format!("mount point {} is inside {}", mount.display(), directory.display());
        return Err(Error::usage(what).help("choose a mount point outside of the shared directory"));
    }
    Ok(())
}
