//! What was acknowledged as durable is, on a file system and a device that record what was synced and fail on demand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use blockyard_blkmq::{Bio, Flags, Op, Sector, Status, TagSetConfig};
use blockyard_buf::Segment;
use blockyard_conformance::faulty::{Call, Errno, Faulty};
use blockyard_driver_file::{Engine, FileConfig};
use common::{Loop, TestDisk, open, open_shown};
use rand::{RngExt, SeedableRng};

const MIB: usize = 1 << 20;
/// No wait takes longer.
const LIMIT: Duration = Duration::from_secs(60);
const ENGINES: [Engine; 2] = [Engine::Uring, Engine::Threads];

fn disk(path: &Path, engine: Engine) -> TestDisk {
    open(&FileConfig { engine, ..FileConfig::new(path) }).unwrap()
}

fn write(offset: usize, byte: u8, len: usize, flags: Flags) -> Box<Bio> {
    let data = [Segment::from_vec(vec![byte; len])].into_iter().collect();
    Bio::with_data(Op::Write, Sector(offset as u64 / 512), data).with_flags(flags)
}

fn status(submitted: impl Future<Output = Box<Bio>>) -> Status {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(submitted).status()
}

/// The kernel could not write something back, and has told it to another who has the file open.
fn lose_a_write(fs: &Faulty, disk: &TestDisk, errno: Errno) {
    // Whoever writes back meets it, the kernel on its own too.
    fs.fail(Call::Write, errno, 1);
    assert_eq!(disk.write(0, vec![1; 4096]), Status::Ok);
    let other = std::fs::File::options().write(true).open(fs.file()).unwrap();
    // Once: who is interrupted would try again, and hear nothing.
    assert!(rustix::fs::fsync(&other).is_err(), "the write-back failed");
}

#[test]
fn a_durable_write_does_not_take_the_error_of_an_earlier_one_from_the_flush() {
    for engine in ENGINES {
        use Errno as E;
        for errno in [E::ENOSPC, E::EDQUOT, E::EFBIG, E::EIO, E::EAGAIN, E::EINTR] {
            let fs = Faulty::new(MIB);
            let disk = disk(&fs.file(), engine);
            lose_a_write(&fs, &disk, errno);
            let fua = disk.submit(write(MIB / 2, 2, 4096, Flags::FUA)).status();
            assert_ne!(fua, Status::Ok, "{engine:?} {errno:?}: its flush covers more than itself");
            assert_ne!(disk.flush(), Status::Ok, "{engine:?} {errno:?}");
            assert_eq!(disk.flush(), Status::Io, "{engine:?} {errno:?}");
            drop(disk);
            assert_eq!(open(&FileConfig::new(fs.file())).unwrap().flush(), Status::Ok);
        }
    }
}

#[test]
fn of_two_flushes_at_once_none_succeeds_where_one_has_failed() {
    for engine in ENGINES {
        let fs = Faulty::new(MIB);
        let disk = disk(&fs.file(), engine);
        let held = fs.hold(Call::Write);
        fs.fail(Call::Write, Errno::EIO, 1);
        assert_eq!(disk.write(0, vec![1; 4096]), Status::Ok);
        let first = disk.bdev.submit_async(0, Bio::flush());
        fs.wait_for(Call::Write, 1);
        let second = disk.bdev.submit_async(1, Bio::flush());
        drop(held);
        assert_ne!(status(first), Status::Ok, "{engine:?}");
        assert_ne!(
            status(second),
            Status::Ok,
            "{engine:?}: the write that was lost is of before it"
        );
        assert_eq!(disk.flush(), Status::Io, "{engine:?}");
    }
}

#[test]
fn growing_a_file_does_not_take_the_error_from_the_flush() {
    for engine in ENGINES {
        let fs = Faulty::new(MIB);
        let disk = disk(&fs.file(), engine);
        lose_a_write(&fs, &disk, Errno::ENOSPC);
        // Whether it fails is its own affair: the flush must.
        let _ = disk.disk.resize(Sector(2 * MIB as u64 / 512));
        assert_ne!(disk.flush(), Status::Ok, "{engine:?}");
    }
}

#[test]
fn a_failed_sync_of_a_grown_file_is_final() {
    let fs = Faulty::new(MIB);
    let disk = disk(&fs.file(), Engine::Auto);
    fs.fail(Call::Sync, Errno::EIO, 1);
    assert!(disk.disk.resize(Sector(2 * MIB as u64 / 512)).is_err());
    assert_eq!(disk.flush(), Status::Io);
}

#[test]
fn a_sync_that_fails_is_final() {
    for engine in ENGINES {
        let fs = Faulty::new(MIB);
        let disk = disk(&fs.file(), engine);
        fs.fail(Call::Sync, Errno::EIO, 1);
        for _ in 0..3 {
            assert_eq!(disk.flush(), Status::Io, "{engine:?}");
        }
        assert_eq!(disk.submit(write(0, 1, 512, Flags::FUA)).status(), Status::Io, "{engine:?}");
        assert_eq!(
            disk.write(0, vec![1; 512]),
            Status::Ok,
            "{engine:?}: what promises nothing goes on"
        );
    }
}

/// Of a device past the page cache the end of what is shown goes through it, and is durable when it was synced.
#[test]
fn a_durable_write_whose_sync_fails_has_failed() {
    type Make = fn() -> Box<Bio>;
    const SHOWN: u64 = 8192 + 1212;
    for engine in ENGINES {
        let bios: [(_, Make); 4] = [
            ("at the end", || write(8192, 1, 512, Flags::FUA)),
            ("over the border", || write(4096, 1, 5120, Flags::FUA)),
            ("in the last block", || write(9216, 1, 512, Flags::FUA)),
            ("zeroes", || Bio::new(Op::WriteZeroes, Sector(16), 1536).with_flags(Flags::FUA)),
        ];
        for (name, bio) in bios {
            let fs = Faulty::new(MIB);
            let device = Loop::on(&fs.file(), "");
            let config = FileConfig { engine, direct: true, ..FileConfig::new(&device.0) };
            let disk = open_shown(&config, TagSetConfig::default(), SHOWN).unwrap();
            assert_eq!(disk.submit(bio()).status(), Status::Ok, "{engine:?} {name}");
            fs.fail(Call::Sync, Errno::EIO, 1);
            assert_ne!(disk.submit(bio()).status(), Status::Ok, "{engine:?} {name}");
            assert_eq!(disk.flush(), Status::Io, "{engine:?} {name}: it is final");
            drop(disk);
            drop(device);
        }
    }
}

/// Each round some writes at once, a few of them FUA, then flushes on both queues.
#[test]
fn whatever_was_acknowledged_as_durable_survives_a_power_cut() {
    const SLOTS: usize = 32;
    let seed = match std::env::var("BLOCKYARD_SEED") {
        Ok(text) => text.parse().expect("BLOCKYARD_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("BLOCKYARD_SEED={seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    for engine in ENGINES {
        for direct in [false, true] {
            let fs = Faulty::new(SLOTS * 4096);
            let config = FileConfig { engine, direct, ..FileConfig::new(fs.file()) };
            let disk = open(&config).unwrap();
            let mut acknowledged = [0; SLOTS];
            for round in 1..=40 {
                let mut writes = Vec::new();
                for slot in 0..SLOTS {
                    if rng.random_bool(0.7) {
                        continue;
                    }
                    let durable = rng.random_bool(0.3);
                    let flags = if durable { Flags::FUA } else { Flags::empty() };
                    let bio = write(slot * 4096, round, 4096, flags);
                    let end = disk.bdev.submit_async(rng.random_range(0..2), bio);
                    writes.push((slot, durable, end));
                }
                for (slot, durable, end) in writes {
                    assert_eq!(status(end), Status::Ok);
                    acknowledged[slot] = round;
                    if durable {
                        let there = fs.durable()[slot * 4096..][..4096] == [round; 4096];
                        assert!(there, "{config:?}, round {round}: FUA of slot {slot}");
                    }
                }
                let flushes = [0, 1].map(|queue| disk.bdev.submit_async(queue, Bio::flush()));
                for flush in flushes {
                    assert_eq!(status(flush), Status::Ok);
                    for (slot, &byte) in acknowledged.iter().enumerate() {
                        let there = fs.durable()[slot * 4096..][..4096] == [byte; 4096];
                        assert!(there, "{config:?}, round {round}: slot {slot} after a flush");
                    }
                }
            }
        }
    }
}

#[test]
fn a_flush_that_comes_while_another_is_out_covers_what_was_written_meanwhile() {
    for engine in ENGINES {
        let fs = Faulty::new(4 * MIB);
        let device = Loop::on(&fs.file(), "");
        let disk = disk(&device.0, engine);
        assert_eq!(disk.write(0, vec![1; 4096]), Status::Ok);
        let held = fs.hold(Call::Sync);
        let first = disk.bdev.submit_async(0, Bio::flush());
        fs.wait_for(Call::Sync, 1);
        assert_eq!(disk.write(8192, vec![2; 4096]), Status::Ok);
        let flushes = [0, 1, 1, 0].map(|queue| disk.bdev.submit_async(queue, Bio::flush()));
        drop(held);
        assert_eq!(status(first), Status::Ok, "{engine:?}");
        assert_eq!(fs.durable()[..4096], [1; 4096], "{engine:?}");
        for flush in flushes {
            assert_eq!(status(flush), Status::Ok, "{engine:?}");
            assert_eq!(fs.durable()[8192..12288], [2; 4096], "{engine:?}");
        }
        drop(disk);
        drop(device);
    }
}

#[test]
fn a_read_outlives_the_thread_that_submitted_it() {
    for engine in ENGINES {
        let fs = Faulty::new(4 * MIB);
        let device = Loop::on(&fs.file(), "");
        let disk = disk(&device.0, engine);
        let held = fs.hold(Call::Read);
        let before = fs.seen(Call::Read);
        let read = std::thread::scope(|scope| {
            let submit = || disk.bdev.submit_async(0, Bio::new(Op::Read, Sector(4096), 65536));
            scope.spawn(submit).join().unwrap()
        });
        fs.wait_for(Call::Read, before + 1);
        drop(held);
        assert_eq!(status(read), Status::Ok, "{engine:?}");
        drop(disk);
        drop(device);
    }
}

/// What ends on a queue thread keeps every disk that it has: a file on the network is asked for nothing there.
#[test]
fn a_flush_does_not_wait_for_the_size_of_a_file_on_the_network() {
    for engine in ENGINES {
        let fs = Faulty::on_the_network(MIB);
        let disk = disk(&fs.file(), engine);
        assert_eq!(disk.write(0, vec![1; 4096]), Status::Ok);
        let held = fs.hold(Call::Attr);
        let asked = fs.seen(Call::Attr);
        let (tell, told) = mpsc::channel();
        let flush = Bio::flush()
            .on_end(Arc::new(move |bio: Box<Bio>| tell.send(bio.status()).unwrap_or(())));
        disk.bdev.submit(0, flush);
        let ended = told.recv_timeout(LIMIT);
        drop(held);
        assert_eq!((ended, fs.seen(Call::Attr)), (Ok(Status::Ok), asked), "{engine:?}");
    }
}

#[test]
fn a_disk_is_used_while_its_file_grows() {
    for engine in ENGINES {
        let fs = Faulty::new(MIB);
        let disk = disk(&fs.file(), engine);
        let held = fs.hold(Call::Sync);
        let synced = fs.seen(Call::Sync);
        std::thread::scope(|scope| {
            let resize = scope.spawn(|| disk.disk.resize(Sector(2 * MIB as u64 / 512)));
            fs.wait_for(Call::Sync, synced + 1);
            let (tell, told) = mpsc::channel();
            let read = Bio::new(Op::Read, Sector(0), 4096);
            let end = move |bio: Box<Bio>| tell.send(bio.status()).unwrap_or(());
            disk.bdev.submit(0, read.on_end(Arc::new(end)));
            let ended = told.recv_timeout(LIMIT);
            drop(held);
            resize.join().unwrap().unwrap();
            assert_eq!(ended, Ok(Status::Ok), "{engine:?}");
        });
        assert_eq!(fs.durable().len(), 2 * MIB);
        assert_eq!(disk.write(2 * MIB as u64 - 4096, vec![1; 4096]), Status::Ok);
    }
}
