//! Disks as files: `serve --fuse`, `mount`, `[[fuse]]` and `[[mount]]`, with what a system does with such files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use blockyard_conformance::{LoopDevice, in_own_mounts};
use common::{Cleanup, Said, blockyard, noise, peer};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// `ENOTCONN`: the server of a mount is dead.
const DEAD: i32 = 107;

/// A directory that daemons of a test have in common.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An empty file to mount on.
    fn file(&self, name: &str) -> PathBuf {
        fs::write(self.path(name), "").unwrap();
        self.path(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        fs::create_dir(self.path(name)).unwrap();
        self.path(name)
    }

    fn run(&self, args: &[&str]) -> Said {
        let mut command = blockyard(&self.path("run"));
        Said::of(&command.current_dir(self.0.path()).args(args).output().unwrap())
    }

    /// What runs.
    fn report(&self) -> Value {
        self.run(&["list", "--json"]).code(0).json()
    }

    /// A daemon, when it serves. It does not outlive the test.
    fn start(&self, args: &[&str]) -> Server {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_blockyard")]).args(args);
        command.env("BLOCKYARD_RUNTIME_DIR", self.path("run")).current_dir(self.0.path());
        command.env_remove("LISTEN_FDS").env_remove("NOTIFY_SOCKET");
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let mut server = Server { child, said };
        let mut log = String::new();
        while !log.contains("serving ") {
            let len = server.said.read_line(&mut log).unwrap();
            assert!(len > 0, "it has ended: {:?}\n{log}", server.child.wait());
        }
        server
    }
}

struct Server {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Server {
    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        std::io::Read::read_to_string(&mut self.said, &mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }

    /// Its end is a success.
    #[track_caller]
    fn ends_well(self) {
        let (status, log) = self.ended();
        assert!(status.success(), "{status}\n{log}");
    }

    #[track_caller]
    fn stop(self) {
        self.signal(Signal::TERM);
        self.ends_well();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        blockyard_conformance::pause();
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_system_on_a_loop_device_is_in_the_disk_in_the_end() {
    in_own_mounts!();
    let place = Place::new();
    let file = place.file("f");
    let server = place.start(&["serve", "file:disk.img?create=64M", "--fuse", "f"]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 64 * MIB);
    let device = LoopDevice::attach(&["--direct-io=on", file.to_str().unwrap()]);
    peer("mkfs.ext4", &["-q", device.path()]);
    let root = place.directory("root");
    let unmount = Cleanup::with(&["umount", root.to_str().unwrap()]);
    peer("mount", &[device.path(), root.to_str().unwrap()]);
    let content = noise(3 << 20, 7);
    fs::write(root.join("a"), &content).unwrap();
    unmount.now();
    peer("fsck.ext4", &["-f", "-n", device.path()]);
    drop(device);
    let report = place.report();
    let export = report[0]["exports"].as_array().unwrap().iter().find(|it| it["kind"] == "fuse");
    let export = export.unwrap();
    assert_eq!((&export["disk"], &export["clients"]), (&"disk".into(), &1.into()), "{export}");
    assert!(export["requests"].as_u64().unwrap() > 10, "{export}");
    place.run(&["list"]).code(0).contains(&["disk at fuse:", "f (mounted, "]);
    server.stop();
    assert_eq!(fs::metadata(&file).unwrap().len(), 0, "what was there before");
    let image = place.path("disk.img");
    peer("fsck.ext4", &["-f", "-n", image.to_str().unwrap()]);
    let unmount = Cleanup::with(&["umount", root.to_str().unwrap()]);
    peer("mount", &["-o", "loop,ro", image.to_str().unwrap(), root.to_str().unwrap()]);
    assert_eq!(fs::read(root.join("a")).unwrap(), content);
    unmount.now();
}

#[test]
fn what_a_killed_daemon_leaves_is_told_and_cleaned_up_by_the_next() {
    in_own_mounts!();
    let place = Place::new();
    let (file, directory) = (place.file("f"), place.directory("d"));
    let yard = "[[disk]]\nuri = \"file:disk.img\"\ncreate = \"1M\"\n[[fuse]]\ndisk = \"disk\"\npath = \"f\"\n\
                [[mount]]\npath = \"d\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["up"]);
    let used = rw(&file);
    used.write_all_at(b"kept", 5000).unwrap();
    used.sync_all().unwrap();
    server.signal(Signal::KILL);
    assert!(!server.ended().0.success());
    assert_eq!(fs::metadata(&file).unwrap_err().raw_os_error(), Some(DEAD));
    assert_eq!(fs::metadata(&directory).unwrap_err().raw_os_error(), Some(DEAD));
    place.run(&["list"]).code(0).contains(&["was left mounted", "umount -l", "f", "d"]);
    let left = place.report();
    assert_eq!(left.as_array().unwrap().len(), 2, "{left}");
    let server = place.start(&["up"]);
    let mut back = [0; 4];
    rw(&file).read_exact_at(&mut back, 5000).unwrap();
    assert_eq!(&back, b"kept");
    assert_eq!(names(&directory), ["disk"]);
    assert!(used.read_at(&mut back, 0).is_err(), "it was of the server that is dead");
    drop(used);
    server.stop();
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    assert!(names(&directory).is_empty());
    assert_eq!(place.report().as_array().unwrap().len(), 0);
}

#[test]
fn a_new_size_and_read_only_are_seen() {
    in_own_mounts!();
    let place = Place::new();
    let (file, fixed) = (place.file("f"), place.file("g"));
    let args = ["serve", "ram:1M?name=a", "ram:1M?name=b&ro=1", "--fuse", "f", "--fuse", "g"];
    let server = place.start(&args);
    let used = rw(&file);
    place.run(&["set", "a", "size=4M"]).code(0);
    wait_until("the size is the old one", || fs::metadata(&file).unwrap().len() == 4 * MIB);
    used.write_all_at(b"end", 4 * MIB - 3).unwrap();
    let writes = |path| OpenOptions::new().write(true).open(path).map(drop);
    assert_eq!(writes(&fixed).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::metadata(&fixed).unwrap().permissions().mode() & 0o222, 0);
    place.run(&["set", "a", "read_only=1"]).code(0);
    wait_until("it is writable", || fs::metadata(&file).unwrap().permissions().mode() & 0o222 == 0);
    assert_eq!(writes(&file).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(used.write_at(b"x", 0).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    drop(used);
    server.stop();
}

/// Whoever ends it, all that was written is on the disk, and the daemon has nothing more to do.
#[test]
fn every_way_of_unmounting_ends_the_daemon_well() {
    in_own_mounts!();
    for how in [&["umount", "-l"][..], &["umount"], &["fusermount3", "-u"]] {
        let place = Place::new();
        let file = place.file("f");
        let server = place.start(&["serve", "file:disk.img?create=1M", "--fuse", "f"]);
        rw(&file).write_all_at(b"written", 1000).unwrap();
        peer(how[0], &[&how[1..], &[file.to_str().unwrap()]].concat());
        server.ends_well();
        let image = fs::read(place.path("disk.img")).unwrap();
        assert_eq!(&image[1000..1007], b"written", "{how:?}");
        assert_eq!(fs::metadata(&file).unwrap().len(), 0);
        assert_eq!(place.report().as_array().unwrap().len(), 0);
    }
}

/// A signal ends it, whoever has the file open: it is unmounted, and what was written is there.
#[test]
fn a_signal_ends_it_though_the_file_is_used() {
    in_own_mounts!();
    let place = Place::new();
    let file = place.file("f");
    let yard = "[[disk]]\nuri = \"file:disk.img\"\ncreate = \"1M\"\n[[fuse]]\ndisk = \"disk\"\npath = \"f\"\n\
                [threads]\nshutdown_grace = \"1s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["up"]);
    let used = rw(&file);
    used.write_all_at(b"written", 1000).unwrap();
    server.stop();
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    assert!(used.read_at(&mut [0; 1], 0).is_err());
    assert_eq!(&fs::read(place.path("disk.img")).unwrap()[1000..1007], b"written");
}

#[test]
fn disks_of_a_yard_come_and_go_in_its_directory() {
    in_own_mounts!();
    let place = Place::new();
    let directory = place.directory("d");
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[[disk]]\nname = \"b\"\nuri = \"ram:2M\"\nro = true\n\
                [nbd]\nlisten = \"unix:s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["mount", "yard.toml", "d"]);
    assert_eq!(names(&directory), ["a", "b"]);
    let mode =
        |name: &str| fs::metadata(directory.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("a"), mode("b")), (0o600, 0o400));
    assert_eq!(fs::metadata(directory.join("b")).unwrap().len(), 2 * MIB);
    place.run(&["add", "ram:3M?name=c"]).code(0);
    assert_eq!(names(&directory), ["a", "b", "c"]);
    assert_eq!(fs::metadata(directory.join("c")).unwrap().len(), 3 * MIB);
    let (kept, taken) = (rw(&directory.join("a")), rw(&directory.join("c")));
    taken.write_all_at(b"c", 0).unwrap();
    place.run(&["remove", "c"]).code(0);
    assert_eq!(names(&directory), ["a", "b"]);
    assert_eq!(fs::metadata(directory.join("c")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(taken.read_at(&mut [0; 1], 0).is_err());
    // Another of the same name is another.
    place.run(&["add", "ram:4M?name=c"]).code(0);
    assert_eq!(fs::metadata(directory.join("c")).unwrap().len(), 4 * MIB);
    let mut back = [7; 1];
    rw(&directory.join("c")).read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [0]);
    place.run(&["set", "a", "size=5M"]).code(0);
    wait_until("the size is the old one", || {
        fs::metadata(directory.join("a")).unwrap().len() == 5 * MIB
    });
    kept.write_all_at(b"a", 5 * MIB - 1).unwrap();
    drop((kept, taken));
    place.run(&["list"]).code(0).contains(&["all disks at mount:", "mounted"]);
    server.stop();
    assert!(names(&directory).is_empty());
}

#[test]
fn a_daemon_that_runs_mounts_and_saves_it() {
    in_own_mounts!();
    let place = Place::new();
    let (directory, file) = (place.directory("d"), place.file("f"));
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[nbd]\nlisten = \"unix:s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["up"]);
    let (pid, path) = (server.pid(), directory.to_str().unwrap());
    place.run(&["mount", &pid, "d", "--read-only"]).code(0);
    assert_eq!(names(&directory), ["a"]);
    let writes = OpenOptions::new().write(true).open(directory.join("a"));
    assert_eq!(writes.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    // Once more is the same; otherwise is not.
    place.run(&["mount", &pid, "d", "--read-only"]).code(0);
    place.run(&["mount", &pid, "d"]).code(75).contains(&["already"]);
    // Whoever has unmounted it, it can be mounted again.
    peer("umount", &[path]);
    wait_until("it is mounted", || {
        let report = place.report();
        let of_kind = |it: &&Value| it["kind"] == "mount";
        let exports = report[0]["exports"].as_array().unwrap();
        exports.iter().find(of_kind).is_none_or(|it| it["clients"] == 0)
    });
    place.run(&["mount", &pid, "d"]).code(0);
    rw(&directory.join("a")).write_all_at(b"now", 0).unwrap();
    // With a file of its own, and without after it was removed.
    place.run(&["add", "ram:2M", "--name", "b", "--fuse", "f", "--no-nbd", "--save"]).code(0);
    assert_eq!(fs::metadata(&file).unwrap().len(), 2 * MIB);
    let saved = fs::read_to_string(place.path("yard.toml")).unwrap();
    assert!(saved.contains("[[fuse]]\ndisk = \"b\"\npath = \""), "{saved}");
    place.run(&["up", "--check"]).code(0);
    place.run(&["remove", "b", "--save"]).code(0);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
    assert!(!fs::read_to_string(place.path("yard.toml")).unwrap().contains("fuse"));
    server.stop();
    assert!(names(&directory).is_empty());
}

/// Whoever adds it says where it is served: there, and nowhere else, after a restart too.
#[test]
fn a_disk_that_was_saved_without_nbd_is_not_on_the_network_later() {
    in_own_mounts!();
    let place = Place::new();
    let file = place.file("f");
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[nbd]\nlisten = \"unix:s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let exports = || {
        let uri = format!("nbd+unix:///?socket={}", place.path("s").display());
        let listed = peer("nbdinfo", &["--list", "--json", &uri]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let exports = listed["exports"].as_array().unwrap();
        exports.iter().map(|it| it["export-name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let server = place.start(&["up"]);
    place.run(&["add", "ram:2M", "--name", "b", "--fuse", "f", "--no-nbd", "--save"]).code(0);
    assert_eq!(exports(), ["a"]);
    server.stop();
    let server = place.start(&["up"]);
    assert_eq!((exports(), fs::metadata(&file).unwrap().len()), (vec!["a".to_owned()], 2 * MIB));
    place.run(&["add", "ram:3M", "--name", "c", "--save"]).code(0);
    server.stop();
    let server = place.start(&["up"]);
    assert_eq!(exports(), ["a", "c"]);
    server.stop();
}

/// What cannot be unmounted is not said to be gone, and nobody is served by it any more.
#[test]
fn an_export_that_cannot_be_unmounted_is_told_of_and_serves_nobody() {
    in_own_mounts!();
    let place = Place::new();
    let (file, covering) = (place.file("f"), place.file("covering"));
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[[fuse]]\ndisk = \"a\"\npath = \"f\"\n\
                [threads]\nshutdown_grace = \"1s\"\n[nbd]\nlisten = \"unix:s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["up"]);
    let used = rw(&file);
    used.write_all_at(b"before", 0).unwrap();
    peer("mount", &["--bind", covering.to_str().unwrap(), file.to_str().unwrap()]);
    let uncover = Cleanup::with(&["umount", file.to_str().unwrap()]);
    // Then the disk stays, too.
    place.run(&["remove", "a"]).code(75).contains(&["covered by another mount", "umount"]);
    used.write_at(b"after", 0).unwrap_err();
    uncover.now();
    place.run(&["remove", "a"]).code(0);
    drop(used);
    server.stop();
    peer("umount", &["-l", file.to_str().unwrap()]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
}

/// Nor when the daemon ends.
#[test]
fn an_end_that_leaves_a_mount_is_a_failure_that_names_it() {
    in_own_mounts!();
    let place = Place::new();
    let (file, covering) = (place.file("it's f"), place.file("covering"));
    let shown = file.to_str().unwrap();
    let server = place.start(&["serve", "ram:1M", "--fuse", shown]);
    peer("mount", &["--bind", covering.to_str().unwrap(), shown]);
    server.signal(Signal::TERM);
    let (status, log) = server.ended();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains(&format!("{shown} is still mounted")), "{log}");
    assert!(log.contains(&format!("umount \"{shown}\"")), "{log}");
    peer("umount", &[shown]);
    peer("umount", &["-l", shown]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 0);
}

/// The kernel writes back through it from then on, also to get memory: see `tests/vm/pressure.sh` for its threads.
#[test]
fn a_daemon_keeps_its_memory_once_it_mounts_something() {
    in_own_mounts!();
    let place = Place::new();
    let _ = place.directory("d");
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[nbd]\nlisten = \"unix:s\"\n";
    fs::write(place.path("yard.toml"), yard).unwrap();
    let server = place.start(&["up"]);
    let locked = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        locked.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert_eq!(locked(), 0);
    place.run(&["mount", &server.pid(), "d"]).code(0);
    assert!(locked() > 0);
    server.stop();
}

#[test]
fn what_cannot_be_mounted_is_told_before_anybody_is_served() {
    in_own_mounts!();
    let place = Place::new();
    let _ = (place.file("f"), place.directory("d"));
    for (args, code, parts) in [
        (&["serve", "ram:1M", "--fuse", "none"][..], 1, &["none", "touch"][..]),
        (&["serve", "ram:1M", "--fuse", "d"], 64, &["not a regular file"]),
        (&["serve", "ram:1M", "--fuse", "f", "--fuse", "f"], 64, &["--fuse is given 2 times"]),
        (&["serve", "ram:1M", "--fuse", "f", "--name", "x"], 64, &["--name", "NBD"]),
        (&["mount", "none.toml", "d"], 1, &["none.toml"]),
        (&["mount", "999999999", "d"], 1, &["no daemon", "999999999"]),
    ] {
        place.run(args).code(code).contains(parts);
    }
    fs::write(place.path("yard.toml"), "[[disk]]\nuri = \"ram:1M\"\n[[fuse]]\ndisk = \"ram0\"\n")
        .unwrap();
    place.run(&["up", "--check"]).code(64).contains(&["no path to mount on"]);
    fs::write(place.path("yard.toml"), "[[disk]]\nuri = \"ram:1M\"\n").unwrap();
    place.run(&["mount", "yard.toml", "f"]).code(64).contains(&["not a directory"]);
}
