//! Copies that meet what they must not overwrite, what loses what was written, and what does not answer any more.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use blockyard_conformance::{LoopDevice, in_own_mounts};
use common::{Guard, Said, blockyard, fuse_in, nbdkit, noise, peer, unix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
/// How long a signal may take, on a machine that is busy with something else.
const SOON: Duration = Duration::from_secs(10);

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn run(&self, args: &[&str]) -> Said {
        self.run_in(".", args)
    }

    fn run_in(&self, folder: &str, args: &[&str]) -> Said {
        let mut command = blockyard(&self.path("run"));
        Said::of(&command.current_dir(self.path(folder)).args(args).output().unwrap())
    }

    fn start(&self, args: &[&str]) -> Guard {
        let mut command = blockyard(&self.path("run"));
        command.current_dir(self.0.path()).args(args).stdout(Stdio::null());
        Guard(command.stderr(Stdio::piped()).spawn().unwrap())
    }
}

#[test]
fn a_journal_overwrites_nothing_but_a_journal() {
    let place = Place::new();
    let (a, b) = (noise(MIB, 1), noise(MIB, 2));
    place.write("a", &a);
    place.write("b", &b);
    place.write("s.new", &a);
    place.write("k.new", b"mine");
    place.write("k2", b"mine");
    std::os::unix::fs::symlink("b", place.path("link")).unwrap();
    fs::hard_link(place.path("a"), place.path("hard")).unwrap();
    peer("mkfifo", &[place.path("pipe")]);
    let copy = |source: &str, target: &str, journal: &str| {
        place.run(&["copy", source, target, "--resume", journal])
    };
    for (source, target, journal) in [
        ("./a", "./b", "./b"),
        ("./a", "./b", "a"),
        ("./a", "./b", "link"),
        ("./a", "./b", "hard"),
        ("./a", "./c", "c"),
        ("./s.new", "./c", "./s"),
        ("./a", "./s.new", "./s"),
    ] {
        copy(source, target, journal).code(64).contains(&["would be overwritten"]);
    }
    copy("./a", "./c", "k").code(1).contains(&["k.new", "in the way"]);
    copy("./a", "./c", "k2").code(1).contains(&["is not the journal of a copy"]);
    // No more of a file is read than a journal may have, however it begins.
    let long = fs::File::create(place.path("long")).unwrap();
    (&long).write_all(b"blockyard copy journal 3\n").unwrap();
    long.set_len(17 << 20).unwrap();
    copy("./a", "./c", "long").code(1).contains(&["file too large"]);
    for journal in ["/dev/zero", "pipe", "."] {
        copy("./a", "./c", journal).code(1).contains(&["not a regular file"]);
    }
    copy("./a", "./c", "none/j").code(1).contains(&["cannot be the journal"]);
    copy("ram:1M", "./c", "j").code(64).contains(&["in memory"]);
    for (name, bytes) in [("a", &a), ("hard", &a), ("s.new", &a), ("b", &b), ("link", &b)] {
        assert!(&place.read(name) == bytes, "{name} has changed");
    }
    assert_eq!((&place.read("k.new")[..], &place.read("k2")[..]), (&b"mine"[..], &b"mine"[..]));
    assert!(!place.path("c").exists() && !place.path("s").exists());
    // What a run that was killed has left of its journal is taken away.
    place.write("j.new", b"blockyard copy journal 2\nsource fi");
    copy("./a", "./c", "j").code(0);
    assert!(place.read("c") == a && !place.path("j").exists() && !place.path("j.new").exists());
}

/// A server that reads so slowly that a copy from it can be stopped midway: half a second for each request.
fn slow(socket: &Path, source: &Path, len: usize) -> Guard {
    let size = format!("get_size=echo {len}");
    let dd = "iflag=skip_bytes,count_bytes bs=1M status=none";
    let began = source.with_file_name("began");
    // Past the partition tables, which lie at both ends.
    let read = format!(
        "pread=[ $4 -lt 1048576 ] || [ $4 -ge 33554432 ] || touch {}; sleep 0.5; dd if={} skip=$4 count=$3 {dd}",
        began.display(),
        source.display()
    );
    nbdkit(socket, &["eval", "thread_model=echo parallel", &size, &read])
}

/// A folder on XFS, which shares blocks, until the mounts of the test are gone.
fn xfs(place: &Place) -> LoopDevice {
    let image = place.path("image");
    fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
    fs::create_dir(place.path("xfs")).unwrap();
    peer("mkfs.xfs", &["-q", image.to_str().unwrap()]);
    let device = LoopDevice::attach(&[image.to_str().unwrap()]);
    peer("mount", &[device.path(), place.path("xfs").to_str().unwrap()]);
    device
}

/// Whatever way its data goes: within a file system, to another one, or through this program, for who wants to see it.
#[test]
fn a_file_is_copied_to_a_file_whatever_they_are_on() {
    in_own_mounts!();
    let place = Place::new();
    let _device = xfs(&place);
    // The last block is no whole one, and goes through this program.
    let bytes = noise(20 * MIB + 1000, 5);
    for (source, targets) in [("a", ["b", "xfs/b"]), ("xfs/a", ["xfs/c", "c"])] {
        place.write(source, &bytes);
        for target in targets {
            for (options, is_seen) in [
                (&[][..], false),
                (&["--reflink", "never"], false),
                (&["--detect-zeroes"], true),
                (&["--resume", "journal"], true),
            ] {
                place.write(target, &noise(20 * MIB + 1000, 6));
                let copy = [&["copy", source, target, "--json"], options].concat();
                let copied = place.run(&copy).code(0).json();
                assert!(place.read(target) == bytes, "{copy:?}");
                let direct = if is_seen { 0 } else { 20 * MIB as u64 };
                let range = direct..=direct + (MIB / 2) as u64;
                assert!(range.contains(&copied["direct"].as_u64().unwrap()), "{copy:?}: {copied}");
            }
            let direct = format!("file:{target}?direct=1");
            place.write(target, &noise(20 * MIB + 1000, 7));
            let copied = place.run(&["copy", source, &direct, "--json"]).code(0).json();
            assert!(place.read(target) == bytes, "{source} to {direct}");
            assert_eq!(copied["direct"], 0, "past the page cache");
        }
    }
    peer("umount", &[place.path("xfs").to_str().unwrap()]);
}

#[test]
fn a_copy_shares_blocks_where_the_target_has_none_unless_told_not_to() {
    in_own_mounts!();
    let place = Place::new();
    let _device = xfs(&place);
    let bytes = noise(20 * MIB, 5);
    place.write("xfs/a", &bytes);
    let root = fs::File::open(place.path("xfs")).unwrap();
    let free = || {
        rustix::fs::syncfs(&root).unwrap();
        rustix::fs::fstatvfs(&root).unwrap().f_bfree * 4096
    };
    place.write("xfs/written", &vec![0; 20 * MIB]);
    for (target, options, least) in [
        ("xfs/new", &[][..], 0),
        ("xfs/own", &["--reflink", "never"], 20 * MIB as u64),
        ("xfs/written", &[], 0),
    ] {
        let before = free();
        place.run(&[&["copy", "xfs/a", target], options].concat()).code(0);
        let taken = before.saturating_sub(free());
        assert!((least..least + (5 * MIB) as u64).contains(&taken), "{target}: {taken} bytes");
        assert!(place.read(target) == bytes, "{target}");
    }
    // Who has written all of it keeps that space when the source is removed: it is its own.
    let before = free();
    for name in ["xfs/a", "xfs/new"] {
        fs::remove_file(place.path(name)).unwrap();
    }
    let begun = Instant::now();
    // XFS frees in the background.
    while free().saturating_sub(before) < 19 * MIB as u64 {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is freed: others have it, too");
        blockyard_conformance::pause();
    }
    drop(root);
    peer("umount", &[place.path("xfs").to_str().unwrap()]);
}

/// What goes within the kernel is tried again the long way, which says what is wrong and where.
#[test]
fn a_target_that_is_full_midway_or_a_source_that_shrinks_is_an_error_that_says_where() {
    in_own_mounts!();
    let place = Place::new();
    let bytes = noise(8 * MIB, 5);
    place.write("source", &bytes);
    fs::create_dir(place.path("small")).unwrap();
    let small = place.path("small");
    peer("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs", small.to_str().unwrap()]);
    fs::File::create(small.join("target")).unwrap().set_len(bytes.len() as u64).unwrap();
    let said = place.run(&["copy", "./source", "./small/target"]);
    said.code(1).contains(&["cannot write", "./small/target", "no space left"]);
    peer("umount", &[small.to_str().unwrap()]);
    // Before the first write is done.
    let server = place.path("t");
    let write =
        format!("pwrite=truncate -s 4M {}; cat > /dev/null", place.path("source").display());
    let can = ["can_write=exit 0", "can_flush=exit 0", "pread=head -c $3 /dev/zero"];
    let all = ["eval", "thread_model=echo parallel", "get_size=echo 8M", &write];
    let _server = nbdkit(&server, &[&all, &can[..]].concat());
    let target = format!("{}&connections=1", unix("", &server));
    let said = place.run(&["copy", "./source", &target, "--threads", "1"]);
    said.code(1).contains(&["cannot read", "./source"]);
}

/// From the page cache to the socket, as far as the kernel tells what is in there.
#[test]
fn a_cached_file_goes_to_a_server_from_the_page_cache() {
    let place = Place::new();
    let bytes = noise(20 * MIB, 5);
    place.write("source", &bytes);
    let _server = nbdkit(&place.path("t"), &["memory", "20M"]);
    let target = unix("", &place.path("t"));
    let copied = place.run(&["copy", "./source", &target, "--json"]).code(0).json();
    place.run(&["compare", "./source", &target]).code(0);
    let source = fs::File::open(place.path("source")).unwrap();
    if blockyard_sys::page_cache::is_known(source.as_fd()) {
        assert!(copied["direct"].as_u64().unwrap() > 0, "{copied}");
    }
    let copied = place.run(&["copy", "./source", &target, "--detect-zeroes", "--json"]);
    assert_eq!(copied.code(0).json()["direct"], 0);
}

/// Waits until the journal says that something is done; the copy ends in the middle then.
fn kill_midway(place: &Place, mut copy: Guard) {
    let journal = place.path("journal");
    while !fs::read_to_string(&journal).is_ok_and(|text| text.contains("\ndone ")) {
        assert!(copy.0.try_wait().unwrap().is_none(), "it ended before anything was written down");
        blockyard_conformance::pause();
    }
    copy.0.kill().unwrap();
    copy.0.wait().unwrap();
}

#[test]
fn a_copy_goes_on_with_its_own_disks_only() {
    let place = Place::new();
    let bytes = noise(64 * MIB, 3);
    place.write("source", &bytes);
    let start = || slow(&place.path("slow"), &place.path("source"), bytes.len());
    let server = start();
    fs::create_dir(place.path("other")).unwrap();
    let args = ["copy", "nbd+unix:///?socket=slow&connections=1", "./target", "--threads", "1"];
    let args = [&args[..], &["--resume", "journal"]].concat();
    kill_midway(&place, place.start(&args));
    // A client that is killed with requests out may take nbdkit along (`raw_send_socket: Assertion`).
    drop(server);
    let _server = start();
    // The same words from another folder mean other disks.
    place.write("other/target", &vec![0; bytes.len()]);
    let moved = [&args[..5], &["--resume", "../journal"]].concat();
    let _other = slow(&place.path("other/slow"), &place.path("source"), bytes.len());
    place.run_in("other", &moved).code(1).contains(&["belongs to another copy", "replaced"]);
    // So does another file in the place of the target, even with the same bytes in it.
    fs::rename(place.path("target"), place.path("mine")).unwrap();
    fs::copy(place.path("mine"), place.path("target")).unwrap();
    let said = place.run(&args);
    said.code(1).contains(&["the target ./target was replaced", "remove the journal"]);
    // Other words for the same disks go on.
    fs::rename(place.path("mine"), place.path("other/mine")).unwrap();
    let source = format!("{}&connections=1", unix("", &place.path("slow")));
    let renamed = ["copy", &source, "file:mine", "--resume", "../journal", "--json"];
    let copied = place.run_in("other", &renamed).code(0).json();
    assert!(copied["resumed"].as_u64().unwrap() > 0, "{copied}");
    assert!(place.read("other/mine") == bytes);
}

/// A server of memory in a file whose first flush fails. What it was given before that is lost with it.
fn forgetful(socket: &Path, place: &Path, len: usize) -> Guard {
    let (kept, failed) = (place.join("kept"), place.join("failed"));
    fs::File::create(&kept).unwrap().set_len(len as u64).unwrap();
    let (kept, failed) = (kept.display(), failed.display());
    let write = format!("pwrite=dd of={kept} seek=$4 oflag=seek_bytes conv=notrunc status=none");
    let read =
        format!("pread=dd if={kept} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none");
    let flush = format!(
        "flush=if [ ! -e {failed} ]; then touch {failed}; truncate -s 0 {kept}; truncate -s {len} {kept}; \
         echo EIO >&2; exit 1; fi"
    );
    let size = format!("get_size=echo {len}");
    let can = ["can_write=exit 0", "can_flush=exit 0", "can_multi_conn=exit 0"];
    let model = "thread_model=echo parallel";
    nbdkit(socket, &[&["eval", model, &size, &write, &read, &flush], &can[..]].concat())
}

#[test]
fn what_a_failed_flush_did_not_cover_is_copied_again() {
    let place = Place::new();
    let bytes = noise(48 * MIB, 4);
    place.write("source", &bytes);
    let _source = slow(&place.path("slow"), &place.path("source"), bytes.len());
    let _target = forgetful(&place.path("t"), place.0.path(), bytes.len());
    let source = format!("{}&connections=1", unix("", &place.path("slow")));
    let target = unix("", &place.path("t"));
    let args = ["copy", &source, &target, "--threads", "1", "--resume", "journal"];
    place.run(&args).code(1).contains(&["cannot flush", "run the same command again"]);
    let journal = String::from_utf8(place.read("journal")).unwrap();
    assert!(!journal.contains("\ndone "), "what may be lost is written down as done:\n{journal}");
    place.run(&args).code(0);
    assert!(place.read("kept") == bytes, "the copy differs, and was called done");
}

/// What it had acknowledged, and not made durable, is gone with it; the next one takes the rest, and flushes well.
#[test]
fn a_target_started_anew_meanwhile_is_no_success() {
    let place = Place::new();
    let len = 8 * MIB;
    place.write("source", &noise(len, 9));
    let (kept, flushing) = (place.path("kept"), place.path("flushing"));
    let (file, sign) = (kept.display(), flushing.display());
    let size = format!("get_size=echo {len}");
    let write = format!("pwrite=dd of={file} seek=$4 oflag=seek_bytes conv=notrunc status=none");
    let read =
        format!("pread=dd if={file} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none");
    let can = ["can_write=exit 0", "can_flush=exit 0", "thread_model=echo parallel"];
    let start = |flush: &str| {
        fs::File::create(&kept).unwrap().set_len(len as u64).unwrap();
        nbdkit(&place.path("t"), &[&["eval", &size, &write, &read, flush], &can[..]].concat())
    };
    let mut server =
        start(&format!("flush=touch {sign}; while [ -e {sign} ]; do sleep 0.05; done"));
    let target = format!("{}&connections=1", unix("", &place.path("t")));
    let args = ["copy", "./source", &target, "--resume", "journal"];
    let mut copy = place.start(&args);
    while !flushing.exists() {
        assert!(copy.0.try_wait().unwrap().is_none(), "it ended before it flushed");
        blockyard_conformance::pause();
    }
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    fs::remove_file(&flushing).unwrap();
    let _server = start("flush=exit 0");
    let mut said = String::new();
    copy.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(copy.0.wait().unwrap().code(), Some(1), "{said}");
    let journal = String::from_utf8(place.read("journal")).unwrap();
    assert!(!journal.contains("\ndone "), "what is lost is written down as done:\n{journal}");
    place.run(&args).code(0);
    place.run(&["compare", "./source", &target]).code(0);
}

/// After a restart a server may show other bytes at the same address, under the same name, and as many of them.
#[test]
fn what_is_not_there_any_more_is_copied_again() {
    let place = Place::new();
    let bytes = noise(64 * MIB, 7);
    place.write("source", &bytes);
    // A client that is killed with requests out may take nbdkit along (`raw_send_socket: Assertion`).
    let start = || slow(&place.path("slow"), &place.path("source"), bytes.len());
    let slow_server = start();
    let memory = || nbdkit(&place.path("t"), &["memory", "64M"]);
    let server = memory();
    let source = format!("{}&connections=1", unix("", &place.path("slow")));
    let target = unix("", &place.path("t"));
    let args = ["copy", &source, &target, "--threads", "1", "--resume", "journal", "--json"];
    kill_midway(&place, place.start(&args));
    drop((server, slow_server));
    let (_server, slow_server) = (memory(), start());
    let copied = place.run(&args).code(0).json();
    assert_eq!(copied["resumed"], 0, "the target was empty");
    place.run(&["compare", "./source", &target]).code(0);

    // So may the source: what was copied then is no part of what it is now.
    let args = ["copy", &source, "./copy", "--threads", "1", "--resume", "journal", "--json"];
    kill_midway(&place, place.start(&args));
    drop(slow_server);
    let other = noise(64 * MIB, 8);
    place.write("source", &other);
    let _slow_server = start();
    place.run(&args).contains(&["copying again"]).code(0);
    assert!(place.read("copy") == other, "it has something of the source as it was");
}

/// Sends a signal once a command is at work, and gives what it said and its exit code.
fn end_by(signal: Signal, mut child: Guard) -> (Option<i32>, String) {
    kill_process(Pid::from_child(&child.0), signal).unwrap();
    let begun = Instant::now();
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let code = child.0.wait().unwrap().code();
    assert!(begun.elapsed() < SOON, "{signal:?} was not heard for {:?}", begun.elapsed());
    (code, said)
}

#[test]
fn signals_are_heard_while_a_server_is_lost() {
    let place = Place::new();
    let bytes = noise(64 * MIB, 5);
    place.write("source", &bytes);
    place.write("local", &bytes);
    for signal in [Signal::INT, Signal::TERM] {
        for args in [
            &["copy", "SLOW", "./target", "--resume", "journal"][..],
            &["copy", "./source", "TARGET", "--resume", "journal"],
            &["compare", "SLOW", "./local"],
            &["check", "SLOW"],
        ] {
            let (lost, began) = (place.path("lost"), place.path("began"));
            let mut server = if args.contains(&"TARGET") {
                // So slow that it is not through when it is lost.
                let write = format!("pwrite=touch {}; sleep 0.5; cat > /dev/null", began.display());
                let can = ["can_write=exit 0", "can_flush=exit 0", "pread=head -c $3 /dev/zero"];
                let all = ["eval", "thread_model=echo parallel", "get_size=echo 64M", &write];
                nbdkit(&lost, &[&all, &can[..]].concat())
            } else {
                slow(&lost, &place.path("source"), bytes.len())
            };
            let uri = format!("{}&connections=1", unix("", &lost));
            let server_of = |&arg: &&'static str| match arg {
                "SLOW" | "TARGET" => uri.clone(),
                arg => arg.to_owned(),
            };
            let args: Vec<String> = args.iter().map(server_of).collect();
            let args: Vec<&str> =
                args.iter().map(String::as_str).chain(["--threads", "1"]).collect();
            let mut child = place.start(&args);
            while !began.exists() {
                assert!(child.0.try_wait().unwrap().is_none(), "{args:?} ended early");
                blockyard_conformance::pause();
            }
            server.0.kill().unwrap();
            server.0.wait().unwrap();
            let (code, said) = end_by(signal, child);
            let ended = if args[0] == "compare" { 2 } else { 1 };
            let ended = code == Some(ended) && said.contains("interrupted");
            assert!(ended, "{signal:?} {args:?} {code:?}\n{said}");
            for name in ["target", "journal", "began"] {
                let _ = fs::remove_file(place.path(name));
            }
        }
    }
}

#[test]
fn a_copy_whose_last_flush_has_not_ended_is_not_done() {
    in_own_mounts!();
    let place = Place::new();
    place.write("source", &noise(MIB, 6));
    let began = place.path("began");
    let flush = format!("flush=touch {}; sleep 5; exit 1", began.display());
    let can = ["can_write=exit 0", "can_flush=exit 0", "pwrite=cat > /dev/null"];
    let all =
        ["eval", "thread_model=echo parallel", "get_size=echo 1M", "pread=head -c $3 /dev/zero"];
    let _server = nbdkit(&place.path("t"), &[&all[..], &can, &[&flush]].concat());
    let (_unmount, file) = fuse_in(place.0.path(), &unix("", &place.path("t")));
    let mut copy =
        place.start(&["copy", "./source", &format!("file:{file}"), "--resume", "journal"]);
    while !began.exists() {
        assert!(copy.0.try_wait().unwrap().is_none(), "it ended before it flushed");
        blockyard_conformance::pause();
    }
    kill_process(Pid::from_child(&copy.0), Signal::INT).unwrap();
    let mut said = String::new();
    copy.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(copy.0.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("may not be durable"), "{said}");
    assert!(place.path("journal").exists(), "nobody can go on with it");
}
