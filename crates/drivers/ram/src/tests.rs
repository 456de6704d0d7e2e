#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::BTreeMap;

use blockyard_blkmq::{Bdev, Bio, DiskConfig, MonotonicClock, OpenMode, TagSet, TagSetConfig};
use proptest::prelude::*;

use super::*;

fn open(capacity: Sector) -> (Arc<Ram>, Bdev) {
    let ram = Ram::new();
    let set = TagSet::new(Arc::clone(&ram), TagSetConfig::default()).unwrap();
    let config = DiskConfig::new("ram0", capacity, Ram::limits());
    let disk =
        Disk::alloc(&set, (), config, Arc::<Ram>::clone(&ram), Arc::new(MonotonicClock::new()))
            .unwrap();
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    (ram, bdev)
}

fn write(bdev: &Bdev, offset: u64, bytes: Vec<u8>) -> Status {
    let data = [Segment::from_vec(bytes)].into_iter().collect();
    bdev.submit_and_wait(0, Bio::with_data(Op::Write, Sector(offset / 512), data)).status()
}

fn range(bdev: &Bdev, op: Op, offset: u64, len: u64) -> Box<Bio> {
    bdev.submit_and_wait(0, Bio::new(op, Sector(offset / 512), len))
}

fn read(bdev: &Bdev, offset: u64, len: u64) -> Vec<u8> {
    let bio = range(bdev, Op::Read, offset, len);
    assert_eq!(bio.status(), Status::Ok);
    bio.data().iter().flat_map(Segment::to_vec).collect()
}

const MAX: u64 = (1 << 63) - 512;

#[test]
fn the_largest_disk_is_written_and_discarded_at_both_ends() {
    let (ram, bdev) = open(Sector::MAX);
    for at in [0, MAX - 4096] {
        assert_eq!(write(&bdev, at, vec![7; 4096]), Status::Ok);
        assert_eq!(read(&bdev, at, 4096), vec![7; 4096]);
    }
    // The last page of the disk is half a sector's page off, so that its 4096 bytes touch two pages.
    assert_eq!(ram.allocated_bytes(), 3 * 4096);
    for at in [0, MAX - (1 << 30)] {
        assert_eq!(range(&bdev, Op::Discard, at, 1 << 30).status(), Status::Ok);
    }
    assert_eq!(read(&bdev, MAX - 512, 512), vec![0; 512]);
    assert!(ram.allocated_bytes() <= 4096, "a page that is cut by the end may stay");
}

#[test]
fn never_written_space_reads_as_shared_zeroes_and_costs_nothing() {
    let (ram, bdev) = open(Sector(1 << 30));
    let bio = range(&bdev, Op::Read, 5 << 30, 3 << 20);
    assert!(bio.data().iter().all(Segment::is_zero_run));
    assert_eq!(ram.allocated_bytes(), 0);
}

#[test]
fn a_read_without_memory_gets_the_disks_own() {
    let (_, bdev) = open(Sector(1 << 20));
    write(&bdev, 4096, vec![1; 4096]);
    let bio = range(&bdev, Op::Read, 4096, 4096);
    write(&bdev, 4096, vec![2; 4096]);
    assert_eq!(bio.data()[0].to_vec(), vec![2; 4096]);
}

#[test]
fn discard_gives_the_memory_back_and_write_zeroes_may_keep_it() {
    let (ram, bdev) = open(Sector(1 << 20));
    write(&bdev, 0, vec![1; 1 << 20]);
    assert_eq!(ram.allocated_bytes(), 1 << 20);
    let keep = Bio::new(Op::WriteZeroes, Sector(0), 1 << 20).with_flags(Flags::NOUNMAP);
    assert_eq!(bdev.submit_and_wait(0, keep).status(), Status::Ok);
    assert_eq!((read(&bdev, 0, 4096), ram.allocated_bytes()), (vec![0; 4096], 1 << 20));
    assert_eq!(range(&bdev, Op::WriteZeroes, 0, 1 << 19).status(), Status::Ok);
    assert_eq!(ram.allocated_bytes(), 1 << 19);
}

#[test]
fn a_disk_that_shrank_and_grew_has_nothing_of_before() {
    let (ram, bdev) = open(Sector(1 << 20));
    write(&bdev, 100 << 20, vec![1; 4096]);
    write(&bdev, 0, vec![2; 4096]);
    bdev.disk().resize(Sector::from_bytes_floor(2048)).unwrap();
    assert_eq!(ram.allocated_bytes(), 4096);
    bdev.disk().resize(Sector(1 << 20)).unwrap();
    assert_eq!(read(&bdev, 100 << 20, 4096), vec![0; 4096]);
    assert_eq!(read(&bdev, 0, 4096), [vec![2; 2048], vec![0; 2048]].concat());
}

#[test]
fn long_work_is_done_in_turns_with_others_between() {
    let (ram, bdev) = open(Sector(1 << 30));
    let (tell, told) = std::sync::mpsc::channel();
    let (rings, asked) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), 40u64 << 20);
    let rung = Arc::clone(&rings);
    bdev.disk()
        .set_alarm(Arc::new(move || _ = rung.fetch_add(1, std::sync::atomic::Ordering::SeqCst)));
    let long = [
        Bio::new(Op::WriteZeroes, Sector(0), asked).with_flags(Flags::NOUNMAP),
        Bio::new(Op::Discard, Sector(0), 1 << 39),
    ];
    // Several regions, so that giving them back takes turns too.
    for region in 1..4 {
        let bytes = vec![1; 33 << 20];
        assert_eq!(write(&bdev, region * region::REGION_SIZE, bytes), Status::Ok);
    }
    for bio in long {
        let tell = tell.clone();
        bdev.submit(0, bio.on_end(Arc::new(move |bio: Box<Bio>| tell.send(bio.status()).unwrap())));
        assert!(told.try_recv().is_err(), "no more than a turn was done by the one who asked");
        assert!(rings.load(std::sync::atomic::Ordering::SeqCst) > 0, "somebody is told to tick");
        assert_eq!(read(&bdev, 60 << 20, 4096), vec![0; 4096], "others have their turn");
        let mut turns = 0;
        let status = loop {
            match told.try_recv() {
                Ok(status) => break status,
                Err(_) => bdev.disk().tick(),
            };
            turns += 1;
            assert!(turns < 100, "it comes to an end");
        };
        assert_eq!(status, Status::Ok);
        assert!(turns > 1, "{turns} turns");
    }
    assert_eq!(ram.allocated_bytes(), 0);
}

#[test]
fn a_turn_has_a_bound_where_nothing_is_given_back() {
    const REGIONS: u64 = 100;
    let tree = Tree::default();
    for region in 0..REGIONS {
        tree.write(region * region::REGION_SIZE, &Segment::from_vec(vec![1])).unwrap();
    }
    let all = REGIONS * region::REGION_SIZE;
    for _ in 0..2 {
        let (mut done, mut turns) = (0, 0);
        while done < all {
            done += tree.discard(done, all - done, GIVEN_BACK_A_TURN);
            turns += 1;
        }
        assert_eq!(turns, 4, "32 regions each");
    }
    assert_eq!(tree.allocated_bytes(), 0);
}

#[test]
fn many_long_zeroes_leave_tags_to_others() {
    const ZEROES: usize = 4;
    let ram = Ram::new();
    let depth = u32::try_from(ZEROES).unwrap();
    let set =
        TagSet::new(Arc::clone(&ram), TagSetConfig { depth, ..TagSetConfig::default() }).unwrap();
    let config = DiskConfig::new("ram0", Sector(1 << 20), Ram::limits());
    let disk = Disk::alloc(&set, (), config, ram, Arc::new(MonotonicClock::new())).unwrap();
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    disk.set_alarm(Arc::new(|| ()));
    let (tell, told) = std::sync::mpsc::channel();
    let submit = |bio: Box<Bio>| {
        let tell = tell.clone();
        bdev.submit(0, bio.on_end(Arc::new(move |bio: Box<Bio>| _ = tell.send(bio.op))));
    };
    for _ in 0..ZEROES {
        submit(Bio::new(Op::WriteZeroes, Sector(0), 64 << 20).with_flags(Flags::NOUNMAP));
    }
    submit(Bio::new(Op::Read, Sector(0), 4096));
    // A tick is a turn of one of them.
    for _ in 0..3 * ZEROES {
        disk.tick();
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Op::Read], "it has its turn soon");
    for _ in 0..100 * ZEROES {
        disk.tick();
    }
    assert_eq!(told.try_iter().count(), ZEROES);
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8, usize),
    Discard(u64, u64),
    Zero(u64, u64),
}

/// Places around the border of two regions, and far away.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..40, (1u64 << 17) - 20..(1 << 17) + 20, (1u64 << 28)..(1 << 28) + 16]
        .prop_map(|sector| sector * 512)
}

fn step() -> impl Strategy<Value = Step> {
    let len = (1u64..30).prop_map(|sectors| sectors * 512);
    prop_oneof![
        (place(), any::<u8>(), 1usize..30).prop_map(|(at, byte, sectors)| Step::Write(
            at,
            byte,
            sectors * 512
        )),
        (place(), len.clone()).prop_map(|(at, len)| Step::Discard(at, len)),
        (place(), len).prop_map(|(at, len)| Step::Zero(at, len)),
        Just(Step::Discard(0, 1 << 38)),
    ]
}

proptest! {
    #[test]
    fn reads_what_was_written_and_maps_what_is_there(steps in prop::collection::vec(step(), 1..40)) {
        let (_, bdev) = open(Sector(1 << 30));
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(at, byte, len) => {
                    prop_assert_eq!(write(&bdev, at, vec![byte; len]), Status::Ok);
                    (at..at + len as u64).step_by(512).for_each(|sector| { model.insert(sector, byte); });
                }
                Step::Discard(at, len) | Step::Zero(at, len) => {
                    let op = if matches!(step, Step::Zero(..)) { Op::WriteZeroes } else { Op::Discard };
                    prop_assert_eq!(range(&bdev, op, at, len).status(), Status::Ok);
                    model.retain(|&sector, _| sector < at || sector >= at + len);
                }
            }
        }
        for base in [0, ((1 << 17) - 20) * 512, (1 << 28) * 512] {
            let got = read(&bdev, base, 80 * 512);
            for sector in 0..80u64 {
                let want = model.get(&(base + sector * 512)).copied().unwrap_or(0);
                let at = (sector * 512) as usize;
                prop_assert!(got[at..at + 512].iter().all(|&b| b == want), "sector {} of {}", sector, base);
            }
        }
        let bio = range(&bdev, Op::BlockStatus, 0, 1 << 38);
        prop_assert_eq!(bio.extents.iter().map(|e| e.len).sum::<u64>(), 1 << 38);
        let mut at = 0;
        for extent in &bio.extents {
            let inside = model.range(at..at + extent.len).count();
            prop_assert!(!extent.hole || inside == 0, "data in a hole");
            at += extent.len;
        }
    }
}
