//! For how long a disk has been asked what it has not answered: since it was asked, wherever that waits.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{
    Bio, BlockSize, Clock, Features, Flags, Limits, Op, Outbox, Rate, Sector, TagSetConfig,
    Throttle, ThrottleGroup, sched,
};
use blockyard_buf::Segment;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::rig::{Rig, seed};
use crate::script::{Chances, Config};

const SECTORS: u64 = 1024;

fn rig(depth: u32, limits: Limits) -> Rig {
    let set = TagSetConfig { cpus: 1, hw_queues: [1, 0, 0], depth, ..TagSetConfig::default() };
    let rig = Rig::new(
        1,
        set,
        Config { limits: limits.validate().unwrap(), ..Config::default() },
        SECTORS,
    );
    rig.clock.advance_ms(1);
    rig
}

fn nomerges() -> Limits {
    Limits { features: Features::NOMERGES, ..Limits::default() }
}

fn read(sector: u64) -> Box<Bio> {
    Bio::new(Op::Read, Sector(sector), 512)
}

fn operations(per_second: u64) -> Throttle {
    let rate = |per_second| Rate { per_second, burst: None };
    Throttle { iops: NonZeroU64::new(per_second).map(rate), ..Throttle::default() }
}

fn age(ms: u64) -> Option<Duration> {
    Some(Duration::from_millis(ms))
}

#[test]
fn what_limits_kept_is_as_old_as_it_was_while_they_did() {
    let rig = rig(8, nomerges());
    rig.disk.set_throttle(vec![ThrottleGroup::new(operations(10))]);
    (0..2).for_each(|sector| rig.submit(0, read(sector)));
    rig.script.finish_all();
    assert_eq!(rig.ends.count(), 1);
    rig.clock.advance_ms(120);
    assert_eq!(rig.disk.oldest(), age(120));
    rig.disk.tick();
    assert_eq!(rig.script.out(), 1);
    rig.clock.advance_ms(1);
    assert_eq!(rig.disk.oldest(), age(121));
    rig.script.finish_all();
    assert_eq!(rig.disk.oldest(), None);
    rig.tear_down();
}

#[test]
fn other_limits_make_nothing_younger() {
    let rig = rig(8, nomerges());
    rig.disk.set_throttle(vec![ThrottleGroup::new(operations(1))]);
    (0..2).for_each(|sector| rig.submit(0, read(sector)));
    rig.script.finish_all();
    rig.clock.advance_ms(100);
    rig.disk
        .set_throttle(vec![ThrottleGroup::new(operations(1)), ThrottleGroup::new(operations(1))]);
    rig.submit(0, read(2));
    rig.script.finish_all();
    rig.clock.advance_ms(10);
    assert_eq!((rig.ends.count(), rig.disk.oldest()), (2, age(10)), "the second was let in anew");
    rig.disk.set_throttle(vec![ThrottleGroup::new(Throttle {
        bps: operations(1).iops,
        ..Throttle::default()
    })]);
    rig.clock.advance_ms(10);
    assert_eq!(rig.disk.oldest(), age(20));
    rig.disk.set_throttle(Vec::new());
    rig.script.finish_all();
    rig.tear_down();
}

#[test]
fn what_waited_for_a_tag_or_a_scheduler_is_as_old_as_it_was_while_it_did() {
    for scheduler in [sched::Kind::None, sched::Kind::MqDeadline] {
        let rig = rig(1, nomerges());
        rig.disk.set_scheduler(scheduler).unwrap();
        rig.submit(0, read(0));
        rig.clock.advance_ms(1000);
        rig.submit(0, read(8));
        rig.clock.advance_ms(10_000);
        rig.script.step();
        assert_eq!((rig.ends.count(), rig.script.out()), (1, 1));
        rig.clock.advance_ms(1000);
        assert_eq!(rig.disk.oldest(), age(11_000), "{scheduler}");
        rig.script.finish_all();
        assert_eq!(rig.disk.oldest(), None);
        rig.tear_down();
    }
}

#[test]
fn what_is_cut_is_as_old_as_the_whole() {
    let rig = rig(1, Limits { max_hw_sectors: 8, ..nomerges() });
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 8 * 8 * 512));
    for second in 1..=8 {
        rig.clock.advance_ms(1000);
        assert_eq!(rig.disk.oldest(), age(second * 1000));
        rig.script.step();
    }
    assert_eq!((rig.ends.count(), rig.disk.oldest()), (1, None));
    rig.tear_down();
}

#[test]
fn what_has_steps_and_what_waits_for_them_is_as_old_as_the_whole() {
    let block = BlockSize::new(4096).unwrap();
    let rig = rig(8, Limits { logical_block_size: block, ..nomerges() });
    rig.submit(0, Bio::at_bytes(Op::WriteZeroes, 1, 100));
    rig.clock.advance_ms(1000);
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 4096));
    rig.clock.advance_ms(4000);
    assert!(rig.script.step(), "the block was read");
    rig.clock.advance_ms(1000);
    assert_eq!((rig.script.out(), rig.disk.oldest()), (1, age(6000)));
    assert!(rig.script.step(), "and is written");
    assert_eq!((rig.script.out(), rig.ends.count()), (1, 1));
    rig.clock.advance_ms(1000);
    assert_eq!(rig.disk.oldest(), age(6000), "the one that has waited for that");
    rig.script.finish_all();
    assert_eq!(rig.disk.oldest(), None);
    rig.tear_down();
}

#[test]
fn what_nobody_waits_for_any_more_is_not_begun() {
    for len in [512, 64 * 512] {
        let rig = rig(1, Limits { max_hw_sectors: 8, ..nomerges() });
        rig.submit(0, read(0));
        let outbox = Arc::new(Outbox::default());
        let zeroes = Bio::new(Op::WriteZeroes, Sector(8), len);
        rig.bdev.submit(0, zeroes.on_end(Arc::<Outbox>::clone(&outbox)));
        rig.submit(0, read(1));
        outbox.close();
        rig.script.finish_all();
        let asked: Vec<_> = rig.script.log.lock().iter().map(|&(_, op, at)| (op, at)).collect();
        assert_eq!(asked, [(Op::Read, 0), (Op::Read, 1)]);
        assert_eq!(Arc::strong_count(&outbox), 1, "it has ended");
        assert_eq!((rig.ends.count(), rig.disk.oldest()), (2, None));
        rig.tear_down();
    }
}

/// A disk that is asked for all kinds of things, and when it was.
struct Asked {
    rig: Rig,
    rng: StdRng,
    queues: usize,
    block: u64,
    since: HashMap<u64, Duration>,
    asked: u64,
    frozen: bool,
    quiesced: bool,
}

impl Asked {
    fn new(mut rng: StdRng) -> Self {
        let queues = rng.random_range(1..3);
        let set = TagSetConfig {
            cpus: queues,
            hw_queues: [queues, 0, 0],
            depth: rng.random_range(1..6),
            ..TagSetConfig::default()
        };
        let block = if rng.random_bool(0.5) { 512 } else { 4096 };
        let mut features = Features::empty();
        features.set(Features::NOMERGES, rng.random_bool(0.3));
        features.set(Features::WRITE_CACHE, rng.random_bool(0.5));
        let limits = Limits {
            logical_block_size: BlockSize::new(block).unwrap(),
            max_hw_sectors: 16,
            features,
            ..Limits::default()
        };
        let chances = Chances {
            inline: 200,
            resource: 50,
            device: 50,
            partial: 50,
            requeue: 50,
            together: 100,
            ..Chances::default()
        };
        let config = Config { limits: limits.validate().unwrap(), chances, ..Config::default() };
        let rig = Rig::new(rng.random(), set, config, SECTORS);
        if rng.random_bool(0.4) {
            rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
        }
        if rng.random_bool(0.5) {
            rig.disk.set_throttle(vec![ThrottleGroup::new(operations(100))]);
        }
        rig.clock.advance_ms(1);
        let (since, block) = (HashMap::new(), u64::from(block));
        Self { rig, rng, queues, block, since, asked: 0, frozen: false, quiesced: false }
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(self.rig.clock.now_ns())
    }

    fn ask(&mut self) {
        let at = self.rng.random_range(0..64) * self.block;
        let len = self.rng.random_range(1..=4) * self.block;
        let bytes = (at + self.rng.random_range(1..self.block), self.rng.random_range(1..=len));
        let data = |len: u64| Segment::from_vec(vec![1; usize::try_from(len).unwrap()]);
        let sector = Sector::from_bytes_floor(at);
        let write = |flags| {
            Bio::with_data(Op::Write, sector, [data(len)].into_iter().collect()).with_flags(flags)
        };
        let mut bio = match self.rng.random_range(0..9) {
            0 => Bio::new(Op::Read, sector, len),
            1 => Bio::new(Op::Discard, sector, len),
            2 => Bio::new(Op::WriteZeroes, sector, 8 * len),
            3 => Bio::flush(),
            4 => write(Flags::FUA),
            5 => Bio::at_bytes(Op::Read, bytes.0, bytes.1),
            6 => Bio::at_bytes(Op::WriteZeroes, bytes.0, bytes.1),
            7 => {
                let mut bio = Bio::at_bytes(Op::Write, bytes.0, 0);
                bio.add_segment(data(bytes.1));
                bio
            }
            _ => write(Flags::empty()),
        };
        self.asked += 1;
        bio.private = self.asked;
        self.since.insert(self.asked, self.now());
        let cpu = self.rng.random_range(0..self.queues);
        self.rig.submit(cpu, bio);
    }

    /// Something happens.
    fn step(&mut self) {
        let disk = &self.rig.disk;
        match self.rng.random_range(0..20) {
            0..6 => self.ask(),
            6..11 => _ = self.rig.script.step(),
            11..14 => self.rig.clock.advance_ms(self.rng.random_range(1..20)),
            14..17 => _ = disk.tick(),
            17 => drop(disk.limit_waits(Duration::ZERO)),
            18 => {
                self.frozen = !self.frozen;
                if self.frozen { disk.start_freeze() } else { disk.unfreeze() }
            }
            _ => {
                self.quiesced = !self.quiesced;
                if self.quiesced { disk.quiesce_nowait() } else { disk.unquiesce() }
            }
        }
    }

    fn check(&mut self, what: &str) {
        for bio in self.rig.ends.take() {
            assert!(self.since.remove(&bio.private).is_some(), "{bio:?}");
        }
        let oldest = self.since.values().min().map(|since| self.now() - *since);
        assert_eq!(self.rig.disk.oldest(), oldest, "{what}: {}", self.rig.disk.show());
    }
}

#[test]
fn the_oldest_is_as_old_as_it_was_asked_wherever_it_is() {
    let seed = seed("the_oldest_is_as_old_as_it_was_asked_wherever_it_is");
    for round in 0..40 {
        let mut asked = Asked::new(StdRng::seed_from_u64(seed.wrapping_add(round)));
        for step in 0..300 {
            asked.step();
            asked.check(&format!("seed {seed}, round {round}, step {step}"));
        }
        let Asked { rig, frozen, quiesced, .. } = asked;
        if frozen {
            rig.disk.unfreeze();
        }
        if quiesced {
            rig.disk.unquiesce();
        }
        rig.disk.set_throttle(Vec::new());
        rig.tear_down();
    }
}
