//! `attach`, `detach` and `recover` where the kernel has neither ublk nor NBD, or nothing is attached. What they do
//! with a kernel that has both: `vm_attach.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use blockyard_conformance::pause;
use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};
use common::{Guard, Said, blockyard, run, unix};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this machine's kernel could attach; the tests do not attach anything to it.
fn has(path: &str) -> bool {
    std::path::Path::new(path).exists()
}

#[test]
fn a_kernel_without_drivers_is_told_with_what_to_do() {
    let (ublk, nbd) = (has("/dev/ublk-control"), has("/dev/nbd0"));
    if !ublk {
        run(&["attach", "ram:1M", "--via", "ublk"])
            .code(69)
            .contains(&["modprobe ublk_drv", "cannot attach ram:1M"]);
    }
    if !nbd {
        for via in ["nbd", "nbd-ioctl"] {
            run(&["attach", "ram:1M", "--via", via]).code(69).contains(&["modprobe nbd"]);
        }
    }
    if !ublk && !nbd {
        run(&["attach", "ram:1M"]).code(69).contains(&[
            "modprobe ublk_drv",
            "modprobe nbd",
            "blockyard serve",
        ]);
        run(&["attach", "ram:1M", "--foreground"]).code(69).contains(&["modprobe ublk_drv"]);
    }
}

#[test]
fn mistakes_are_told_before_anything_is_started() {
    run(&["attach", "ram:1GB"]).code(64).contains(&["write G or GiB"]);
    run(&["attach", "ram:1M", "--via", "loop"]).code(64).contains(&["ublk", "nbd-ioctl"]);
    run(&["attach"]).code(64);
    run(&["detach"]).code(64).contains(&["DEVICE|URI"]);
    run(&["detach", "/dev/sda"]).code(64).contains(&["/dev/ublkb0", "blockyard list"]);
    run(&["recover", "/dev/nbd0p1"]).code(64).contains(&["/dev/nbd0"]);
    run(&["attach", "ram:1M", "--number", "4294967295"]).code(64).contains(&["1048575"]);
    let fenced = ["attach", "nbd://localhost/x", "--via", "nbd", "--timeout", "3"];
    let fenced = [&fenced[..], &["--dead-conn-timeout", "57"]].concat();
    run(&fenced).code(64).contains(&[
        "fence_timeout",
        "--kernel-timeout",
        "--kernel-dead-conn-timeout",
    ]);
}

#[test]
fn a_record_of_another_version_is_told_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let records = dir.path().join("attached");
    std::fs::create_dir(&records).unwrap();
    let record = records.join("nbd5.json");
    std::fs::write(&record, "{\"version\": 99}").unwrap();
    let run = |args: &[&str]| Said::of(&blockyard(dir.path()).args(args).output().unwrap());
    run(&["list"]).code(0).contains(&["/dev/nbd5 is in use", "version 99"]);
    let listed = run(&["list", "--json"]).code(0).json();
    assert_eq!(listed[0]["not_understood"]["device"], "/dev/nbd5");
    run(&["detach", "/dev/nbd5", "--force"]).code(1).contains(&["version 99"]);
    run(&["recover", "/dev/nbd5"]).code(1).contains(&["version 99"]);
    run(&["detach", "--all", "--force"]).code(0);
    run(&["recover"]).code(0).contains(&["nothing to recover"]);
    assert!(record.exists());
}

/// The next client of a server.
fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let begun = Instant::now();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(err) if err.kind() == ErrorKind::WouldBlock => pause(),
            Err(err) => panic!("{err}"),
        }
        assert!(begun.elapsed() < PATIENCE, "nobody has connected");
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Serves a disk whose reads are told, and not answered.
fn never_answer(mut stream: UnixStream, tell: &mpsc::Sender<()>) -> std::io::Result<()> {
    let style = HeaderStyle::Structured;
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: 1 << 20,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        block_sizes: None,
    };
    let (tls_only, block_sizes_required) = (false, false);
    let exports = [Export { id: 0, info, contexts: vec![], tls_only, block_sizes_required }];
    let mut shake = Handshake::new(Config { best_style: style, ..Config::default() });
    let (mut input, mut output, mut shaken) = (Vec::new(), Vec::new(), false);
    loop {
        output.clear();
        if !shaken {
            let taken = shake.receive(&exports[..], &input).map_err(Error::other)?;
            input.drain(..taken);
            shake.poll_transmit(&mut output);
            shaken = matches!(shake.poll_event(), Some(Event::Done(_)));
        } else if let Some(request) = Request::parse(style, &input).map_err(Error::other)? {
            input.drain(..style.request_len());
            if request.command == Command::Read {
                tell.send(()).map_err(Error::other)?;
            }
            continue;
        }
        stream.write_all(&output)?;
        if output.is_empty() {
            let mut bytes = [0; 8192];
            match stream.read(&mut bytes)? {
                0 => return Ok(()),
                len => input.extend_from_slice(&bytes[..len]),
            }
        }
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        pause();
    }
}

/// The same command may be given again, and two devices of one disk would be the end of its file system.
#[test]
fn a_daemon_that_nobody_waits_for_any_more_attaches_nothing() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let uri = format!("{}&connections=1&timeout=10m", unix("", &socket));
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["attach", &uri]).stdout(Stdio::null()).stderr(Stdio::null());
    let starter = Guard(command.spawn().unwrap());
    // The daemon's, which nobody greets.
    let mut stream = accept(&listener);
    drop(starter);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it has ended");
}

#[test]
fn a_signal_ends_an_attach_that_waits_for_its_disk() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let uri = format!("{}&connections=1&timeout=10m&dead_conn_timeout=20m", unix("", &socket));
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["attach", "--foreground", &uri]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = Guard(command.spawn().unwrap());
    let stream = accept(&listener);
    let (tell, told) = mpsc::channel();
    let serving = std::thread::spawn(move || never_answer(stream, &tell));
    told.recv_timeout(PATIENCE).expect("the partition table is read");
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    assert!(!wait(&mut daemon.0).success());
    serving.join().unwrap().unwrap();
}
