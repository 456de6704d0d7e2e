//! Real servers: what is written is read back, and every operation does on the server what it says.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::process::Command;

use blockyard_blkmq::{Bio, Extent, Features, Flags, Op, Sector, Status};
use blockyard_buf::{Segment, Segments};
use blockyard_driver_nbd::NbdConfig;
use blockyard_nbd::wire::HeaderStyle;
use common::{Attached, Place, Server, attach, nbdkit, pattern, unix, until_it_answers, write};

const MIB: u64 = 1 << 20;

/// What every writable export must do.
fn reads_back_what_was_written(disk: &Attached) {
    assert_eq!(disk.read(0, 4096).unwrap(), vec![0; 4096], "a new disk");
    for (offset, len) in [(0, 512), (512, 4096), (8192, 16384), (MIB, 1 << 20), (3 * MIB, 3 << 20)]
    {
        let data = pattern(offset, 1, len);
        assert_eq!(disk.write(offset, &data), Status::Ok);
        assert_eq!(disk.read(offset, len as u64).unwrap(), data, "{len} bytes at {offset}");
        // Into memory of the reader's own, in odd pieces.
        let pieces: Segments = [len / 4, len / 2, len / 4]
            .map(|len| Segment::from_vec(vec![1; len]))
            .into_iter()
            .collect();
        let bio = disk.run(Bio::with_data(Op::Read, Sector(offset / 512), pieces));
        assert_eq!(bio.status(), Status::Ok);
        let got: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
        assert_eq!(got, data);
    }
    if disk.export.limits.features.contains(Features::WRITE_CACHE) {
        assert_eq!(disk.run(Bio::flush()).status(), Status::Ok);
    }
    let data = pattern(7 * MIB, 2, 4096);
    let features = disk.export.limits.features;
    let durable = !features.contains(Features::NO_FLUSH) || features.contains(Features::FUA);
    let flags = if durable { Flags::FUA } else { Flags::empty() };
    assert_eq!(disk.run(write(7 * MIB, &data).with_flags(flags)).status(), Status::Ok);
    assert_eq!(disk.read(7 * MIB, 4096).unwrap(), data);
    let zeroes = Bio::new(Op::WriteZeroes, Sector(7 * MIB / 512), 4096);
    assert_eq!(disk.run(zeroes).status(), Status::Ok);
    assert_eq!(disk.read(7 * MIB, 4096).unwrap(), vec![0; 4096]);
    many_at_once(disk);
}

/// Replies come in any order, each to its request.
fn many_at_once(disk: &Attached) {
    let cpus = disk.disk.cpus();
    let offsets: Vec<u64> = (0..256).map(|i| i * 16384).collect();
    let ends: Vec<_> = (0..)
        .zip(&offsets)
        .map(|(cpu, &offset)| disk.submit(cpu % cpus, write(offset, &pattern(offset, 3, 8192))))
        .collect();
    for end in ends {
        assert_eq!(end.recv_timeout(common::PATIENCE).unwrap().status(), Status::Ok);
    }
    let ends: Vec<_> = (0..)
        .zip(&offsets)
        .map(|(cpu, &offset)| {
            (offset, disk.submit(cpu % cpus, Bio::new(Op::Read, Sector(offset / 512), 16384)))
        })
        .collect();
    for (offset, end) in ends {
        let bio = end.recv_timeout(common::PATIENCE).unwrap();
        assert_eq!(bio.status(), Status::Ok);
        let got: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
        assert!(got[..8192] == pattern(offset, 3, 8192), "at {offset}");
    }
}

fn extents(disk: &Attached, offset: u64, len: u64) -> Vec<Extent> {
    let bio = disk.run(Bio::new(Op::BlockStatus, Sector(offset / 512), len));
    assert_eq!(bio.status(), Status::Ok);
    bio.extents.clone()
}

#[test]
fn nbdkit_over_unix_sockets() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "16M"]);
    let disk = attach(unix(&socket), 1);
    assert_eq!(disk.export.style, HeaderStyle::Structured);
    assert_eq!(disk.export.capacity, Sector(16 * MIB / 512));
    reads_back_what_was_written(&disk);
    // The memory plugin allocates pages of 32 KiB.
    let discard = Bio::new(Op::Discard, Sector(0), 16 * MIB);
    assert_eq!(disk.run(discard).status(), Status::Ok);
    assert_eq!(extents(&disk, 0, 16 * MIB), [Extent::hole(16 * MIB)]);
    assert_eq!(disk.write(MIB, &pattern(MIB, 1, 32768)), Status::Ok);
    assert_eq!(
        extents(&disk, 0, 2 * MIB),
        [Extent::hole(MIB), Extent::data(32768), Extent::hole(MIB - 32768)]
    );
}

#[test]
fn nbdkit_with_simple_replies_only() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["--no-sr", "memory", "16M"]);
    let disk = attach(unix(&socket), 1);
    assert_eq!(disk.export.style, HeaderStyle::Simple);
    reads_back_what_was_written(&disk);
    assert_eq!(extents(&disk, 0, MIB), [Extent::data(MIB)], "nobody knows");
}

#[test]
fn a_server_without_any_handshake_flags() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["--mask-handshake=0", "memory", "16M"]);
    let disk = attach(unix(&socket), 1);
    assert_eq!(disk.export.style, HeaderStyle::Simple);
    reads_back_what_was_written(&disk);
}

#[test]
fn several_connections_see_one_disk() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["memory", "16M"]);
    let disk = attach(NbdConfig { connections: Some(4), ..unix(&socket) }, 4);
    assert_eq!(disk.nbd.connections(), 4);
    reads_back_what_was_written(&disk);
}

#[test]
fn one_connection_where_the_server_does_not_promise_that_more_work() {
    let place = Place::new();
    let socket = place.path("s");
    let _server =
        nbdkit(&socket, &["--filter=multi-conn", "memory", "16M", "multi-conn-mode=disable"]);
    let disk = attach(NbdConfig { connections: Some(4), ..unix(&socket) }, 4);
    assert_eq!(disk.nbd.connections(), 1);
    many_at_once(&disk);
}

#[test]
fn replies_that_come_late_and_out_of_order() {
    let place = Place::new();
    let socket = place.path("s");
    let arguments =
        ["--threads=16", "--filter=delay", "memory", "16M", "delay-read=5ms", "delay-write=3ms"];
    let _server = nbdkit(&socket, &arguments);
    let disk = attach(unix(&socket), 1);
    many_at_once(&disk);
}

#[test]
fn a_server_without_flush_is_not_believed_to_have_no_cache() {
    let place = Place::new();
    let data = pattern(0, 1, 4096);
    let fua = || write(0, &data).with_flags(Flags::FUA);
    for (fua_mode, expected) in [("none", Status::NotSupported), ("native", Status::Ok)] {
        let socket = place.path(fua_mode);
        let mode = format!("can_fua=echo {fua_mode}");
        let _server = nbdkit(
            &socket,
            &[
                "eval",
                "get_size=echo 1048576",
                "pread=head -c $3 /dev/zero",
                "pwrite=cat >/dev/null",
                "can_write=exit 0",
                "can_flush=exit 3",
                &mode,
            ],
        );
        let disk = attach(unix(&socket), 1);
        assert_eq!(disk.write(0, &data), Status::Ok);
        assert_eq!(disk.run(Bio::flush()).status(), Status::NotSupported, "{fua_mode}");
        assert_eq!(disk.run(fua()).status(), expected, "{fua_mode}");
    }
}

#[test]
fn errors_of_the_server_are_those_of_the_request_and_of_no_other() {
    let place = Place::new();
    let socket = place.path("s");
    let flag = place.path("fail");
    let file = format!("error-file={}", flag.display());
    let arguments = ["--filter=error", "memory", "16M", "error=ENOSPC", "error-rate=100%", &file];
    let _server = nbdkit(&socket, &arguments);
    let disk = attach(unix(&socket), 1);
    many_at_once(&disk);
    std::fs::write(&flag, "").unwrap();
    assert_eq!(disk.read(0, 4096).unwrap_err(), Status::NoSpace);
    assert_eq!(disk.write(0, &[1; 512]), Status::NoSpace);
    std::fs::remove_file(&flag).unwrap();
    many_at_once(&disk);
}

#[test]
fn a_read_only_export_is_a_read_only_disk() {
    let place = Place::new();
    let socket = place.path("s");
    let _server = nbdkit(&socket, &["--readonly", "memory", "16M"]);
    let disk = attach(unix(&socket), 1);
    assert!(disk.export.read_only && disk.disk.is_read_only());
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    assert_eq!(disk.write(0, &[1; 512]), Status::NotPermitted);
}

#[test]
fn a_name_that_the_server_does_not_have_is_refused_with_its_words() {
    let place = Place::new();
    let socket = place.path("s");
    let arguments =
        ["--filter=exportname", "memory", "16M", "exportname=a", "exportname-strict=true"];
    let _server = nbdkit(&socket, &arguments);
    let uri = format!("nbd+unix:///b?socket={}", socket.display());
    let err = common::try_attach(NbdConfig::new(uri.parse().unwrap()), 1).err().unwrap();
    assert_eq!(err.kind(), blockyard_driver_nbd::ErrorKind::Refused, "{}", err.chain());
    assert!(err.chain().contains("cannot open nbd+unix:///b"), "{}", err.chain());
    let uri = format!("nbd+unix:///a?socket={}", socket.display());
    many_at_once(&attach(NbdConfig::new(uri.parse().unwrap()), 1));
}

/// A port that the kernel gave out, and nobody has now.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn tcp(port: u16) -> NbdConfig {
    NbdConfig::new(format!("nbd://127.0.0.1:{port}").parse().unwrap())
}

fn on_port(package: &str, command: &mut Command, port: u16) -> Server {
    until_it_answers(Server::start(package, command), || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    })
}

#[test]
fn nbdkit_over_tcp() {
    let port = free_port();
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1"]);
    command.arg(format!("--port={port}")).args(["memory", "16M"]);
    let _server = on_port("nbdkit", &mut command, port);
    reads_back_what_was_written(&attach(NbdConfig { connections: Some(2), ..tcp(port) }, 2));
}

#[test]
fn qemu_nbd_with_extended_headers() {
    let place = Place::new();
    let (socket, file) = (place.path("s"), place.file("disk", 16 * MIB));
    // Debian 12's own is older than extended headers.
    let modern = std::env::var_os("BLOCKYARD_QEMU_MODERN").map(std::path::PathBuf::from);
    let mut command = Command::new(modern.unwrap_or_default().join("qemu-nbd"));
    command.args(["--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--socket"]);
    command.arg(&socket).arg(&file);
    let server = Server::start("qemu-utils (8.2 or newer, from bookworm-backports)", &mut command);
    let _server =
        until_it_answers(server, || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let disk = attach(NbdConfig { connections: Some(2), ..unix(&socket) }, 2);
    assert_eq!(disk.export.style, HeaderStyle::Extended, "qemu-nbd of 8.2 or newer is needed");
    reads_back_what_was_written(&disk);
    let bio = disk.run(Bio::new(Op::WriteZeroes, Sector(0), 16 * MIB));
    assert_eq!(bio.status(), Status::Ok);
    assert_eq!(disk.read(7 * MIB, 4096).unwrap(), [0; 4096]);
    assert_eq!(disk.run(Bio::new(Op::Discard, Sector(0), 16 * MIB)).status(), Status::Ok);
    assert_eq!(disk.write(MIB, &pattern(MIB, 1, 65536)), Status::Ok);
    let map = extents(&disk, 0, 2 * MIB);
    assert_eq!(map, [Extent::hole(MIB), Extent::data(65536), Extent::hole(MIB - 65536)]);
    let first =
        disk.run(Bio::new(Op::BlockStatus, Sector(0), 2 * MIB).with_flags(Flags::FIRST_EXTENT));
    assert_eq!(first.extents, [Extent::hole(MIB)]);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 16 * MIB);
}

#[test]
fn nbd_server_of_the_reference_implementation() {
    let place = Place::new();
    let (port, file) = (free_port(), place.file("disk", 16 * MIB));
    let configuration = place.path("config");
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n[disk]\nexportname = {}\nflush = true\nfua = true\ntrim = true\n",
        file.display()
    );
    std::fs::write(&configuration, text).unwrap();
    let mut command = Command::new("nbd-server");
    command.arg("-d").arg("-C").arg(&configuration).arg("-p").arg(place.path("pid"));
    // Without forking, it serves one connection: there is none to spare for looking whether it is up.
    let _server = Server::start("nbd-server", &mut command);
    let uri = format!("nbd://127.0.0.1:{port}/disk");
    let start = std::time::Instant::now();
    let disk = loop {
        match common::try_attach(NbdConfig::new(uri.parse().unwrap()), 1) {
            Ok(disk) => break disk,
            Err(err) => assert!(start.elapsed() < common::PATIENCE, "{}", err.chain()),
        }
    };
    reads_back_what_was_written(&disk);
}

/// Certificates of an authority of the test's own, where `tls-certificates` looks for them.
fn certificates(place: &Place) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let write = |name: &str, text: &str| std::fs::write(place.path(name), text).unwrap();
    write("ca-cert.pem", &ca_pem);
    for role in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        write(&format!("{role}-cert.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{role}-key.pem"), &key.serialize_pem());
    }
}

#[test]
fn tls_with_certificates_both_ways() {
    let place = Place::new();
    certificates(&place);
    let socket = place.path("s");
    let folder = place.path("");
    let files = format!("--tls-certificates={}", folder.display());
    let _server = nbdkit(&socket, &["--tls=require", &files, "--tls-verify-peer", "memory", "16M"]);
    let uri = |more: &str| -> NbdConfig {
        let folder = folder.display();
        let text =
            format!("nbds+unix:///?socket={}&tls-certificates={folder}{more}", socket.display());
        NbdConfig::new(text.parse().unwrap())
    };
    let disk = attach(uri(""), 2);
    assert!(disk.export.tls);
    reads_back_what_was_written(&disk);
    let refused = |config| common::try_attach(config, 1).err().unwrap();
    let other = refused(uri("&tls-hostname=example.com"));
    assert_eq!(other.kind(), blockyard_driver_nbd::ErrorKind::Tls, "{}", other.chain());
    many_at_once(&attach(uri("&tls-hostname=example.com&tls-verify-peer=0"), 1));
    let plain = refused(unix(&socket));
    assert_eq!(plain.kind(), blockyard_driver_nbd::ErrorKind::Refused, "{}", plain.chain());
    let nowhere = refused(NbdConfig::new(
        format!("nbds+unix:///?socket={}&tls-certificates=/nowhere", socket.display())
            .parse()
            .unwrap(),
    ));
    assert!(nowhere.chain().contains("/nowhere/ca-cert.pem"), "{}", nowhere.chain());
}
