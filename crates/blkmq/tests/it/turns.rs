//! Whose turn it is: pieces of large bios, tags, schedulers, reservations, and what is said of how things went.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use blockyard_blkmq::major::{DevNum, EXT_MAJOR};
use blockyard_blkmq::reservation::{PrError, PrType};
use blockyard_blkmq::{
    Bio, BlockLayer, Busy, Chain, Changed, Changes, Disk, DiskConfig, Driver, EndIo, ErrorKind,
    Features, Flags, HctxHandle, IoPrio, Limits, MonotonicClock, NoOps, Op, OpenMode, Outbox,
    Request, Result, Sector, StatGroup, Status, TagSet, TagSetConfig, TagSetFlags, sched,
};
use blockyard_buf::Segment;
use blockyard_conformance::HeldDisk;
use parking_lot::Mutex;

use crate::rig::{Ends, Rig, Watchdog, calm, disk_of};
use crate::script::{Chances, Config, DiskId, SECTOR, Script};

fn limits() -> Limits {
    Limits { features: Features::NOMERGES, ..Limits::default() }
}

fn set(queues: usize, depth: u32) -> TagSetConfig {
    TagSetConfig { cpus: queues, hw_queues: [queues, 0, 0], depth, ..TagSetConfig::default() }
}

fn rig(set: TagSetConfig, limits: Limits, sectors: u64) -> Rig {
    Rig::new(1, set, Config { limits: limits.validate().unwrap(), ..Config::default() }, sectors)
}

fn read(sector: u64) -> Box<Bio> {
    Bio::new(Op::Read, Sector(sector), 512)
}

fn write(sector: u64) -> Box<Bio> {
    let data = Segment::from_vec(vec![7; SECTOR]);
    Bio::with_data(Op::Write, Sector(sector), [data].into_iter().collect())
}

fn statuses(rig: &Rig) -> Vec<Status> {
    rig.ends.take().iter().map(|bio| bio.status()).collect()
}

fn told(rig: &Rig, bio: Box<Bio>) -> Box<Bio> {
    bio.on_end(Arc::<Ends>::clone(&rig.ends))
}

/// What was asked of a hardware queue, in order.
fn asked(rig: &Rig, queue: usize) -> Vec<(Op, u64)> {
    let log = rig.script.log.lock();
    log.iter().filter(|entry| entry.0 == queue).map(|&(_, op, sector)| (op, sector)).collect()
}

/// A disk with three partitions, which nobody has looked for.
fn parted(set: &Arc<TagSet<Script>>, id: DiskId, minors: u32) -> Arc<Disk> {
    let image = crate::parity::mbr();
    let sectors = Sector::from_bytes_floor(image.len() as u64);
    let mut config = DiskConfig::new("parted", sectors, Limits::default());
    (config.dev, config.minors) = (DevNum { major: 240, minor: 0 }, minors);
    disk_of(set, id, &image, config, Arc::new(NoOps))
}

#[test]
fn pieces_of_a_large_bio_take_turns_with_others() {
    let limits = Limits { max_hw_sectors: 8, ..limits() };
    let rig = rig(set(1, 2), limits, 1024);
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 1024 * 512));
    rig.submit(0, read(7));
    rig.submit(0, read(8));
    rig.script.finish_all();
    let log = asked(&rig, 0);
    let at = |sector| log.iter().position(|entry| *entry == (Op::Read, sector)).unwrap();
    assert!(at(7) <= 4 && at(8) <= 6, "{:?}", &log[..10]);
    assert_eq!(statuses(&rig), [Status::Ok; 3]);
    rig.tear_down();
}

#[test]
fn a_large_bio_has_a_few_pieces_under_way_and_leaves_the_other_tags() {
    let limits = Limits { max_hw_sectors: 2048, max_user_sectors: Some(2048), ..limits() };
    let rig = rig(set(1, 64), limits, 24_576);
    rig.submit(0, Bio::new(Op::Read, Sector(0), 12 << 20));
    let out = rig.script.out();
    assert!((4..=5).contains(&out), "{out} pieces of a MiB");
    rig.submit(0, read(7));
    assert_eq!(rig.script.out(), out + 1);
    rig.script.finish_all();
    let ends = rig.ends.take();
    let bytes = |bio: &Bio| bio.data().iter().map(Segment::len).sum::<usize>();
    assert_eq!(ends.iter().map(|bio| bytes(bio)).sum::<usize>(), (12 << 20) + 512);
    rig.tear_down();
}

#[test]
fn the_rest_of_what_nobody_waits_for_any_more_is_not_done() {
    let limits = Limits { max_hw_sectors: 8, ..limits() };
    let rig = rig(set(1, 2), limits, 1024);
    let outbox = Arc::new(Outbox::default());
    let zeroes = Bio::new(Op::WriteZeroes, Sector(0), 1024 * 512);
    rig.bdev.submit(0, zeroes.on_end(Arc::<Outbox>::clone(&outbox)));
    outbox.close();
    rig.submit(0, read(7));
    rig.script.finish_all();
    assert_eq!(asked(&rig, 0).len(), 3, "two pieces that were out, and the read");
    assert_eq!(statuses(&rig), [Status::Ok]);
    assert_eq!(Arc::strong_count(&outbox), 1, "it has ended");
    rig.tear_down();
}

#[test]
fn a_child_that_is_cut_keeps_its_place_in_its_chain() {
    let limits = Limits { max_hw_sectors: 8, ..limits() };
    let rig = rig(set(1, 8), limits, 64);
    let image: Vec<u8> = (0..64 * SECTOR).map(|i| (i / SECTOR) as u8).collect();
    rig.script.load(0, &image);
    let parent = told(&rig, Bio::new(Op::Read, Sector(0), 32 * 512));
    let mut second = parent.clone_rest();
    let chain = Chain::new(parent);
    let mut first = second.split(16 * 512);
    chain.add(&mut first);
    chain.add(&mut second);
    chain.close();
    rig.bdev.submit(0, first);
    rig.bdev.submit(0, second);
    rig.script.finish_all();
    let bio = rig.ends.take().pop().unwrap();
    let bytes: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
    assert!(bytes == image[..32 * SECTOR], "the data is in order");
    rig.tear_down();
}

#[test]
fn a_cut_takes_along_the_memory_of_its_part_only() {
    let data = (0..2000).map(|i| Segment::from_vec(vec![(i % 251) as u8; 512])).collect();
    let mut bio = Bio::with_data(Op::Write, Sector(0), data);
    let front = bio.split(3 * 512 + 100);
    assert_eq!((front.data().len(), front.len()), (4, 3 * 512 + 100));
    assert_eq!(bio.segments().next().unwrap().len(), 412);
}

#[test]
fn a_scheduler_over_several_queues_keeps_what_has_no_tag_sorted() {
    let rig = rig(set(2, 1), limits(), 128);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    rig.disk.set_nr_requests(8).unwrap();
    rig.submit(1, read(0));
    [40, 30, 20].into_iter().for_each(|sector| rig.submit(1, write(sector)));
    rig.submit(0, read(60));
    rig.submit(0, read(61));
    rig.submit(1, read(50));
    rig.script.finish_all();
    let want = [(Op::Read, 0), (Op::Read, 50), (Op::Write, 20), (Op::Write, 30), (Op::Write, 40)];
    assert_eq!(asked(&rig, 1), want, "reads first, then by sector");
    assert_eq!(asked(&rig, 0), [(Op::Read, 60), (Op::Read, 61)]);
    assert_eq!(rig.ends.count(), 7);
    rig.tear_down();
}

#[test]
fn what_has_no_budget_stays_with_the_scheduler() {
    let config = Config { limits: limits(), budget: Some(1), ..Config::default() };
    let rig = Rig::new(1, set(1, 8), config, 128);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    [0, 40, 30, 20].into_iter().for_each(|sector| rig.submit(0, read(sector)));
    rig.script.finish_all();
    let order: Vec<u64> = asked(&rig, 0).into_iter().map(|(_, sector)| sector).collect();
    assert_eq!(order, [0, 20, 30, 40]);
    assert_eq!(rig.ends.count(), 4);
    rig.tear_down();
}

#[test]
fn who_is_short_of_something_has_the_disk_ticked_soon() {
    let chances = Chances { resource: 1000, ..Chances::default() };
    let config = Config { limits: limits(), chances, ..Config::default() };
    let rig = Rig::new(1, set(1, 4), config, 64);
    let rung = Arc::<AtomicUsize>::default();
    let ring = Arc::clone(&rung);
    rig.disk.set_alarm(Arc::new(move || _ = ring.fetch_add(1, Ordering::SeqCst)));
    rig.submit(0, read(0));
    assert_eq!((rung.load(Ordering::SeqCst), rig.script.out()), (1, 0));
    assert_eq!(rig.disk.tick(), Some(3_000_000), "not before");
    rig.script.calm_down();
    rig.clock.advance_ms(3);
    rig.disk.tick();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}

#[test]
fn who_waits_with_nothing_that_can_be_done_leaves_its_share_of_the_tags() {
    let rig = rig(set(1, 16), limits(), 64);
    let other = rig.another(1).unwrap();
    let bdev = other.open(None, OpenMode::ReadWrite).unwrap();
    (0..16).for_each(|sector| rig.submit(0, read(sector)));
    bdev.submit(0, told(&rig, read(0)));
    assert_eq!(rig.script.out(), 16);
    other.set_capacity(Sector(0)).unwrap();
    rig.script.finish_all();
    let mut ends = statuses(&rig);
    ends.sort_by_key(|status| status.errno());
    assert_eq!(ends[..16], [Status::Ok; 16]);
    assert_eq!(ends[16..], [Status::OutOfRange]);
    (0..16).for_each(|sector| rig.submit(0, read(sector)));
    assert_eq!(rig.script.out(), 16, "all tags, not a half of them");
    rig.script.finish_all();
    rig.layer.del_disk(&other);
    drop((bdev, other));
    rig.tear_down();
}

#[test]
fn a_queue_without_a_tag_and_one_without_a_budget_do_not_wake_each_other_for_ever() {
    let config = Config { limits: limits(), budget: Some(4), ..Config::default() };
    let set = TagSetConfig { flags: TagSetFlags::TAG_HCTX_SHARED, ..set(2, 8) };
    let rig = Rig::new(1, set, config, 128);
    let _watchdog = Watchdog::new("a queue", rig.ends.counter(), String::new);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    // All of the budget, and all tags that are this queue's share as soon as the other has something to do.
    (0..4).for_each(|sector| rig.submit(0, write(sector)));
    // One more than there are requests, so that the queue keeps its share although it holds no tag.
    (0..17).for_each(|sector| rig.submit(1, read(sector)));
    rig.submit(0, write(64));
    assert_eq!((rig.script.out(), rig.ends.count()), (4, 0));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 22]);
    rig.tear_down();
}

/// The queue that has a unit and no tag runs the other, which has a tag that it does not need, and wakes the first.
#[test]
fn whoever_gives_a_unit_of_the_budget_back_may_be_run_by_whom_that_wakes() {
    let config = Config { limits: limits(), budget: Some(16), ..Config::default() };
    let set = TagSetConfig { flags: TagSetFlags::TAG_HCTX_SHARED, ..set(2, 8) };
    let rig = Rig::new(1, set, config, 128);
    let _watchdog = Watchdog::new("a queue", rig.ends.counter(), String::new);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    rig.submit(0, read(0));
    (8..12).for_each(|sector| rig.submit(1, read(sector)));
    rig.script.refuse_budget();
    rig.submit(1, read(24));
    assert_eq!(rig.script.out(), 5, "four tags are its share");
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 6]);
    rig.tear_down();
}

#[test]
fn a_lower_class_goes_on_by_another_queue_once_the_higher_is_through() {
    let rig = rig(set(2, 2), limits(), 128);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    let prio = |mut bio: Box<Bio>, prio| {
        bio.prio = prio;
        bio
    };
    rig.submit(0, prio(read(0), IoPrio::RealTime(0)));
    rig.submit(1, prio(read(10), IoPrio::BestEffort(4)));
    assert_eq!(asked(&rig, 1), [], "the class above has one at the driver");
    assert!(rig.script.step());
    assert_eq!(asked(&rig, 1), [(Op::Read, 10)]);
    rig.script.finish_all();
    assert_eq!(rig.ends.count(), 2);
    rig.tear_down();
}

#[test]
fn a_scheduler_hears_of_nothing_that_it_did_not_send() {
    let mut shown = 0;
    for seed in 0..20 {
        let limits = Limits { features: Features::NOMERGES | Features::WRITE_CACHE, ..limits() };
        let config = Config { limits: limits.validate().unwrap(), ..Config::default() };
        let rig = Rig::new(seed, set(1, 8), config, 64);
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
        for mut bio in [read(0), Bio::flush(), write(8).with_flags(Flags::FUA)] {
            bio.prio = IoPrio::RealTime(0);
            rig.submit(0, bio);
        }
        rig.submit(0, read(20));
        while rig.ends.count() == 0 {
            rig.script.step();
        }
        let first = rig.ends.take();
        if first.iter().all(|bio| bio.op != Op::Read) {
            shown += 1;
            assert!(!asked(&rig, 0).contains(&(Op::Read, 20)), "the class above is at the driver");
        }
        rig.script.finish_all();
        rig.tear_down();
    }
    assert!(shown > 0, "some seed ends another first");
}

#[test]
fn async_depth_leaves_requests_to_reads() {
    let rig = rig(set(1, 8), limits(), 64);
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    rig.disk.tune_scheduler("async_depth", Some(2)).unwrap();
    (0..4).for_each(|i| rig.submit(0, write(i * 8)));
    assert_eq!(rig.script.out(), 2);
    rig.submit(0, read(50));
    assert_eq!(rig.script.out(), 3, "a read does not stand behind the writes that wait");
    rig.disk.tune_scheduler("async_depth", Some(3)).unwrap();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 5]);
    rig.tear_down();
}

#[test]
fn who_waits_for_a_reserved_tag_is_told_of_one() {
    let mut shown = 0;
    for seed in 0..20 {
        let set = TagSetConfig { reserved: 1, flags: TagSetFlags::TAG_HCTX_SHARED, ..set(2, 2) };
        let config = Config { limits: limits(), one_pool: true, ..Config::default() };
        let rig = Rig::new(seed, set, config, 64);
        rig.submit(0, read(0));
        rig.submit(0, read(10).with_flags(Flags::RESERVED));
        rig.submit(1, read(20).with_flags(Flags::RESERVED));
        assert_eq!(rig.script.out(), 2);
        assert!(rig.script.step());
        if rig.ends.take()[0].sector() != Sector(0) {
            shown += 1;
            assert_eq!(asked(&rig, 1), [(Op::Read, 20)]);
        }
        rig.script.finish_all();
        rig.tear_down();
    }
    assert!(shown > 0, "some seed ends the reserved one first");
}

#[test]
fn a_disk_that_somebody_holds_frozen_is_removed() {
    let limits = Limits { features: Features::WRITE_CACHE, ..limits() };
    let rig = rig(set(1, 2), limits, 64);
    rig.script.calm_down();
    rig.disk.freeze();
    let (tell, gone) = mpsc::channel();
    let disk = Arc::clone(&rig.disk);
    let removing = std::thread::spawn(move || {
        blockyard_blkmq::BlockLayer::new().del_disk(&disk);
        drop(disk);
        tell.send(()).unwrap();
    });
    gone.recv_timeout(Duration::from_secs(60)).expect("it is removed");
    removing.join().unwrap();
    rig.disk.unfreeze();
    assert_eq!(rig.script.counts.flushes.load(Ordering::SeqCst), 1);
    rig.tear_down();
}

/// What a thread returns, which ends as the driver goes on.
fn stepping<T>(rig: &Rig, thread: ScopedJoinHandle<'_, T>) -> T {
    while !thread.is_finished() {
        rig.script.step();
        std::thread::yield_now();
    }
    thread.join().unwrap()
}

#[test]
fn a_disk_that_is_frozen_and_flushed_has_answered_nothing_that_is_not_durable() {
    let limits = Limits { features: Features::WRITE_CACHE | Features::NOMERGES, ..limits() };
    let rig = rig(set(1, 2), limits, 64);
    let _watchdog = Watchdog::new("a flush", || 0, String::new);
    rig.submit(0, write(0));
    assert_eq!((rig.script.out(), rig.ends.count()), (1, 0));
    let flushes = || rig.script.counts.flushes.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let freezing = scope.spawn(|| rig.disk.freeze_and_flush());
        while !rig.disk.show().contains("frozen 1") {
            std::thread::yield_now();
        }
        rig.submit(0, write(8));
        let waits = !freezing.is_finished() && flushes() == 0;
        assert_eq!((stepping(&rig, freezing), waits), (Status::Ok, true));
    });
    assert_eq!(flushes(), 1);
    let ops: Vec<_> = asked(&rig, 0).into_iter().map(|(op, _)| op).collect();
    assert_eq!(ops, [Op::Write, Op::Flush]);
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok], "the other one waits");
    rig.disk.unfreeze();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    assert_eq!(asked(&rig, 0).last(), Some(&(Op::Write, 8)));
    rig.tear_down();
}

#[test]
fn who_freezes_and_flushes_a_disk_is_told_that_the_flush_has_failed() {
    let limits = Limits { features: Features::WRITE_CACHE, ..limits() };
    let chances = Chances { error: 1000, ..Chances::default() };
    let config = Config { limits: limits.validate().unwrap(), chances, ..Config::default() };
    let rig = Rig::new(1, set(1, 2), config, 64);
    let _watchdog = Watchdog::new("a flush", || 0, String::new);
    let status =
        std::thread::scope(|scope| stepping(&rig, scope.spawn(|| rig.disk.freeze_and_flush())));
    assert!(!status.is_ok(), "{status}");
    rig.disk.unfreeze();
    rig.tear_down();
}

#[test]
fn a_completion_may_quiesce_its_disk() {
    let rig = rig(set(1, 1), limits(), 64);
    rig.script.calm_down();
    let disk = Arc::downgrade(&rig.disk);
    let bio = read(0).on_end(Arc::new(move |_: Box<Bio>| {
        if let Some(disk) = disk.upgrade() {
            disk.quiesce_nowait();
        }
    }));
    rig.bdev.submit(0, bio);
    rig.submit(0, read(1));
    assert_eq!(rig.ends.count(), 0);
    rig.disk.unquiesce();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}

#[test]
fn what_waits_is_let_in_by_the_reservation_that_there_is_then() {
    let rig = rig(set(1, 1), limits(), 64);
    let other = rig.disk.open(None, OpenMode::ReadWrite).unwrap();
    rig.bdev.reserve(|pr, me| pr.register(me, 0, 1, false)).unwrap();
    rig.bdev.reserve(|pr, me| pr.reserve(me, 1, PrType::WriteExclusive)).unwrap();
    rig.submit(0, read(0));
    rig.submit(0, write(8));
    other.reserve(|pr, me| pr.register(me, 0, 2, false)).unwrap();
    std::thread::scope(|scope| {
        let preempting = scope.spawn(|| other.preempt_and_abort(2, 1, PrType::WriteExclusive));
        while !rig.disk.show().contains("frozen 1") {
            std::thread::yield_now();
        }
        while !preempting.is_finished() {
            rig.script.step();
            std::thread::yield_now();
        }
        assert_eq!(preempting.join().unwrap().unwrap().len(), 1);
    });
    rig.script.finish_all();
    let mut ends = statuses(&rig);
    ends.sort_by_key(|status| status.errno());
    assert_eq!(ends, [Status::Ok, Status::ReservationConflict]);
    drop(other);
    rig.submit(0, write(8));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok], "who is gone holds nothing");
    rig.tear_down();
}

#[test]
fn a_reservation_does_not_keep_the_block_layer_from_the_partitions_of_a_disk() {
    let layer = BlockLayer::new();
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = parted(&set, 0, 16);
    layer.add_disk(&disk).unwrap();
    let [holder, other] = [(); 2].map(|()| disk.open(None, OpenMode::ReadWrite).unwrap());
    holder.reserve(|pr, me| pr.register(me, 0, 1, false)).unwrap();
    holder.reserve(|pr, me| pr.reserve(me, 1, PrType::ExclusiveAccess)).unwrap();
    assert_eq!(other.submit_and_wait(0, read(0)).status(), Status::ReservationConflict);
    assert_eq!(layer.rescan_partitions(&disk).unwrap(), 3);
    let part = disk.open(Some(1), OpenMode::ReadWrite).unwrap();
    assert_eq!(part.submit_and_wait(0, read(0)).status(), Status::ReservationConflict);
    layer.del_disk(&disk);
}

/// It would keep the others from all of it.
#[test]
fn a_partition_reserves_nothing() {
    let layer = BlockLayer::new();
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = parted(&set, 0, 16);
    layer.add_disk(&disk).unwrap();
    let [one, two] = [1, 2].map(|number| disk.open(Some(number), OpenMode::ReadWrite).unwrap());
    assert_eq!(one.reserve(|pr, me| pr.register(me, 0, 1, false)), Err(PrError::NotWhole));
    let aborted = one.preempt_and_abort(1, 2, PrType::WriteExclusive);
    assert_eq!(aborted, Err(PrError::NotWhole));
    assert_eq!(two.submit_and_wait(0, write(0)).status(), Status::Ok);
    let whole = disk.open(None, OpenMode::ReadWrite).unwrap();
    assert_eq!(whole.reserve(|pr, _| Ok(pr.is_reserved())), Ok(false));
    layer.del_disk(&disk);
}

#[test]
fn what_is_merged_is_counted_for_its_partition_too() {
    let rig = rig(set(1, 4), Limits::default(), 64);
    let disk = parted(&rig.set, 7, 16);
    std::thread::scope(|scope| {
        stepping(&rig, scope.spawn(|| rig.layer.add_disk(&disk).unwrap()));
    });
    let bdev = disk.open(Some(2), OpenMode::ReadWrite).unwrap();
    disk.quiesce();
    [4, 5, 3, 20].into_iter().for_each(|sector| bdev.submit(0, told(&rig, write(sector))));
    disk.unquiesce();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 4]);
    let merges = |part: u32| {
        let parts = disk.partitions();
        let part = parts.iter().find(|other| other.info().number == part).unwrap();
        part.stats().0.counters(StatGroup::Write).merges
    };
    assert_eq!((merges(1), merges(2)), (0, 2));
    drop(bdev);
    rig.script.calm_down();
    rig.layer.del_disk(&disk);
    drop(disk);
    rig.tear_down();
}

/// Of two at once, one may find the disk gone: partitions of it, and their numbers, are not left.
#[test]
fn partitions_that_are_looked_for_while_their_disk_is_removed_go_with_it() {
    let layer = BlockLayer::new();
    let set = calm(1, TagSetConfig::default(), Limits::default());
    for round in 0..100 {
        let disk = parted(&set, 0, 1);
        layer.add_disk(&disk).unwrap();
        let first = disk.partitions()[0].dev();
        assert_eq!(first, DevNum { major: EXT_MAJOR, minor: 0 }, "round {round}: given back");
        let together = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                match layer.rescan_partitions(&disk) {
                    Ok(count) => assert_eq!(count, 3),
                    Err(err) => assert!(
                        [ErrorKind::Offline, ErrorKind::Io].contains(&err.kind()),
                        "round {round}: {err}"
                    ),
                }
            });
            together.wait();
            layer.del_disk(&disk);
        });
        assert!(disk.partitions().is_empty(), "round {round}");
    }
}

/// What the disk says and what it does is the same, whoever was last.
#[test]
fn a_disk_that_two_make_read_only_and_writable_at_once_is_one_of_both() {
    let rig = rig(set(2, 4), limits(), 64);
    rig.script.calm_down();
    for round in 0..200 {
        // Somebody who knows what it was, and looks again whenever he is told that it has changed.
        let (mut changes, mut known) = (Changes::of(&rig.disk), rig.disk.is_read_only());
        let mut follow = || {
            let mut context = Context::from_waker(Waker::noop());
            while let Poll::Ready(changed) = pin!(changes.next()).poll(&mut context) {
                assert_eq!(changed, Changed::READ_ONLY);
                known = rig.disk.is_read_only();
            }
            known
        };
        let together = Barrier::new(3);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                follow();
            });
            for read_only in [true, false] {
                let (disk, together) = (&rig.disk, &together);
                scope.spawn(move || {
                    together.wait();
                    disk.set_read_only(read_only);
                });
            }
        });
        assert_eq!(follow(), rig.disk.is_read_only(), "{round}: nobody has told of the last one");
        let expected = if rig.disk.is_read_only() { Status::NotPermitted } else { Status::Ok };
        for cpu in [0, 1] {
            assert_eq!(rig.bdev.submit_and_wait(cpu, write(0)).status(), expected, "{round}");
        }
        assert_eq!(rig.bdev.is_read_only(), rig.disk.is_read_only());
    }
    rig.disk.set_read_only(false);
    rig.tear_down();
}

#[test]
fn a_reservation_does_not_keep_the_last_flush_from_a_disk() {
    let limits = Limits { features: Features::WRITE_CACHE, ..limits() };
    let rig = rig(set(1, 1), limits, 64);
    rig.script.calm_down();
    rig.bdev.reserve(|pr, me| pr.register(me, 0, 1, false)).unwrap();
    rig.bdev.reserve(|pr, me| pr.reserve(me, 1, PrType::ExclusiveAccess)).unwrap();
    rig.layer.del_disk(&rig.disk);
    assert_eq!(rig.script.counts.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(PrError::NotWhole.status(), Status::NotPermitted);
    rig.tear_down();
}

#[test]
fn questions_are_no_reads_in_the_statistics_and_every_queue_makes_a_disk_busy() {
    let features = Features::NOMERGES | Features::BLOCK_STATUS | Features::PREFETCH;
    let rig = rig(set(2, 4), Limits { features, ..limits() }, 64);
    for op in [Op::BlockStatus, Op::Prefetch] {
        rig.submit(0, Bio::new(op, Sector(0), 64 * 512));
    }
    rig.script.finish_all();
    assert_eq!(asked(&rig, 0), [(Op::BlockStatus, 0), (Op::Prefetch, 0)]);
    assert_eq!(statuses(&rig), [Status::Ok; 2]);
    let (stats, before) = rig.disk.stats();
    let reads = *stats.counters(StatGroup::Read);
    assert_eq!((reads.ios, reads.sectors, stats.in_flight()), (0, 0, [0, 0]));
    rig.submit(0, read(0));
    rig.clock.advance_ms(50);
    rig.submit(1, read(8));
    rig.clock.advance_ms(50);
    rig.submit(1, read(16));
    assert_eq!(rig.disk.stats().1 - before, 100);
    rig.script.finish_all();
    rig.tear_down();
}

#[test]
fn an_error_of_a_part_is_of_the_bios_in_it_and_of_no_others() {
    let held = HeldDisk::new(TagSetConfig::default(), 64 * 512, Limits::default());
    let bdev = held.disk.open(None, OpenMode::ReadWrite).unwrap();
    let next = || held.take(|_| true).unwrap();
    let ends = Arc::<Ends>::default();
    let mut plug: Vec<_> =
        [0, 1, 2].into_iter().map(|s| write(s).on_end(Arc::<Ends>::clone(&ends))).collect();
    bdev.submit_all(0, &mut plug);
    let rq = next();
    assert_eq!(rq.len(), 3 * 512, "merged");
    let rq = rq.update(Status::Medium, 512).unwrap();
    rq.complete(Status::Ok);
    let statuses: Vec<_> = ends.take().iter().map(|bio| bio.status()).collect();
    assert_eq!(statuses, [Status::Medium, Status::Ok, Status::Ok]);
    bdev.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 512).on_end(Arc::<Ends>::clone(&ends)));
    next().complete(Status::Ok);
    let large = Segment::from_vec(vec![1; 4096]);
    let large = Bio::with_data(Op::Write, Sector(0), [large].into_iter().collect());
    ends.take();
    bdev.submit(0, large.on_end(Arc::<Ends>::clone(&ends)));
    let rq = next().update(Status::Medium, 512).unwrap();
    rq.requeue();
    let rq = next();
    assert_eq!(rq.status(), Status::Ok, "what is issued again has not failed yet");
    rq.complete(Status::Ok);
    assert_eq!(ends.take()[0].status(), Status::Medium, "a part of it has");
}

/// Zeroes in turns, of which each may be followed by one more.
#[derive(Default)]
struct Turns {
    said: Mutex<Vec<(Op, u64)>>,
    left: AtomicUsize,
}

impl Driver for Turns {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        self.said.lock().push((rq.op(), rq.sector().0));
        let one_less = |left: usize| left.checked_sub(1);
        if rq.op() == Op::WriteZeroes
            && self.left.try_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
        {
            rq.resume_later();
        } else {
            rq.complete(Status::Ok);
        }
        Ok(())
    }
}

#[test]
fn who_comes_between_two_ticks_waits_for_one_turn_of_what_takes_long() {
    let driver = Arc::<Turns>::default();
    driver.left.store(12, Ordering::SeqCst);
    let set = TagSet::new(Arc::clone(&driver), TagSetConfig::default()).unwrap();
    let limits = Limits { max_write_zeroes_sectors: 8, ..Limits::default() };
    let config = DiskConfig::new("turns", Sector(64), limits);
    let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new()));
    let disk = disk.unwrap();
    disk.set_alarm(Arc::new(|| {}));
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    for sector in [0, 8, 16, 24] {
        bdev.submit(0, Bio::new(Op::WriteZeroes, Sector(sector), 4096));
    }
    driver.said.lock().clear();
    for turn in 0..12 {
        disk.tick();
        bdev.submit(0, read(32 + turn));
        let zeroed = (Op::WriteZeroes, turn % 4 * 8);
        assert_eq!(std::mem::take(&mut *driver.said.lock()), [zeroed, (Op::Read, 32 + turn)]);
    }
    assert!(disk.in_flight().is_empty());
}

#[test]
fn two_disks_do_not_have_one_device_number() {
    let rig = rig(set(1, 1), limits(), 64);
    let numbered = |name: &str, id, minor| {
        rig.set.driver().add_image(id, 64);
        let mut config = DiskConfig::new(name, Sector(64), limits());
        config.dev = DevNum { major: 240, minor };
        config.minors = 16;
        let clock = Arc::new(MonotonicClock::new());
        Disk::alloc(&rig.set, id, config, Arc::new(NoOps), clock).unwrap()
    };
    rig.script.calm_down();
    let (first, second, third) = (numbered("a", 1, 0), numbered("b", 2, 15), numbered("c", 3, 31));
    rig.layer.add_disk(&first).unwrap();
    assert_eq!(rig.layer.add_disk(&second).unwrap_err().kind(), ErrorKind::Exists);
    rig.layer.add_disk(&third).unwrap();
    rig.layer.del_disk(&first);
    rig.layer.add_disk(&second).unwrap();
    assert_eq!(rig.layer.rescan_partitions(&first).unwrap_err().kind(), ErrorKind::Offline);
    for disk in [second, third] {
        rig.layer.del_disk(&disk);
    }
    drop(first);
    rig.tear_down();
}

/// Whoever ends a bio is asked whether anybody is interested.
struct Nobody;

impl EndIo for Nobody {
    fn end_io(&self, _bio: Box<Bio>) {}
}

#[test]
fn an_owner_is_interested_unless_it_says_otherwise() {
    assert!(!Nobody.is_gone());
}
