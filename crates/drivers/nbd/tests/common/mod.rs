//! Servers that run for the length of a test, and a disk on top of them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of several tests"
)]

pub mod fake;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Bio, Disk, DiskConfig, MonotonicClock, OpenMode, Sector, Status, TagSet,
};
use blockyard_conformance::QueueThread;
use blockyard_driver_nbd::{Export, Nbd, NbdConfig};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};

/// The longest that any test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is killed when the test ends, by whatever way.
pub struct Server {
    child: Child,
    pub what: String,
}

impl Server {
    /// Starts a program; `package` is what to install if it is not there.
    pub fn start(package: &str, command: &mut Command) -> Self {
        let what = format!("{command:?}");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child =
            child.unwrap_or_else(|err| panic!("{what}: {err}; run: apt-get install {package}"));
        Self { child, what }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it where it stands, all of its threads, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let signal =
            if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
        let start = Instant::now();
        while frozen && !self.is_stopped() {
            assert!(start.elapsed() < PATIENCE, "{} does not stop", self.what);
            blockyard_conformance::pause();
        }
    }

    /// Whether all threads are in the state T (proc_pid_stat).
    fn is_stopped(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().all(|task| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// nbdkit on a Unix socket.
pub fn nbdkit(socket: &Path, arguments: &[&str]) -> Server {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket).args(arguments);
    let _ = std::fs::remove_file(socket);
    until_it_answers(Server::start("nbdkit", &mut command), || {
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    })
}

/// A server that takes connections.
pub fn until_it_answers(mut server: Server, answers: impl Fn() -> bool) -> Server {
    let start = Instant::now();
    while !answers() {
        assert!(!server.has_ended(), "{} has ended", server.what);
        assert!(start.elapsed() < PATIENCE, "{} does not answer", server.what);
        blockyard_conformance::pause();
    }
    server
}

/// Waits until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        blockyard_conformance::pause();
    }
}

/// A folder of a test's own.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of zeroes.
    pub fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

pub fn unix(socket: &Path) -> NbdConfig {
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    // Tests say what is flushed, and how long they take says nothing; nor how long a busy machine takes to connect.
    NbdConfig {
        flush_after: None,
        connect_timeout: Some(PATIENCE),
        ..NbdConfig::new(uri.parse().unwrap())
    }
}

/// A disk with its queue threads, and a clock that ticks.
pub struct Attached {
    pub nbd: Arc<Nbd>,
    pub export: Export,
    pub disk: Arc<Disk>,
    pub bdev: Bdev,
    ticking: Arc<AtomicBool>,
    ticker: Option<JoinHandle<()>>,
    threads: Vec<QueueThread>,
}

/// Attaches a disk with so many queue threads.
pub fn try_attach(
    config: NbdConfig,
    threads: usize,
) -> Result<Attached, blockyard_driver_nbd::Error> {
    let (threads, handles) = QueueThread::start_many(threads);
    try_attach_to(config, threads, &handles)
}

/// Attaches a disk whose last queue thread does nothing until something comes or is dropped.
pub fn attach_with_a_late_thread(
    config: NbdConfig,
    threads: usize,
) -> (Attached, mpsc::Sender<()>) {
    let (threads, handles) = QueueThread::start_many(threads);
    let (go_on, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    handles.last().unwrap().spawn(async move {
        tell.send(()).unwrap();
        let _ = wait.recv();
    });
    told.recv_timeout(PATIENCE).unwrap();
    let attached = try_attach_to(config, threads, &handles);
    (attached.unwrap_or_else(|err| panic!("{}", err.chain())), go_on)
}

/// Two disks on one queue thread, which the first one keeps.
pub fn attach_beside(configs: [NbdConfig; 2]) -> [Attached; 2] {
    let (mut threads, handles) = QueueThread::start_many(1);
    configs.map(|config| {
        let attached = try_attach_to(config, std::mem::take(&mut threads), &handles);
        attached.unwrap_or_else(|err| panic!("{}", err.chain()))
    })
}

fn try_attach_to(
    config: NbdConfig,
    threads: Vec<QueueThread>,
    handles: &[Handle],
) -> Result<Attached, blockyard_driver_nbd::Error> {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (nbd, export) = runtime.block_on(Nbd::connect(config, handles))?;
    let set = TagSet::new(Arc::clone(&nbd), nbd.tag_set_config(handles.len())).unwrap();
    let mut disk = DiskConfig::new("nbd0", export.capacity, export.limits.clone());
    disk.read_only = export.read_only;
    let ops = Arc::clone(&nbd);
    let disk = Disk::alloc(&set, (), disk, ops, Arc::new(MonotonicClock::default())).unwrap();
    let mode = if export.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let bdev = disk.open(None, mode).unwrap();
    let ticking = Arc::new(AtomicBool::new(true));
    let ticker = {
        let (disk, ticking) = (Arc::clone(&disk), Arc::clone(&ticking));
        std::thread::spawn(move || {
            while ticking.load(Ordering::Relaxed) {
                disk.tick();
                std::thread::park_timeout(Duration::from_millis(20));
            }
        })
    };
    Ok(Attached { nbd, export, disk, bdev, ticking, ticker: Some(ticker), threads })
}

pub fn attach(config: NbdConfig, threads: usize) -> Attached {
    try_attach(config, threads).unwrap_or_else(|err| panic!("{}", err.chain()))
}

impl Attached {
    /// The disk, opened once more.
    pub fn reopen(&self) -> Bdev {
        self.disk.open(None, OpenMode::ReadWrite).unwrap()
    }

    /// Submits, and gives what comes back.
    pub fn run(&self, bio: Box<Bio>) -> Box<Bio> {
        self.submit(0, bio).recv_timeout(PATIENCE).expect("a request did not end")
    }

    /// Submits.
    pub fn submit(&self, cpu: usize, bio: Box<Bio>) -> mpsc::Receiver<Box<Bio>> {
        let (tell, told) = mpsc::channel();
        self.bdev.submit(cpu, bio.on_end(Arc::new(move |bio| drop(tell.send(bio)))));
        told
    }

    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Status> {
        let bio = self.run(Bio::new(blockyard_blkmq::Op::Read, Sector(offset / 512), len));
        match bio.status() {
            Status::Ok => Ok(bio.data().iter().flat_map(|segment| segment.to_vec()).collect()),
            status => Err(status),
        }
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> Status {
        self.run(write(offset, data)).status()
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }
}

pub fn write(offset: u64, data: &[u8]) -> Box<Bio> {
    let segment = blockyard_buf::Segment::from_vec(data.to_vec());
    let list = [segment].into_iter().collect();
    Bio::with_data(blockyard_blkmq::Op::Write, Sector(offset / 512), list)
}

/// Bytes that tell where they are and which version they have.
pub fn pattern(offset: u64, version: u64, len: usize) -> Vec<u8> {
    (0..len as u64 / 8)
        .flat_map(|word| (offset + word * 8 + (version << 48)).to_le_bytes())
        .collect()
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.ticking.store(false, Ordering::Relaxed);
        if let Some(ticker) = self.ticker.take() {
            ticker.thread().unpark();
            let _ = ticker.join();
        }
    }
}
