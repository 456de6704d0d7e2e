//! A served RAM disk, and drivers for it.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod foreign;
pub(crate) mod frontend;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockyard_blkmq::{
    Disk, DiskConfig, Limits, MonotonicClock, NoOps, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::QueueThread;
use blockyard_driver_file::{File, FileConfig};
use blockyard_driver_ram::Ram;
use blockyard_export_vhost_user_blk::{Export, Prepared, Server, bind, prepare, start};
use tokio::runtime::Handle;

pub(crate) const THREADS: usize = 2;
pub(crate) const DISK_BYTES: u64 = 16 << 20;

/// A RAM disk that is served at a socket of its own.
pub(crate) struct Served {
    pub(crate) disk: Arc<Disk>,
    server: Option<Server>,
    place: tempfile::TempDir,
    handles: Vec<Handle>,
    _threads: Vec<QueueThread>,
}

pub(crate) fn ram(limits: Limits) -> Arc<Disk> {
    let set = TagSet::new(Ram::new(), tags()).unwrap();
    let config = DiskConfig::new("ram0", Sector::from_bytes_floor(DISK_BYTES), limits);
    Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap()
}

/// A disk in a file, and the threads that its completions come by.
pub(crate) fn file(config: &FileConfig) -> (Arc<Disk>, Vec<QueueThread>) {
    let (threads, handles) = QueueThread::start_many(THREADS);
    let (file, info) = File::open(config, &handles).unwrap();
    let set = TagSet::new(Arc::clone(&file), tags()).unwrap();
    let mut config = DiskConfig::new("file0", info.capacity, info.limits);
    config.tail_padding = u32::try_from(info.capacity.bytes() - info.size).unwrap();
    let disk = Disk::alloc(&set, (), config, file, Arc::new(MonotonicClock::new())).unwrap();
    (disk, threads)
}

pub(crate) fn tags() -> TagSetConfig {
    TagSetConfig { cpus: THREADS, hw_queues: [THREADS, 0, 0], ..TagSetConfig::default() }
}

impl Served {
    pub(crate) fn new() -> Self {
        Self::with(ram(Ram::limits()), |export| export)
    }

    pub(crate) fn with(disk: Arc<Disk>, change: impl FnOnce(Export) -> Export) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mode = if disk.is_read_only() { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let bdev = Arc::new(disk.open(None, mode).unwrap());
        let (threads, handles) = QueueThread::start_many(THREADS);
        let listener = bind(&place.path().join("s"), None).unwrap();
        let server = start(change(Export::new(bdev)), listener, handles.clone()).unwrap();
        Self { disk, server: Some(server), place, handles, _threads: threads }
    }

    /// What would be served at `socket`.
    pub(crate) fn prepared(&self, socket: &Path) -> Prepared {
        let bdev = Arc::new(self.disk.open(None, OpenMode::ReadWrite).unwrap());
        let listener = bind(socket, None).unwrap();
        prepare(Export::new(bdev), listener, self.handles.clone()).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.place.path().join("s")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.place.path()
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn shut_down(&mut self) {
        let Some(server) = self.server.take() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(server.shutdown(frontend::PATIENCE));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shut_down();
    }
}
