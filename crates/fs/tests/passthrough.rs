//! A client that keeps no rules, and a host that changes everything meanwhile: nothing leads out of the directory.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_buf::Segment;
use blockyard_fs::{Answers, FileSystem, Options, Outcome, Passthrough, Who};
use blockyard_fuse::dirent::{Entries, Listed, parse, parse_plus};
use blockyard_fuse::wire::*;
use blockyard_fuse::{Caller, Expected, Name, Operation, Protocol, ROOT_ID, Reply, SetAttr};
use tempfile::TempDir;

const ROOT: Who = Who { uid: 0, gid: 0 };
const ESTALE: i32 = 116;

/// A directory with a file in it, and a secret beside it.
struct Place {
    dir: TempDir,
    fs: Passthrough,
}

impl Place {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("shared")).unwrap();
        fs::write(dir.path().join("shared/file"), "content").unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        let fs = Passthrough::new(&dir.path().join("shared"), options).unwrap();
        Self { dir, fs }
    }

    fn shared(&self) -> std::path::PathBuf {
        self.dir.path().join("shared")
    }

    /// A small file system below the directory.
    fn with_tmpfs(&self, name: &str) -> std::path::PathBuf {
        let path = self.shared().join(name);
        fs::create_dir(&path).unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path);
        assert!(mount.status().unwrap().success());
        path
    }

    fn look_up(&self, parent: u64, name: &str) -> Outcome<EntryOut> {
        self.fs.lookup(parent, Name::new(name.as_bytes()).unwrap())
    }

    fn open(&self, node: u64) -> Outcome<OpenOut> {
        self.fs.open(node, &OpenIn::default())
    }

    fn read(&self, fh: u64) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        let len = self.fs.read(&ReadIn { fh, ..ReadIn::default() }, &mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

#[track_caller]
fn fails<T: std::fmt::Debug>(outcome: Outcome<T>, errnos: &[i32]) {
    let errno = outcome.unwrap_err().raw();
    assert!(errnos.contains(&errno), "{errno} is none of {errnos:?}");
}

const EPERM: i32 = 1;
const EIO: i32 = 5;
const ENOTDIR: i32 = 20;
const ENOSPC: i32 = 28;
const ELOOP: i32 = 40;

#[test]
fn links_lead_nowhere() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    symlink(&outside, place.shared().join("absolute")).unwrap();
    symlink("../outside", place.shared().join("relative")).unwrap();
    symlink(outside.join("secret"), place.shared().join("to-file")).unwrap();
    for link in ["absolute", "relative", "to-file"] {
        let node = place.look_up(ROOT_ID, link).unwrap();
        assert_eq!(node.attr.mode & 0o170_000, 0o120_000, "{link} is what it is");
        fails(place.look_up(node.nodeid, "secret"), &[ENOTDIR, ELOOP]);
        fails(place.open(node.nodeid), &[EPERM, ELOOP]);
        fails(place.fs.opendir(node.nodeid), &[ENOTDIR]);
        fails(place.fs.mkdir(ROOT, node.nodeid, name("new"), &MkdirIn::default()), &[ENOTDIR]);
        fails(place.fs.unlink(node.nodeid, name("secret")), &[ENOTDIR]);
        fails(place.fs.rename((ROOT_ID, name("file")), (node.nodeid, name("file")), 0), &[ENOTDIR]);
        let create = CreateIn { flags: 2, mode: 0o100_644, ..CreateIn::default() };
        fails(place.fs.create(ROOT, node.nodeid, name("new"), &create), &[ENOTDIR]);
        // By its own name, a link is not written through.
        fails(place.fs.create(ROOT, ROOT_ID, name(link), &create), &[ESTALE, ELOOP]);
        fails(place.fs.getxattr(node.nodeid, b"user.a", &mut [0; 9]), &[95]);
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}

#[test]
fn magic_links_lead_nowhere() {
    let proc = Passthrough::new(Path::new("/proc"), Options::default()).unwrap();
    let pid = std::process::id().to_string();
    let own = proc.lookup(ROOT_ID, name(&pid)).unwrap().nodeid;
    for link in ["root", "cwd", "exe"] {
        let node = proc.lookup(own, name(link)).unwrap().nodeid;
        fails(proc.lookup(node, name("etc")), &[ENOTDIR, ELOOP]);
        fails(proc.open(node, &OpenIn::default()), &[EPERM, ELOOP]);
    }
    let fds = proc.lookup(own, name("fd")).unwrap().nodeid;
    let first = proc.lookup(fds, name("0")).unwrap().nodeid;
    fails(proc.open(first, &OpenIn::default()), &[EPERM, ELOOP]);
}

/// Readable memory of this process with none behind it, where nothing is ever mapped: the end of it.
fn end_of_memory() -> u64 {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(rest.split(' ').next()?)?))
    };
    let mut ends = maps.lines().zip(maps.lines().skip(1).map(Some).chain([None]));
    let end = ends.find_map(|(line, next)| {
        let end = range(line)?.1;
        let is_last = next.and_then(range).is_none_or(|(start, _)| start > end);
        let is_above_all = line.ends_with("[stack]") || line.ends_with("[vdso]");
        (is_last && is_above_all).then_some(end)
    });
    end.unwrap_or_else(|| panic!("no end of memory in\n{maps}"))
}

/// A short read is the end of the file for the kernel: what cannot be read is none.
#[test]
fn an_error_behind_data_is_no_end_of_the_file() {
    let proc = Passthrough::new(Path::new("/proc"), Options::default()).unwrap();
    let own = proc.lookup(ROOT_ID, name(&std::process::id().to_string())).unwrap().nodeid;
    let memory = proc.lookup(own, name("mem")).unwrap().nodeid;
    let fh = proc.open(memory, &OpenIn::default()).unwrap().fh;
    let (end, mut bytes) = (end_of_memory(), vec![0; 8192]);
    let read = |len: u64, into: &mut [u8]| {
        proc.read(&ReadIn { fh, offset: end - len, ..ReadIn::default() }, into)
    };
    assert_eq!(read(4096, &mut bytes[..4096]), Ok(4096));
    fails(read(4096, &mut bytes), &[EIO]);
}

/// The kernel writes pages back by any descriptor that can write, to where they are.
#[test]
fn pages_are_written_back_to_their_place() {
    const APPEND: u32 = 0o2002;
    let place = Place::new();
    let file = place.look_up(ROOT_ID, "file").unwrap().nodeid;
    let fh = place.fs.open(file, &OpenIn { flags: APPEND, ..OpenIn::default() }).unwrap().fh;
    let at_start = WriteIn { fh, flags: 2, ..WriteIn::default() };
    let page = WriteIn { write_flags: WriteFlags::CACHE, ..at_start };
    assert_eq!(place.fs.write(&page, b"CONT"), Ok(4));
    assert_eq!(place.fs.write(&WriteIn { flags: APPEND, ..at_start }, b"end"), Ok(3));
    assert_eq!(place.fs.write(&WriteIn { offset: 4, flags: APPEND, ..page }, b"E"), Ok(1));
    assert_eq!(fs::read_to_string(place.shared().join("file")).unwrap(), "CONTEntend");
    // It does not append any more, and does again: each write says so (F_SETFL of fcntl(2)).
    let part = [Segment::from_vec(b"NT".to_vec())];
    assert_eq!(place.fs.write(&at_start, b"co"), Ok(2));
    assert_eq!(place.fs.write_segments(&WriteIn { offset: 2, ..at_start }, &part), Ok(2));
    assert_eq!(place.fs.write_segments(&WriteIn { flags: APPEND, ..at_start }, &part), Ok(2));
    assert_eq!(fs::read_to_string(place.shared().join("file")).unwrap(), "coNTEntendNT");
    fails(place.fs.write(&WriteIn { offset: u64::MAX, ..at_start }, b"nowhere"), &[22]);
}

/// Files that can be nothing but appended to (chattr(1)), and those that know of no ways to write (procfs).
#[test]
fn odd_files_are_written_to_as_far_as_they_can_be() {
    const APPEND: u32 = 0o2001;
    let place = Place::new();
    let path = place.shared().join("file");
    let chattr = |how: &str| {
        std::process::Command::new("chattr").arg(how).arg(&path).status().unwrap().success()
    };
    // Not all file systems have that.
    if chattr("+a") {
        let file = place.look_up(ROOT_ID, "file").unwrap().nodeid;
        let opened = place.fs.open(file, &OpenIn { flags: APPEND, ..OpenIn::default() });
        let refused = place.fs.open(file, &OpenIn { flags: 1, ..OpenIn::default() });
        let write = |fh| place.fs.write(&WriteIn { fh, flags: APPEND, ..WriteIn::default() }, b"!");
        let written = opened.and_then(|opened| write(opened.fh));
        assert!(chattr("-a"));
        assert_eq!(written, Ok(1));
        fails(refused, &[EPERM]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "content!");
    }
    let proc = Passthrough::new(Path::new("/proc"), Options::default()).unwrap();
    let own = proc.lookup(ROOT_ID, name(&std::process::id().to_string())).unwrap().nodeid;
    let odd = proc.lookup(own, name("oom_score_adj")).unwrap().nodeid;
    let fh = proc.open(odd, &OpenIn { flags: APPEND, ..OpenIn::default() }).unwrap().fh;
    let args = WriteIn { fh, flags: APPEND, ..WriteIn::default() };
    // What it is.
    let value = fs::read("/proc/self/oom_score_adj").unwrap();
    assert_eq!(proc.write(&args, &value), Ok(u32::try_from(value.len()).unwrap()));
    // It has no fsync(2).
    fails(proc.write(&WriteIn { flags: 0o10_001, ..args }, &value), &[22]);
}

#[test]
fn what_a_user_writes_takes_set_user_id_away() {
    let place = Place::new();
    let path = place.shared().join("file");
    let set = || fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    let now = || fs::metadata(&path).unwrap().mode() & 0o7777;
    let file = place.look_up(ROOT_ID, "file").unwrap().nodeid;
    let fh = place.fs.open(file, &OpenIn { flags: 1, ..OpenIn::default() }).unwrap().fh;
    let roots = WriteIn { fh, ..WriteIn::default() };
    let users = WriteIn { write_flags: WriteFlags::KILL_SUIDGID, ..roots };
    for _ in 0..2 {
        set();
        assert_eq!(place.fs.write(&roots, b"root"), Ok(4));
        assert_eq!(now(), 0o6777, "the thread is what it was");
        assert_eq!(place.fs.write(&users, b"user"), Ok(4));
        assert_eq!(now(), 0o777);
    }
}

/// The kernel does not look at how much of its pages is written.
#[test]
fn pages_are_written_back_whole_or_not() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    let tiny = place.with_tmpfs("tiny");
    fs::write(tiny.join("file"), "").unwrap();
    let tiny = place.look_up(ROOT_ID, "tiny").unwrap().nodeid;
    let file = place.look_up(tiny, "file").unwrap().nodeid;
    let fh = place.fs.open(file, &OpenIn { flags: 1, ..OpenIn::default() }).unwrap().fh;
    let (write, data) = (WriteIn { fh, ..WriteIn::default() }, vec![1; 128 << 10]);
    assert_eq!(place.fs.write(&write, &data), Ok(64 << 10));
    fails(place.fs.write(&WriteIn { write_flags: WriteFlags::CACHE, ..write }, &data), &[ENOSPC]);
}

/// The client sees one device: programs take two files of the same number on it for one.
#[test]
fn files_of_several_file_systems_have_numbers_of_their_own() {
    blockyard_conformance::in_own_mounts!();
    let place = Place::new();
    let mut numbers = std::collections::HashSet::new();
    for tmpfs in ["first", "second"] {
        fs::write(place.with_tmpfs(tmpfs).join("file"), "").unwrap();
        let node = place.look_up(ROOT_ID, tmpfs).unwrap().nodeid;
        let file = place.look_up(node, "file").unwrap();
        let ino = file.attr.ino;
        assert!(numbers.insert(ino), "{ino} is there twice");
        assert_eq!(place.fs.getattr(file.nodeid, None).unwrap().attr.ino, ino);
        assert_eq!(place.fs.statx(file.nodeid, &StatxIn::default()).unwrap().stat.ino, ino);
        let fh = place.fs.opendir(node).unwrap().fh;
        let mut bytes = Vec::new();
        let args = ReadIn { fh, size: 4096, ..ReadIn::default() };
        place.fs.readdir(node, &args, false, &mut Entries::new(&mut bytes, 4096)).unwrap();
        let listed = parse(&bytes).map(|listed| listed.unwrap().entry);
        let listed = listed.filter(|entry| entry.name.bytes() == b"file");
        assert_eq!(listed.map(|entry| entry.ino).collect::<Vec<_>>(), [ino]);
    }
    let own = place.look_up(ROOT_ID, "file").unwrap().attr.ino;
    assert_eq!(own, fs::metadata(place.shared().join("file")).unwrap().ino());
}

/// A thread exchanges a directory and a link to the outside all the time.
#[test]
fn a_swap_of_links_opens_no_gap() {
    let place = Place::new();
    let shared = place.shared();
    fs::create_dir(shared.join("a")).unwrap();
    fs::write(shared.join("a/secret"), "harmless").unwrap();
    symlink("../outside", shared.join("b")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, shared.join("a"), CWD, shared.join("b"), RenameFlags::EXCHANGE)
                    .unwrap();
            }
        });
        for _ in 0..3000 {
            let Ok(entry) = place.look_up(ROOT_ID, "a") else { continue };
            match place.look_up(entry.nodeid, "secret") {
                Ok(found) => {
                    let file = place.open(found.nodeid).unwrap();
                    assert_eq!(place.read(file.fh), b"harmless");
                    place.fs.release(file.fh);
                    place.fs.forget(found.nodeid, 1);
                }
                Err(errno) => assert!([ENOTDIR, ELOOP].contains(&errno.raw()), "{errno:?}"),
            }
            place.fs.forget(entry.nodeid, 1);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_is_no_file_is_not_opened_here() {
    let place = Place::new();
    let args = MknodIn { mode: 0o020_666, rdev: 0x0103, ..MknodIn::default() };
    let device = place.fs.mknod(ROOT, ROOT_ID, name("null"), &args).unwrap();
    assert_eq!(device.attr.rdev, 0x0103);
    fails(place.open(device.nodeid), &[EPERM]);
    let args = MknodIn { mode: 0o010_666, ..MknodIn::default() };
    let pipe = place.fs.mknod(ROOT, ROOT_ID, name("pipe"), &args).unwrap();
    // It would wait for a writer.
    fails(place.open(pipe.nodeid), &[EPERM]);
}

#[test]
fn what_was_never_given_is_refused() {
    let place = Place::new();
    for node in [0, 2, 99, u64::MAX] {
        fails(place.look_up(node, "file"), &[ESTALE]);
        fails(place.open(node), &[ESTALE]);
        fails(place.fs.getattr(node, None), &[ESTALE]);
        fails(place.fs.link(node, ROOT_ID, name("new")), &[ESTALE]);
        place.fs.forget(node, u64::MAX);
    }
    for fh in [0, 1, u64::MAX] {
        fails(place.fs.read(&ReadIn { fh, ..ReadIn::default() }, &mut [0; 9]), &[9]);
        fails(place.fs.write(&WriteIn { fh, ..WriteIn::default() }, b"x"), &[9]);
        fails(place.fs.fsync(fh, false), &[9]);
        place.fs.release(fh);
        place.fs.releasedir(fh);
    }
    // Of what was given, no more than once.
    let entry = place.look_up(ROOT_ID, "file").unwrap();
    let open = place.open(entry.nodeid).unwrap();
    place.fs.forget(entry.nodeid, 7);
    fails(place.fs.getattr(entry.nodeid, None), &[ESTALE]);
    assert_eq!(place.read(open.fh), b"content", "an open file stays one");
    place.fs.release(open.fh);
    fails(place.fs.read(&ReadIn { fh: open.fh, ..ReadIn::default() }, &mut [0; 9]), &[9]);
    let again = place.look_up(ROOT_ID, "file").unwrap();
    assert_ne!(again.nodeid, entry.nodeid);
}

#[test]
fn what_may_not_be_changed_is_not() {
    let place = Place::with(Options { read_only: true, ..Options::default() });
    const EROFS: &[i32] = &[30];
    let file = place.look_up(ROOT_ID, "file").unwrap().nodeid;
    fails(place.fs.open(file, &OpenIn { flags: 1, ..OpenIn::default() }), EROFS);
    fails(place.fs.open(file, &OpenIn { flags: 0o1000, ..OpenIn::default() }), EROFS);
    fails(place.fs.unlink(ROOT_ID, name("file")), EROFS);
    fails(place.fs.mkdir(ROOT, ROOT_ID, name("new"), &MkdirIn::default()), EROFS);
    fails(place.fs.setxattr(file, b"user.a", b"b", 0), EROFS);
    let open = place.open(file).unwrap();
    fails(place.fs.write(&WriteIn { fh: open.fh, ..WriteIn::default() }, b"x"), EROFS);
    assert_eq!(place.read(open.fh), b"content");
}

#[test]
fn what_is_made_is_who_has_asked_s_at_once() {
    let place = Place::new();
    let who = Who { uid: 1234, gid: 2345 };
    let create = CreateIn { flags: 2, mode: 0o106_751, ..CreateIn::default() };
    let (file, open) = place.fs.create(who, ROOT_ID, name("new"), &create).unwrap();
    assert_eq!((file.attr.uid, file.attr.gid, file.attr.mode), (1234, 2345, 0o106_751));
    assert_eq!(place.fs.write(&WriteIn { fh: open.fh, ..WriteIn::default() }, b"data"), Ok(4));
    assert_eq!(fs::read(place.shared().join("new")).unwrap(), b"data");
    let made =
        place.fs.mkdir(who, ROOT_ID, name("dir"), &MkdirIn { mode: 0o750, umask: 0 }).unwrap();
    assert_eq!((made.attr.uid, made.attr.gid, made.attr.mode), (1234, 2345, 0o040_750));
    // In a directory with the set-group-ID bit, the group is the directory's.
    fs::set_permissions(place.shared().join("dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    let other = Who { uid: 7, gid: 8 };
    let inside = place.fs.mkdir(other, made.nodeid, name("in"), &MkdirIn { mode: 0o755, umask: 0 });
    let inside = inside.unwrap().attr;
    assert_eq!((inside.uid, inside.gid, inside.mode), (7, 2345, 0o042_755));
    // What that is not his has no set-group-ID bit, as he could do as it may.
    let create_2755 = CreateIn { flags: 2, mode: 0o102_755, ..CreateIn::default() };
    let (not_his, _) = place.fs.create(other, made.nodeid, name("x"), &create_2755).unwrap();
    assert_eq!((not_his.attr.uid, not_his.attr.gid, not_his.attr.mode), (7, 2345, 0o100_755));
    let (his, _) = place.fs.create(who, made.nodeid, name("y"), &create_2755).unwrap();
    assert_eq!((his.attr.gid, his.attr.mode), (2345, 0o102_755));
    let link = place.fs.symlink(who, ROOT_ID, name("link"), b"file").unwrap();
    assert_eq!((link.attr.uid, link.attr.gid), (1234, 2345));
    let (none, open) = place.fs.tmpfile(who, ROOT_ID, &create).unwrap();
    assert_eq!((none.attr.uid, none.attr.nlink), (1234, 0));
    place.fs.link(none.nodeid, ROOT_ID, name("named")).unwrap();
    place.fs.release(open.fh);
    assert_eq!(fs::metadata(place.shared().join("named")).unwrap().uid(), 1234);
    // Who may open one that is there is not for this to say.
    fails(place.fs.create(other, ROOT_ID, name("new"), &create), &[ESTALE]);
    let exclusive = CreateIn { flags: 2 | 0o200, ..create };
    fails(place.fs.create(other, ROOT_ID, name("new"), &exclusive), &[17]);
}

/// A server that may not act for others makes what its own user asks for, of whatever group.
#[test]
fn without_the_right_to_act_for_others_files_are_made_for_one_user() {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
    let place = Place::new();
    let own = fs::metadata(place.shared()).unwrap();
    let before = capabilities(None).unwrap();
    let effective = before.effective - CapabilitySet::SETUID - CapabilitySet::SETGID;
    // Of this thread, which is the test's own.
    set_capabilities(None, CapabilitySets { effective, ..before }).unwrap();
    let who = Who { uid: own.uid(), gid: own.gid() + 1 };
    let mkdir = MkdirIn { mode: 0o755, umask: 0 };
    let made = place.fs.mkdir(who, ROOT_ID, name("own"), &mkdir).unwrap().attr;
    assert_eq!((made.uid, made.gid), (own.uid(), own.gid()));
    let other = Who { uid: own.uid() + 1, gid: own.gid() };
    fails(place.fs.mkdir(other, ROOT_ID, name("other"), &mkdir), &[EPERM]);
}

/// Takes a lease of a file for each line, and gives it back when somebody wants to open that.
const LEASE: &str = "
import fcntl, os, signal, sys
file = os.open(sys.argv[1], os.O_RDONLY)
def give_back(*_):
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give_back)
for line in sys.stdin:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print('taken', flush=True)
";

/// Who has not asked not to wait is not told to come again (`EAGAIN`).
#[test]
fn who_has_a_lease_is_waited_for() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};
    let place = Place::new();
    let file = place.look_up(ROOT_ID, "file").unwrap().nodeid;
    let mut command = Command::new("python3");
    command.args(["-c", LEASE]).arg(place.shared().join("file"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut ask, told) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut told = BufReader::new(told).lines();
    let mut lease = || {
        ask.write_all(b"\n").unwrap();
        assert_eq!(told.next().unwrap().unwrap(), "taken");
    };
    lease();
    let opened = place.fs.open(file, &OpenIn { flags: 2, ..OpenIn::default() }).unwrap();
    place.fs.release(opened.fh);
    lease();
    let shorter = SetattrIn { valid: SetattrValid::SIZE, size: 3, ..SetattrIn::default() };
    assert_eq!(place.fs.setattr(file, &SetAttr(shorter)).unwrap().attr.size, 3);
    drop(ask);
    assert!(child.wait().unwrap().success());
}

/// Somebody else moves a file of root's to the name that is being made, all the time.
#[test]
fn what_was_not_made_is_given_to_nobody() {
    let place = Place::new();
    let who = Who { uid: 1234, gid: 2345 };
    let (new, victim) = (place.shared().join("new"), place.shared().join("victim"));
    fs::write(&victim, "").unwrap();
    let held = fs::File::open(&victim).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::rename(&victim, &new);
                let _ = fs::rename(&new, &victim);
            }
        });
        let create = CreateIn { flags: 2, mode: 0o104_755, ..CreateIn::default() };
        for _ in 0..2000 {
            if let Ok((entry, open)) = place.fs.create(who, ROOT_ID, name("new"), &create) {
                place.fs.release(open.fh);
                place.fs.forget(entry.nodeid, 1);
            }
            if let Ok(entry) = place.fs.symlink(who, ROOT_ID, name("new"), b"file") {
                place.fs.forget(entry.nodeid, 1);
            }
            let found = held.metadata().unwrap();
            assert_eq!((found.uid(), found.gid(), found.mode() & 0o7000), (0, 0, 0));
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Most are known by their handles then, and everything is as if they were open.
#[test]
fn many_nodes_need_few_files() {
    let place = Place::with(Options { open_nodes: 4, ..Options::default() });
    let mut nodes = Vec::new();
    for number in 0..500 {
        let path = place.shared().join(format!("n{number}"));
        fs::write(&path, number.to_string()).unwrap();
        nodes.push(place.look_up(ROOT_ID, &format!("n{number}")).unwrap().nodeid);
    }
    // Those of other tests, which run meanwhile, are elsewhere.
    let shared = place.shared().canonicalize().unwrap();
    let is_ours =
        |found: &fs::DirEntry| fs::read_link(found.path()).is_ok_and(|to| to.starts_with(&shared));
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten().filter(is_ours).count();
    assert!((1..100).contains(&open), "{open} nodes are open files");
    for (number, &node) in nodes.iter().enumerate() {
        assert_eq!(place.look_up(ROOT_ID, &format!("n{number}")).unwrap().nodeid, node);
        let open = place.open(node).unwrap();
        assert_eq!(place.read(open.fh), number.to_string().as_bytes());
        place.fs.release(open.fh);
    }
    // Wherever it is by now, it is the same; and another at its place is another.
    let node = nodes[400];
    place.fs.rename((ROOT_ID, name("n400")), (ROOT_ID, name("moved")), 0).unwrap();
    assert_eq!(place.look_up(ROOT_ID, "moved").unwrap().nodeid, node);
    place.fs.setxattr(node, b"user.a", b"value", 0).unwrap();
    let mut value = [0; 9];
    assert_eq!(place.fs.getxattr(node, b"user.a", &mut value), Ok(5));
    let made =
        place.fs.mkdir(ROOT, ROOT_ID, name("dir"), &MkdirIn { mode: 0o755, umask: 0 }).unwrap();
    place.fs.link(node, made.nodeid, name("again")).unwrap();
    assert_eq!(place.fs.getattr(node, None).unwrap().attr.nlink, 2);
    place.fs.unlink(ROOT_ID, name("n401")).unwrap();
    fails(place.fs.getattr(nodes[401], None), &[ESTALE]);
    fs::write(place.shared().join("n401"), "another").unwrap();
    assert_ne!(place.look_up(ROOT_ID, "n401").unwrap().nodeid, nodes[401]);
}

fn list(place: &Place, plus: bool, size: u32) -> Vec<Vec<u8>> {
    let fh = place.fs.opendir(ROOT_ID).unwrap().fh;
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let mut bytes = Vec::new();
        let mut entries =
            if plus { Entries::plus(&mut bytes, size) } else { Entries::new(&mut bytes, size) };
        let args = ReadIn { fh, offset, size, ..ReadIn::default() };
        place.fs.readdir(ROOT_ID, &args, plus, &mut entries).unwrap();
        if bytes.is_empty() {
            place.fs.releasedir(fh);
            names.sort();
            return names;
        }
        for listed in if plus { parse_plus(&bytes) } else { parse(&bytes) } {
            let Listed { entry, found, counts } = listed.unwrap();
            offset = entry.next;
            names.push(entry.name.bytes().to_vec());
            if let Some(found) = found.filter(|_| counts) {
                place.fs.forget(found.nodeid, 1);
            }
        }
    }
}

#[test]
fn a_directory_is_listed_in_pieces_with_names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff\xfe odd\n");
    fs::write(place.shared().join(odd), "").unwrap();
    let mut expected =
        vec![b".".to_vec(), b"..".to_vec(), b"file".to_vec(), odd.as_bytes().to_vec()];
    for number in 0..300 {
        let name = format!("{number:0>width$}", width = 1 + number % 200);
        fs::write(place.shared().join(&name), "").unwrap();
        expected.push(name.into_bytes());
    }
    expected.sort();
    expected.dedup();
    for (plus, size) in [(false, 4096), (true, 4096), (false, 1 << 20), (true, 1 << 20)] {
        assert_eq!(list(&place, plus, size), expected, "{plus} {size}");
    }
}

/// Messages, as a client sends them that keeps no rules: each is answered at most once, and nothing outside is touched.
#[test]
fn messages_that_are_damaged_do_no_harm() {
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("BLOCKYARD_SEED={seed}");
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let place = Place::new();
    symlink("../outside", place.shared().join("link")).unwrap();
    let limits =
        blockyard_fuse::Limits { max_write: 16384, max_read: 16384, ..Protocol::NONE.limits };
    let protocol = Protocol { minor: 45, flags: InitFlags::SETXATTR_EXT, limits };
    let mut answers = Answers::new(protocol);
    let create = CreateIn { flags: 2, mode: 0o100_644, ..CreateIn::default() };
    let samples = [
        Operation::Lookup(name("..")),
        Operation::Lookup(name("link")),
        Operation::Mkdir(MkdirIn { mode: 0o755, umask: 0 }, name("new")),
        Operation::Create(create, name("made")),
        Operation::Unlink(name("secret")),
        Operation::Rename { newdir: 2, from: name("file"), to: name("file2") },
        Operation::Symlink {
            name: name("s"),
            target: blockyard_fuse::CBytes::new(b"/etc").unwrap(),
        },
        Operation::Open(OpenIn::default()),
        Operation::Read(ReadIn { fh: 1, size: 9000, ..ReadIn::default() }),
        Operation::Readdirplus(ReadIn { fh: 1, size: 9000, ..ReadIn::default() }),
        Operation::Getattr(GetattrIn::default()),
        Operation::Statfs,
    ];
    for round in 1..3000 {
        let unique = round * 2;
        let caller = Caller { unique, nodeid: 1 + random(4) as u64, ..Caller::default() };
        let mut bytes = Vec::new();
        samples[random(samples.len())].encode(&caller, &[], &protocol, &mut bytes);
        for _ in 0..random(3) {
            let at = random(bytes.len());
            // But for its name: the answer is to be told from others.
            if !(8..16).contains(&at) {
                bytes[at] = u8::try_from(random(256)).unwrap();
            }
        }
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        if let Some(answer) = answers.answer(&place.fs, &bytes) {
            assert_eq!(Reply::header(answer, 0).unwrap().unique, unique);
        }
    }
    let getattr = Operation::Getattr(GetattrIn::default());
    let mut bytes = Vec::new();
    let caller = Caller { unique: 2, nodeid: ROOT_ID, ..Caller::default() };
    getattr.encode(&caller, &[], &protocol, &mut bytes);
    let answer = answers.answer(&place.fs, &bytes).unwrap();
    let reply = Reply::parse(Expected::of(&getattr).unwrap(), answer, 0).unwrap();
    assert!(matches!(reply, Reply::Attr(_)), "{reply:?}");
    let outside = place.dir.path().join("outside");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
}
