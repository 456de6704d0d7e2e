//! Power cuts: what a cache that is simulated holds, when that is written, and what is left when the power goes.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{
    Bio, BlockSize, ErrorKind, FaultKind, FaultSpec, Features, Flags, Limits, Op, Sector, Status,
    TagSetConfig, sched,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::faults::{SECTORS, bytes_of, ended, limits, read, rig, rig_of, write, write_bytes};
use crate::rig::{Rig, Watchdog, seed};
use crate::script::{Chances, Config, SECTOR};

#[test]
fn a_flush_that_lies_flushes_nothing_and_a_power_cut_shows_it() {
    for features in
        [Features::WRITE_CACHE, Features::WRITE_CACHE | Features::FUA, Features::empty()]
    {
        let rig = rig_of(features, TagSetConfig::default());
        let volatile = FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 });
        rig.disk.add_fault(volatile.clone()).unwrap();
        assert_eq!(rig.disk.add_fault(volatile).unwrap_err().kind(), ErrorKind::Exists);
        rig.submit(0, write(0, 8, 1));
        rig.submit(0, Bio::flush());
        assert_eq!(rig.script.bytes(0)[0], 1);
        rig.disk.add_fault(FaultSpec::new(FaultKind::FlushLies)).unwrap();
        rig.submit(0, write(0, 4, 2));
        rig.submit(0, write(8, 1, 3).with_flags(Flags::FUA));
        rig.submit(0, Bio::flush());
        assert!(ended(&rig).iter().all(|(_, status)| status.is_ok()));
        assert_eq!(rig.disk.faults()[0].bytes, 5 * SECTOR as u64);
        let back = Some(Duration::from_secs(5));
        let cut = FaultSpec { lasts: back, ..FaultSpec::new(FaultKind::PowerCut) };
        assert_eq!(rig.disk.add_fault(cut).unwrap().bytes, 5 * SECTOR as u64);
        for bio in [read(0, 1), write(0, 1, 9), Bio::flush()] {
            rig.submit(0, bio);
        }
        assert!(ended(&rig).iter().all(|(_, status)| *status == Status::Io));
        rig.clock.advance_ms(5_000);
        rig.disk.tick();
        assert_eq!(
            bytes_of(&rig.bdev.submit_and_wait(0, read(0, 9)))[..],
            [&[1; 8 * SECTOR][..], &[0; SECTOR]].concat()
        );
        rig.disk.clear_faults().unwrap();
        assert_eq!(rig.disk.limits().features, features, "as before");
        rig.tear_down();
    }
}

/// As a server that has FUA, and no flush.
#[test]
fn what_is_flushed_is_durable_on_a_driver_that_has_no_flush() {
    let rig = rig_of(Features::NO_FLUSH | Features::FUA, TagSetConfig::default());
    rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 })).unwrap();
    let there = |at: usize, byte: u8| {
        let left = rig.script.power_cut(0);
        left[at * SECTOR..][..64 * SECTOR].iter().all(|&it| it == byte)
    };
    rig.submit(0, write(0, 64, 1));
    rig.submit(0, Bio::flush());
    assert!(there(0, 1));
    rig.submit(0, write(64, 64, 2).with_flags(Flags::FUA));
    assert!(there(64, 2));
    rig.submit(0, write(0, 64, 3));
    rig.disk.clear_faults().unwrap();
    assert!(there(0, 3));
    assert!(ended(&rig).iter().all(|(_, status)| status.is_ok()));
    rig.tear_down();
}

#[test]
fn what_is_written_through_is_kept_and_what_does_not_fit_is_refused() {
    let rig = rig_of(
        Features::WRITE_CACHE | Features::FUA | Features::BLOCK_STATUS,
        TagSetConfig { depth: 1, ..TagSetConfig::default() },
    );
    rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 16 << 10 })).unwrap();
    rig.submit(0, write(0, 8, 1).with_flags(Flags::FUA));
    rig.submit(0, write(64, 25, 2));
    rig.submit(0, write(128, 9, 3));
    rig.submit(0, Bio::new(Op::Discard, Sector(0), 4096));
    assert_eq!(ended(&rig)[1..3], [(64, Status::Ok), (128, Status::NoSpace)]);
    let status = rig.bdev.submit_and_wait(0, Bio::new(Op::BlockStatus, Sector(64), 4096));
    assert!(!status.extents[0].hole && status.status().is_ok());
    assert_eq!(rig.disk.fault_counts()[6], 1, "one was refused");
    rig.submit(0, Bio::flush());
    rig.submit(0, write(64, 8, 4));
    rig.disk.add_fault(FaultSpec::new(FaultKind::PowerCut)).unwrap();
    rig.clock.advance_ms(1);
    rig.disk.clear_faults().unwrap();
    let left = rig.script.bytes(0);
    assert_eq!((left[0], left[64 * SECTOR], left[88 * SECTOR], left[128 * SECTOR]), (1, 2, 2, 0));
    rig.tear_down();
}

/// A disk whose driver ends things when it is told to, and which a power cut can take from.
fn slow_volatile(features: Features) -> Rig {
    let set = TagSetConfig { depth: 4, ..TagSetConfig::default() };
    let limits = Limits { logical_block_size: BlockSize::B4096, ..limits(features) };
    let config = Config { limits: limits.validate().unwrap(), ..Config::default() };
    let rig = Rig::new(1, set, config, SECTORS);
    rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 })).unwrap();
    rig
}

/// The power goes, and comes back at once: says how much was lost.
fn cut_shortly(rig: &Rig) -> u64 {
    let cut = rig.disk.add_fault(FaultSpec::new(FaultKind::PowerCut)).unwrap();
    rig.clock.advance_ms(1);
    rig.disk.clear_fault(cut.id).unwrap();
    cut.bytes
}

#[test]
fn what_waited_for_another_flush_while_the_power_went_fails() {
    for (features, fua) in [
        (Features::WRITE_CACHE, false),
        (Features::WRITE_CACHE, true),
        (Features::WRITE_CACHE | Features::FUA, false),
    ] {
        let rig = slow_volatile(features);
        rig.submit(0, write(0, 8, 1));
        rig.submit(0, Bio::flush());
        assert_eq!((rig.script.out(), ended(&rig).len()), (1, 1), "the flush writes");
        if fua {
            rig.submit(0, write(8, 8, 2).with_flags(Flags::FUA));
        } else {
            rig.submit(0, write(8, 8, 2));
            assert_eq!(ended(&rig), [(8, Status::Ok)]);
            rig.submit(0, Bio::flush());
        }
        assert_eq!(cut_shortly(&rig), 8 * SECTOR as u64);
        rig.script.finish_all();
        let ends: Vec<_> = ended(&rig).into_iter().map(|(_, status)| status).collect();
        assert_eq!(ends, [Status::Ok, Status::Io], "{features:?}, {fua}");
        rig.script.calm_down();
        rig.submit(0, Bio::flush());
        assert_eq!(ended(&rig)[0].1, Status::Ok, "what comes later is flushed");
        let left = rig.script.bytes(0);
        assert_eq!((left[0], left[8 * SECTOR]), (1, 0));
        rig.disk.clear_faults().unwrap();
        rig.tear_down();
    }
}

/// Also if there is no cache any more by then.
#[test]
fn what_waited_for_a_tag_while_the_power_went_fails() {
    let rig = slow_volatile(Features::WRITE_CACHE);
    rig.submit(0, write(0, 8, 1));
    for block in 0..4 {
        rig.submit(0, read(64 + 16 * block, 8));
    }
    assert_eq!(ended(&rig), [(0, Status::Ok)]);
    rig.submit(0, Bio::flush());
    assert_eq!(cut_shortly(&rig), 8 * SECTOR as u64);
    rig.script.finish_all();
    let flushed = rig.ends.take().into_iter().find(|bio| bio.op == Op::Flush);
    assert_eq!(flushed.map(|bio| bio.status()), Some(Status::Io));
    rig.script.calm_down();
    rig.disk.clear_faults().unwrap();
    rig.submit(0, Bio::flush());
    assert_eq!(ended(&rig)[0].1, Status::Ok);
    rig.tear_down();
}

#[test]
fn a_block_that_was_read_before_the_power_went_is_not_written_back() {
    let rig = slow_volatile(Features::WRITE_CACHE);
    rig.submit(0, write(0, 8, 5));
    rig.submit(0, write_bytes(50, 100, 6));
    assert_eq!((rig.script.out(), ended(&rig).len()), (1, 1), "its block is read");
    cut_shortly(&rig);
    rig.script.finish_all();
    assert_eq!(ended(&rig), [(0, Status::Io)]);
    rig.script.calm_down();
    rig.disk.clear_faults().unwrap();
    assert!(rig.script.bytes(0).iter().all(|&byte| byte == 0));
    rig.tear_down();
}

/// Whatever is answered while the last flush is out is on the disk.
#[test]
fn what_is_written_while_a_disk_goes_is_not_held_any_more() {
    let rig = slow_volatile(Features::WRITE_CACHE);
    rig.submit(0, write(0, 8, 1));
    assert_eq!(ended(&rig), [(0, Status::Ok)]);
    let _watchdog = Watchdog::new("removing a disk", rig.ends.counter(), String::new);
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| rig.layer.del_disk(&rig.disk));
        while rig.script.out() == 0 {
            std::thread::yield_now();
        }
        rig.submit(0, write(8, 8, 2));
        while !removed.is_finished() {
            rig.script.step();
            std::thread::yield_now();
        }
        assert_eq!(removed.join().unwrap(), Status::Ok);
    });
    let left = rig.script.bytes(0);
    assert_eq!(left[0], 1);
    match ended(&rig)[..] {
        [(8, Status::Ok)] => assert_eq!(left[8 * SECTOR], 2),
        [(8, Status::Offline)] => {}
        ref ends => panic!("{ends:?}"),
    }
    rig.tear_down();
}

#[test]
fn faults_that_have_ended_with_their_disk_are_the_last() {
    let rig = rig();
    rig.disk.end_faults();
    for kind in [FaultKind::Stall, FaultKind::Volatile { max_bytes: 4096 }] {
        let refused = rig.disk.add_fault(FaultSpec::new(kind)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Offline);
    }
    rig.tear_down();
}

#[test]
fn nothing_past_an_end_is_held_or_comes_back() {
    for capacity in [8, 12, 16] {
        let rig = rig();
        rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 1 << 20 })).unwrap();
        for sector in [8, 64, SECTORS - 8] {
            rig.submit(0, write(sector, 8, 1));
        }
        assert_eq!(ended(&rig).len(), 3);
        rig.disk.set_capacity(Sector(capacity)).unwrap();
        let kept = (capacity - 8) as usize * SECTOR;
        assert_eq!(rig.disk.faults()[0].bytes, kept as u64);
        rig.submit(0, Bio::flush());
        rig.disk.set_capacity(Sector(SECTORS)).unwrap();
        assert_eq!(ended(&rig), [(0, Status::Ok)]);
        let got = bytes_of(&rig.bdev.submit_and_wait(0, read(0, SECTORS)));
        assert!(got[8 * SECTOR..][..kept].iter().all(|&byte| byte == 1));
        assert_eq!(got.iter().filter(|&&byte| byte != 0).count(), kept, "{capacity}");
        rig.disk.clear_faults().unwrap();
        assert_eq!(rig.script.bytes(0), got);
        rig.tear_down();
    }
}

/// A disk on a driver that is busy, slow and wrong, and how many queues it has.
fn any_rig(seed: u64, rng: &mut StdRng) -> (Rig, usize) {
    let queues = rng.random_range(1..=3);
    let set = TagSetConfig {
        cpus: queues,
        hw_queues: [queues, 0, 0],
        depth: rng.random_range(1..=8),
        ..TagSetConfig::default()
    };
    let mut features = Features::empty();
    features.set(Features::WRITE_CACHE, rng.random_bool(0.7));
    features.set(Features::FUA, rng.random_bool(0.5));
    let chances = Chances {
        inline: 300,
        resource: 50,
        device: 50,
        partial: 100,
        requeue: 50,
        together: 100,
        error: if rng.random_bool(0.3) { 20 } else { 0 },
        ..Chances::default()
    };
    let limits = Limits {
        logical_block_size: if rng.random_bool(0.5) { BlockSize::B512 } else { BlockSize::B4096 },
        max_hw_sectors: rng.random_range(2..40) * 8,
        ..limits(features)
    };
    let budget = rng.random_bool(0.3).then_some(2);
    let config =
        Config { limits: limits.validate().unwrap(), chances, budget, ..Config::default() };
    let rig = Rig::new(seed, set, config, SECTORS);
    if rng.random_bool(0.3) {
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    }
    (rig, queues)
}

/// Random writes and flushes on a driver that is busy, slow and wrong, and then a power cut: what is left is what was flushed.
fn cut_power(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (rig, queues) = any_rig(seed, &mut rng);
    rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 8 << 20 })).unwrap();
    let drive = |until: &dyn Fn() -> bool| {
        while !until() {
            rig.script.step();
            rig.clock.advance_ms(1);
            rig.disk.tick();
        }
    };
    // Each sector is a number. What was written, and what was flushed.
    let (mut seen, mut flushed) = (vec![0_u8; SECTORS as usize], vec![0_u8; SECTORS as usize]);
    for round in 1..=200_u8 {
        let cpu = rng.random_range(0..queues);
        let count = rng.random_range(1..5);
        for _ in 0..count {
            let (sector, sectors) =
                (rng.random_range(0..SECTORS / 8 - 4) * 8, rng.random_range(1..4) * 8);
            rig.submit(cpu, write(sector, sectors, round));
            seen[sector as usize..sector as usize + sectors].fill(round);
            drive(&|| rig.ends.count() > 0);
            assert!(ended(&rig).iter().all(|(_, status)| status.is_ok()), "{round}");
        }
        let at = rng.random_range(0..SECTORS / 8 - 4) * 8;
        if rng.random_bool(0.5) {
            rig.submit(cpu, read(at, 32));
            drive(&|| rig.ends.count() > 0);
            let bio = rig.ends.take().pop().unwrap();
            if bio.status().is_ok() {
                let got = bytes_of(&bio);
                let want = &seen[at as usize..at as usize + 32];
                let same = got
                    .chunks(SECTOR)
                    .zip(want)
                    .all(|(got, want)| got.iter().all(|byte| byte == want));
                assert!(same, "read of {at} in round {round}");
            }
        }
        if rng.random_bool(0.3) {
            rig.submit(cpu, Bio::flush());
            drive(&|| rig.ends.count() > 0);
            if ended(&rig)[0].1.is_ok() {
                flushed.clone_from(&seen);
            } else {
                // Some of it may have been written.
                break;
            }
        }
        if rng.random_bool(0.05) {
            rig.disk.add_fault(FaultSpec::new(FaultKind::PowerCut)).unwrap();
            let cut = rig.disk.faults()[1].id;
            // Also by a power cut below.
            for left in [rig.script.bytes(0), rig.script.power_cut(0)] {
                let left: Vec<u8> = left.chunks(SECTOR).map(|sector| sector[0]).collect();
                assert_eq!(left, flushed, "round {round}");
            }
            rig.submit(cpu, read(0, 8));
            drive(&|| rig.ends.count() > 0);
            assert_eq!(ended(&rig)[0].1, Status::Io);
            rig.disk.clear_fault(cut).unwrap();
            rig.clock.advance_ms(1);
            seen.clone_from(&flushed);
        }
    }
    rig.script.calm_down();
    rig.script.finish_all();
    rig.disk.clear_faults().unwrap();
    rig.tear_down();
}

#[test]
fn a_power_cut_leaves_what_was_flushed_and_nothing_else() {
    let seed = seed("a_power_cut_leaves_what_was_flushed_and_nothing_else");
    (0..8).for_each(|run| cut_power(seed.wrapping_add(run)));
}

/// Blocks that are written while the power goes, of so many sectors.
const BLOCKS: usize = 16;
const BLOCK_SECTORS: usize = 8;

enum Sent {
    Write { block: usize, number: u8, fua: bool },
    Flush { covers: [u8; BLOCKS] },
}

/// What is known of the blocks: each write has a number, which is its bytes, and none is out together with another of its block.
#[derive(Default)]
struct Known {
    sent: Vec<Sent>,
    /// Which of them have ended, and how.
    ended: Arc<Mutex<Vec<(usize, Status)>>>,
    count: usize,
    is_out: [bool; BLOCKS],
    answered: [u8; BLOCKS],
    durable: [u8; BLOCKS],
}

impl Known {
    fn send(&mut self, rig: &Rig, cpu: usize, bio: Box<Bio>, sent: Sent) {
        let (id, ended) = (self.sent.len(), Arc::clone(&self.ended));
        self.sent.push(sent);
        let told = move |bio: Box<Bio>| ended.lock().push((id, bio.status()));
        rig.bdev.submit(cpu, bio.on_end(Arc::new(told)));
    }

    fn look(&mut self) {
        let ended = std::mem::take(&mut *self.ended.lock());
        self.count += ended.len();
        for (id, status) in ended {
            match self.sent[id] {
                Sent::Write { block, number, fua } => {
                    self.is_out[block] = false;
                    if status.is_ok() {
                        self.answered[block] = number;
                        self.durable[block] = if fua { number } else { self.durable[block] };
                    }
                }
                Sent::Flush { covers } if status.is_ok() => {
                    for (durable, covered) in self.durable.iter_mut().zip(covers) {
                        *durable = covered.max(*durable);
                    }
                }
                Sent::Flush { .. } => {}
            }
        }
    }

    /// What was said to be durable is there, or something newer, also if the power goes below.
    fn check(&self, rig: &Rig, when: &str) {
        for left in [rig.script.bytes(0), rig.script.power_cut(0)] {
            for (block, bytes) in left.chunks(BLOCK_SECTORS * SECTOR).take(BLOCKS).enumerate() {
                let least = bytes.iter().min().copied().unwrap_or_default();
                assert!(least >= self.durable[block], "{when}: block {block}, {least}");
            }
        }
    }
}

/// The power goes and comes back while several queues have writes, flushes and reads out.
fn cut_under_load(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (rig, queues) = any_rig(seed, &mut rng);
    rig.disk.add_fault(FaultSpec::new(FaultKind::Volatile { max_bytes: 8 << 20 })).unwrap();
    let mut known = Known::default();
    let (mut number, mut cut, mut reads) = (0, None, 0);
    while number < u8::MAX {
        let (cpu, block) = (rng.random_range(0..queues), rng.random_range(0..BLOCKS));
        match rng.random_range(0..16) {
            0..4 if !known.is_out[block] => {
                number += 1;
                known.is_out[block] = true;
                let fua = rng.random_bool(0.2);
                let flags = if fua { Flags::FUA } else { Flags::empty() };
                let sector = (block * BLOCK_SECTORS) as u64;
                let bio = write(sector, BLOCK_SECTORS, number).with_flags(flags);
                known.send(&rig, cpu, bio, Sent::Write { block, number, fua });
            }
            4 | 5 => {
                let covers = known.answered;
                known.send(&rig, cpu, Bio::flush(), Sent::Flush { covers });
            }
            6 => {
                reads += 1;
                rig.submit(cpu, read(0, 8));
            }
            7 if rng.random_bool(0.5) => {
                cut = match cut {
                    None => {
                        let spec = FaultSpec::new(FaultKind::PowerCut);
                        let id = rig.disk.add_fault(spec).unwrap().id;
                        known.look();
                        known.answered = known.durable;
                        known.check(&rig, "power cut");
                        Some(id)
                    }
                    Some(id) => {
                        rig.disk.clear_fault(id).unwrap();
                        None
                    }
                };
                rig.clock.advance_ms(1);
            }
            8..10 => _ = rig.disk.tick(),
            10 => rig.clock.advance_ms(1),
            _ => _ = rig.script.step(),
        }
        known.look();
    }
    rig.script.calm_down();
    for _ in 0..10_000 {
        rig.script.finish_all();
        rig.clock.advance_ms(1);
        rig.disk.tick();
        known.look();
        if known.count == known.sent.len() && rig.ends.count() == reads {
            break;
        }
    }
    assert_eq!((known.count, rig.ends.count()), (known.sent.len(), reads), "{}", rig.disk.show());
    known.check(&rig, "at the end");
    rig.disk.clear_faults().unwrap();
    rig.tear_down();
}

#[test]
fn what_is_said_to_be_flushed_is_there_whenever_the_power_goes() {
    let seed = seed("what_is_said_to_be_flushed_is_there_whenever_the_power_goes");
    (0..30).for_each(|run| cut_under_load(seed.wrapping_add(run)));
}
