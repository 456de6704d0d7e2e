//! What a system does with such files: file systems on them, and servers that are killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use blockyard_conformance::QueueThread;
use blockyard_export_fuse::{Config, Left, Mount, Shown, clean_up, leftovers};
use common::*;

const MIB: u64 = 1 << 20;

/// A loop device on such a file is a disk like any other.
#[test]
fn ext4_on_a_loop_device_is_sound() {
    let disk = ram("ram0", 64 * MIB);
    let mut mounted = Mounted::file(&disk);
    let file = mounted.path();
    for direct in ["--direct-io=off", "--direct-io=on"] {
        let attach = ["--find", "--show", direct, file.to_str().unwrap()];
        let device = peer("losetup", &attach).trim().to_owned();
        let detach = Cleanup::with(&["losetup", "-d", &device]);
        peer("mkfs.ext4", &["-q", &device]);
        let root = mounted.dir().join("mnt");
        fs::create_dir_all(&root).unwrap();
        let root = root.to_str().unwrap();
        let unmount = Cleanup::with(&["umount", root]);
        peer("mount", &[&device, root]);
        let content: Vec<u8> = (0..3 * MIB).map(|at| (at * at / 7 % 251) as u8).collect();
        for name in ["a", "b", "c"] {
            fs::write(Path::new(root).join(name), &content).unwrap();
        }
        fs::remove_file(Path::new(root).join("b")).unwrap();
        peer("fstrim", &[root]);
        unmount.now();
        peer("fsck.ext4", &["-f", "-n", &device]);
        let unmount = Cleanup::with(&["umount", root]);
        peer("mount", &["-o", "ro", &device, root]);
        assert_eq!(fs::read(Path::new(root).join("c")).unwrap(), content);
        unmount.now();
        detach.now();
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
struct Server(Child);

impl Server {
    fn start(place: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "server", "--nocapture"]).env(SERVE_AT, place);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = Self(command.spawn().unwrap());
        let said = BufReader::new(server.0.stdout.take().unwrap()).lines();
        let serving = said.map(Result::unwrap).any(|line| line == "serving");
        assert!(serving, "the server has ended");
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_killed_server_leaves_is_found_and_cleaned_up_and_nothing_else() {
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

/// A record of a dead server says what was mounted there: what somebody else has mounted there since is his.
#[test]
fn mounts_of_others_are_left_alone() {
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
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    // Without its record, nobody of ours can tell whose it is.
    fs::remove_file(&record).unwrap();
    assert_eq!(clean_up(&records).unwrap(), []);
    let disk = ram("ram0", MIB);
    let (_threads, handles) = QueueThread::start_many(1);
    let started = Mount::start(&Config::new(&path, &records), Shown::File(open(&disk)), &handles);
    let error = started.map(drop).unwrap_err();
    assert!(error.to_string().contains("umount -l"), "{error}");
    unmount.now();
}
