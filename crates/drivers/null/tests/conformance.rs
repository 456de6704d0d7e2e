//! The suite that every driver runs, on null disks: statuses only, as they keep nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Disk, DiskConfig, MonotonicClock, OpenMode, Sector, TagSet, TagSetConfig};
use blockyard_conformance::{Capabilities, MIN_BYTES, QueueThread, Subject};
use blockyard_driver_null::{Null, NullConfig};

const CAN: Capabilities =
    Capabilities { stores: false, discard_zeroes: true, holes: true, can_grow: true };

fn null(latency: Option<Duration>, set: TagSetConfig) -> Subject {
    let thread = QueueThread::start();
    let config = NullConfig { capacity: Sector(MIN_BYTES / 512), latency };
    let null = Null::new(config, std::slice::from_ref(&thread.handle)).unwrap();
    let set = TagSet::new(Arc::clone(&null), set).unwrap();
    let config = DiskConfig::new("null0", Sector(MIN_BYTES / 512), Null::limits());
    let disk = Disk::alloc(&set, (), config, null, Arc::new(MonotonicClock::new())).unwrap();
    Subject::new(disk.open(None, OpenMode::ReadWrite).unwrap(), thread).with(CAN)
}

blockyard_conformance::suite!(at_once, || null(None, TagSetConfig::default()));

blockyard_conformance::suite!(after_a_while, || null(
    Some(Duration::from_micros(100)),
    TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 4, ..TagSetConfig::default() }
));
