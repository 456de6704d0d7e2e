//! Limits: how much is let in per second, in which order, and who is not kept.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, Bio, Burst, Disk, Flags, Limits, Op, OpenMode, Outbox, Rate, Sector, Status,
    TagSetConfig, Throttle, ThrottleGroup,
};
use blockyard_buf::Segment;

use crate::rig::{Ends, Rig};
use crate::script::Config;

const SECTORS: u64 = 64 << 11;
const MIB: u64 = 1 << 20;

fn rate(per_second: u64) -> Option<Rate> {
    NonZeroU64::new(per_second).map(|per_second| Rate { per_second, burst: None })
}

fn rig(queues: usize) -> Rig {
    let set = TagSetConfig { cpus: queues, hw_queues: [queues, 0, 0], ..TagSetConfig::default() };
    let config = Config { limits: Limits::default().validate().unwrap(), ..Config::default() };
    let rig = Rig::new(1, set, config, SECTORS);
    rig.script.calm_down();
    rig
}

fn limit(disk: &Disk, throttle: Throttle) -> Arc<ThrottleGroup> {
    let group = ThrottleGroup::new(throttle);
    disk.set_throttle(vec![Arc::clone(&group)]);
    group
}

fn bio(op: Op, len: u64) -> Box<Bio> {
    match op {
        Op::Flush => Bio::flush(),
        Op::Write => {
            let data = Segment::from_vec(vec![1; usize::try_from(len).unwrap()]);
            Bio::with_data(op, Sector(0), [data].into_iter().collect())
        }
        _ => Bio::new(op, Sector(0), len),
    }
}

/// Somebody who always has so many requests out.
struct Load<'a> {
    bdev: &'a Bdev,
    queue: usize,
    op: Op,
    len: u64,
    depth: usize,
    out: usize,
    ends: Arc<Ends>,
    done: u64,
}

impl<'a> Load<'a> {
    fn new(bdev: &'a Bdev, queue: usize, op: Op, len: u64, depth: usize) -> Self {
        Self { bdev, queue, op, len, depth, out: 0, ends: Arc::default(), done: 0 }
    }

    /// Says whether something has ended.
    fn step(&mut self) -> bool {
        while self.out < self.depth {
            self.out += 1;
            let flags = Flags::NOMERGE;
            let bio = bio(self.op, self.len).with_flags(flags);
            self.bdev.submit(self.queue, bio.on_end(Arc::<Ends>::clone(&self.ends)));
        }
        let ended = self.ends.take().len();
        self.out -= ended;
        self.done += ended as u64;
        ended > 0
    }
}

/// Has all of them go on for so long, in milliseconds; the disks are ticked as late as `late_ms`.
fn run(rig: &Rig, disks: &[&Disk], loads: &mut [Load<'_>], ms: u64, late_ms: u64) {
    for now in 0..ms {
        while loads.iter_mut().fold(false, |any, load| load.step() | any) {}
        rig.clock.advance_ms(1);
        if now % late_ms == 0 {
            disks.iter().for_each(|disk| _ = disk.tick());
        }
    }
}

fn assert_near(got: u64, want: u64, per_mille: u64) {
    assert!(got.abs_diff(want) * 1000 <= want * per_mille, "{got}, not {want}");
}

#[test]
fn rates_are_kept_within_two_percent_of_five_seconds() {
    for (iops, bps, len, depth, seconds) in [
        (Some(10), None, 4096, 32, 5),
        (Some(1_000), None, 4096, 1, 5),
        // The same for five seconds, which is much for a test.
        (Some(100_000), None, 512, 32, 1),
        (None, Some(40 * MIB), 4096, 32, 1),
        (None, Some(40 * MIB), 4 * MIB, 4, 5),
        (None, Some(4 * MIB), 4 * MIB, 1, 5),
    ] {
        for late_ms in [1, 7] {
            let rig = rig(2);
            let of = |limit: Option<u64>| limit.and_then(rate);
            limit(&rig.disk, Throttle { iops: of(iops), bps: of(bps), ..Throttle::default() });
            let mut loads = [
                Load::new(&rig.bdev, 0, Op::Read, len, depth),
                Load::new(&rig.bdev, 1, Op::Read, len, depth),
            ];
            run(&rig, &[&rig.disk], &mut loads, 1000 * seconds, late_ms);
            let done: u64 = loads.iter().map(|load| load.done).sum();
            let want = seconds * iops.unwrap_or_else(|| bps.unwrap_or_default() / len);
            println!("{iops:?} {bps:?} {len} {depth} {late_ms}: {done} of {want}");
            // One more where that is more than 2 %: the first. What an idle disk saves is as much as 50 ms of the rate.
            let most = (want / 50).max(1) + want / seconds / 20;
            assert!(done.abs_diff(want) <= most, "{done}, not {want}");
            rig.disk.set_throttle(Vec::new());
            rig.tear_down();
        }
    }
}

#[test]
fn reads_and_writes_have_limits_of_their_own_and_flushes_have_none() {
    let rig = rig(1);
    let throttle =
        Throttle { read_iops: rate(100), write_bps: rate(409_600), ..Throttle::default() };
    limit(&rig.disk, throttle);
    let mut loads =
        [Load::new(&rig.bdev, 0, Op::Read, 4096, 8), Load::new(&rig.bdev, 0, Op::Write, 8192, 8)];
    run(&rig, &[&rig.disk], &mut loads, 4000, 1);
    assert_near(loads[0].done, 400, 20);
    assert_near(loads[1].done, 200, 20);
    rig.submit(0, Bio::flush());
    rig.submit(0, Bio::new(Op::BlockStatus, Sector(0), 512));
    assert_eq!(rig.ends.count(), 2, "while others wait");
    rig.disk.set_throttle(Vec::new());
    rig.tear_down();
}

#[test]
fn what_waits_is_let_in_in_its_order_and_what_may_not_wait_is_told() {
    let rig = rig(1);
    limit(&rig.disk, Throttle { iops: rate(10), ..Throttle::default() });
    for sector in 0..4 {
        rig.submit(0, Bio::new(Op::Read, Sector(sector * 8), 512));
    }
    rig.submit(0, Bio::new(Op::Read, Sector(32), 512).with_flags(Flags::NOWAIT));
    let mut order = Vec::new();
    for _ in 0..400 {
        order.extend(rig.ends.take().iter().map(|bio| (bio.sector().0, bio.status())));
        rig.clock.advance_ms(1);
        rig.disk.tick();
    }
    let want = [(0, Status::Ok), (32, Status::Again), (8, Status::Ok), (16, Status::Ok)];
    assert_eq!(order[..4], want);
    assert_eq!(order.len(), 5);
    let waits = &rig.disk.stats().0.throttle_waits()[0].clone();
    assert_eq!(waits.count(), 3);
    assert!(waits.max().unwrap().abs_diff(300_000_000) < 60_000_000, "{waits:?}");
    rig.tear_down();
}

#[test]
fn a_change_is_felt_at_once_by_who_waits_and_by_who_comes() {
    let rig = rig(1);
    let rung = Arc::<AtomicUsize>::default();
    let ring = Arc::clone(&rung);
    rig.disk.set_alarm(Arc::new(move || _ = ring.fetch_add(1, Ordering::SeqCst)));
    let group = limit(&rig.disk, Throttle { bps: rate(1), ..Throttle::default() });
    let mut loads = [Load::new(&rig.bdev, 0, Op::Write, 4096, 8)];
    run(&rig, &[&rig.disk], &mut loads, 1000, 1);
    assert_eq!((loads[0].done, rung.load(Ordering::SeqCst)), (0, 1), "4096 seconds");
    group.set(Throttle { iops: rate(1000), ..Throttle::default() });
    assert_eq!(rung.load(Ordering::SeqCst), 2);
    run(&rig, &[&rig.disk], &mut loads, 1000, 1);
    assert_near(loads[0].done, 1000, 60);
    let before = loads[0].done;
    group.set(Throttle { iops: rate(100), ..Throttle::default() });
    run(&rig, &[&rig.disk], &mut loads, 1000, 1);
    assert_near(loads[0].done - before, 100, 60);
    group.set(Throttle::default());
    assert!(rig.disk.tick().is_none(), "nothing waits");
    let before = loads[0].done;
    (0..10).for_each(|_| _ = loads[0].step());
    assert_eq!(loads[0].done - before, 8 * 10);
    drop(loads);
    rig.tear_down();
}

#[test]
fn disks_of_a_group_share_and_large_requests_leave_the_small_their_turns() {
    let rig = rig(1);
    let other = rig.another(1).unwrap();
    let bdev = other.open(None, OpenMode::ReadWrite).unwrap();
    let group = ThrottleGroup::new(Throttle { bps: rate(8 * MIB), ..Throttle::default() });
    let own = ThrottleGroup::new(Throttle { iops: rate(50), ..Throttle::default() });
    rig.disk.set_throttle(vec![Arc::clone(&group)]);
    other.set_throttle(vec![Arc::clone(&group), own]);
    let mut loads =
        [Load::new(&rig.bdev, 0, Op::Write, 4 * MIB, 4), Load::new(&bdev, 0, Op::Read, 4096, 1)];
    run(&rig, &[&rig.disk, &other], &mut loads, 5000, 1);
    let (large, small) = (loads[0].done, loads[1].done);
    assert_near(large * 4 * MIB + small * 4096, 40 * MIB, 100);
    assert_near(small, 250, 20);
    rig.disk.set_throttle(Vec::new());
    other.set_throttle(Vec::new());
    rig.layer.add_disk(&other).unwrap();
    rig.layer.del_disk(&other);
    drop((bdev, other));
    rig.tear_down();
}

#[test]
fn a_burst_is_as_long_as_it_may_be_and_comes_back_after_a_rest() {
    let rig = rig(1);
    let per = |per_second| NonZeroU64::new(per_second).unwrap();
    let burst = Some(Burst { per_second: per(1000), length: Duration::from_secs(2) });
    limit(
        &rig.disk,
        Throttle { iops: Some(Rate { per_second: per(100), burst }), ..Throttle::default() },
    );
    rig.clock.advance_ms(60_000);
    for _ in 0..2 {
        let mut loads = [Load::new(&rig.bdev, 0, Op::Read, 512, 1)];
        run(&rig, &[&rig.disk], &mut loads, 2000, 1);
        assert_near(loads[0].done, 2000, 60);
        let before = loads[0].done;
        run(&rig, &[&rig.disk], &mut loads, 2000, 1);
        assert_near(loads[0].done - before, 200, 100);
        rig.clock.advance_ms(60_000);
        rig.disk.tick();
    }
    rig.tear_down();
}

#[test]
fn who_is_not_wanted_any_more_leaves_and_a_disk_that_goes_takes_all_along() {
    let rig = rig(1);
    limit(&rig.disk, Throttle { bps: rate(1), ..Throttle::default() });
    let outbox = Arc::new(Outbox::default());
    for _ in 0..3 {
        rig.bdev.submit(0, bio(Op::Write, 512).on_end(Arc::<Outbox>::clone(&outbox)));
    }
    rig.submit(0, bio(Op::Write, 512));
    outbox.close();
    assert!(rig.disk.tick().unwrap() <= 100_000_000, "they are looked for soon");
    rig.clock.advance_ms(100);
    rig.disk.tick();
    assert_eq!(Arc::strong_count(&outbox), 1);
    assert_eq!(rig.ends.count(), 0);
    rig.layer.del_disk(&rig.disk);
    assert_eq!(rig.ends.take()[0].status(), Status::Offline);
    rig.tear_down();
}

#[test]
fn a_request_counts_for_its_size_where_that_is_said() {
    let rig = rig(1);
    let io_size = std::num::NonZeroU32::new(4096);
    limit(&rig.disk, Throttle { iops: rate(1000), io_size, ..Throttle::default() });
    let mut loads = [Load::new(&rig.bdev, 0, Op::Read, 64 << 10, 4)];
    run(&rig, &[&rig.disk], &mut loads, 2000, 1);
    assert_near(loads[0].done, 125, 20);
    rig.disk.set_throttle(Vec::new());
    rig.tear_down();
}

#[test]
fn what_is_on_bytes_is_counted_once() {
    let rig = rig(1);
    limit(&rig.disk, Throttle { iops: rate(1000), ..Throttle::default() });
    let (ends, mut done, mut out) = (Arc::<Ends>::default(), 0, 0);
    for _ in 0..2000 {
        while out < 8 {
            out += 1;
            rig.bdev.submit(0, Bio::at_bytes(Op::Read, 1, 100).on_end(Arc::<Ends>::clone(&ends)));
        }
        let ended = ends.take().len();
        (out, done) = (out - ended, done + ended as u64);
        rig.clock.advance_ms(1);
        rig.disk.tick();
    }
    assert_near(done, 2000, 30);
    rig.disk.set_throttle(Vec::new());
    rig.tear_down();
}

#[test]
fn what_cannot_wait_is_let_in_and_what_comes_by_its_queue_waits_up_to_a_second() {
    let rig = rig(2);
    limit(&rig.disk, Throttle { iops: rate(10), ..Throttle::default() });
    let read = |cpu, count| {
        (0..count).for_each(|at| rig.submit(cpu, Bio::new(Op::Read, Sector(at * 8), 512)));
    };
    let go_on = |ms| {
        for _ in 0..ms {
            rig.clock.advance_ms(1);
            rig.disk.tick();
        }
        rig.ends.take().len()
    };
    rig.clock.advance_ms(1000);
    read(0, 30);
    rig.clock.advance_ms(20);
    assert_eq!(rig.disk.oldest(), Some(Duration::from_millis(20)));
    let let_in = || drop(rig.disk.limit_waits(Duration::ZERO));
    let_in();
    assert_eq!((rig.ends.take().len(), rig.disk.oldest()), (30, None));
    // What three seconds bring was had at once.
    read(1, 1);
    assert_eq!(go_on(200), 1, "the other queue has nothing to do with it");
    read(0, 1);
    assert_eq!(go_on(750), 0);
    assert_eq!(go_on(250), 1);
    // What nobody waits for goes by as well.
    read(0, 30);
    let_in();
    rig.clock.advance_ms(1100);
    rig.ends.take();
    read(0, 1);
    assert_eq!(rig.ends.take().len(), 1);
    rig.tear_down();
}

#[test]
fn what_is_let_in_keeps_no_other_disk() {
    let rig = rig(1);
    let other = rig.another(1).unwrap();
    let bdev = other.open(None, OpenMode::ReadWrite).unwrap();
    let group = ThrottleGroup::new(Throttle { bps: rate(8 * MIB), ..Throttle::default() });
    rig.disk.set_throttle(vec![Arc::clone(&group)]);
    other.set_throttle(vec![group]);
    for _ in 0..20 {
        (0..4).for_each(|_| rig.submit(0, Bio::new(Op::Read, Sector(0), 4 * MIB)));
        drop(rig.disk.limit_waits(Duration::ZERO));
        assert_eq!(rig.ends.take().len(), 4);
    }
    let has_its_part = || {
        let mut loads = [Load::new(&bdev, 0, Op::Read, 4096, 64)];
        run(&rig, &[&rig.disk, &other], &mut loads, 1000, 1);
        let done = loads[0].done;
        assert!(done * 4096 * 3 > 8 * MIB, "{done} reads");
    };
    (0..4).for_each(|_| rig.submit(0, Bio::new(Op::Read, Sector(0), 4 * MIB)));
    has_its_part();
    rig.layer.del_disk(&rig.disk);
    has_its_part();
    rig.layer.add_disk(&other).unwrap();
    rig.layer.del_disk(&other);
    drop((bdev, other));
    rig.tear_down();
}

#[test]
fn a_change_of_one_limit_gives_no_more_of_another() {
    let rig = rig(1);
    let reads = Throttle { read_iops: rate(10), ..Throttle::default() };
    let group = limit(&rig.disk, reads);
    rig.clock.advance_ms(1000);
    (0..3).for_each(|at| rig.submit(0, Bio::new(Op::Read, Sector(at * 8), 512)));
    let mut ended = Vec::new();
    for ms in 1..=200 {
        rig.clock.advance_ms(1);
        // Without end, too, none would ever be let in if each change kept them anew.
        let write_bps = rate(MIB + ms);
        group.set(Throttle { write_bps, ..reads });
        rig.disk.tick();
        ended.resize(rig.ends.count(), ms);
    }
    assert_eq!(ended.len(), 3);
    assert!(ended[1] >= 49 && ended[2].abs_diff(150) <= 10, "{ended:?}");
    rig.tear_down();
}

#[test]
fn what_is_admitted_is_what_has_come_and_nothing_later() {
    let rig = rig(2);
    let limits = Throttle { iops: rate(1), ..Throttle::default() };
    let _group = limit(&rig.disk, limits);
    let read = |cpu| rig.submit(cpu, Bio::new(Op::Read, Sector(0), 512));
    rig.clock.advance_ms(1000);
    (0..10).for_each(|at| read(at % 2));
    rig.clock.advance_ms(1);
    rig.disk.admit_kept();
    assert_eq!((rig.ends.take().len(), rig.disk.oldest()), (10, None));
    rig.clock.advance_ms(1);
    (0..10).for_each(|at| read(at % 2));
    rig.clock.advance_ms(500);
    rig.disk.tick();
    assert_eq!(rig.ends.take().len(), 0, "they pay for what was admitted");
    // Others than those that it came under.
    limit(&rig.disk, limits);
    let at_once = rig.ends.take().len();
    rig.disk.admit_kept();
    assert_eq!((at_once + rig.ends.take().len(), rig.disk.oldest()), (10, None));
    rig.tear_down();
}

/// Also what comes later, with the limits that there are by then, as long as there is somebody who cannot wait for longer.
#[test]
fn nothing_waits_for_longer_than_who_waits_for_it_can() {
    let rig = rig(2);
    let limits = || Throttle { iops: rate(1), ..Throttle::default() };
    let group = limit(&rig.disk, limits());
    let read = |cpu| rig.submit(cpu, Bio::new(Op::Read, Sector(0), 512));
    let pass = |ms| {
        rig.clock.advance_ms(ms);
        rig.disk.tick();
        rig.ends.take().len()
    };
    rig.clock.advance_ms(1000);
    let long = rig.disk.limit_waits(Duration::from_secs(60));
    let short = rig.disk.limit_waits(Duration::from_millis(30));
    (0..10).for_each(|at| read(at % 2));
    let at_once = rig.ends.take().len();
    assert_eq!(pass(29), 0);
    (0..10).for_each(|at| read(at % 2));
    assert_eq!((pass(1), pass(28), pass(1)), (10 - at_once, 0, 10));
    // Other limits, and none before.
    rig.disk.set_throttle(Vec::new());
    limit(&rig.disk, limits());
    group.set(limits());
    (0..10).for_each(|at| read(at % 2));
    let at_once = rig.ends.take().len();
    let no_waits = rig.disk.limit_waits(Duration::ZERO);
    assert_eq!(rig.ends.take().len(), 10 - at_once, "without a tick");
    (0..10).for_each(|at| read(at % 2));
    assert_eq!(rig.ends.take().len(), 10, "whatever they owe");
    drop((short, no_waits));
    read(0);
    assert_eq!((rig.ends.take().len(), pass(900)), (0, 0), "what was let in is paid for");
    drop(long);
    assert_eq!(pass(50_000), 1);
    rig.tear_down();
}

#[test]
fn a_change_while_others_pay_leaves_the_group_as_it_was_told() {
    let rig = rig(2);
    let group = limit(&rig.disk, Throttle::default());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pay = |cpu| {
            while !done.load(Ordering::SeqCst) {
                rig.submit(cpu, Bio::new(Op::Read, Sector(0), 4096));
                drop(rig.disk.limit_waits(Duration::ZERO));
                rig.ends.take();
            }
        };
        scope.spawn(|| {
            // The last is a fast one.
            for at in 0..=5_000_u32 {
                let bps = rate(if at % 2 == 0 { 1 << 40 } else { 1 });
                let io_size = std::num::NonZeroU32::new(512 * (at % 3));
                group.set(Throttle { bps, iops: rate(1 << 40), io_size, ..Throttle::default() });
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(move || pay(1));
        pay(0);
    });
    rig.disk.tick();
    for cpu in [0, 1] {
        let before = rig.ends.count();
        rig.submit(cpu, Bio::new(Op::Read, Sector(0), 4096));
        rig.clock.advance_ms(1000);
        rig.disk.tick();
        assert!(rig.ends.count() > before, "{}", rig.disk.show());
    }
    rig.tear_down();
}

#[test]
fn what_reads_and_writes_share_is_kept_also_by_ticks_that_are_late() {
    for (iops, bps, late_ms) in
        [(Some(500), None, 1), (None, Some(4 * MIB), 1), (Some(500), None, 40)]
    {
        let rig = rig(2);
        let of = |limit: Option<u64>| limit.and_then(rate);
        limit(&rig.disk, Throttle { iops: of(iops), bps: of(bps), ..Throttle::default() });
        let mut loads = [(0, Op::Read), (0, Op::Write), (1, Op::Read), (1, Op::Write)]
            .map(|(queue, op)| Load::new(&rig.bdev, queue, op, 4096, 32));
        run(&rig, &[&rig.disk], &mut loads, 5000, late_ms);
        let done: Vec<u64> = loads.iter().map(|load| load.done).collect();
        let want = 5 * iops.unwrap_or_else(|| bps.unwrap_or_default() / 4096);
        assert_near(done.iter().sum(), want, 30);
        // Who is first when a tick comes late has what has become ready by then.
        let has_part = |&one: &u64| late_ms > 1 || one * 8 > want;
        assert!(done.iter().all(has_part), "each has a part: {done:?}");
        rig.disk.set_throttle(Vec::new());
        rig.tear_down();
    }
}
