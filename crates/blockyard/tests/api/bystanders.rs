//! Who uses a disk notices nothing of what becomes of others: while one that does not answer is added, changed, taken from its
//! clients and removed, everybody else goes on, by whichever front-end, and other changes are made.
//!
//! Each change is held up by its disk, whose server has been stopped, until all bystanders have completed so many operations: no
//! clock is needed to tell that they were not kept waiting.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockyard_conformance::blk_driver::BlkDriver;
use blockyard_conformance::faulty::{Call, Faulty};
use blockyard_conformance::front_end::{DATA, FrontEnd};
use blockyard_conformance::{cases, in_own_mounts};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::changes::ask;
use crate::common::{Daemon, Guard, blockyard, nbdkit, noise, unix};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Verified operations that each bystander completes while a change is held up.
const LEAST: u64 = 20;
const BLOCK: usize = 4096;
/// Blocks of a disk that a bystander uses.
const SLOTS: usize = 64;
const MIB: u64 = 1 << 20;
/// Requests that a client has out to a disk that is held up, too far apart to be one.
const MANY: u64 = 100;
const APART: u64 = 16 << 10;
/// Where a disk that is held up is used: past all that was read when it was opened.
const FAR: u64 = 4 * MIB;

/// One queue thread: whoever makes it wait makes everybody wait.
const YARD: &str = r#"
[threads]
count = 1
shutdown_grace = "5m"

[nbd]
listen = "unix:s"

[[disk]]
name = "memory"
uri = "ram:1M"

[[disk]]
name = "kept"
uri = "file:kept.img"
create = "1M"

[[disk]]
name = "guest"
uri = "ram:1M"

[[disk]]
name = "shown"
uri = "ram:1M"

[[export]]
disk = "memory"

[[export]]
disk = "kept"

[[vhost_user_blk]]
disk = "guest"
socket = "guest.sock"

[[fuse]]
disk = "shown"
path = "shown.raw"

[[mount]]
path = "all"
page_cache = true
"#;

#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        blockyard_conformance::pause();
    }
}

/// A generator of numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }
}

/// A client of a disk, by one of the front-ends.
trait Client: Send + 'static {
    fn write(&mut self, at: u64, bytes: &[u8]);
    fn read(&mut self, at: u64, len: usize) -> Vec<u8>;
}

impl Client for File {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.write_all_at(bytes, at).unwrap();
    }

    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

/// By NBD, as plainly as it can be spoken.
pub(crate) struct Nbd(UnixStream);

impl Nbd {
    pub(crate) fn connect(socket: &Path, export: &str) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        // "fixed newstyle", no zeroes; then NBD_OPT_EXPORT_NAME.
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        let len = u32::try_from(export.len()).unwrap().to_be_bytes();
        let option = [&b"IHAVEOPT"[..], &1_u32.to_be_bytes(), &len, export.as_bytes()];
        stream.write_all(&option.concat()).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        Self(stream)
    }

    /// Sends a request, whose reply may be a while in coming.
    pub(crate) fn send(&mut self, command: u16, at: u64, len: usize) {
        let len = u32::try_from(len).unwrap();
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &0_u16.to_be_bytes()];
        let what = [&command.to_be_bytes()[..], &7_u64.to_be_bytes(), &at.to_be_bytes()];
        self.0
            .write_all(&[head.concat(), what.concat(), len.to_be_bytes().into()].concat())
            .unwrap();
    }

    fn reply(&mut self) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4]].concat());
    }
}

impl Client for Nbd {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.send(1, at, bytes.len());
        self.0.write_all(bytes).unwrap();
        self.reply();
    }

    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.send(0, at, len);
        self.reply();
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// One who uses what is behind an offset.
struct Behind<C>(u64, C);

impl<C: Client> Client for Behind<C> {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.1.write(self.0 + at, bytes);
    }

    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        self.1.read(self.0 + at, len)
    }
}

/// As a guest by virtio-blk.
impl Client for FrontEnd {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.bytes(DATA, bytes.len()).copy_from(bytes);
        assert_eq!(self.request(1, at / 512, u32::try_from(bytes.len()).unwrap()), 0);
    }

    fn read(&mut self, at: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.request(0, at / 512, u32::try_from(len).unwrap()), 0);
        self.bytes(DATA, len).to_vec()
    }
}

/// Somebody who verifies what he reads, all the time.
struct Bystander {
    name: &'static str,
    /// Operations so far.
    done: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

fn content(slot: usize, version: u64) -> Vec<u8> {
    if version == 0 { vec![0; BLOCK] } else { noise(BLOCK, version << 8 | slot as u64) }
}

impl Bystander {
    fn start(name: &'static str, seed: u64, mut client: impl Client) -> Self {
        let (done, is_over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (Arc::clone(&done), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut dice = Dice(seed);
            let mut versions = [0; SLOTS];
            for version in 1.. {
                let [written, read] = [(); 2].map(|()| dice.below(versions.len()));
                client.write((written * BLOCK) as u64, &content(written, version));
                versions[written] = version;
                let found = client.read((read * BLOCK) as u64, BLOCK);
                assert!(found == content(read, versions[read]), "{name}: block {read} is another");
                count.fetch_add(1, Ordering::Relaxed);
                if end.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        Self { name, done, is_over, thread }
    }
}

/// A server of disks that can be stopped.
pub(crate) struct Holding(Pid);

impl Holding {
    pub(crate) fn new(pid: u32) -> Self {
        Self(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap())
    }

    /// From now on it answers nothing.
    pub(crate) fn hold(&self) {
        kill_process(self.0, Signal::STOP).unwrap();
        let tasks = format!("/proc/{}/task", self.0.as_raw_nonzero());
        let is_stopped = |task: fs::DirEntry| {
            // A thread that has ended meanwhile has stopped, too.
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        wait_until("it does not stop", || {
            fs::read_dir(&tasks).unwrap().all(|task| is_stopped(task.unwrap()))
        });
    }

    pub(crate) fn release(&self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

/// What a client of a disk that is held up is left with.
type Victim = mpsc::Receiver<()>;

/// Runs what somebody does who is held up, and tells of its end.
fn victim(work: impl FnOnce() + Send + 'static) -> Victim {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        work();
        let _ = tell.send(());
    });
    told
}

/// A daemon, its bystanders, and what is added to it.
struct Scene {
    bystanders: Vec<Bystander>,
    daemon: Daemon,
}

impl Scene {
    fn start(seed: u64) -> Self {
        let dir = TempDir::new().unwrap();
        for file in ["shown.raw", "hung.raw"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        for directory in ["all", "tree", "there"] {
            fs::create_dir(dir.path().join(directory)).unwrap();
        }
        fs::write(dir.path().join("yard.toml"), YARD).unwrap();
        let mut up = blockyard(&dir.path().join("run"));
        up.args(["up", "-f", "yard.toml"]);
        let daemon = Daemon::start(up, dir, 1);
        let socket = daemon.path("s");
        let shown = rw(&daemon.path("shown.raw"));
        let guest = FrontEnd::started(&daemon.path("guest.sock"), 0);
        let bystanders = vec![
            Bystander::start("memory by NBD", seed, Nbd::connect(&socket, "memory")),
            Bystander::start("a file by NBD", seed + 1, Nbd::connect(&socket, "kept")),
            Bystander::start("memory by vhost-user-blk", seed + 2, guest),
            Bystander::start("memory by FUSE", seed + 3, shown),
        ];
        Self { bystanders, daemon }
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, answer) = ask(&self.daemon, method, path, "", body);
        (
            status,
            if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).unwrap() },
        )
    }

    /// Asks for what is done.
    #[track_caller]
    fn done(&self, method: &str, path: &str, body: &Value) {
        let (status, answer) = self.ask(method, path, body);
        assert!(status < 300, "{method} {path}: {status} {answer}");
    }

    /// Everybody goes on.
    #[track_caller]
    fn all_go_on(&self, during: &str) {
        let done = |it: &Bystander| it.done.load(Ordering::Relaxed);
        let wanted: Vec<_> = self.bystanders.iter().map(|it| done(it) + LEAST).collect();
        for (it, wanted) in self.bystanders.iter().zip(wanted) {
            wait_until(&format!("{} waits during {during}", it.name), || {
                assert!(!it.thread.is_finished(), "{} has failed during {during}", it.name);
                done(it) >= wanted
            });
        }
    }

    /// A change that is held up, with all that goes on meanwhile.
    fn held(&self, holding: &Holding, (method, path): (&str, &str), body: &Value) {
        let what = format!("{method} {path} {body}");
        std::thread::scope(|scope| {
            let change = scope.spawn(|| self.ask(method, path, body));
            wait_until(&format!("{what} does not begin"), || {
                assert!(!change.is_finished(), "{what} is not held up");
                let jobs = self.ask("GET", "/v1/jobs", &Value::Null).1;
                let mut jobs = jobs.as_array().unwrap().iter();
                jobs.any(|job| job["subject"] == "hung" && job["state"] == "running")
            });
            self.all_go_on(&what);
            self.done("PUT", "/v1/disks/other", &json!({ "uri": "ram:1M" }));
            self.done("PUT", "/v1/exports/nbd/other", &json!({ "disk": "other" }));
            self.done("DELETE", "/v1/exports/nbd/other", &Value::Null);
            self.done("DELETE", "/v1/disks/other", &Value::Null);
            self.all_go_on(&what);
            assert!(!change.is_finished(), "{what} has not waited");
            holding.release();
            let (status, answer) = change.join().unwrap();
            assert!(status < 300, "{what}: {status} {answer}");
        });
    }

    fn wait_in_flight(&self) {
        wait_until("nothing is in flight", || {
            self.ask("GET", "/v1/disks/hung", &Value::Null).1["in_flight"] != 0
        });
    }

    /// Serves the disk by a front-end, and has a client of it in the middle of something when it is taken away.
    fn export_goes(&self, front: Front, holding: &Holding) {
        let path = format!("/v1/exports/{}/hung", front.name());
        let (socket, file) = (self.daemon.path("hung.sock"), self.daemon.path("hung.raw"));
        let body = match front {
            Front::Nbd => json!({ "disk": "hung" }),
            Front::VhostUserBlk => json!({ "disk": "hung", "socket": socket }),
            Front::Fuse => json!({ "disk": "hung", "path": file }),
        };
        self.done("PUT", &path, &body);
        let begin: Box<dyn FnOnce() -> Victim> = match front {
            Front::Nbd => {
                let mut client = Nbd::connect(&self.daemon.path("s"), "hung");
                Box::new(move || {
                    // More than the kernel has threads for.
                    (0..MANY).for_each(|at| client.send(0, FAR + at * APART, BLOCK));
                    client.send(0, FAR, 256 << 10);
                    // What there is to flush in the end.
                    client.send(1, FAR + MIB, BLOCK);
                    client.0.write_all(&[7; BLOCK]).unwrap();
                    victim(move || drop(client.0.read_to_end(&mut Vec::new())))
                })
            }
            Front::VhostUserBlk => {
                let guest = FrontEnd::started(&socket, 0);
                Box::new(move || {
                    guest.chain(1, FAR / 512, u32::try_from(BLOCK).unwrap());
                    let before = guest.used_index(0);
                    guest.offer(0, 0);
                    guest.kick(0);
                    victim(move || guest.wait_used(0, before.wrapping_add(1)))
                })
            }
            Front::Fuse => {
                let file = rw(&file);
                Box::new(move || victim(move || file.write_all_at(&[7; BLOCK], FAR).unwrap()))
            }
        };
        holding.hold();
        let victim = begin();
        self.wait_in_flight();
        self.held(holding, ("DELETE", &path), &Value::Null);
        victim.recv_timeout(PATIENCE).expect("it waits though it has its answer");
    }

    /// Removes the disk, with a last flush.
    fn disk_goes(&self, holding: &Holding) {
        holding.hold();
        self.held(holding, ("DELETE", "/v1/disks/hung"), &Value::Null);
    }

    /// Removes it while somebody reads it in the directory of all disks.
    fn disk_goes_from_directory(&self, holding: &Holding) {
        let file = File::open(self.daemon.path("all/hung")).unwrap();
        holding.hold();
        // Its pages are locked until it ends.
        let victim = victim(move || drop(file.read_at(&mut [0; BLOCK], FAR)));
        self.wait_in_flight();
        self.held(holding, ("DELETE", "/v1/disks/hung"), &Value::Null);
        victim.recv_timeout(PATIENCE).expect("it waits though its disk is gone");
    }

    fn end(self) {
        self.all_go_on("the rest");
        for it in self.bystanders {
            it.is_over.store(true, Ordering::Relaxed);
            it.thread.join().unwrap();
        }
        self.daemon.stop();
    }
}

fn rw(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[derive(Clone, Copy)]
enum Front {
    Nbd,
    VhostUserBlk,
    Fuse,
}

impl Front {
    const ALL: [Self; 3] = [Self::Nbd, Self::VhostUserBlk, Self::Fuse];

    fn name(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::VhostUserBlk => "vhost-user-blk",
            Self::Fuse => "fuse",
        }
    }
}

/// A disk is added, made larger, served by a front-end, or by none but the directory of all disks, and removed, each time
/// with its server stopped in the middle of it. One is at an NBD server, one a file in a file system that does not answer.
#[test]
fn who_uses_other_disks_goes_on_whatever_a_disk_waits_for() {
    in_own_mounts!();
    let seed = cases::seed();
    let runs = std::env::var("BLOCKYARD_RUNS").map_or(1, |runs| runs.parse::<u32>().unwrap());
    let scene = Scene::start(seed);
    let far = scene.daemon.path("far");
    let server: Guard = nbdkit(&far, &["memory", "8M"]);
    let (tree, there) = (scene.daemon.path("tree"), scene.daemon.path("there"));
    let share = Daemon::share(&[tree.as_os_str(), "--mount".as_ref(), there.as_os_str()]);
    let mut dice = Dice(seed);
    for _ in 0..runs {
        let fronts = Front::ALL.into_iter().map(Some).chain([None]);
        let mut cells: Vec<_> = fronts.flat_map(|front| [(front, false), (front, true)]).collect();
        while !cells.is_empty() {
            let (front, is_file) = cells.swap_remove(dice.below(cells.len()));
            println!(
                "{} of a {}",
                front.map_or("the directory", Front::name),
                if is_file { "file" } else { "server" }
            );
            let (holding, uri) = if is_file {
                let file = there.join("hung.img");
                File::create(tree.join("hung.img")).unwrap().set_len(8 * MIB).unwrap();
                (Holding::new(share.pid()), format!("file:{}", file.display()))
            } else {
                (Holding::new(server.0.id()), format!("{}&timeout=10m", unix("", &far)))
            };
            holding.hold();
            scene.held(&holding, ("PUT", "/v1/disks/hung"), &json!({ "uri": uri }));
            if is_file {
                holding.hold();
                scene.held(&holding, ("PATCH", "/v1/disks/hung"), &json!({ "size": "16M" }));
            }
            match front {
                Some(front) => {
                    scene.export_goes(front, &holding);
                    scene.disk_goes(&holding);
                }
                None => scene.disk_goes_from_directory(&holding),
            }
            scene.all_go_on("nothing");
            if is_file {
                fs::remove_file(tree.join("hung.img")).unwrap();
            }
        }
    }
    scene.end();
    share.stop();
}

/// It waits for its source, and nobody waits for it: its target is used and changed.
#[test]
fn a_copy_whose_source_does_not_answer_keeps_nobody_from_its_target() {
    in_own_mounts!();
    let seed = cases::seed();
    let mut scene = Scene::start(seed);
    let faulty = Faulty::new(usize::try_from(MIB).unwrap());
    let uri = format!("file:{}", faulty.file().display());
    scene.done("PUT", "/v1/disks/hung", &json!({ "uri": uri }));
    let target = json!({ "uri": "file:target.img", "create": "2M" });
    scene.done("PUT", "/v1/disks/target", &target);
    scene.done("PUT", "/v1/exports/nbd/target", &json!({ "disk": "target" }));
    let client = Behind(MIB, Nbd::connect(&scene.daemon.path("s"), "target"));
    scene.bystanders.push(Bystander::start("the target by NBD", seed + 4, client));
    let held = faulty.hold(Call::Read);
    let seen = faulty.seen(Call::Read);
    let copy = json!({ "kind": "copy", "source": "hung", "target": "target" });
    let (status, job) = scene.ask("POST", "/v1/jobs", &copy);
    assert_eq!(status, 202, "{job}");
    faulty.wait_for(Call::Read, seen + 1);
    scene.done("PATCH", "/v1/disks/target", &json!({ "size": "4M" }));
    scene.all_go_on("a copy");
    drop(held);
    let place = format!("/v1/jobs/{}", job["id"]);
    wait_until("the copy does not end", || {
        scene.ask("GET", &place, &Value::Null).1["state"] != "running"
    });
    assert_eq!(scene.ask("GET", &place, &Value::Null).1["state"], "done");
    scene.end();
}

/// The kernel waits for pages that are being read before it forgets them, and hears no signal then: a daemon that waited with it
/// for a disk that does not answer could not be killed, as it is the one to answer.
#[test]
fn a_daemon_can_be_killed_while_a_disk_that_has_changed_is_read() {
    in_own_mounts!();
    let scene = Scene::start(cases::seed());
    let far = scene.daemon.path("far");
    let server = nbdkit(&far, &["memory", "8M"]);
    let holding = Holding::new(server.0.id());
    let uri = format!("{}&timeout=10m", unix("", &far));
    scene.done("PUT", "/v1/disks/hung", &json!({ "uri": uri }));
    let path = scene.daemon.path("all/hung");
    let file = File::open(&path).unwrap();
    holding.hold();
    let victim = victim(move || drop(file.read_at(&mut [0; BLOCK], FAR)));
    scene.wait_in_flight();
    scene.done("PATCH", "/v1/disks/hung", &json!({ "read_only": true }));
    wait_until("it is writable", || fs::metadata(&path).unwrap().mode() & 0o222 == 0);
    scene.all_go_on("the change");
    let Scene { bystanders, daemon } = scene;
    for it in bystanders {
        it.is_over.store(true, Ordering::Relaxed);
        it.thread.join().unwrap();
    }
    daemon.signal(Signal::KILL);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(daemon.wait().0));
    let status = told.recv_timeout(PATIENCE).expect("it cannot be killed");
    assert!(!status.success());
    victim.recv_timeout(PATIENCE).expect("it waits for a daemon that is dead");
}
