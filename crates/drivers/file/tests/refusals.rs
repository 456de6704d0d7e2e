//! What cannot be a disk is refused with what, where, and what to do.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use blockyard_blkmq::{Features, Flags, Op, Sector, Status};
use blockyard_conformance::QueueThread;
use blockyard_driver_file::{Engine, ErrorKind, FileConfig};
use common::qemu::Qemu;
use common::{Loop, Place, open, run};

fn refused(config: &FileConfig, kind: ErrorKind, said: &[&str]) {
    let Err(err) = open(config) else { panic!("{config:?} was opened") };
    let path = config.path.to_str().unwrap();
    assert_eq!(err.kind(), kind, "{err}");
    let all = format!("{err}; {}", err.remedy().unwrap_or_default());
    for said in said.iter().chain([&path]) {
        assert!(all.contains(said), "{err:?} does not say {said:?}");
    }
}

#[test]
fn files_that_are_not_there_or_no_files() {
    let place = Place::here();
    let missing = FileConfig::new(place.path().join("missing"));
    refused(&missing, ErrorKind::NotFound, &["does not exist", "truncate -s 1G"]);
    // Ready to be pasted into a shell.
    let odd = place.path().join("it's a disk.img");
    let paste = format!("truncate -s 1G \"{}\";", odd.display());
    refused(&FileConfig::new(&odd), ErrorKind::NotFound, &[&paste]);
    refused(&FileConfig::new(place.path()), ErrorKind::NotAFile, &["a directory"]);
    refused(&FileConfig::new("/dev/zero"), ErrorKind::NotAFile, &["a character device"]);
    let pipe = place.path().join("pipe");
    run(&format!("mkfifo {}", pipe.display()));
    refused(&FileConfig::new(&pipe), ErrorKind::NotAFile, &["a pipe"]);
    let no_folder =
        FileConfig { create_size: Some(512), ..FileConfig::new(place.path().join("a/b")) };
    refused(&no_folder, ErrorKind::NotFound, &["its directory does not exist"]);
    let thread = QueueThread::start();
    drop(thread);
    let without = blockyard_driver_file::File::open(&missing, &[]);
    assert_eq!(without.err().unwrap().kind(), ErrorKind::Invalid);
}

#[test]
fn sizes_that_are_no_disks() {
    let place = Place::here();
    let made = place.path().join("made");
    let config = FileConfig { create_size: Some(u64::MAX), ..FileConfig::new(&made) };
    refused(&config, ErrorKind::Size, &["too large"]);
    assert!(!made.exists());
    let config = FileConfig { create_size: Some(8192), ..config };
    assert_eq!(open(&config).unwrap().info.capacity.bytes(), 8192);
    assert_eq!(open(&config).unwrap().info.capacity.bytes(), 8192, "it is there, with that size");
    let other = FileConfig { create_size: Some(4096), ..config.clone() };
    let there = open(&other).unwrap().info.capacity.bytes();
    assert_eq!(there, 8192, "a size to make it with, not one to insist on");
    let path = place.path().join("huge");
    let size = (1 << 63) - 512;
    if open(&FileConfig { create_size: Some(size), ..FileConfig::new(&path) }).is_err() {
        assert!(!path.exists(), "what could not be made is left behind");
    }
    let read_only = FileConfig { read_only: true, path: place.path().join("new"), ..config };
    refused(&read_only, ErrorKind::Invalid, &["read-only"]);
}

#[test]
fn a_mounted_device_and_a_part_of_a_block_for_direct_io_on_large_blocks() {
    let place = Place::here();
    let backing = place.file("backing", 64 << 20);
    let device = Loop::on(&backing, "-b 4096");
    run(&format!("mkfs.ext4 -q -F {}", device.0.display()));
    let folder = Place::on_device(&device.0);
    refused(&FileConfig::new(&device.0), ErrorKind::Locked, &["in use, perhaps mounted", "lsblk"]);
    let odd = folder.file("odd", 4096 + 512);
    assert_eq!(open(&FileConfig::new(&odd)).unwrap().info.limits.logical_block_size.bytes(), 512);
    let direct = FileConfig { direct: true, ..FileConfig::new(&odd) };
    let disk = open(&direct).unwrap();
    assert_eq!((disk.info.limits.logical_block_size.bytes(), disk.info.size), (4096, 4608));
    assert_eq!(disk.write(4096, vec![1; 4096]), Status::Ok);
    assert_eq!(disk.read(4096, 4096), [[1; 512].as_slice(), &[0; 3584]].concat());
    assert_eq!(std::fs::metadata(&odd).unwrap().len(), 4608);
}

#[test]
fn two_writers_or_a_writer_and_a_reader() {
    let place = Place::here();
    let writer = FileConfig::new(place.file("disk", 4096));
    let reader = FileConfig { read_only: true, ..writer.clone() };
    let careless = FileConfig { lock: false, ..writer.clone() };
    let first = open(&writer).unwrap();
    refused(&writer, ErrorKind::Locked, &["by a writer", "fuser -v"]);
    refused(&reader, ErrorKind::Locked, &["by a writer"]);
    drop(open(&careless).unwrap());
    refused(&writer, ErrorKind::Locked, &["by a writer"]);
    drop(first);
    let readers = [open(&reader).unwrap(), open(&reader).unwrap()];
    refused(&writer, ErrorKind::Locked, &["by a reader", "read-only, or stop"]);
    drop(readers);
    drop(open(&writer).unwrap());
}

#[test]
fn a_file_that_cannot_be_made_leaves_nothing_behind() {
    let place = Place::on_loop("ext4");
    let path = place.path().join("disk");
    // ext4's files are smaller than this.
    let config = FileConfig { create_size: Some(1 << 50), ..FileConfig::new(&path) };
    refused(&config, ErrorKind::Io, &["cannot create"]);
    assert!(!path.exists(), "what could not be made");
    let fs = Place::tmpfs("1m");
    let path = fs.path().join("disk");
    let config = FileConfig { create_size: Some(1 << 20), ..FileConfig::new(&path) };
    assert!(blockyard_driver_file::File::open(&config, &[]).is_err());
    assert!(!path.exists(), "what could not be opened");
    drop(open(&config).unwrap());
    assert!(path.exists());
}

#[test]
fn what_qemu_writes_is_not_read_and_what_it_reads_is_not_written() {
    let place = Place::here();
    let writer = FileConfig::new(place.file("disk", 1 << 20));
    let reader = FileConfig { read_only: true, ..writer.clone() };
    let qemu = Qemu::on(&place, &writer.path, &[]);
    refused(&reader, ErrorKind::Locked, &["by QEMU, which writes", "torn", "lock=0"]);
    refused(&writer, ErrorKind::Locked, &["by QEMU, as a writer"]);
    drop(open(&FileConfig { lock: false, ..reader.clone() }).unwrap());
    drop(qemu);
    let qemu = Qemu::on(&place, &writer.path, &["--read-only"]);
    refused(&writer, ErrorKind::Locked, &["by QEMU, as a reader", "read-only, or stop"]);
    let first = open(&reader).unwrap();
    drop(qemu);
    let path = writer.path.display();
    run(&format!("qemu-io -r -f raw -c 'read 0 4096' {path}"));
    run(&format!("! qemu-io -f raw -c 'read 0 4096' {path} 2>/dev/null"));
    drop(first);
    let _ours = open(&writer).unwrap();
    run(&format!("! qemu-io -r -f raw -c 'read 0 4096' {path} 2>/dev/null"));
}

#[test]
fn what_is_read_only() {
    let place = Place::read_only("disk", 65536);
    let config = FileConfig::new(place.path().join("disk"));
    refused(&config, ErrorKind::NotPermitted, &["read-only file system"]);
    let disk = open(&FileConfig { read_only: true, ..config }).unwrap();
    assert_eq!(disk.read(0, 4096), vec![0; 4096]);
    assert_eq!(disk.write(0, vec![1; 512]), Status::NotPermitted);
    assert!(!disk.info.limits.features.contains(Features::WRITE_CACHE));
    assert_eq!(disk.range(Op::Discard, 0, 4096, Flags::empty()).status(), Status::NotPermitted);
    drop(disk);

    let here = Place::here();
    let device = Loop::on(&here.file("backing", 1 << 20), "-r");
    refused(&FileConfig::new(&device.0), ErrorKind::NotPermitted, &["read-only"]);
    drop(open(&FileConfig { read_only: true, ..FileConfig::new(&device.0) }).unwrap());
}

#[test]
fn direct_io_where_the_file_system_has_none() {
    // Attributes of sysfs look like regular files of 4096 bytes.
    let config = FileConfig {
        direct: true,
        read_only: true,
        ..FileConfig::new("/sys/kernel/uevent_seqnum")
    };
    refused(&config, ErrorKind::NotSupported, &["direct I/O", "omit direct=1"]);
}

#[test]
fn io_uring_where_it_is_there_is_what_auto_takes() {
    let place = Place::here();
    let config = FileConfig::new(place.file("disk", 4096));
    let auto = open(&config).unwrap().info.engine;
    let uring = FileConfig { engine: Engine::Uring, ..config };
    assert_eq!(auto, open(&uring).unwrap().info.engine);
}

#[test]
fn a_disk_grows_with_its_file_and_never_cuts_it() {
    let place = Place::here();
    let path = place.file("disk", 1 << 20);
    let len = || std::fs::metadata(&path).unwrap().len();
    let disk = open(&FileConfig::new(&path)).unwrap();
    disk.disk.resize(Sector((2 << 20) / 512)).unwrap();
    assert_eq!((len(), disk.disk.capacity().bytes()), (2 << 20, 2 << 20));
    disk.disk.resize(Sector((1 << 20) / 512)).unwrap();
    assert_eq!(
        (len(), disk.disk.capacity().bytes()),
        (2 << 20, 1 << 20),
        "what is past the end stays"
    );
    drop(disk);
    let disk = open(&FileConfig { read_only: true, ..FileConfig::new(&path) }).unwrap();
    let err = disk.disk.resize(Sector((4 << 20) / 512)).unwrap_err().to_string();
    assert!(err.contains("disk has 2097152 bytes, and the disk is read-only"), "{err}");
    assert_eq!(len(), 2 << 20);
    drop(disk);
    let device = Loop::on(&path, "");
    let disk = open(&FileConfig::new(&device.0)).unwrap();
    let err = disk.disk.resize(Sector((4 << 20) / 512)).unwrap_err().to_string();
    assert!(err.contains("a block device is resized by the tool that created it"), "{err}");
}

#[test]
fn of_two_that_make_a_file_at_once_neither_takes_it_from_the_other() {
    let place = Place::here();
    for round in 0..50 {
        let path = place.path().join(format!("disk{round}"));
        let config = FileConfig { create_size: Some(1 << 20), ..FileConfig::new(&path) };
        let both = std::sync::Barrier::new(2);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let start = || {
                both.wait();
                open(&config)
            };
            let threads = [scope.spawn(start), scope.spawn(start)];
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        if opened.iter().any(Result::is_ok) {
            assert!(path.exists(), "round {round}: a disk lost its file");
        }
    }
}
