//! The cases, each for a fresh disk.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_blkmq::{Bio, BlockLayer, Features, Flags, Op, SECTOR_SIZE, Sector, Status};
use blockyard_buf::{FileRange, Segment, Segments};

use crate::subject::{Subject, marked, write_bio};

/// Operations on a range that change the disk, as far as it can do them.
fn changes(subject: &Subject) -> Vec<Op> {
    let mut ops = vec![Op::Write, Op::WriteZeroes];
    if subject.limits().max_discard_sectors > 0 {
        ops.push(Op::Discard);
    }
    ops
}

/// What is not wholly on the disk fails; its last block does not.
pub fn out_of_range(subject: &Subject) {
    let (size, block) = (subject.size(), subject.block());
    for op in [changes(subject), vec![Op::Read, Op::BlockStatus]].concat() {
        assert_eq!(subject.status(op, size - block, block), Status::Ok, "{op:?} of the last block");
        for (at, len) in [(size, block), (size - block, 2 * block), (size + (1 << 40), block)] {
            assert_eq!(subject.status(op, at, len), Status::OutOfRange, "{op:?} at {at}");
        }
        let wrapping = Bio::new(op, Sector(u64::MAX - 1), 4 * SECTOR_SIZE);
        assert_eq!(subject.bdev.submit_and_wait(0, wrapping).status(), Status::OutOfRange);
    }
    assert_eq!(
        subject.run(Op::Read, 0, u64::MAX - 511, Flags::empty()).status(),
        Status::OutOfRange
    );
}

/// What is no whole number of blocks is invalid, and changes nothing.
pub fn unaligned(subject: &Subject) {
    let block = subject.block();
    subject.write(0, &marked(0, 2 * block, 1));
    for op in [changes(subject), vec![Op::Read, Op::BlockStatus]].concat() {
        for len in [1, block - 1, block + 1] {
            assert_eq!(subject.status(op, 0, len), Status::Invalid, "{op:?} of {len} bytes");
        }
        if block > SECTOR_SIZE {
            assert_eq!(subject.status(op, SECTOR_SIZE, block), Status::Invalid, "{op:?} at 512");
        }
    }
    subject.holds(0, &marked(0, 2 * block, 1));
}

/// A disk that is read-only refuses what would change it, until it is not any more.
pub fn read_only(subject: &Subject) {
    let block = subject.block();
    subject.write(0, &marked(0, block, 1));
    subject.disk().set_read_only(true);
    for op in changes(subject) {
        assert_eq!(subject.status(op, 0, block), Status::NotPermitted, "{op:?}");
    }
    assert_eq!(subject.status(Op::Flush, 0, 0), Status::Ok);
    subject.holds(0, &marked(0, block, 1));
    subject.disk().set_read_only(false);
    subject.write(0, &marked(0, block, 2));
    subject.holds(0, &marked(0, block, 2));
}

/// A removed disk has no size, and everything fails.
pub fn removed(subject: &Subject) {
    BlockLayer::new().del_disk(subject.disk());
    assert_eq!(subject.size(), 0);
    for op in [Op::Read, Op::Write, Op::Flush, Op::WriteZeroes, Op::BlockStatus] {
        let len = if op == Op::Flush { 0 } else { 4096 };
        assert_eq!(subject.status(op, 0, len), Status::Offline, "{op:?}");
    }
}

/// Removed under load, every operation ends, well or as that of a removed disk.
pub fn removed_under_load(subject: &Subject) {
    let (block, gone) = (subject.block(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let gone = &gone;
            scope.spawn(move || {
                let mut after = 0;
                while after < 3 {
                    after += u32::from(gone.load(Ordering::SeqCst));
                    let bios = (0..16).map(|i| {
                        let at = (thread * 16 + i) * block;
                        write_bio(
                            at,
                            [Segment::from_vec(marked(at, block, 3))].into_iter().collect(),
                        )
                    });
                    for bio in subject.submit_together(thread.try_into().unwrap(), bios.collect()) {
                        assert!(matches!(bio.status(), Status::Ok | Status::Offline), "{bio:?}");
                    }
                }
            });
        }
        std::thread::yield_now();
        BlockLayer::new().del_disk(subject.disk());
        gone.store(true, Ordering::SeqCst);
    });
    assert_eq!(subject.status(Op::Read, 0, block), Status::Offline);
}

/// A disk that shrinks fails what is past its new end, and keeps what is before; one that grows serves what is
/// new.
pub fn resized(subject: &Subject) {
    let (size, block) = (subject.size(), subject.block());
    let padding = size - subject.bytes();
    let half = size / 2 / block * block;
    subject.write(half - block, &marked(0, 2 * block, 1));
    subject.set_size(half, 0);
    assert_eq!(subject.status(Op::Read, half - block, 2 * block), Status::OutOfRange);
    assert_eq!(subject.status(Op::Write, half, block), Status::OutOfRange);
    subject.holds(half - block, &marked(0, block, 1));
    subject.set_size(size, padding);
    assert_eq!(subject.status(Op::Read, half, block), Status::Ok);
    if subject.can.can_grow {
        subject.disk().resize(Sector(2 * size / SECTOR_SIZE)).unwrap();
        subject.holds(2 * size - block, &vec![0; block.try_into().unwrap()]);
        subject.write(2 * size - block, &marked(0, block, 2));
        subject.holds(2 * size - block, &marked(0, block, 2));
        if block > SECTOR_SIZE {
            assert!(
                subject.disk().resize(Sector(2 * size / SECTOR_SIZE + 1)).is_err(),
                "no whole block"
            );
        }
    }
}

/// Operations on nothing are done at once, at the very end of the disk too.
pub fn zero_length(subject: &Subject) {
    for at in [0, subject.size()] {
        for op in [changes(subject), vec![Op::Read, Op::BlockStatus]].concat() {
            let bio = subject.run(op, at, 0, Flags::empty());
            assert_eq!(
                (bio.status(), bio.data().len(), bio.extents.len()),
                (Status::Ok, 0, 0),
                "{op:?}"
            );
        }
    }
    let flush = subject.run(Op::Write, 0, 0, Flags::PREFLUSH);
    assert_eq!(flush.status(), Status::Ok);
}

/// One operation on the whole disk, however many requests that takes.
pub fn largest_sizes(subject: &Subject) {
    let size = subject.whole().min(8 << 20);
    subject.write(0, &marked(0, size, 1));
    subject.holds(0, &marked(0, size, 1));
    let part = usize::try_from(size / 4).unwrap();
    let lens = [part, part, part, usize::try_from(size).unwrap() - 3 * part];
    let own = subject.read_into(0, &lens);
    assert!(!subject.can.stores || own == marked(0, size, 1));
    assert_eq!(subject.status(Op::WriteZeroes, 0, size), Status::Ok);
    subject.holds(0, &vec![0; size.try_into().unwrap()]);
}

/// Writes to the same place at the same time leave what some of them wrote, and nothing else.
pub fn overlapping_writes(subject: &Subject) {
    let len = subject.block().max(4096);
    let bios = (1..=32).map(|byte| {
        let bytes = vec![byte; len.try_into().unwrap()];
        write_bio(0, [Segment::from_vec(bytes)].into_iter().collect()).with_flags(Flags::NOMERGE)
    });
    for bio in subject.submit_together(0, bios.collect()) {
        assert_eq!(bio.status(), Status::Ok);
    }
    let found = subject.read(0, len);
    assert!(!subject.can.stores || found.iter().all(|byte| (1..=32).contains(byte)));
    assert_eq!(found, subject.read(0, len), "once they have ended nothing changes");
}

/// Flushes and writes that are durable at once succeed, with and without a cache, before and after others; where it is
/// known what a power cut would leave, that is there, and what was not made durable is not.
pub fn flushes(subject: &Subject) {
    let block = subject.block();
    let lost = |at: u64, bytes: &[u8]| assert_ne!(subject.survives(at, bytes), Some(true), "{at}");
    let kept = |at: u64, bytes: &[u8]| assert_ne!(subject.survives(at, bytes), Some(false), "{at}");
    let bytes = |i: u64| marked(i * block, block, 9);
    let at = |i: u64| (40 + i) * block;
    subject.write(at(0), &bytes(0));
    lost(at(0), &bytes(0));
    assert_eq!(subject.write_flagged(at(1), &bytes(1), Flags::FUA), Status::Ok);
    kept(at(1), &bytes(1));
    assert_eq!(subject.status(Op::Flush, 0, 0), Status::Ok);
    kept(at(0), &bytes(0));
    subject.write(at(2), &bytes(2));
    assert_eq!(subject.write_flagged(at(3), &bytes(3), Flags::PREFLUSH), Status::Ok);
    kept(at(2), &bytes(2));
    assert_eq!(subject.run(Op::WriteZeroes, at(1), block, Flags::FUA).status(), Status::Ok);
    kept(at(1), &vec![0; block.try_into().unwrap()]);
    assert_eq!(subject.status(Op::Flush, 0, 0), Status::Ok);
    for (i, flags) in
        (0..).zip([Flags::FUA, Flags::PREFLUSH, Flags::FUA | Flags::PREFLUSH, Flags::SYNC])
    {
        let at = i * block;
        assert_eq!(subject.write_flagged(at, &marked(at, block, 1), flags), Status::Ok);
    }
    let mut bios: Vec<_> = (4..20)
        .map(|i| {
            let data = [Segment::from_vec(marked(i * block, block, 1))].into_iter().collect();
            write_bio(i * block, data).with_flags(if i % 3 == 0 {
                Flags::FUA
            } else {
                Flags::empty()
            })
        })
        .collect();
    bios.extend((0..4).map(|_| Bio::flush()));
    for bio in subject.submit_together(0, bios) {
        assert_eq!(bio.status(), Status::Ok);
    }
    subject.holds(0, &marked(0, 20 * block, 1));
    assert_eq!(subject.run(Op::WriteZeroes, 0, block, Flags::FUA).status(), Status::Ok);
    flushed_among_others(subject);
}

/// Whoever writes and flushes finds it durable while others do the same, and whoever writes durably at once while others
/// flush.
fn flushed_among_others(subject: &Subject) {
    let (block, cpus) = (subject.block(), subject.disk().cpus() as u64);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let cpu = usize::try_from(thread % cpus).unwrap();
                let base = (64 + thread * 16) * block;
                for round in 1..20 {
                    let bytes = marked(base, 8 * block, round);
                    let part = usize::try_from(block).unwrap();
                    let flags = match round % 3 {
                        0 => Flags::FUA,
                        1 => Flags::FUA | Flags::PREFLUSH,
                        _ => Flags::empty(),
                    };
                    let bios = bytes.chunks(part).zip(0..).map(|(bytes, i)| {
                        let data = [Segment::from_vec(bytes.to_vec())].into_iter().collect();
                        write_bio(base + i * block, data).with_flags(flags)
                    });
                    let ended = subject.submit_together(cpu, bios.collect());
                    assert!(ended.iter().all(|bio| bio.status().is_ok()));
                    if flags.is_empty() {
                        let flushed = subject.submit_together(cpu, vec![Bio::flush()]);
                        assert_eq!(flushed[0].status(), Status::Ok);
                    }
                    let kept = subject.survives(base, &bytes);
                    assert_ne!(kept, Some(false), "thread {thread}, round {round}, {flags:?}");
                }
            });
        }
    });
}

/// Block status covers the range exactly, and what it calls zero is.
pub fn block_status(subject: &Subject) {
    let (size, block) = (MAP_BYTES.min(subject.size()), subject.block());
    let data: Vec<u64> = [0, 3, 4, 77, size / block - 1].map(|i| i * block).into();
    data.iter().for_each(|&at| subject.write(at, &marked(at, block, 1)));
    let extents = subject.extents(0, size);
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), size);
    if !subject.can.stores {
        return;
    }
    let mut at = 0;
    for extent in &extents {
        if extent.zero {
            assert!(subject.read(at, extent.len).iter().all(|&byte| byte == 0), "zero at {at}");
        }
        for &data in &data {
            assert!(
                !extent.hole || data + block <= at || at + extent.len <= data,
                "data in a hole"
            );
        }
        at += extent.len;
    }
    assert!(!subject.can.holes || extents.iter().any(|extent| extent.hole), "{extents:?}");
    let first = subject.run(Op::BlockStatus, 0, size, Flags::FIRST_EXTENT);
    assert_eq!(first.status(), Status::Ok);
    assert!(first.extents[0].len > 0 && first.extents[0].len <= size);
}

/// How much of a disk is mapped.
const MAP_BYTES: u64 = 16 << 20;

/// What was zeroed reads as zeroes, in all manners of zeroing, and its neighbours are as they were.
pub fn write_zeroes(subject: &Subject) {
    let block = subject.block();
    let len = 40 * block;
    for flags in [Flags::empty(), Flags::NOUNMAP, Flags::NOFALLBACK, Flags::FUA] {
        subject.write(0, &marked(0, len, 1));
        let status = subject.run(Op::WriteZeroes, 3 * block, 30 * block, flags).status();
        if flags == Flags::NOFALLBACK && status == Status::NotSupported {
            continue;
        }
        assert_eq!(status, Status::Ok, "{flags:?}");
        subject.holds(0, &marked(0, 3 * block, 1));
        subject.holds(3 * block, &vec![0; (30 * block).try_into().unwrap()]);
        subject.holds(33 * block, &marked(33 * block, 7 * block, 1));
    }
}

/// A discard succeeds or is not supported, leaves its neighbours alone, and reads as zeroes where that is
/// promised.
pub fn discard(subject: &Subject) {
    let block = subject.block();
    subject.write(0, &marked(0, 64 * block, 1));
    let status = subject.status(Op::Discard, 5 * block, 50 * block);
    if subject.limits().max_discard_sectors == 0 {
        assert_eq!(status, Status::NotSupported);
        return;
    }
    assert_eq!(status, Status::Ok);
    subject.holds(0, &marked(0, 5 * block, 1));
    subject.holds(55 * block, &marked(55 * block, 9 * block, 1));
    if subject.can.discard_zeroes {
        subject.holds(5 * block, &vec![0; (50 * block).try_into().unwrap()]);
    }
}

/// What was erased for good does not come back.
pub fn secure_erase(subject: &Subject) {
    let block = subject.block();
    let secret = marked(0, 8 * block, 1);
    subject.write(0, &secret);
    let status = subject.status(Op::SecureErase, 0, 8 * block);
    if subject.limits().max_secure_erase_sectors == 0 {
        assert_eq!(status, Status::NotSupported);
    } else {
        assert_eq!(status, Status::Ok);
        assert!(!subject.can.stores || subject.read(0, 8 * block) != secret);
    }
}

/// A read gives the same bytes into the driver's memory and into one's own.
pub fn supplied_and_own_memory(subject: &Subject) {
    let block = subject.block();
    let len = 16 * block;
    subject.write(4 * block, &marked(0, 8 * block, 1));
    let own = subject.read_into(0, &[len.try_into().unwrap()]);
    assert!(own == subject.read(0, len), "the two kinds of reads differ");
    // Reads of both kinds that are next to each other may become one request.
    let bios = (0..8).map(|i| {
        let mut bio = Bio::new(Op::Read, Sector(i * 2 * block / SECTOR_SIZE), 2 * block);
        if i % 2 == 0 {
            let data = [Segment::from_vec(vec![0xaa; (2 * block).try_into().unwrap()])];
            bio = Bio::with_data(Op::Read, bio.sector(), data.into_iter().collect());
        }
        bio.private = i;
        bio
    });
    for bio in subject.submit_together(0, bios.collect()) {
        assert_eq!(bio.status(), Status::Ok);
        let bytes: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
        let at = usize::try_from(bio.private * 2 * block).unwrap();
        assert!(bytes == own[at..at + bytes.len()], "read {}", bio.private);
    }
}

/// Memory in many pieces of odd lengths is written from, and read into.
pub fn vectored(subject: &Subject) {
    let len = 64 * subject.block();
    let bytes = marked(0, len, 1);
    let mut lens = Vec::new();
    let mut left = usize::try_from(len).unwrap();
    for step in [1, 511, 512, 513, 4096, 7, 3000].into_iter().cycle() {
        if left == 0 {
            break;
        }
        lens.push(left.min(step));
        left -= left.min(step);
    }
    let mut rest = &bytes[..];
    let data: Segments = lens
        .iter()
        .map(|&len| {
            let (now, later) = rest.split_at(len);
            rest = later;
            Segment::from_vec(now.to_vec())
        })
        .collect();
    assert_eq!(subject.bdev.submit_and_wait(0, write_bio(0, data)).status(), Status::Ok);
    subject.holds(0, &bytes);
    lens.reverse();
    let found = subject.read_into(0, &lens);
    assert!(!subject.can.stores || found == bytes);
}

/// What one CPU has written is there for every other, while all write at once.
pub fn many_queues(subject: &Subject) {
    let (block, cpus) = (subject.block(), subject.disk().cpus() as u64);
    let share = (subject.size() / cpus / block).min(64) * block;
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            scope.spawn(move || {
                let base = cpu * share;
                for round in 1..5 {
                    let bios = (0..share / block).map(|i| {
                        let at = base + i * block;
                        write_bio(
                            at,
                            [Segment::from_vec(marked(at, block, round))].into_iter().collect(),
                        )
                    });
                    for bio in subject.submit_together(cpu.try_into().unwrap(), bios.collect()) {
                        assert_eq!(bio.status(), Status::Ok);
                    }
                    subject.holds(base, &marked(base, share, round));
                }
            });
        }
    });
    subject.holds(0, &marked(0, cpus * share, 4));
}

/// Who does not want to wait is served, or told that it would have had to; nobody is left hanging.
pub fn nowait(subject: &Subject) {
    let block = subject.block();
    subject.write(0, &marked(0, block, 1));
    let bios = (0..300)
        .map(|_| Bio::new(Op::Read, Sector(0), block).with_flags(Flags::NOWAIT | Flags::NOMERGE));
    let ends = subject.submit_together(0, bios.collect());
    assert!(ends.iter().all(|bio| matches!(bio.status(), Status::Ok | Status::Again)));
    assert!(ends.iter().any(|bio| bio.status().is_ok()), "some are served");
    for bio in ends.iter().filter(|bio| bio.status().is_ok() && subject.can.stores) {
        let bytes: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
        assert!(bytes == marked(0, block, 1));
    }
}

/// Asking for something ahead is harmless.
pub fn prefetch(subject: &Subject) {
    let block = subject.block();
    subject.write(0, &marked(0, 4 * block, 1));
    assert_eq!(subject.status(Op::Prefetch, 0, subject.size()), Status::Ok);
    subject.holds(0, &marked(0, 4 * block, 1));
}

/// A thousand operations in a row, against bytes in memory.
pub fn random_operations(subject: &Subject) {
    let block = subject.block();
    let blocks = MIN_BYTES_USED / block;
    let mut model = vec![0; MIN_BYTES_USED.try_into().unwrap()];
    let mut random = Random(seed());
    for step in 0..1000 {
        let at = random.below(blocks);
        let len = (1 + random.below(16)).min(blocks - at) * block;
        let at = at * block;
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        match random.below(10) {
            0..4 => {
                let bytes = marked(at, len, step + 1);
                subject.write(at, &bytes);
                model[range].copy_from_slice(&bytes);
            }
            4..8 => subject.holds(at, &model[range]),
            8 if subject.can.discard_zeroes && subject.limits().max_discard_sectors > 0 => {
                assert_eq!(subject.status(Op::Discard, at, len), Status::Ok);
                model[range].fill(0);
            }
            _ => {
                assert_eq!(subject.status(Op::WriteZeroes, at, len), Status::Ok);
                model[range].fill(0);
            }
        }
    }
    subject.holds(0, &model);
    if subject.can.stores && subject.limits().features.contains(Features::BLOCK_STATUS) {
        let mut at = 0;
        for extent in subject.extents(0, MIN_BYTES_USED) {
            let len = usize::try_from(extent.len).unwrap();
            assert!(
                !extent.zero || model[at..at + len].iter().all(|&byte| byte == 0),
                "zero at {at}"
            );
            at += len;
        }
    }
}

/// Five hundred operations on any bytes up to the very end, which may be within a block, against bytes in memory.
pub fn any_bytes(subject: &Subject) {
    let end = subject.bytes();
    let start = end - MAX_BYTES_USED;
    let mut model = vec![0; MAX_BYTES_USED.try_into().unwrap()];
    let mut random = Random(seed());
    for step in 0..500 {
        // Often at the end itself, or across the last blocks.
        let len = 1 + random.below(if step % 4 == 0 { MAX_BYTES_USED } else { 5000 });
        let most = MAX_BYTES_USED - len;
        let at = if step % 3 == 0 { most } else { random.below(most + 1) };
        let range = usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap();
        match random.below(8) {
            0..4 => {
                let salt = u8::try_from(step % 251 + 1).unwrap();
                model[range.clone()].fill(salt);
                let mut bio = Bio::at_bytes(Op::Write, start + at, 0);
                bio.add_segment(Segment::from_vec(model[range].to_vec()));
                assert_eq!(subject.bdev.submit_and_wait(0, bio).status(), Status::Ok, "{step}");
            }
            4..7 => {
                let mut bio = Bio::at_bytes(Op::Read, start + at, 0);
                let own = Segment::from_vec(vec![0xaa; range.len()]);
                if step % 2 == 0 {
                    bio.add_segment(own);
                } else {
                    bio = Bio::at_bytes(Op::Read, start + at, len);
                }
                let bio = subject.bdev.submit_and_wait(0, bio);
                assert_eq!(bio.status(), Status::Ok, "{step}");
                let found: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
                assert_eq!(found.len(), range.len());
                assert!(
                    !subject.can.stores || found == model[range],
                    "{len} bytes at {at}, {step}"
                );
            }
            _ => {
                let bio = Bio::at_bytes(Op::WriteZeroes, start + at, len);
                assert_eq!(subject.bdev.submit_and_wait(0, bio).status(), Status::Ok, "{step}");
                model[range].fill(0);
            }
        }
    }
    let last = subject.block() - (subject.size() - end);
    let padded = subject.read(subject.size() - subject.block(), subject.block());
    let (data, padding) = padded.split_at(last.try_into().unwrap());
    assert!(!subject.can.stores || *data == model[model.len() - data.len()..]);
    assert!(padding.iter().all(|byte| *byte == 0), "padding reads as zeroes");
    let past = Bio::at_bytes(Op::Read, end - 1, 2);
    assert_eq!(subject.bdev.submit_and_wait(0, past).status(), Status::OutOfRange);
}

/// A write of a range of a file writes its bytes, or is refused as a whole; a read that takes a range brings the same bytes.
pub fn file_ranges(subject: &Subject) {
    let (block, bytes) = (subject.block(), marked(0, 1 << 20, 7));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    let file = Arc::new(OwnedFd::from(file));
    let write = |at, offset, len| {
        let bio = Bio::write_range(at, FileRange::new(&file, offset, len));
        subject.bdev.submit_and_wait(0, bio).status()
    };
    let features = subject.limits().features;
    for (at, offset, len) in [(0, 0, 1 << 20), (4 * block, 1000, 8 * block), (64 * block, 1, block)]
    {
        let place = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        let before = subject.read(at, len);
        match write(at, offset, len) {
            Status::Ok => {
                assert!(features.contains(Features::FILE_RANGES), "without being asked for it");
                subject.holds(at, &bytes[place]);
            }
            // Nothing of it is written then.
            Status::NotSupported => {
                let fits = len / SECTOR_SIZE <= u64::from(subject.limits().max_hw_sectors);
                assert!(!(fits && features.contains(Features::FILE_RANGES)), "it was promised");
                subject.holds(at, &before);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(write(1, 0, block), Status::NotSupported, "no whole blocks");
    assert_eq!(write(subject.size(), 0, block), Status::OutOfRange);
    let whole = subject.read(0, 1 << 20);
    for len in [block, 1 << 20] {
        let mut bio = subject.run(Op::Read, 0, len, Flags::RANGE);
        assert_eq!(bio.status(), Status::Ok);
        let found = match bio.take_range() {
            Some(range) => {
                assert!(range.len() == len && bio.data().is_empty());
                let mut found = vec![0; usize::try_from(len).unwrap()];
                let file = std::fs::File::from(range.file().try_clone().unwrap());
                file.read_exact_at(&mut found, range.offset()).unwrap();
                found
            }
            None => bio.data().iter().flat_map(Segment::to_vec).collect(),
        };
        assert!(found == whole[..found.len()] && found.len() as u64 == len);
    }
}

/// Bytes at the end of a disk that operations on any bytes are on.
const MAX_BYTES_USED: u64 = 200_000;

/// The part of a disk that the random operations are on.
const MIN_BYTES_USED: u64 = 1 << 20;

/// The seed of a run: `BLOCKYARD_SEED`, or one that differs from run to run; printed.
///
/// # Panics
/// If that is no number.
#[must_use]
pub fn seed() -> u64 {
    let seed = std::env::var("BLOCKYARD_SEED").map_or_else(
        |_| std::process::id().into(),
        |text| text.parse().expect("BLOCKYARD_SEED is a number"),
    );
    println!("BLOCKYARD_SEED={seed}");
    seed
}

/// A small generator, so that a suite that every driver links needs no crate for it (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed ^ mixed >> 31) % bound
    }
}
