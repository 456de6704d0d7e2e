//! What a system does with such files: file systems on them, and servers that are killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use blockyard_conformance::{LoopDevice, QueueThread, in_own_mounts};
use blockyard_export_fuse::{Config, Left, Mount, Shown, clean_up, leftovers};
use common::*;

const MIB: u64 = 1 << 20;

/// A loop device on such a file is a disk like any other.
#[test]
fn ext4_on_a_loop_device_is_sound() {
    in_own_mounts!();
    let disk = ram("ram0", 64 * MIB);
    let mut mounted = Mounted::file(&disk);
    let file = mounted.path();
    for direct in ["--direct-io=off", "--direct-io=on"] {
        let device = LoopDevice::attach(&[direct, file.to_str().unwrap()]);
        peer("mkfs.ext4", &["-q", device.path()]);
        let root = mounted.dir().join("mnt");
        fs::create_dir_all(&root).unwrap();
        let root = root.to_str().unwrap();
        let unmount = Cleanup::with(&["umount", root]);
        peer("mount", &[device.path(), root]);
        let content: Vec<u8> = (0..3 * MIB).map(|at| (at * at / 7 % 251) as u8).collect();
        for name in ["a", "b", "c"] {
            fs::write(Path::new(root).join(name), &content).unwrap();
        }
        fs::remove_file(Path::new(root).join("b")).unwrap();
        peer("fstrim", &[root]);
        unmount.now();
        peer("fsck.ext4", &["-f", "-n", device.path()]);
        let unmount = Cleanup::with(&["umount", root]);
        peer("mount", &["-o", "ro", device.path(), root]);
        assert_eq!(fs::read(Path::new(root).join("c")).unwrap(), content);
        unmount.now();
        drop(device);
        peer("fsck.ext4", &["-f", "-n", file.to_str().unwrap()]);
    }
    mounted.stop();
}

/// Where the server of the next test is to mount.
const SERVE_AT: &str = "BLOCKYARD_TEST_SERVE_AT";

/// Not a test but the server of the next one, in a process of its own.
#[test]
fn server() {
    let Some(place) = std::env::var_os(SERVE_AT).map(PathBuf::from) else { return };
    let disk = ram("ram0", MIB);
    let (_threads, handles) = QueueThread::start_many(THREADS);
    let config = Config::new(place.join("disk"), place.join("records"));
    let _mount = Mount::start(&config, Shown::File(open(&disk)), &handles).unwrap();
    println!("\nserving");
    // Until whoever started it is gone, at the latest.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The server, killed when this is dropped.
struct Server {
    process: Child,
    /// What it says. Open as long as it lives, which it goes on to write to.
    said: BufReader<ChildStdout>,
}

impl Server {
    fn start(place: &Path) -> Self {
        Self::run(Command::new(std::env::current_exe().unwrap()), place)
    }

    fn run(mut command: Command, place: &Path) -> Self {
        command.args(["--exact", "server", "--nocapture"]).env(SERVE_AT, place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut server = Self { process, said };
        let mut lines = server.said.by_ref().lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "serving"), "the server has ended");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_a_killed_server_leaves_is_found_and_cleaned_up_and_nothing_else() {
    in_own_mounts!();
    let place = tempfile::tempdir().unwrap();
    let (path, records) = (place.path().join("disk"), place.path().join("records"));
    fs::write(&path, "below").unwrap();
    let unmount = Cleanup::with(&["umount", path.to_str().unwrap()]);
    let server = Server::start(place.path());
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
    // One that lives is left alone.
    assert_eq!(leftovers(&records).unwrap(), []);
    assert_eq!(clean_up(&records).unwrap(), []);
    let file = fs::File::open(&path).unwrap();
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    drop(server);
    // Its mount answers nothing any more.
    assert!(file.read_at(&mut [0; 512], 0).is_err());
    assert_eq!(fs::metadata(&path).unwrap_err().raw_os_error(), Some(107));
    let left = leftovers(&records).unwrap();
    assert_eq!((left.len(), &left[0].left, &left[0].path), (1, &Left::Mounted, &path));
    // Records of others, and those of a newer program, stay as they are; what they say is not believed.
    let text = fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(text).unwrap();
    let newer = text.replace("\"version\":1", "\"version\":99");
    fs::write(records.join("00000000000000aa.json"), newer).unwrap();
    fs::write(records.join("00000000000000bb.json"), &text).unwrap();
    fs::write(records.join("torn.json"), &text[..10]).unwrap();
    // The next start at the same place takes it away by itself.
    let disk = ram("ram0", 2 * MIB);
    let (_threads, handles) = QueueThread::start_many(THREADS);
    let config = Config::new(&path, &records);
    let mount = Mount::start(&config, Shown::File(open(&disk)), &handles).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * MIB);
    assert_eq!(fs::read_dir(&records).unwrap().count(), 4, "three are left alone, one is new");
    drop(mount);
    assert_eq!(fs::read_to_string(&path).unwrap(), "below");
    drop(unmount);
}

/// Writers do not hang when their server dies, and what it acknowledged before is not lost by the next one.
#[test]
fn a_server_that_is_killed_under_load_hangs_nobody() {
    in_own_mounts!();
    let place = tempfile::tempdir().unwrap();
    let (path, records) = (place.path().join("disk"), place.path().join("records"));
    fs::write(&path, "").unwrap();
    for _ in 0..3 {
        let unmount = Cleanup::with(&["umount", path.to_str().unwrap()]);
        let server = Server::start(place.path());
        let (begun, begins) = std::sync::mpsc::channel();
        let writer = |_| {
            let (file, begun) =
                (fs::OpenOptions::new().write(true).open(&path).unwrap(), begun.clone());
            std::thread::spawn(move || {
                let block = [7; 8192];
                for round in 0.. {
                    if let Err(err) = file.write_all_at(&block, round % 64 * 8192) {
                        return err;
                    }
                    if round == 100 {
                        begun.send(()).unwrap();
                    }
                }
                unreachable!()
            })
        };
        let writers: Vec<_> = (0..4).map(writer).collect();
        begins.recv().unwrap();
        drop(server);
        for writer in writers {
            // ECONNABORTED for what was with the server, ENOTCONN for what comes later.
            let errno = writer.join().unwrap().raw_os_error();
            assert!(matches!(errno, Some(103 | 107)), "{errno:?}");
        }
        let left = clean_up(&records).unwrap();
        assert_eq!((left.len(), &left[0].left), (1, &Left::Cleaned));
        assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "what was there before");
        drop(unmount);
    }
}

/// A user without any right mounts by fusermount3, and unmounts by it.
#[test]
fn a_user_may_mount_too() {
    in_own_mounts!();
    const NOBODY: u32 = 65534;
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(place.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let path = place.path().join("disk");
    fs::write(&path, "").unwrap();
    std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    // Where nobody may read this file.
    let program = place.path().join("server");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    // In a mount namespace of its own, which goes with the server, and where everybody may open the device.
    let script = "mount -t tmpfs none /mnt && mknod -m 666 /mnt/fuse c 10 229 && \
        mount --bind /mnt/fuse /dev/fuse && exec \"$@\"";
    let user = [&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"];
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", "setpriv"]).args(user).arg(&program);
    let mut server = Server::run(command, place.path());
    let pid = server.process.id().to_string();
    let inside = ["-t", &pid, "-m", "setpriv"].into_iter().chain(user);
    let path = path.to_str().unwrap();
    let stat: Vec<_> = inside.chain(["stat", "-c", "%s %U %a", path]).collect();
    assert_eq!(peer("nsenter", &stat), format!("{MIB} nobody 600\n"));
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    assert!(mounts.contains("fuse.blockyard"), "{mounts}");
    // It ends, and takes its mount away.
    drop(server.process.stdin.take());
    assert!(server.process.wait().unwrap().success());
    assert_eq!(fs::read_dir(place.path().join("records")).unwrap().count(), 0);
}

/// The kernel ends a session when it is told to: nothing stays mounted when its server stops.
#[test]
fn a_session_that_is_aborted_is_taken_away() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let mut mounted = Mounted::file(&disk);
    let control = mounted.dir().join("control");
    fs::create_dir(&control).unwrap();
    peer("mount", &["-t", "fusectl", "none", control.to_str().unwrap()]);
    let unmount = Cleanup::with(&["umount", control.to_str().unwrap()]);
    // stat(2) would ask the disk of its size; the number of the device is the connection's.
    let device = std::os::unix::fs::MetadataExt::dev(&fs::metadata(mounted.path()).unwrap());
    fs::write(control.join(rustix::fs::minor(device).to_string()).join("abort"), "1").unwrap();
    unmount.now();
    mounted.over();
    assert_eq!(fs::metadata(mounted.path()).unwrap_err().raw_os_error(), Some(107));
    mounted.stop();
    assert_eq!(fs::metadata(mounted.path()).unwrap().len(), 0);
    assert_eq!(mounted.records(), 0);
}

/// A record of a dead server says what was mounted there: what somebody else has mounted there since is his.
#[test]
fn mounts_of_others_are_left_alone() {
    in_own_mounts!();
    let place = tempfile::tempdir().unwrap();
    let (path, records) = (place.path().join("disk"), place.path().join("records"));
    fs::write(&path, "").unwrap();
    let mut server = Server::start(place.path());
    let unmount = Cleanup::with(&["umount", path.to_str().unwrap()]);
    let record = fs::read_dir(&records).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&record).unwrap();
    // As if an earlier server had died, and its mount had been taken away.
    let mark = "00000000000000cc";
    let own = record.file_stem().unwrap().to_str().unwrap();
    fs::write(records.join(format!("{mark}.json")), text.replace(own, mark)).unwrap();
    let left = clean_up(&records).unwrap();
    assert_eq!((left.len(), &left[0].left), (1, &Left::Nothing));
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB, "still mounted");
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    // Without its record, nobody of ours can tell whose it is.
    fs::remove_file(&record).unwrap();
    assert_eq!(clean_up(&records).unwrap(), []);
    let disk = ram("ram0", MIB);
    let (_threads, handles) = QueueThread::start_many(1);
    let started = Mount::start(&Config::new(&path, &records), Shown::File(open(&disk)), &handles);
    let error = started.map(drop).unwrap_err();
    assert!(error.remedy().is_some_and(|it| it.contains("umount -l")), "{error}");
    unmount.now();
}

/// Where the records are that the next but one test has cleaned up.
const CLEAN_UP: &str = "BLOCKYARD_TEST_CLEAN_UP";

/// Not a test but a process of the next one, in a mount namespace of its own.
#[test]
fn cleaner() {
    let Some(records) = std::env::var_os(CLEAN_UP).map(PathBuf::from) else { return };
    let left = clean_up(&records).unwrap();
    let stuck = matches!(&left[..], [only] if matches!(only.left, Left::Stuck(_)));
    assert!(stuck, "{left:?}");
}

/// The mounts of another mount namespace are not to be judged by the copies of them that are in this one.
#[test]
fn what_is_mounted_in_another_namespace_is_left_to_those_in_it() {
    in_own_mounts!();
    let place = tempfile::tempdir().unwrap();
    let (path, records) = (place.path().join("disk"), place.path().join("records"));
    fs::write(&path, "").unwrap();
    let unmount = Cleanup::with(&["umount", path.to_str().unwrap()]);
    drop(Server::start(place.path()));
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", "cleaner"]).env(CLEAN_UP, &records).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let left = clean_up(&records).unwrap();
    assert_eq!((left.len(), &left[0].left), (1, &Left::Cleaned));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0, "what was there before");
    // A namespace that nobody is in any more has taken its mounts along.
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(std::env::current_exe().unwrap());
    drop(Server::run(command, place.path()));
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let left = clean_up(&records).unwrap();
        match &left[..] {
            [only] if only.left == Left::Nothing => break,
            // One of another test may have its number for a while.
            [only] if matches!(only.left, Left::Stuck(_)) => {
                assert!(Instant::now() < end, "{only:?}");
            }
            _ => panic!("{left:?}"),
        }
        blockyard_conformance::pause();
    }
    assert_eq!(fs::read_dir(&records).unwrap().count(), 0);
    drop(unmount);
}

#[test]
fn what_a_killed_server_leaves_is_found_where_it_is() {
    in_own_mounts!();
    let place = tempfile::tempdir().unwrap();
    let (before, after) = (place.path().join("before"), place.path().join("after"));
    fs::create_dir(&before).unwrap();
    fs::write(before.join("disk"), "").unwrap();
    let server = Server::start(&before);
    fs::rename(&before, &after).unwrap();
    let moved = after.join("disk");
    let unmount = Cleanup::with(&["umount", moved.to_str().unwrap()]);
    drop(server);
    let covering = place.path().join("covering");
    fs::write(&covering, "covering").unwrap();
    peer("mount", &["--bind", covering.to_str().unwrap(), moved.to_str().unwrap()]);
    let uncover = Cleanup::with(&["umount", moved.to_str().unwrap()]);
    let records = after.join("records");
    let left = clean_up(&records).unwrap();
    assert!(matches!(&left[..], [only] if matches!(only.left, Left::Stuck(_))), "{left:?}");
    assert_eq!(fs::read_to_string(&moved).unwrap(), "covering");
    uncover.now();
    let left = clean_up(&records).unwrap();
    assert_eq!((left.len(), &left[0].left, &left[0].path), (1, &Left::Cleaned, &moved));
    assert_eq!(fs::metadata(&moved).unwrap().len(), 0, "what was there before");
    drop(unmount);
}

/// Where the next test is to hang.
const HANG_AT: &str = "BLOCKYARD_TEST_HANG_AT";

/// Not a test but one that is cut off, in a process of the next one.
#[test]
fn hanging() {
    let Some(place) = std::env::var_os(HANG_AT).map(PathBuf::from) else { return };
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let (_threads, handles) = QueueThread::start_many(THREADS);
    let config = Config::new(place.join("disk"), place.join("records"));
    let _mount = Mount::start(&config, Shown::File(open(&disk)), &handles).unwrap();
    fs::write(place.join("next"), std::process::id().to_string()).unwrap();
    fs::rename(place.join("next"), place.join("pid")).unwrap();
    // Until whoever started it is gone, at the latest.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// The test is killed, and has no say in the end of its mounts.
#[test]
fn a_test_that_is_cut_off_leaves_no_mount() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("disk"), "below").unwrap();
    let unmount = Cleanup::with(&["umount", place.path().join("disk").to_str().unwrap()]);
    let mut command = Command::new(std::env::current_exe().unwrap());
    // It has no say in the end of its temporary files either.
    command.args(["--exact", "hanging"]).env(HANG_AT, place.path()).env("TMPDIR", place.path());
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let pid = loop {
        match fs::read_to_string(place.path().join("pid")) {
            Ok(pid) => break pid,
            Err(err) => assert!(Instant::now() < end, "it does not mount: {err}"),
        }
        assert_eq!(process.try_wait().unwrap(), None, "it has ended");
        blockyard_conformance::pause();
    };
    process.kill().unwrap();
    process.wait().unwrap();
    // Nobody of ours has to reap it: the number may be another's later, and there is no such process in a namespace of ours then.
    let namespace = PathBuf::from(format!("/proc/{pid}/ns/mnt"));
    while fs::read_link(&namespace).is_ok() {
        assert!(Instant::now() < end, "process {pid} of the test lives on");
        blockyard_conformance::pause();
    }
    assert_eq!(fs::read_to_string(place.path().join("disk")).unwrap(), "below");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(place.path().to_str().unwrap()), "{mounts}");
    drop(unmount);
    place.close().unwrap();
}
