//! The suite on a whole corridor: our NBD driver, our NBD server, and a RAM disk behind it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use blockyard_blkmq::{
    BlockSize, Disk, DiskConfig, Features, Limits, MonotonicClock, NoOps, OpenMode, Sector, TagSet,
    TagSetConfig,
};
use blockyard_conformance::{Capabilities, MIN_BYTES, QueueThread, STORES, Subject};
use blockyard_driver_nbd::{Nbd, NbdConfig};
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{Address, Config, Export, Server, bind};

const THREADS: usize = 2;
const CAPACITY: Sector = Sector(MIN_BYTES / 512);
const CAN: Capabilities = Capabilities { discard_zeroes: true, holes: true, ..STORES };

/// A RAM disk, served.
fn serve(socket: &Path, limits: Limits) -> (Arc<Server>, Vec<QueueThread>) {
    let tags =
        TagSetConfig { cpus: THREADS, hw_queues: [THREADS, 0, 0], ..TagSetConfig::default() };
    let set = TagSet::new(Ram::new(), tags).unwrap();
    let config = DiskConfig::new("ram0", CAPACITY, limits);
    let disk =
        Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap();
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let (threads, handles) = QueueThread::start_many(THREADS);
    // As a block size that somebody has chosen: the client's disk has the same one.
    let block = bdev.limits().logical_block_size.bytes();
    let export = Export { minimum_block_size: Some(block), ..Export::new("disk", bdev) };
    let config = Config { exports: vec![export], ..Config::default() };
    let server = Server::new(config, handles).unwrap();
    server.listen(bind(&Address::Unix(socket.to_owned()), None).unwrap());
    (server, threads)
}

/// The served disk, as a disk.
fn corridor(limits: Limits) -> Subject {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("s");
    let server = serve(&socket, limits);
    let (threads, handles) = QueueThread::start_many(THREADS);
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = Nbd::connect(NbdConfig::new(uri.parse().unwrap()), &handles);
    let (nbd, export) = runtime.block_on(connected).unwrap();
    let set = TagSet::new(Arc::clone(&nbd), nbd.tag_set_config(THREADS)).unwrap();
    let config = DiskConfig::new("nbd0", export.capacity, export.limits);
    let disk = Disk::alloc(&set, (), config, nbd, Arc::new(MonotonicClock::new())).unwrap();
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    Subject::new(bdev, (threads, server, place)).with(CAN)
}

blockyard_conformance::suite!(plain, || corridor(Ram::limits()));

blockyard_conformance::suite!(with_a_cache_and_large_blocks, || corridor(Limits {
    logical_block_size: BlockSize::B4096,
    features: Ram::limits().features | Features::WRITE_CACHE,
    ..Ram::limits()
}));
