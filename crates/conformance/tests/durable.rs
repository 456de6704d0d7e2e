//! What is said to be durable is: a disk that forgets what was not flushed, by itself and behind our NBD server and
//! driver.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use blockyard_blkmq::{
    Bdev, BlockSize, Disk, DiskConfig, MonotonicClock, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::{MIN_BYTES, QueueThread, STORES, Subject, Volatile, cases};
use blockyard_driver_nbd::{Nbd, NbdConfig};
use blockyard_export_nbd::{Address, Config, Export, Server, bind};

fn open(volatile: &Arc<Volatile>, fua: bool) -> Bdev {
    let tags = TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], ..TagSetConfig::default() };
    let set = TagSet::new(Arc::clone(volatile), tags).unwrap();
    let limits = Volatile::limits(BlockSize::B512, fua);
    let config = DiskConfig::new("cached", Sector(MIN_BYTES / 512), limits);
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), config, Arc::<Volatile>::clone(volatile), clock).unwrap();
    disk.open(None, OpenMode::ReadWrite).unwrap()
}

fn over(bdev: Bdev, volatile: Arc<Volatile>, guard: impl Sync + Send + 'static) -> Subject {
    Subject::new(bdev, guard).with(STORES).surviving(move |at, len| volatile.survivors(at, len))
}

fn direct(fua: bool) -> Subject {
    let volatile = Volatile::new(MIN_BYTES);
    over(open(&volatile, fua), volatile, ())
}

fn late(fua: bool) -> Subject {
    let (volatile, carrier) = Volatile::late(MIN_BYTES, cases::seed());
    over(open(&volatile, fua), volatile, carrier)
}

fn served(fua: bool) -> Subject {
    served_of(Volatile::new(MIN_BYTES), fua, ())
}

fn served_late(fua: bool) -> Subject {
    let (volatile, carrier) = Volatile::late(MIN_BYTES, cases::seed());
    served_of(volatile, fua, carrier)
}

fn served_of(volatile: Arc<Volatile>, fua: bool, carrier: impl Sync + Send + 'static) -> Subject {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("s");
    let (server_threads, handles) = QueueThread::start_many(2);
    let exports = vec![Export::new("disk", Arc::new(open(&volatile, fua)))];
    let server = Server::new(Config { exports, ..Config::default() }, handles).unwrap();
    server.listen(bind(&Address::Unix(socket.clone()), None).unwrap());
    let (threads, handles) = QueueThread::start_many(2);
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connected = Nbd::connect(NbdConfig::new(uri.parse().unwrap()), &handles);
    let (nbd, export) = runtime.block_on(connected).unwrap();
    let set = TagSet::new(Arc::clone(&nbd), nbd.tag_set_config(2)).unwrap();
    let config = DiskConfig::new("nbd0", export.capacity, export.limits);
    let disk = Disk::alloc(&set, (), config, nbd, Arc::new(MonotonicClock::new())).unwrap();
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    over(bdev, volatile, (threads, server, server_threads, place, carrier))
}

#[test]
fn by_itself_with_and_without_fua() {
    for fua in [false, true] {
        cases::flushes(&direct(fua));
        cases::flushes(&late(fua));
    }
}

#[test]
fn behind_an_nbd_server_with_and_without_fua() {
    for fua in [false, true] {
        cases::flushes(&served(fua));
        cases::flushes(&served_late(fua));
    }
}

/// All else that the suite asks is as well of a disk that is late.
#[test]
fn late_and_in_any_order() {
    for case in [
        cases::overlapping_writes,
        cases::many_queues,
        cases::random_operations,
        cases::any_bytes,
        cases::removed_under_load,
        cases::supplied_and_own_memory,
    ] {
        case(&late(false));
    }
}
