//! One disk as a file, by the kernel's own client.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use blockyard_blkmq::{OpenMode, Sector};
use blockyard_conformance::in_own_mounts;
use blockyard_export_fuse::{Cache, Config, ErrorKind as Kind, Mount, Shown};
use common::*;
use rustix::fs::{FallocateFlags, SeekFrom as Whence, fallocate, seek};

const MIB: u64 = 1 << 20;

fn rw(mounted: &Mounted) -> File {
    OpenOptions::new().read(true).write(true).open(mounted.path()).unwrap()
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251 + at / 251) as u8).collect()
}

#[test]
fn any_bytes_are_read_and_written_and_the_size_is_the_disks() {
    in_own_mounts!();
    let disk = ram("ram0", 8 * MIB);
    let mut mounted = Mounted::file(&disk);
    let found = std::fs::metadata(mounted.path()).unwrap();
    assert!(found.is_file());
    assert_eq!((found.len(), found.mode() & 0o777), (8 * MIB, 0o600));
    let file = rw(&mounted);
    let data = pattern(3 * MIB as usize + 77);
    file.write_all_at(&data, 1001).unwrap();
    let mut back = vec![0; data.len() + 2];
    file.read_exact_at(&mut back, 1000).unwrap();
    assert_eq!((back[0], back[data.len() + 1]), (0, 0));
    assert_eq!(back[1..=data.len()], data);
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    // At the end, and behind it.
    file.write_all_at(b"end", 8 * MIB - 3).unwrap();
    assert_eq!(file.write_at(b"12345678", 8 * MIB - 4).unwrap(), 4);
    assert_eq!(file.write_at(b"x", 8 * MIB).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.read_at(&mut back[..10], 8 * MIB - 4).unwrap(), 4);
    assert_eq!(&back[..4], b"1234");
    assert_eq!(file.read_at(&mut back[..10], 8 * MIB).unwrap(), 0);
    // As a block device, it stays as long as it is.
    file.set_len(8 * MIB).unwrap();
    assert_eq!(file.set_len(5).unwrap_err().kind(), ErrorKind::InvalidInput);
    drop(OpenOptions::new().write(true).truncate(true).open(mounted.path()).unwrap());
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().len(), 8 * MIB);
    file.read_exact_at(&mut back[..4], 1001).unwrap();
    assert_eq!(back[..4], data[..4]);
    drop(file);
    mounted.stop();
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().len(), 0, "what was there before");
    assert_eq!(mounted.records(), 0);
    mounted.stop();
}

#[test]
fn direct_io_and_durable_writes_go_to_the_disk() {
    in_own_mounts!();
    /// `O_DIRECT`, `O_DSYNC`.
    const DIRECT: i32 = 0o40_000;
    const DSYNC: i32 = 0o10_000;
    let disk = ram("ram0", MIB);
    let mounted = Mounted::file(&disk);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(DIRECT | DSYNC);
    let file = file.open(mounted.path()).unwrap();
    let data = pattern(70_001);
    file.write_all_at(&data, 513).unwrap();
    let mut back = vec![0; data.len()];
    rw(&mounted).read_exact_at(&mut back, 513).unwrap();
    assert_eq!(back, data);
}

#[test]
fn holes_are_found_made_and_zeroed() {
    in_own_mounts!();
    let disk = ram("ram0", 64 * MIB);
    let mounted = Mounted::file(&disk);
    let file = rw(&mounted);
    let data = |at| seek(&file, Whence::Data(at));
    let hole = |at| seek(&file, Whence::Hole(at));
    const ENXIO: i32 = 6;
    assert_eq!(data(0).unwrap_err().raw_os_error(), ENXIO, "nothing but a hole");
    assert_eq!(hole(5).unwrap(), 5);
    file.write_all_at(&pattern(MIB as usize), 4 * MIB).unwrap();
    assert_eq!(data(1).unwrap(), 4 * MIB);
    assert_eq!(data(4 * MIB + 7).unwrap(), 4 * MIB + 7);
    assert_eq!(hole(4 * MIB + 7).unwrap(), 5 * MIB);
    assert_eq!(data(5 * MIB).unwrap_err().raw_os_error(), ENXIO);
    assert_eq!(hole(64 * MIB).unwrap_err().raw_os_error(), ENXIO);
    let allocated = |flags, at, len| fallocate(&file, flags, at, len);
    let (keep, punch) = (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE);
    allocated(keep | punch, 4 * MIB + 4096, 8192).unwrap();
    assert_eq!(hole(4 * MIB).unwrap(), 4 * MIB + 4096);
    assert_eq!(data(4 * MIB + 4096).unwrap(), 4 * MIB + 12288);
    allocated(FallocateFlags::ZERO_RANGE, 4 * MIB + 100, 200).unwrap();
    let mut back = vec![1; 16384];
    file.read_exact_at(&mut back, 4 * MIB).unwrap();
    let mut expected = pattern(16384);
    expected[4096..12288].fill(0);
    expected[100..300].fill(0);
    assert_eq!(back, expected);
    // Behind the end there is nothing to free, and no room.
    allocated(keep | punch, 64 * MIB, 4096).unwrap();
    allocated(keep | punch, 64 * MIB - 4096, 8192).unwrap();
    assert!(allocated(FallocateFlags::ZERO_RANGE, 64 * MIB - 4096, 8192).is_err());
    assert!(allocated(FallocateFlags::empty(), 0, 4096).is_err());
    assert!(allocated(FallocateFlags::COLLAPSE_RANGE, 0, 4096).is_err());
}

#[test]
fn a_disk_that_cannot_be_written_is_a_file_that_cannot() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let shown = Shown::File(std::sync::Arc::new(disk.open(None, OpenMode::ReadOnly).unwrap()));
    let mounted = Mounted::with(shown, |config| Config { mode: 0o640, ..config });
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().mode() & 0o777, 0o440);
    let error = OpenOptions::new().write(true).open(mounted.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    let file = File::open(mounted.path()).unwrap();
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    let punch = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    assert!(fallocate(&file, punch, 0, 512).is_err());
    // One that becomes so while it is open.
    let disk = ram("ram1", MIB);
    let mounted = Mounted::file(&disk);
    let file = rw(&mounted);
    file.write_all_at(b"x", 0).unwrap();
    disk.set_read_only(true);
    assert_eq!(file.write_at(b"y", 0).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().mode() & 0o777, 0o400);
}

#[test]
fn a_new_size_is_seen() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mounted = Mounted::file(&disk);
    let mut file = rw(&mounted);
    disk.set_capacity(Sector::from_bytes_floor(4 * MIB)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4 * MIB);
    assert_eq!(file.seek(SeekFrom::End(0)).unwrap(), 4 * MIB);
    file.write_all_at(b"grown", 3 * MIB).unwrap();
    let mut back = [0; 5];
    file.read_exact_at(&mut back, 3 * MIB).unwrap();
    assert_eq!(&back, b"grown");
    disk.set_capacity(Sector::from_bytes_floor(MIB)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB);
    assert_eq!(file.read_at(&mut back, 3 * MIB).unwrap(), 0);
    assert_eq!(mounted.mount.report().files[0].size, MIB);
}

#[test]
fn the_page_cache_is_used_if_asked() {
    in_own_mounts!();
    let disk = ram("ram0", 4 * MIB);
    let mounted =
        Mounted::with(Shown::File(open(&disk)), |config| Config { cache: Cache::Used, ..config });
    let mut file = rw(&mounted);
    file.write_all(&pattern(100_000)).unwrap();
    let mut back = vec![0; 100_000];
    file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, pattern(100_000));
    // What others write is not seen in what is in the cache, but by who opens the file anew.
    let sectors = blockyard_buf::Segment::from_vec(vec![9; 512]);
    open(&disk).rw_page(0, Sector::ZERO, sectors, true).unwrap();
    assert_eq!(file.read_at(&mut back[..4], 0).unwrap(), 4);
    assert_eq!(back[..4], pattern(4));
    rw(&mounted).read_exact(&mut back[..4]).unwrap();
    assert_eq!(back[..4], [9; 4]);
    disk.set_capacity(Sector::from_bytes_floor(MIB)).unwrap();
    assert_eq!(file.metadata().unwrap().len(), MIB);
}

#[test]
fn what_is_used_is_not_unmounted_and_others_may_unmount() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mut mounted = Mounted::file(&disk);
    let file = rw(&mounted);
    let error = mounted.try_stop().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.remedy().is_some_and(|it| it.contains("umount -l")), "{error}");
    file.write_all_at(b"it is served still", 0).unwrap();
    assert!(!mounted.mount.is_over());
    drop(file);
    peer("umount", &["-l", mounted.path().to_str().unwrap()]);
    mounted.over();
    assert!(mounted.mount.is_over() && mounted.mount.report().is_over);
    mounted.stop();
    assert_eq!(mounted.records(), 0);
}

#[test]
fn who_has_a_file_open_may_use_it_when_the_mount_is_dropped() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mounted = Mounted::file(&disk);
    let path = mounted.path();
    let file = rw(&mounted);
    let Mounted { mount, threads: _threads, place } = mounted;
    drop(mount);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "what was there before");
    file.write_all_at(b"still", 0).unwrap();
    assert_eq!(std::fs::read_dir(place.path().join("records")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_mounted_on_is_told() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let place = tempfile::tempdir().unwrap();
    let (_threads, handles) = blockyard_conformance::QueueThread::start_many(1);
    let start = |path: &std::path::Path, shown| {
        Mount::start(&Config::new(path, place.path().join("records")), shown, &handles)
            .map(drop)
            .unwrap_err()
    };
    let error = start(&place.path().join("nothing"), Shown::File(open(&disk)));
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("touch")), "{error:?}");
    let error = start(place.path(), Shown::File(open(&disk)));
    assert_eq!(error.kind(), Kind::Unsuitable);
    let bad = Shown::Directory(vec![("a/b".into(), open(&disk))]);
    assert_eq!(start(place.path(), bad).kind(), Kind::Unsuitable);
    let twice = Shown::Directory(vec![("a".into(), open(&disk)), ("a".into(), open(&disk))]);
    assert_eq!(start(place.path(), twice).kind(), Kind::Busy);
}

/// A Python program that does something with the file by a map of it, `m` of `f`, which is the file at `path`.
fn mapping(mounted: &Mounted, what: &str) -> Command {
    let program = format!(
        "import mmap, os, sys\npath = sys.argv[1]\nf = os.open(path, os.O_RDWR)\nm = mmap.mmap(f, 65536)\n{what}"
    );
    let mut command = Command::new("python3");
    command.args(["-c", &program]).arg(mounted.path());
    command
}

/// The first bytes of the second page, past the file.
fn on_disk(disk: &std::sync::Arc<blockyard_blkmq::Disk>) -> [u8; 5] {
    let page = blockyard_buf::Segment::from_vec(vec![0; 512]);
    open(disk).rw_page(0, Sector(8), page.clone(), false).unwrap();
    let mut bytes = [0; 5];
    page.slice(0, 5).copy_to(&mut bytes);
    bytes
}

#[test]
fn who_opens_with_o_trunc_takes_nothing_from_others() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mounted = Mounted::file(&disk);
    let truncating = "m[4096:4101] = b'dirty'\n\
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))\n\
        assert os.fstat(f).st_size == 1 << 20\n\
        m.flush()";
    assert!(mapping(&mounted, truncating).status().unwrap().success());
    assert_eq!(&on_disk(&disk), b"dirty");
    // By its path, as open(2) does it; by a descriptor, it is somebody's who wants it empty.
    assert!(mapping(&mounted, "os.truncate(path, 0)").status().unwrap().success());
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().len(), MIB);
    assert_eq!(rw(&mounted).set_len(0).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_was_written_by_a_map_is_on_the_disk_when_the_file_is_closed() {
    in_own_mounts!();
    for cache in [Cache::Bypassed, Cache::Used] {
        let disk = ram("ram0", MIB);
        let mounted = Mounted::with(Shown::File(open(&disk)), |config| Config { cache, ..config });
        let closing =
            "m[4096:4101] = b'dirty'\nos.close(f)\nprint('closed', flush=True)\nsys.stdin.read()";
        let mut command = mapping(&mounted, closing);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = [0; 7];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        // The map is still there, but whoever closes a file has its data written.
        let written = on_disk(&disk);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(&written, b"dirty");
    }
}

/// Who has unmounted it lazily has left a session that nobody can reach by a path, and that does not end by itself.
#[test]
fn a_server_that_stops_waits_for_nobody_for_ever() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mut mounted = Mounted::file(&disk);
    let file = rw(&mounted);
    peer("umount", &["-l", mounted.path().to_str().unwrap()]);
    file.write_all_at(b"still", 0).unwrap();
    mounted.try_stop().unwrap();
    assert!(mounted.mount.is_over());
    assert!(file.read_at(&mut [0; 5], 0).is_err());
    assert_eq!(mounted.records(), 0);
}

#[test]
fn nothing_is_shown_where_something_of_ours_is_shown_already() {
    in_own_mounts!();
    let (one, two) = (ram("ram0", MIB), ram("ram1", 2 * MIB));
    let mut mounted = Mounted::file(&one);
    let config = Config::new(mounted.path(), mounted.dir().join("records"));
    let (_threads, handles) = blockyard_conformance::QueueThread::start_many(1);
    let error = Mount::start(&config, Shown::File(open(&two)), &handles).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert_eq!(std::fs::metadata(mounted.path()).unwrap().len(), MIB);
    assert_eq!(mounted.records(), 1);
    mounted.stop();
}

/// A mount moves along when a directory above it is renamed, and stays below what others mount upon it.
#[test]
fn a_mount_is_taken_away_where_it_is_and_not_what_covers_it() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let place = tempfile::tempdir().unwrap();
    let (before, after) = (place.path().join("before"), place.path().join("after"));
    std::fs::create_dir(&before).unwrap();
    File::create(before.join("disk")).unwrap();
    let (threads, handles) = blockyard_conformance::QueueThread::start_many(THREADS);
    let config = Config::new(before.join("disk"), place.path().join("records"));
    let mount = Mount::start(&config, Shown::File(open(&disk)), &handles).unwrap();
    let mut mounted = Mounted { mount, threads, place };
    std::fs::rename(&before, &after).unwrap();
    let moved = after.join("disk");
    let (covering, moved) = (mounted.dir().join("covering"), moved.to_str().unwrap());
    std::fs::write(&covering, "covering").unwrap();
    peer("mount", &["--bind", covering.to_str().unwrap(), moved]);
    let uncover = Cleanup::with(&["umount", moved]);
    let error = mounted.try_stop().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert_eq!(std::fs::read_to_string(moved).unwrap(), "covering");
    uncover.now();
    mounted.stop();
    assert_eq!(std::fs::metadata(moved).unwrap().len(), 0, "what was there before");
    assert_eq!(mounted.records(), 0);
}

/// As a daemon does that was told to end it: it says what is left, and whoever has the file open gets errors.
#[test]
fn an_end_serves_nobody_any_more_also_where_it_cannot_be_unmounted() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mut mounted = Mounted::file(&disk);
    let (path, covering) = (mounted.path(), mounted.dir().join("covering"));
    let used = File::options().read(true).write(true).open(&path).unwrap();
    used.write_all_at(b"before", 0).unwrap();
    std::fs::write(&covering, "covering").unwrap();
    peer("mount", &["--bind", covering.to_str().unwrap(), path.to_str().unwrap()]);
    let uncover = Cleanup::with(&["umount", path.to_str().unwrap()]);
    let error = mounted.mount.end(Duration::from_secs(1), Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.to_string().contains("covered by another mount"), "{error}");
    assert!(mounted.mount.is_over());
    used.write_at(b"after", 0).unwrap_err();
    uncover.now();
    mounted.stop();
    assert_eq!(std::fs::metadata(path).unwrap().len(), 0, "what was there before");
    assert_eq!(mounted.records(), 0);
}
