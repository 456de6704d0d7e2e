//! `share --mount`: a directory, passed through to another place of the same machine, is a file system like any other.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use blockyard_conformance::in_own_mounts;
use blockyard_vhost_user::wire::{HEADER_LEN, Header, Message, Reply};
use common::{Guard, Said, blockyard, noise, peer, run};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// `ENOTCONN`: the server of a mount is dead.
const DEAD: i32 = 107;

/// A directory that is shared, where it is mounted, and who does it.
struct Shared {
    child: Child,
    said: BufReader<ChildStderr>,
    place: TempDir,
}

impl Shared {
    fn new(args: &[&str]) -> Self {
        let place = TempDir::new().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["dir", "mnt"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        Self::start(place, args)
    }

    /// When it is mounted. It does not outlive the test.
    fn start(place: TempDir, args: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            env!("CARGO_BIN_EXE_blockyard"),
            "share",
            "dir",
        ]);
        command.args(["--mount", "mnt"]).args(args).current_dir(place.path());
        command.env("BLOCKYARD_RUNTIME_DIR", place.path().join("run")).env_remove("NOTIFY_SOCKET");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let mut shared = Self { child, said, place };
        let mut log = String::new();
        while !log.contains("serving ") {
            let len = shared.said.read_line(&mut log).unwrap();
            assert!(len > 0, "it has ended: {:?}\n{log}", shared.child.wait());
        }
        shared
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("dir")
    }

    fn mnt(&self) -> PathBuf {
        self.place.path().join("mnt")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    fn ended(&mut self) {
        let mut log = String::new();
        self.said.read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{log}");
    }

    #[track_caller]
    fn stop(mut self) {
        self.signal(Signal::TERM);
        self.ended();
        assert_eq!(fs::read_dir(self.mnt()).unwrap().count(), 0, "it is not mounted any more");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Another mount covers it, that is not ours to take away.
#[test]
fn an_end_that_leaves_a_mount_is_a_failure_that_names_it() {
    in_own_mounts!();
    let mut shared = Shared::new(&[]);
    let mnt = shared.mnt();
    peer("mount", &["-t", "tmpfs", "tmpfs", mnt.to_str().unwrap()]);
    shared.signal(Signal::TERM);
    let mut log = String::new();
    shared.said.read_to_string(&mut log).unwrap();
    assert_eq!(shared.child.wait().unwrap().code(), Some(1), "{log}");
    assert!(log.contains(&format!("{} is still mounted", mnt.display())), "{log}");
    peer("umount", &[&mnt]);
    peer("umount", &["-l".as_ref(), mnt.as_path()]);
    assert_eq!(fs::read_dir(mnt).unwrap().count(), 0);
}

#[test]
fn files_and_directories_are_those_of_the_directory() {
    in_own_mounts!();
    let shared = Shared::new(&[]);
    let (dir, mnt) = (shared.dir(), shared.mnt());
    fs::create_dir(mnt.join("a")).unwrap();
    fs::write(mnt.join("a/file"), "content").unwrap();
    assert_eq!(fs::read_to_string(dir.join("a/file")).unwrap(), "content");
    fs::rename(mnt.join("a/file"), mnt.join("moved")).unwrap();
    assert_eq!(fs::metadata(mnt.join("a/file")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::hard_link(mnt.join("moved"), mnt.join("a/again")).unwrap();
    assert_eq!(fs::metadata(mnt.join("moved")).unwrap().nlink(), 2);
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(mnt.join("moved")), inode(dir.join("a/again")));
    std::os::unix::fs::symlink("a/again", mnt.join("link")).unwrap();
    assert_eq!(fs::read_link(mnt.join("link")).unwrap(), Path::new("a/again"));
    assert_eq!(fs::read_to_string(mnt.join("link")).unwrap(), "content");
    fs::set_permissions(mnt.join("moved"), fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(fs::metadata(dir.join("moved")).unwrap().mode() & 0o7777, 0o4711);
    std::os::unix::fs::chown(mnt.join("moved"), Some(7), Some(8)).unwrap();
    let found = fs::metadata(dir.join("moved")).unwrap();
    assert_eq!((found.uid(), found.gid()), (7, 8));
    assert_eq!(fs::remove_dir(mnt.join("a")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_file(mnt.join("a/again")).unwrap();
    fs::remove_dir(mnt.join("a")).unwrap();
    peer("mkfifo", &[mnt.join("pipe")]);
    let xattrs = "import os, sys\n\
        os.setxattr(sys.argv[1], 'user.a', b'value')\n\
        assert os.getxattr(sys.argv[2], 'user.a') == b'value'\n\
        assert os.getxattr(sys.argv[1], 'user.a') == b'value'\n\
        assert os.listxattr(sys.argv[1]) == ['user.a'], os.listxattr(sys.argv[1])\n\
        os.removexattr(sys.argv[1], 'user.a')\n\
        assert os.listxattr(sys.argv[2]) == []\n";
    let [ours, theirs] =
        [mnt.join("moved"), dir.join("moved")].map(|path| path.display().to_string());
    peer("python3", &["-c", xattrs, &ours, &theirs]);
    peer("touch", &["-h", "-d", "2001-02-03 04:05:06.789 UTC", mnt.join("link").to_str().unwrap()]);
    let link = fs::symlink_metadata(dir.join("link")).unwrap();
    assert_eq!((link.mtime(), link.mtime_nsec()), (981_173_106, 789_000_000));
    peer("df", &[mnt.to_str().unwrap()]);
    let mut names: Vec<_> =
        fs::read_dir(&mnt).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["link", "moved", "pipe"]);
    // What the host makes is there, and what it removes is gone: a name that was looked up, within a second.
    fs::write(dir.join("host"), "host").unwrap();
    assert_eq!(fs::read_to_string(mnt.join("host")).unwrap(), "host");
    shared.stop();
}

#[test]
fn data_are_those_of_the_files() {
    in_own_mounts!();
    for cache in ["never", "auto", "always"] {
        let shared = Shared::new(&["--cache", cache]);
        let (dir, mnt) = (shared.dir(), shared.mnt());
        let content = noise(3_000_001, 5);
        fs::write(mnt.join("file"), &content).unwrap();
        assert!(fs::read(dir.join("file")).unwrap() == content, "{cache}");
        assert!(fs::read(mnt.join("file")).unwrap() == content, "{cache}");
        let mut file = rw(&mnt.join("file"));
        file.write_all_at(b"middle", 1_000_000).unwrap();
        file.set_len(2_000_000).unwrap();
        file.set_len(5_000_000).unwrap();
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        let now = fs::read(dir.join("file")).unwrap();
        assert_eq!((&now[1_000_000..1_000_006], now.len()), (&b"middle"[..], 5_000_000));
        let mut append = OpenOptions::new().append(true).open(mnt.join("file")).unwrap();
        append.write_all(b"end").unwrap();
        assert_eq!(fs::metadata(dir.join("file")).unwrap().len(), 5_000_003);
        use rustix::fs::{FallocateFlags, fallocate};
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, punch, 0, 1 << 20).unwrap();
        assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap(), 1 << 20);
        let copy = rw(&mnt.join("copy"));
        let mut left = 5_000_003;
        file.seek(SeekFrom::Start(0)).unwrap();
        while left > 0 {
            let len = rustix::fs::copy_file_range(&file, None, &copy, None, left).unwrap();
            assert!(len > 0);
            left -= len;
        }
        assert!(fs::read(dir.join("copy")).unwrap() == fs::read(dir.join("file")).unwrap());
        /// `O_TMPFILE`, `O_DIRECT`.
        const TMPFILE: i32 = 0o20_200_000;
        let mut options = OpenOptions::new();
        let nameless = options.read(true).write(true).custom_flags(TMPFILE).open(&mnt).unwrap();
        nameless.write_all_at(b"nameless", 0).unwrap();
        let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&nameless));
        use rustix::fs::{AtFlags, CWD, linkat};
        linkat(CWD, own, CWD, mnt.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(fs::read_to_string(dir.join("named")).unwrap(), "nameless");
        // One that lost its name is still a file for who has it open.
        fs::remove_file(mnt.join("copy")).unwrap();
        let mut back = [0; 6];
        copy.read_exact_at(&mut back, 5_000_003 - 6).unwrap();
        assert_eq!(&back[3..], b"end");
        assert_eq!(copy.metadata().unwrap().nlink(), 0);
        drop((file, append, copy, nameless));
        shared.stop();
    }
}

/// What is written to memory is at its place in the file, also if the file was opened to append to it.
#[test]
fn mapped_files_are_written_to_their_place() {
    in_own_mounts!();
    let script = "import mmap, sys\n\
        with open(sys.argv[1], 'a+b') as file, mmap.mmap(file.fileno(), 0) as map:\n \
        map[4096:4100] = b'here'\n map.flush()\n file.write(b'end')\n";
    for cache in ["never", "auto", "always"] {
        let shared = Shared::new(&["--cache", cache]);
        let mut content = noise(10_000, 6);
        fs::write(shared.dir().join("file"), &content).unwrap();
        peer("python3", &["-c", script, shared.mnt().join("file").to_str().unwrap()]);
        content[4096..4100].copy_from_slice(b"here");
        content.extend_from_slice(b"end");
        let now = fs::read(shared.dir().join("file")).unwrap();
        assert_eq!(now.len(), content.len(), "{cache}");
        assert!(now == content, "{cache}");
        shared.stop();
    }
}

/// A tree, by the programs that people use, and by several at a time.
#[test]
fn programs_find_what_they_expect() {
    in_own_mounts!();
    let shared = Shared::new(&[]);
    let (dir, mnt) = (shared.dir(), shared.mnt());
    let source = shared.place.path().join("source");
    for index in 0..40_u64 {
        let folder = source.join(format!("folder{}/deep{}", index % 3, index % 5));
        fs::create_dir_all(&folder).unwrap();
        let name = format!("file{index}");
        fs::write(folder.join(name), noise(usize::try_from(index * 997).unwrap(), index)).unwrap();
    }
    let script = "set -e\ncp -a source mnt/copied\ndiff -r source mnt/copied\n\
        tar -C source -cf mnt/archive.tar .\nmkdir mnt/unpacked\ntar -C mnt/unpacked -xf mnt/archive.tar\n\
        diff -r source mnt/unpacked\ndiff -r source dir/unpacked\n\
        for n in 1 2 3 4; do (for i in $(seq 50); do echo $i > mnt/p$n-$i; mv mnt/p$n-$i mnt/q$n-$i; rm mnt/q$n-$i\n\
        done) & done; wait\n\
        rm -r mnt/copied mnt/unpacked mnt/archive.tar\n";
    peer("sh", &["-c", &format!("cd {}\n{script}", shared.place.path().display())]);
    assert_eq!(fs::read_dir(&mnt).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    shared.stop();
}

/// Who may not, may not; and what somebody makes is his.
#[test]
fn permissions_are_the_callers() {
    in_own_mounts!();
    for cache in ["never", "auto", "always"] {
        permissions_with(cache);
    }
}

fn permissions_with(cache: &str) {
    let shared = Shared::new(&["--allow-other", "--cache", cache]);
    let (dir, mnt) = (shared.dir(), shared.mnt());
    fs::write(dir.join("secret"), "secret").unwrap();
    fs::set_permissions(dir.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(dir.join("open")).unwrap();
    fs::set_permissions(dir.join("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    let script = format!(
        "set -e; cd {}; umask 027\n\
         refused() {{ if \"$@\" 2>/dev/null; then echo \"done: $*\" >&2; exit 1; fi; }}\n\
         refused cat secret; refused touch new\n\
         echo his > open/his; mkdir open/dir; ln -s his open/link; mkfifo open/pipe\n\
         refused rm -f open/root; refused chown 0 open/his\n\
         chmod 4755 open/his; echo more >> open/his; echo more >> open/root\n",
        mnt.display()
    );
    let root = dir.join("open/root");
    fs::write(&root, "").unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o6777)).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script];
    peer("setpriv", &user);
    for (name, mode) in [("his", 0o755), ("dir", 0o750), ("pipe", 0o640)] {
        let found = fs::symlink_metadata(dir.join("open").join(name)).unwrap();
        assert_eq!((found.uid(), found.gid()), (65534, 65534), "{cache} {name}");
        let now = found.mode() & 0o7777;
        assert_eq!(now, mode, "{cache} {name}: a write takes set-user-ID away");
    }
    let now = fs::metadata(&root).unwrap().mode() & 0o7777;
    assert_eq!(now, 0o777, "{cache}: a stranger's write takes set-user-ID away");
    // Root's does not.
    fs::set_permissions(&root, fs::Permissions::from_mode(0o4777)).unwrap();
    OpenOptions::new().append(true).open(mnt.join("open/root")).unwrap().write_all(b"x").unwrap();
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o4777, "{cache}");
    assert_eq!(fs::symlink_metadata(dir.join("open/link")).unwrap().uid(), 65534);
    shared.stop();
}

#[test]
fn a_killed_one_is_cleaned_up_by_the_next_and_others_may_unmount() {
    in_own_mounts!();
    let mut shared = Shared::new(&["--read-only"]);
    fs::write(shared.dir().join("file"), "content").unwrap();
    assert_eq!(fs::read_to_string(shared.mnt().join("file")).unwrap(), "content");
    let refused = fs::write(shared.mnt().join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    shared.signal(Signal::KILL);
    shared.child.wait().unwrap();
    assert_eq!(fs::metadata(shared.mnt()).unwrap_err().raw_os_error(), Some(DEAD));
    let place = std::mem::replace(&mut shared.place, TempDir::new().unwrap());
    let mut shared = Shared::start(place, &[]);
    fs::write(shared.mnt().join("new"), "new").unwrap();
    peer("umount", &[shared.mnt()]);
    shared.ended();
    assert_eq!(fs::read_to_string(shared.dir().join("new")).unwrap(), "new");
    assert_eq!(fs::read_dir(shared.place.path().join("run/mounted")).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_shared_is_told() {
    let place = TempDir::new().unwrap();
    for name in ["dir", "dir/in", "mnt"] {
        fs::create_dir(place.path().join(name)).unwrap();
    }
    fs::write(place.path().join("file"), "").unwrap();
    for (args, code, part) in [
        (["share", "none", "--mount", "mnt"], 1, "create it, or correct the path"),
        (["share", "file", "--mount", "mnt"], 1, "share the directory"),
        (["share", "dir", "--mount", "none"], 1, "mkdir"),
        (["share", "dir", "--mount", "file"], 64, "not a directory"),
        (["share", "dir", "--mount", "dir/in"], 64, "is inside dir"),
    ] {
        let mut command = blockyard(&place.path().join("run"));
        let output = command.current_dir(place.path()).args(args).output().unwrap();
        Said::of(&output).code(code).contains(&[part]);
    }
}

#[test]
fn who_shares_is_listed_and_has_nothing_else() {
    in_own_mounts!();
    let shared = Shared::new(&["--read-only"]);
    let run = shared.place.path().join("run");
    let say = |args: &[&str]| Said::of(&blockyard(&run).args(args).output().unwrap());
    let (dir, mnt) = (shared.dir().display().to_string(), shared.mnt().display().to_string());
    say(&["list"]).code(0).contains(&[&format!("serves {dir} at fuse:{mnt} (mounted)")]);
    assert_eq!(say(&["list", "--diskstats"]).code(0).out, "");
    say(&["add", "ram:1M"]).code(1).contains(&["no daemon of this user is running"]);
    let pid = shared.child.id().to_string();
    say(&["add", "ram:1M", "--daemon", &pid]).code(75).contains(&["serves only", &dir]);
    shared.stop();
}

/// Starts a shell's command, and waits until it serves.
fn serving(place: &Path, script: &str, stdin: Stdio) -> (Guard, BufReader<ChildStderr>) {
    let mut command = Command::new("bash");
    command.args(["-c", script, env!("CARGO_BIN_EXE_blockyard")]).current_dir(place);
    command.env("BLOCKYARD_RUNTIME_DIR", place.join("run")).env_remove("NOTIFY_SOCKET");
    let mut child = Guard(command.stdin(stdin).stderr(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(child.0.stderr.take().unwrap());
    let mut log = String::new();
    while !log.contains("serving ") {
        assert!(said.read_line(&mut log).unwrap() > 0, "it has ended: {:?}\n{log}", child.0.wait());
    }
    (child, said)
}

/// Asks a vhost-user back-end how many queues it has.
fn queues(mut socket: &UnixStream) -> Reply {
    socket.write_all(&Message::GetQueueNum.encode(false)).unwrap();
    let mut header = [0; HEADER_LEN];
    socket.read_exact(&mut header).unwrap();
    let mut payload = vec![0; Header::parse(&header).unwrap().size as usize];
    socket.read_exact(&mut payload).unwrap();
    Reply::parse(&Message::GetQueueNum, &payload).unwrap()
}

/// Files are made without a umask, as guests have one of their own; the socket is not.
#[test]
fn a_socket_for_virtual_machines_is_as_the_umask_says() {
    let place = TempDir::new().unwrap();
    fs::create_dir(place.path().join("dir")).unwrap();
    let script = "umask 077; exec \"$0\" share --shared-dir dir --socket-path s --thread-pool-size 2 \
        --queues 3 --tag tree --cache never --readonly";
    let (mut child, _said) = serving(place.path(), script, Stdio::null());
    let socket = place.path().join("s");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o700);
    let listed = Said::of(&blockyard(&place.path().join("run")).arg("list").output().unwrap());
    listed.code(0).contains(&["dir at vhost-user-fs:", "s (not connected)"]);
    for _ in 0..2 {
        let front_end = UnixStream::connect(&socket).unwrap();
        assert_eq!(queues(&front_end), Reply::Number(4), "one of high priority, and three");
    }
    kill_process(Pid::from_child(&child.0), Signal::TERM).unwrap();
    assert!(child.0.wait().unwrap().success());
    assert!(!socket.exists());
}

#[test]
fn a_passed_socket_is_served_until_its_front_end_leaves() {
    let place = TempDir::new().unwrap();
    fs::create_dir(place.path().join("dir")).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stdin = Stdio::from(std::os::fd::OwnedFd::from(theirs));
    let script = "exec 9<&0; exec \"$0\" share dir --fd 9 </dev/null";
    let (mut child, _said) = serving(place.path(), script, stdin);
    assert_eq!(queues(&ours), Reply::Number(2));
    drop(ours);
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn one_place_is_named_and_options_are_of_that() {
    for (args, part) in [
        (&["share", "dir"][..], "--mount"),
        (&["share", "dir", "--mount", "m", "--socket", "s"], "--socket"),
        (&["share", "--socket", "s"], "DIR"),
        (&["share", "dir", "--mount", "m", "--queues", "2"], "--queues"),
        (&["share", "dir", "--socket", "s", "--allow-other"], "--allow-other"),
        (&["share", "dir", "--socket", "s", "--queues", "256"], "255"),
        (&["share", ".", "--socket", "s", "--tag", ""], "tag"),
    ] {
        run(args).code(64).contains(&[part]);
    }
}
