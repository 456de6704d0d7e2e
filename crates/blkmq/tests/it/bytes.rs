//! Operations on bytes that are no whole blocks: what they do, and that no update of a block is lost between them, from
//! whatever queue they and other writes come.

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, Bio, BlockSize, Disk, DiskConfig, EndIo, ErrorKind, Extent, Features, Flags, Limits,
    NoOps, Op, OpenMode, Sector, Status, TagSetConfig, TagSetFlags, sched,
};
use blockyard_buf::Segment;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::rig::{Rig, Watchdog, calm, disk_of, seed};
use crate::script::{Chances, Config, SECTOR};

fn queues(count: usize, depth: u32) -> TagSetConfig {
    TagSetConfig { cpus: count, hw_queues: [count, 0, 0], depth, ..TagSetConfig::default() }
}

fn limits() -> Limits {
    Limits {
        max_hw_discard_sectors: 1 << 20,
        max_write_zeroes_sectors: 1 << 20,
        max_secure_erase_sectors: 1 << 20,
        features: Features::BLOCK_STATUS | Features::NOMERGES,
        ..Limits::default()
    }
    .validate()
    .unwrap()
}

fn rig(count: usize, depth: u32) -> Rig {
    Rig::new(1, queues(count, depth), Config { limits: limits(), ..Config::default() }, 64)
}

fn write(offset: u64, bytes: Vec<u8>) -> Box<Bio> {
    let mut bio = Bio::at_bytes(Op::Write, offset, 0);
    bio.add_segment(Segment::from_vec(bytes));
    bio
}

fn aligned(sector: u64, byte: u8, sectors: usize) -> Box<Bio> {
    let data = Segment::from_vec(vec![byte; sectors * SECTOR]);
    Bio::with_data(Op::Write, Sector(sector), [data].into_iter().collect())
}

/// What the driver was asked since the last time, in order.
fn asked(rig: &Rig) -> Vec<(Op, u64)> {
    let log = std::mem::take(&mut *rig.script.log.lock());
    log.into_iter().map(|(_, op, sector)| (op, sector)).collect()
}

fn statuses(rig: &Rig) -> Vec<Status> {
    rig.ends.take().iter().map(|bio| bio.status()).collect()
}

fn bytes_of(bio: &Bio) -> Vec<u8> {
    bio.data().iter().flat_map(Segment::to_vec).collect()
}

#[test]
fn whole_blocks_go_the_usual_way() {
    let rig = rig(1, 8);
    rig.submit(0, write(1024, vec![1; 2048]));
    rig.submit(0, Bio::at_bytes(Op::Read, 512, 512));
    rig.submit(0, Bio::at_bytes(Op::Discard, 8192, 512));
    assert_eq!(asked(&rig), [(Op::Write, 2), (Op::Read, 1), (Op::Discard, 16)]);
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 3]);
    rig.tear_down();
}

#[test]
fn the_edges_of_a_write_are_read_changed_and_written_and_the_rest_as_it_is() {
    let rig = rig(1, 8);
    rig.script.load(0, &[0x11; 64 * SECTOR]);
    rig.submit(0, write(500, vec![0x22; 1100]));
    rig.script.finish_all();
    let mut log = asked(&rig);
    log.sort_by_key(|&(op, sector)| (sector, op != Op::Read));
    let want = [(Op::Read, 0), (Op::Write, 0), (Op::Write, 1), (Op::Read, 3), (Op::Write, 3)];
    assert_eq!(log, want);
    assert_eq!(statuses(&rig), [Status::Ok]);
    let mut model = vec![0x11; 64 * SECTOR];
    model[500..1600].fill(0x22);
    assert!(rig.script.bytes(0) == model);
    for (offset, len) in [(3, 5), (510, 4), (512, 3), (700, 324), (1023, 1025)] {
        rig.submit(0, write(offset, vec![0x33; len]));
        rig.script.finish_all();
        assert_eq!(statuses(&rig), [Status::Ok], "{len} bytes at {offset}");
        model[offset as usize..offset as usize + len].fill(0x33);
        assert!(rig.script.bytes(0) == model, "{len} bytes at {offset}");
    }
    rig.submit(0, Bio::at_bytes(Op::WriteZeroes, 100, 5000).with_flags(Flags::NOUNMAP));
    rig.submit(0, Bio::at_bytes(Op::Discard, 6000, 5000));
    rig.submit(0, Bio::at_bytes(Op::Discard, 20_001, 100));
    rig.script.finish_all();
    model[100..5100].fill(0);
    model[6144..10752].fill(0);
    assert!(rig.script.bytes(0) == model, "zeroes and whole blocks within");
    assert_eq!(statuses(&rig), [Status::Ok; 3]);
    rig.tear_down();
}

#[test]
fn what_is_read_is_trimmed_into_either_memory() {
    let rig = rig(1, 8);
    let image: Vec<u8> = (0..64 * SECTOR).map(|i| (i % 251) as u8).collect();
    rig.script.load(0, &image);
    for (offset, len) in [(1, 1), (500, 1100), (512, 7), (0, 32767)] {
        rig.submit(0, Bio::at_bytes(Op::Read, offset, len as u64));
        let memory: Vec<_> = [len / 3, len - len / 3]
            .into_iter()
            .filter(|&len| len > 0)
            .map(|len| Segment::from_vec(vec![0xaa; len]))
            .collect();
        let mut own = Bio::at_bytes(Op::Read, offset, 0);
        memory.iter().for_each(|segment| own.add_segment(segment.clone()));
        rig.submit(0, own);
        rig.script.finish_all();
        for bio in rig.ends.take() {
            assert_eq!((bio.status(), bio.len()), (Status::Ok, len as u64));
            assert!(bytes_of(&bio) == image[offset as usize..offset as usize + len]);
        }
    }
    rig.tear_down();
}

#[test]
fn block_status_of_bytes_is_of_these_bytes() {
    let rig = rig(1, 8);
    let mut image = vec![0; 64 * SECTOR];
    image[1024..2048].fill(1);
    rig.script.load(0, &image);
    rig.submit(0, Bio::at_bytes(Op::BlockStatus, 1000, 1500));
    rig.script.finish_all();
    let want = [Extent::hole(24), Extent::data(1024), Extent::hole(452)];
    assert_eq!(rig.ends.take()[0].extents, want);
    let flat = Limits { features: Features::empty(), ..rig.disk.limits() };
    rig.disk.set_limits(flat).unwrap();
    rig.submit(0, Bio::at_bytes(Op::BlockStatus, 1000, 1500));
    assert_eq!(rig.ends.take()[0].extents, [Extent::data(1500)]);
    rig.tear_down();
}

#[test]
fn what_cannot_be_done_with_bytes_is_told_before_anything_is_done() {
    let rig = rig(1, 8);
    let end = rig.disk.size_bytes();
    rig.submit(0, Bio::at_bytes(Op::Read, end - 1, 2));
    rig.submit(0, Bio::at_bytes(Op::Read, u64::MAX - 3, 100));
    rig.submit(0, Bio::at_bytes(Op::SecureErase, 1, 5000));
    rig.submit(0, write(1, vec![1; 5]).with_flags(Flags::NOWAIT));
    rig.submit(0, Bio::at_bytes(Op::Write, 1, 5));
    rig.submit(0, Bio::at_bytes(Op::Read, 77, 0));
    rig.submit(0, Bio::new(Op::Read, Sector(0), 100));
    let want = [
        Status::OutOfRange,
        Status::OutOfRange,
        Status::Invalid,
        Status::Again,
        Status::Invalid,
        Status::Ok,
        Status::Invalid,
    ];
    assert_eq!(statuses(&rig), want);
    rig.disk.set_read_only(true);
    rig.submit(0, write(1, vec![1; 5]));
    assert_eq!(statuses(&rig), [Status::NotPermitted]);
    assert_eq!(asked(&rig), []);
    rig.tear_down();
}

#[test]
fn padding_at_the_end_is_out_of_range_for_bytes_and_there_for_sectors() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let image = vec![1; 8 * SECTOR];
    let config = |padding| DiskConfig {
        tail_padding: padding,
        ..DiskConfig::new("odd", Sector(8), Limits::default())
    };
    let disk = disk_of(&set, 0, &image, config(300), Arc::new(NoOps));
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    assert_eq!((disk.capacity(), bdev.size_bytes()), (Sector(8), 8 * 512 - 300));
    let at = |offset, len| bdev.submit_and_wait(0, Bio::at_bytes(Op::Read, offset, len)).status();
    assert_eq!(at(8 * 512 - 310, 10), Status::Ok);
    assert_eq!(at(8 * 512 - 310, 11), Status::OutOfRange);
    let last = Bio::new(Op::Read, Sector(7), 512);
    assert_eq!(bdev.submit_and_wait(0, last).status(), Status::Ok);
    disk.set_size(Sector(8), 100).unwrap();
    assert_eq!((at(8 * 512 - 101, 1), bdev.size_bytes()), (Status::Ok, 8 * 512 - 100));
    disk.set_capacity(Sector(8)).unwrap();
    assert_eq!(at(8 * 512 - 1, 1), Status::Ok);
    for padding in [512, u32::MAX] {
        assert_eq!(disk.set_size(Sector(8), padding).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(disk.set_size(Sector(0), 1).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn an_edge_waits_for_writes_that_are_out_on_any_queue_and_later_ones_wait_for_it() {
    let rig = rig(3, 8);
    // The first makes the disk keep a list of its writes.
    rig.submit(0, write(20_000, vec![1]));
    rig.script.finish_all();
    rig.submit(1, aligned(1, 2, 1));
    rig.submit(2, aligned(8, 3, 1));
    asked(&rig);
    rig.submit(0, write(600, vec![4; 10]));
    rig.submit(1, aligned(0, 5, 4));
    rig.submit(0, write(700, vec![6; 10]));
    rig.submit(2, aligned(9, 7, 1));
    assert_eq!(asked(&rig), [(Op::Write, 9)], "only what is elsewhere goes on");
    rig.script.finish_all();
    let want = [(Op::Read, 1), (Op::Write, 1), (Op::Write, 0), (Op::Read, 1), (Op::Write, 1)];
    assert_eq!(asked(&rig), want, "one after the other, in order");
    let bytes = rig.script.bytes(0);
    let mut model = vec![5; 2048];
    model[700..710].fill(6);
    assert!(bytes[..2048] == model);
    assert_eq!(statuses(&rig), [Status::Ok; 7]);
    rig.submit(0, write(600, vec![8; 10]));
    rig.submit(1, aligned(1, 9, 1).with_flags(Flags::NOWAIT));
    assert_eq!(statuses(&rig), [Status::Again], "it would have to wait for the block");
    rig.script.finish_all();
    rig.tear_down();
}

#[test]
fn a_write_is_not_merged_into_another_queues_request_where_no_edge_would_see_it() {
    for seed in 0..16 {
        let limits = Limits { features: Features::empty(), ..limits() };
        let config = Config { limits, ..Config::default() };
        let rig = Rig::new(seed, queues(2, 1), config, 64);
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
        // The first makes the disk keep a list of its writes.
        rig.submit(0, write(20_000, vec![1]));
        rig.script.finish_all();
        rig.submit(1, aligned(40, 9, 1));
        rig.submit(1, aligned(10, 2, 1));
        rig.submit(0, aligned(11, 3, 1));
        rig.submit(0, write(11 * 512 + 100, vec![4; 10]));
        rig.script.finish_all();
        let mut model = vec![3; 512];
        model[100..110].fill(4);
        assert!(rig.script.bytes(0)[11 * 512..12 * 512] == model, "seed {seed}");
        assert_eq!(statuses(&rig), [Status::Ok; 5]);
        rig.tear_down();
    }
}

#[test]
fn what_was_out_before_anybody_kept_a_list_is_waited_for() {
    let rig = rig(2, 8);
    rig.submit(1, aligned(1, 2, 1));
    asked(&rig);
    rig.submit(0, write(600, vec![4; 10]));
    assert_eq!(asked(&rig), []);
    rig.script.finish_all();
    assert_eq!(asked(&rig), [(Op::Read, 1), (Op::Write, 1)]);
    assert_eq!(rig.script.bytes(0)[600], 4);
    assert_eq!(rig.script.bytes(0)[599], 2);
    rig.tear_down();
}

#[test]
fn a_failed_read_or_write_of_an_edge_fails_the_bio_and_lets_others_go_on() {
    for fail_after in 0..4 {
        let rig = rig(1, 8);
        rig.submit(0, write(100, vec![1; 1000]));
        rig.submit(0, write(200, vec![2; 10]));
        for _ in 0..fail_after {
            rig.script.step();
        }
        rig.script.config.lock().chances.error = 1000;
        rig.script.step();
        rig.script.calm_down();
        rig.script.finish_all();
        let ends = statuses(&rig);
        assert_eq!(ends.len(), 2, "{fail_after}\n{}", rig.disk.show());
        assert_eq!(ends.iter().filter(|status| **status == Status::Medium).count(), 1, "{ends:?}");
        rig.tear_down();
    }
}

#[test]
fn a_durable_write_is_durable_at_its_edges() {
    let limits = Limits { features: Features::WRITE_CACHE | Features::FUA, ..limits() };
    let rig = Rig::new(1, queues(1, 8), Config { limits, ..Config::default() }, 64);
    rig.submit(0, write(100, vec![1; 1000]).with_flags(Flags::FUA));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    for _ in 0..8 {
        assert!(rig.script.power_cut(0)[100..1100].iter().all(|&byte| byte == 1));
    }
    rig.tear_down();
}

#[test]
fn a_freeze_waits_for_an_edge_between_its_read_and_its_write() {
    let rig = rig(1, 1);
    rig.submit(0, write(100, vec![1; 10]));
    rig.submit(0, write(200, vec![2; 10]));
    let frozen = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rig.disk.freeze();
            frozen.store(true, Ordering::SeqCst);
        });
        while !rig.disk.show().contains("frozen 1") {
            std::thread::yield_now();
        }
        rig.submit(0, write(300, vec![3; 10]));
        for _ in 0..3 {
            assert!(rig.script.step());
            assert!(!frozen.load(Ordering::SeqCst), "an edge is under way");
        }
        rig.script.finish_all();
        assert_eq!(rig.ends.count(), 2, "what came later waits");
    });
    rig.disk.unfreeze();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 3]);
    rig.tear_down();
}

#[test]
fn a_disk_is_removed_with_edges_under_way() {
    for steps in 0..4 {
        let rig = rig(2, 2);
        rig.submit(1, aligned(0, 9, 1));
        for i in 0..100 {
            rig.submit(0, write(i * 7, vec![1; 5]));
            rig.submit(1, aligned(i % 3, 2, 1));
        }
        for _ in 0..steps {
            rig.script.step();
        }
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| rig.layer.del_disk(&rig.disk));
            while !removing.is_finished() {
                rig.script.step();
                std::thread::yield_now();
            }
        });
        let ends = statuses(&rig);
        assert_eq!(ends.len(), 201);
        assert!(ends.iter().all(|status| matches!(status, Status::Ok | Status::Offline)));
        rig.tear_down();
    }
}

/// What may happen to a disk with many writes in line for its blocks.
#[derive(Clone, Copy, Debug)]
enum Blow {
    Shrunk,
    ReadOnly,
    Removed,
}

/// Half as much as the thread of a queue has.
const SMALL_STACK: usize = 256 << 10;

#[test]
fn however_many_are_in_line_for_blocks_they_fail_one_after_the_other() {
    const COUNT: usize = 20_000;
    for blow in [Blow::Shrunk, Blow::ReadOnly, Blow::Removed] {
        let rig = rig(1, 8);
        let (rig_in, done) = (&rig, &AtomicBool::new(false));
        let _watchdog =
            Watchdog::new("a line for blocks", rig.ends.counter(), move || format!("{blow:?}"));
        if matches!(blow, Blow::Removed) {
            // Nobody ticks a disk that is being removed.
            rig.disk.set_alarm(Arc::new(|| {}));
        }
        std::thread::scope(|scope| {
            let work = move || {
                rig_in.submit(0, write(3, vec![1; 5]));
                for i in 1..COUNT as u64 {
                    match i % 4 {
                        0 => rig_in.submit(0, aligned(0, 2, 1)),
                        1 => rig_in.submit(0, write(i / 4 % 32 * 512 + 7, vec![3; 600])),
                        _ => rig_in.submit(0, write(7, vec![4; 100])),
                    }
                }
                match blow {
                    Blow::Shrunk => rig_in.disk.set_capacity(Sector(0)).unwrap(),
                    Blow::ReadOnly => rig_in.disk.set_read_only(true),
                    Blow::Removed => _ = rig_in.layer.del_disk(&rig_in.disk),
                }
                rig_in.script.finish_all();
                done.store(true, Ordering::SeqCst);
            };
            let small = std::thread::Builder::new().stack_size(SMALL_STACK);
            small.spawn_scoped(scope, work).unwrap();
            // Whoever removes a disk waits for what is out.
            while matches!(blow, Blow::Removed) && !done.load(Ordering::SeqCst) {
                if rig_in.disk.show().contains("dying true") {
                    rig_in.script.step();
                }
                std::thread::yield_now();
            }
        });
        assert_eq!(rig.ends.count(), COUNT, "{blow:?}");
        rig.tear_down();
    }
}

#[test]
fn many_edges_of_one_block_keep_none_of_another_waiting() {
    let rig = rig(1, 8);
    for i in 0..200 {
        rig.submit(0, write(i, vec![1]));
    }
    rig.submit(0, write(7 * 512 + 3, vec![2]));
    assert_eq!(asked(&rig), [(Op::Read, 0), (Op::Read, 7)]);
    rig.script.finish_all();
    let bytes = rig.script.bytes(0);
    assert!(bytes[..200].iter().all(|&byte| byte == 1) && bytes[7 * 512 + 3] == 2);
    assert_eq!(statuses(&rig), [Status::Ok; 201]);
    rig.tear_down();
}

/// The list of locks has a bound: edges of further blocks wait for a place in it, and so do writes behind them.
#[test]
fn edges_of_more_blocks_than_may_be_locked_at_a_time_all_have_their_turn() {
    const BLOCKS: u64 = 200;
    const AT_A_TIME: usize = 64;
    let config = Config { limits: limits(), ..Config::default() };
    let rig = Rig::new(1, queues(1, 256), config, BLOCKS);
    (0..BLOCKS).for_each(|block| rig.submit(0, write(block * 512 + 3, vec![1])));
    assert_eq!(asked(&rig), (0..AT_A_TIME as u64).map(|at| (Op::Read, at)).collect::<Vec<_>>());
    rig.submit(0, aligned(5, 2, 1));
    assert_eq!(asked(&rig), []);
    rig.script.finish_all();
    assert_eq!(statuses(&rig), vec![Status::Ok; BLOCKS as usize + 1]);
    let bytes = rig.script.bytes(0);
    let expected = |block: usize| if block == 5 { [2; 4] } else { [0, 0, 0, 1] };
    for (block, bytes) in bytes.chunks(512).enumerate() {
        assert!(bytes[..4] == expected(block), "block {block}");
    }
    rig.tear_down();
}

/// Submits the next unaligned write where one has ended.
struct Again {
    me: Weak<Self>,
    bdev: Bdev,
    count: usize,
    ended: AtomicUsize,
}

impl Again {
    fn submit(&self) {
        let me = self.me.upgrade().unwrap();
        self.bdev.submit(0, write(700, vec![1; 9]).on_end(me));
    }

    fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

impl EndIo for Again {
    fn end_io(&self, bio: Box<Bio>) {
        assert_eq!(bio.status(), Status::Ok);
        if self.ended.fetch_add(1, Ordering::SeqCst) + 1 < self.count {
            self.submit();
        }
    }
}

/// It may be a queue thread, which has others to see to.
#[test]
fn whoever_takes_on_what_is_ready_leaves_some_of_it_to_the_tick() {
    const COUNT: usize = 1000;
    for is_ticked in [false, true] {
        let chances = Chances { inline: 1000, ..Chances::default() };
        let config = Config { limits: limits(), chances, ..Config::default() };
        let rig = Rig::new(1, queues(1, 8), config, 64);
        let rung = Arc::<AtomicUsize>::default();
        if is_ticked {
            let ring = Arc::clone(&rung);
            rig.disk.set_alarm(Arc::new(move || _ = ring.fetch_add(1, Ordering::SeqCst)));
        }
        let again = Arc::new_cyclic(|me| Again {
            me: Weak::clone(me),
            bdev: rig.disk.open(None, OpenMode::ReadWrite).unwrap(),
            count: COUNT,
            ended: AtomicUsize::default(),
        });
        again.submit();
        if is_ticked {
            assert!((1..COUNT).contains(&again.ended()), "{} at once", again.ended());
        } else {
            assert_eq!(again.ended(), COUNT, "nobody else would take them on");
        }
        while again.ended() < COUNT {
            let before = (again.ended(), rung.swap(0, Ordering::SeqCst));
            assert_ne!(before.1, 0, "whoever ticks the disk is told");
            rig.disk.tick();
            assert!(again.ended() > before.0, "{}", rig.disk.show());
        }
        drop(again);
        rig.tear_down();
    }
}

/// Whoever waits may be the one that ticks it.
#[test]
fn whoever_waits_for_a_disk_to_drain_needs_nobody_to_tick_it() {
    const COUNT: usize = 1000;
    let chances = Chances { inline: 1000, ..Chances::default() };
    let config = Config { limits: limits(), chances, ..Config::default() };
    // What fails is left as it is: taking it down would wait for what is stuck.
    let rig = ManuallyDrop::new(Rig::new(1, queues(1, 8), config, 64));
    rig.disk.set_alarm(Arc::new(|| {}));
    let waits: [fn(&Disk); 3] = [
        |disk| disk.freeze(),
        |disk| {
            disk.set_limits(disk.limits()).unwrap();
            disk.freeze();
        },
        |disk| disk.start_freeze(),
    ];
    for (number, wait) in waits.into_iter().enumerate() {
        let again = Arc::new_cyclic(|me| Again {
            me: Weak::clone(me),
            bdev: rig.disk.open(None, OpenMode::ReadWrite).unwrap(),
            count: COUNT,
            ended: AtomicUsize::default(),
        });
        again.submit();
        assert!((1..COUNT).contains(&again.ended()), "{number}: {} at once", again.ended());
        let (disk, (tell, told)) = (Arc::clone(&rig.disk), mpsc::channel());
        let waiting = std::thread::spawn(move || {
            wait(&disk);
            tell.send(()).unwrap();
        });
        let waited = told.recv_timeout(Duration::from_secs(60));
        assert!(waited.is_ok(), "{number}: it waits for a tick\n{}", rig.disk.show());
        waiting.join().unwrap();
        // What was not let in yet goes on with the next.
        rig.disk.unfreeze();
        while again.ended() < COUNT {
            rig.disk.tick();
        }
    }
    ManuallyDrop::into_inner(rig).tear_down();
}

/// Each of them is compared with all locks that there are, and may be what later ones have to wait for.
#[test]
fn however_many_ranges_are_in_line_for_a_block_the_list_of_locks_stays_short() {
    const MOST: usize = 192;
    let rig = rig(1, 8);
    rig.submit(0, write(3, vec![1; 5]));
    let mut count = 1;
    for start in 0..32 {
        for end in start + 1..=64 {
            rig.submit(0, aligned(start, 2, (end - start) as usize));
            count += 1;
        }
    }
    let shown = rig.disk.show();
    let locks = shown.lines().filter(|line| line.starts_with("  lock ")).count();
    assert!((2..=MOST).contains(&locks), "{locks}");
    // Another block's edge has its turn, too.
    rig.submit(0, write(63 * 512 + 7, vec![3; 5]));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), vec![Status::Ok; count + 1]);
    assert!(rig.script.bytes(0)[..63 * 512].iter().all(|&byte| byte == 2));
    rig.tear_down();
}

/// A bio of bytes that has not ended yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    op: Op,
    start: usize,
    len: usize,
    byte: u8,
}

/// Random operations on bytes and on blocks, which overlap in blocks, and not in bytes.
struct Sim {
    rng: StdRng,
    rig: Rig,
    /// What each byte is, if that is known.
    model: Vec<Option<u8>>,
    pending: HashMap<u64, Pending>,
    next: u64,
    cpus: usize,
    block: usize,
    bytes: usize,
    lossy: bool,
}

/// Small, so that most operations meet in a block.
const BYTES: usize = 24 * 512;
/// Of one run in four: more blocks than may be locked at a time.
const MANY_BYTES: usize = 256 * 512;

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        // All that may keep a write from the list that it belongs to: a scheduler, merges and several queues.
        let all_at_once = rng.random_bool(0.3);
        let cpus = rng.random_range(if all_at_once { 2 } else { 1 }..=3);
        let depths: &[u32] = if all_at_once { &[1, 2] } else { &[1, 2, 3, 16] };
        let mut set = queues(cpus, *depths.choose(&mut rng).unwrap());
        set.flags.set(TagSetFlags::TAG_HCTX_SHARED, rng.random_bool(0.3));
        let block = *[BlockSize::B512, BlockSize::new(1024).unwrap(), BlockSize::B4096]
            .choose(&mut rng)
            .unwrap();
        let mut features = Features::BLOCK_STATUS;
        features.set(Features::WRITE_CACHE, rng.random_bool(0.5));
        features.set(Features::FUA, rng.random_bool(0.5));
        features.set(Features::NOMERGES, !all_at_once && rng.random_bool(0.5));
        let limits = Limits {
            logical_block_size: block,
            max_hw_sectors: *[8, 16, 0].choose(&mut rng).unwrap(),
            max_write_zeroes_sectors: *[0, 8, 1 << 20].choose(&mut rng).unwrap(),
            dma_alignment: *[0, 511].choose(&mut rng).unwrap(),
            features,
            ..Limits::default()
        }
        .validate()
        .unwrap();
        let lossy = rng.random_bool(0.3);
        let some = |rng: &mut StdRng, most| {
            if rng.random_bool(0.5) { rng.random_range(0..most) } else { 0 }
        };
        let chances = Chances {
            inline: some(&mut rng, 900),
            resource: some(&mut rng, 150),
            device: some(&mut rng, 150),
            partial: some(&mut rng, 300),
            requeue: some(&mut rng, 200),
            error: if lossy { 60 } else { 0 },
            ..Chances::default()
        };
        let one_pool = set.flags.contains(TagSetFlags::TAG_HCTX_SHARED);
        println!("{set:?} {chances:?} block {} {:?}", block.bytes(), limits.features);
        let config = Config { limits, chances, one_pool, ..Config::default() };
        let bytes = if rng.random_bool(0.25) { MANY_BYTES } else { BYTES };
        let rig = Rig::new(rng.random(), set, config, (bytes / SECTOR) as u64);
        if all_at_once || rng.random_bool(0.3) {
            rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
        }
        let block = block.bytes() as usize;
        let (model, pending) = (vec![Some(0); bytes], HashMap::new());
        Self { rng, rig, model, pending, next: 1, cpus, block, bytes, lossy }
    }

    fn submit(&mut self) {
        let whole_blocks = self.rng.random_bool(0.4);
        let lengths = if self.bytes == BYTES { [10, 700, 3000] } else { [10, 10, 700] };
        let most = *lengths.choose(&mut self.rng).unwrap();
        let mut start = self.rng.random_range(0..self.bytes);
        let mut end = (start + self.rng.random_range(1..=most)).min(self.bytes);
        if whole_blocks {
            start -= start % self.block;
            end = end.next_multiple_of(self.block);
        }
        let op = *[Op::Read, Op::Write, Op::Write, Op::Write, Op::WriteZeroes]
            .choose(&mut self.rng)
            .unwrap();
        let free = self.pending.values().all(|other| {
            let apart = end <= other.start || other.start + other.len <= start;
            apart || !(op.is_write() || other.op.is_write())
        });
        if !free {
            return;
        }
        let (id, len) = (self.next, end - start);
        self.next += 1;
        let byte = if op == Op::Write { (id % 255 + 1) as u8 } else { 0 };
        let mut bio = match op {
            Op::Write => write(start as u64, vec![byte; len]),
            _ => Bio::at_bytes(op, start as u64, len as u64),
        };
        bio.flags.set(Flags::FUA, op.is_write() && self.rng.random_bool(0.1));
        bio.flags.set(Flags::NOWAIT, self.rng.random_bool(0.05));
        bio.private = id;
        if op.is_write() {
            self.model[start..end].fill(None);
        }
        self.pending.insert(id, Pending { op, start, len, byte });
        let cpu = self.rng.random_range(0..self.cpus);
        self.rig.submit(cpu, bio);
    }

    fn look(&mut self) {
        for bio in self.rig.ends.take() {
            let Pending { op, start, len, byte } =
                self.pending.remove(&bio.private).expect("a bio ends once");
            match bio.status() {
                Status::Ok if op == Op::Read => {
                    let found = bytes_of(&bio);
                    assert_eq!(found.len(), len);
                    self.compare(start, &found);
                }
                Status::Ok => self.model[start..start + len].fill(Some(byte)),
                Status::Again => assert!(bio.flags.contains(Flags::NOWAIT)),
                Status::Medium => assert!(self.lossy),
                status => panic!("{op:?} of {len} at {start} ended with {status:?}"),
            }
        }
    }

    fn compare(&self, start: usize, found: &[u8]) {
        for (at, found) in (start..).zip(found) {
            let want = self.model[at];
            assert!(want.is_none_or(|want| want == *found), "byte {at} is {found}, not {want:?}");
        }
    }

    fn drain(&mut self) {
        let mut idle = 0;
        while !self.pending.is_empty() {
            idle = if self.rig.script.step() { 0 } else { idle + 1 };
            assert!(idle < 5000, "stuck with {:?}\n{}", self.pending, self.rig.disk.show());
            if idle > 0 {
                self.rig.clock.advance_ms(3);
                self.rig.disk.tick();
            }
            self.look();
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            match self.rng.random_range(0..100) {
                0..50 => self.submit(),
                50..92 => _ = self.rig.script.step(),
                92..95 => {
                    self.rig.clock.advance_ms(5);
                    self.rig.disk.tick();
                }
                95..97 => {
                    self.rig.disk.quiesce();
                    (0..5).for_each(|_| self.submit());
                    self.rig.disk.unquiesce();
                }
                97 => {
                    self.drain();
                    self.rig.disk.freeze();
                    (0..5).for_each(|_| self.submit());
                    self.rig.disk.unfreeze();
                }
                _ => self.drain(),
            }
            self.look();
        }
        if self.bytes == MANY_BYTES {
            (0..self.bytes / SECTOR).for_each(|_| self.submit());
        }
        self.drain();
        self.compare(0, &self.rig.script.bytes(0));
    }
}

#[test]
fn no_update_of_a_block_is_lost_whoever_writes_to_it_meanwhile() {
    let first = seed("no_update_of_a_block_is_lost_whoever_writes_to_it_meanwhile");
    let runs = std::env::var("BLOCKYARD_RUNS")
        .map_or(40, |runs| runs.parse().expect("BLOCKYARD_RUNS is a number"));
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        println!("run BLOCKYARD_SEED={seed} BLOCKYARD_RUNS=1");
        // What fails is left as it is: taking it down would wait for what is stuck.
        let mut sim = ManuallyDrop::new(Sim::new(seed));
        let disk = Arc::downgrade(&sim.rig.disk);
        let _watchdog = Watchdog::new("a simulation of bytes", sim.rig.ends.counter(), move || {
            let shown = disk.upgrade().map_or_else(String::new, |disk| disk.show());
            format!("BLOCKYARD_SEED={seed}\n{shown}")
        });
        sim.run(400);
        ManuallyDrop::into_inner(sim).rig.tear_down();
    }
}

/// Threads that have every third hundred bytes each, so that they meet in all blocks.
const WRITERS: usize = 3;
const STRIPE: usize = 100;

#[test]
fn no_update_is_lost_between_threads() {
    let first = seed("no_update_is_lost_between_threads");
    let runs = std::env::var("BLOCKYARD_RUNS")
        .map_or(4, |runs| runs.parse().expect("BLOCKYARD_RUNS is a number"));
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        println!("run BLOCKYARD_SEED={seed} BLOCKYARD_RUNS=1");
        let mut rng = StdRng::seed_from_u64(seed);
        let chances = Chances {
            inline: *[0, 500].choose(&mut rng).unwrap(),
            requeue: 50,
            device: 50,
            ..Chances::default()
        };
        let config = Config { limits: limits(), chances, ..Config::default() };
        let set = queues(WRITERS, *[1, 2, 8].choose(&mut rng).unwrap());
        let rig = ManuallyDrop::new(Rig::new(seed, set, config, (BYTES / SECTOR) as u64));
        let disk = Arc::clone(&rig.disk);
        let ended = Arc::<AtomicUsize>::default();
        let counter = Arc::clone(&ended);
        let counted = move || counter.load(Ordering::SeqCst);
        let watchdog = Watchdog::new("writers of bytes", counted, move || {
            format!("BLOCKYARD_SEED={seed}\n{}", disk.show())
        });
        let done = AtomicBool::new(false);
        let stripes: Vec<(usize, Vec<u8>)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let rng = StdRng::seed_from_u64(seed ^ (writer as u64 + 1));
                    let (rig, ended) = (&rig, &ended);
                    scope.spawn(move || (writer, write_stripes(rig, writer, rng, ended)))
                })
                .collect();
            let (rig, going) = (&rig, &done);
            scope.spawn(move || {
                while !going.load(Ordering::SeqCst) {
                    if !rig.script.step() {
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                while !going.load(Ordering::SeqCst) {
                    rig.disk.freeze();
                    rig.disk.unfreeze();
                    (0..200).for_each(|_| std::thread::yield_now());
                }
            });
            let stripes = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            done.store(true, Ordering::SeqCst);
            stripes
        });
        drop(watchdog);
        let bytes = rig.script.bytes(0);
        for (writer, model) in stripes {
            for (at, found) in
                bytes.iter().enumerate().filter(|(at, _)| at / STRIPE % WRITERS == writer)
            {
                assert_eq!(*found, model[at], "byte {at}, BLOCKYARD_SEED={seed}");
            }
        }
        ManuallyDrop::into_inner(rig).tear_down();
    }
}

/// Writes to its own stripes for a while, several at a time; gives back what they hold.
fn write_stripes(rig: &Rig, writer: usize, mut rng: StdRng, ended: &AtomicUsize) -> Vec<u8> {
    let bdev = rig.disk.open(None, OpenMode::ReadWrite).unwrap();
    let mut model = vec![0; BYTES];
    let mine: Vec<usize> = (writer..BYTES / STRIPE).step_by(WRITERS).collect();
    let (tell, told) = mpsc::channel();
    for round in 1..40 {
        let mut stripes: Vec<usize> = (0..4).map(|_| *mine.choose(&mut rng).unwrap()).collect();
        stripes.sort_unstable();
        stripes.dedup();
        let mut plug = Vec::new();
        for stripe in &stripes {
            let (from, len) = (rng.random_range(0..STRIPE / 2), rng.random_range(1..=STRIPE / 2));
            let at = stripe * STRIPE + from;
            model[at..at + len].fill(round);
            let tell = tell.clone();
            let end = move |bio: Box<Bio>| tell.send(bio).unwrap();
            plug.push(write(at as u64, vec![round; len]).on_end(Arc::new(end)));
        }
        bdev.submit_all(writer, &mut plug);
        for _ in &stripes {
            assert_eq!(told.recv().unwrap().status(), Status::Ok);
            ended.fetch_add(1, Ordering::SeqCst);
        }
        let at = stripes[0] * STRIPE;
        let bio = bdev.submit_and_wait(writer, Bio::at_bytes(Op::Read, at as u64, STRIPE as u64));
        assert!(bytes_of(&bio) == model[at..at + STRIPE], "stripe {}", stripes[0]);
    }
    model
}
