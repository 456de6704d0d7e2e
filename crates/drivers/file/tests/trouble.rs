//! What goes wrong under a disk: full file systems, lost writes, files that shrink.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use blockyard_blkmq::{Bio, ErrorKind, Extent, Flags, Op, Sector, Status};
use blockyard_buf::{Segment, SharedMapping};
use blockyard_conformance::faulty::{Call, Errno, Faulty};
use blockyard_driver_file::{Engine, FileConfig};
use common::{Loop, Place, TestDisk, open, ways};

const MIB: u64 = 1 << 20;
/// More calls than anybody makes.
const EVER: usize = 1_000_000;

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

/// What others cut off does not come back as zeroes, when a write or they make the file longer again.
#[test]
fn what_a_file_has_lost_is_lost_until_it_is_opened_anew() {
    let place = Place::here();
    for config in ways(&place.path().join("disk")) {
        place.file("disk", MIB);
        let disk = open(&config).unwrap();
        assert_eq!(disk.write(0, vec![3; 1 << 20]), Status::Ok);
        assert_eq!(disk.flush(), Status::Ok);
        let file = std::fs::File::options().write(true).open(&config.path).unwrap();
        file.set_len(MIB / 2).unwrap();
        // A flush finds it out as well as a read.
        assert_eq!(disk.flush(), Status::Io, "{config:?}: what was durable is gone");
        let read = |offset, len| disk.range(Op::Read, offset, len, Flags::empty()).status();
        assert_eq!(disk.write(MIB - 4096, vec![4; 4096]), Status::Io, "{config:?}");
        file.set_len(MIB).unwrap();
        assert_eq!(read(MIB * 3 / 4, 4096), Status::Io, "{config:?}");
        let own = Segment::from_vec(vec![0; 8192]);
        let over =
            Bio::with_data(Op::Read, Sector((MIB / 2 - 4096) / 512), [own].into_iter().collect());
        assert_eq!(disk.submit(over).status(), Status::Io, "{config:?}");
        let zero = disk.range(Op::WriteZeroes, MIB / 2, 4096, Flags::empty());
        assert_eq!(zero.status(), Status::Io);
        assert_eq!(disk.map(MIB / 2, MIB / 2), [Extent::data(MIB / 2)], "{config:?}");
        assert_eq!((disk.flush(), fua(&disk, 0)), (Status::Io, Status::Io), "{config:?}");
        assert_eq!(disk.read(MIB / 2 - 4096, 4096), vec![3; 4096], "{config:?}: what is left");
        assert_eq!(disk.write(0, vec![5; 4096]), Status::Ok);
        drop(disk);
        let disk = open(&config).unwrap();
        assert_eq!((disk.flush(), disk.read(MIB - 4096, 4096)), (Status::Ok, vec![0; 4096]));
        // A disk that is made as small as what is left is a whole one.
        file.set_len(MIB / 4).unwrap();
        assert_eq!(disk.flush(), Status::Io);
        disk.disk.resize(Sector(MIB / 4 / 512)).unwrap();
        assert_eq!((disk.flush(), disk.read(MIB / 4 - 4096, 4096)), (Status::Ok, vec![3; 4096]));
        disk.disk.resize(Sector(MIB / 512)).unwrap();
        assert_eq!((disk.flush(), disk.read(MIB / 2, 4096)), (Status::Ok, vec![0; 4096]));
    }
}

/// A file that was truncated, and which nobody has read since, is found out before it is made longer.
#[test]
fn what_a_file_has_lost_does_not_come_back_as_zeroes_when_the_disk_grows() {
    let place = Place::here();
    for config in ways(&place.path().join("disk")) {
        place.file("disk", MIB);
        let disk = open(&config).unwrap();
        assert_eq!(disk.write(0, vec![3; 1 << 20]), Status::Ok);
        assert_eq!(disk.flush(), Status::Ok);
        let file = std::fs::File::options().write(true).open(&config.path).unwrap();
        file.set_len(MIB / 2).unwrap();
        for to in [2 * MIB, MIB, MIB / 2 + 512] {
            let refused = disk.disk.resize(Sector(to / 512)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Io, "{config:?}");
            assert!(refused.to_string().contains("was truncated by another program"), "{refused}");
        }
        assert_eq!((file.metadata().unwrap().len(), disk.disk.size_bytes()), (MIB / 2, MIB));
        let read = |offset, len| disk.range(Op::Read, offset, len, Flags::empty()).status();
        assert_eq!(read(MIB * 3 / 4, 4096), Status::Io, "{config:?}");
        assert_eq!(disk.flush(), Status::Io, "{config:?}: what was durable is gone");
        assert_eq!(disk.read(MIB / 2 - 4096, 4096), vec![3; 4096], "{config:?}: what is left");
        // A disk that is made as small as what is left is a whole one, and can grow.
        disk.disk.resize(Sector(MIB / 2 / 512)).unwrap();
        disk.disk.resize(Sector(MIB / 512)).unwrap();
        assert_eq!((disk.flush(), disk.read(MIB / 2, 4096)), (Status::Ok, vec![0; 4096]));
    }
}

/// Requests of several owners become one: the memory of one of them is not the others' affair.
#[test]
fn memory_that_is_gone_fails_its_owner_alone() {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;
    let place = Place::here();
    for config in ways(&place.path().join("disk")) {
        place.file("disk", MIB);
        let disk = open(&config).unwrap();
        assert_eq!(disk.write(0, vec![3; 1 << 20]), Status::Ok);
        for op in [Op::Write, Op::Read] {
            for gone in [0, 2, 4] {
                let bios = (0..5).map(|number: u64| {
                    let file = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
                    ftruncate(&file, 8192).unwrap();
                    let memory = SharedMapping::new(file.as_fd(), 0, 8192).unwrap();
                    memory.segment(0, 8192).copy_from(&[0x10 + number as u8; 8192]);
                    if number == gone {
                        ftruncate(&file, if gone == 0 { 0 } else { 4096 }).unwrap();
                    }
                    let data = std::iter::once(memory.segment(0, 8192)).collect();
                    Bio::with_data(op, Sector(number * 16), data)
                });
                let ended = disk.submit_all(bios.collect());
                let statuses: Vec<_> = ended.iter().map(|bio| bio.status()).collect();
                let wanted: Vec<_> = (0..5)
                    .map(|number| if number == gone { Status::Io } else { Status::Ok })
                    .collect();
                assert_eq!(statuses, wanted, "{config:?} {op:?} {gone}");
                for number in (0..5).filter(|number| *number != gone) {
                    let byte = 0x10 + number as u8;
                    let found = if op == Op::Read {
                        common::bytes(&ended[number as usize])
                    } else {
                        disk.read(number * 8192, 8192)
                    };
                    assert!(op == Op::Read || found == [byte; 8192], "{config:?} {number}");
                    if op == Op::Write {
                        assert_eq!(disk.write(number * 8192, vec![3; 8192]), Status::Ok);
                    } else {
                        assert!(found == [3; 8192], "{config:?} {number}");
                    }
                }
                assert_eq!(disk.write(gone * 8192, vec![3; 8192]), Status::Ok);
            }
        }
    }
}

/// The server of a file may say so each time: to try it again for ever would take a processor.
#[test]
fn errors_that_call_for_another_try_are_errors_after_one() {
    for engine in [Engine::Uring, Engine::Threads] {
        for errno in [Errno::EAGAIN, Errno::EINTR] {
            let fs = Faulty::new(MIB as usize);
            let disk = open(&FileConfig { engine, ..FileConfig::new(fs.file()) }).unwrap();
            fs.fail(Call::Read, errno, EVER);
            let read = disk.range(Op::Read, 0, 4096, Flags::empty());
            assert_eq!(read.status(), Status::Io, "{engine:?} {errno:?}");
            fs.succeed(Call::Read);
            assert_eq!(disk.read(0, 4096), vec![0; 4096], "{engine:?} {errno:?}");
            assert_eq!(disk.flush(), Status::Ok, "{engine:?} {errno:?}");
            fs.fail(Call::Sync, errno, 1);
            for _ in 0..3 {
                assert_eq!(disk.flush(), Status::Io, "{engine:?} {errno:?}: it is told once");
            }
        }
    }
}

/// One that does not answer has one thread for each that is asked of it.
#[test]
fn many_are_asked_of_a_server_at_a_time() {
    const MANY: usize = 16;
    /// Further apart than the kernel reads ahead.
    const APART: u64 = MIB;
    let fs = Faulty::new(MANY * APART as usize);
    let disk = open(&FileConfig::new(fs.file())).unwrap();
    let held = fs.hold(Call::Read);
    let before = fs.seen(Call::Read);
    let reads = (0..MANY as u64).map(|at| Bio::new(Op::Read, Sector(at * APART / 512), 4096));
    let reads: Vec<_> = reads.map(|read| disk.bdev.submit_async(0, read)).collect();
    fs.wait_for(Call::Read, before + MANY);
    drop(held);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for read in reads {
        assert_eq!(runtime.block_on(read).status(), Status::Ok);
    }
}

/// Storage that takes less of a write than a block, and has no room for the rest, has lost nothing.
#[test]
fn a_write_that_stops_within_a_block_fails_alone() {
    for engine in [Engine::Uring, Engine::Threads] {
        let fs = Faulty::new(MIB as usize);
        let config = FileConfig { engine, direct: true, ..FileConfig::new(fs.file()) };
        let disk = open(&config).unwrap();
        fs.cut_write(300);
        // The kernel may try the rest through its page cache.
        fs.fail(Call::Write, Errno::ENOSPC, 8);
        assert_eq!(disk.write(8192, vec![1; 4096]), Status::NoSpace, "{engine:?}");
        fs.succeed(Call::Write);
        assert_eq!(disk.read(MIB - 4096, 4096), vec![0; 4096], "{engine:?}");
        assert_eq!(disk.write(8192, vec![2; 4096]), Status::Ok, "{engine:?}");
        assert_eq!(disk.read(8192, 4096), vec![2; 4096], "{engine:?}");
        assert_eq!(disk.flush(), Status::Ok, "{engine:?}");
    }
}

#[test]
fn a_read_that_is_merged_with_one_of_what_is_lost_is_not_lost() {
    let place = Place::here();
    for config in ways(&place.path().join("disk")) {
        place.file("disk", MIB);
        let disk = open(&config).unwrap();
        assert_eq!(disk.write(0, vec![3; 1 << 20]), Status::Ok);
        std::fs::File::options().write(true).open(&config.path).unwrap().set_len(MIB / 2).unwrap();
        assert_eq!(disk.flush(), Status::Io);
        // Into memory of the driver's, and into memory that direct I/O cannot use.
        for own in [false, true] {
            let bios = (0..4_u64).map(|number| {
                let sector = Sector(MIB / 2 / 512 - 16 + number * 8);
                if !own {
                    return Bio::new(Op::Read, sector, 4096);
                }
                let memory = Segment::from_vec(vec![0; 4100]).slice(4, 4096);
                Bio::with_data(Op::Read, sector, [memory].into_iter().collect())
            });
            let ended = disk.submit_all(bios.collect());
            let statuses: Vec<_> = ended.iter().map(|bio| bio.status()).collect();
            let wanted = [Status::Ok, Status::Ok, Status::Io, Status::Io];
            assert_eq!(statuses, wanted, "{config:?} {own}");
            assert!(ended[..2].iter().all(|bio| common::bytes(bio) == [3; 4096]), "{config:?}");
        }
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
