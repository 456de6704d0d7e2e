//! Disks, mounted for a test.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test uses a part of it; a test fails by panicking"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Disk, DiskConfig, Limits, MonotonicClock, NoOps, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::QueueThread;
use blockyard_driver_ram::Ram;
use blockyard_export_fuse::{Config, Error, ErrorKind, Mount, Shown};

pub(crate) const THREADS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn tags() -> TagSetConfig {
    TagSetConfig { cpus: THREADS, hw_queues: [THREADS, 0, 0], ..TagSetConfig::default() }
}

/// A RAM disk of so many bytes.
pub(crate) fn ram(name: &str, bytes: u64) -> Arc<Disk> {
    ram_with(name, bytes, Ram::limits())
}

pub(crate) fn ram_with(name: &str, bytes: u64, limits: Limits) -> Arc<Disk> {
    let set = TagSet::new(Ram::new(), tags()).unwrap();
    let config = DiskConfig::new(name, Sector::from_bytes_floor(bytes), limits);
    Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap()
}

pub(crate) fn open(disk: &Arc<Disk>) -> Arc<Bdev> {
    Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap())
}

/// A mount in a directory of its own.
pub(crate) struct Mounted {
    pub(crate) mount: Mount,
    pub(crate) threads: Vec<QueueThread>,
    pub(crate) place: tempfile::TempDir,
}

impl Mounted {
    /// One disk, as a file.
    pub(crate) fn file(disk: &Arc<Disk>) -> Self {
        Self::with(Shown::File(open(disk)), |config| config)
    }

    pub(crate) fn directory(disks: &[(&str, &Arc<Disk>)]) -> Self {
        let named = disks.iter().map(|(name, disk)| ((*name).to_owned(), open(disk)));
        Self::with(Shown::Directory(named.collect()), |config| config)
    }

    pub(crate) fn with(shown: Shown, change: impl FnOnce(Config) -> Config) -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("disk");
        match &shown {
            Shown::File(_) => drop(std::fs::File::create(&path).unwrap()),
            Shown::Directory(_) => std::fs::create_dir(&path).unwrap(),
        }
        let (threads, handles) = QueueThread::start_many(THREADS);
        let config = change(Config::new(path, place.path().join("records")));
        let mount = Mount::start(&config, shown, &handles).unwrap();
        Self { mount, threads, place }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.mount.path().to_owned()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn try_stop(&mut self) -> Result<(), Error> {
        self.mount.stop()
    }

    /// Stops it, when nobody uses it any more: a process that another test starts has all files open for a moment.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.try_stop() {
                Err(err) if err.kind() == ErrorKind::Busy && Instant::now() < end => {
                    blockyard_conformance::pause();
                }
                done => return done.unwrap(),
            }
        }
    }

    /// Waits until it is over.
    pub(crate) fn over(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let over = async { tokio::time::timeout(PATIENCE, self.mount.over()).await };
        runtime.block_on(over).unwrap();
    }

    pub(crate) fn records(&self) -> usize {
        std::fs::read_dir(self.dir().join("records")).unwrap().count()
    }
}

/// What a program of the system says, which must succeed.
#[track_caller]
pub(crate) fn peer(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|err| panic!("{program}: {err}; run: cargo xtask setup"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Undoes what a test has done to the system, also when it fails.
pub(crate) struct Cleanup(Vec<String>);

impl Cleanup {
    pub(crate) fn with(args: &[&str]) -> Self {
        Self(args.iter().map(|&arg| arg.to_owned()).collect())
    }

    #[track_caller]
    pub(crate) fn now(mut self) {
        let args = std::mem::take(&mut self.0);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        peer(args[0], &args[1..]);
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some((program, args)) = self.0.split_first() {
            let lazy = (program == "umount").then_some("-l");
            let _ = Command::new(program).args(lazy).args(args).output();
        }
    }
}
