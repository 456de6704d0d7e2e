//! The experiment: a 2 MiB RAM disk with 3 minors, 2 hardware queues of depth 2, merging, and a geometry of 2
//! heads and 32 cylinders; with a partition table on it, in the list of partitions, and read and written by two
//! threads.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;

use blockyard_blkmq::geometry::Geometry;
use blockyard_blkmq::major::DevNum;
use blockyard_blkmq::{
    Bdev, Bio, BlockDeviceOps, BlockLayer, Disk, DiskConfig, Features, Ioctl, IoctlReply, Limits,
    MonotonicClock, Op, OpenMode, Sector, Status, TagSet, TagSetConfig,
};
use blockyard_buf::Segment;
use blockyard_driver_ram::Ram;

/// 2 MiB.
const SECTORS: u64 = 4096;

/// Two heads, 64 sectors a track, 32 cylinders.
struct Heads;

impl BlockDeviceOps for Heads {
    fn geometry(&self, disk: &Disk) -> Option<Geometry> {
        Some(Geometry::with(2, 64, disk.capacity()))
    }
}

fn add(layer: &BlockLayer) -> Arc<Disk> {
    let major = layer.register_blkdev(0, "myblk").unwrap();
    let set = TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 2, ..TagSetConfig::default() };
    let set = TagSet::new(Ram::new(), set).unwrap();
    let ram = Ram::limits();
    let limits = Limits { features: ram.features - Features::NOMERGES, ..ram };
    let mut config = DiskConfig::new("myblk", Sector(SECTORS), limits);
    config.dev = DevNum { major, minor: 0 };
    config.minors = 3;
    let disk =
        Disk::alloc(&set, (), config, Arc::new(Heads), Arc::new(MonotonicClock::new())).unwrap();
    layer.add_disk(&disk).unwrap();
    disk
}

fn write(bdev: &Bdev, cpu: usize, sector: u64, bytes: Vec<u8>) {
    let bio =
        Bio::with_data(Op::Write, Sector(sector), [Segment::from_vec(bytes)].into_iter().collect());
    assert_eq!(bdev.submit_and_wait(cpu, bio).status(), Status::Ok);
}

fn read(bdev: &Bdev, cpu: usize, sector: u64, sectors: u64) -> Vec<u8> {
    let bio = bdev.submit_and_wait(cpu, Bio::new(Op::Read, Sector(sector), sectors * 512));
    assert_eq!(bio.status(), Status::Ok);
    bio.data().iter().flat_map(Segment::to_vec).collect()
}

/// A master boot record with two Linux partitions, from 64 to 2047 and from 2048 to the end.
fn boot_record() -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (entry, (start, len)) in (0..).zip([(64u32, 1984u32), (2048, 2048)]) {
        let at = 446 + 16 * entry;
        sector[at + 4] = 0x83;
        sector[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Writes and reads back places of its own in a random order, in its half of the disk.
fn load(bdev: &Bdev, cpu: usize) {
    let sectors = bdev.capacity().0;
    let mut model = vec![0u8; usize::try_from(sectors * 512).unwrap()];
    let mut random = 0x2545_f491_4f6c_dd1d_u64 ^ cpu as u64;
    for round in 0..2000 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let sector = (random >> 33) % sectors;
        let len = (1 + (random >> 20) % 16).min(sectors - sector);
        let range =
            usize::try_from(sector * 512).unwrap()..usize::try_from((sector + len) * 512).unwrap();
        if random >> 63 == 0 {
            let bytes: Vec<u8> = range.clone().map(|i| (i / 512 + round) as u8).collect();
            write(bdev, cpu, sector, bytes.clone());
            model[range].copy_from_slice(&bytes);
        } else {
            assert!(read(bdev, cpu, sector, len) == model[range], "round {round} of thread {cpu}");
        }
    }
    assert!(read(bdev, cpu, 0, sectors) == model);
}

#[test]
fn the_experiment() {
    let layer = BlockLayer::new();
    let disk = add(&layer);
    let bdev = layer.open("myblk", OpenMode::ReadWrite).unwrap();
    let geometry = Geometry { heads: 2, sectors: 64, cylinders: 32, start: Sector(0) };
    assert_eq!(bdev.ioctl(&Ioctl::GetGeometry).unwrap(), IoctlReply::Geometry(geometry));

    write(&bdev, 0, 0, boot_record());
    assert_eq!(layer.rescan_partitions(&disk).unwrap(), 2);
    let listed = [
        "major minor  #blocks  name",
        "",
        " 254        0       2048 myblk",
        " 254        1        992 myblk1",
        " 254        2       1024 myblk2",
    ];
    assert_eq!(layer.proc_partitions().lines().collect::<Vec<_>>(), listed);

    let parts = ["myblk1", "myblk2"].map(|name| layer.open(name, OpenMode::ReadWrite).unwrap());
    std::thread::scope(|scope| {
        for (cpu, part) in parts.iter().enumerate() {
            scope.spawn(move || load(part, cpu));
        }
    });
    assert_eq!(bdev.ioctl(&Ioctl::Flush).unwrap(), IoctlReply::Done);
    assert_eq!(read(&bdev, 0, 0, 1), boot_record());
    let fields: Vec<String> = layer
        .proc_diskstats()
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(
        (fields.len(), fields[2].as_str(), fields[11].as_str()),
        (20, "myblk1", "0"),
        "nothing is under way"
    );

    drop(parts);
    layer.del_disk(&disk);
    assert_eq!(layer.proc_partitions(), "");
    assert_eq!(
        bdev.submit_and_wait(0, Bio::new(Op::Read, Sector(0), 512)).status(),
        Status::Offline
    );
}
