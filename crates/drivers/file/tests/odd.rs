//! Files whose end is no whole block: the rest of that block is padding, and the file keeps its size.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use blockyard_blkmq::{Bio, Extent, Flags, Op, Status};
use blockyard_buf::Segment;
use blockyard_driver_file::FileConfig;
use common::{Place, TestDisk, bytes, open, ways};

const SIZE: usize = 241_059;

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8 | 1).collect()
}

/// The last block: where it begins, and its length.
fn last(disk: &TestDisk) -> (usize, usize) {
    let block = disk.info.limits.logical_block_size.bytes() as usize;
    (disk.disk.capacity().bytes() as usize - block, block)
}

fn padded(file: &[u8], len: usize) -> Vec<u8> {
    let mut padded = file.to_vec();
    padded.resize(len, 0);
    padded
}

fn every_way(mut test: impl FnMut(&FileConfig, &TestDisk)) {
    for place in [Place::here(), Place::tmpfs("64m"), Place::on_loop("ext4")] {
        for config in ways(&place.path().join("disk")) {
            std::fs::write(&config.path, content(SIZE)).unwrap();
            match open(&config) {
                Ok(disk) => test(&config, &disk),
                // A file system that takes no direct I/O.
                Err(err) => assert!(config.direct, "{} {config:?}: {err}", place.name),
            }
        }
    }
}

#[test]
fn the_padding_reads_as_zeroes_and_is_never_written() {
    every_way(|config, disk| {
        let file = || std::fs::read(&config.path).unwrap();
        assert_eq!((disk.info.size, disk.disk.size_bytes()), (SIZE as u64, SIZE as u64));
        let (at, block) = last(disk);
        let whole = disk.disk.capacity().bytes() as usize;
        let mut expected = content(SIZE);
        assert!(disk.read(0, whole as u64) == padded(&expected, whole), "{config:?}");
        let own = Segment::from_vec(vec![0xee; block]);
        let mut read = Bio::at_bytes(Op::Read, at as u64, 0);
        read.add_segment(own.clone());
        assert_eq!(disk.submit(read).status(), Status::Ok);
        assert!(own.to_vec() == padded(&expected[at..], block), "into memory of the reader's");

        assert_eq!(disk.write(at as u64, vec![0xdd; block]), Status::Ok);
        expected[at..].fill(0xdd);
        assert!(
            file() == expected
                && disk.read(at as u64, block as u64)[SIZE - at..] == vec![0; whole - SIZE]
        );
        // More than the last block, at once.
        let from = at - 7 * block;
        assert_eq!(disk.write(from as u64, vec![0xcc; 8 * block]), Status::Ok);
        expected[from..].fill(0xcc);
        assert!(file() == expected, "{config:?}");

        for flags in [Flags::empty(), Flags::NOUNMAP, Flags::FUA] {
            assert_eq!(disk.write(at as u64, vec![0xbb; block]), Status::Ok);
            let zeroed = disk.range(Op::WriteZeroes, at as u64, block as u64, flags);
            assert_eq!(zeroed.status(), Status::Ok);
            expected[at..].fill(0);
            assert!(file() == expected, "{config:?} {flags:?}");
        }
        assert_eq!(disk.write(at as u64, vec![0xaa; block]), Status::Ok);
        let discarded = disk.range(Op::Discard, at as u64, block as u64, Flags::empty());
        assert!([Status::Ok, Status::NotSupported].contains(&discarded.status()));
        assert_eq!(disk.flush(), Status::Ok);
        assert_eq!(file().len(), SIZE, "{config:?}");
        let map = disk.map(0, whole as u64);
        assert_eq!(map.iter().map(|extent| extent.len).sum::<u64>(), whole as u64);
    });
}

#[test]
fn any_bytes_are_written_up_to_the_end_and_not_past_it() {
    every_way(|config, disk| {
        let mut expected = content(SIZE);
        for (at, byte) in [(0, 1), (1, 2), (509, 3), (100_001, 4), (SIZE - 5, 5), (SIZE - 99, 6)] {
            let mut bio = Bio::at_bytes(Op::Write, at as u64, 0);
            bio.add_segment(Segment::from_vec(vec![byte; 5]));
            assert_eq!(disk.submit(bio).status(), Status::Ok);
            expected[at..at + 5].fill(byte);
            let read = disk.submit(Bio::at_bytes(Op::Read, at as u64 - at as u64 % 3, 5));
            let from = at - at % 3;
            assert_eq!(bytes(&read), expected[from..from + 5], "{config:?}");
        }
        let past = disk.submit(Bio::at_bytes(Op::Read, SIZE as u64 - 1, 2));
        assert_eq!(past.status(), Status::OutOfRange);
        let end = disk.submit(Bio::at_bytes(Op::WriteZeroes, SIZE as u64 - 3, 3));
        assert_eq!(end.status(), Status::Ok);
        expected[SIZE - 3..].fill(0);
        assert!(std::fs::read(&config.path).unwrap() == expected, "{config:?}");
    });
}

#[test]
fn a_disk_grows_and_shrinks_by_bytes() {
    every_way(|config, disk| {
        let file = || std::fs::read(&config.path).unwrap();
        disk.disk.resize_bytes(300_001).unwrap();
        let mut expected = padded(&content(SIZE), 300_001);
        assert!(file() == expected && disk.disk.size_bytes() == 300_001);
        let (at, block) = last(disk);
        assert_eq!(disk.write(at as u64, vec![9; block]), Status::Ok);
        expected[at..].fill(9);
        assert!(file() == expected, "{config:?}");
        // What is past a new end is neither shown nor lost.
        disk.disk.resize_bytes(100_001).unwrap();
        let (at, block) = last(disk);
        let shown = padded(&expected[at..100_001], block);
        assert!(disk.read(at as u64, block as u64) == shown, "{config:?}");
        assert_eq!(disk.write(at as u64, vec![8; block]), Status::Ok);
        expected[at..100_001].fill(8);
        assert!(file() == expected, "{config:?}");
    });
}

#[test]
fn a_hole_at_an_odd_end_is_told_with_its_padding() {
    let place = Place::tmpfs("64m");
    let disk = open(&FileConfig::new(place.file("disk", SIZE as u64))).unwrap();
    let whole = disk.disk.capacity().bytes();
    assert_eq!(disk.map(0, whole), [Extent::hole(whole)]);
}

#[test]
fn an_empty_file_is_an_empty_disk_that_can_grow() {
    let place = Place::here();
    let path = place.file("disk", 0);
    let disk = open(&FileConfig::new(&path)).unwrap();
    assert_eq!((disk.disk.capacity().bytes(), disk.flush()), (0, Status::Ok));
    disk.disk.resize_bytes(5).unwrap();
    assert_eq!(disk.write(0, vec![1; 512]), Status::Ok);
    assert_eq!(std::fs::read(&path).unwrap(), [1; 5]);
}
