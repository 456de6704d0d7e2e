//! Daemons and peers for tests. Nothing is left behind, also when a test panics.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::Value;
use tempfile::TempDir;

/// Seconds after which a peer counts as hanging.
const PEER_LIMIT: &str = "120";

/// The command, with a runtime directory of its own.
pub(crate) fn blockyard(runtime: &Path) -> Command {
    blockyard_at(Path::new(env!("CARGO_BIN_EXE_blockyard")), runtime)
}

/// The command for guests: without shared libraries, and small, as all that a guest takes along is in its memory.
pub(crate) fn static_blockyard() -> String {
    std::env::var("BLOCKYARD_STATIC").expect(
        "BLOCKYARD_STATIC names no blockyard without shared libraries; run: cargo xtask test --part lab",
    )
}

/// As [`blockyard`], by another build of it.
fn blockyard_at(program: &Path, runtime: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("BLOCKYARD_RUNTIME_DIR", runtime)
        .env_remove("LISTEN_FDS")
        .env_remove("NOTIFY_SOCKET");
    command
}

/// What a command that ends by itself has said.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or(-1);
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Its standard output as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out)
            .unwrap_or_else(|err| panic!("{err}: {:?}\n{}", self.out, self.err))
    }

    /// All of `parts` are in what it said.
    #[track_caller]
    pub(crate) fn contains(&self, parts: &[&str]) -> &Self {
        for part in parts {
            let said = self.out.contains(part) || self.err.contains(part);
            assert!(said, "{part:?} is not in\n{}\n{}", self.out, self.err);
        }
        self
    }

    /// It ended with this code.
    #[track_caller]
    pub(crate) fn code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "\n{}\n{}", self.out, self.err);
        self
    }
}

/// Runs `blockyard` to its end, in a directory of its own.
pub(crate) fn run<S: AsRef<OsStr>>(args: &[S]) -> Said {
    let dir = TempDir::new().unwrap();
    Said::of(
        &blockyard(&dir.path().join("run")).current_dir(dir.path()).args(args).output().unwrap(),
    )
}

/// A command of the system. nbdsh runs the first python3 on PATH, which has to be the one that its module was
/// installed for.
pub(crate) fn system(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"));
    command
}

/// Runs a peer, which must be installed and must succeed. Returns its standard output.
#[track_caller]
pub(crate) fn peer<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let said = try_peer(program, args);
    assert_eq!(said.code, 0, "{program} failed:\n{}\n{}", said.out, said.err);
    said.out
}

/// Runs a peer, which must be installed.
#[track_caller]
pub(crate) fn try_peer<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Said {
    let mut command = system("timeout");
    command.args(["--kill-after=5", PEER_LIMIT, program]).args(args);
    let said = Said::of(&command.stdin(Stdio::null()).output().expect("timeout(1) of coreutils"));
    assert_ne!(said.code, 127, "{program} is missing; run: cargo xtask setup");
    assert_ne!(said.code, 124, "{program} hangs:\n{}\n{}", said.out, said.err);
    said
}

/// Python in nbdsh, on an export.
#[track_caller]
pub(crate) fn nbdsh(uri: &str, script: &str) -> String {
    peer("nbdsh", &["-u", uri, "-c", script])
}

/// A running daemon. It is killed when it is dropped.
pub(crate) struct Daemon {
    child: Child,
    dir: TempDir,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    /// The addresses in its lines "serving ... at ADDRESS (URI)".
    pub(crate) uris: Vec<String>,
}

impl Daemon {
    /// `blockyard serve ARGS --nbd unix:...`.
    pub(crate) fn serve<S: AsRef<OsStr>>(args: &[S]) -> Self {
        Self::serve_by(Path::new(env!("CARGO_BIN_EXE_blockyard")), args)
    }

    /// As [`Daemon::serve`], by another build of the command.
    pub(crate) fn serve_by<S: AsRef<OsStr>>(program: &Path, args: &[S]) -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = blockyard_at(program, &dir.path().join("run"));
        command
            .arg("serve")
            .args(args)
            .arg("--nbd")
            .arg(format!("unix:{}", dir.path().join("s").display()));
        Self::start(command, dir, 1)
    }

    /// `blockyard share ARGS`.
    pub(crate) fn share<S: AsRef<OsStr>>(args: &[S]) -> Self {
        let dir = TempDir::new().unwrap();
        let mut command = blockyard(&dir.path().join("run"));
        command.arg("share").args(args);
        Self::start_until(command, dir, |this| this.log().contains("serving "))
    }

    /// Starts a command in `dir`, and waits until it serves at so many addresses.
    pub(crate) fn start(command: Command, dir: TempDir, listeners: usize) -> Self {
        Self::start_until(command, dir, |this| this.uris.len() >= listeners)
    }

    fn start_until(mut command: Command, dir: TempDir, is_up: impl Fn(&Self) -> bool) -> Self {
        command.current_dir(dir.path()).stderr(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let mut this = Self { child, dir, log, reader: None, uris: Vec::new() };
        while !is_up(&this) {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() == 0 {
                let status = this.child.wait();
                panic!("it ended ({status:?}) and said:\n{}", this.log());
            }
            if let Some(uri) =
                line.starts_with("serving ").then(|| line.trim().rsplit_once('(')).flatten()
            {
                this.uris.push(uri.1.trim_end_matches(')').to_owned());
            }
            this.log.lock().unwrap().push_str(&line);
        }
        // The pipe is emptied for as long as the daemon lives.
        let log = Arc::clone(&this.log);
        this.reader = Some(std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|count| count > 0) {
                log.lock().unwrap().push_str(&line);
                line.clear();
            }
        }));
        this
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it has said on standard error.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The URI of an export on its unix socket.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path("s").display())
    }

    /// Runs `blockyard` with the same runtime directory.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Said {
        Said::of(&blockyard(&self.path("run")).args(args).output().unwrap())
    }

    /// What `list --json` says of it.
    pub(crate) fn report(&self) -> Value {
        let list = self.run(&["list", "--json"]).code(0).json();
        assert_eq!(list.as_array().unwrap().len(), 1);
        assert_eq!(list[0]["pid"], self.pid());
        list[0].clone()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let status = self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.log())
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(self) -> String {
        self.signal(rustix::process::Signal::TERM);
        let (status, log) = self.wait();
        assert!(status.success(), "{status}\n{log}");
        log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.log());
        }
    }
}

/// A child that is killed when it is dropped.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that cleans up when it is dropped.
pub(crate) struct Cleanup(pub(crate) Vec<String>);

impl Cleanup {
    pub(crate) fn with(args: &[&str]) -> Self {
        Self(args.iter().map(|&arg| arg.to_owned()).collect())
    }

    /// Cleans up now, which must succeed.
    #[track_caller]
    pub(crate) fn now(mut self) {
        peer(&self.0[0], &self.0[1..]);
        self.0.clear();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some((program, args)) = self.0.split_first() {
            // A daemon that was killed may hold its files a moment longer.
            let lazy = (program == "umount").then_some("-l");
            let _ = Command::new(program).args(lazy).args(args).output();
        }
    }
}

/// nbdkit on a unix socket, once it takes connections.
pub(crate) fn nbdkit(socket: &Path, args: &[&str]) -> Guard {
    let _ = std::fs::remove_file(socket);
    let mut command = system("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket).args(args);
    let child = command.stdin(Stdio::null()).spawn();
    let mut guard = Guard(child.expect("nbdkit is missing; run: cargo xtask setup"));
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(guard.0.try_wait().unwrap().is_none(), "nbdkit ended");
        blockyard_conformance::pause();
    }
    guard
}

/// The URI of an export on a unix socket.
pub(crate) fn unix(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

/// Mounts an export as a file, and gives the file.
pub(crate) fn fuse(daemon: &Daemon, export: &str) -> (Cleanup, String) {
    fuse_in(daemon.dir(), &daemon.uri(export))
}

/// The same of any server, in a directory.
pub(crate) fn fuse_in(directory: &Path, uri: &str) -> (Cleanup, String) {
    let mount = directory.join("fuse");
    std::fs::create_dir_all(&mount).unwrap();
    let ready = directory.join("fuse.pid");
    let mount = mount.to_str().unwrap().to_owned();
    let guard = Cleanup::with(&["fusermount3", "-u", "-z", &mount]);
    let mut command = Command::new("setpriv");
    // It goes with the test.
    command.args(["--pdeathsig", "KILL", "nbdfuse"]);
    command.arg("-P").arg(&ready).arg(&mount).arg(uri).stdin(Stdio::null());
    let mut child = command.spawn().expect("nbdfuse is missing; run: cargo xtask setup");
    // The process id is written once the mount is usable.
    while std::fs::read_to_string(&ready).unwrap_or_default().is_empty() {
        assert!(child.try_wait().unwrap().is_none(), "nbdfuse ended");
        blockyard_conformance::pause();
    }
    std::fs::remove_file(&ready).unwrap();
    // It ends when it is unmounted, and is waited for then.
    std::thread::spawn(move || child.wait());
    (guard, format!("{mount}/nbd"))
}

/// Bytes that look random, the same for the same seed.
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(seed ^ (seed >> 33)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
