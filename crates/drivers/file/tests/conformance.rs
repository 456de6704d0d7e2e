//! The suite that every driver runs, on files: with io_uring and with threads, through the page cache and past
//! it, in memory, and on a block device.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use blockyard_blkmq::{BlockSize, TagSetConfig};
use blockyard_conformance::{Capabilities, STORES, Subject};
use blockyard_driver_file::{Engine, FileConfig};
use common::{Loop, Place, TestDisk, open_with};

const BYTES: u64 = 4 << 20;
/// An end within a block, and within a page.
const ODD_BYTES: u64 = BYTES + 8192 + 1777;
const ON_A_FILE: Capabilities =
    Capabilities { discard_zeroes: true, holes: true, can_grow: true, ..STORES };

fn two_queues() -> TagSetConfig {
    TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 8, ..TagSetConfig::default() }
}

fn subject(config: &FileConfig, guard: impl Send + Sync + 'static) -> Subject {
    let TestDisk { bdev, threads, .. } = open_with(config, two_queues()).unwrap();
    Subject::new(bdev, (threads, guard))
}

/// A file on the file system where temporary files are.
fn file(engine: Engine, direct: bool) -> Subject {
    file_of(BYTES, engine, direct)
}

fn file_of(bytes: u64, engine: Engine, direct: bool) -> Subject {
    let place = Place::here();
    let config = FileConfig { engine, direct, ..FileConfig::new(place.file("disk", bytes)) };
    subject(&config, place).with(ON_A_FILE)
}

blockyard_conformance::suite!(uring, || file(Engine::Uring, false));
blockyard_conformance::suite!(uring_direct, || file(Engine::Uring, true));
blockyard_conformance::suite!(threads, || file(Engine::Threads, false));
blockyard_conformance::suite!(threads_direct, || file(Engine::Threads, true));

blockyard_conformance::suite!(odd_uring, || file_of(ODD_BYTES, Engine::Uring, false));
blockyard_conformance::suite!(odd_uring_direct, || file_of(ODD_BYTES, Engine::Uring, true));
blockyard_conformance::suite!(odd_threads_direct, || file_of(ODD_BYTES, Engine::Threads, true));

blockyard_conformance::suite!(odd_in_memory, || {
    let place = Place::tmpfs("16m");
    subject(&FileConfig::new(place.file("disk", ODD_BYTES)), place).with(ON_A_FILE)
});

blockyard_conformance::suite!(in_memory, || {
    let place = Place::tmpfs("16m");
    subject(&FileConfig::new(place.file("disk", BYTES)), place).with(ON_A_FILE)
});

blockyard_conformance::suite!(block_device, || {
    let place = Place::here();
    let device = Loop::on(&place.file("backing", BYTES), "-b 4096");
    let config = FileConfig { direct: true, ..FileConfig::new(&device.0) };
    let subject = subject(&config, (device, place));
    assert_eq!(subject.bdev.limits().logical_block_size, BlockSize::B4096);
    subject.with(Capabilities { discard_zeroes: true, ..STORES })
});
