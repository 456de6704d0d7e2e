//! TLS: off, allowed, required; client certificates.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use blockyard_export_nbd::{Error, Export, HeaderStyle, TlsFiles, TlsMode};
use blockyard_nbd::client::{Config, Event, Handshake, TlsMode as Wanted};
use blockyard_nbd::wire::{Command, CommandFlags};
use common::tls::tls_client;
use common::{Client, MIB, Yard, negotiate, pattern, ram, request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ClientConfig;

/// An authority, and a certificate of it for the server and for a client: `ca.pem`, `server.pem`, `server.key`,
/// `client.pem`, `client.key`.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for (file, name) in [("server", "localhost"), ("client", "client")] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        fs::write(dir.join(format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

fn files(dir: &Path, client_ca: bool) -> TlsFiles {
    TlsFiles {
        certificate: dir.join("server.pem"),
        key: dir.join("server.key"),
        client_ca: client_ca.then(|| dir.join("ca.pem")),
    }
}

fn client_config(dir: &Path, certificate: bool) -> Arc<ClientConfig> {
    common::tls::client_config(dir, certificate.then_some("client"))
}

fn works(client: &mut Client) {
    for len in [512, 4096, 100_000 / 512 * 512, 4 << 20] {
        let data = pattern(len as u64, len);
        client.write(512, &data);
        assert!(client.read(512, len as u64) == data);
    }
    client.command(Command::Flush, 0, 0).ok();
}

#[test]
fn off_refuses_tls_and_serves_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::new(16 * MIB);
    assert!(tls_client(&yard, &client_config(dir.path(), false), "").is_err());
    works(&mut yard.client());
}

#[test]
fn allow_serves_both_and_shows_secrets_under_tls_only() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(16 * MIB), |config, bdev| {
        config.tls = TlsMode::Allow(files(dir.path(), false).load().unwrap());
        config.exports.push(Export { tls_only: true, ..Export::new("secret", bdev.clone()) });
        config.default_export = Some("disk".into());
    });
    works(&mut yard.client());
    let open = |name| Client::open(Box::new(yard.connect()), name, HeaderStyle::Extended);
    assert!(open("secret").is_err());
    let config = client_config(dir.path(), false);
    for export in ["", "secret"] {
        let mut client = tls_client(&yard, &config, export).unwrap();
        assert!(client.negotiated.tls);
        works(&mut client);
        client.disconnect();
    }
}

#[test]
fn require_serves_nothing_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(16 * MIB), |config, _| {
        config.tls = TlsMode::Require(files(dir.path(), false).load().unwrap());
    });
    for style in common::STYLES {
        assert!(Client::open(Box::new(yard.connect()), "", style).is_err());
    }
    let mut client = tls_client(&yard, &client_config(dir.path(), false), "").unwrap();
    works(&mut client);
    let session = yard.server.clients().pop().unwrap().session.unwrap();
    assert!(session.tls);
}

#[test]
fn many_requests_at_a_time_under_tls() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(64 * MIB), |config, _| {
        config.tls = TlsMode::Require(files(dir.path(), false).load().unwrap());
    });
    let mut client = tls_client(&yard, &client_config(dir.path(), false), "").unwrap();
    client.write(0, &pattern(1, 4 << 20));
    let expected = pattern(1, 4 << 20);
    for round in 0..8 {
        let cookies: Vec<_> = (0..32_u64)
            .map(|n| {
                client.send(request(Command::Read, CommandFlags::empty(), n * 512, 65_536), &[])
            })
            .collect();
        for _ in &cookies {
            let (cookie, outcome) = client.next_reply().unwrap();
            let n = cookies.iter().position(|&other| other == cookie).unwrap();
            assert!(outcome.ok().data == expected[n * 512..n * 512 + 65_536], "{round} {n}");
        }
    }
}

#[test]
fn a_client_without_a_certificate_is_turned_away_where_one_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(16 * MIB), |config, _| {
        config.tls = TlsMode::Require(files(dir.path(), true).load().unwrap());
    });
    assert!(tls_client(&yard, &client_config(dir.path(), false), "").is_err());
    works(&mut tls_client(&yard, &client_config(dir.path(), true), "").unwrap());
    // A stranger's certificate is as good as none.
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    fs::copy(dir.path().join("ca.pem"), other.path().join("ca.pem")).unwrap();
    assert!(tls_client(&yard, &client_config(other.path(), true), "").is_err());
}

#[test]
fn garbage_where_tls_should_begin_is_hung_up_on() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(16 * MIB), |config, _| {
        config.tls = TlsMode::Allow(files(dir.path(), false).load().unwrap());
    });
    for behind in [false, true] {
        let mut plain = yard.connect();
        let mut handshake =
            Handshake::new(Config { tls: Wanted::Require, best_style: HeaderStyle::Simple });
        if behind {
            // Bytes that somebody put behind the request for TLS, in one piece with it.
            plain.write_all(&[0, 0, 0, 3]).unwrap();
            let starttls = [&b"IHAVEOPT"[..], &5_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
            let list = [&b"IHAVEOPT"[..], &3_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
            plain.write_all(&[starttls, list].concat()).unwrap();
        } else {
            let event = negotiate(&mut plain, &mut handshake, &mut Vec::new()).unwrap();
            assert_eq!(event, Event::StartTls);
            plain.write_all(&[0x5a; 4096]).unwrap();
        }
        let mut rest = Vec::new();
        let _ = io::Read::read_to_end(&mut plain, &mut rest);
        common::eventually("hanging up", || yard.server.clients().is_empty());
    }
    works(&mut yard.client());
}

#[test]
fn files_that_will_not_do_are_named() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let message = |change: &dyn Fn(&mut TlsFiles)| -> String {
        let mut files = files(dir.path(), true);
        change(&mut files);
        let error: Error = files.load().unwrap_err();
        error.to_string()
    };
    let missing = dir.path().join("missing.pem");
    assert!(message(&|files| files.certificate = missing.clone()).contains("missing.pem"));
    assert!(message(&|files| files.key = missing.clone()).contains("missing.pem"));
    assert!(message(&|files| files.client_ca = Some(missing.clone())).contains("missing.pem"));
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    assert!(
        message(&|files| files.certificate = empty.clone()).contains("cannot read a certificate")
    );
    let other = dir.path().join("client.key");
    assert!(message(&|files| files.key = other.clone()).contains("does not belong"));
}

/// Certificates are renewed every few weeks, and a server runs for years.
#[test]
fn files_that_are_renewed_are_used_for_the_next_client() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let yard = Yard::with(ram(16 * MIB), |config, _| {
        config.tls = TlsMode::Require(files(dir.path(), true).load().unwrap());
    });
    let before = client_config(dir.path(), true);
    let mut old = tls_client(&yard, &before, "").unwrap();
    works(&mut old);
    // Half of it.
    let own =
        ["server.pem", "server.key"].map(|name| (name, fs::read(dir.path().join(name)).unwrap()));
    certificates(dir.path());
    fs::rename(dir.path().join("server.key"), dir.path().join("new.key")).unwrap();
    works(&mut tls_client(&yard, &before, "").unwrap());
    fs::write(dir.path().join("server.key"), &own[1].1).unwrap();
    works(&mut tls_client(&yard, &before, "").unwrap());
    // All.
    fs::rename(dir.path().join("new.key"), dir.path().join("server.key")).unwrap();
    let after = client_config(dir.path(), true);
    works(&mut tls_client(&yard, &after, "").unwrap());
    assert!(tls_client(&yard, &before, "").is_err(), "both trust others now");
    works(&mut old);
    fs::remove_dir_all(dir.path()).unwrap();
    works(&mut tls_client(&yard, &after, "").unwrap());
    fs::create_dir(dir.path()).unwrap();
}
