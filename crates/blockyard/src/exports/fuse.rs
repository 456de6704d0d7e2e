//! Disks as files: one at a path, or all of a yard in a directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use blockyard_export_fuse::{self as fuse, Cache, Config, Left, Mount, Shown};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{
    Bound, Doing, Export, ExportKind, ExportPlan, Flag, FrontDisk, InFlight, Leftover, bdev,
};
use crate::api::{make_runtime_dir, runtime_dir};
use crate::disks::{OpenDisk, OptionSpec, Settings, ValueKind};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::yard::report;

/// The kind of disks that are a file.
pub static KIND: ExportKind = ExportKind {
    options: &[
        OptionSpec::new("path", ValueKind::Path, "none", "an existing file to mount on"),
        PAGE_CACHE,
        ALLOW_OTHER,
        MODE,
    ],
    flags: &[Flag {
        option: "path",
        value_name: "FILE",
        help: "Serve the disk as this existing file, until it is unmounted",
    }],
    local_kernel: true,
    check: |set| check(set, "path = \"disk.raw\""),
    // Of directories, too.
    leftovers,
    ..ExportKind::new("fuse", "[[fuse]]", "a disk served as a file over FUSE", |plan| {
        bind(plan, false)
    })
};

/// The kind of directories in which all disks of the yard are files.
pub static DIRECTORY: ExportKind = ExportKind {
    options: &[
        OptionSpec::new("path", ValueKind::Path, "none", "an existing directory to mount on"),
        PAGE_CACHE,
        ALLOW_OTHER,
        MODE,
    ],
    whole_yard: true,
    local_kernel: true,
    check: |set| check(set, "path = \"disks\""),
    ..ExportKind::new(
        "mount",
        "[[mount]]",
        "all disks served as files of a directory over FUSE",
        |plan| bind(plan, true),
    )
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
        let pending = Pending {
            config,
            is_directory,
            disks: front
                .disks
                .iter()
                .map(|disk| (disk.name.clone(), Arc::clone(&disk.open)))
                .collect(),
            threads: front.threads.to_vec(),
        };
        // One that cannot be opened is told before anybody is served.
        pending.shown(front.plan)?;
        let (shown, pending) = (pending.disks.clone(), Some(pending));
        let state = Arc::new(Mutex::new(State { pending, shown }));
        Ok(Arc::new(Files { plan: front.plan.clone(), state, mount: OnceLock::new() }))
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

fn leftovers() -> Result<Vec<Leftover>> {
    let found = fuse::leftovers(&runtime_dir()?.join(RECORDS)).map_err(error)?;
    Ok(found.into_iter().map(leftover).collect())
}

fn leftover(fuse::Leftover { path, pid, left }: fuse::Leftover) -> Leftover {
    let place = path.display();
    let told = match left {
        Left::Stuck(why) => format!("{place} was left mounted by daemon {pid}, which died: {why}"),
        Left::Nothing => {
            format!(
                "{place} was mounted by daemon {pid}, which died; the next mount removes the record"
            )
        }
        Left::Mounted | Left::Cleaned => format!(
            "{place} was left mounted by daemon {pid}, which died; the next mount cleans it up, or run: umount -l {}",
            quoted(&path)
        ),
    };
    Leftover { path, pid, told }
}

/// What is mounted when it starts.
struct Pending {
    config: Config,
    is_directory: bool,
    disks: Disks,
    threads: Vec<Handle>,
}

/// Disks by their names.
type Disks = Vec<(String, Arc<OpenDisk>)>;

impl Pending {
    fn shown(&self, plan: &ExportPlan) -> Result<Shown> {
        let mut disks = Vec::with_capacity(self.disks.len());
        for (name, open) in &self.disks {
            disks.push((name.clone(), bdev(plan, open)?));
        }
        match (self.is_directory, disks.pop()) {
            (false, Some((_, bdev))) => Ok(Shown::File(bdev)),
            (false, None) => Err(Error::failed("no disk to mount")),
            (true, last) => Ok(Shown::Directory(disks.into_iter().chain(last).collect())),
        }
    }
}

struct State {
    /// Until it starts, or ends before that.
    pending: Option<Pending>,
    shown: Disks,
}

/// A mounted file system.
struct Files {
    plan: ExportPlan,
    /// Locked for as long as mounting takes.
    state: Arc<Mutex<State>>,
    mount: OnceLock<Arc<Mount>>,
}

impl Export for Files {
    fn start(&self) -> Result<()> {
        // Held until it is mounted: which disks there are may change meanwhile.
        let mut state = self.state.lock();
        let Some(mut pending) = state.pending.take() else { return Ok(()) };
        pending.disks.clone_from(&state.shown);
        let shown = pending.shown(&self.plan)?;
        let mount = Mount::start(&pending.config, shown, &pending.threads).map_err(error)?;
        // It was there to be started, and is so once.
        let _ = self.mount.set(Arc::new(mount));
        Ok(())
    }

    fn end(&self, clients: Duration, grace: Duration) -> Doing<'_, Result<()>> {
        let (state, path) = (Arc::clone(&self.state), self.plan.settings.path("path"));
        let path = path.unwrap_or(Path::new("")).display();
        let forget = move || {
            let state = state.try_lock_for(grace);
            state.map(|mut state| drop(state.pending.take())).is_some()
        };
        Box::pin(async move {
            let is_mounting = || Error::failed(format!("{path} is still being mounted"));
            match tokio::task::spawn_blocking(forget).await {
                Ok(true) => {}
                Ok(false) => return Err(is_mounting()),
                Err(err) => return Err(is_mounting().caused_by(err)),
            }
            let Some(mount) = self.mount.get().map(Arc::clone) else { return Ok(()) };
            let ending = Arc::clone(&mount);
            match tokio::task::spawn_blocking(move || ending.end(clients, grace)).await {
                Ok(Err(err)) if err.kind() == fuse::ErrorKind::InFlight => Ok(()),
                Ok(Err(err)) => Err(not_unmounted(mount.path(), mount.is_mounted(), err)),
                Ok(Ok(())) => Ok(()),
                Err(err) => {
                    let what = format!("{} was not unmounted cleanly", mount.path().display());
                    Err(Error::failed(what).caused_by(err))
                }
            }
        })
    }

    fn in_flight(&self) -> Option<InFlight> {
        let requests = self.mount.get()?.in_flight();
        Some(Box::new(move || usize::try_from(requests.count()).unwrap_or(usize::MAX)))
    }

    fn deserted(&self) -> Option<Doing<'_>> {
        Some(Box::pin(self.mount.get()?.over()))
    }

    fn is_over(&self) -> bool {
        self.mount.get().is_some_and(|mount| mount.is_over())
    }

    fn show(&self, disks: &[FrontDisk]) {
        let mut state = self.state.lock();
        let mount = self.mount.get();
        let is_there = |name: &str, open: &Arc<OpenDisk>| {
            disks.iter().any(|disk| disk.name == name && Arc::ptr_eq(&disk.open, open))
        };
        state.shown.retain(|(name, open)| {
            let stays = is_there(name, open);
            if let Some(mount) = mount.filter(|_| !stays) {
                mount.remove(name);
            }
            stays
        });
        for FrontDisk { name, open, .. } in disks {
            if state.shown.iter().any(|(known, _)| known == name) {
                continue;
            }
            let added = mount
                .map_or(Ok(()), |mount| mount.add(name, bdev(&self.plan, open)?).map_err(error));
            match added {
                Ok(()) => state.shown.push((name.clone(), Arc::clone(open))),
                Err(err) => {
                    tracing::warn!(export = self.plan.label(), disk = name, error = %err, "cannot show the disk");
                }
            }
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

/// What is wrong with the end of a mount, and what to do if it is there still.
pub(crate) fn not_unmounted(path: &Path, is_mounted: bool, err: fuse::Error) -> Error {
    let shown = path.display();
    if !is_mounted {
        return Error::new(kind(&err), format!("{shown} was not unmounted cleanly")).caused_by(err);
    }
    let still = Error::new(kind(&err), format!("{shown} is still mounted"));
    // One that says what is in the way says what to do, too.
    let still = if err.remedy().is_some() {
        still
    } else {
        still.help(format!("run: umount -l {}", quoted(path)))
    };
    still.caused_by(err)
}

pub(crate) fn error(err: fuse::Error) -> Error {
    Error::new(kind(&err), "cannot mount").caused_by(err)
}

fn kind(err: &fuse::Error) -> ErrorKind {
    use fuse::ErrorKind as Kind;
    match err.kind() {
        Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Busy | Kind::InFlight => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::Unsuitable => ErrorKind::Usage,
        Kind::NotFound | Kind::Io => ErrorKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The thread that ends it serves the control API, signals and all other ends as well.
    #[tokio::test]
    async fn an_end_waits_for_a_mount_that_is_still_starting_elsewhere_and_not_for_ever() {
        let state = State { pending: None, shown: Vec::new() };
        let plan = ExportPlan::new(&KIND, "a", "e");
        let files =
            Arc::new(Files { plan, state: Arc::new(Mutex::new(state)), mount: OnceLock::new() });
        let (holds, is_held) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let starting = Arc::clone(&files);
        let starting = std::thread::spawn(move || {
            let _state = starting.state.lock();
            holds.send(()).unwrap();
            may_go_on.recv_timeout(PATIENCE)
        });
        is_held.recv_timeout(PATIENCE).unwrap();
        let refused = files.end(Duration::ZERO, Duration::ZERO).await.unwrap_err();
        assert!(refused.to_string().contains("still being mounted"), "{refused}");
        go_on.send(()).unwrap();
        starting.join().unwrap().expect("the end has waited for it");
        files.end(Duration::ZERO, Duration::ZERO).await.unwrap();
    }
}
