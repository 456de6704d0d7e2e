//! What a user may not do: it ends with exit code 77, and says what that is. Devices of the kernel, in a guest:
//! `vm_attach.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Guard, Said};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whoever owns nothing.
const NOBODY: u32 = 65534;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A place where a user finds the program, and little else that is for him.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        set_mode(dir.path(), 0o755);
        // Where it was built, not everybody may go.
        let program = dir.path().join("blockyard");
        // By a process of its own: what this one has open for writing may live on in a child that another test has just
        // started, and a program that is open for writing does not run (execve(2), ETXTBSY).
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_blockyard")).arg(&program).status();
        assert!(copied.unwrap().success());
        set_mode(&program, 0o755);
        for (name, mode) in [("secret.img", 0o000), ("fixed.img", 0o444), ("open.img", 0o666)] {
            let path = dir.path().join(name);
            fs::write(&path, [0; 4096]).unwrap();
            set_mode(&path, mode);
        }
        for (name, mode) in [("closed", 0o555), ("open", 0o777)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            set_mode(&dir.path().join(name), mode);
        }
        Self(dir)
    }

    /// Runs it as somebody who owns none of that; root may do anything.
    fn run(&self, runtime: &str, args: &[&str]) -> Said {
        let mut command = Command::new(self.0.path().join("blockyard"));
        command.args(args).current_dir(self.0.path());
        command.env("BLOCKYARD_RUNTIME_DIR", self.0.path().join(runtime));
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Said::of(&command.output().unwrap())
    }
}

#[test]
fn files_that_a_user_may_not_open() {
    let place = Place::new();
    let run = |args: &[&str]| place.run("open/run", args);
    for args in [
        &["info", "./secret.img"][..],
        &["map", "./secret.img"],
        &["bench", "./secret.img", "--count", "1"],
        &["serve", "./secret.img", "--nbd", "unix:open/s"],
        &["copy", "./secret.img", "./open/copy.img"],
        &["attach", "./secret.img"],
    ] {
        run(args).code(77).contains(&["secret.img", "ermission denied"]);
    }
    run(&["copy", "./open.img", "./fixed.img"]).code(77).contains(&["fixed.img"]);
    run(&["bench", "./fixed.img", "--rw", "write", "--count", "1"]).code(77);
    run(&["info", "./fixed.img"]).code(0);
}

#[test]
fn directories_that_a_user_may_not_write_to() {
    let place = Place::new();
    place
        .run("open/run", &["serve", "ram:1M", "--nbd", "unix:closed/s", "--run", "true"])
        .code(77)
        .contains(&["closed/s", "ermission denied"]);
    place
        .run("closed/run", &["serve", "ram:1M", "--nbd", "unix:open/s", "--run", "true"])
        .code(77)
        .contains(&["closed/run", "ermission denied"]);
    place
        .run("closed/run", &["attach", "ram:1M"])
        .code(77)
        .contains(&["closed/run", "ermission denied"]);
}

/// Others of a cluster's clients have what he would need.
#[test]
fn files_of_a_cluster_that_a_user_may_not_read() {
    let place = Place::new();
    let conf =
        "[global]\nmon host = 127.0.0.1:1\nauth client required = cephx\nkeyring = secret.img\n";
    fs::write(place.0.path().join("ceph.conf"), conf).unwrap();
    let ls = |conf: &str| place.run("open/run", &["rados", "-c", conf, "-p", "yard", "ls"]);
    ls("ceph.conf").code(77).contains(&["keyring is not readable by this user", "secret.img"]);
    ls("secret.img").code(77).contains(&["configuration file is not readable", "secret.img"]);
}

/// They are not his, and he is told where they are to be seen.
#[test]
fn daemons_of_another_user() {
    let place = Place::new();
    let run = place.0.path().join("open/theirs");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_blockyard"));
    daemon.args(["serve", "ram:1M", "--nbd", "unix:s", "--run"]);
    // While that runs, the user looks.
    let look = "setpriv --reuid 65534 --regid 65534 --clear-groups ./blockyard list >said 2>&1; echo $? >code";
    daemon.arg(look).current_dir(place.0.path()).env("BLOCKYARD_RUNTIME_DIR", &run);
    Said::of(&daemon.output().unwrap()).code(0);
    let read = |name: &str| fs::read_to_string(place.0.path().join(name)).unwrap();
    let said = read("said");
    assert_eq!(read("code").trim(), "77", "{said}");
    assert!(said.contains("theirs"), "{said}");
    place
        .run("open/own", &["list"])
        .code(0)
        .contains(&["no daemons of this user", "sudo blockyard list"]);
}

/// The control socket is its user's: its mode keeps others out, and where somebody has opened it by mistake, who they are.
#[test]
fn a_control_socket_serves_its_user_and_root() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let (directory, socket) =
        (daemon.path("run"), daemon.path(&format!("run/{}.sock", daemon.pid())));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&socket)), (0o700, 0o600));
    let ask = |user: u32| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "60", "--unix-socket"]).arg(&socket);
        curl.arg("http://blockyard/v1/disks").current_dir("/");
        if rustix::process::geteuid().is_root() {
            curl.uid(user).gid(user);
        }
        Said::of(&curl.output().unwrap())
    };
    if rustix::process::geteuid().is_root() {
        assert_ne!(ask(NOBODY).code, 0, "the mode lets everybody in");
        for path in [daemon.dir(), &directory] {
            set_mode(path, 0o755);
        }
        set_mode(&socket, 0o666);
        let refused = ask(NOBODY);
        assert!(refused.code != 0 && refused.out.is_empty(), "{}", refused.out);
        let end = Instant::now() + PATIENCE;
        while !daemon.log().contains("control connection of another user refused") {
            assert!(Instant::now() < end, "{}", daemon.log());
            blockyard_conformance::pause();
        }
    }
    ask(0).code(0).contains(&["\"name\":\"a\""]);
    daemon.stop();
}

/// Root may ask the daemon of another.
#[test]
fn root_is_served_by_the_daemon_of_another() {
    let place = Place::new();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let socket = place.0.path().join("open/s");
    let run = place.0.path().join("open/run");
    let mut serve = Command::new(place.0.path().join("blockyard"));
    serve.args(["serve", "ram:1M?name=theirs", "--nbd"]).arg(format!("unix:{}", socket.display()));
    // It ends with what it waits for.
    serve.args(["--run", "cat >/dev/null"]).env("BLOCKYARD_RUNTIME_DIR", &run);
    serve.uid(NOBODY).gid(NOBODY).current_dir(place.0.path()).stdin(Stdio::piped());
    let mut daemon = Guard(serve.spawn().unwrap());
    let end = Instant::now() + PATIENCE;
    while !socket.exists() {
        assert!(Instant::now() < end && daemon.0.try_wait().unwrap().is_none());
        blockyard_conformance::pause();
    }
    // Its control socket may come a moment later.
    loop {
        let mut list = Command::new(place.0.path().join("blockyard"));
        list.args(["list", "--json"]).env("BLOCKYARD_RUNTIME_DIR", &run);
        let listed = Said::of(&list.output().unwrap()).code(0).json();
        let disks = listed.as_array().unwrap().iter().flat_map(|it| it["disks"].as_array());
        if disks.flatten().any(|disk| disk["name"] == "theirs") {
            break;
        }
        assert!(Instant::now() < end && daemon.0.try_wait().unwrap().is_none(), "{listed}");
        blockyard_conformance::pause();
    }
    drop(daemon.0.stdin.take());
    assert!(daemon.0.wait().unwrap().success());
}
