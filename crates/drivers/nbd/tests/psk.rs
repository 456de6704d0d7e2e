//! TLS with pre-shared keys, with real servers: nbdkit and qemu-nbd, which have it from GnuTLS.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use blockyard_blkmq::Status;
use blockyard_driver_nbd::{ErrorKind, NbdConfig};
use common::{Place, Server, attach, nbdkit, pattern, try_attach, until_it_answers};

const MIB: u64 = 1 << 20;
const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn config(socket: &Path, user: &str, keys: &Path) -> NbdConfig {
    let (socket, keys) = (socket.display(), keys.display());
    let uri = format!("nbds+unix://{user}@/?socket={socket}&tls-psk-file={keys}");
    NbdConfig { connections: Some(2), ..NbdConfig::new(uri.parse().unwrap()) }
}

/// Long and short requests on two connections arrive whole.
fn reads_back_what_was_written(config: NbdConfig) {
    let disk = attach(config, 2);
    assert!(disk.export.tls);
    for (offset, len) in [(0, 512), (4096, 65536), (2 * MIB, 3 << 20)] {
        let data = pattern(offset, 1, len);
        assert_eq!(disk.write(offset, &data), Status::Ok);
        assert_eq!(disk.read(offset, len as u64).unwrap(), data, "{len} bytes at {offset}");
    }
    let ends: Vec<_> = (0..64_u64)
        .map(|i| {
            let data = pattern(i * 65536, 2, 65536);
            disk.submit(usize::from(i % 2 == 1), common::write(i * 65536, &data))
        })
        .collect();
    for end in ends {
        assert_eq!(end.recv_timeout(common::PATIENCE).unwrap().status(), Status::Ok);
    }
    assert_eq!(
        disk.read(0, 64 * 65536).unwrap(),
        (0..64).flat_map(|i| pattern(i * 65536, 2, 65536)).collect::<Vec<_>>()
    );
}

fn refused(config: NbdConfig) -> String {
    let err = try_attach(config, 1).err().unwrap();
    assert_eq!(err.kind(), ErrorKind::Tls, "{}", err.chain());
    err.chain()
}

#[test]
fn nbdkit_lets_in_who_has_the_key() {
    let place = Place::new();
    let (socket, keys, others) =
        (place.path("s"), place.path("keys.psk"), place.path("others.psk"));
    fs::write(&keys, format!("alice:{KEY}\nbob:{}\n", KEY.replace('0', "2"))).unwrap();
    fs::write(&others, format!("alice:{}\nmallory:{KEY}\n", KEY.replace('0', "1"))).unwrap();
    let with_keys = format!("--tls-psk={}", keys.display());
    let _server = nbdkit(&socket, &["--tls=require", &with_keys, "memory", "16M"]);
    for user in ["alice", "bob"] {
        reads_back_what_was_written(config(&socket, user, &keys));
    }
    refused(config(&socket, "alice", &others));
    refused(config(&socket, "mallory", &others));
    let stranger = refused(config(&socket, "carol", &keys));
    assert!(stranger.contains("no user \"carol\""), "{stranger}");
    let nowhere = refused(config(&socket, "alice", Path::new("/nowhere/keys.psk")));
    assert!(nowhere.contains("/nowhere/keys.psk: cannot read the file"), "{nowhere}");
    fs::write(&others, "alice:00\nbob 00\n").unwrap();
    let malformed = refused(config(&socket, "alice", &others));
    assert!(malformed.contains("line 2: no colon"), "{malformed}");
}

#[test]
fn a_server_without_tls_1_3_lets_in_who_has_the_key() {
    let place = Place::new();
    let (socket, keys, priorities) =
        (place.path("s"), place.path("keys.psk"), place.path("priorities"));
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    // GnuTLS' manual, "System-wide configuration of the library".
    fs::write(&priorities, "[overrides]\ndisabled-version = tls1.3\n").unwrap();
    let mut command = Command::new("nbdkit");
    command.env("GNUTLS_SYSTEM_PRIORITY_FILE", &priorities);
    command.args(["--foreground", "--exit-with-parent", "--tls=require", "--unix"]).arg(&socket);
    command.arg(format!("--tls-psk={}", keys.display())).args(["memory", "16M"]);
    let _server = until_it_answers(Server::start("nbdkit", &mut command), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    reads_back_what_was_written(config(&socket, "alice", &keys));
}

#[test]
fn qemu_nbd_lets_in_who_has_the_key() {
    let place = Place::new();
    let (socket, keys, file) =
        (place.path("s"), place.path("keys.psk"), place.file("disk", 16 * MIB));
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    let credentials =
        format!("tls-creds-psk,id=keys,endpoint=server,dir={}", place.path("").display());
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=4", "--format=raw", "--object", &credentials]);
    command.args(["--tls-creds=keys", "--socket"]).arg(&socket).arg(&file);
    let _server = until_it_answers(Server::start("qemu-utils", &mut command), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    reads_back_what_was_written(config(&socket, "alice", &keys));
}

/// Whoever answers must show that it has the key: a certificate, of whomever, is not enough.
#[test]
fn a_server_with_a_certificate_is_not_believed() {
    let place = Place::new();
    let (socket, keys) = (place.path("s"), place.path("keys.psk"));
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for (name, text) in [
        ("ca-cert.pem", &certificate),
        ("server-cert.pem", &certificate),
        ("server-key.pem", &key.serialize_pem()),
    ] {
        fs::write(place.path(name), text).unwrap();
    }
    let files = format!("--tls-certificates={}", place.path("").display());
    let _server = nbdkit(&socket, &["--tls=require", &files, "memory", "16M"]);
    refused(config(&socket, "alice", &keys));
}

#[test]
fn a_connection_that_is_made_again_knows_the_key_as_it_is_then() {
    let place = Place::new();
    let (socket, keys) = (place.path("s"), place.path("keys.psk"));
    let with_keys = format!("--tls-psk={}", keys.display());
    let serve = |key: &str| {
        fs::write(&keys, format!("alice:{key}\n")).unwrap();
        nbdkit(&socket, &["--tls=require", &with_keys, "memory", "1M"])
    };
    let mut server = serve(KEY);
    let disk = attach(config(&socket, "alice", &keys), 1);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    server.kill();
    let _server = serve(&KEY.replace('0', "3"));
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}
