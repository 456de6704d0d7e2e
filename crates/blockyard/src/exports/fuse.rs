//! Disks as files: one at a path, or all of a yard in a directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_fuse::{self as fuse, Cache, Config, Mount, Shown};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{Bound, Doing, Export, ExportKind, ExportPlan, FrontDisk, bdev};
use crate::api::{make_runtime_dir, runtime_dir};
use crate::disks::{OpenDisk, OptionSpec, Settings, ValueKind};
use crate::error::{Error, ErrorKind, Result};
use crate::yard::report;

/// The kind of disks that are a file.
pub static KIND: ExportKind = ExportKind {
    name: "fuse",
    table: "[[fuse]]",
    summary: "a disk served as a file over FUSE",
    options: &[
        OptionSpec::new("path", ValueKind::Path, "none", "an existing file to mount on"),
        PAGE_CACHE,
        ALLOW_OTHER,
        MODE,
    ],
    whole_yard: false,
    local_kernel: true,
    check: |set| check(set, "path = \"disk.raw\""),
    bind: |plan| bind(plan, false),
};

/// The kind of directories in which all disks of the yard are files.
pub static DIRECTORY: ExportKind = ExportKind {
    name: "mount",
    table: "[[mount]]",
    summary: "all disks served as files of a directory over FUSE",
    options: &[
        OptionSpec::new("path", ValueKind::Path, "none", "an existing directory to mount on"),
        PAGE_CACHE,
        ALLOW_OTHER,
        MODE,
    ],
    whole_yard: true,
    local_kernel: true,
    check: |set| check(set, "path = \"disks\""),
    bind: |plan| bind(plan, true),
};

const PAGE_CACHE: OptionSpec = OptionSpec::new(
    "page_cache",
    ValueKind::Flag,
    "0",
    "cache reads in the kernel's page cache until the file is reopened",
);
const ALLOW_OTHER: OptionSpec = OptionSpec::new(
    "allow_other",
    ValueKind::Flag,
    "0",
    "let other users open the files, subject to mode",
);
const MODE: OptionSpec =
    OptionSpec::new("mode", ValueKind::Mode, "600", "permissions of the files, in octal");

/// Where the records of mounts are, below the directory of run-time files.
const RECORDS: &str = "mounted";

fn check(set: &Settings, example: &str) -> Result<(), String> {
    match set.path("path") {
        Some(_) => Ok(()),
        None => Err(format!("no path to mount on; add {example}")),
    }
}

fn bind(plan: &ExportPlan, is_directory: bool) -> Result<Bound> {
    (plan.kind.check)(&plan.settings).map_err(Error::usage)?;
    let config = config(&plan.settings)?;
    config.place(is_directory).prepare().map_err(error)?;
    Ok(Box::new(move |front| {
        let shown = if is_directory {
            let named = |disk: &FrontDisk| Ok((disk.name.clone(), bdev(front.plan, &disk.open)?));
            Shown::Directory(front.disks.iter().map(named).collect::<Result<_>>()?)
        } else {
            Shown::File(front.bdev()?)
        };
        let start = Start { config, shown, threads: front.threads.to_vec() };
        let plan = front.plan.clone();
        Ok(Arc::new(Files { plan, start: Mutex::new(Some(start)), mount: OnceLock::new() }))
    }))
}

fn config(set: &Settings) -> Result<Config> {
    let path = set.path("path").unwrap_or(Path::new(""));
    let mut config = Config::new(path, records()?);
    if set.flag("page_cache").unwrap_or(false) {
        config.cache = Cache::Used;
    }
    config.allow_other = set.flag("allow_other").unwrap_or(false);
    let mode = set.number("mode").and_then(|mode| u32::try_from(mode).ok());
    config.mode = mode.unwrap_or(config.mode);
    Ok(config)
}

/// The directory of the records of mounts; its parent is there.
pub(crate) fn records() -> Result<PathBuf> {
    let directory = runtime_dir()?;
    make_runtime_dir(&directory).map_err(|err| {
        Error::failed(format!("cannot make {}", directory.display())).caused_by(err)
    })?;
    Ok(directory.join(RECORDS))
}

/// Mounts that daemons which died have left behind.
///
/// # Errors
/// Their records, or the list of mounts, cannot be read.
pub fn leftovers() -> Result<Vec<fuse::Leftover>> {
    fuse::leftovers(&runtime_dir()?.join(RECORDS)).map_err(error)
}

/// What is mounted when it starts.
struct Start {
    config: Config,
    shown: Shown,
    threads: Vec<Handle>,
}

/// A mounted file system.
struct Files {
    plan: ExportPlan,
    start: Mutex<Option<Start>>,
    mount: OnceLock<Arc<Mount>>,
}

impl Export for Files {
    fn start(&self) -> Result<()> {
        let Some(Start { config, shown, threads }) = self.start.lock().take() else {
            return Ok(());
        };
        let mount = Mount::start(&config, shown, &threads).map_err(error)?;
        // It was there to be started, and is so once.
        let _ = self.mount.set(Arc::new(mount));
        Ok(())
    }

    fn end(&self, grace: Duration) -> Doing<'_> {
        drop(self.start.lock().take());
        Box::pin(async move {
            let Some(mount) = self.mount.get().map(Arc::clone) else { return };
            let ended = tokio::task::spawn_blocking(move || mount.end(grace)).await;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::error!(%err, "a mount has not ended well"),
                Err(err) => tracing::error!(%err, "unmounting failed"),
            }
        })
    }

    fn deserted(&self) -> Option<Doing<'_>> {
        Some(Box::pin(self.mount.get()?.over()))
    }

    fn is_over(&self) -> bool {
        self.mount.get().is_some_and(|mount| mount.is_over())
    }

    fn disk_added(&self, name: &str, open: &Arc<OpenDisk>) -> Result<()> {
        let bdev = bdev(&self.plan, open)?;
        match (&mut *self.start.lock(), self.mount.get()) {
            (Some(Start { shown: Shown::Directory(disks), .. }), _) => {
                disks.push((name.to_owned(), bdev));
                Ok(())
            }
            (_, Some(mount)) => mount.add(name, bdev).map_err(error),
            _ => Ok(()),
        }
    }

    fn disk_removed(&self, name: &str) {
        if let Some(Start { shown: Shown::Directory(disks), .. }) = &mut *self.start.lock() {
            disks.retain(|(known, _)| known != name);
        }
        if let Some(mount) = self.mount.get() {
            mount.remove(name);
        }
    }

    fn report(&self) -> report::Served {
        let Some(mount) = self.mount.get() else { return report::Served::default() };
        let found = mount.report();
        report::Served {
            address: Some(format!("{}:{}", self.plan.kind.name, found.path.display())),
            clients: u64::from(!found.is_over),
            queues: Some(found.queues as u64),
            requests: found.requests,
        }
    }
}

pub(crate) fn error(err: fuse::Error) -> Error {
    use fuse::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Busy => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Unsuitable => ErrorKind::Usage,
        Kind::NotFound | Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "cannot mount").caused_by(err)
}
