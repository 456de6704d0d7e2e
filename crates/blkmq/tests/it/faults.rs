//! Faults: which requests they are done to and which not, in which order the others go on, and what a power cut leaves.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockyard_blkmq::{
    Bio, BlockSize, ErrorKind, FaultKind, FaultOps, FaultSpec, Features, Flags, Limits, Op, Outbox,
    Sector, Status, TagSetConfig, sched,
};
use blockyard_buf::Segment;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::rig::{Ends, Rig, Watchdog, seed};
use crate::script::{Chances, Config, SECTOR};

pub const SECTORS: u64 = 2048;
const MS: u64 = 1_000_000;

pub fn limits(features: Features) -> Limits {
    Limits { features, ..Limits::default() }.validate().unwrap()
}

pub fn rig_of(features: Features, set: TagSetConfig) -> Rig {
    let config = Config { limits: limits(features), ..Config::default() };
    let rig = Rig::new(1, set, config, SECTORS);
    rig.script.calm_down();
    rig
}

pub fn rig() -> Rig {
    rig_of(Features::WRITE_CACHE, TagSetConfig::default())
}

fn error() -> FaultSpec {
    FaultSpec::new(FaultKind::Error(Status::Medium))
}

pub fn write(sector: u64, sectors: usize, byte: u8) -> Box<Bio> {
    let data = Segment::from_vec(vec![byte; sectors * SECTOR]);
    Bio::with_data(Op::Write, Sector(sector), [data].into_iter().collect())
}

pub fn read(sector: u64, sectors: u64) -> Box<Bio> {
    Bio::new(Op::Read, Sector(sector), sectors * SECTOR as u64)
}

pub fn write_bytes(offset: u64, len: usize, byte: u8) -> Box<Bio> {
    let mut bio = Bio::at_bytes(Op::Write, offset, 0);
    bio.add_segment(Segment::from_vec(vec![byte; len]));
    bio
}

/// Where those began that have ended, and how they ended.
pub fn ended(rig: &Rig) -> Vec<(u64, Status)> {
    rig.ends.take().iter().map(|bio| (bio.sector().0, bio.status())).collect()
}

pub fn bytes_of(bio: &Bio) -> Vec<u8> {
    bio.data().iter().flat_map(Segment::to_vec).collect()
}

#[test]
fn an_error_is_for_what_it_names_and_the_driver_does_not_see_it() {
    let rig = rig();
    let info = rig
        .disk
        .add_fault(FaultSpec {
            ops: FaultOps::WRITE,
            range: Some(4096..8192),
            after: 1,
            count: NonZeroU64::new(2),
            ..error()
        })
        .unwrap();
    for sector in [8, 7, 0, 15, 16, 8, 8] {
        rig.submit(0, write(sector, 1, 1).with_flags(Flags::NOMERGE));
        rig.submit(0, read(sector, 1));
    }
    let writes: Vec<_> = ended(&rig).into_iter().step_by(2).map(|(_, status)| status).collect();
    let (ok, err) = (Status::Ok, Status::Medium);
    assert_eq!(writes, [ok, ok, ok, err, ok, err, ok]);
    let seen = rig.script.log.lock().iter().filter(|(_, op, _)| *op == Op::Write).count();
    assert_eq!(seen, 5);
    let now = &rig.disk.faults()[0];
    assert_eq!((now.id, now.matched, now.fired), (info.id, 3, 2));
    assert_eq!(rig.disk.fault_counts()[now.spec.kind.index()], 2);
    rig.disk.clear_fault(info.id).unwrap();
    assert_eq!(rig.disk.clear_fault(info.id).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(rig.disk.faults().is_empty());
    rig.tear_down();
}

/// Devices keep for good that a flush has failed.
#[test]
fn a_flush_that_a_fault_has_ended_is_not_one_that_has_failed_below() {
    let rig = rig();
    let failed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&failed);
    rig.disk.on_failed_flush(Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst)));
    rig.disk.add_fault(FaultSpec { ops: FaultOps::FLUSH, ..error() }).unwrap();
    rig.submit(0, Bio::flush());
    rig.disk.clear_faults().unwrap();
    rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap();
    rig.submit(0, Bio::flush());
    rig.disk.add_fault(FaultSpec::new(FaultKind::PowerCut)).unwrap();
    assert_eq!(ended(&rig), [(0, Status::Medium), (0, Status::Io)]);
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    rig.disk.clear_faults().unwrap();
    rig.tear_down();
}

#[test]
fn a_delay_is_as_long_as_it_says_and_others_go_by() {
    let rig = rig();
    // What came at 0 would be taken for what never came, so that it came at 1 ns.
    rig.clock.advance_ms(1);
    let ms = Duration::from_millis(5);
    let delay = FaultKind::Delay { least: ms, most: ms };
    rig.disk.add_fault(FaultSpec { ops: FaultOps::READ, ..FaultSpec::new(delay) }).unwrap();
    for sector in 0..3 {
        rig.submit(0, read(sector * 8, 1));
        rig.clock.advance_ms(1);
    }
    rig.submit(0, write(64, 1, 1));
    assert_eq!(ended(&rig), [(64, Status::Ok)]);
    assert_eq!(rig.disk.in_flight().len(), 3);
    assert_eq!(rig.disk.oldest(), Some(Duration::from_millis(3)));
    assert_eq!(rig.disk.tick(), Some(6 * MS));
    rig.clock.advance_ms(1);
    rig.disk.tick();
    assert_eq!(ended(&rig), []);
    for sector in [0, 8, 16] {
        rig.clock.advance_ms(1);
        rig.disk.tick();
        assert_eq!(ended(&rig), [(sector, Status::Ok)]);
    }
    assert_eq!(rig.disk.tick(), None);
    rig.tear_down();
}

#[test]
fn a_long_delay_ends_with_its_rule_and_for_who_is_not_wanted_any_more() {
    let rig = rig();
    let hour = Duration::from_secs(3600);
    let delay = FaultSpec::new(FaultKind::Delay { least: hour, most: hour });
    let id = rig.disk.add_fault(delay.clone()).unwrap().id;
    let outbox = Arc::new(Outbox::default());
    for bio in [write(0, 1, 1), Bio::flush()] {
        rig.bdev.submit(0, bio.on_end(Arc::<Outbox>::clone(&outbox)));
    }
    rig.submit(0, read(8, 1));
    assert_eq!((rig.disk.faults()[0].held, rig.disk.stalled()), (3, 0));
    outbox.close();
    for _ in 0..3 {
        rig.clock.advance_ms(100);
        rig.disk.tick();
    }
    assert_eq!((Arc::strong_count(&outbox), rig.ends.count()), (1, 0));
    rig.disk.clear_fault(id).unwrap();
    assert_eq!(ended(&rig), [(8, Status::Ok)]);
    rig.disk.add_fault(delay).unwrap();
    rig.submit(0, read(8, 1));
    assert!(rig.layer.del_disk(&rig.disk).is_ok());
    assert_eq!(ended(&rig), [(8, Status::Ok)]);
    rig.tear_down();
}

#[test]
fn who_waits_for_several_faults_waits_for_each_as_long_as_there_is_it() {
    let rig = rig();
    let hour = Duration::from_secs(3600);
    let delay = || FaultSpec::new(FaultKind::Delay { least: hour, most: hour });
    let held = || rig.disk.faults().iter().map(|fault| fault.held).collect::<Vec<_>>();
    // The stall holds it first; its delay is gone with its rule.
    rig.disk.add_fault(delay()).unwrap();
    rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap();
    rig.submit(0, write(0, 1, 1));
    assert_eq!(held(), [0, 1]);
    rig.disk.clear_faults().unwrap();
    assert_eq!(ended(&rig), [(0, Status::Ok)]);
    // Of two it is not the first alone that holds it.
    let ids = [(); 2].map(|()| rig.disk.add_fault(delay()).unwrap().id);
    rig.submit(0, write(0, 1, 1));
    assert_eq!(held(), [1, 0]);
    rig.disk.clear_fault(ids[0]).unwrap();
    assert_eq!((held(), rig.ends.count()), (vec![1], 0));
    rig.disk.clear_fault(ids[1]).unwrap();
    assert_eq!(ended(&rig), [(0, Status::Ok)]);
    let stalls = [(); 2].map(|()| rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap());
    rig.submit(0, write(0, 1, 1));
    for (stall, count) in stalls.into_iter().zip([0, 1]) {
        assert_eq!(rig.disk.release_stalled(Some(stall.id)).unwrap(), 1);
        assert_eq!(rig.ends.count(), count);
    }
    rig.tear_down();
}

#[test]
fn a_cache_is_cleared_without_waiting_for_delays() {
    let rig = rig();
    let volatile = FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 });
    let id = rig.disk.add_fault(volatile).unwrap().id;
    let hour = Duration::from_secs(3600);
    let delay = FaultKind::Delay { least: hour, most: hour };
    rig.disk.add_fault(FaultSpec { ops: FaultOps::READ, ..FaultSpec::new(delay) }).unwrap();
    rig.submit(0, write(0, 1, 1));
    rig.submit(0, read(8, 1));
    let ends = rig.ends.counter();
    let _watchdog = Watchdog::new("clearing a cache", ends, String::new);
    rig.disk.clear_fault(id).unwrap();
    assert_eq!(ended(&rig), [(0, Status::Ok), (8, Status::Ok)]);
    assert_eq!(rig.script.bytes(0)[0], 1);
    rig.submit(0, read(8, 1));
    assert_eq!(rig.disk.faults()[0].held, 1, "the delay is still there");
    rig.disk.clear_faults().unwrap();
    rig.tear_down();
}

#[test]
fn a_write_to_a_part_of_a_block_leaves_a_stall_with_its_client() {
    let limits = Limits { logical_block_size: BlockSize::B4096, ..limits(Features::empty()) };
    let config = Config { limits: limits.validate().unwrap(), ..Config::default() };
    let rig = Rig::new(1, TagSetConfig::default(), config, SECTORS);
    rig.script.calm_down();
    for ops in [FaultOps::READ, FaultOps::WRITE] {
        let count = NonZeroU64::new(1);
        rig.disk.add_fault(FaultSpec { ops, count, ..FaultSpec::new(FaultKind::Stall) }).unwrap();
        let outbox = Arc::new(Outbox::default());
        let bio = write_bytes(50, 100, 6).on_end(Arc::<Outbox>::clone(&outbox));
        rig.bdev.submit(0, bio);
        rig.submit(0, write(0, 8, 9));
        assert_eq!((rig.disk.stalled(), rig.ends.count()), (1, 0), "one waits for the other");
        outbox.close();
        rig.clock.advance_ms(100);
        rig.disk.tick();
        assert_eq!(ended(&rig), [(0, Status::Ok)], "{ops:?}");
        assert_eq!(Arc::strong_count(&outbox), 1);
        assert_eq!(rig.script.bytes(0)[..8 * SECTOR], [9; 8 * SECTOR]);
        rig.disk.clear_faults().unwrap();
    }
    rig.tear_down();
}

#[test]
fn a_stall_holds_what_it_is_for_until_it_is_released() {
    let rig = rig();
    let stall = FaultSpec { ops: FaultOps::WRITE, ..FaultSpec::new(FaultKind::Stall) };
    let id = rig.disk.add_fault(stall.clone()).unwrap().id;
    for sector in [24, 8, 16] {
        rig.submit(0, write(sector, 1, 1));
    }
    rig.submit(0, read(8, 1));
    rig.clock.advance_ms(3_600_000);
    rig.disk.tick();
    assert_eq!(ended(&rig), [(8, Status::Ok)]);
    assert_eq!((rig.disk.stalled(), rig.disk.faults()[0].held), (3, 3));
    assert!(rig.disk.show().contains("is held by a fault"), "{}", rig.disk.show());
    assert_eq!(rig.disk.release_stalled(Some(id + 1)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(rig.disk.release_stalled(None).unwrap(), 3);
    let ok = Status::Ok;
    assert_eq!(ended(&rig), [(24, ok), (8, ok), (16, ok)], "in their order");
    rig.submit(0, write(0, 1, 1));
    assert_eq!(ended(&rig), [(0, ok)], "it is over");
    // One that ends by itself.
    let lasts = Some(Duration::from_secs(30));
    rig.disk.add_fault(FaultSpec { lasts, ..stall }).unwrap();
    rig.submit(0, write(8, 1, 1));
    assert_eq!(rig.disk.faults()[0].left, lasts);
    rig.clock.advance_ms(29_999);
    rig.disk.tick();
    assert_eq!(rig.ends.count(), 0);
    rig.clock.advance_ms(1);
    rig.disk.tick();
    rig.disk.tick();
    assert_eq!((ended(&rig).len(), rig.disk.faults().len()), (1, 0));
    rig.tear_down();
}

#[test]
fn who_is_not_wanted_any_more_leaves_a_stall_and_a_disk_that_goes_ends_it() {
    let rig = rig();
    rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap();
    let outbox = Arc::new(Outbox::default());
    for bio in [write(0, 1, 1), read(8, 1), Bio::flush(), write(64, 1, 2).with_flags(Flags::FUA)] {
        rig.bdev.submit(0, bio.on_end(Arc::<Outbox>::clone(&outbox)));
    }
    rig.submit(0, write(16, 1, 7));
    outbox.close();
    assert!(rig.disk.tick().unwrap() <= 100 * MS, "they are looked for soon");
    rig.disk.tick();
    rig.clock.advance_ms(100);
    rig.disk.tick();
    assert_eq!(Arc::strong_count(&outbox), 1, "{}", rig.disk.show());
    assert_eq!((rig.ends.count(), rig.disk.stalled()), (0, 1));
    assert!(rig.layer.del_disk(&rig.disk).is_ok());
    assert_eq!(ended(&rig), [(16, Status::Ok)], "it went on");
    assert_eq!(rig.script.bytes(0)[16 * SECTOR], 7);
    assert_eq!(rig.script.bytes(0)[0], 0, "nobody wanted that");
    let refused = rig.disk.add_fault(error()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Offline);
    rig.tear_down();
}

#[test]
fn a_freeze_ends_when_the_stall_does() {
    let rig = rig();
    rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap();
    rig.submit(0, write(0, 1, 1));
    let volatile = FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 });
    let id = rig.disk.add_fault(volatile).unwrap().id;
    let busy = rig.disk.clear_fault(id).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    std::thread::scope(|scope| {
        let frozen = scope.spawn(|| rig.disk.freeze());
        assert!(!frozen.is_finished());
        assert_eq!(rig.disk.release_stalled(None).unwrap(), 1);
        frozen.join().unwrap();
    });
    rig.disk.unfreeze();
    assert_eq!(ended(&rig), [(0, Status::Ok)]);
    rig.disk.clear_faults().unwrap();
    rig.tear_down();
}

#[test]
fn a_torn_write_leaves_its_first_blocks() {
    let rig = rig();
    let seed = seed("a_torn_write_leaves_its_first_blocks");
    for (silent, status) in [(false, Status::Io), (true, Status::Ok)] {
        let torn = FaultSpec { seed, ..FaultSpec::new(FaultKind::Torn { silent }) };
        rig.disk.add_fault(torn).unwrap();
        for (round, op) in [Op::Write, Op::WriteZeroes].into_iter().cycle().take(20).enumerate() {
            let sector = round as u64 * 32;
            rig.script.load(0, &vec![9; SECTORS as usize * SECTOR]);
            let bio = match op {
                Op::Write => write(sector, 32, 1),
                _ => Bio::new(op, Sector(sector), 32 * SECTOR as u64).with_flags(Flags::NOUNMAP),
            };
            rig.submit(0, bio);
            assert_eq!(ended(&rig)[0].1, status);
            let new = if op == Op::Write { 1 } else { 0 };
            let at = sector as usize * SECTOR;
            let left = &rig.script.bytes(0)[at..at + 32 * SECTOR];
            let kept = left.iter().take_while(|&&byte| byte == new).count();
            assert!(kept.is_multiple_of(SECTOR) && kept < left.len(), "{kept}");
            assert!(left[kept..].iter().all(|&byte| byte == 9));
        }
        rig.disk.clear_faults().unwrap();
    }
    rig.tear_down();
}

#[test]
fn one_bit_of_a_corrupted_read_is_another_and_none_of_the_disk() {
    let rig = rig();
    let seed = seed("one_bit_of_a_corrupted_read_is_another_and_none_of_the_disk");
    let before = rig.script.bytes(0);
    let range = Some(4096..4096 + 100);
    let corrupt = FaultSpec { seed, range, ..FaultSpec::new(FaultKind::Corrupt) };
    rig.disk.add_fault(corrupt).unwrap();
    for own in [false, true].into_iter().cycle().take(20) {
        let bio = if own {
            let data = [700, 8 * SECTOR - 700].map(|len| Segment::from_vec(vec![7; len]));
            Bio::with_data(Op::Read, Sector(4), data.into_iter().collect())
        } else {
            read(4, 8).with_flags(Flags::PAGES)
        };
        let bio = rig.bdev.submit_and_wait(0, bio);
        assert!(bio.status().is_ok());
        let got = bytes_of(&bio);
        assert_eq!(got.len(), 8 * SECTOR);
        let bits: u32 = got.iter().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits, 1);
        let at = 2048 + got.iter().position(|&byte| byte != 0).unwrap();
        assert!((4096..4196).contains(&at), "{at}");
    }
    assert!(
        rig.bdev
            .submit_and_wait(0, read(0, 8))
            .data()
            .iter()
            .all(|it| it.to_vec().iter().all(|&byte| byte == 0))
    );
    assert_eq!(rig.script.bytes(0), before);
    rig.tear_down();
}

fn any_fault(rng: &mut StdRng) -> FaultSpec {
    let kinds = [
        FaultKind::Error(Status::Io),
        FaultKind::Delay { least: Duration::ZERO, most: Duration::from_millis(20) },
        FaultKind::Stall,
        FaultKind::Torn { silent: rng.random_bool(0.5) },
        FaultKind::Corrupt,
        FaultKind::FlushLies,
        FaultKind::Volatile { max_bytes: rng.random_range(1..1 << 20) },
        FaultKind::PowerCut,
    ];
    let kind = kinds[rng.random_range(0..kinds.len())];
    let timed = rng.random_bool(0.5) && !matches!(kind, FaultKind::Volatile { .. });
    FaultSpec {
        probability: if rng.random_bool(0.5) { 1.0 } else { 0.3 },
        seed: rng.random(),
        count: NonZeroU64::new(rng.random_range(0..10)),
        after: rng.random_range(0..3),
        lasts: timed.then(|| Duration::from_millis(rng.random_range(1..50))),
        ..FaultSpec::new(kind)
    }
}

/// A disk on a driver that loses and fails some of what it is given.
fn rig_with_losses(seed: u64, rng: &mut StdRng) -> Rig {
    let set = TagSetConfig {
        cpus: 2,
        hw_queues: [2, 0, 0],
        depth: rng.random_range(1..=6),
        ..TagSetConfig::default()
    };
    let mut features = Features::BLOCK_STATUS;
    features.set(Features::WRITE_CACHE, rng.random_bool(0.7));
    features.set(Features::FUA, rng.random_bool(0.5));
    let chances = Chances {
        inline: 300,
        resource: 50,
        device: 50,
        partial: 50,
        requeue: 50,
        dropped: 20,
        error: 20,
        together: 50,
        ..Chances::default()
    };
    let budget = rng.random_bool(0.5).then_some(3);
    let config = Config { limits: limits(features), chances, budget, ..Config::default() };
    let rig = Rig::new(seed, set, config, SECTORS);
    if rng.random_bool(0.4) {
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    }
    rig
}

/// Whatever faults come and go: each bio ends once, and nothing is left.
fn come_and_go(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rig = rig_with_losses(seed, &mut rng);
    let (mut sent, mut back) = (0, 0);
    for _ in 0..600 {
        let at = rng.random_range(0..SECTORS - 16);
        match rng.random_range(0..12) {
            0..6 => {
                sent += 1;
                let len = 8 * SECTOR as u64;
                let bio = match rng.random_range(0..8) {
                    0..3 => write(at, 8, 1),
                    3 => write(at, 8, 1).with_flags(Flags::FUA | Flags::PREFLUSH),
                    4 => Bio::flush(),
                    5 => Bio::new(Op::WriteZeroes, Sector(at), len),
                    6 => Bio::new(Op::BlockStatus, Sector(at), len),
                    _ => read(at, 8),
                };
                rig.submit(rng.random_range(0..2), bio);
            }
            6..8 => _ = rig.script.step(),
            8 => rig.clock.advance_ms(rng.random_range(1..10)),
            9 => _ = rig.disk.tick(),
            10 => _ = rig.disk.add_fault(any_fault(&mut rng)),
            _ => {
                let faults = rig.disk.faults();
                let volatile = |id| {
                    let mut faults = rig.disk.faults().into_iter();
                    faults
                        .any(|it| it.id == id && matches!(it.spec.kind, FaultKind::Volatile { .. }))
                };
                if let Some(fault) = faults.get(rng.random_range(0..8_usize))
                    && !volatile(fault.id)
                {
                    rig.disk.clear_fault(fault.id).unwrap();
                } else if rng.random_bool(0.3) {
                    let _maybe_none = rig.disk.release_stalled(None);
                }
            }
        }
        back += rig.ends.take().len();
    }
    rig.script.calm_down();
    rig.disk.end_faults();
    while back < sent {
        rig.script.finish_all();
        rig.clock.advance_ms(10);
        rig.disk.tick();
        back += rig.ends.take().len();
    }
    assert_eq!(back, sent);
    rig.tear_down();
}

#[test]
fn faults_come_and_go_and_every_bio_ends_once() {
    let seed = seed("faults_come_and_go_and_every_bio_ends_once");
    let _watchdog = Watchdog::new("faults", || 0, move || format!("seed {seed}"));
    (0..40).for_each(|run| come_and_go(seed.wrapping_add(run)));
}

/// The flush that the others wait for ends by the driver, which is not to be held until it has.
#[test]
fn durable_writes_that_wait_for_each_other_do_not_keep_a_disk_from_its_end() {
    for ticks in [false, true] {
        let config =
            Config { limits: limits(Features::WRITE_CACHE | Features::FUA), ..Config::default() };
        let rig = Rig::new(1, TagSetConfig::default(), config, SECTORS);
        let volatile = FaultKind::Volatile { max_bytes: 1 << 20 };
        rig.disk.add_fault(FaultSpec::new(volatile)).unwrap();
        let (disk, ends) = (Arc::clone(&rig.disk), rig.ends.counter());
        let watchdog = Watchdog::new("the end of a disk", ends, move || disk.show());
        std::thread::scope(|scope| {
            let removal = scope.spawn(|| rig.layer.del_disk(&rig.disk));
            while rig.script.out() == 0 {
                std::thread::yield_now();
            }
            // Its last flush is with the driver.
            for sector in [0, 8, 16] {
                rig.submit(0, write(sector, 1, 1).with_flags(Flags::FUA | Flags::NOMERGE));
            }
            while !removal.is_finished() {
                if ticks {
                    rig.clock.advance_ms(1);
                    rig.disk.tick();
                }
                rig.script.step();
                std::thread::yield_now();
            }
        });
        assert_eq!(rig.ends.count(), 3);
        drop(watchdog);
        rig.tear_down();
    }
}

#[test]
fn faults_change_under_load() {
    let rig = rig();
    let ends = Arc::<Ends>::default();
    let done = std::sync::atomic::AtomicBool::new(false);
    let stop = &done;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in 0..300 {
                let id = rig.disk.add_fault(FaultSpec { after: at, ..error() }).unwrap().id;
                rig.disk.add_fault(FaultSpec::new(FaultKind::Stall)).unwrap();
                let volatile = FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 });
                rig.disk.add_fault(volatile).unwrap();
                rig.disk.release_stalled(None).unwrap();
                rig.disk.clear_fault(id).unwrap();
                rig.disk.clear_faults().unwrap();
            }
            stop.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let mut out = 0;
        while !done.load(std::sync::atomic::Ordering::SeqCst) || out > 0 {
            if out < 16 && !done.load(std::sync::atomic::Ordering::SeqCst) {
                out += 1;
                rig.bdev.submit(0, write(0, 8, 1).on_end(Arc::<Ends>::clone(&ends)));
            }
            rig.clock.advance_ms(1);
            rig.disk.tick();
            out -= ends.take().len();
        }
    });
    assert_eq!(rig.disk.limits().features, Features::WRITE_CACHE);
    rig.tear_down();
}
