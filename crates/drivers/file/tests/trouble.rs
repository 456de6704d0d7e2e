//! What goes wrong under a disk: full file systems, lost writes, files that shrink.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use blockyard_blkmq::{Bio, Extent, Flags, Op, Sector, Status};
use blockyard_buf::Segment;
use blockyard_driver_file::{Engine, FileConfig};
use common::faulty::{Call, Errno, Faulty};
use common::{Loop, Place, TestDisk, open, ways};

const MIB: u64 = 1 << 20;

fn fua(disk: &TestDisk, offset: u64) -> Status {
    let data = std::iter::once(Segment::from_vec(vec![8; 4096])).collect();
    let bio = Bio::with_data(Op::Write, Sector(offset / 512), data);
    disk.submit(bio.with_flags(Flags::FUA)).status()
}

#[test]
fn a_full_file_system_refuses_more_and_keeps_what_it_has() {
    let place = Place::tmpfs("1m");
    for config in ways(&place.path().join("disk")) {
        place.file("disk", 64 * MIB);
        let disk = open(&config).unwrap();
        let mut kept = Vec::new();
        let full = (0..1024).map(|i| i * 16384).find(|&offset| {
            let status = disk.write(offset, vec![(offset / 16384) as u8 + 1; 16384]);
            if status.is_ok() {
                kept.push(offset);
            }
            status == Status::NoSpace
        });
        let full = full.unwrap_or_else(|| panic!("{config:?}: never full"));
        assert!(kept.len() > 50, "{config:?}: {} writes fit", kept.len());
        assert_eq!(fua(&disk, full + MIB), Status::NoSpace);
        assert_eq!(disk.flush(), Status::Ok, "what was acknowledged can be kept");
        for &offset in &kept {
            let byte = (offset / 16384) as u8 + 1;
            assert_eq!(disk.read(offset, 16384), vec![byte; 16384], "{config:?} at {offset}");
        }
        let keep = disk.range(Op::WriteZeroes, 32 * MIB, 8 * MIB, Flags::NOUNMAP);
        assert_eq!(keep.status(), Status::NoSpace, "{config:?}: no room for zeroes that are kept");
        assert_eq!(disk.range(Op::Discard, 0, MIB, Flags::empty()).status(), Status::Ok);
        assert_eq!(disk.write(full, vec![9; 16384]), Status::Ok, "{config:?}: there is room again");
        drop(disk);
        std::fs::remove_file(&config.path).unwrap();
    }
}

#[test]
fn after_a_flush_that_failed_none_succeeds_until_the_disk_is_opened_anew() {
    for engine in [Engine::Uring, Engine::Threads] {
        let place = Place::tmpfs("1m");
        let device = Loop::on(&place.file("backing", 64 * MIB), "");
        let config = FileConfig { engine, ..FileConfig::new(&device.0) };
        let disk = open(&config).unwrap();
        assert_eq!(disk.flush(), Status::Ok);
        // The page cache takes what the backing file has no room for.
        assert_eq!(disk.write(0, vec![1; 4 << 20]), Status::Ok);
        let failed = disk.flush();
        assert!(matches!(failed, Status::Io | Status::NoSpace), "{engine:?}: {failed:?}");
        for _ in 0..3 {
            assert_eq!(disk.flush(), Status::Io, "{engine:?}: lost writes are not forgotten");
        }
        assert_eq!(fua(&disk, 0), Status::Io, "{engine:?}");
        assert_eq!(disk.read(32 * MIB, 4096), vec![0; 4096], "{engine:?}: reads go on");
        drop(disk);
        assert_eq!(open(&config).unwrap().flush(), Status::Ok, "{engine:?}");
    }
}

#[test]
fn a_file_that_shrinks_gives_errors_past_its_end_and_no_zeroes() {
    let place = Place::here();
    for config in ways(&place.path().join("disk")) {
        place.file("disk", MIB);
        let disk = open(&config).unwrap();
        assert_eq!(disk.write(0, vec![3; 1 << 20]), Status::Ok);
        let file = std::fs::File::options().write(true).open(&config.path).unwrap();
        file.set_len(MIB / 2).unwrap();
        let read = |offset, len| disk.range(Op::Read, offset, len, Flags::empty()).status();
        assert_eq!(read(0, MIB / 2), Status::Ok, "{config:?}");
        assert_eq!(read(MIB / 2, 4096), Status::Io, "{config:?}");
        assert_eq!(read(MIB / 4, MIB / 2), Status::Io, "{config:?}: over the end");
        assert_eq!(disk.map(0, MIB), [Extent::data(MIB)], "{config:?}: no hole past the end");
        file.set_len(MIB / 4 + 100).unwrap();
        assert_eq!(read(0, MIB / 2), Status::Io, "{config:?}: over an end within a block");
        file.set_len(0).unwrap();
        file.set_len(MIB / 4 + 100).unwrap();
        let map = [Extent::hole(MIB / 4), Extent::data(MIB - MIB / 4)];
        assert_eq!(disk.map(0, MIB), map, "{config:?}: in whole blocks");
    }
}

#[test]
fn a_file_that_refuses_to_have_a_hole_punched_has_none() {
    for errno in [Errno::ENOSPC, Errno::EINVAL, Errno::EIO, Errno::ENOSYS] {
        let fs = Faulty::new(MIB as usize);
        fs.fail(Call::Allocate, errno, 1);
        let disk = open(&FileConfig::new(fs.file())).unwrap();
        assert_eq!(disk.info.limits.max_hw_discard_sectors, 0, "{errno:?}");
        assert_eq!(disk.write(0, vec![1; 8192]), Status::Ok);
        let zeroed = disk.range(Op::WriteZeroes, 0, 4096, Flags::empty());
        assert_eq!(zeroed.status(), Status::Ok, "{errno:?}");
        assert_eq!(disk.read(0, 8192), [vec![0; 4096], vec![1; 4096]].concat(), "{errno:?}");
    }
}

#[test]
fn a_file_that_refuses_to_have_zeroes_made_has_them_written() {
    let fs = Faulty::new(MIB as usize);
    fs.accept_allocations(1);
    fs.fail(Call::Allocate, Errno::EINVAL, 2);
    let disk = open(&FileConfig::new(fs.file())).unwrap();
    assert_ne!(disk.info.limits.max_hw_discard_sectors, 0);
    assert_eq!(disk.write(0, vec![1; 8192]), Status::Ok);
    let zeroed = disk.range(Op::WriteZeroes, 0, 4096, Flags::empty());
    assert_eq!(zeroed.status(), Status::Ok);
    assert_eq!(disk.read(0, 8192), [vec![0; 4096], vec![1; 4096]].concat());
}

#[test]
fn the_largest_file_has_holes_to_punch() {
    let place = Place::tmpfs("64m");
    let size = (1 << 63) - 4096;
    let disk = open(&FileConfig::new(place.file("disk", size))).unwrap();
    assert_eq!(disk.write(0, vec![1; 8192]), Status::Ok);
    assert_eq!(disk.range(Op::Discard, 0, 4096, Flags::empty()).status(), Status::Ok);
    assert_eq!(disk.read(0, 8192), [vec![0; 4096], vec![1; 4096]].concat());
}
