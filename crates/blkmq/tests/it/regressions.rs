//! Cases that were found wrong once, the smallest that shows each.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use blockyard_blkmq::{
    Bio, BlockDeviceOps, Disk, DiskConfig, DiskFlags, DiskListener, ErrorKind, Event, Features,
    Flags, Limits, Op, OpenMode, Result, Sector, Status, TagSetConfig, TagSetFlags, Timeout, sched,
};
use blockyard_buf::Segment;

use crate::rig::{Ends, Rig, Watchdog, disk_of};
use crate::script::{Chances, Config, Script};

fn rig(depth: u32, config: Config) -> Rig {
    Rig::new(1, TagSetConfig { depth, ..TagSetConfig::default() }, config, 64)
}

/// The statuses of what has ended.
fn statuses(rig: &Rig) -> Vec<Status> {
    rig.ends.take().iter().map(|bio| bio.status()).collect()
}

#[test]
fn an_answer_that_was_begun_before_a_requeue_is_forgotten() {
    let rig = rig(
        4,
        Config { chances: Chances { requeue: 1000, ..Chances::default() }, ..Config::default() },
    );
    rig.submit(0, Bio::new(Op::Read, Sector(0), 4096));
    for _ in 0..3 {
        assert!(rig.script.step(), "delivered a part of it, and requeued it");
    }
    rig.script.calm_down();
    rig.script.finish_all();
    let ends = rig.ends.take();
    assert_eq!(
        (ends[0].status(), ends[0].data().iter().map(|s| s.len()).sum::<usize>()),
        (Status::Ok, 4096)
    );
    rig.tear_down();
}

fn read(sector: u64) -> Box<Bio> {
    Bio::new(Op::Read, Sector(sector), 512).with_flags(Flags::NOMERGE)
}

#[test]
fn who_has_had_his_share_of_the_tags_does_not_wake_himself_for_ever() {
    let set = TagSetConfig {
        cpus: 2,
        hw_queues: [2, 0, 0],
        depth: 8,
        flags: TagSetFlags::TAG_HCTX_SHARED,
        ..TagSetConfig::default()
    };
    let rig = Rig::new(1, set, Config { one_pool: true, ..Config::default() }, 64);
    (0..3).for_each(|sector| rig.submit(1, read(sector)));
    (10..17).for_each(|sector| rig.submit(0, read(sector)));
    assert_eq!(rig.script.out(), 3 + 4, "each of two has half of the tags");
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 10]);
    rig.tear_down();
}

#[test]
fn a_disk_that_is_removed_while_it_waits_for_a_tag_leaves_its_share_to_others() {
    let rig = rig(8, Config::default());
    let (other, idle) = (rig.another(1).unwrap(), rig.another(2).unwrap());
    let bdev = other.open(None, OpenMode::ReadWrite).unwrap();
    (0..8).for_each(|sector| rig.submit(0, read(sector)));
    bdev.submit(0, read(0).on_end(Arc::<Ends>::clone(&rig.ends)));
    rig.layer.del_disk(&other);
    assert_eq!(statuses(&rig), [Status::Offline]);
    rig.script.finish_all();
    (0..8).for_each(|sector| rig.submit(0, read(sector)));
    assert_eq!(rig.script.out(), 8);
    drop((bdev, other, idle));
    rig.tear_down();
}

#[test]
fn a_disk_that_cannot_be_set_up_leaves_nothing_behind() {
    let rig = rig(8, Config::default());
    let made = rig.script.counts.requests.load(Ordering::SeqCst);
    for left in [0, 5, 8] {
        rig.script.init_left.store(left, Ordering::SeqCst);
        assert_eq!(rig.another(1).unwrap_err().kind(), ErrorKind::Resource);
        assert_eq!(rig.script.counts.requests.load(Ordering::SeqCst), made);
        assert_eq!(rig.script.counts.hctxs.load(Ordering::SeqCst), 1);
    }
    (0..8).for_each(|sector| rig.submit(0, read(sector)));
    assert_eq!(rig.script.out(), 8, "nobody shares the tags");
    rig.tear_down();
}

#[test]
fn a_scheduler_that_finds_no_room_for_its_requests_changes_nothing() {
    let set = TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 4, ..TagSetConfig::default() };
    let rig = Rig::new(1, set, Config::default(), 64);
    // Enough for the first queue's eight requests, not for the second's.
    rig.script.init_left.store(6, Ordering::SeqCst);
    assert_eq!(
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap_err().kind(),
        ErrorKind::Resource
    );
    assert_eq!((rig.disk.scheduler(), rig.disk.nr_requests()), (sched::Kind::None, 4));
    for cpu in 0..2 {
        rig.submit(cpu, read(0));
    }
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 2]);
    rig.tear_down();
}

#[test]
fn a_removed_disk_is_not_tuned_any_more() {
    let rig = rig(4, Config::default());
    rig.layer.del_disk(&rig.disk);
    let kinds = [
        rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap_err().kind(),
        rig.disk.set_nr_requests(2).unwrap_err().kind(),
        rig.disk.set_limits(rig.disk.limits()).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Offline; 3]);
    rig.tear_down();
}

#[test]
fn requests_stay_with_the_scheduler_while_there_is_no_tag_for_them() {
    let rig = rig(1, Config::default());
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    rig.disk.set_nr_requests(8).unwrap();
    [0, 32, 16, 24, 8].into_iter().for_each(|sector| rig.submit(0, read(sector)));
    rig.script.finish_all();
    let order: Vec<u64> = rig.script.log.lock().iter().map(|&(_, _, sector)| sector).collect();
    assert_eq!(order, [0, 8, 16, 24, 32], "all in its order");
    assert_eq!(rig.ends.count(), 5);
    rig.tear_down();
}

#[test]
fn merged_bios_and_written_zeroes_make_no_more_segments_than_the_driver_takes() {
    let limits = Limits {
        max_segments: 4,
        max_segment_size: 4096,
        seg_boundary_mask: 4095,
        ..Limits::default()
    };
    let set = TagSetConfig { depth: 8, ..TagSetConfig::default() };
    // The driver asserts it.
    let rig =
        Rig::new(1, set, Config { limits: limits.validate().unwrap(), ..Config::default() }, 256);
    let mut plug: Vec<_> = (0..4)
        .map(|i| {
            Bio::with_data(
                Op::Write,
                Sector(i * 16),
                [Segment::from_vec(vec![7; 8192])].into_iter().collect(),
            )
            .on_end(Arc::<Ends>::clone(&rig.ends))
        })
        .collect();
    rig.bdev.submit_all(0, &mut plug);
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(64), 32768));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 5]);
    rig.tear_down();
}

#[test]
fn under_a_scheduler_writes_that_wait_for_a_flush_keep_no_tags_from_it() {
    let limits = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    let rig = rig(2, Config { limits, ..Config::default() });
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    rig.disk.set_nr_requests(8).unwrap();
    for sector in 0..8 {
        rig.submit(
            0,
            Bio::new(Op::WriteZeroes, Sector(sector * 8), 512)
                .with_flags(Flags::FUA | Flags::NOMERGE),
        );
    }
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 8]);
    rig.tear_down();
}

#[test]
fn what_waited_while_the_disk_shrank_is_checked_against_its_new_end() {
    let rig = rig(1, Config::default());
    rig.submit(0, read(0));
    rig.submit(0, read(60));
    rig.disk.set_capacity(Sector(32)).unwrap();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok, Status::OutOfRange]);
    rig.disk.freeze();
    rig.submit(0, read(20));
    rig.disk.set_capacity(Sector(16)).unwrap();
    rig.disk.unfreeze();
    assert_eq!((rig.script.out(), statuses(&rig)), (0, vec![Status::OutOfRange]));
    rig.tear_down();
}

#[test]
fn a_write_that_waited_while_a_cache_was_switched_on_keeps_its_promise() {
    let rig = rig(4, Config::default());
    rig.disk.freeze();
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 512).with_flags(Flags::FUA));
    let cached = Limits { features: Features::WRITE_CACHE, ..rig.disk.limits() };
    rig.disk.set_limits(cached.clone()).unwrap();
    rig.script.config.lock().limits = cached;
    rig.disk.unfreeze();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    assert_eq!(rig.script.counts.flushes.load(Ordering::SeqCst), 1);
    rig.tear_down();
}

#[test]
fn a_read_has_memory_of_its_own_or_wants_the_drivers_never_both() {
    let rig = rig(4, Config::default());
    let memory = || [Segment::from_vec(vec![0; 512])].into_iter().collect();
    rig.submit(0, Bio::with_data(Op::Read, Sector(0), memory()).with_flags(Flags::SUPPLY));
    let mut neither = Bio::new(Op::Read, Sector(0), 512);
    neither.flags -= Flags::SUPPLY;
    rig.submit(0, neither);
    assert_eq!(statuses(&rig), [Status::Invalid; 2]);
    rig.tear_down();
}

#[test]
fn a_request_that_its_driver_sees_to_is_not_asked_about_again() {
    let set = TagSetConfig { timeout: Duration::from_millis(100), ..TagSetConfig::default() };
    let rig = Rig::new(1, set, Config { timeout: Some(Timeout::Done), ..Config::default() }, 64);
    rig.script.see_to_timeouts_later();
    rig.submit(0, read(0));
    rig.clock.advance_ms(100);
    assert_eq!(rig.disk.tick(), None, "nothing is left to wait for");
    rig.clock.advance_ms(500);
    rig.disk.tick();
    assert_eq!(rig.script.counts.timeouts.load(Ordering::SeqCst), 1);
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}

#[test]
fn what_is_in_flight_is_shown_with_what_joined_it() {
    let rig = rig(4, Config::default());
    let mut plug: Vec<_> = [8, 9, 7]
        .into_iter()
        .map(|sector| Bio::new(Op::Read, Sector(sector), 512).on_end(Arc::<Ends>::clone(&rig.ends)))
        .collect();
    rig.bdev.submit_all(0, &mut plug);
    let shown: Vec<_> = rig.disk.in_flight().iter().map(|(_, rq)| (rq.sector, rq.len)).collect();
    assert_eq!(shown, [(Sector(7), 3 * 512)]);
    rig.script.finish_all();
    rig.tear_down();
}

#[test]
fn one_that_would_have_waited_for_a_tag_takes_no_share_of_them() {
    let rig = rig(8, Config::default());
    let other = rig.another(1).unwrap();
    let bdev = other.open(None, OpenMode::ReadWrite).unwrap();
    (0..8).for_each(|sector| rig.submit(0, read(sector)));
    bdev.submit(0, read(0).with_flags(Flags::NOWAIT).on_end(Arc::<Ends>::clone(&rig.ends)));
    assert_eq!(statuses(&rig), [Status::Again]);
    rig.script.finish_all();
    (0..8).for_each(|sector| rig.submit(0, read(sector)));
    assert_eq!(rig.script.out(), 8);
    rig.script.finish_all();
    drop((bdev, other));
    rig.tear_down();
}

#[test]
fn a_read_that_its_driver_did_not_answer_is_no_success() {
    let chances = Chances { forgotten: 1000, ..Chances::default() };
    let rig = rig(4, Config { chances, ..Config::default() });
    rig.submit(0, Bio::new(Op::Read, Sector(0), 4096));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Io]);
    rig.tear_down();
}

#[test]
fn a_reserved_tag_is_had_while_ordinary_bios_wait() {
    let set = TagSetConfig { depth: 4, reserved: 1, ..TagSetConfig::default() };
    let rig = Rig::new(1, set, Config::default(), 64);
    (0..5).for_each(|sector| rig.submit(0, read(sector * 2)));
    assert_eq!(rig.script.out(), 3, "two wait");
    rig.submit(0, read(20).with_flags(Flags::RESERVED));
    assert_eq!(rig.script.out(), 4);
    rig.submit(0, read(22).with_flags(Flags::RESERVED));
    assert_eq!(rig.script.out(), 4, "there is one only");
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok; 7]);
    rig.tear_down();
}

#[test]
fn one_that_may_not_wait_and_would_be_cut_is_not_begun() {
    let limits = Limits { max_hw_sectors: 8, ..Limits::default() };
    let rig = rig(4, Config { limits, ..Config::default() });
    rig.submit(0, Bio::new(Op::Read, Sector(0), 8192).with_flags(Flags::NOWAIT));
    assert_eq!((statuses(&rig), rig.script.out()), (vec![Status::Again], 0));
    rig.submit(0, Bio::new(Op::Read, Sector(0), 4096).with_flags(Flags::NOWAIT));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}

#[test]
fn a_driver_cleans_up_once_for_each_request_that_it_gave_back() {
    let chances = Chances { requeue: 1000, ..Chances::default() };
    let rig = rig(4, Config { chances, ..Config::default() });
    rig.submit(0, Bio::new(Op::Read, Sector(0), 4096));
    for _ in 0..3 {
        assert!(rig.script.step());
    }
    assert_eq!(rig.script.counts.cleaned.load(Ordering::SeqCst), 3);
    rig.script.calm_down();
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}

#[test]
fn removing_a_disk_says_how_its_last_flush_has_ended() {
    let limits = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    let failing = Chances { error: 1000, ..Chances::default() };
    for (chances, fails) in [(failing, true), (Chances::default(), false)] {
        let rig = rig(4, Config { limits: limits.clone(), chances, ..Config::default() });
        let flushed = std::thread::scope(|scope| {
            let removal = scope.spawn(|| rig.layer.del_disk(&rig.disk));
            while !removal.is_finished() {
                rig.script.step();
                std::thread::yield_now();
            }
            removal.join().unwrap()
        });
        assert_eq!(flushed != Status::Ok, fails, "{flushed}");
        assert_eq!(rig.layer.del_disk(&rig.disk), Status::Ok, "there is nothing more to flush");
        rig.tear_down();
    }
}

#[test]
fn limits_are_told_while_a_queue_drains() {
    let rig = rig(4, Config::default());
    rig.submit(0, read(0));
    let (tell, told) = mpsc::channel();
    let limits = rig.disk.limits();
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| rig.disk.set_limits(limits));
        while !rig.disk.show().contains("frozen 1") {
            std::thread::yield_now();
        }
        let (disk, tell) = (Arc::clone(&rig.disk), tell.clone());
        std::thread::spawn(move || tell.send((disk.limits(), disk.nr_requests())));
        let answer = told.recv_timeout(Duration::from_secs(60));
        rig.script.finish_all();
        changing.join().unwrap().unwrap();
        assert_eq!(answer.expect("an answer while it drains").1, 4);
    });
    assert_eq!(statuses(&rig), [Status::Ok]);
    // The asker lets go of the disk after it has told.
    while Arc::strong_count(&rig.disk) > 3 {
        std::thread::yield_now();
    }
    rig.tear_down();
}

#[test]
fn a_disk_that_can_make_nothing_durable_says_so() {
    let limits = Limits { features: Features::NO_FLUSH, ..Limits::default() };
    let rig = rig(4, Config { limits, ..Config::default() });
    let durable = |flags| Bio::new(Op::WriteZeroes, Sector(0), 512).with_flags(flags);
    rig.submit(0, Bio::flush());
    rig.submit(0, durable(Flags::FUA));
    rig.submit(0, durable(Flags::PREFLUSH));
    assert_eq!((statuses(&rig), rig.script.out()), (vec![Status::NotSupported; 3], 0));
    rig.submit(0, durable(Flags::empty()));
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    let fua = Limits { features: Features::NO_FLUSH | Features::FUA, ..rig.disk.limits() };
    rig.disk.set_limits(fua).unwrap();
    rig.script.config.lock().limits = rig.disk.limits();
    rig.submit(0, durable(Flags::FUA));
    rig.submit(0, Bio::flush());
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::NotSupported, Status::Ok]);
    rig.tear_down();
}

/// Says what is out when the driver is asked for another size, and when others are told of it.
struct Sizer(Arc<Script>, mpsc::Sender<usize>);

impl BlockDeviceOps for Sizer {
    fn prepare_resize(&self, _disk: &Disk, _to: u64) -> Result<()> {
        Ok(())
    }

    fn resize(&self, _disk: &Disk, _to: u64) {
        self.1.send(self.0.out()).unwrap();
    }
}

impl DiskListener for Sizer {
    fn event(&self, disk: &Disk, event: Event) {
        // I/O goes on: whoever is told may wait for it.
        if matches!(event, Event::Resized { .. }) {
            self.1.send(usize::from(disk.show().contains("frozen 1"))).unwrap();
        }
    }
}

#[test]
fn nothing_is_out_while_a_disk_gets_another_size() {
    let rig = rig(4, Config::default());
    let (tell, told) = mpsc::channel();
    let sizer = Arc::new(Sizer(Arc::clone(&rig.script), tell));
    let ops: Arc<dyn BlockDeviceOps> = Arc::<Sizer>::clone(&sizer);
    let mut config = DiskConfig::new("sized", Sector(16), Limits::default());
    (config.tail_padding, config.flags) = (7, DiskFlags::NO_PART_SCAN);
    let disk = disk_of(&rig.set, 9, &[0; 64 * 512], config, ops);
    rig.layer.add_disk(&disk).unwrap();
    let listener: Arc<dyn DiskListener> = sizer;
    disk.subscribe(&listener);
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    let ends = Arc::<Ends>::default();
    let data = [Segment::from_vec(vec![1; 512])].into_iter().collect();
    let write = Bio::with_data(Op::Write, Sector(15), data);
    bdev.submit(0, write.on_end(Arc::<Ends>::clone(&ends)));
    assert_eq!(rig.script.out(), 1);
    let shown = Arc::clone(&disk);
    let watchdog = Watchdog::new("a resize", || 0, move || shown.show());
    std::thread::scope(|scope| {
        let resize = scope.spawn(|| disk.resize_bytes(32 * 512));
        let early = loop {
            if let Ok(out) = told.try_recv() {
                break Some(out);
            }
            if disk.show().contains("frozen 1") {
                break None;
            }
            std::thread::yield_now();
        };
        assert_eq!((early, ends.count()), (None, 0), "the driver was asked with so many out");
        rig.script.finish_all();
        resize.join().unwrap().unwrap();
    });
    assert_eq!((told.recv().unwrap(), told.recv().unwrap()), (0, 0));
    assert_eq!((disk.size_bytes(), ends.count()), (32 * 512, 1));
    rig.layer.del_disk(&disk);
    drop((watchdog, bdev, disk, listener));
    rig.tear_down();
}

/// A size that cannot be stops nobody: what is out may take long.
#[test]
fn a_resize_that_cannot_be_does_not_wait_for_what_is_out() {
    let rig = rig(4, Config::default());
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 512));
    assert_eq!(rig.script.out(), 1);
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let disk = &rig.disk;
        scope.spawn(move || {
            let refused = disk.resize_bytes(32 * 512).map_err(|err| err.kind());
            tell.send(refused).unwrap();
        });
        let refused = told.recv_timeout(Duration::from_secs(60));
        rig.script.finish_all();
        assert_eq!(refused, Ok(Err(ErrorKind::NotSupported)));
    });
    rig.tear_down();
}

/// What a server has lost, it has lost for whoever goes on with its disk, too.
#[test]
fn a_flush_that_has_failed_is_told_first_and_flushes_fail_from_then_on_if_that_is_wanted() {
    let limits = Limits { features: Features::WRITE_CACHE, ..Limits::default() };
    let chances = Chances { error: 1000, ..Chances::default() };
    let rig = rig(4, Config { limits, chances, ..Config::default() });
    let (tell, told) = mpsc::channel();
    let ends = Arc::clone(&rig.ends);
    rig.disk.on_failed_flush(Box::new(move || tell.send(ends.take().len()).unwrap()));
    rig.submit(0, Bio::flush());
    rig.script.finish_all();
    assert_eq!(told.try_recv(), Ok(0), "somebody heard of it before");
    assert_ne!(statuses(&rig), [Status::Ok]);
    rig.script.calm_down();
    rig.submit(0, Bio::flush());
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok], "the driver says so");
    assert!(told.try_recv().is_err());

    rig.disk.fail_flushes();
    let write = |flags| Bio::new(Op::Write, Sector(0), 0).with_flags(flags);
    let mut fua = write(Flags::FUA);
    fua.add_segment(Segment::from_vec(vec![1; 512]));
    for bio in [Bio::flush(), write(Flags::PREFLUSH), fua] {
        rig.submit(0, bio);
        assert_eq!(statuses(&rig), [Status::Io]);
    }
    let mut plain = write(Flags::empty());
    plain.add_segment(Segment::from_vec(vec![1; 512]));
    rig.submit(0, plain);
    rig.script.finish_all();
    assert_eq!(statuses(&rig), [Status::Ok]);
    rig.tear_down();
}
