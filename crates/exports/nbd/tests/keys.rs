//! Keys and certificates as certtool and openssl make them: which do, which are revoked, and what is said of those that do not.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use blockyard_export_nbd::{TlsFiles, TlsMode};
use common::tls::{client_config, run, tls_client};
use common::{MIB, Yard, ram};

/// RSA of 8192 bits, which takes too long to make.
const RSA_8192: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/rsa8192.pem");

fn certtool(args: &[&str]) {
    run(Command::new("certtool").args(args));
}

/// A certificate by certtool for the key, signed by itself or by the authority of the directory.
fn certificate(dir: &Path, key: &Path, name: &str, template: &str, by: Option<&str>) -> PathBuf {
    let (text, path) = (dir.join(format!("{name}.cfg")), dir.join(format!("{name}.pem")));
    let always = format!("cn = \"{name}\"\ndns_name = \"localhost\"\nexpiration_days = 30\n");
    fs::write(&text, format!("{always}{template}")).unwrap();
    let mut command = Command::new("certtool");
    match by {
        None => command.arg("--generate-self-signed"),
        Some(by) => command
            .arg("--generate-certificate")
            .arg("--load-ca-certificate")
            .arg(dir.join(format!("{by}.pem")))
            .arg("--load-ca-privkey")
            .arg(dir.join(format!("{by}.key"))),
    };
    command.arg("--load-privkey").arg(key).arg("--template").arg(&text).arg("--outfile").arg(&path);
    run(&mut command);
    path
}

fn key(dir: &Path, name: &str, args: &[&str]) -> PathBuf {
    let path = dir.join(format!("{name}.key"));
    let out = path.to_str().unwrap();
    certtool(&[&["--generate-privkey", "--outfile", out], args].concat());
    path
}

/// Half of the keys that certtool makes with a curve have a zero byte in front, which they need not have.
#[test]
fn keys_of_every_kind_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let curve =
        |name: &str, curve: &str| key(dir.path(), name, &["--key-type", "ecdsa", "--curve", curve]);
    let openssl = |name: &str, args: &[&str]| {
        let path = dir.path().join(format!("{name}.key"));
        run(Command::new("openssl")
            .args(args)
            .arg("-out")
            .arg(&path)
            .args(if args[0] == "genrsa" { &["2432"][..] } else { &[] }));
        path
    };
    let mut keys: Vec<(String, PathBuf)> = Vec::new();
    for n in 0..6 {
        for bits in ["256", "384", "521"] {
            let name = format!("p{bits}-{n}");
            keys.push((name.clone(), curve(&name, &format!("secp{bits}r1"))));
        }
    }
    let sec1 = ["ecparam", "-name", "secp521r1", "-genkey", "-noout"];
    keys.push(("sec1".into(), openssl("sec1", &sec1)));
    keys.push(("rsa2432".into(), openssl("rsa2432", &["genrsa"])));
    keys.push((
        "rsa2560".into(),
        key(dir.path(), "rsa2560", &["--key-type", "rsa", "--bits", "2560"]),
    ));
    keys.push(("rsa8192".into(), RSA_8192.into()));
    keys.push(("ed25519".into(), key(dir.path(), "ed25519", &["--key-type", "ed25519"])));
    for (name, key) in keys {
        let certificate =
            certificate(dir.path(), &key, &name, "signing_key\ntls_www_server\n", None);
        fs::copy(&certificate, dir.path().join("ca.pem")).unwrap();
        let files = TlsFiles { certificate, key, client_ca: None };
        let tls = files.load().unwrap_or_else(|err| panic!("{name}: {err:?}"));
        let yard = Yard::with(ram(MIB), |config, _| config.tls = TlsMode::Require(tls));
        let mut client = tls_client(&yard, &client_config(dir.path(), None), "").unwrap();
        client.write(512, &[7; 512]);
        assert_eq!(client.read(512, 512), [7; 512], "{name}");
    }
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let good = key(dir.path(), "good", &["--key-type", "ecdsa"]);
    let other = key(dir.path(), "other", &["--key-type", "ecdsa"]);
    let certificate = certificate(dir.path(), &good, "good", "signing_key\n", None);
    let small = dir.path().join("small.key");
    run(Command::new("openssl").args(["genrsa", "-out"]).arg(&small).arg("1024"));
    let said = |key: &Path| {
        let (certificate, key) = (certificate.clone(), key.to_owned());
        TlsFiles { certificate, key, client_ca: None }.load().unwrap_err().to_string()
    };
    let wrong = said(&other);
    assert!(
        wrong.contains("does not belong to the certificate") && wrong.contains("good.pem"),
        "{wrong}"
    );
    let unsupported = said(&small);
    assert!(
        unsupported.contains("not supported") && unsupported.contains("small.key"),
        "{unsupported}"
    );
}

#[test]
fn who_is_revoked_is_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    let authority = key(dir.path(), "ca", &["--key-type", "ecdsa"]);
    let ca =
        certificate(dir.path(), &authority, "ca", "ca\ncert_signing_key\ncrl_signing_key\n", None);
    for (name, purpose) in [("server", "server"), ("good", "client"), ("bad", "client")] {
        let key = key(dir.path(), name, &["--key-type", "ecdsa"]);
        let template = format!("signing_key\ntls_www_{purpose}\n");
        certificate(dir.path(), &key, name, &template, Some("ca"));
    }
    let files = TlsFiles {
        certificate: dir.path().join("server.pem"),
        key: dir.path().join("server.key"),
        client_ca: Some(ca.clone()),
    };
    let comes_in = |name: &str| {
        let tls = files.load().unwrap();
        let yard = Yard::with(ram(MIB), |config, _| config.tls = TlsMode::Require(tls));
        tls_client(&yard, &client_config(dir.path(), Some(name)), "").is_ok()
    };
    assert!(comes_in("good") && comes_in("bad"), "nobody is revoked");
    let list = dir.path().join("ca-crl.pem");
    let revoke = |until: &str| {
        let template = dir.path().join("crl.cfg");
        fs::write(&template, format!("crl_number = 1\n{until}\n")).unwrap();
        let mut command = Command::new("certtool");
        command.arg("--generate-crl").arg("--load-ca-privkey").arg(&authority);
        command.arg("--load-ca-certificate").arg(&ca).arg("--load-certificate");
        command.arg(dir.path().join("bad.pem")).arg("--template").arg(&template);
        run(command.arg("--outfile").arg(&list));
    };
    revoke("crl_next_update = 30");
    assert!(comes_in("good") && !comes_in("bad"));
    revoke("crl_this_update_date = \"2020-01-01\"\ncrl_next_update_date = \"2020-02-01\"");
    assert!(!comes_in("good"), "a list that is out of date says nothing about anybody");
    fs::write(&list, "").unwrap();
    let error = files.load().unwrap_err().to_string();
    assert!(error.contains("ca-crl.pem"), "{error}");
}
