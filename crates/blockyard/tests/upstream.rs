//! Disks at NBD servers: as a proxy, through a server that dies, over TLS, and with nobody there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use blockyard_conformance::{LoopDevice, in_own_mounts};
use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};
use common::{Cleanup, Daemon, blockyard, nbdkit, nbdsh, noise, peer, run, system, try_peer, unix};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Writes and verifies, with the foreign client.
fn verified_load(uri: &str, size: &str) {
    let args = [
        "--name=verify",
        "--ioengine=nbd",
        &format!("--uri={uri}"),
        "--rw=randwrite",
        "--bssplit=512/20:4k/60:64k/20",
        "--blockalign=512",
        "--iodepth=16",
        &format!("--size={size}"),
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--minimal",
    ];
    let dir = TempDir::new().unwrap();
    let mut fio = system("timeout");
    let output = fio.args(["120", "fio"]).args(args).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_proxy_passes_everything_on() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("up");
    let _nbdkit = nbdkit(&socket, &["memory", "32M"]);
    let daemon = Daemon::serve(&[&format!("{}&name=proxy", unix("", &socket)), "--threads", "2"]);
    verified_load(&daemon.uri("proxy"), "8M");
    let image = dir.path().join("image");
    let data = noise(32 * MIB, 5);
    std::fs::write(&image, &data).unwrap();
    peer("nbdcopy", &[image.to_str().unwrap(), &daemon.uri("proxy")]);
    let back = dir.path().join("back");
    // Past the proxy: it is there.
    peer("nbdcopy", &[&unix("", &socket), back.to_str().unwrap()]);
    assert!(std::fs::read(&back).unwrap() == data);
    // Trimming and the block map go all the way.
    peer("nbdsh", &["-u", &daemon.uri("proxy"), "-c", "h.trim(16 << 20, 0)"]);
    let map = peer("nbdinfo", &["--map", &daemon.uri("proxy")]);
    assert_eq!(map, peer("nbdinfo", &["--map", &unix("", &socket)]));
    assert!(map.contains("hole,zero"), "{map}");
    let report = daemon.report();
    assert_eq!(
        (&report["disks"][0]["driver"], &report["disks"][0]["size"]),
        (&"nbd".into(), &(32 << 20).into())
    );
    daemon.stop();
}

#[test]
fn a_read_only_export_and_a_read_only_wish_make_a_read_only_disk() {
    let dir = TempDir::new().unwrap();
    let (socket, writable) = (dir.path().join("ro"), dir.path().join("rw"));
    let _one = nbdkit(&socket, &["--readonly", "memory", "1M"]);
    let _two = nbdkit(&writable, &["memory", "1M"]);
    let wish = format!("{}&ro&name=b", unix("", &writable));
    let daemon = Daemon::serve(&[&format!("{}&name=a", unix("", &socket)), &wish]);
    for export in ["a", "b"] {
        let said = try_peer("nbdinfo", &["--is", "read-only", &daemon.uri(export)]);
        assert_eq!(said.code, 0, "{export}");
    }
    daemon.stop();
}

/// nbd-server without `flush = true`, say: what it has acknowledged may be in a cache that nobody can flush.
#[test]
fn what_an_upstream_cannot_make_durable_is_not_promised() {
    let dir = TempDir::new().unwrap();
    let (socket, file) = (dir.path().join("up"), dir.path().join("file"));
    std::fs::write(&file, noise(MIB, 3)).unwrap();
    let script = [
        "eval",
        "get_size=echo 1048576",
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null",
        "can_write=exit 0",
        "can_flush=exit 3",
    ];
    let _nbdkit = nbdkit(&socket, &script);
    let upstream = unix("", &socket);
    let can = |uri: &str| run(&["info", "--json", uri]).code(0).json()["can"].to_string();
    assert!(can(&upstream).contains("write") && !can(&upstream).contains("flush"));
    let daemon = Daemon::serve(&[&format!("{upstream}&name=proxy")]);
    let proxy = daemon.uri("proxy");
    for what in ["flush", "fua", "multi-conn"] {
        assert_eq!(try_peer("nbdinfo", &["--can", what, &proxy]).code, 2, "{what}");
    }
    peer("nbdcopy", &[file.to_str().unwrap(), &proxy]);
    let copied = run(&["copy", file.to_str().unwrap(), &upstream]);
    copied.code(0).contains(&["cannot flush", "cache"]);
    daemon.stop();
}

/// The upstream server of a proxy is killed and started again, twice, while fio verifies what it wrote.
#[test]
fn a_server_that_dies_is_not_noticed() {
    let dir = TempDir::new().unwrap();
    let (socket, file) = (dir.path().join("up"), dir.path().join("file"));
    std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let args = ["file", file.to_str().unwrap()];
    let mut server = nbdkit(&socket, &args);
    // Its data is in the page cache, which outlives it.
    let trusted = format!("{}&name=up&trust_server=1", unix("", &socket));
    let daemon = Daemon::serve(&[&trusted, "--threads", "2"]);
    let uri = daemon.uri("up");
    let load = std::thread::spawn(move || verified_load(&uri, "24M"));
    for round in 1..=2 {
        let before = daemon.report()["disks"][0]["ops"].as_u64().unwrap();
        // In the midst of it: so many requests later, or when there are no more to come.
        while daemon.report()["disks"][0]["ops"].as_u64().unwrap() < before + 500 * round
            && !load.is_finished()
        {
            blockyard_conformance::pause();
        }
        server.0.kill().unwrap();
        server.0.wait().unwrap();
        server = nbdkit(&socket, &args);
    }
    load.join().unwrap();
    let log = daemon.stop();
    assert!(log.contains("NBD connection lost") && !log.contains("ERROR"), "{log}");
}

#[test]
fn a_server_that_is_started_anew_costs_an_idle_client_nothing() {
    let place = TempDir::new().unwrap();
    let (socket, yard) = (place.path().join("up"), place.path().join("yard.toml"));
    let image = place.path().join("image");
    let text = format!(
        "[[disk]]\nuri = \"file:{}?create=1M\"\nname = \"d\"\n[nbd]\nlisten = [\"unix:{}\"]\nflush_grace = \"60s\"\n\
         [threads]\nshutdown_grace = \"125s\"\n",
        image.display(),
        socket.display()
    );
    std::fs::write(&yard, text).unwrap();
    let start = || {
        let dir = TempDir::new().unwrap();
        let mut command = blockyard(&dir.path().join("run"));
        command.args(["up", "--file"]).arg(&yard);
        Daemon::start(command, dir, 1)
    };
    let server = start();
    let uri = format!("{}&name=p&flush_after=50ms&connections=3", unix("d", &socket));
    let proxy = Daemon::serve(&[&uri, "--threads", "1"]);
    nbdsh(&proxy.uri("p"), "h.pwrite(b'x' * 4096, 8192)");
    server.stop();
    let _server = start();
    nbdsh(&proxy.uri("p"), "h.flush()\nassert h.pread(4096, 8192) == b'x' * 4096");
    let log = proxy.stop();
    assert!(
        log.contains("fewer connections than wanted") && log.contains("wanted=3 connections=1"),
        "{log}"
    );
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn nobody_there_is_told_at_once_and_a_dead_server_within_its_time() {
    let dir = TempDir::new().unwrap();
    let gone = unix("", &dir.path().join("none"));
    let serve = |uri: &str| {
        let nbd = format!("unix:{}", dir.path().join("s").display());
        run(&["serve", uri, "--nbd", &nbd])
    };
    serve(&gone).code(1).contains(&["cannot open nbd+unix", "start the server"]);
    run(&["bench", &gone]).code(1).contains(&["start the server"]);
    serve("nbd://127.0.0.1:1").code(1).contains(&["no server is listening"]);
    serve("nbd+vsock://1:4000000000/?timeout=5s").code(1).contains(&["vsock_loopback"]);
    // It takes connections and says nothing.
    let silent = dir.path().join("silent");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let said = serve(&format!("{}&timeout=50ms", unix("", &silent)));
    said.code(1).contains(&["does not answer within 50ms", "running NBD server"]);
    // It dies later, and stays away: requests fail, and the proxy ends when it is asked to.
    let socket = dir.path().join("up");
    let mut server = nbdkit(&socket, &["memory", "1M"]);
    let uri = format!("{}&name=up&dead_conn_timeout=100ms", unix("", &socket));
    let daemon = Daemon::serve(&[&uri]);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    let said = try_peer("nbdsh", &["-u", &daemon.uri("up"), "-c", "h.pread(512, 0)"]);
    assert!(said.code != 0 && said.err.contains("Input/output error"), "{}", said.err);
    let log = daemon.stop();
    assert!(log.contains("no NBD connection within dead_conn_timeout"), "{log}");
}

#[test]
fn an_export_that_has_grown_makes_the_disk_grow() {
    let dir = TempDir::new().unwrap();
    let (socket, file) = (dir.path().join("up"), dir.path().join("file"));
    let resize = |len: u64| {
        std::fs::File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&file)
            .unwrap()
            .set_len(len)
            .unwrap();
    };
    resize(1 << 20);
    let args = ["file", file.to_str().unwrap()];
    let mut server = nbdkit(&socket, &args);
    let upstream = unix("", &socket);
    // The blocks of one are larger than its export's.
    let disks = [format!("{upstream}&name=up"), format!("{upstream}&name=blocks&block=4096")];
    let daemon = Daemon::serve(&disks);
    let size = |disk: &str| peer("nbdinfo", &["--size", &daemon.uri(disk)]).trim().to_owned();
    assert_eq!([size("up"), size("blocks")], ["1048576", "1048576"]);
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    resize((3 << 20) + 512);
    let _server = nbdkit(&socket, &args);
    for (disk, grown) in [("up", "3146240"), ("blocks", "3149824")] {
        // A read finds the connection gone, and waits for the next one.
        peer("nbdsh", &["-u", &daemon.uri(disk), "-c", "h.pread(4096, 0)"]);
        let begun = std::time::Instant::now();
        while size(disk) != grown {
            assert!(begun.elapsed().as_secs() < 60, "{disk} has {} bytes", size(disk));
        }
    }
    daemon.stop();
}

#[test]
fn an_export_of_an_odd_size_is_served_to_its_last_byte() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let socket = dir.path().join("up");
    let mut expected = noise(241_059, 8);
    std::fs::write(path("disk"), &expected).unwrap();
    let _server = nbdkit(&socket, &["file", &path("disk")]);
    let uri = unix("", &socket);
    assert_eq!(run(&["info", &uri, "--size"]).code(0).out.trim(), "241059");
    run(&["map", &format!("{uri}&size=1000")])
        .code(1)
        .contains(&["not a multiple of the block size 512", "size=512"]);
    run(&["map", &format!("{uri}&size=512")]).code(0).contains(&["512"]);
    run(&["map", &uri]).code(0).contains(&["241059"]);
    run(&["check", &uri]).code(0);
    run(&["copy", &uri, &path("copied")]).code(0);
    assert!(std::fs::read(path("copied")).unwrap() == expected);
    run(&["compare", &uri, &path("copied")]).code(0);

    let daemon = Daemon::serve(&[format!("{uri}&name=proxy")]);
    let proxy = daemon.uri("proxy");
    assert_eq!(peer("nbdinfo", &["--size", &proxy]).trim(), "241059");
    peer("nbdcopy", &[&proxy, &path("by-peer")]);
    assert!(std::fs::read(path("by-peer")).unwrap() == expected);
    for at in [0, 509, 100_001, 241_000, 241_054] {
        nbdsh(&proxy, &format!("h.pwrite(b'12345', {at})\nassert h.pread(5, {at}) == b'12345'"));
        expected[at..at + 5].copy_from_slice(b"12345");
    }
    nbdsh(
        &proxy,
        "h.zero(59, 241000)\nh.trim(1000, 240059)\nh.flush()\nassert h.pread(59, 241000) == bytes(59)",
    );
    let left = std::fs::read(path("disk")).unwrap();
    assert!(left.len() == 241_059 && left[..240_059] == expected[..240_059]);
    assert_eq!(left[241_000..], [0; 59]);
    // Who knows sectors only sees the last one padded.
    let daemon = Daemon::serve(&[format!("{uri}&name=proxy&block=512")]);
    let proxy = daemon.uri("proxy");
    assert_eq!(peer("nbdinfo", &["--size", &proxy]).trim(), "241152");
    nbdsh(
        &proxy,
        "h.pwrite(b'x' * 512, 240640)\nassert h.pread(512, 240640) == b'x' * 419 + bytes(93)",
    );
    assert_eq!(std::fs::read(path("disk")).unwrap()[240_640..], [b'x'; 419]);
}

#[test]
fn an_empty_export_is_an_empty_disk() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let socket = dir.path().join("up");
    let _server = nbdkit(&socket, &["null", "0"]);
    let uri = unix("", &socket);
    for disk in [uri.as_str(), "ram:0", "null:0"] {
        assert_eq!(run(&["info", disk, "--size"]).code(0).out.trim(), "0");
        run(&["map", disk]).code(0);
        run(&["check", disk]).code(0);
    }
    run(&["copy", &uri, &path("copied")]).code(0);
    assert!(std::fs::read(path("copied")).unwrap().is_empty());
    run(&["compare", &uri, &path("copied")]).code(0);
    let daemon = Daemon::serve(&["ram:0".to_owned(), path("copied")]);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("ram0")]).trim(), "0");
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("copied")]).trim(), "0");
}

#[test]
fn a_yard_names_disks_at_servers() {
    let dir = TempDir::new().unwrap();
    let server = nbdkit(&dir.path().join("up"), &["memory", "2M"]);
    let yard = "[[disk]]\nuri = \"nbd+unix:///?socket=up\"\nname = \"remote\"\nconnections = 1\n\
                timeout = \"5s\"\n[nbd]\nlisten = [\"unix:s\"]\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    // From elsewhere: paths in the file begin where it is.
    command.args(["up", "-f"]).arg(dir.path().join("yard.toml"));
    let elsewhere = TempDir::new().unwrap();
    let daemon = Daemon::start(command, elsewhere, 1);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uris[0]]).trim(), "2097152");
    // Also when it is connected to again.
    drop(server);
    let _server = nbdkit(&dir.path().join("up"), &["memory", "2M"]);
    nbdsh(&daemon.uris[0], "assert h.pread(512, 0) == bytes(512)");
    daemon.stop();
}

/// Certificates of an authority of the test's own, as libnbd wants them: PEM files in a directory.
fn certificates(dir: &Path) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(params, authority_key);
    std::fs::write(dir.join("ca-cert.pem"), authority.pem()).unwrap();
    for who in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{who}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{who}-key.pem")), key.serialize_pem()).unwrap();
    }
}

#[test]
fn tls_upstream_with_certificates_both_ways() {
    let dir = TempDir::new().unwrap();
    certificates(dir.path());
    let socket = dir.path().join("up");
    let folder = dir.path().to_str().unwrap();
    let _server = nbdkit(
        &socket,
        &[
            "--tls=require",
            &format!("--tls-certificates={folder}"),
            "--tls-verify-peer",
            "memory",
            "8M",
        ],
    );
    let uri = format!("nbds+unix:///?socket={}&tls-certificates={folder}", socket.display());
    let daemon = Daemon::serve(&[&format!("{uri}&name=up"), "--threads", "2"]);
    verified_load(&daemon.uri("up"), "4M");
    daemon.stop();
    let info = run(&["info", &uri, "--json"]).code(0).json();
    assert_eq!(info["tls"], true);
    run(&["list", &uri]).code(0).contains(&["8 MiB"]);
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let bare = format!("nbds+unix:///?socket={}", socket.display());
    let args = ["bench", &bare, "--count", "10", "--tls-ca", &file("ca-cert.pem")];
    let with =
        ["--tls-certificate", &file("client-cert.pem"), "--tls-key", &file("client-key.pem")];
    run(&[&args[..], &with].concat()).code(0);
    run(&["info", &format!("{bare}&tls-type=psk")]).code(64).contains(&["tls-psk-file"]);
    run(&["info", &unix("", &socket)]).code(1).contains(&["requires TLS", "nbds+unix://"]);
}

/// A chain on one machine: nbdkit, our driver, our server, nbdfuse, a loop device, ext4.
#[test]
fn a_file_system_at_the_end_of_a_chain() {
    in_own_mounts!();
    let dir = TempDir::new().unwrap();
    let (socket, file) = (dir.path().join("up"), dir.path().join("file"));
    std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let _server = nbdkit(&socket, &["file", file.to_str().unwrap()]);
    let daemon = Daemon::serve(&[format!("{}&name=up", unix("", &socket))]);
    let (unmount_fuse, disk) = common::fuse(&daemon, "up");
    let device = LoopDevice::attach(&[&disk]);
    peer("mkfs.ext4", &["-q", device.path()]);
    let mount = daemon.path("mnt");
    std::fs::create_dir_all(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    let sums = || peer("sh", &["-c", &format!("cd {mount} && sha256sum file*")]);
    peer("mount", &[device.path(), mount]);
    let unmount = Cleanup::with(&["umount", mount]);
    for (index, len) in (0..).zip([0, 1, 4097, 300_000, 5 << 20]) {
        std::fs::write(format!("{mount}/file{index}"), noise(len, index)).unwrap();
    }
    let before = sums();
    unmount.now();
    peer("mount", &[device.path(), mount]);
    let unmount = Cleanup::with(&["umount", mount]);
    assert_eq!(sums(), before);
    unmount.now();
    peer("fsck.ext4", &["-f", "-n", device.path()]);
    drop(device);
    unmount_fuse.now();
    daemon.stop();
    // At the other end of the chain.
    peer("fsck.ext4", &["-f", "-n", file.to_str().unwrap()]);
}

#[test]
fn our_own_server_upstream_and_several_connections() {
    let upstream = Daemon::serve(&["ram:32M", "--threads", "2"]);
    let uri = format!("{}&connections=2&name=down", upstream.uri("ram0"));
    let daemon = Daemon::serve(&[&uri, "--threads", "2"]);
    verified_load(&daemon.uri("down"), "8M");
    assert_eq!(upstream.report()["nbd"]["clients"].as_array().unwrap().len(), 2);
    daemon.stop();
    let mut list = std::process::Command::new(env!("CARGO_BIN_EXE_blockyard"));
    list.args(["list", &upstream.uri("")]);
    assert!(String::from_utf8_lossy(&list.output().unwrap().stdout).contains("32 MiB"));
    upstream.stop();
}

/// A server that answers each BLOCK_STATUS as if it were a READ, and all else.
fn serve_without_a_map(mut stream: UnixStream) -> std::io::Result<()> {
    let style = HeaderStyle::Structured;
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: MIB as u64,
        flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
        block_sizes: None,
    };
    let contexts = vec!["base:allocation".into()];
    let export = Export { id: 0, info, contexts, tls_only: false, block_sizes_required: false };
    let mut shake = Handshake::new(Config { best_style: style, ..Config::default() });
    let (mut input, mut output, mut shaken) = (Vec::new(), Vec::new(), false);
    loop {
        output.clear();
        if shaken {
            while let Some(request) = Request::parse(style, &input).map_err(Error::other)? {
                input.drain(..style.request_len());
                let to = ReplyTo { cookie: request.cookie, offset: request.offset };
                let encoder = ReplyEncoder::new(style);
                let len = match request.command {
                    Command::Read => u32::try_from(request.length).unwrap(),
                    Command::BlockStatus => 512,
                    Command::Disc => return Ok(()),
                    _ => {
                        output.extend_from_slice(&encoder.ok(to));
                        continue;
                    }
                };
                output.extend_from_slice(&encoder.data(to, request.offset, len, true));
                output.resize(output.len() + len as usize, 7);
            }
        } else {
            let taken = shake.receive(&[export.clone()][..], &input).map_err(Error::other)?;
            input.drain(..taken);
            shake.poll_transmit(&mut output);
            shaken = matches!(shake.poll_event(), Some(Event::Done(_)));
        }
        stream.write_all(&output)?;
        if output.is_empty() {
            let mut bytes = [0; 8192];
            match stream.read(&mut bytes)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                len => input.extend_from_slice(&bytes[..len]),
            }
        }
    }
}

#[test]
fn a_server_that_breaks_the_protocol_in_every_map_is_not_asked_for_ever() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    // It ends with the test's process. Who is hung up on has said why.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || drop(serve_without_a_map(stream.unwrap())));
        }
    });
    let uri = format!("{}&connections=1", unix("", &socket));
    let copy = dir.path().join("copy");
    run(&["map", &uri]).code(1).contains(&["block map"]);
    run(&["info", &uri, "--size"]).code(0).contains(&["1048576"]);
    let copied = run(&["copy", &uri, copy.to_str().unwrap()]);
    assert!([0, 1].contains(&copied.code), "{}", copied.err);
}
