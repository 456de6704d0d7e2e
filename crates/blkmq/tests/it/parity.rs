//! The table of what the block layer does as the kernel's does, row by row: a test is named after what it
//! shows.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use blockyard_blkmq::badblocks::Check;
use blockyard_blkmq::geometry::Geometry;
use blockyard_blkmq::major::{DevNum, EXT_MAJOR};
use blockyard_blkmq::reservation::{PrError, PrType};
use blockyard_blkmq::stats::Counters;
use blockyard_blkmq::{
    Bdev, Bio, BlockDeviceOps, BlockLayer, BlockSize, Chain, Changed, Changes, Disk, DiskConfig,
    DiskFlags, DiskListener, Error, ErrorKind, Event, Extent, Features, Flags, Ioctl, IoctlReply,
    Life, Limits, MAX_DEPTH, NoOps, Op, OpenMode, QueueType, Result, Sector, StatGroup, Status,
    TagSet, TagSetConfig, Timeout, sched,
};
use blockyard_buf::Segment;
use mbrman::{CHS, MBR, MBRPartitionEntry};
use parking_lot::Mutex;

use crate::rig::{Ends, Rig, calm, disk_of};
use crate::script::{Chances, Config, SECTOR, Script};

fn data(byte: u8, len: usize) -> Segment {
    Segment::from_vec(vec![byte; len])
}

fn write(sector: u64, len: usize) -> Box<Bio> {
    Bio::with_data(Op::Write, Sector(sector), [data(7, len)].into_iter().collect())
}

fn read(sector: u64, len: u64) -> Box<Bio> {
    Bio::new(Op::Read, Sector(sector), len)
}

/// What the driver was asked, in order.
fn asked(script: &Script) -> Vec<(Op, u64)> {
    std::mem::take(&mut *script.log.lock())
        .into_iter()
        .map(|(_, op, sector)| (op, sector))
        .collect()
}

fn slow(limits: Limits, depth: u32) -> Rig {
    let set = TagSetConfig { depth, ..TagSetConfig::default() };
    Rig::new(1, set, Config { limits, ..Config::default() }, 256)
}

fn cached(fua: bool) -> Limits {
    let mut features = Features::WRITE_CACHE;
    features.set(Features::FUA, fua);
    Limits { features, ..Limits::default() }
}

/// An image of 256 KiB with an MBR of three primary partitions.
pub fn mbr() -> Vec<u8> {
    let mut image = std::io::Cursor::new(vec![0; 512 * SECTOR]);
    let mut mbr = MBR::new_from(&mut image, SECTOR as u32, [1, 2, 3, 4]).unwrap();
    for (number, (start, sectors)) in [(1, (64, 64)), (2, (128, 100)), (3, (256, 256))] {
        mbr[number] = MBRPartitionEntry {
            boot: 0,
            first_chs: CHS::empty(),
            sys: 0x83,
            last_chs: CHS::empty(),
            starting_lba: start,
            sectors,
        };
    }
    mbr.write_into(&mut image).unwrap();
    image.into_inner()
}

fn gpt() -> Vec<u8> {
    let mut image = std::io::Cursor::new(vec![0; 512 * SECTOR]);
    let mut gpt = gptman::GPT::new_from(&mut image, SECTOR as u64, [9; 16]).unwrap();
    gpt[1] = gptman::GPTPartitionEntry {
        partition_type_guid: [3; 16],
        unique_partition_guid: [4; 16],
        starting_lba: 40,
        ending_lba: 99,
        attribute_bits: 0,
        partition_name: "one".into(),
    };
    gpt.write_into(&mut image).unwrap();
    gptman::GPT::write_protective_mbr_into(&mut image, SECTOR as u64).unwrap();
    image.into_inner()
}

fn config(name: &str, image: &[u8]) -> DiskConfig {
    let mut config =
        DiskConfig::new(name, Sector::from_bytes_floor(image.len() as u64), Limits::default());
    config.dev = DevNum { major: 240, minor: 0 };
    config.minors = 16;
    config
}

fn names(layer: &BlockLayer) -> Vec<String> {
    layer
        .proc_partitions()
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().last().unwrap().to_owned())
        .collect()
}

#[test]
fn register_blkdev_gives_free_majors_from_the_top_and_refuses_taken_and_large_ones() {
    let layer = BlockLayer::new();
    let first = layer.register_blkdev(0, "mydrv").unwrap();
    assert_eq!(layer.register_blkdev(0, "other").unwrap(), first - 1, "searched from the top down");
    assert_eq!(layer.register_blkdev(first, "third").unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(layer.register_blkdev(511, "last").unwrap(), 511);
    assert_eq!(layer.register_blkdev(512, "past").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(layer.unregister_blkdev(first, "another").unwrap_err().kind(), ErrorKind::Invalid);
    layer.unregister_blkdev(first, "mydrv").unwrap();
    assert_eq!(layer.unregister_blkdev(first, "mydrv").unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(layer.register_blkdev(0, "again").unwrap(), first);
}

#[test]
fn alloc_disk_caps_the_minors_at_256_and_put_disk_ends_it_with_its_last_reference() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let mut config = config("many", &[0; 512]);
    config.minors = 1000;
    let disk = disk_of(&set, 0, &[0; 512], config, Arc::new(NoOps));
    assert_eq!(disk.minors(), 256);
    assert_eq!(set.driver().counts.hctxs.load(Ordering::SeqCst), 1);
    let other = Arc::clone(&disk);
    drop(disk);
    assert_eq!(set.driver().counts.hctxs.load(Ordering::SeqCst), 1);
    drop(other);
    assert_eq!(set.driver().counts.hctxs.load(Ordering::SeqCst), 0);
}

#[test]
fn minors_bound_the_partitions_beyond_which_they_get_extended_ones() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let mut config = config("few", &mbr());
    config.minors = 3;
    let disk = disk_of(&set, 0, &mbr(), config, Arc::new(NoOps));
    layer.add_disk(&disk).unwrap();
    let devs: Vec<_> =
        disk.partitions().iter().map(|part| (part.dev().major, part.dev().minor)).collect();
    assert_eq!(devs, [(240, 1), (240, 2), (EXT_MAJOR, 0)]);
    layer.rescan_partitions(&disk).unwrap();
    layer.del_disk(&disk);
    let again = disk_of(
        &set,
        1,
        &mbr(),
        DiskConfig { minors: 1, ..self::config("again", &mbr()) },
        Arc::new(NoOps),
    );
    layer.add_disk(&again).unwrap();
    let devs: Vec<_> = again.partitions().iter().map(|part| part.dev()).collect();
    assert!(devs.contains(&DevNum { major: EXT_MAJOR, minor: 0 }), "given back: {devs:?}");
}

/// Remembers what it is told.
#[derive(Default)]
struct Listener(Mutex<Vec<Event>>);

impl DiskListener for Listener {
    fn event(&self, _disk: &Disk, event: Event) {
        self.0.lock().push(event);
    }
}

impl Listener {
    fn of(disk: &Disk) -> Arc<Self> {
        let listener = Arc::<Self>::default();
        let weak: Arc<dyn DiskListener> = Arc::<Self>::clone(&listener);
        disk.subscribe(&weak);
        listener
    }
}

#[test]
fn changes_are_told_once_and_those_that_nobody_waited_for_together() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = disk_of(&set, 0, &[0; 512], config("changing", &[0; 512]), Arc::new(NoOps));
    let mut changes = Changes::of(&disk);
    let mut told = || {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(changes.next()).poll(&mut context) {
            Poll::Ready(changed) => changed,
            Poll::Pending => Changed::empty(),
        }
    };
    assert_eq!(told(), Changed::empty());
    disk.set_read_only(true);
    disk.set_capacity(Sector(2)).unwrap();
    disk.set_capacity(Sector(1)).unwrap();
    assert_eq!(told(), Changed::SIZE | Changed::READ_ONLY);
    assert_eq!(told(), Changed::empty());
    changes.repeat(Changed::SIZE);
    let mut woken = pin!(changes.next());
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(woken.as_mut().poll(&mut context), Poll::Ready(Changed::SIZE));
}

#[test]
fn who_waits_for_a_change_is_woken_by_it() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = disk_of(&set, 0, &[0; 512], config("waking", &[0; 512]), Arc::new(NoOps));
    let mut changes = Changes::of(&disk);
    let woken = Arc::new(AtomicBool::new(false));
    let waker = Waker::from(Arc::new(Flag(Arc::clone(&woken))));
    let mut next = pin!(changes.next());
    let mut context = Context::from_waker(&waker);
    assert_eq!(next.as_mut().poll(&mut context), Poll::Pending);
    disk.set_read_only(true);
    assert!(woken.load(Ordering::SeqCst));
    assert_eq!(next.as_mut().poll(&mut context), Poll::Ready(Changed::READ_ONLY));
}

/// Says that it was woken.
struct Flag(Arc<AtomicBool>);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn set_capacity_is_in_sectors_of_512_bytes_and_reaches_users_as_an_event() {
    let limits =
        Limits { logical_block_size: BlockSize::B4096, ..Limits::default() }.validate().unwrap();
    let set = calm(1, TagSetConfig::default(), limits.clone());
    let disk = disk_of(
        &set,
        0,
        &[0; 64 * 512],
        DiskConfig { limits, ..config("big", &[0; 64 * 512]) },
        Arc::new(NoOps),
    );
    let listener = Listener::of(&disk);
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    assert_eq!(bdev.submit_and_wait(0, read(56, 4096)).status(), Status::Ok);
    assert_eq!(bdev.submit_and_wait(0, read(64, 4096)).status(), Status::OutOfRange);
    assert_eq!(bdev.submit_and_wait(0, read(1, 4096)).status(), Status::Invalid, "unaligned");
    assert_eq!(
        bdev.submit_and_wait(0, read(0, 512)).status(),
        Status::Invalid,
        "not a whole block"
    );
    disk.set_capacity(Sector(32)).unwrap();
    assert_eq!(
        (bdev.capacity(), bdev.submit_and_wait(0, read(56, 4096)).status()),
        (Sector(32), Status::OutOfRange)
    );
    assert_eq!(*listener.0.lock(), [Event::Resized { from: Sector(64), to: Sector(32) }]);
    assert_eq!(bdev.ioctl(&Ioctl::GetSize).unwrap(), IoctlReply::Bytes(32 * 512));
    let refused = disk.resize(Sector(64)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotSupported, "its driver makes no room");
    assert_eq!(disk.capacity(), Sector(32));
}

#[test]
fn add_disk_makes_it_visible_and_scans_an_mbr() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let disk = disk_of(&set, 0, &mbr(), config("ram0", &mbr()), Arc::new(NoOps));
    let listener = Listener::of(&disk);
    assert!(layer.lookup("ram0").is_none());
    layer.add_disk(&disk).unwrap();
    assert!(layer.lookup("ram0").is_some());
    assert_eq!(names(&layer), ["ram0", "ram0p1", "ram0p2", "ram0p3"]);
    assert_eq!(*listener.0.lock(), [Event::Partitions, Event::Added]);
    let twin = disk_of(&set, 1, &mbr(), config("ram0", &mbr()), Arc::new(NoOps));
    assert_eq!(layer.add_disk(&twin).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn add_disk_scans_a_gpt() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let disk = disk_of(&set, 0, &gpt(), config("vda", &gpt()), Arc::new(NoOps));
    layer.add_disk(&disk).unwrap();
    assert_eq!(names(&layer), ["vda", "vda1"]);
    let part = &disk.partitions()[0];
    assert_eq!(
        (part.start(), part.capacity(), part.info().name.as_deref()),
        (Sector(40), Sector(60), Some("one"))
    );
}

#[test]
fn add_disk_scans_nothing_that_is_hidden_or_told_not_to() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let plain = disk_of(
        &set,
        0,
        &mbr(),
        DiskConfig { flags: DiskFlags::NO_PART_SCAN, ..config("plain", &mbr()) },
        Arc::new(NoOps),
    );
    let hidden = disk_of(
        &set,
        1,
        &mbr(),
        DiskConfig { flags: DiskFlags::HIDDEN, ..config("hidden", &mbr()) },
        Arc::new(NoOps),
    );
    layer.add_disk(&plain).unwrap();
    layer.add_disk(&hidden).unwrap();
    assert_eq!(names(&layer), ["plain"]);
    assert!(layer.lookup("hidden").is_none());
    assert_eq!(layer.rescan_partitions(&plain).unwrap_err().kind(), ErrorKind::NotSupported);
}

#[test]
fn a_partition_is_a_range_of_its_disk_with_statistics_of_its_own() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let disk = disk_of(&set, 0, &mbr(), config("ram0", &mbr()), Arc::new(NoOps));
    layer.add_disk(&disk).unwrap();
    let part = layer.open("ram0p2", OpenMode::ReadWrite).unwrap();
    assert_eq!((part.capacity(), part.name()), (Sector(100), "ram0p2".to_owned()));
    asked(set.driver());
    assert_eq!(part.submit_and_wait(0, write(0, 512)).status(), Status::Ok);
    assert_eq!(part.submit_and_wait(0, write(99, 512)).status(), Status::Ok);
    assert_eq!(part.submit_and_wait(0, write(100, 512)).status(), Status::OutOfRange);
    assert_eq!(asked(set.driver()), [(Op::Write, 128), (Op::Write, 227)]);
    let (stats, _) = part.partition().unwrap().stats();
    assert_eq!((stats.counters(StatGroup::Write).ios, stats.in_flight()), (2, [0, 0]));
    let other = layer.open("ram0p1", OpenMode::ReadOnly).unwrap();
    assert_eq!(other.submit_and_wait(0, write(0, 512)).status(), Status::NotPermitted);
    assert_eq!(
        layer.rescan_partitions(&disk).unwrap_err().kind(),
        ErrorKind::Busy,
        "while one is open"
    );
}

/// Remembers in which order things were done to it.
#[derive(Default)]
struct Ops {
    calls: Mutex<Vec<String>>,
    changed: std::sync::atomic::AtomicBool,
}

impl Ops {
    fn note(&self, what: impl Into<String>) {
        self.calls.lock().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl BlockDeviceOps for Ops {
    fn open(&self, _disk: &Disk, mode: OpenMode, first: bool) -> Result<()> {
        self.note(format!("open {mode:?} first={first}"));
        Ok(())
    }
    fn release(&self, _disk: &Disk, last: bool) {
        self.note(format!("release last={last}"));
    }
    fn ioctl(&self, disk: &Disk, command: u32, argument: &[u8]) -> Result<Vec<u8>> {
        self.note(format!("ioctl {command:#x}"));
        if command == 0x1234 {
            Ok(argument.to_vec())
        } else {
            Err(Error::new(ErrorKind::NotSupported, disk.name()))
        }
    }
    fn geometry(&self, disk: &Disk) -> Option<Geometry> {
        self.note("getgeo");
        Some(Geometry::with(2, 8, disk.capacity()))
    }
    fn check_events(&self, _disk: &Disk) -> bool {
        self.note("check_events");
        self.changed.swap(false, Ordering::SeqCst)
    }
    fn revalidate(&self, disk: &Disk) -> Result<()> {
        self.note("revalidate");
        disk.set_capacity(Sector(200))
    }
    fn unlock_native_capacity(&self, disk: &Disk) -> Sector {
        self.note("unlock_native_capacity");
        disk.capacity().max(Sector(512))
    }
    fn swap_slot_free_notify(&self, _disk: &Disk, sector: Sector) {
        self.note(format!("swap_slot_free_notify {sector}"));
    }
}

#[test]
fn block_device_operations_are_each_called() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let (layer, ops) = (BlockLayer::new(), Arc::new(Ops::default()));
    let small =
        DiskConfig { capacity: Sector(300), flags: DiskFlags::REMOVABLE, ..config("ram0", &mbr()) };
    let disk = disk_of(&set, 0, &mbr(), small, Arc::<Ops>::clone(&ops));
    layer.add_disk(&disk).unwrap();
    assert_eq!(ops.take(), ["unlock_native_capacity"], "the third partition reaches past the end");
    assert_eq!((disk.capacity(), disk.partitions().len()), (Sector(512), 3));

    let first = layer.open("ram0", OpenMode::ReadWrite).unwrap();
    let second = layer.open("ram0p1", OpenMode::ReadOnly).unwrap();
    assert_eq!(disk.openers(), 2);
    assert_eq!(
        second.ioctl(&Ioctl::GetGeometry).unwrap(),
        IoctlReply::Geometry(Geometry { heads: 2, sectors: 8, cylinders: 32, start: Sector(64) })
    );
    let mine = |command| Ioctl::Driver { command, argument: vec![1, 2] };
    assert_eq!(first.ioctl(&mine(0x1234)).unwrap(), IoctlReply::Driver(vec![1, 2]));
    assert_eq!(first.ioctl(&mine(0x9999)).unwrap_err().kind(), ErrorKind::NotSupported);
    second.swap_slot_free_notify(Sector(8));
    drop(second);
    drop(first);
    let calls = [
        "open ReadWrite first=true",
        "open ReadOnly first=false",
        "getgeo",
        "ioctl 0x1234",
        "ioctl 0x9999",
        "swap_slot_free_notify 72",
    ];
    assert_eq!(ops.take(), [&calls[..], &["release last=false", "release last=true"]].concat());

    let listener = Listener::of(&disk);
    assert!(!layer.check_events(&disk).unwrap());
    ops.changed.store(true, Ordering::SeqCst);
    assert!(layer.check_events(&disk).unwrap());
    let events = listener.0.lock().clone();
    assert!(
        events.contains(&Event::MediaChanged) && events.contains(&Event::Partitions),
        "{events:?}"
    );
    assert!(ops.take().ends_with(&[
        "check_events".into(),
        "revalidate".into(),
        "unlock_native_capacity".into()
    ]));
}

#[test]
fn rw_page_reads_and_writes_one_page_and_waits_for_it() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = disk_of(&set, 0, &[0; 64 * 512], config("ram0", &[0; 64 * 512]), Arc::new(NoOps));
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    bdev.rw_page(0, Sector(8), data(5, 4096), true).unwrap();
    let page = data(0, 4096);
    bdev.rw_page(0, Sector(8), page.clone(), false).unwrap();
    assert_eq!(page.to_vec(), vec![5; 4096]);
    assert_eq!(bdev.rw_page(0, Sector(64), page, false), Err(Status::OutOfRange));
}

#[test]
fn del_gendisk_takes_partitions_in_reverse_flushes_and_leaves_a_disk_of_no_sectors() {
    let set = calm(1, TagSetConfig::default(), cached(false));
    let layer = BlockLayer::new();
    let disk = disk_of(
        &set,
        0,
        &mbr(),
        DiskConfig { limits: cached(false), ..config("ram0", &mbr()) },
        Arc::new(NoOps),
    );
    layer.add_disk(&disk).unwrap();
    let (whole, part) = (
        layer.open("ram0", OpenMode::ReadWrite).unwrap(),
        layer.open("ram0p1", OpenMode::ReadWrite).unwrap(),
    );
    assert_eq!(whole.submit_and_wait(0, write(0, 512)).status(), Status::Ok);
    let listener = Listener::of(&disk);
    asked(set.driver());
    layer.del_disk(&disk);
    assert_eq!(asked(set.driver()), [(Op::Flush, 0)], "what was written is made durable");
    assert_eq!(set.driver().power_cut(0)[..4], [7; 4]);
    assert_eq!(
        (layer.open("ram0", OpenMode::ReadOnly).unwrap_err().kind(), disk.capacity()),
        (ErrorKind::NotFound, Sector(0))
    );
    assert_eq!(disk.open(None, OpenMode::ReadOnly).unwrap_err().kind(), ErrorKind::Offline);
    for bdev in [&whole, &part] {
        assert_eq!(bdev.submit_and_wait(0, read(0, 512)).status(), Status::Offline);
        assert_eq!(bdev.submit_and_wait(0, write(0, 512)).status(), Status::Offline);
    }
    assert_eq!((disk.life(), disk.partitions().len()), (Life::Dead, 0));
    assert_eq!(*listener.0.lock(), [Event::Removed]);
    layer.del_disk(&disk);
    assert_eq!(listener.0.lock().len(), 1, "removed once");
}

#[test]
fn a_queue_is_dying_while_what_is_out_ends_and_dead_after() {
    let rig = slow(Limits::default(), 1);
    rig.submit(0, read(0, 512));
    rig.submit(0, read(8, 512));
    let watched = Arc::clone(&rig.disk);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| rig.layer.del_disk(&rig.disk));
        while watched.life() == Life::Live {
            std::thread::yield_now();
        }
        assert_eq!(watched.life(), Life::Dying);
        assert_eq!(
            rig.bdev.submit_and_wait(0, read(0, 512)).status(),
            Status::Offline,
            "what comes fails"
        );
        assert_eq!(rig.script.out(), 1);
        while rig.ends.count() < 1 {
            std::thread::yield_now();
        }
        rig.script.finish_all();
        removal.join().unwrap();
    });
    let statuses: Vec<_> = rig.ends.take().iter().map(|bio| bio.status()).collect();
    assert_eq!(
        statuses,
        [Status::Offline, Status::Ok],
        "what waited fails first, what was out ends well"
    );
    assert_eq!(rig.disk.life(), Life::Dead);
    drop(watched);
    rig.tear_down();
}

#[test]
fn gendisk_fields_are_what_they_were_made_from() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let made = DiskConfig {
        read_only: true,
        node: Some(1),
        flags: DiskFlags::REMOVABLE | DiskFlags::ASYNC_EVENTS,
        ..config("ram0", &mbr())
    };
    let disk = disk_of(&set, 0, &mbr(), made, Arc::new(NoOps));
    assert_eq!(
        (disk.name(), disk.dev(), disk.minors(), disk.node()),
        ("ram0", DevNum { major: 240, minor: 0 }, 16, Some(1))
    );
    assert_eq!(disk.flags(), DiskFlags::REMOVABLE | DiskFlags::ASYNC_EVENTS);
    assert_eq!(disk.open(None, OpenMode::ReadWrite).unwrap_err().kind(), ErrorKind::NotPermitted);
    let bdev = disk.open(None, OpenMode::ReadOnly).unwrap();
    disk.set_read_only(false);
    assert_eq!(
        bdev.submit_and_wait(0, write(0, 512)).status(),
        Status::NotPermitted,
        "opened for reading"
    );
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    assert_eq!(bdev.submit_and_wait(0, write(0, 512)).status(), Status::Ok);
    disk.set_read_only(true);
    assert_eq!(bdev.submit_and_wait(0, write(0, 512)).status(), Status::NotPermitted);
    assert_eq!(bdev.ioctl(&Ioctl::GetReadOnly).unwrap(), IoctlReply::Flag(true));
    disk.bad_blocks().set(Sector(8), Sector(2), false).unwrap();
    assert!(matches!(
        disk.bad_blocks().check(Sector(0), Sector(9)),
        Check::Bad { acked: false, .. }
    ));
    assert_eq!(disk.bad_blocks().check(Sector(10), Sector(9)), Check::Good);
}

#[test]
fn a_tag_set_says_einval_where_the_kernel_does_and_reduces_what_is_too_deep() {
    let make =
        |config| TagSet::new(Script::new(1, Config::default()), config).map(|set| set.depth());
    let base = TagSetConfig::default;
    let invalid = [
        TagSetConfig { depth: 0, ..base() },
        TagSetConfig { cpus: 0, ..base() },
        TagSetConfig { hw_queues: [0, 1, 0], ..base() },
        TagSetConfig { depth: 4, reserved: 4, ..base() },
        TagSetConfig { depth: 4, reserved: u32::MAX, ..base() },
        TagSetConfig { cpus: 2, hw_queues: [3, 0, 0], ..base() },
    ];
    for config in invalid {
        assert_eq!(make(config).unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(make(TagSetConfig { depth: 4, reserved: 3, ..base() }).unwrap(), 4);
    assert_eq!(make(TagSetConfig { depth: MAX_DEPTH + 1, ..base() }).unwrap(), 10240);
}

#[test]
fn a_full_tag_set_makes_submitters_wait_in_order_and_fails_only_nowait() {
    let rig = slow(Limits { features: Features::NOMERGES, ..Limits::default() }, 2);
    for sector in 0..6 {
        rig.submit(0, read(sector, 512));
    }
    rig.submit(0, read(6, 512).with_flags(Flags::NOWAIT));
    assert_eq!((rig.script.out(), rig.ends.take()[0].status()), (2, Status::Again));
    rig.script.finish_all();
    let order: Vec<u64> = asked(&rig.script).into_iter().map(|(_, sector)| sector).collect();
    assert_eq!((order, rig.ends.count()), ((0..6).collect(), 6));
    rig.tear_down();
}

#[test]
fn a_bio_of_several_segments_is_split_advanced_cloned_and_chained() {
    let mut bio =
        Bio::with_data(Op::Write, Sector(8), [data(1, 512), data(2, 1024)].into_iter().collect());
    let iter = bio.iter();
    assert_eq!((iter.sector, iter.size, iter.index, iter.done), (Sector(8), 1536, 0, 0));
    bio.advance(1024);
    let iter = bio.iter();
    assert_eq!((iter.sector, iter.size, iter.index, iter.done), (Sector(10), 512, 1, 512));
    assert_eq!(bio.segments().map(|segment| segment.to_vec()).collect::<Vec<_>>(), [vec![2; 512]]);
    let mut whole = write(0, 2048);
    let front = whole.split(512);
    assert_eq!(
        (front.len(), front.sector(), whole.len(), whole.sector()),
        (512, Sector(0), 1536, Sector(1))
    );
    assert_eq!(whole.clone_rest().iter().size, 1536);

    let ends = Arc::<Ends>::default();
    let chain = Chain::new(Bio::flush().on_end(Arc::<Ends>::clone(&ends)));
    let mut children = [write(0, 512), write(1, 512)];
    children.iter_mut().for_each(|child| chain.add(child));
    chain.close();
    let [one, two] = children;
    two.end(Status::Medium);
    assert_eq!(ends.count(), 0);
    one.end(Status::Ok);
    assert_eq!(ends.take()[0].status(), Status::Medium, "the first error");
}

#[test]
fn bios_merge_at_both_ends_and_a_request_ends_all_of_them() {
    let rig = slow(cached(true), 8);
    rig.disk.quiesce();
    for sector in [8, 9, 7, 20] {
        rig.submit(0, write(sector, 512));
    }
    rig.submit(0, write(10, 512).with_flags(Flags::NOMERGE));
    rig.submit(0, write(6, 512).with_flags(Flags::FUA));
    rig.disk.unquiesce();
    assert_eq!(asked(&rig.script).len(), 4, "a merged one of three, and three alone");
    let (stats, _) = rig.disk.stats();
    assert_eq!(stats.counters(StatGroup::Write).merges, 2);
    rig.script.finish_all();
    assert_eq!(rig.ends.count(), 6);
    assert_eq!(rig.script.bytes(0)[6 * SECTOR..11 * SECTOR], vec![7; 5 * SECTOR]);
    rig.tear_down();
}

#[test]
fn a_plug_merges_what_is_in_it_and_tells_the_driver_after_the_last() {
    let rig = slow(Limits::default(), 8);
    let mut plug: Vec<_> = [0, 1, 2, 40]
        .into_iter()
        .map(|sector| write(sector, 512).on_end(Arc::<Ends>::clone(&rig.ends)))
        .collect();
    rig.bdev.submit_all(0, &mut plug);
    assert_eq!(asked(&rig.script), [(Op::Write, 0), (Op::Write, 40)]);
    assert_eq!(
        (rig.script.out(), rig.script.counts.commits.load(Ordering::SeqCst)),
        (2, 0),
        "the last said so itself"
    );
    rig.tear_down();
}

#[test]
fn what_was_gathered_is_committed_if_the_driver_is_full_before_the_last() {
    let rig = slow(Limits { features: Features::NOMERGES, ..Limits::default() }, 8);
    let set = TagSetConfig { depth: 8, ..TagSetConfig::default() };
    let budgeted = Rig::new(
        1,
        set,
        Config { limits: rig.disk.limits(), budget: Some(2), ..Config::default() },
        64,
    );
    let mut plug: Vec<_> = (0..4)
        .map(|sector| write(sector * 4, 512).on_end(Arc::<Ends>::clone(&budgeted.ends)))
        .collect();
    budgeted.bdev.submit_all(0, &mut plug);
    assert_eq!(
        (budgeted.script.out(), budgeted.script.counts.commits.load(Ordering::SeqCst)),
        (2, 1)
    );
    budgeted.script.finish_all();
    assert_eq!(budgeted.ends.count(), 4, "budgets come back");
    budgeted.tear_down();
    rig.tear_down();
}

#[test]
fn an_idle_queue_is_issued_to_directly() {
    let rig = slow(Limits::default(), 4);
    rig.submit(0, read(0, 512));
    assert_eq!(rig.script.out(), 1, "before submit returned");
    assert_eq!(rig.disk.in_flight()[0].1.op, Op::Read);
    rig.tear_down();
}

#[test]
fn a_request_ends_in_parts_and_is_requeued_with_the_rest() {
    let set = TagSetConfig::default();
    let chances = Chances { partial: 500, requeue: 400, ..Chances::default() };
    let rig = Rig::new(7, set, Config { chances, ..Config::default() }, 256);
    rig.disk.quiesce();
    for sector in 0..8 {
        rig.submit(0, write(sector * 2, 1024));
    }
    rig.disk.unquiesce();
    for _ in 0..100 {
        rig.script.step();
    }
    rig.script.calm_down();
    rig.script.finish_all();
    assert!(rig.ends.take().iter().all(|bio| bio.status().is_ok()));
    assert_eq!(rig.script.bytes(0)[..16 * SECTOR], vec![7; 16 * SECTOR]);
    assert!(asked(&rig.script).len() > 1, "it was issued more than once");
    rig.tear_down();
}

#[test]
fn a_request_that_its_driver_drops_ends_as_an_io_error() {
    let rig = Rig::new(
        1,
        TagSetConfig::default(),
        Config { chances: Chances { dropped: 1000, ..Chances::default() }, ..Config::default() },
        64,
    );
    rig.submit(0, read(0, 512));
    rig.script.finish_all();
    assert_eq!(rig.ends.take()[0].status(), Status::Io);
    rig.tear_down();
}

#[test]
fn a_request_that_is_out_too_long_is_asked_about_and_ends_as_its_driver_says() {
    let set = || TagSetConfig { timeout: Duration::from_secs(1), ..TagSetConfig::default() };
    for (answer, ended) in [(Timeout::ResetTimer, 0), (Timeout::Done, 1)] {
        let rig = Rig::new(1, set(), Config { timeout: Some(answer), ..Config::default() }, 64);
        rig.submit(0, read(0, 512));
        assert_eq!(rig.disk.tick(), Some(1_000_000_000));
        rig.clock.advance_ms(999);
        rig.disk.tick();
        assert_eq!(rig.script.counts.timeouts.load(Ordering::SeqCst), 0);
        rig.clock.advance_ms(1);
        rig.disk.tick();
        assert_eq!(rig.script.counts.timeouts.load(Ordering::SeqCst), 1);
        assert_eq!(rig.ends.count(), ended);
        assert!(rig.ends.take().iter().all(|bio| bio.status() == Status::Timeout));
        rig.tear_down();
    }
}

#[test]
fn the_queue_maps_send_reads_writes_and_polled_reads_to_queues_of_their_own() {
    let set = TagSetConfig { cpus: 2, hw_queues: [2, 1, 1], ..TagSetConfig::default() };
    let rig = Rig::new(1, set, Config::default(), 64);
    rig.submit(0, write(0, 512));
    rig.submit(1, write(8, 512));
    rig.submit(1, read(0, 512));
    rig.submit(1, read(8, 512).with_flags(Flags::POLLED));
    let queues: Vec<usize> = rig.script.log.lock().iter().map(|&(hctx, ..)| hctx).collect();
    assert_eq!(queues, [0, 1, 2, 3]);
    while rig.ends.count() < 4 {
        assert_eq!(rig.bdev.poll(1), 1);
    }
    assert_eq!(rig.script.counts.polled.load(Ordering::SeqCst), 4);
    assert_eq!(QueueType::COUNT, 3);
    rig.tear_down();
}

#[test]
fn a_flush_goes_before_and_after_the_data_where_the_driver_has_no_fua() {
    for (fua, steps) in
        [(false, vec![Op::Flush, Op::Write, Op::Flush]), (true, vec![Op::Flush, Op::Write])]
    {
        let rig = slow(cached(fua), 4);
        rig.submit(0, write(0, 512).with_flags(Flags::PREFLUSH | Flags::FUA));
        rig.script.finish_all();
        let ops: Vec<Op> = asked(&rig.script).into_iter().map(|(op, _)| op).collect();
        assert_eq!(ops, steps);
        assert_eq!(rig.script.power_cut(0)[..SECTOR], vec![7; SECTOR]);
        rig.tear_down();
    }
}

#[test]
fn flushes_that_come_while_one_is_out_are_one() {
    let rig = slow(cached(false), 16);
    for _ in 0..10 {
        rig.submit(0, Bio::flush());
    }
    rig.script.finish_all();
    assert_eq!((asked(&rig.script).len(), rig.ends.count()), (2, 10));
    rig.tear_down();
}

#[test]
fn a_disk_without_a_cache_is_never_flushed() {
    let rig = slow(Limits::default(), 4);
    rig.submit(0, Bio::flush());
    rig.submit(0, write(0, 512).with_flags(Flags::FUA | Flags::PREFLUSH));
    assert_eq!((rig.ends.count(), asked(&rig.script)), (1, vec![(Op::Write, 0)]));
    rig.tear_down();
}

#[test]
fn schedulers_are_switched_and_tuned_with_requests_waiting() {
    let rig = slow(Limits { features: Features::NOMERGES, ..Limits::default() }, 2);
    assert_eq!((rig.disk.scheduler(), rig.disk.nr_requests()), (sched::Kind::None, 2));
    rig.disk.freeze();
    for sector in 0..5 {
        rig.submit(0, read(sector, 512));
    }
    rig.disk.set_scheduler(sched::Kind::MqDeadline).unwrap();
    assert_eq!(rig.disk.nr_requests(), 4);
    assert_eq!(rig.disk.tune_scheduler("fifo_batch", Some(4)).unwrap(), 4);
    assert_eq!(rig.disk.tune_scheduler("no_such", None).unwrap_err().kind(), ErrorKind::Invalid);
    rig.disk.unfreeze();
    rig.script.finish_all();
    assert_eq!(rig.ends.count(), 5);
    rig.disk.set_scheduler(sched::Kind::None).unwrap();
    assert_eq!(
        rig.disk.set_nr_requests(3).unwrap_err().kind(),
        ErrorKind::Invalid,
        "more than there are tags"
    );
    rig.tear_down();
}

#[test]
fn statistics_are_the_lines_of_proc_diskstats_and_proc_partitions() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let layer = BlockLayer::new();
    let disk = disk_of(&set, 0, &mbr(), config("ram0", &mbr()), Arc::new(NoOps));
    layer.add_disk(&disk).unwrap();
    let bdev = layer.open("ram0p1", OpenMode::ReadWrite).unwrap();
    assert_eq!(bdev.submit_and_wait(0, write(0, 4096)).status(), Status::Ok);
    assert_eq!(
        layer.proc_partitions(),
        "major minor  #blocks  name\n\n 240        0        256 ram0\n 240        1         32 ram0p1\n\
         \x20240        2         50 ram0p2\n 240        3        128 ram0p3\n"
    );
    let text = layer.proc_diskstats();
    let line = text.lines().nth(1).unwrap();
    assert_eq!(line, " 240       1 ram0p1 0 0 0 0 1 0 8 0 0 0 0 0 0 0 0 0 0");
    let (stats, _) = disk.stats();
    assert_eq!(
        stats.counters(StatGroup::Write),
        &Counters { ios: 1, merges: 0, sectors: 8, nsecs: 0 }
    );
    assert_eq!(stats.latency(StatGroup::Write).count(), 1);
}

#[test]
fn discards_and_write_zeroes_are_split_emulated_or_refused() {
    let limits =
        Limits { max_hw_discard_sectors: 16, max_write_zeroes_sectors: 0, ..Limits::default() };
    let rig = slow(limits.validate().unwrap(), 16);
    rig.submit(0, Bio::new(Op::Discard, Sector(0), 40 * 512));
    assert_eq!(asked(&rig.script), [(Op::Discard, 0), (Op::Discard, 16), (Op::Discard, 32)]);
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(100), 512));
    rig.submit(0, Bio::new(Op::WriteZeroes, Sector(104), 512).with_flags(Flags::NOFALLBACK));
    rig.submit(0, Bio::new(Op::SecureErase, Sector(104), 512));
    assert_eq!(asked(&rig.script), [(Op::Write, 100)]);
    rig.script.finish_all();
    let mut statuses: Vec<_> = rig.ends.take().iter().map(|bio| bio.status()).collect();
    statuses.sort_by_key(|status| status.errno());
    assert_eq!(statuses, [Status::Ok, Status::Ok, Status::NotSupported, Status::NotSupported]);
    rig.submit(0, Bio::new(Op::BlockStatus, Sector(0), 1024));
    assert_eq!(
        rig.ends.take()[0].extents,
        [Extent::data(1024)],
        "all is data to a driver that cannot tell"
    );
    rig.tear_down();
}

#[test]
fn persistent_reservations_hold_across_the_openers_of_a_disk() {
    let set = calm(1, TagSetConfig::default(), Limits::default());
    let disk = disk_of(&set, 0, &[0; 4096], config("ram0", &[0; 4096]), Arc::new(NoOps));
    let [one, two]: [Bdev; 2] =
        std::array::from_fn(|_| disk.open(None, OpenMode::ReadWrite).unwrap());
    one.reserve(|pr, me| pr.register(me, 0, 11, false)).unwrap();
    one.reserve(|pr, me| pr.reserve(me, 11, PrType::WriteExclusive)).unwrap();
    assert_eq!(two.submit_and_wait(0, write(0, 512)).status(), Status::ReservationConflict);
    let mut plug = vec![write(0, 512)];
    two.submit_all(0, &mut plug);
    assert!(plug.is_empty());
    assert_eq!(two.submit_and_wait(0, read(0, 512)).status(), Status::Ok);
    assert_eq!(one.submit_and_wait(0, write(0, 512)).status(), Status::Ok);
    assert_eq!(
        two.reserve(|pr, me| pr.release(me, 11, PrType::WriteExclusive)),
        Err(PrError::Conflict)
    );
    two.reserve(|pr, me| pr.register(me, 0, 22, false)).unwrap();
    two.reserve(|pr, me| pr.preempt(me, 22, 11, PrType::WriteExclusive).map(drop)).unwrap();
    assert_eq!(one.submit_and_wait(0, write(0, 512)).status(), Status::ReservationConflict);
    two.reserve(|pr, me| pr.clear(me, 22)).unwrap();
    assert_eq!(one.submit_and_wait(0, write(0, 512)).status(), Status::Ok);
}

#[test]
fn a_queue_shows_what_is_out_and_what_waits_with_the_words_of_the_driver() {
    let set = TagSetConfig { depth: 2, ..TagSetConfig::default() };
    let chances = Chances { device: 1000, ..Chances::default() };
    let rig = Rig::new(1, set, Config { chances, ..Config::default() }, 64);
    for sector in [0, 16, 32] {
        rig.submit(0, read(sector, 512));
    }
    let shown = rig.disk.show();
    assert!(shown.contains("2 of 2 requests in use"), "{shown}");
    assert!(shown.contains("begun=false"), "the driver handed it back, and cleaned up: {shown}");
    assert!(shown.contains("waits: Bio"), "there is no third tag: {shown}");
    assert!(rig.script.counts.shown.load(Ordering::SeqCst) >= 2);
    rig.script.calm_down();
    rig.script.finish_all();
    assert_eq!(rig.ends.take().len(), 3);
    rig.tear_down();
}
