//! What a disk in a file does, on several file systems, by both engines, buffered and direct.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::os::unix::fs::MetadataExt;

use blockyard_blkmq::{Bio, Extent, Features, Flags, Op, Sector, Status, TagSetConfig};
use blockyard_buf::{Pool, Segment, Segments};
use blockyard_driver_file::{Engine, FileConfig};
use common::{Loop, Place, TestDisk, bytes, open, open_with, ways};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// Does `test` with a fresh disk, in every place and way.
fn everywhere(test: impl Fn(&TestDisk, &FileConfig, &str)) {
    for place in Place::all() {
        for (i, config) in ways(&place.file("disk", SIZE)).into_iter().enumerate() {
            let path = place.file(&format!("disk{i}"), SIZE);
            let config = FileConfig { path, ..config };
            let name = format!("{}, {:?}, direct {}", place.name, config.engine, config.direct);
            test(&open(&config).unwrap(), &config, &name);
            std::fs::remove_file(&config.path).unwrap();
        }
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 7 + i / 251 + seed) % 256) as u8).collect()
}

/// The same bytes in memory of all shapes: whole, cut anywhere, at odd addresses.
fn shapes(data: &[u8]) -> Vec<Segments> {
    let odd = |part: &[u8]| {
        let mut padded = vec![0; 3];
        padded.extend(part);
        Segment::from_vec(padded).into_slice(3, part.len())
    };
    let cut = data.len() / 3 + 1;
    vec![
        std::iter::once(Segment::from_vec(data.to_vec())).collect(),
        std::iter::once(odd(data)).collect(),
        [odd(&data[..cut]), Segment::from_vec(data[cut..].to_vec())].into_iter().collect(),
        data.chunks(512).map(odd).collect(),
    ]
}

#[test]
fn bytes_come_back_whatever_the_memory() {
    everywhere(|disk, _, name| {
        let block = u64::from(disk.info.limits.logical_block_size.bytes());
        for (i, len) in [block, 8192, 65536 + block, 3 * MIB].into_iter().enumerate() {
            let offset = (i as u64) * 4 * MIB + block;
            let data = pattern(len as usize, i);
            for memory in shapes(&data) {
                let zeroed = disk.write(offset, vec![0; len as usize]);
                assert_eq!(zeroed, Status::Ok, "{name}");
                let bio = Bio::with_data(Op::Write, Sector(offset / 512), memory);
                assert_eq!(disk.submit(bio).status(), Status::Ok, "{name}");
                assert!(disk.read(offset, len) == data, "{name}: {len} at {offset}, supplied");
            }
            for memory in shapes(&vec![0; len as usize]) {
                let bio = disk.submit(Bio::with_data(Op::Read, Sector(offset / 512), memory));
                assert_eq!(bio.status(), Status::Ok, "{name}");
                assert!(bytes(&bio) == data, "{name}: {len} at {offset}, into given memory");
            }
        }
        assert_eq!(disk.flush(), Status::Ok, "{name}");
        let data = std::iter::once(Segment::from_vec(vec![5; 4096])).collect();
        let fua = Bio::with_data(Op::Write, Sector(0), data).with_flags(Flags::FUA);
        assert_eq!(disk.submit(fua).status(), Status::Ok, "{name}");
    });
}

/// Memory that direct I/O does not take as it is goes through memory of ours: who lets others choose it is to know.
#[test]
fn the_memory_that_direct_io_takes_is_told() {
    everywhere(|disk, config, name| {
        let mask = disk.info.limits.dma_alignment;
        assert_eq!(mask != 0, config.direct, "{name}: {mask}");
    });
    let place = Place::here();
    for block in [512, 4096] {
        let device = Loop::on(&place.file("backing", SIZE), &format!("-b {block}"));
        for config in ways(&device.0) {
            let mask = open(&config).unwrap().disk.limits().dma_alignment;
            assert_eq!(mask, if config.direct { block - 1 } else { 0 }, "{config:?}");
        }
    }
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_keep_or_give_back_space() {
    everywhere(|disk, config, name| {
        let allocated = || std::fs::metadata(&config.path).unwrap().blocks() * 512;
        assert_eq!(disk.write(0, pattern(4 << 20, 1)), Status::Ok);
        assert_eq!(disk.flush(), Status::Ok);
        let full = allocated();
        let zero = |op, offset, len, flags| {
            assert_eq!(disk.range(op, offset, len, flags).status(), Status::Ok, "{name}: {op:?}");
            assert!(disk.read(offset, len).iter().all(|&b| b == 0), "{name}: {op:?} {flags:?}");
        };
        zero(Op::WriteZeroes, 0, MIB, Flags::NOUNMAP | Flags::NOFALLBACK);
        assert!(allocated() >= full, "{name}: space is kept");
        zero(Op::WriteZeroes, MIB, MIB, Flags::NOFALLBACK | Flags::FUA);
        assert!(allocated() <= full - MIB, "{name}: space is given back");
        zero(Op::Discard, 2 * MIB, MIB, Flags::empty());
        assert!(allocated() <= full - 2 * MIB, "{name}: space is given back");
        let rest = disk.read(3 * MIB, MIB);
        assert!(rest == pattern(4 << 20, 1)[3 << 20..], "{name}: what is beside stays");
    });
}

#[test]
fn the_map_is_what_was_written() {
    everywhere(|disk, _, name| {
        assert!(disk.info.limits.features.contains(Features::BLOCK_STATUS), "{name}");
        assert_eq!(disk.map(0, SIZE), [Extent::hole(SIZE)], "{name}");
        disk.write(MIB, vec![1; 1 << 20]);
        disk.write(3 * MIB, vec![1; 65536]);
        disk.range(Op::Discard, MIB + 131_072, 131_072, Flags::empty());
        let expected = [
            Extent::hole(MIB),
            Extent::data(131_072),
            Extent::hole(131_072),
            Extent::data(MIB - 262_144),
            Extent::hole(MIB),
            Extent::data(65536),
            Extent::hole(13 * MIB - 65536),
        ];
        assert_eq!(disk.map(0, SIZE), expected, "{name}");
        let first = disk.range(Op::BlockStatus, MIB + 4096, MIB, Flags::FIRST_EXTENT);
        assert_eq!(first.extents, [Extent::data(131_072 - 4096)], "{name}");
        let prefetch = disk.range(Op::Prefetch, 0, SIZE, Flags::empty());
        assert_eq!(prefetch.status(), Status::Ok, "{name}");
    });
}

#[test]
fn a_map_of_many_extents_comes_in_parts() {
    let place = Place::here();
    let disk = open(&FileConfig::new(place.file("disk", 64 * MIB))).unwrap();
    for i in 0..1200 {
        disk.write(i * 8192, vec![1; 4096]);
    }
    let part = disk.range(Op::BlockStatus, 0, 64 * MIB, Flags::empty());
    assert_eq!(part.extents.len(), 1024);
    assert_eq!(disk.map(0, 64 * MIB).len(), 2400);
}

#[test]
fn more_requests_than_a_queue_has_room_for_all_end() {
    let place = Place::here();
    for engine in [Engine::Uring, Engine::Threads] {
        let config = FileConfig { engine, ..FileConfig::new(place.file("disk", SIZE)) };
        let disk =
            open_with(&config, TagSetConfig { depth: 4096, ..TagSetConfig::default() }).unwrap();
        let ends: Vec<_> = (0..4000)
            .map(|i| {
                let data = std::iter::once(Segment::from_vec(vec![i as u8; 512])).collect();
                let bio = Bio::with_data(Op::Write, Sector(i * 2), data);
                disk.bdev.submit_async(0, bio.with_flags(Flags::FUA))
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for end in ends {
            assert_eq!(runtime.block_on(end).status(), Status::Ok, "{engine:?}");
        }
        for i in [0, 1999, 3999] {
            assert_eq!(disk.read(i * 1024, 512), vec![i as u8; 512], "{engine:?}");
        }
    }
}

/// Memory that is aligned, in segments that are shorter than a block of 4096 bytes.
fn in_short_segments(op: Op, byte: u8) -> Box<Bio> {
    let page = Pool::default().get(4096).into_segment_mut(4096);
    page.copy_from(&[byte; 4096]);
    let memory = [page.slice(0, 3584), page.slice(3584, 512)].into_iter().collect();
    Bio::with_data(op, Sector(0), memory)
}

#[test]
fn a_block_device_is_a_disk_with_its_own_limits() {
    let place = Place::here();
    let backing = place.file("backing", SIZE);
    for (options, block) in [("", 512), ("-b 4096", 4096)] {
        let device = Loop::on(&backing, options);
        for config in ways(&device.0) {
            let name = format!("{:?}, direct {}, {block}", config.engine, config.direct);
            let disk = open(&config).unwrap();
            assert!(disk.info.is_block_device);
            assert_eq!(disk.info.capacity.bytes(), SIZE);
            assert_eq!(disk.info.limits.logical_block_size.bytes(), block, "{name}");
            assert!(!disk.info.limits.features.contains(Features::BLOCK_STATUS));
            assert_eq!(disk.map(0, SIZE), [Extent::data(SIZE)], "{name}");
            let data = pattern(2 << 20, 9);
            assert_eq!(disk.write(MIB, data.clone()), Status::Ok, "{name}");
            assert_eq!(disk.flush(), Status::Ok, "{name}");
            assert!(disk.read(MIB, 2 * MIB) == data, "{name}");
            assert_eq!(disk.submit(in_short_segments(Op::Write, 5)).status(), Status::Ok, "{name}");
            let read = disk.submit(in_short_segments(Op::Read, 0));
            assert_eq!(read.status(), Status::Ok, "{name}");
            assert_eq!(bytes(&read), [5; 4096], "{name}");
            for (op, flags) in [
                (Op::WriteZeroes, Flags::empty()),
                (Op::WriteZeroes, Flags::NOUNMAP),
                (Op::Discard, Flags::empty()),
            ] {
                assert_eq!(disk.write(MIB, data.clone()), Status::Ok, "{name}");
                let bio = disk.range(op, MIB, MIB, flags);
                assert_eq!(bio.status(), Status::Ok, "{name}: {op:?} {flags:?}");
                assert!(disk.read(MIB, MIB).iter().all(|&b| b == 0), "{name}: {op:?} {flags:?}");
                assert!(disk.read(2 * MIB, MIB) == data[1 << 20..], "{name}");
            }
        }
    }
}
