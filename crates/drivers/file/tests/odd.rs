//! Files whose end is no whole block: the rest of that block is padding, and the file keeps its size.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use blockyard_blkmq::{Bio, Extent, Flags, Op, Sector, Status, TagSetConfig};
use blockyard_buf::Segment;
use blockyard_driver_file::FileConfig;
use common::{Loop, Place, TestDisk, bytes, open, open_shown, ways};

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

fn write_at(at: usize, byte: u8, len: usize) -> Box<Bio> {
    let data = [Segment::from_vec(vec![byte; len])].into_iter().collect();
    Bio::with_data(Op::Write, Sector(at as u64 / 512), data).with_flags(Flags::NOMERGE)
}

/// The last page is reached in one way only: a block of it that is written past the page cache, while another goes through it, is
/// lost when the page is written back, or read from there as it was.
#[test]
fn blocks_of_the_last_page_are_written_together_and_none_is_lost() {
    every_way(|config, disk| {
        let block = disk.info.limits.logical_block_size.bytes() as usize;
        let page = (SIZE - SIZE % 4096) / block..disk.disk.capacity().bytes() as usize / block;
        for round in 1..150_u8 {
            let bios = page.clone().map(|at| write_at(at * block, round, block));
            let ended = disk.submit_all(bios.collect());
            assert!(ended.iter().all(|bio| bio.status().is_ok()));
            let from = page.start * block;
            let found = disk.read(from as u64, (SIZE - SIZE % block - from) as u64);
            assert!(found.iter().all(|byte| *byte == round), "{config:?} round {round}");
            if round % 16 == 0 {
                assert_eq!(disk.flush(), Status::Ok);
            }
            let file = std::fs::read(&config.path).unwrap();
            assert!(file[from..].iter().all(|byte| *byte == round), "{config:?} round {round}");
            assert!(file[..from] == content(SIZE)[..from]);
        }
        // Over the border of the page, to and from memory in parts, and not aligned.
        let from = page.start * block - 2 * block;
        let len = disk.disk.capacity().bytes() as usize - from;
        for parts in [&[len][..], &[block, len - block], &[7, len - 7]] {
            let mut model = content(len);
            model.iter_mut().for_each(|byte| *byte ^= parts.len() as u8 | 0x80);
            let mut write = Bio::at_bytes(Op::Write, from as u64, 0);
            let mut read = Bio::at_bytes(Op::Read, from as u64, 0);
            let mut rest = &model[..];
            for part in parts {
                let (now, later) = rest.split_at(*part);
                write.add_segment(Segment::from_vec(now.to_vec()));
                read.add_segment(Segment::from_vec(vec![0xee; *part]));
                rest = later;
            }
            assert_eq!(disk.submit(write).status(), Status::Ok);
            model[SIZE - from..].fill(0);
            let read = disk.submit(read);
            assert!(read.status().is_ok() && bytes(&read) == model, "{config:?} {parts:?}");
            assert!(disk.read(from as u64, len as u64) == model);
            assert!(std::fs::read(&config.path).unwrap()[from..] == model[..SIZE - from]);
            let zeroes = disk.range(Op::WriteZeroes, from as u64, len as u64, Flags::NOUNMAP);
            assert_eq!(zeroes.status(), Status::Ok);
            assert!(disk.read(from as u64, len as u64) == vec![0; len]);
        }
    });
}

/// A device that is shown with an end within a block, past the page cache too.
#[test]
fn a_device_may_be_shown_up_to_any_byte() {
    let place = Place::here();
    let backing = place.file("backing", 1 << 20);
    std::fs::write(&backing, vec![7; 1 << 20]).unwrap();
    let device = Loop::on(&backing, "-b 4096");
    for config in ways(&device.0) {
        let disk = open_shown(&config, TagSetConfig::default(), SIZE as u64).unwrap();
        let (at, block) = last(&disk);
        assert_eq!(disk.write(at as u64, vec![1; block]), Status::Ok, "{config:?}");
        let mut model = vec![1; SIZE - at];
        model.resize(block, 0);
        assert!(disk.read(at as u64, block as u64) == model, "{config:?}");
        let fua = write_at(at - block, 2, 2 * block).with_flags(Flags::FUA);
        assert_eq!(disk.submit(fua).status(), Status::Ok, "{config:?}");
        let durable = std::fs::read(&backing).unwrap();
        assert!(durable[at - block..SIZE].iter().all(|byte| *byte == 2), "{config:?}");
        assert!(durable[SIZE..].iter().all(|byte| *byte == 7), "what is past it is not touched");
        assert_eq!(disk.flush(), Status::Ok);
    }
}

/// A device zeroes and discards whole blocks only: the last one is not its own way to do that.
#[test]
fn the_last_block_of_a_device_that_is_shown_in_part_does_not_keep_others_from_being_zeroed() {
    let place = Place::here();
    let backing = place.file("backing", 1 << 20);
    std::fs::write(&backing, vec![7; 1 << 20]).unwrap();
    let device = Loop::on(&backing, "-b 4096");
    for config in ways(&device.0) {
        let disk = open_shown(&config, TagSetConfig::default(), SIZE as u64).unwrap();
        let (at, block) = last(&disk);
        for flags in [Flags::NOUNMAP, Flags::empty()] {
            for blocks in [1, 3] {
                let (from, len) = (at - (blocks - 1) * block, blocks * block);
                assert_eq!(disk.write(from as u64, vec![1; len]), Status::Ok);
                let zeroed = disk.range(Op::WriteZeroes, from as u64, len as u64, flags);
                assert_eq!(zeroed.status(), Status::Ok, "{config:?} {flags:?}");
                assert!(disk.read(from as u64, len as u64) == vec![0; len], "{config:?}");
            }
            let quickly = flags | Flags::NOFALLBACK;
            let zeroed = disk.range(Op::WriteZeroes, 0, block as u64, quickly);
            assert_eq!(zeroed.status(), Status::Ok, "{config:?} {flags:?}");
        }
        for from in [at, at - 2 * block] {
            let len = (at + block - from) as u64;
            let discarded = disk.range(Op::Discard, from as u64, len, Flags::empty());
            assert_eq!(discarded.status(), Status::Ok, "{config:?}");
        }
        assert_eq!(disk.flush(), Status::Ok);
        let durable = std::fs::read(&backing).unwrap();
        assert!(durable[SIZE..].iter().all(|byte| *byte == 7), "what is past it is not touched");
    }
}

/// `cp` leaves an image in the page cache. A direct write to a page that is just being written there makes the kernel fail
/// the next flush, and with it all that follow.
#[test]
fn direct_io_begins_with_nothing_in_the_page_cache() {
    let place = Place::on_loop("ext4");
    for config in ways(&place.path().join("disk")).into_iter().filter(|config| config.direct) {
        std::fs::write(&config.path, content(SIZE)).unwrap();
        let cached = || {
            let mut fincore = std::process::Command::new("fincore");
            fincore.args(["--noheadings", "--output", "PAGES"]).arg(&config.path);
            String::from_utf8(fincore.output().unwrap().stdout).unwrap().trim().to_owned()
        };
        assert_ne!(cached(), "0");
        let disk = open(&config).unwrap();
        assert_eq!(cached(), "0", "{config:?}");
        drop(disk);
    }
}
