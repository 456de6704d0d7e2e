//! How daemons start and end when something is in the way: others at the same address, servers that do not answer, disks
//! that are busy or fail, and signals at any time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Guard, Said, blockyard, nbdkit, nbdsh, peer, system, try_peer, unix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing here takes so long, on a loaded machine neither.
const LONG: Duration = Duration::from_secs(60);

fn spawn(command: &mut Command) -> Guard {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Guard(command.spawn().unwrap())
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Lines of its standard error, until one has `part` in it.
#[track_caller]
fn wait_for_line(child: &mut Child, part: &str) -> BufReader<std::process::ChildStderr> {
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut all = String::new();
    while !all.contains(part) {
        let count = lines.read_line(&mut all).unwrap();
        assert!(count > 0, "{part:?} is not in\n{all}");
    }
    lines
}

/// Its end, and what else it says on standard error.
fn rest(mut child: Guard, mut lines: impl Read) -> (Option<i32>, String) {
    let mut text = String::new();
    lines.read_to_string(&mut text).unwrap();
    (child.0.wait().unwrap().code(), text)
}

/// Of several daemons that are started at once with a dead server's socket, one serves and the others exit 75.
fn starters(args: &[&str]) {
    const STARTERS: usize = 4;
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    for round in 0..3 {
        drop(UnixListener::bind(&socket).unwrap());
        let start = |index: usize| {
            let mut command = blockyard(&dir.path().join(format!("run{index}")));
            spawn(command.current_dir(dir.path()).args(args))
        };
        let mut all: Vec<Guard> = (0..STARTERS).map(start).collect();
        let begun = Instant::now();
        while all.len() > 1 {
            assert!(begun.elapsed() < LONG, "round {round}: {} of them go on", all.len());
            all.retain_mut(|child| match child.0.try_wait().unwrap() {
                None => true,
                Some(status) => {
                    let mut text = String::new();
                    child.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                    assert_eq!(status.code(), Some(75), "round {round}: {text}");
                    assert!(text.contains("in use"), "{text}");
                    false
                }
            });
            blockyard_conformance::pause();
        }
        let mut winner = all.pop().expect("one of them serves");
        let lines = wait_for_line(&mut winner.0, "serving ");
        UnixStream::connect(&socket).unwrap();
        signal(&winner.0, Signal::TERM);
        let (code, text) = rest(winner, lines);
        assert_eq!(code, Some(0), "round {round}: {text}");
        assert!(!socket.exists());
    }
}

#[test]
fn one_of_many_that_start_at_once_serves() {
    starters(&["serve", "ram:1M", "--nbd", "unix:s"]);
    starters(&["serve", "ram:1M", "--vhost-user-blk", "s"]);
}

#[test]
fn daemons_of_one_number_share_a_runtime_directory() {
    let dir = TempDir::new().unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["serve", "ram:1M", "--nbd", "unix:first"]).current_dir(dir.path());
    let mut first = spawn(&mut command);
    let lines = wait_for_line(&mut first.0, "serving ");
    // As if it had been made in another PID namespace, by a process that the next one has the number of.
    let run = dir.path().join("run");
    let pid = first.0.id();
    std::fs::rename(run.join(format!("{pid}.sock")), run.join("taken")).unwrap();
    let script = format!(
        "mv {0}/taken {0}/$$.sock; exec \"$0\" serve ram:2M --nbd unix:second",
        run.display()
    );
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_blockyard"));
    command.env("BLOCKYARD_RUNTIME_DIR", &run).current_dir(dir.path());
    let mut second = spawn(&mut command);
    let second_lines = wait_for_line(&mut second.0, "serving ");
    let listed = Said::of(&blockyard(&run).args(["list", "--json"]).output().unwrap());
    let listed = listed.code(0).json();
    let mut pids: Vec<_> = (0..2).map(|index| listed[index]["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    let mut wanted = [u64::from(pid), u64::from(second.0.id())];
    wanted.sort_unstable();
    assert_eq!(pids, wanted, "both answer");
    signal(&second.0, Signal::TERM);
    assert_eq!(rest(second, second_lines).0, Some(0));
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1, "it removes its own socket only");
    signal(&first.0, Signal::TERM);
    assert_eq!(rest(first, lines).0, Some(0));
}

#[test]
fn a_signal_is_heard_while_a_server_does_not_answer() {
    let dir = TempDir::new().unwrap();
    // It takes connections, and never says a word.
    let silent = UnixListener::bind(dir.path().join("silent")).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.current_dir(dir.path());
    command.args(["serve", "nbd+unix:///?socket=silent", "--nbd", "unix:s"]);
    let mut child = spawn(&mut command);
    silent.set_nonblocking(true).unwrap();
    let _held = loop {
        match silent.accept() {
            Ok(held) => break held,
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::WouldBlock),
        }
        assert!(child.0.try_wait().unwrap().is_none());
        blockyard_conformance::pause();
    };
    let begun = Instant::now();
    signal(&child.0, Signal::TERM);
    let lines = child.0.stderr.take().unwrap();
    let (code, text) = rest(child, lines);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("stopped by a signal during startup"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the server's time-out is 30 s");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn a_hang_up_ends_nothing() {
    let daemon = Daemon::serve(&["ram:8M"]);
    daemon.signal(Signal::HUP);
    nbdsh(&daemon.uri(""), "h.pwrite(b'x' * 512, 0)");
    daemon.signal(Signal::HUP);
    nbdsh(&daemon.uri(""), "assert h.pread(512, 0) == b'x' * 512");
    daemon.stop();
}

#[test]
fn a_second_signal_is_heard_while_a_busy_disk_is_removed() {
    let dir = TempDir::new().unwrap();
    let yard = "[[disk]]\nname = \"slow\"\nuri = \"null:1M?latency=60s\"\n\
                [nbd]\nlisten = \"unix:s\"\n[threads]\nshutdown_grace = \"1ms\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.arg("up");
    let daemon = Daemon::start(command, dir, 1);
    let mut client = system("nbdsh");
    client.args(["-u", &daemon.uri(""), "-c", "h.pread(4096, 0)"]).stderr(Stdio::null());
    let client = Guard(client.spawn().expect("nbdsh is missing; run: cargo xtask setup"));
    while daemon.report()["disks"][0]["in_flight"] == 0 {
        blockyard_conformance::pause();
    }
    daemon.signal(Signal::TERM);
    let begun = Instant::now();
    while !daemon.log().contains("grace period expired") {
        assert!(begun.elapsed() < LONG, "{}", daemon.log());
        blockyard_conformance::pause();
    }
    // Whoever asks now is not to keep the signal from being heard.
    let mut list = blockyard(&daemon.path("run"));
    let list = spawn(list.args(["list", "--json"]));
    daemon.signal(Signal::INT);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("second signal"), "{log}");
    drop((list, client));
}

/// An NBD server whose flushes fail.
fn failing_flushes(socket: &Path) -> Guard {
    nbdkit(
        socket,
        &[
            "eval",
            "get_size=echo 8M",
            "pread=dd if=/dev/zero count=$3 iflag=count_bytes 2>/dev/null",
            "pwrite=cat >/dev/null",
            "can_write=exit 0",
            "can_flush=exit 0",
            "flush=echo EIO no room >&2; exit 1",
        ],
    )
}

#[test]
fn a_last_flush_that_fails_is_a_failure() {
    let dir = TempDir::new().unwrap();
    let _server = failing_flushes(&dir.path().join("upstream"));
    let upstream = format!("{}&name=far", unix("", &dir.path().join("upstream")));
    let daemon = Daemon::serve(&[&upstream]);
    // Nothing was written, and nothing can be lost.
    daemon.stop();
    let daemon = Daemon::serve(&[&upstream]);
    nbdsh(&daemon.uri(""), "h.pwrite(b'x' * 512, 0)");
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("final flush failed: far (") && log.contains("may be lost"), "{log}");
    // Of the other commands, too, whatever that has said which one runs.
    let write = "h.pwrite(b'x' * 512, 0)";
    let script = format!("nbdsh -u \"$uri\" -c \"{write}\"");
    let mut command = blockyard(&dir.path().join("run"));
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/sbin:/usr/bin:/sbin:/bin:{path}"));
    let said =
        Said::of(&command.args(["run", &upstream, "--", "sh", "-c", &script]).output().unwrap());
    said.code(1).contains(&["final flush failed: far (", "may be lost"]);
    let yard = TempDir::new().unwrap();
    let text = format!("[[disk]]\nuri = \"{upstream}\"\n[nbd]\nlisten = \"unix:s\"\n");
    std::fs::write(yard.path().join("yard.toml"), text).unwrap();
    let mut command = blockyard(&yard.path().join("run"));
    command.arg("up");
    let daemon = Daemon::start(command, yard, 1);
    nbdsh(&daemon.uri(""), write);
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("final flush failed: far (") && log.contains("may be lost"), "{log}");
}

/// Its addresses were there before it was started, and a client is: it is served by a daemon that serves all, or by none.
#[test]
fn a_daemon_that_cannot_start_whole_has_served_nobody() {
    let dir = TempDir::new().unwrap();
    let passed = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut client = UnixStream::connect(dir.path().join("s")).unwrap();
    let taken = UnixListener::bind(dir.path().join("vm.sock")).unwrap();
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n[[vhost_user_blk]]\ndisk = \"a\"\n\
                socket = \"vm.sock\"\n[nbd]\nlisten = \"systemd\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = Command::new("bash");
    command.args(["-c", "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" up"]);
    command.arg(env!("CARGO_BIN_EXE_blockyard")).current_dir(dir.path());
    command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run"));
    command.stdin(std::os::fd::OwnedFd::from(passed));
    let said = Said::of(&command.output().unwrap());
    said.code(75).contains(&["vm.sock", "in use"]);
    // What it was started with is closed with this: nobody has the listening end any more.
    drop((command, taken));
    client.set_read_timeout(Some(LONG)).unwrap();
    let mut greeting = Vec::new();
    // A connection that nobody has taken is reset.
    let _ = client.read_to_end(&mut greeting);
    assert_eq!(greeting, b"", "it was served");
}

#[test]
fn a_server_that_dies_keeps_nobody_from_ending() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("upstream");
    let upstream = format!("{}&name=far", unix("", &socket));
    let yard = format!(
        "[[disk]]\nuri = \"{upstream}\"\n[nbd]\nlisten = \"unix:s\"\n[threads]\nshutdown_grace = \"100ms\"\n"
    );
    let server = nbdkit(&socket, &["memory", "8M"]);
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.arg("up");
    let daemon = Daemon::start(command, dir, 1);
    nbdsh(&daemon.uri(""), "h.pwrite(b'x' * 512, 0)");
    drop(server);
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    // Its connection may have been seen to end, or not yet.
    assert!(log.contains("final flush failed: far ("), "{log}");
    assert!(begun.elapsed() < Duration::from_secs(30), "it would wait 120 s for the server");
}

/// What a shell does to wait for signals; whatever goes wrong, it is not there for ever.
const WAIT: &str = "for i in $(seq 600); do sleep 0.1; done";

/// A command that runs beside a daemon.
fn run_beside(args: &[&str]) -> (TempDir, Guard) {
    let dir = TempDir::new().unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    let child = spawn(command.env("TMPDIR", dir.path()).current_dir(dir.path()).args(args));
    (dir, child)
}

#[test]
fn a_command_is_told_of_signals_and_waited_for() {
    for (script, code) in [
        (&format!("trap 'echo told; exit 7' TERM; echo ready; {WAIT}"), 7),
        // The shell is told, and what it has started: nothing is left behind.
        (&"echo ready; sleep 60; echo slept".to_owned(), 128 + 15),
    ] {
        let serve: &[&str] = &["serve", "ram:1M", "--run", script];
        let run: &[&str] = &["run", "ram:1M", "--", "sh", "-c", script];
        for args in [serve, run] {
            let (dir, mut child) = run_beside(args);
            let mut out = BufReader::new(child.0.stdout.take().unwrap());
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            assert_eq!(line, "ready\n", "{args:?}");
            signal(&child.0, Signal::TERM);
            let mut rest = String::new();
            // The end of its output is the end of all who could write to it.
            out.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, if code == 7 { "told\n" } else { "" });
            assert_eq!(child.0.wait().unwrap().code(), Some(code), "{args:?}");
            let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
            let left = left.iter().map(std::fs::DirEntry::file_name);
            assert!(left.clone().all(|name| name == "run"), "{:?}", left.collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_command_that_does_not_end_is_killed_by_a_second_signal() {
    let script = format!("trap '' TERM INT; echo ready; {WAIT}");
    let (_dir, mut child) = run_beside(&["serve", "ram:1M", "--run", &script]);
    let mut out = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    signal(&child.0, Signal::TERM);
    signal(&child.0, Signal::INT);
    out.read_to_string(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_eq!(child.0.wait().unwrap().code(), Some(1));
}

#[test]
fn a_socket_may_have_a_long_path() {
    let dir = TempDir::new().unwrap();
    let deep = dir.path().join("d".repeat(150));
    std::fs::create_dir(&deep).unwrap();
    let socket = deep.join("nbd.sock");
    let mut command = blockyard(&deep.join("run"));
    command.args(["serve", "ram:8M", "--nbd"]).arg(format!("unix:{}", socket.display()));
    let daemon = Daemon::start(command, dir, 1);
    let said = Said::of(
        &blockyard(&deep.join("run")).args(["info", &daemon.uris[0], "--size"]).output().unwrap(),
    );
    said.code(0).contains(&["8388608"]);
    let listed = Said::of(&blockyard(&deep.join("run")).args(["list"]).output().unwrap());
    listed.code(0).contains(&[socket.to_str().unwrap()]);
    daemon.stop();
    assert!(!socket.exists());
}

#[test]
fn a_check_finds_files_of_tls_that_are_missing() {
    let dir = TempDir::new().unwrap();
    let yard = "[[disk]]\nuri = \"ram:1M\"\n[nbd]\nlisten = \"unix:s\"\n\
                [nbd.tls]\ncertificate = \"none.pem\"\nkey = \"none.key\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let said = Said::of(
        &blockyard(dir.path()).current_dir(dir.path()).args(["up", "--check"]).output().unwrap(),
    );
    assert_ne!(said.code, 0);
    said.contains(&["none.pem"]);
}

#[test]
fn the_log_is_where_list_says_and_tells_who_came_when() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("log");
    let run = dir.path().join("run");
    let mut command = blockyard(&run);
    command.env("BLOCKYARD_LOG", "info").args(["serve", "ram:8M", "--nbd", "unix:s"]);
    command.current_dir(dir.path()).stdin(Stdio::null());
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut child = Guard(command.spawn().unwrap());
    let socket = dir.path().join("s");
    while UnixStream::connect(&socket).is_err() {
        assert!(child.0.try_wait().unwrap().is_none());
        blockyard_conformance::pause();
    }
    peer("nbdinfo", &["--size", &unix("", &socket)]);
    assert_ne!(try_peer("nbdinfo", &["--size", &unix("evil%1B%5B2J%0Aname", &socket)]).code, 0);
    let listed = Said::of(&blockyard(&run).args(["list"]).output().unwrap());
    listed.code(0).contains(&[&format!("logs to {}", log.display()), "AVG OPS/S"]);
    signal(&child.0, Signal::HUP);
    let wanted = ["client connected", "export refused", "connection closed", "SIGHUP"];
    let begun = Instant::now();
    let text = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if wanted.iter().all(|event| text.contains(event)) {
            break text;
        }
        assert!(begun.elapsed() < LONG, "{text}");
        blockyard_conformance::pause();
    };
    for line in text.lines().filter(|line| !line.starts_with("serving ")) {
        // 2026-01-31T23:59:59.123456Z
        let (date, rest) = line.split_at(10);
        assert!(date.split('-').count() == 3 && rest.starts_with('T'), "{line}");
        // Who has what he came for has broken nothing.
        assert!(line.contains(" INFO ") && !line.contains("failed"), "{line}");
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    signal(&child.0, Signal::TERM);
    assert!(child.0.wait().unwrap().success());
}

#[test]
fn a_bench_whose_last_flush_fails_is_a_failure() {
    let dir = TempDir::new().unwrap();
    let _server = failing_flushes(&dir.path().join("upstream"));
    let upstream = format!("{}&name=far", unix("", &dir.path().join("upstream")));
    let bench = |rw: &str| {
        let args = ["bench", &upstream, "--rw", rw, "--count", "8"];
        Said::of(&blockyard(&dir.path().join("run")).args(args).output().unwrap())
    };
    bench("write").code(1).contains(&["final flush failed: far (", "may be lost"]);
    bench("read").code(0);
}

#[test]
fn a_frozen_server_to_which_nothing_was_written_keeps_nobody_from_ending() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("upstream");
    let upstream = format!("{}&name=far&timeout=120s", unix("", &socket));
    let yard = format!(
        "[[disk]]\nuri = \"{upstream}\"\n[nbd]\nlisten = \"unix:s\"\n[threads]\nshutdown_grace = \"100ms\"\n"
    );
    let server = nbdkit(&socket, &["memory", "8M"]);
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.arg("up");
    let daemon = Daemon::start(command, dir, 1);
    signal(&server.0, Signal::STOP);
    let mut client = system("nbdsh");
    client.args(["-u", &daemon.uri(""), "-c", "h.pread(4096, 0)"]).stderr(Stdio::null());
    let _client = Guard(client.spawn().expect("nbdsh is missing; run: cargo xtask setup"));
    while daemon.report()["disks"][0]["in_flight"] == 0 {
        blockyard_conformance::pause();
    }
    let begun = Instant::now();
    daemon.signal(Signal::TERM);
    let (status, log) = daemon.wait();
    assert!(status.success(), "{log}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}\n{log}", begun.elapsed());
}

/// Runs a command in the foreground of a terminal, and types Ctrl-C whenever it says "again". Ends as the command does.
const TERMINAL: &str = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b""
typed = 0
while True:
    try:
        more = os.read(terminal, 4096)
    except OSError:
        break
    if not more:
        break
    said += more
    while said.count(b"again") > typed:
        typed += 1
        os.write(terminal, b"\x03")
sys.stdout.buffer.write(said)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
"#;

#[test]
fn ctrl_c_at_its_terminal_is_an_interactive_commands_own() {
    let dir = TempDir::new().unwrap();
    // Longer apart than one that was sent twice.
    let script = "n=0; trap 'n=$((n+1)); sleep 0.7; [ $n -ge 3 ] || echo again' INT; echo again; \
                  while [ $n -lt 3 ]; do sleep 0.1; done; exit 7";
    let mut command = system("timeout");
    command.args(["--kill-after=5", "60", "python3", "-c", TERMINAL]);
    command.arg(env!("CARGO_BIN_EXE_blockyard"));
    command.args(["run", "ram:1M", "--", "sh", "-c", script]);
    command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run")).env("TMPDIR", dir.path());
    let said = Said::of(&command.stdin(Stdio::null()).output().unwrap());
    said.code(7);
    assert!(!said.out.contains("error"), "{}", said.out);
}
