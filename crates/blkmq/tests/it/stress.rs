//! Many threads at once: submitters, completions, time, and people who freeze, quiesce, tune and remove disks
//! meanwhile.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use blockyard_blkmq::reservation::PrType;
use blockyard_blkmq::{
    Bdev, Bio, Chain, Disk, DiskConfig, Features, Flags, IoPrio, Limits, NoOps, Op, OpenMode,
    Sector, Status, TagSetConfig, TagSetFlags, sched,
};
use blockyard_buf::Segment;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::model::pattern;
use crate::rig::{Rig, Watchdog, seed};
use crate::script::{Chances, Config, SECTOR};

/// Ranges that a submitter has one bio each out for.
const LANES: u64 = 12;
const LANE_SECTORS: u64 = 4;
const SUBMITTERS: u64 = 4;
const SECTORS: u64 = SUBMITTERS * LANES * LANE_SECTORS;

/// A thread that submits to its own part of a disk, and knows what must be there.
struct Submitter {
    rng: StdRng,
    cpu: usize,
    first: u64,
    bdev: Bdev,
    /// What each lane holds, if that is known, and what it is about to.
    stamps: [Option<u64>; LANES as usize],
    out: [Option<Option<u64>>; LANES as usize],
    next: u64,
    ended: Arc<AtomicUsize>,
    may_go_offline: bool,
    /// The disk may be read-only or reserved by another meanwhile.
    may_be_refused: bool,
}

/// How many bios of each outcome there were.
#[derive(Debug, Default)]
struct Tally {
    ok: usize,
    offline: usize,
    refused: usize,
}

impl Submitter {
    fn run(mut self, bios: usize) -> Tally {
        let (tell, told) = mpsc::channel();
        let (mut tally, mut submitted, mut out) = (Tally::default(), 0, 0);
        while submitted < bios || out > 0 {
            if submitted < bios && out < LANES as usize && self.rng.random_bool(0.7) {
                let mut plug: Vec<_> =
                    (0..self.rng.random_range(1..6)).filter_map(|_| self.bio(&tell)).collect();
                submitted += plug.len();
                out += plug.len();
                let whole = |bio: &mut Box<Bio>| bio.op == Op::Read && bio.flags == Flags::SUPPLY;
                if self.may_be_refused {
                    plug.extract_if(.., whole).for_each(|bio| in_two(&self.bdev, self.cpu, bio));
                }
                self.bdev.submit_all(self.cpu, &mut plug);
            } else if out > 0 {
                let bio: Box<Bio> = told.recv().expect("a bio that was submitted ends");
                out -= 1;
                self.ended.fetch_add(1, Ordering::SeqCst);
                self.take_back(&bio, &mut tally);
            }
        }
        assert!(told.try_recv().is_err(), "a bio ended twice");
        tally
    }

    fn bio(&mut self, tell: &mpsc::Sender<Box<Bio>>) -> Option<Box<Bio>> {
        let lane = self.rng.random_range(0..LANES);
        if self.out[lane as usize].is_some() {
            return None;
        }
        let start = self.first + lane * LANE_SECTORS;
        let op = *[Op::Read, Op::Write, Op::Write, Op::WriteZeroes, Op::Flush]
            .choose(&mut self.rng)
            .unwrap();
        let mut flags = Flags::empty();
        flags.set(Flags::FUA, op.is_write() && self.rng.random_bool(0.2));
        flags.set(Flags::PREFLUSH, op.is_write() && self.rng.random_bool(0.1));
        flags.set(Flags::POLLED, op == Op::Read && self.rng.random_bool(0.2));
        self.next += 1;
        let mut stamp = self.stamps[lane as usize];
        let mut bio = match op {
            Op::Write => {
                let new = self.next << 8 | lane | 1 << 60;
                stamp = Some(new);
                let bytes =
                    (start..start + LANE_SECTORS).flat_map(|sector| pattern(new, sector)).collect();
                Bio::with_data(op, Sector(start), [Segment::from_vec(bytes)].into_iter().collect())
            }
            Op::WriteZeroes => {
                stamp = Some(0);
                Bio::new(op, Sector(start), LANE_SECTORS * SECTOR as u64)
            }
            Op::Flush => Bio::flush(),
            _ => Bio::new(op, Sector(start), LANE_SECTORS * SECTOR as u64),
        }
        .with_flags(flags);
        self.out[lane as usize] = Some(stamp);
        bio.private = lane;
        bio.prio = *[IoPrio::None, IoPrio::RealTime(1), IoPrio::BestEffort(7), IoPrio::Idle]
            .choose(&mut self.rng)
            .unwrap();
        let tell = tell.clone();
        Some(bio.on_end(Arc::new(move |bio| tell.send(bio).unwrap())))
    }

    fn take_back(&mut self, bio: &Bio, tally: &mut Tally) {
        let lane = bio.private as usize;
        let stamp = self.out[lane].take().expect("it was out");
        match bio.status() {
            Status::Ok => {
                tally.ok += 1;
                self.stamps[lane] = stamp;
                if bio.op == Op::Read
                    && let Some(stamp) = stamp
                {
                    let bytes: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
                    let start = self.first + lane as u64 * LANE_SECTORS;
                    let want: Vec<u8> = (start..start + LANE_SECTORS)
                        .flat_map(|sector| pattern(stamp, sector))
                        .collect();
                    assert!(bytes == want, "lane {lane} does not hold {stamp:x}");
                }
            }
            Status::Offline if self.may_go_offline => tally.offline += 1,
            Status::NotPermitted | Status::ReservationConflict if self.may_be_refused => {
                tally.refused += 1;
                if bio.op.is_write() {
                    // Some of it may be there.
                    self.stamps[lane] = None;
                }
            }
            status => panic!("{bio:?} ended with {status:?}"),
        }
    }
}

/// What goes on beside the submitters until `done`.
fn meanwhile(rig: &Rig, disks: &[Arc<Disk>], done: &AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        if !rig.script.step() {
            rig.clock.advance_ms(1);
            disks.iter().for_each(|disk| {
                disk.tick();
            });
            std::thread::yield_now();
        }
    }
}

/// Somebody who changes everything that can be changed under load.
fn meddle(disk: &Disk, rng: &mut StdRng, done: &AtomicBool) -> usize {
    let mut changes = 0;
    while !done.load(Ordering::SeqCst) {
        changes += 1;
        match rng.random_range(0..6) {
            0 => {
                drop(disk.set_scheduler(
                    *[sched::Kind::None, sched::Kind::MqDeadline].choose(rng).unwrap(),
                ));
            }
            1 => drop(disk.set_nr_requests(rng.random_range(1..8))),
            2 => {
                disk.freeze();
                disk.unfreeze();
            }
            3 => {
                disk.quiesce();
                std::thread::yield_now();
                disk.unquiesce();
            }
            4 => drop(disk.set_limits(disk.limits())),
            _ => drop(disk.set_capacity(Sector(SECTORS + rng.random_range(0..8)))),
        }
        for _ in 0..rng.random_range(0..200) {
            std::thread::yield_now();
        }
    }
    changes
}

/// The last one ends what goes on beside.
fn one_less(left: &AtomicUsize, done: &AtomicBool) {
    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
        done.store(true, Ordering::SeqCst);
    }
}

struct Plan {
    name: &'static str,
    seed: u64,
    disks: usize,
    bios: usize,
    meddle: bool,
    remove: bool,
}

fn run(plan: &Plan) {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let mut flags = TagSetFlags::empty();
    flags.set(TagSetFlags::TAG_HCTX_SHARED, rng.random_bool(0.4));
    let set = TagSetConfig {
        cpus: 4,
        hw_queues: [rng.random_range(1..=3), rng.random_range(0..=1), rng.random_range(0..=1)],
        depth: *[1, 2, 4, 16].choose(&mut rng).unwrap(),
        flags,
        ..TagSetConfig::default()
    };
    let mut features = Features::WRITE_CACHE;
    features.set(Features::FUA, rng.random_bool(0.5));
    let busy = |rng: &mut StdRng| if rng.random_bool(0.5) { 60 } else { 0 };
    let chances = Chances {
        inline: *[0, 300, 1000].choose(&mut rng).unwrap(),
        resource: busy(&mut rng),
        device: busy(&mut rng),
        partial: busy(&mut rng),
        requeue: busy(&mut rng),
        together: busy(&mut rng),
        ..Chances::default()
    };
    let config = Config {
        limits: Limits {
            max_write_zeroes_sectors: *[0, 2, 64].choose(&mut rng).unwrap(),
            features,
            ..Limits::default()
        },
        chances,
        budget: rng.random_bool(0.3).then_some(3),
        one_pool: flags.contains(TagSetFlags::TAG_HCTX_SHARED),
        timeout: None,
    };
    println!("{set:?} {chances:?} {:?} {:?}", config.limits.features, config.budget);
    // What fails is left as it is: taking it down would wait for what is stuck.
    let rig = ManuallyDrop::new(Rig::new(plan.seed, set, config, SECTORS + 8));
    let mut disks = vec![Arc::clone(&rig.disk)];
    disks.extend((1..plan.disks).map(|id| rig.another(id).unwrap()));
    let shown = disks.clone();
    let seed = plan.seed;
    let ended = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&ended);
    let counted = move || counter.load(Ordering::SeqCst);
    let watchdog = Watchdog::new(plan.name, counted, move || {
        let shown: Vec<String> = shown.iter().map(|disk| disk.show()).collect();
        format!("BLOCKYARD_SEED={seed}\n{}", shown.join("\n"))
    });
    let (left, done) = (
        AtomicUsize::new(plan.disks * SUBMITTERS as usize + usize::from(plan.remove)),
        AtomicBool::new(false),
    );
    let tallies = std::thread::scope(|scope| {
        let mut submitters = Vec::new();
        for disk in &disks {
            for cpu in 0..SUBMITTERS {
                let submitter = Submitter {
                    rng: StdRng::seed_from_u64(rng.random()),
                    cpu: cpu as usize,
                    first: cpu * LANES * LANE_SECTORS,
                    bdev: disk.open(None, OpenMode::ReadWrite).unwrap(),
                    stamps: [Some(0); LANES as usize],
                    out: [None; LANES as usize],
                    next: 0,
                    ended: Arc::clone(&ended),
                    may_go_offline: plan.remove,
                    may_be_refused: false,
                };
                let (left, done) = (&left, &done);
                submitters.push(scope.spawn(move || {
                    let tally = submitter.run(plan.bios);
                    one_less(left, done);
                    tally
                }));
            }
        }
        (0..2).for_each(|_| drop(scope.spawn(|| meanwhile(&rig, &disks, &done))));
        if plan.meddle {
            for disk in &disks {
                let (mut rng, done) = (StdRng::seed_from_u64(rng.random()), &done);
                scope.spawn(move || meddle(disk, &mut rng, done));
            }
        }
        if plan.remove {
            for _ in 0..200 {
                std::thread::yield_now();
            }
            rig.layer.del_disk(&rig.disk);
            assert_eq!(rig.script.out(), 0, "what was in flight has ended");
            one_less(&left, &done);
        }
        submitters.into_iter().map(|submitter| submitter.join().unwrap()).collect::<Vec<_>>()
    });
    drop(watchdog);
    println!("{tallies:?}");
    for disk in disks.drain(..).skip(1) {
        rig.script.calm_down();
        rig.layer.del_disk(&disk);
    }
    drop(disks);
    ManuallyDrop::into_inner(rig).tear_down();
}

fn runs(name: &'static str, plan: impl Fn(u64) -> Plan) {
    let first = seed(name);
    let runs = std::env::var("BLOCKYARD_RUNS")
        .map_or(6, |runs| runs.parse().expect("BLOCKYARD_RUNS is a number"));
    for run in 0..runs {
        let seed = first.wrapping_add(run);
        println!("run BLOCKYARD_SEED={seed} BLOCKYARD_RUNS=1");
        self::run(&plan(seed));
    }
}

#[test]
fn nothing_is_lost_between_threads() {
    let name = "nothing_is_lost_between_threads";
    runs(name, |seed| Plan { name, seed, disks: 1, bios: 600, meddle: false, remove: false });
}

#[test]
fn nothing_is_lost_while_everything_is_changed() {
    let name = "nothing_is_lost_while_everything_is_changed";
    runs(name, |seed| Plan { name, seed, disks: 1, bios: 600, meddle: true, remove: false });
}

#[test]
fn disks_that_share_tags_do_not_starve_each_other() {
    let name = "disks_that_share_tags_do_not_starve_each_other";
    runs(name, |seed| Plan {
        name,
        seed,
        disks: 3,
        bios: 200,
        meddle: seed % 2 == 0,
        remove: false,
    });
}

#[test]
fn a_disk_is_removed_under_load() {
    let name = "a_disk_is_removed_under_load";
    runs(name, |seed| Plan {
        name,
        seed,
        disks: 1,
        bios: 400,
        meddle: seed % 2 == 0,
        remove: true,
    });
}

/// Cuts what is submitted in two, as children of a chain of the submitter's.
fn in_two(bdev: &Bdev, cpu: usize, parent: Box<Bio>) {
    let mut rest = parent.clone_rest();
    let chain = Chain::new(parent);
    let mut front = rest.split(rest.len() / 2);
    chain.add(&mut front);
    chain.add(&mut rest);
    chain.close();
    let mut plug = vec![front, rest];
    bdev.submit_all(cpu, &mut plug);
}

/// Somebody who makes the disk read-only, reserves it, and looks for what is out for too long.
fn refuse(disk: &Arc<Disk>, rng: &mut StdRng, ended: &AtomicUsize, done: &AtomicBool) {
    while !done.load(Ordering::SeqCst) {
        match rng.random_range(0..4) {
            0 => disk.set_read_only(rng.random_bool(0.3)),
            1 => disk.set_timeout(Duration::from_micros(rng.random_range(100..3000))),
            _ => {
                let bdev = disk.open(None, OpenMode::ReadOnly).unwrap();
                let kind = *PrType::ALL.choose(rng).unwrap();
                bdev.reserve(|pr, me| pr.register(me, 0, 5, false)).unwrap();
                bdev.reserve(|pr, me| pr.reserve(me, 5, kind)).unwrap();
                std::thread::yield_now();
                // Closing it gives the reservation back.
            }
        }
        // However the threads run, some are asked for in between.
        let until = ended.load(Ordering::SeqCst) + rng.random_range(0..50);
        while ended.load(Ordering::SeqCst) < until && !done.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }
    disk.set_read_only(false);
}

#[test]
fn partitions_are_written_while_their_disk_is_reserved_read_only_and_late() {
    let name = "partitions_are_written_while_their_disk_is_reserved_read_only_and_late";
    let first = seed(name);
    let runs = std::env::var("BLOCKYARD_RUNS")
        .map_or(3, |runs| runs.parse().expect("BLOCKYARD_RUNS is a number"));
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        println!("run BLOCKYARD_SEED={seed} BLOCKYARD_RUNS=1");
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = Limits { max_hw_sectors: 8, ..Limits::default() }.validate().unwrap();
        let chances = Chances { inline: 300, requeue: 50, resource: 30, ..Chances::default() };
        let config = Config { limits: limits.clone(), chances, ..Config::default() };
        let set = TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 4, ..Default::default() };
        let rig = ManuallyDrop::new(Rig::new(seed, set, config, 64));
        let image = crate::parity::mbr();
        let config = DiskConfig::new("parted", Sector((image.len() / SECTOR) as u64), limits);
        rig.set.driver().add_image(7, image.len() / SECTOR);
        rig.set.driver().load(7, &image);
        let clock = Arc::clone(&rig.clock);
        let disk = Disk::alloc(&rig.set, 7, config, Arc::new(NoOps), clock).unwrap();
        let (shown, seen) = (Arc::clone(&disk), seed);
        let ended = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&ended);
        let counted = move || counter.load(Ordering::SeqCst);
        let watchdog = Watchdog::new(name, counted, move || {
            format!("BLOCKYARD_SEED={seen}\n{}", shown.show())
        });
        let (left, done) = (AtomicUsize::new(2), AtomicBool::new(false));
        let disks = [Arc::clone(&disk)];
        let tallies: Vec<Tally> = std::thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(|| meanwhile(&rig, &disks, &done))));
            rig.layer.add_disk(&disk).unwrap();
            if seed % 2 == 0 {
                disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
            }
            // Partitions 1 and 3, which are 64 and 256 sectors.
            let submitters: Vec<_> = [1, 3]
                .into_iter()
                .enumerate()
                .map(|(cpu, number)| {
                    let submitter = Submitter {
                        rng: StdRng::seed_from_u64(rng.random()),
                        cpu,
                        first: 0,
                        bdev: disk.open(Some(number), OpenMode::ReadWrite).unwrap(),
                        stamps: [Some(0); LANES as usize],
                        out: [None; LANES as usize],
                        next: 0,
                        ended: Arc::clone(&ended),
                        may_go_offline: false,
                        may_be_refused: true,
                    };
                    let (left, done) = (&left, &done);
                    scope.spawn(move || {
                        let tally = submitter.run(500);
                        one_less(left, done);
                        tally
                    })
                })
                .collect();
            let mut rng = StdRng::seed_from_u64(rng.random());
            let (disk, ended, done) = (&disk, &ended, &done);
            scope.spawn(move || refuse(disk, &mut rng, ended, done));
            submitters.into_iter().map(|submitter| submitter.join().unwrap()).collect()
        });
        println!("{tallies:?}");
        assert!(tallies.iter().all(|tally| tally.ok > 0));
        assert_eq!(disk.stats().0.in_flight(), [0, 0]);
        for part in disk.partitions() {
            assert_eq!(part.stats().0.in_flight(), [0, 0]);
        }
        rig.script.calm_down();
        rig.layer.del_disk(&disk);
        drop((watchdog, disks, disk));
        ManuallyDrop::into_inner(rig).tear_down();
    }
}
