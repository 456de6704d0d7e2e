//! Reads that are answered with pages of the page cache, or with ranges of files, and those that must not be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use blockyard_blkmq::{Bio, Flags, Op, Sector, StatGroup, Status, TagSetConfig};
use blockyard_buf::FileRange;
use blockyard_conformance::faulty::{Call, Errno, Faulty};
use blockyard_driver_file::{Engine, FileConfig};
use blockyard_sys::page_cache;
use common::{Place, TestDisk, bytes, open, open_shown, open_with, ways};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, statvfs};

const SIZE: usize = 8 << 20;
const LONG: usize = 256 << 10;
/// More calls than anybody makes.
const EVER: usize = 1_000_000;
/// Reads of what is to be in the page cache, before it counts as never there.
const TRIES: usize = 10;

static CONTENT: LazyLock<Vec<u8>> =
    LazyLock::new(|| (0..SIZE).map(|at| (at * 13 + at / 509) as u8).collect());

fn paged(offset: usize, len: usize) -> Box<Bio> {
    Bio::new(Op::Read, Sector(offset as u64 / 512), len as u64).with_flags(Flags::PAGES)
}

/// What a read has brought, and whether that were pages.
fn answer(mut bio: Box<Bio>) -> (Vec<u8>, bool) {
    assert_eq!(bio.status(), Status::Ok);
    match bio.take_pages() {
        Some(pages) => {
            assert!(bio.data().is_empty());
            (pages.into_bytes().unwrap(), true)
        }
        None => (bytes(&bio), false),
    }
}

fn read(disk: &TestDisk, offset: usize, len: usize) -> (Vec<u8>, bool) {
    answer(disk.submit(paged(offset, len)))
}

/// As [`read`], of bytes that have been read before. The kernel may have dropped them since, and has them again after a read.
fn read_cached(disk: &TestDisk, offset: usize, len: usize) -> (Vec<u8>, bool) {
    let (mut got, mut were_pages) = read(disk, offset, len);
    for _ in 1..TRIES {
        if were_pages {
            break;
        }
        let before = std::mem::take(&mut got);
        (got, were_pages) = read(disk, offset, len);
        assert!(got == before, "the same bytes each time");
    }
    (got, were_pages)
}

/// Whether this kernel can do it at all.
fn is_known(config: &FileConfig) -> bool {
    page_cache::is_known(std::fs::File::open(&config.path).unwrap().as_fd())
}

fn made(place: &Place) -> FileConfig {
    let config = FileConfig::new(place.path().join("disk"));
    std::fs::write(&config.path, &*CONTENT).unwrap();
    config
}

/// What the driver goes by. A file system in memory tells nothing.
#[test]
fn what_was_written_is_in_the_page_cache_and_what_never_was_is_not() {
    let place = Place::on_loop("ext4");
    let path = place.path().join("file");
    std::fs::write(&path, [1; 100_000]).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let has = |offset, len| page_cache::has(file.as_fd(), offset, len);
    if !page_cache::is_known(file.as_fd()) {
        assert!(!has(0, 1), "nobody knows");
        return;
    }
    assert!(has(0, 100_000) && has(4095, 2));
    assert!(!has(0, 200_000) && !has(99_999, 2), "past its end");
    assert!(!has(0, 0) && !has(u64::MAX, 2));
    file.set_len(1 << 20).unwrap();
    assert!(!has(0, 1 << 20), "a hole that nobody has read");
}

#[test]
fn long_reads_of_cached_bytes_bring_pages_and_all_reads_the_same_bytes() {
    for place in [Place::here(), Place::tmpfs("64m"), Place::on_loop("ext4")] {
        for config in ways(&place.path().join("disk")) {
            std::fs::write(&config.path, &*CONTENT).unwrap();
            let disk = match open(&config) {
                Ok(disk) => disk,
                // A file system that takes no direct I/O.
                Err(err) => {
                    assert!(config.direct, "{} {config:?}: {err}", place.name);
                    continue;
                }
            };
            let can = !config.direct && is_known(&config);
            let shapes = [
                (0, LONG, can),
                (512, 100 << 10, can),
                (SIZE - LONG, LONG, can),
                (4096, 1 << 20, can),
                (4096, 4096, false),
                (512, 1 << 20, false),
                (0, 2 << 20, false),
            ];
            for (offset, len, expected) in shapes {
                let read = if expected { read_cached } else { read };
                let (got, were_pages) = read(&disk, offset, len);
                assert!(got == CONTENT[offset..offset + len], "{offset} {len} {config:?}");
                assert_eq!(were_pages, expected, "{} {offset} {len} {config:?}", place.name);
            }
            let plain = disk.range(Op::Read, 0, LONG as u64, Flags::empty());
            assert!(plain.pages().is_none(), "nobody has asked for pages");
            let odd = Bio::at_bytes(Op::Read, 100, LONG as u64).with_flags(Flags::PAGES);
            let (got, were_pages) = answer(disk.submit(odd));
            assert!(got == CONTENT[100..100 + LONG] && !were_pages, "trimmed");
        }
    }
}

#[test]
fn what_is_not_cached_is_read_and_is_cached_then() {
    let place = Place::on_loop("ext4");
    let config = made(&place);
    let disk = open(&config).unwrap();
    let file = std::fs::File::open(&config.path).unwrap();
    file.sync_all().unwrap();
    // Nothing is read ahead by this description.
    fadvise(&file, 0, None, Advice::Random).unwrap();
    for cached in [0, LONG / 2, 4096] {
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        file.read_exact_at(&mut vec![0; cached], 0).unwrap();
        let (got, were_pages) = read(&disk, 0, LONG);
        assert!(got == CONTENT[..LONG] && !were_pages);
        let (got, were_pages) = read_cached(&disk, 0, LONG);
        assert!(got == CONTENT[..LONG]);
        assert_eq!(were_pages, is_known(&config));
    }
}

#[test]
fn what_the_file_has_lost_fails_and_does_not_come_back() {
    let place = Place::here();
    let config = made(&place);
    let disk = open(&config).unwrap();
    let file = std::fs::File::options().write(true).open(&config.path).unwrap();
    file.set_len((SIZE - LONG / 2) as u64).unwrap();
    let at = SIZE - LONG;
    assert_eq!(disk.submit(paged(at, LONG)).status(), Status::Io);
    file.set_len(SIZE as u64).unwrap();
    assert_eq!(disk.submit(paged(at, LONG)).status(), Status::Io);
    assert_eq!(read_cached(&disk, 0, LONG).1, is_known(&config));
}

#[test]
fn padding_is_zeroes_and_what_is_not_shown_is_not_told() {
    let place = Place::here();
    let config = made(&place);
    std::fs::OpenOptions::new()
        .write(true)
        .open(&config.path)
        .unwrap()
        .set_len((SIZE - 100) as u64)
        .unwrap();
    let disk = open(&config).unwrap();
    let mut expected = CONTENT.clone();
    expected[SIZE - 100..].fill(0);
    let (got, were_pages) = read(&disk, SIZE - LONG, LONG);
    assert!(got == expected[SIZE - LONG..] && !were_pages);
    drop(disk);
    let shown = LONG + 1024 + 7;
    let disk = open_shown(&config, TagSetConfig::default(), shown as u64).unwrap();
    let len = disk.disk.capacity().bytes() as usize - 1024;
    let (got, were_pages) = read(&disk, 1024, len);
    expected.truncate(shown);
    expected.resize(1024 + len, 0);
    assert!(got == expected[1024..] && !were_pages);
}

#[test]
fn reads_that_become_one_request_are_answered_each_for_itself() {
    let place = Place::here();
    let config = made(&place);
    let tags = TagSetConfig { cpus: 1, hw_queues: [1, 0, 0], depth: 2, ..Default::default() };
    let disk = open_with(&config, tags).unwrap();
    let sectors = || disk.disk.stats().0.counters(StatGroup::Read).sectors;
    let lens = [LONG, 64 << 10, 512 << 10, LONG];
    let all: usize = lens.iter().sum();
    let mut were_all_pages = false;
    for _ in 0..TRIES {
        let before = sectors();
        let mut at = 0;
        let bios = lens.map(|len| {
            at += len;
            paged(at - len, len)
        });
        let (mut from, mut with_pages) = (0, 0);
        for (bio, len) in disk.submit_all(bios.into()).into_iter().zip(lens) {
            let (got, were_pages) = answer(bio);
            assert!(got == CONTENT[from..from + len]);
            with_pages += usize::from(were_pages);
            from += len;
        }
        assert_eq!(sectors() - before, all as u64 / 512, "all of it is counted");
        assert!(with_pages == 0 || is_known(&config));
        were_all_pages = with_pages == lens.len();
        // The kernel may have dropped some since the file was written, and has them now.
        if were_all_pages == is_known(&config) {
            break;
        }
    }
    assert_eq!(were_all_pages, is_known(&config));
    // Beside one that is short, it is not worth it; beside one that wants memory, it cannot be.
    let mixed = vec![paged(0, LONG), paged(LONG, 4096), paged(LONG + 4096, LONG)];
    for (bio, from) in disk.submit_all(mixed).into_iter().zip([0, LONG, LONG + 4096]) {
        let len = bio.len() as usize;
        assert!(answer(bio).0 == CONTENT[from..from + len]);
    }
}

/// Who has the range of a file waits for its server.
#[test]
fn a_file_whose_server_may_not_answer_gives_no_range() {
    let faulty = Faulty::new(LONG);
    for engine in [Engine::Auto, Engine::Uring] {
        let disk = open(&FileConfig { engine, ..FileConfig::new(faulty.file()) }).unwrap();
        let mut read = disk.range(Op::Read, 0, LONG as u64, Flags::RANGE);
        assert_eq!(read.status(), Status::Ok);
        assert!(read.take_range().is_none() && bytes(&read) == vec![0; LONG], "{engine:?}");
    }
}

/// From a disk in one file to a disk in another.
fn copy(from: &TestDisk, to: &TestDisk, offset: u64, len: u64, flags: Flags) -> Status {
    let read = Bio::new(Op::Read, Sector(offset / 512), len).with_flags(Flags::RANGE);
    let mut read = from.submit(read);
    assert_eq!(read.status(), Status::Ok);
    let range = read.take_range().expect("it goes through the page cache");
    assert!(read.data().is_empty() && range.len() == len && range.is_there());
    let mut write = Bio::write_range(offset, range);
    write.flags |= flags;
    to.submit(write).status()
}

/// All of it, and makes it durable.
fn copy_all(from: &TestDisk, to: &TestDisk, flags: Flags) {
    for half in [0, SIZE as u64 / 2] {
        let copied = copy(from, to, half, SIZE as u64 / 2, flags);
        assert_eq!(copied, Status::Ok, "{:?}", to.info);
    }
    assert_eq!(to.flush(), Status::Ok);
}

#[test]
fn ranges_of_files_are_written_to_others_whatever_these_are_on() {
    let places = Place::all();
    for source in &places {
        let source = made(source);
        let from = open(&FileConfig { read_only: true, ..source }).unwrap();
        for place in &places {
            for config in ways(&place.file("target", SIZE as u64)) {
                let Ok(to) = open(&config) else { continue };
                if config.direct {
                    let file = Arc::new(tempfile::tempfile().unwrap().into());
                    let refused = to.submit(Bio::write_range(0, FileRange::new(&file, 0, 512)));
                    assert_eq!(refused.status(), Status::NotSupported, "past the page cache");
                    let asked = to.range(Op::Read, 0, LONG as u64, Flags::RANGE).take_range();
                    assert!(asked.is_none());
                    continue;
                }
                assert_eq!(to.write(0, vec![1; LONG]), Status::Ok);
                copy_all(&from, &to, Flags::SHARE);
                assert!(std::fs::read(&config.path).unwrap() == *CONTENT, "{config:?}");
            }
        }
    }
}

/// On a file system that can share blocks: where it may, and only where nobody has paid for them yet.
#[test]
fn blocks_are_shared_where_that_is_wanted_and_the_target_has_none() {
    let place = Place::on_loop("xfs");
    let source = made(&place);
    let from = open(&FileConfig { read_only: true, ..source }).unwrap();
    let half = SIZE as u64 / 2;
    let free = || statvfs(place.path()).unwrap().f_bfree * 4096;
    for (name, flags, reserved, least, most) in [
        ("shared", Flags::SHARE, false, 0, half / 2),
        ("own", Flags::empty(), false, 2 * half, 3 * half),
        // The first half has its space, with the second one there is still to be some.
        ("partly reserved", Flags::SHARE, true, 0, half / 2),
    ] {
        let target = FileConfig::new(place.file(name, SIZE as u64));
        let to = open(&target).unwrap();
        if reserved {
            let file = std::fs::File::options().write(true).open(&target.path).unwrap();
            fallocate(&file, FallocateFlags::empty(), 0, half).unwrap();
        }
        // Nothing is still to be allocated.
        rustix::fs::syncfs(std::fs::File::open(place.path()).unwrap()).unwrap();
        let before = free();
        copy_all(&from, &to, flags);
        assert!(std::fs::read(&target.path).unwrap() == *CONTENT, "{name}");
        let taken = before.saturating_sub(free());
        assert!((least..most).contains(&taken), "{name}: {taken} bytes taken");
        if flags.contains(Flags::SHARE) {
            // What is shared is no space of its own: the next copy shares again.
            copy_all(&from, &to, flags);
            let taken = before.saturating_sub(free());
            assert!((least..most).contains(&taken), "{name}: {taken} bytes taken by two copies");
        }
    }
}

/// Takes all space that is left.
fn fill(place: &Place) {
    let file = std::fs::File::create(place.path().join("filler")).unwrap();
    let mut len = 0;
    for step in [16 << 20, 1 << 20, 64 << 10, 4096] {
        while fallocate(&file, FallocateFlags::empty(), len, step).is_ok() {
            len += step;
        }
    }
}

#[test]
fn what_has_its_space_is_overwritten_after_a_copy_on_a_full_file_system() {
    let place = Place::on_loop("xfs");
    let config = made(&place);
    let target = FileConfig::new(place.file("target", SIZE as u64));
    let file = std::fs::File::options().write(true).open(&target.path).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, SIZE as u64).unwrap();
    drop(file);
    let from = open(&FileConfig { read_only: true, ..config.clone() }).unwrap();
    let to = open(&target).unwrap();
    copy_all(&from, &to, Flags::SHARE);
    assert!(std::fs::read(&target.path).unwrap() == *CONTENT);
    drop((from, to));
    fill(&place);
    for config in [target, config] {
        let disk = open(&config).unwrap();
        for at in (0..SIZE as u64).step_by(1 << 20) {
            assert_eq!(disk.write(at, vec![3; 1 << 20]), Status::Ok, "{config:?} at {at}");
        }
        assert_eq!(disk.flush(), Status::Ok, "{config:?}");
    }
}

/// Those of a file on the network are asked of its server, which a queue thread must not wait for.
#[test]
fn whether_a_range_is_there_is_asked_of_no_server() {
    let faulty = Faulty::on_the_network(LONG);
    let file = Arc::new(std::fs::File::open(faulty.file()).unwrap().into());
    let range = FileRange::new(&file, 0, LONG as u64);
    let before = faulty.seen(Call::Attr);
    for _ in 0..3 {
        assert!(range.is_there());
    }
    assert_eq!(faulty.seen(Call::Attr), before);
    assert!(!FileRange::new(&file, 1, LONG as u64).is_there());
}

#[test]
fn a_range_that_is_not_there_or_has_no_room_fails_and_the_disk_goes_on() {
    let place = Place::here();
    let from = open(&made(&place)).unwrap();
    let short = place.file("short", 0);
    std::fs::write(&short, &CONTENT[..LONG / 2]).unwrap();
    let short = Arc::new(std::fs::File::open(short).unwrap().into());
    let to = open(&FileConfig::new(place.file("target", SIZE as u64))).unwrap();
    let longer = FileRange::new(&short, 0, LONG as u64);
    assert_eq!(to.submit(Bio::write_range(0, longer)).status(), Status::Io);
    assert_eq!((to.flush(), to.write(0, vec![2; 512])), (Status::Ok, Status::Ok), "it is whole");
    let small = Place::tmpfs("1m");
    let to = open(&FileConfig::new(small.file("target", SIZE as u64))).unwrap();
    let copied = copy(&from, &to, 0, 2 << 20, Flags::empty());
    assert_eq!(copied, Status::NoSpace, "half of it has room");
    assert_eq!(to.write(0, vec![2; 512]), Status::Ok);
    assert_eq!(to.read(0, 512), [2; 512]);
    let faulty = Faulty::new(LONG);
    let file = Arc::new(std::fs::File::open(faulty.file()).unwrap().into());
    let to = open(&FileConfig::new(place.file("another", SIZE as u64))).unwrap();
    for errno in [Errno::EIO, Errno::EAGAIN, Errno::EINTR] {
        faulty.fail(Call::Read, errno, EVER);
        let unreadable = to.submit(Bio::write_range(0, FileRange::new(&file, 0, LONG as u64)));
        assert_eq!((unreadable.status(), to.flush()), (Status::Io, Status::Ok), "{errno:?}");
        faulty.succeed(Call::Read);
    }
    // What a disk has lost is not told of either.
    let file = std::fs::File::options().write(true).open(place.path().join("disk")).unwrap();
    file.set_len(LONG as u64).unwrap();
    let lost = Bio::new(Op::Read, Sector(LONG as u64 / 512), 4096);
    assert_eq!(from.submit(lost).status(), Status::Io);
    let ranged = from.range(Op::Read, LONG as u64, LONG as u64, Flags::RANGE);
    assert_eq!(ranged.status(), Status::Io);
}
