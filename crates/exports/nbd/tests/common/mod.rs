//! A server on a disk in memory, and a client to try it with.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod client;
mod panics;
mod paused;
pub mod tls;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Disk, DiskConfig, Driver, Features, Limits, MonotonicClock, NoOps, OpenMode, Sector,
    TagSet, TagSetConfig,
};
use blockyard_conformance::QueueThread;
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{Address, Config, Export, Server, bind};

pub use blockyard_conformance::HeldDisk;
pub use client::{Client, STYLES, negotiate, request};
pub use panics::Panics;
pub use paused::Paused;

/// How long anything may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);
pub const MIB: u64 = 1 << 20;
const THREADS: usize = 2;

/// A running server.
pub struct Yard {
    pub server: Arc<Server>,
    pub disk: Arc<Disk>,
    pub socket: PathBuf,
    pub threads: Vec<QueueThread>,
    _dir: tempfile::TempDir,
}

/// A disk that keeps its requests until it is told.
pub fn held_disk(bytes: u64, limits: Limits) -> HeldDisk {
    HeldDisk::new(tags(), bytes, limits)
}

pub fn tags() -> TagSetConfig {
    TagSetConfig { cpus: THREADS, hw_queues: [THREADS, 0, 0], depth: 256, ..Default::default() }
}

pub fn disk_of<D: Driver>(driver: Arc<D>, disk: D::Disk, bytes: u64, limits: Limits) -> Arc<Disk> {
    let set = TagSet::new(driver, tags()).unwrap();
    let config = DiskConfig::new("disk0", Sector::from_bytes_floor(bytes), limits);
    Disk::alloc(&set, disk, config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap()
}

/// A RAM disk with a cache that has to be flushed, as far as anybody can tell.
pub fn ram(bytes: u64) -> Arc<Disk> {
    let mut limits = Ram::limits();
    limits.features |= Features::WRITE_CACHE;
    disk_of(Ram::new(), (), bytes, limits)
}

impl Yard {
    /// A RAM disk of `bytes` under the name `disk`.
    pub fn new(bytes: u64) -> Self {
        Self::with(ram(bytes), |_, _| {})
    }

    /// That disk under the name `disk`, and whatever `configure` adds.
    pub fn with(disk: Arc<Disk>, configure: impl FnOnce(&mut Config, &Arc<Bdev>)) -> Self {
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let mut export = Export::new("disk", Arc::clone(&bdev));
        export.description = "a disk to try".into();
        let mut config = Config { exports: vec![export], ..Config::default() };
        configure(&mut config, &bdev);
        let (threads, handles) = QueueThread::start_many(THREADS);
        let server = Server::new(config, handles).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        server.listen(bind(&Address::Unix(socket.clone()), None).unwrap());
        Self { server, disk, socket, threads, _dir: dir }
    }

    /// A bare connection.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// A client of the default export with the best headers.
    pub fn client(&self) -> Client {
        self.client_of(blockyard_export_nbd::HeaderStyle::Extended)
    }

    /// One that wants to be told of the end.
    pub fn hearing_client(&self) -> Client {
        Client::open_hearing(Box::new(self.connect())).unwrap()
    }

    /// Waits until nobody is connected.
    pub fn until_all_left(&self) {
        eventually("the last one's end", || self.server.clients().is_empty());
    }

    pub fn client_of(&self, style: blockyard_export_nbd::HeaderStyle) -> Client {
        Client::open(Box::new(self.connect()), "", style).unwrap()
    }

    /// Runs something on a queue thread, and waits for it.
    pub fn block_on<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (send, receive) = mpsc::channel();
        self.threads[0].handle.spawn(async move {
            let _ = send.send(future.await);
        });
        receive.recv_timeout(DEADLINE).unwrap()
    }

    pub fn shutdown(&self, grace: Duration) {
        let server = Arc::clone(&self.server);
        self.block_on(async move { server.shutdown(grace).await });
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.shutdown(Duration::from_secs(5));
            assert_eq!(self.server.clients(), []);
            assert!(!self.socket.exists(), "the socket file goes");
        }
    }
}

/// Waits for something that happens without being told.
pub fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < DEADLINE, "{what} did not happen");
        blockyard_conformance::pause();
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// The most memory that this process has had, in bytes.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
