//! How a daemon is started, found, secured and ended.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Daemon, Guard, Said, blockyard, nbdsh, peer, run, system, try_peer};
use rustix::process::Signal;
use tempfile::TempDir;

#[test]
fn several_exports_the_first_is_the_default() {
    let args = [
        "ram:8M",
        "ram:16M",
        "null:32M",
        "--name",
        "first",
        "--name",
        "second",
        "--description",
        "one",
    ];
    let daemon = Daemon::serve(&args);
    for (export, size) in
        [("", "8388608"), ("first", "8388608"), ("second", "16777216"), ("null0", "33554432")]
    {
        assert_eq!(peer("nbdinfo", &["--size", &daemon.uri(export)]).trim(), size, "{export:?}");
    }
    let list = peer("nbdinfo", &["--list", &daemon.uri("")]);
    assert!(list.contains("description: one"), "{list}");
    let missing = try_peer("nbdinfo", &[&daemon.uri("third")]);
    assert_ne!(missing.code, 0);
    let said = daemon.run(&["list", &daemon.uri("")]);
    said.code(0).contains(&[
        "\"first\"",
        "\"second\"",
        "16 MiB",
        "one",
        "nbd+unix:///null0?socket=",
    ]);
    let said = daemon.run(&["info", &daemon.uri("third")]);
    said.code(1).contains(&["third", "blockyard list 'nbd+unix://"]);
}

#[test]
fn read_only_is_read_only_for_everybody() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("precious");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let daemon =
        Daemon::serve(&["ram:8M".into(), format!("file:{}", file.display()), "--read-only".into()]);
    for export in ["ram0", "precious"] {
        let uri = daemon.uri(export);
        peer("nbdinfo", &["--is", "read-only", &uri]);
        assert_eq!(daemon.run(&["info", &uri, "--is", "read-only"]).code, 0);
        assert_eq!(daemon.run(&["info", &uri, "--can", "write"]).code, 2);
        let script = "h.set_strict_mode(0)\ntry:\n  h.pwrite(bytes(512), 0)\n  raise SystemExit('written')\n\
                      except nbd.Error as e:\n  assert e.errnum == 1, e.errnum";
        nbdsh(&uri, script);
    }
    daemon.stop();
    assert_eq!(std::fs::read(&file).unwrap(), vec![7; 1 << 20]);
}

#[test]
fn tcp_and_unix_at_once() {
    let daemon = Daemon::start(
        {
            let mut command = blockyard(Path::new("run"));
            command.args([
                "serve",
                "ram:8M",
                "--nbd",
                "tcp:127.0.0.1:0",
                "--nbd",
                "unix:s",
                "--socket-mode",
                "600",
            ]);
            command
        },
        TempDir::new().unwrap(),
        2,
    );
    assert!(daemon.uris[0].starts_with("nbd://127.0.0.1:"), "{:?}", daemon.uris);
    for uri in [daemon.uris[0].clone(), daemon.uri("")] {
        assert_eq!(peer("nbdinfo", &["--size", &uri]).trim(), "8388608");
    }
    // The port is in use by now.
    let port = daemon.uris[0].rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let said = run(&["serve", "ram:1M", "--nbd", &format!("tcp:127.0.0.1:{port}")]);
    said.code(75).contains(&["in use", "choose another"]);
    let said = run(&["serve", "ram:1M", "--nbd", &format!("unix:{}", daemon.path("s").display())]);
    said.code(75).contains(&["in use"]);
}

/// An authority, and certificates of a server and a client of it.
fn certificates(dir: &Path) {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa,
        KeyPair,
    };
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "Blockyard test authority");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca-cert.pem"), ca.pem()).unwrap();
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().unwrap();
        let mut params =
            CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let cert = params.signed_by(&key, &ca).unwrap();
        std::fs::write(dir.join(format!("{name}-cert.pem")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
    }
}

fn tls_daemon(mode: &str, client_ca: bool) -> Daemon {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["serve", "ram:8M", "--nbd", "tcp:localhost:0", "--nbd", "unix:s", "--tls", mode]);
    command.args(["--tls-certificate", "server-cert.pem", "--tls-key", "server-key.pem"]);
    if client_ca {
        command.args(["--tls-client-ca", "ca-cert.pem"]);
    }
    // localhost may be two addresses.
    Daemon::start(command, dir, 2)
}

#[test]
fn tls_is_required_of_everybody() {
    let daemon = tls_daemon("require", true);
    let port = daemon.uris[0].rsplit(':').next().unwrap().split(['/', '?']).next().unwrap();
    let certificates = daemon.dir().display();
    let plain = format!("nbd://localhost:{port}");
    let secure = format!("nbds://localhost:{port}/ram0?tls-certificates={certificates}");
    let said = peer("nbdinfo", &[&secure]);
    assert!(said.contains("with TLS"), "{said}");
    assert_ne!(try_peer("nbdinfo", &[&plain]).code, 0, "nobody without TLS");
    daemon.run(&["info", &secure]).code(0).contains(&["TLS", "yes", "8 MiB"]);
    daemon.run(&["info", &secure, "--is", "tls"]).code(0);
    assert_ne!(daemon.run(&["info", &plain]).code, 0);
    // Without a certificate of its own, a client is sent away.
    let anonymous = format!("nbds://localhost:{port}/ram0");
    let ca = daemon.path("ca-cert.pem");
    assert_ne!(daemon.run(&["info", &anonymous, "--tls-ca", ca.to_str().unwrap()]).code, 0);
    // QEMU, with its own spelling.
    let object = format!("tls-creds-x509,id=tls0,endpoint=client,dir={certificates}");
    let image = format!("driver=nbd,host=localhost,port={port},export=ram0,tls-creds=tls0");
    let said = peer("qemu-img", &["info", "--object", &object, "--image-opts", &image]);
    assert!(said.contains("8 MiB"), "{said}");
    let out = daemon.path("out");
    peer("nbdcopy", &[&secure, out.to_str().unwrap()]);
    assert_eq!(std::fs::metadata(out).unwrap().len(), 8 << 20);
    daemon.run(&["bench", &secure, "--count", "500", "--rw", "randrw"]).code(0);
}

#[test]
fn a_command_beside_a_server_that_requires_tls_is_told_how_to_get_in() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let files = ["--tls-certificate", "server-cert.pem", "--tls-key", "server-key.pem"];
    for (mode, scheme) in [("require", "nbds+unix://"), ("allow", "nbd+unix://")] {
        let script = "echo \"$uri\"; nbdinfo --size \"$uri\"";
        let mut command = blockyard(&dir.path().join("run"));
        command.current_dir(dir.path()).args(["serve", "ram:8M", "--tls", mode, "--run", script]);
        let said = common::Said::of(&command.args(files).output().unwrap());
        said.code(0).contains(&["8388608"]);
        assert!(said.out.starts_with(scheme), "{}", said.out);
    }
}

#[test]
fn tls_is_allowed_to_those_who_want_it() {
    let daemon = tls_daemon("allow", false);
    let socket = daemon.path("s");
    let secure = format!(
        "nbds+unix:///ram0?socket={}&tls-certificates={}&tls-hostname=localhost",
        socket.display(),
        daemon.dir().display()
    );
    daemon.run(&["info", &secure, "--is", "tls"]).code(0);
    daemon.run(&["info", &daemon.uri("ram0"), "--is", "tls"]).code(2);
    // A server that another authority has signed is not believed.
    let strange = TempDir::new().unwrap();
    certificates(strange.path());
    let ca = strange.path().join("ca-cert.pem");
    let said = daemon.run(&["info", &secure, "--tls-ca", ca.to_str().unwrap()]);
    said.code(1).contains(&["TLS with", "invalid peer certificate", "--tls-ca"]);
}

#[test]
fn sockets_of_systemd_are_taken() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // The shell makes the socket file descriptor 3, and becomes the daemon with its own process id, as systemd
    // does. Not any shell: dash takes no descriptors of two digits, and other tests of this process have some.
    let fd = rustix::io::dup(&listener).unwrap();
    let script = format!(
        "exec 3<&{}; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" serve ram:8M",
        fd.as_raw_fd()
    );
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_blockyard"));
    command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run"));
    // bash closes nothing that is passed on.
    let notify = dir.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    command.env("NOTIFY_SOCKET", &notify);
    let daemon = Daemon::start(command, dir, 1);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("")]).trim(), "8388608");
    let mut message = [0; 64];
    let got = notified.recv(&mut message).unwrap();
    assert_eq!(&message[..got], b"READY=1\n");
    daemon.signal(Signal::TERM);
    let got = notified.recv(&mut message).unwrap();
    assert_eq!(&message[..got], b"STOPPING=1\n");
    let (status, log) = daemon.wait();
    assert!(status.success(), "{status}\n{log}");
    run(&["serve", "ram:1M", "--nbd", "systemd"]).code(64).contains(&["socket unit"]);
}

#[test]
fn the_end_is_orderly_and_leaves_nothing() {
    let daemon = Daemon::serve(&["ram:8M", "file:disk.img?create=8M"]);
    let (socket, run, image) = (daemon.path("s"), daemon.path("run"), daemon.path("disk.img"));
    let mut client = system("nbdsh");
    // Who has not flushed is given most of the time for it.
    let script = "h.pwrite(b'z' * 4096, 0)\nh.flush()\nprint('written', flush=True)\nimport sys\nsys.stdin.read()";
    client
        .args(["-u", &daemon.uri("disk"), "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut client = Guard(client.spawn().expect("nbdsh is missing; run: cargo xtask setup"));
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(client.0.stdout.take().unwrap()),
        &mut line,
    )
    .unwrap();
    assert_eq!(line, "written\n");
    let keep = TempDir::new().unwrap();
    daemon.signal(Signal::INT);
    let kept = keep.path().join("disk.img");
    std::fs::hard_link(&image, &kept).or_else(|_| std::fs::copy(&image, &kept).map(drop)).unwrap();
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 1);
    let log = {
        let (status, log) = daemon.wait();
        assert!(status.success(), "{status}\n{log}");
        log
    };
    assert!(!log.contains("grace period expired"), "{log}");
    assert_eq!(&std::fs::read(&kept).unwrap()[..4096], &[b'z'; 4096]);
    assert!(!socket.exists());
}

#[test]
fn list_shows_daemons_and_forgets_dead_ones() {
    let daemon = Daemon::serve(&["ram:8M?name=alpha", "null:1T?ro=1"]);
    nbdsh(&daemon.uri("alpha"), "h.pwrite(bytes(65536), 0)\nh.pread(4096, 0)");
    let report = daemon.report();
    let alpha = &report["disks"][0];
    assert_eq!((&alpha["name"], &alpha["driver"]), (&"alpha".into(), &"ram".into()));
    assert_eq!(alpha["bytes_written"], 65536);
    assert!(alpha["write_latency_ns"]["p50"].as_u64().unwrap() > 0);
    assert_eq!(report["disks"][1]["read_only"], true);
    assert_eq!(report["nbd"]["listen"][0], format!("unix:{}", daemon.path("s").display()));
    let pid = daemon.pid().to_string();
    daemon.run(&["list"]).code(0).contains(&[
        &pid,
        "alpha",
        "8 MiB",
        "1 TiB",
        "listens at unix:",
        "64 KiB",
    ]);
    daemon
        .run(&["list", "--partitions"])
        .code(0)
        .contains(&["major minor  #blocks  name", "8192 alpha"]);
    daemon.run(&["list", "--diskstats"]).code(0).contains(&[" alpha ", " null0 "]);
    // A daemon that was killed leaves its socket, which the next list removes.
    let stale = daemon.path("run").join(format!("{pid}.sock"));
    daemon.signal(Signal::KILL);
    let runtime = TempDir::new().unwrap();
    while !stale.exists() || std::os::unix::net::UnixStream::connect(&stale).is_ok() {
        blockyard_conformance::pause();
    }
    let left = runtime.path().join(format!("{pid}.sock"));
    std::fs::rename(&stale, &left).unwrap();
    let output = blockyard(runtime.path()).args(["list", "--json"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "[]");
    assert!(!left.exists());
}

#[test]
fn run_ends_with_its_command() {
    let said = run(&["serve", "ram:8M", "--run", "nbdinfo --size \"$uri\"; exit 7"]);
    said.code(7).contains(&["8388608"]);
}

#[test]
fn an_idle_daemon_is_small_and_sleeps() {
    // The code of a build for debugging is several times that of an optimised one: there, only what it has allocated
    // counts.
    let (program, what) = match std::env::var_os("BLOCKYARD_STATIC") {
        Some(program) => (program, "VmRSS:"),
        None => (env!("CARGO_BIN_EXE_blockyard").into(), "RssAnon:"),
    };
    let daemon = Daemon::serve_by(Path::new(&program), &["ram:1T"]);
    nbdsh(&daemon.uri(""), "h.pread(4096, 0)");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix(what))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(kib < 16 << 10, "{kib} KiB resident");
}

/// A client that reads once, and what it is served by.
fn reading(latency: &str) -> (Daemon, Guard, std::os::unix::net::UnixDatagram) {
    let dir = TempDir::new().unwrap();
    let notify = dir.path().join("notify");
    let notified = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.env("NOTIFY_SOCKET", &notify);
    command.args(["serve", &format!("null:1M?latency={latency}"), "--nbd", "unix:s"]);
    let daemon = Daemon::start(command, dir, 1);
    expect(&notified, "READY=1\n");
    let mut client = system("nbdsh");
    let script = "assert h.pread(4096, 0) == bytes(4096)";
    client.args(["-u", &daemon.uri(""), "-c", script]);
    let client = Guard(client.spawn().expect("nbdsh is missing; run: cargo xtask setup"));
    while daemon.report()["disks"][0]["in_flight"] == 0 {
        blockyard_conformance::pause();
    }
    (daemon, client, notified)
}

fn expect(notified: &std::os::unix::net::UnixDatagram, what: &str) {
    let mut message = [0; 64];
    let got = notified.recv(&mut message).unwrap();
    assert_eq!(std::str::from_utf8(&message[..got]), Ok(what));
}

#[test]
fn what_is_in_flight_is_answered_before_the_end() {
    let (daemon, mut client, _notified) = reading("700ms");
    daemon.stop();
    assert!(client.0.wait().unwrap().success());
}

/// A service manager kills what does not end in time, unless it is told that it goes on.
#[test]
fn more_time_is_asked_for_while_requests_are_finished() {
    let (daemon, mut client, notified) = reading("700ms");
    daemon.signal(Signal::TERM);
    expect(&notified, "STOPPING=1\n");
    expect(&notified, "EXTEND_TIMEOUT_USEC=30000000\n");
    assert!(client.0.wait().unwrap().success());
    daemon.wait();
}

/// Thousands of clients need thousands of descriptors; what a command does with them is its own affair.
#[test]
fn a_command_that_is_run_has_the_file_limit_that_we_were_started_with() {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new("bash");
    let script = "ulimit -Sn 300; exec \"$0\" run ram:1M -- bash -c 'ulimit -Sn'";
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_blockyard"));
    command.env("BLOCKYARD_RUNTIME_DIR", dir.path().join("run")).env("TMPDIR", dir.path());
    let said = Said::of(&command.output().unwrap());
    assert_eq!(said.code(0).out, "300\n", "{}", said.err);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (daemon, mut client, notified) = reading("60s");
    // A signal that comes twice at once is one.
    daemon.signal(Signal::TERM);
    expect(&notified, "STOPPING=1\n");
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::INT);
    let (status, log) = daemon.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("second signal"), "{log}");
    assert!(!client.0.wait().unwrap().success());
}

#[test]
fn a_file_of_an_odd_size_is_served_and_keeps_it() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for direct in ["0", "1"] {
        let mut expected = common::noise(241_059, 3);
        std::fs::write(path("disk"), &expected).unwrap();
        let daemon = Daemon::serve(&[format!("file:{}?direct={direct}", path("disk"))]);
        let uri = daemon.uri("disk");
        assert_eq!(peer("nbdinfo", &["--size", &uri]).trim(), "241059");
        daemon.run(&["info", &uri, "--size"]).code(0).contains(&["241059"]);
        peer("nbdcopy", &[&uri, &path("copied")]);
        assert!(std::fs::read(path("copied")).unwrap() == expected);
        for at in [0, 3, 509, 4094, 100_001, 240_638, 241_000, 241_054] {
            let script = format!("h.pwrite(b'12345', {at})\nassert h.pread(5, {at}) == b'12345'");
            nbdsh(&uri, &script);
            expected[at..at + 5].copy_from_slice(b"12345");
        }
        nbdsh(&uri, "h.zero(7, 241052)\nh.flush()");
        expected[241_052..].fill(0);
        assert!(std::fs::read(path("disk")).unwrap() == expected);
        daemon.run(&["set", "disk", "size=300001"]).code(0);
        expected.resize(300_001, 0);
        assert_eq!(peer("nbdinfo", &["--size", &uri]).trim(), "300001");
        nbdsh(&uri, "h.pwrite(b'12345', 299996)\nh.flush()");
        expected[299_996..].copy_from_slice(b"12345");
        assert!(std::fs::read(path("disk")).unwrap() == expected);
        daemon.stop();
    }
}

#[test]
fn a_disk_is_changed_while_it_is_served() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("disk");
    std::fs::write(&file, vec![7; 1 << 20]).unwrap();
    let big = "ram:8M?block=4096&name=big".into();
    let daemon = Daemon::serve(&["ram:8M".into(), format!("file:{}", file.display()), big]);
    daemon.run(&["set", "disk", "size=3M"]).code(0);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 3 << 20);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("disk")]).trim(), "3145728");
    nbdsh(&daemon.uri("disk"), "h.pwrite(b'x' * 512, (3 << 20) - 512)");
    daemon.run(&["set", "ram0", "size=16M", "read-only=1"]).code(0);
    peer("nbdinfo", &["--is", "read-only", &daemon.uri("ram0")]);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("ram0")]).trim(), "16777216");

    daemon.run(&["set", "disk", "size=1M"]).code(64).contains(&["3145728", "--shrink"]);
    daemon.run(&["set", "disk", "size=1M", "--shrink"]).code(0);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 3 << 20, "nothing is cut off");
    daemon.run(&["set", "ram0", "size=32M", "size=16M"]).code(64).contains(&["given twice"]);
    for (disk, size, parts) in [
        ("ram0", "size=40000001", ["cannot set ram0", "not a multiple of 512", "size=40000512"]),
        ("big", "size=8389120", ["cannot set big", "not a multiple of 4096", "size=8392704"]),
    ] {
        daemon.run(&["set", disk, size]).code(64).contains(&parts);
    }
    daemon.run(&["set", "big", "size=8392704"]).code(0);
    daemon.run(&["set", "nodisk", "size=2M"]).code(1).contains(&["nodisk", "blockyard list"]);
    daemon.run(&["set", "ram0", "colour=red"]).code(64).contains(&["colour", "size"]);
}
