//! The suite that every driver runs, on RAM disks.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;

use blockyard_blkmq::{
    BlockSize, Disk, DiskConfig, FaultKind, FaultOps, FaultSpec, Features, Limits, MonotonicClock,
    OpenMode, Sector, Status, TagSet, TagSetConfig, sched,
};
use blockyard_conformance::{Capabilities, MIN_BYTES, STORES, Subject};
use blockyard_driver_ram::Ram;

const CAN: Capabilities =
    Capabilities { discard_zeroes: true, holes: true, can_grow: true, ..STORES };

/// The smallest disk that will do.
fn ram(set: TagSetConfig, limits: Limits) -> Subject {
    let ram = Ram::new();
    let set = TagSet::new(Arc::clone(&ram), set).unwrap();
    let config = DiskConfig::new("ram0", Sector(MIN_BYTES / 512), limits);
    let disk = Disk::alloc(&set, (), config, ram, Arc::new(MonotonicClock::new())).unwrap();
    Subject::new(disk.open(None, OpenMode::ReadWrite).unwrap(), ()).with(CAN)
}

fn narrow() -> Limits {
    Limits {
        max_hw_sectors: 8,
        max_segments: 3,
        max_write_zeroes_sectors: 0,
        chunk_sectors: 16,
        features: Features::BLOCK_STATUS,
        ..Limits::default()
    }
}

blockyard_conformance::suite!(plain, || ram(TagSetConfig::default(), Ram::limits()));

blockyard_conformance::suite!(many_cpus, || ram(
    TagSetConfig { cpus: 4, hw_queues: [2, 1, 1], depth: 2, ..TagSetConfig::default() },
    Ram::limits()
));

blockyard_conformance::suite!(large_blocks, || {
    ram(TagSetConfig::default(), Limits { logical_block_size: BlockSize::B4096, ..Ram::limits() })
});

blockyard_conformance::suite!(narrow_limits_and_a_scheduler, || {
    let subject = ram(TagSetConfig { depth: 1, ..TagSetConfig::default() }, narrow());
    subject.bdev.disk().set_scheduler(sched::Kind::MqDeadline).unwrap();
    subject
});

blockyard_conformance::suite!(with_idle_faults, || {
    let subject = ram(TagSetConfig::default(), Ram::limits());
    let size = subject.bdev.size_bytes();
    let error = || FaultSpec::new(FaultKind::Error(Status::Io));
    for spec in [
        FaultSpec { after: u64::MAX, ..error() },
        FaultSpec { range: Some(size - 1..size), after: u64::MAX, ..error() },
        FaultSpec { ops: FaultOps::PREFETCH, after: u64::MAX, ..FaultSpec::new(FaultKind::Stall) },
    ] {
        subject.bdev.disk().add_fault(spec).unwrap();
    }
    subject
});

blockyard_conformance::suite!(with_a_volatile_cache, || {
    let subject = ram(TagSetConfig::default(), Ram::limits());
    let volatile = FaultKind::Volatile { max_bytes: 64 << 20 };
    subject.bdev.disk().add_fault(FaultSpec::new(volatile)).unwrap();
    // What is held is told to be data, with all that is asked for beside it.
    subject.with(Capabilities { discard_zeroes: false, holes: false, ..CAN })
});
