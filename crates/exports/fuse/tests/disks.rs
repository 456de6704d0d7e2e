//! Disks that are not like memory: slow ones, broken ones, those with a cache.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    BlockDeviceOps, BlockLayer, BlockSize, Busy, Disk, DiskConfig, Driver, Features, HctxHandle,
    Limits, MonotonicClock, NoOps, Op, Request, Sector, Status, TagSet, TagSetConfig,
};
use blockyard_buf::Segment;
use blockyard_conformance::Volatile;
use blockyard_conformance::in_own_mounts;
use blockyard_export_fuse::{Cache, Config, ErrorKind, Shown};
use common::*;

const DISK_BYTES: u64 = 4 << 20;
/// Requests at a time: less than a queue takes from the kernel.
const DEPTH: u32 = 8;

fn disk<D: Driver<Disk = ()>>(driver: Arc<D>, limits: Limits) -> Arc<Disk> {
    disk_with(driver, limits, Arc::new(NoOps))
}

fn disk_with<D: Driver<Disk = ()>>(
    driver: Arc<D>,
    limits: Limits,
    ops: Arc<dyn BlockDeviceOps>,
) -> Arc<Disk> {
    let tags = TagSetConfig {
        cpus: THREADS,
        hw_queues: [THREADS, 0, 0],
        depth: DEPTH,
        ..TagSetConfig::default()
    };
    let set = TagSet::new(driver, tags).unwrap();
    let config = DiskConfig::new("disk0", Sector::from_bytes_floor(DISK_BYTES), limits);
    Disk::alloc(&set, (), config, ops, Arc::new(MonotonicClock::new())).unwrap()
}

/// A disk whose requests are done by another thread, the last one that is there first. Its last block is broken.
struct Later(Mutex<Sender<Request<Self>>>);

impl Later {
    fn new() -> Arc<Self> {
        let (to, from) = channel();
        std::thread::spawn(move || Self::work(&from));
        Arc::new(Self(Mutex::new(to)))
    }

    /// Until the disk is gone.
    fn work(from: &Receiver<Request<Self>>) {
        let mut bytes = vec![0; DISK_BYTES as usize];
        while let Ok(first) = from.recv() {
            let mut requests = vec![first];
            requests.extend(from.try_iter());
            requests.into_iter().rev().for_each(|rq| Self::carry_out(&mut bytes, rq));
        }
    }

    fn carry_out(bytes: &mut [u8], mut rq: Request<Self>) {
        let from = rq.offset() as usize;
        let range = from..from + rq.len() as usize;
        if range.end as u64 > DISK_BYTES - 4096 {
            return rq.end(Status::Medium);
        }
        match rq.op() {
            Op::Read => rq.deliver(Segment::from_vec(bytes[range].to_vec())),
            Op::Write => {
                let mut at = from;
                for segment in rq.segments() {
                    segment.copy_to(&mut bytes[at..at + segment.len()]);
                    at += segment.len();
                }
            }
            _ => {}
        }
        rq.end(Status::Ok);
    }
}

impl Driver for Later {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _: &(), _: HctxHandle<Self>) -> blockyard_blkmq::Result<()> {
        Ok(())
    }

    fn queue_rq(&self, _: &mut (), rq: Request<Self>, _: bool) -> Result<(), Busy<Self>> {
        // The thread lives as long as this.
        self.0.lock().unwrap().send(rq).unwrap();
        Ok(())
    }
}

impl BlockDeviceOps for Later {}

fn later() -> Arc<Disk> {
    let limits = Limits {
        logical_block_size: BlockSize::B4096,
        physical_block_size: BlockSize::B4096,
        ..Limits::default()
    };
    disk(Later::new(), limits.validate().unwrap())
}

fn rw(mounted: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).open(mounted.path()).unwrap()
}

/// Reads and writes any bytes of a part of a file that is its own, and knows what must be there.
fn exercise(file: &File, start: u64, len: u64, mut state: u64) {
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut model = vec![0; len as usize];
    for round in 0..150 {
        let at = random(len);
        let size = 1 + random((len - at).min(100_000));
        let range = at as usize..(at + size) as usize;
        if random(2) == 0 {
            model[range.clone()].fill(round as u8 + 1);
            file.write_all_at(&model[range], start + at).unwrap();
        } else {
            let mut back = vec![0xee; size as usize];
            file.read_exact_at(&mut back, start + at).unwrap();
            assert!(back == model[range], "round {round}: {size} bytes at {at}");
        }
    }
}

/// Neighbours share blocks where their parts meet.
#[test]
fn many_at_once_each_see_their_own_bytes() {
    in_own_mounts!();
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("BLOCKYARD_SEED={seed}");
    for (disk, cache) in [
        (later(), Cache::Bypassed),
        (later(), Cache::Used),
        (ram("ram0", DISK_BYTES), Cache::Bypassed),
    ] {
        let shown = Shown::File(open(&disk));
        let mounted = Mounted::with(shown, |config| Config { cache, depth: 4, ..config });
        let len = 300_001;
        std::thread::scope(|scope| {
            for part in 0..8_u64 {
                let file = rw(&mounted);
                let seed = seed.wrapping_add(part.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1;
                scope.spawn(move || exercise(&file, part * len, len, seed));
            }
        });
    }
}

#[test]
fn an_error_of_the_disk_reaches_who_asked() {
    in_own_mounts!();
    let disk = later();
    let mounted = Mounted::file(&disk);
    let file = rw(&mounted);
    file.write_all_at(&[1; 4096], 0).unwrap();
    /// `ENODATA`: what the kernel says of a broken medium, too.
    const ENODATA: i32 = 61;
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(file.write_all_at(&[1; 4096], DISK_BYTES - 4096)), Some(ENODATA));
    assert_eq!(errno(file.write_all_at(b"an edge", DISK_BYTES - 9)), Some(ENODATA));
    assert_eq!(errno(file.read_exact_at(&mut [0; 10], DISK_BYTES - 10)), Some(ENODATA));
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
}

/// What was not synchronised may be lost in a power cut, and nothing else.
#[test]
fn what_was_synchronised_survives_a_power_cut() {
    in_own_mounts!();
    /// `O_DSYNC`.
    const DSYNC: i32 = 0o10_000;
    for fua in [false, true] {
        let driver = Volatile::new(DISK_BYTES);
        let limits = Volatile::limits(BlockSize::B512, fua).validate().unwrap();
        assert!(limits.features.contains(Features::WRITE_CACHE));
        let disk = disk(Arc::clone(&driver), limits);
        let mut mounted = Mounted::file(&disk);
        let file = rw(&mounted);
        file.write_all_at(b"one", 1000).unwrap();
        assert_eq!(driver.survivors(1000, 3), [0; 3]);
        file.sync_data().unwrap();
        assert_eq!(driver.survivors(1000, 3), b"one");
        let mut options = OpenOptions::new();
        let durable = options.write(true).custom_flags(DSYNC).open(mounted.path()).unwrap();
        durable.write_all_at(b"two", 2000).unwrap();
        assert_eq!(driver.survivors(2000, 3), b"two");
        file.write_all_at(b"three", 3000).unwrap();
        assert_eq!(driver.survivors(3000, 5), [0; 5]);
        drop((file, durable));
        mounted.stop();
        assert_eq!(driver.survivors(3000, 5), b"three", "it ends with all durable");
    }
}

/// A disk that nothing can be made durable on is still one that programs may synchronise.
#[test]
fn a_disk_without_a_flush_is_synchronised_as_far_as_it_can_be() {
    in_own_mounts!();
    let limits = Limits { features: Features::NO_FLUSH, ..Limits::default() };
    let mut mounted = Mounted::file(&disk(Later::new(), limits.validate().unwrap()));
    let file = rw(&mounted);
    file.write_all_at(b"one", 1000).unwrap();
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    /// `O_DSYNC`.
    const DSYNC: i32 = 0o10_000;
    let mut options = OpenOptions::new();
    let durable = options.write(true).custom_flags(DSYNC).open(mounted.path()).unwrap();
    durable.write_all_at(b"two", 2000).unwrap();
    drop((file, durable));
    mounted.stop();
}

/// A disk whose flushes fail.
struct Unflushable;

impl Driver for Unflushable {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _: &(), _: HctxHandle<Self>) -> blockyard_blkmq::Result<()> {
        Ok(())
    }

    fn queue_rq(&self, _: &mut (), rq: Request<Self>, _: bool) -> Result<(), Busy<Self>> {
        let status = if rq.op() == Op::Flush { Status::Io } else { Status::Ok };
        rq.end(status);
        Ok(())
    }
}

impl BlockDeviceOps for Unflushable {}

fn volatile() -> (Arc<Volatile>, Arc<Disk>) {
    let driver = Volatile::new(DISK_BYTES);
    let limits = Volatile::limits(BlockSize::B512, false).validate().unwrap();
    (Arc::clone(&driver), disk(driver, limits))
}

/// Whoever ends it: by the time that it is over, all is durable.
#[test]
fn what_others_unmount_is_durable_when_it_is_over() {
    in_own_mounts!();
    let (driver, disk) = volatile();
    let mut mounted = Mounted::file(&disk);
    rw(&mounted).write_all_at(b"one", 1000).unwrap();
    // It may be written no more, but what was is to stay.
    disk.set_read_only(true);
    assert_eq!(driver.survivors(1000, 3), [0; 3]);
    peer("umount", &["-l", mounted.path().to_str().unwrap()]);
    mounted.over();
    assert_eq!(driver.survivors(1000, 3), b"one");
    mounted.stop();
}

#[test]
fn a_disk_that_cannot_be_flushed_keeps_no_other_from_it() {
    in_own_mounts!();
    let broken = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    let broken = disk(Arc::new(Unflushable), broken.validate().unwrap());
    let (driver, sound) = volatile();
    let mut mounted = Mounted::directory(&[("broken", &broken), ("sound", &sound)]);
    let file = OpenOptions::new().write(true).open(mounted.path().join("sound")).unwrap();
    file.write_all_at(b"one", 1000).unwrap();
    drop(file);
    let error = loop {
        match mounted.try_stop() {
            // A process that another test starts has all files open for a moment.
            Err(err) if err.kind() == ErrorKind::Busy => blockyard_conformance::pause(),
            done => break done.unwrap_err(),
        }
    };
    assert!(error.to_string().contains("broken"), "{error}");
    assert!(mounted.mount.is_over());
    assert_eq!(driver.survivors(1000, 3), b"one");
}

/// There is another medium whenever it is asked.
struct Changer;

impl BlockDeviceOps for Changer {
    fn check_events(&self, _: &Disk) -> bool {
        true
    }
}

#[test]
fn what_is_in_the_page_cache_of_another_medium_is_forgotten() {
    in_own_mounts!();
    let limits = Volatile::limits(BlockSize::B512, false).validate().unwrap();
    let disk = disk_with(Volatile::new(DISK_BYTES), limits, Arc::new(Changer));
    let mounted =
        Mounted::with(Shown::File(open(&disk)), |config| Config { cache: Cache::Used, ..config });
    let file = rw(&mounted);
    let mut back = [0; 4];
    file.read_exact_at(&mut back, 0).unwrap();
    let other = Segment::from_vec(vec![9; 512]);
    open(&disk).rw_page(0, Sector::ZERO, other, true).unwrap();
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [0; 4], "it is in the page cache");
    // Of the same size: only the disk says so.
    assert!(BlockLayer::new().check_events(&disk).unwrap());
    let end = Instant::now() + Duration::from_secs(30);
    while back != [9; 4] {
        assert!(Instant::now() < end, "what was in the old medium is still read");
        file.read_exact_at(&mut back, 0).unwrap();
    }
}
