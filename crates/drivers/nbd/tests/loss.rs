//! Real servers that die, hang, move and shrink.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Extent, Flags, Op, Sector, Status};
use blockyard_buf::{FileRange, Segment};
use blockyard_driver_nbd::{Backoff, ErrorKind, NbdConfig};
use blockyard_sys::page_cache;
use common::{Attached, PATIENCE, Place, attach, nbdkit, pattern, unix, until, write};

const MIB: u64 = 1 << 20;

fn patient(config: NbdConfig) -> NbdConfig {
    NbdConfig {
        timeout: Duration::from_millis(300),
        dead_conn_timeout: PATIENCE,
        backoff: Backoff { first: Duration::from_millis(5), most: Duration::from_millis(50) },
        ..config
    }
}

/// A write of a version of a block: of every other one from memory, else from a file.
fn write_version(at: u64, version: u64, file: &std::fs::File) -> Box<Bio> {
    let bytes = pattern(at, version, 8192);
    if (at / 65536).is_multiple_of(2) {
        return write(at, &bytes);
    }
    file.write_all_at(&bytes, at).unwrap();
    let file = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
    Bio::write_range(at, FileRange::new(&file, at, 8192))
}

/// Writes versions of blocks and reads them back, each block by one thread, until told to stop; says how many.
fn verify_under_load(disk: &Attached, threads: usize, stop: &AtomicBool, done: &AtomicU64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let (mut version, file) = (0, tempfile::tempfile().unwrap());
                while !stop.load(Ordering::Relaxed) {
                    version += 1;
                    let offsets = [0, 1, 2, 3].map(|i| (thread as u64 * 4 + i) * 65536);
                    let ends =
                        offsets.map(|at| disk.submit(thread, write_version(at, version, &file)));
                    for end in ends {
                        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
                    }
                    let read = |at: u64| Bio::new(Op::Read, Sector(at / 512), 8192);
                    let ends = offsets.map(|at| (at, disk.submit(thread, read(at))));
                    for (at, end) in ends {
                        let bio = end.recv_timeout(PATIENCE).unwrap();
                        assert_eq!(bio.status(), Status::Ok);
                        let got: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
                        assert!(got == pattern(at, version, 8192), "version {version} at {at}");
                    }
                    done.fetch_add(8, Ordering::Relaxed);
                }
            });
        }
    });
}

#[test]
fn a_server_that_is_killed_and_started_again_loses_nothing() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    let start = || nbdkit(&socket, &["file", &file]);
    let mut server = start();
    let disk = attach(patient(NbdConfig { connections: Some(2), ..unix(&socket) }), 2);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| verify_under_load(&disk, 4, &stop, &done));
        for _ in 0..5 {
            let before = done.load(Ordering::Relaxed);
            until("the load goes on", || done.load(Ordering::Relaxed) > before + 100);
            server.kill();
            server = start();
        }
        let before = done.load(Ordering::Relaxed);
        until("the load goes on", || done.load(Ordering::Relaxed) > before + 100);
        stop.store(true, Ordering::Relaxed);
    });
}

/// The server has to get all of what was begun: zeroes, and the write fails.
#[test]
fn a_write_of_a_file_that_became_shorter_fails_and_the_disk_goes_on() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "16M"]);
    let disk = attach(patient(unix(&socket)), 1);
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&pattern(0, 1, 100_000), 0).unwrap();
    let file = Arc::new(OwnedFd::from(file));
    let whole = Bio::write_range(MIB, FileRange::new(&file, 0, 65536));
    assert_eq!(disk.run(whole).status(), Status::Ok);
    let longer = Bio::write_range(MIB, FileRange::new(&file, 0, MIB));
    assert_eq!(disk.run(longer).status(), Status::Io);
    assert_eq!(disk.read(MIB, 65536).unwrap(), pattern(0, 1, 65536));
    assert_eq!(disk.read(2 * MIB - 4096, 4096).unwrap(), [0; 4096]);
}

/// As much as no socket takes at once, from a file that is not in the page cache any more when it is sent again.
#[test]
fn a_long_range_that_is_cut_off_midway_is_sent_again() {
    const LEN: u64 = 4 * MIB;
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    let mut server = nbdkit(&socket, &["file", &file]);
    let config = NbdConfig { timeout: PATIENCE, connections: Some(1), ..patient(unix(&socket)) };
    let disk = attach(config, 1);
    let mut options = std::fs::File::options();
    let source = options.read(true).write(true).open(place.file("source", LEN)).unwrap();
    let bytes = pattern(0, 1, usize::try_from(LEN).unwrap());
    source.write_all_at(&bytes, 0).unwrap();
    source.sync_all().unwrap();
    let range = FileRange::new(&Arc::new(source.try_clone().unwrap().into()), 0, LEN);
    for (at, is_cached) in [(MIB, true), (8 * MIB, false)] {
        assert_eq!(disk.write(0, &[1; 512]), Status::Ok);
        server.freeze(true);
        let write = disk.submit(0, Bio::write_range(at, range.clone()));
        until("it is with the driver", || disk.disk.in_flight().len() == 1);
        assert!(write.try_recv().is_err(), "a socket does not take all of it");
        if !is_cached {
            rustix::fs::fadvise(&source, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            assert!(
                !page_cache::has(source.as_fd(), 0, LEN),
                "what the socket has not taken is gone"
            );
        }
        server.kill();
        server = nbdkit(&socket, &["file", &file]);
        assert_eq!(write.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
        assert!(disk.read(at, LEN).unwrap() == bytes, "cached: {is_cached}");
    }
}

/// Whatever its error is called: some are also a socket's.
#[test]
fn a_source_that_cannot_be_read_fails_its_write_and_no_connection_is_lost() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "16M"]);
    let disk = attach(patient(unix(&socket)), 1);
    assert_eq!(disk.write(0, &pattern(0, 1, 4096)), Status::Ok);
    let source = place.file("source", MIB);
    let file = Arc::new(OwnedFd::from(std::fs::File::options().write(true).open(source).unwrap()));
    let unreadable = Bio::write_range(MIB, FileRange::new(&file, 0, MIB));
    assert_eq!(disk.run(unreadable).status(), Status::Io);
    assert_eq!(
        disk.run(Bio::flush()).status(),
        Status::Ok,
        "the connection that it was on is there"
    );
    assert_eq!(disk.read(0, 4096).unwrap(), pattern(0, 1, 4096));
}

#[test]
fn with_no_server_requests_wait_and_then_fail() {
    let place = Place::new();
    let socket = place.path("s");
    let mut server = nbdkit(&socket, &["memory", "16M"]);
    let config =
        NbdConfig { dead_conn_timeout: Duration::from_millis(300), ..patient(unix(&socket)) };
    let disk = attach(config, 1);
    assert_eq!(disk.write(0, &[1; 512]), Status::Ok);
    server.kill();
    assert_eq!(disk.read(0, 512).unwrap_err(), Status::Transport);
    assert_eq!(disk.write(0, &[1; 512]), Status::Transport);
    drop(server);
    let _server = nbdkit(&socket, &["memory", "16M"]);
    until("the disk works again", || disk.read(0, 512) == Ok(vec![0; 512]));
}

#[test]
fn a_server_that_hangs_is_told_from_one_that_is_slow() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    let slow = nbdkit(&socket, &["--filter=delay", "file", &file, "delay-read=2", "--threads=16"]);
    let disk = attach(patient(unix(&socket)), 1);
    // The write's reply shows that the server lives, so that the read is waited for.
    let read = disk.submit(0, Bio::new(Op::Read, Sector(0), 512));
    let start = Instant::now();
    while read
        .try_recv()
        .map_err(|err| assert_eq!(err, std::sync::mpsc::TryRecvError::Empty))
        .is_err()
    {
        assert_eq!(disk.write(4096, &pattern(4096, 1, 4096)), Status::Ok);
        assert!(start.elapsed() < PATIENCE);
    }
    // Nothing comes: the connection is given up, and what was out is done by the next server.
    slow.freeze(true);
    let read = disk.submit(0, Bio::new(Op::Read, Sector(8), 4096));
    let _quick = nbdkit(&socket, &["file", &file]);
    let bio = read.recv_timeout(PATIENCE).unwrap();
    assert_eq!(bio.status(), Status::Ok);
    let got: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
    assert!(got == pattern(4096, 1, 4096));
}

#[test]
fn a_write_that_a_hung_server_has_is_not_overtaken() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    let mut old = nbdkit(&socket, &["file", &file]);
    let disk = attach(patient(unix(&socket)), 1);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    old.freeze(true);
    let first = disk.submit(0, write(0, &pattern(0, 1, 4096)));
    let _new = nbdkit(&socket, &["file", &file]);
    // The old connection is given up, and elsewhere the disk works by the new server.
    assert_eq!(disk.read(MIB, 512).unwrap(), [0; 512]);
    assert_eq!(disk.write(MIB, &pattern(MIB, 1, 4096)), Status::Ok);
    let second = disk.submit(0, write(0, &pattern(0, 2, 4096)));
    assert_eq!(disk.write(MIB, &pattern(MIB, 2, 4096)), Status::Ok);
    assert!(
        first.try_recv().is_err() && second.try_recv().is_err(),
        "both wait for the old server"
    );
    // It goes on, writes, and answers: then both may end.
    old.freeze(false);
    assert_eq!(first.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    assert_eq!(second.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    // Whatever their order was, since neither had ended: what is written now stays.
    assert_eq!(disk.write(0, &pattern(0, 3, 4096)), Status::Ok);
    old.kill();
    assert!(disk.read(0, 4096).unwrap() == pattern(0, 3, 4096));
}

#[test]
fn what_a_process_sent_before_it_died_undoes_nothing_that_the_next_one_writes() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    let mut server = nbdkit(&socket, &["file", &file]);
    // Its connection stays as it is, as one does whose end the server has not seen.
    let dead = attach(NbdConfig { timeout: PATIENCE, ..unix(&socket) }, 1);
    assert_eq!(dead.read(0, 512).unwrap(), [0; 512]);
    server.freeze(true);
    let sent = dead.submit(0, write(0, &pattern(0, 1, 4096)));
    until("it is with the driver", || dead.disk.in_flight().len() == 1);
    let _new = nbdkit(&socket, &["file", &file]);
    // Writes wait for the fence however short their own patience is.
    let fence_timeout = Duration::from_secs(3);
    let config = NbdConfig {
        fence_timeout,
        dead_conn_timeout: Duration::from_secs(1),
        ..patient(unix(&socket))
    };
    let next = attach(config, 1);
    let held_since = Instant::now();
    next.nbd.hold_writes();
    let again = next.submit(0, write(0, &pattern(0, 1, 4096)));
    let newer = next.submit(0, write(0, &pattern(0, 2, 4096)));
    assert_eq!(next.read(0, 4096).unwrap(), vec![0; 4096], "reads go on");
    server.freeze(false);
    assert_eq!(sent.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
    for held in [again, newer] {
        assert_eq!(held.recv_timeout(PATIENCE).unwrap().status(), Status::Ok);
        // However long all before that has taken.
        assert!(held_since.elapsed() >= fence_timeout, "held back");
    }
    assert_eq!(next.write(0, &pattern(0, 3, 4096)), Status::Ok, "the fence has fallen");
    assert!(next.read(0, 4096).unwrap() == pattern(0, 3, 4096));
    server.kill();
}

#[test]
fn a_disk_moves_to_another_server_under_load() {
    let place = Place::new();
    let file = format!("file={}", place.file("disk", 16 * MIB).display());
    let sockets = [place.path("a"), place.path("b")];
    let _servers = [nbdkit(&sockets[0], &["file", &file]), nbdkit(&sockets[1], &["file", &file])];
    let disk = attach(patient(NbdConfig { connections: Some(2), ..unix(&sockets[0]) }), 2);
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| verify_under_load(&disk, 2, &stop, &done));
        for i in 1..6 {
            let before = done.load(Ordering::Relaxed);
            until("the load goes on", || done.load(Ordering::Relaxed) > before + 100);
            disk.block_on(disk.nbd.reconfigure(unix(&sockets[i % 2]).uri)).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let nowhere = disk.block_on(disk.nbd.reconfigure(unix(&place.path("none")).uri)).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::Connect);
    assert_eq!(disk.write(0, &[1; 512]), Status::Ok, "nothing has changed");
}

#[test]
fn an_export_may_grow_but_not_shrink() {
    let place = Place::new();
    let sockets = [place.path("a"), place.path("b"), place.path("c")];
    let _servers = [
        nbdkit(&sockets[0], &["memory", "16M"]),
        nbdkit(&sockets[1], &["memory", "8M"]),
        nbdkit(&sockets[2], &["memory", "32M"]),
    ];
    let disk = attach(patient(unix(&sockets[0])), 1);
    let watch = disk.nbd.watch();
    let err = disk.block_on(disk.nbd.reconfigure(unix(&sockets[1]).uri)).unwrap_err();
    assert_eq!(err.kind(), ErrorKind::Changed);
    assert!(err.chain().contains("shrank from 16777216 to 8388608 bytes"), "{}", err.chain());
    assert_eq!(disk.write(0, &[1; 512]), Status::Ok);
    disk.block_on(disk.nbd.reconfigure(unix(&sockets[2]).uri)).unwrap();
    let capacity = Sector(32 * MIB / 512);
    until("all connections know of the new size", || watch.borrow().capacity == capacity);
    disk.disk.set_capacity(capacity).unwrap();
    assert_eq!(disk.write(31 * MIB, &[1; 512]), Status::Ok);
}

#[test]
fn disconnect_drains_and_clear_queue_fails_what_is_left() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["--filter=delay", "memory", "16M", "delay-write=300ms"]);
    let disk = attach(NbdConfig { timeout: PATIENCE, ..unix(&socket) }, 1);
    let ends: Vec<_> = (0..8).map(|i| disk.submit(0, write(i * 65536, &[1; 4096]))).collect();
    until("all are with the driver", || disk.disk.in_flight().len() == ends.len());
    disk.block_on(disk.nbd.disconnect());
    for end in ends {
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Ok, "it was out");
    }
    assert_eq!(disk.read(0, 512).unwrap_err(), Status::Offline);

    let server = nbdkit(&place.path("t"), &["memory", "16M"]);
    let disk = attach(NbdConfig { timeout: PATIENCE, ..unix(&place.path("t")) }, 1);
    server.freeze(true);
    let ends: Vec<_> = (0..8).map(|i| disk.submit(0, write(i * 65536, &[1; 4096]))).collect();
    until("all are with the driver", || disk.disk.in_flight().len() == ends.len());
    disk.nbd.clear_queue();
    for end in ends {
        assert_eq!(end.recv_timeout(PATIENCE).unwrap().status(), Status::Io);
    }
    server.freeze(false);
    assert_eq!(disk.write(0, &[2; 4096]), Status::Ok, "after the late replies");
}

#[test]
fn a_flush_after_a_restart_tells_of_writes_that_may_be_lost() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    let file = format!("file={}", file.display());
    for (trust_server, after) in [(false, Status::Io), (true, Status::Ok)] {
        let mut server = nbdkit(&socket, &["file", &file]);
        let disk = attach(NbdConfig { trust_server, ..patient(unix(&socket)) }, 1);
        let flush = || disk.run(Bio::flush()).status();
        // What was flushed, or is durable by itself, is safe.
        assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
        assert_eq!(flush(), Status::Ok);
        let durable = write(MIB, &[1; 4096]).with_flags(Flags::FUA);
        assert_eq!(disk.run(durable).status(), Status::Ok);
        server.kill();
        server = nbdkit(&socket, &["file", &file]);
        assert_eq!(flush(), Status::Ok, "trusted: {trust_server}");
        // What was only written is not.
        assert_eq!(disk.write(0, &[2; 4096]), Status::Ok);
        server.kill();
        server = nbdkit(&socket, &["file", &file]);
        assert_eq!(disk.read(0, 512).unwrap(), [2; 512]);
        for _ in 0..2 {
            assert_eq!(flush(), after, "trusted: {trust_server}; once and for all");
        }
        assert_eq!(disk.write(0, &[3; 4096]), Status::Ok);
        drop(server);
    }
}

#[test]
fn a_flush_that_failed_is_not_made_good_by_the_next_one() {
    let place = Place::new();
    let (socket, trigger) = (place.path("s"), place.path("fail"));
    // It fails flushes while a file is there.
    let script = format!("if [ -e {} ]; then echo EIO broken >&2; exit 1; fi", trigger.display());
    let flush = format!("flush={script}");
    let _server = nbdkit(
        &socket,
        &[
            "eval",
            "get_size=echo 1048576",
            "pread=head -c $3 /dev/zero",
            "pwrite=cat >/dev/null",
            "can_write=exit 0",
            "can_flush=exit 0",
            &flush,
        ],
    );
    let disk = attach(patient(unix(&socket)), 1);
    assert_eq!(disk.write(0, &[1; 4096]), Status::Ok);
    std::fs::write(&trigger, "").unwrap();
    assert_ne!(disk.run(Bio::flush()).status(), Status::Ok);
    std::fs::remove_file(&trigger).unwrap();
    assert_eq!(disk.run(Bio::flush()).status(), Status::Io, "what was lost before is lost");
    assert_eq!(disk.write(0, &[2; 4096]), Status::Ok);
}

#[test]
fn extents_that_end_inside_a_sector_are_told_in_whole_ones() {
    let place = Place::new();
    let socket = place.path("s");
    let extents = "extents=echo 0 700 hole,zero; echo 700 100000; echo 100700 947876 hole,zero";
    let zeroes = ["eval", "get_size=echo 1M", "pread=head -c $3 /dev/zero", extents];
    let _server = nbdkit(&socket, &zeroes);
    let disk = attach(patient(unix(&socket)), 1);
    let bio = disk.run(Bio::new(Op::BlockStatus, Sector(0), 1 << 20));
    assert_eq!(bio.status(), Status::Ok);
    let expected = [Extent::hole(512), Extent::data(100_352), Extent::hole(947_712)];
    assert_eq!(bio.extents, expected, "a block that is data in part is data");
}
