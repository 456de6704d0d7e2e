//! Certificates as certtool and openssl make them, at a server of GnuTLS.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use blockyard_blkmq::Status;
use blockyard_driver_nbd::{Backoff, ErrorKind, NbdConfig};
use common::{Place, Server, attach, nbdkit};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A directory of certificates.
struct Folder(PathBuf);

impl Folder {
    fn new(place: &Place, name: &str) -> Self {
        let path = place.path(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn copy(&self, from: &Path, name: &str) {
        std::fs::copy(from, self.path(name)).unwrap();
    }

    /// A key `NAME-key.pem`.
    fn key(&self, name: &str, args: &[&str]) -> PathBuf {
        let path = self.path(&format!("{name}-key.pem"));
        run(Command::new("certtool")
            .arg("--generate-privkey")
            .args(args)
            .arg("--outfile")
            .arg(&path));
        path
    }

    /// A certificate `NAME-cert.pem` for its key, signed by itself or by `ca`.
    fn certificate(&self, name: &str, template: &str, signed: bool) -> PathBuf {
        let (text, path) = (self.path("template"), self.path(&format!("{name}-cert.pem")));
        let always = format!("cn = \"{name}\"\ndns_name = \"localhost\"\nexpiration_days = 30\n");
        std::fs::write(&text, format!("{always}{template}\n")).unwrap();
        let mut command = Command::new("certtool");
        command.arg("--load-privkey").arg(self.path(&format!("{name}-key.pem")));
        if signed {
            command.arg("--generate-certificate");
            command.arg("--load-ca-certificate").arg(self.path("ca-cert.pem"));
            command.arg("--load-ca-privkey").arg(self.path("ca-key.pem"));
        } else {
            command.arg("--generate-self-signed");
        }
        run(command.arg("--template").arg(&text).arg("--outfile").arg(&path));
        path
    }
}

/// What the authority of a folder has revoked is one certificate, as others of `ours` know.
fn revoke(folder: &Folder, certificate: &Path, ours: &Folder) {
    std::fs::write(folder.path("template"), "crl_number = 1\ncrl_next_update = 30\n").unwrap();
    let mut command = Command::new("certtool");
    command.arg("--generate-crl").arg("--load-ca-certificate").arg(folder.path("ca-cert.pem"));
    command.arg("--load-ca-privkey").arg(folder.path("ca-key.pem"));
    command.arg("--load-certificate").arg(certificate);
    command.arg("--template").arg(folder.path("template"));
    run(command.arg("--outfile").arg(ours.path("ca-crl.pem")));
}

fn serve(place: &Place, folder: &Folder, more: &[&str]) -> (Server, PathBuf) {
    let socket = place.path("s");
    let files = format!("--tls-certificates={}", folder.0.display());
    let args = [&["--tls=require", files.as_str()], more, &["memory", "1M"]].concat();
    (nbdkit(&socket, &args), socket)
}

fn config(socket: &Path, folder: &Folder, more: &str) -> NbdConfig {
    let (socket, folder) = (socket.display(), folder.0.display());
    let text = format!("nbds+unix:///?socket={socket}&tls-certificates={folder}{more}");
    NbdConfig::new(text.parse().unwrap())
}

fn works(config: NbdConfig) {
    let disk = attach(config, 1);
    assert_eq!(disk.write(0, &[7; 512]), Status::Ok);
    assert_eq!(disk.read(0, 512).unwrap(), [7; 512]);
}

fn is_refused(config: NbdConfig) -> String {
    let error = common::try_attach(config, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls, "{}", error.chain());
    error.chain()
}

/// What `openssl req -x509` makes is an authority's certificate, and people give it to their one server.
#[test]
fn a_server_may_use_the_certificate_that_is_trusted() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    let make = |folder: &Folder, days: &str| {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-nodes", "-subj", "/CN=localhost", "-days", days]);
        command.args(["-addext", "subjectAltName=DNS:localhost"]);
        command.arg("-keyout").arg(folder.path("server-key.pem"));
        run(command.arg("-out").arg(folder.path("server-cert.pem")));
        folder.copy(&folder.path("server-cert.pem"), "ca-cert.pem");
    };
    make(&folder, "30");
    let (_server, socket) = serve(&place, &folder, &[]);
    works(config(&socket, &folder, ""));
    let other = is_refused(config(&socket, &folder, "&tls-hostname=example.com"));
    assert!(other.contains("example.com"), "{other}");
    // One that is as good, but not this one.
    let strange = Folder::new(&place, "strange");
    make(&strange, "30");
    is_refused(config(&socket, &strange, ""));
}

#[test]
fn client_keys_of_every_kind_are_taken() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    folder.key("ca", &["--key-type", "ecdsa"]);
    folder.certificate("ca", "ca\ncert_signing_key", false);
    folder.key("server", &["--key-type", "ecdsa"]);
    folder.certificate("server", "signing_key\ntls_www_server", true);
    let (_server, socket) = serve(&place, &folder, &["--tls-verify-peer"]);
    let curve = |curve| ["--key-type", "ecdsa", "--curve", curve];
    let rsa = ["--key-type", "rsa", "--bits", "2432"];
    let eight = std::iter::repeat_n(curve("secp256r1"), 8);
    for args in eight.chain([curve("secp384r1"), curve("secp521r1"), rsa]) {
        folder.key("client", &args);
        folder.certificate("client", "signing_key\ntls_www_client", true);
        works(config(&socket, &folder, ""));
    }
    folder.copy(&folder.path("server-key.pem"), "client-key.pem");
    let wrong = is_refused(config(&socket, &folder, ""));
    assert!(wrong.contains("does not belong"), "{wrong}");
}

#[test]
fn a_server_that_is_revoked_is_not_believed() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    folder.key("ca", &["--key-type", "ecdsa"]);
    let ca = folder.certificate("ca", "ca\ncert_signing_key\ncrl_signing_key", false);
    folder.key("other", &["--key-type", "ecdsa"]);
    folder.certificate("other", "signing_key\ntls_www_server", true);
    folder.key("server", &["--key-type", "ecdsa"]);
    folder.certificate("server", "signing_key\ntls_www_server", true);
    let (_server, socket) = serve(&place, &folder, &[]);
    let ours = Folder::new(&place, "ours");
    ours.copy(&ca, "ca-cert.pem");
    let revoke = |name: &str| revoke(&folder, &folder.path(&format!("{name}-cert.pem")), &ours);
    works(config(&socket, &ours, ""));
    revoke("other");
    works(config(&socket, &ours, ""));
    revoke("server");
    is_refused(config(&socket, &ours, ""));
    works(config(&socket, &ours, "&tls-verify-peer=0"));
    std::fs::write(ours.path("ca-crl.pem"), "nothing").unwrap();
    let damaged = is_refused(config(&socket, &ours, ""));
    assert!(damaged.contains("ca-crl.pem"), "{damaged}");
}

/// Certificates are renewed every few weeks, and a disk is attached for years.
#[test]
fn a_connection_that_is_made_again_knows_the_files_as_they_are_then() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    let renew = || {
        for name in ["ca", "server", "client"] {
            folder.key(name, &["--key-type", "ecdsa"]);
        }
        folder.certificate("ca", "ca\ncert_signing_key", false);
        folder.certificate("server", "signing_key\ntls_www_server", true);
        folder.certificate("client", "signing_key\ntls_www_client", true);
    };
    renew();
    let (mut server, socket) = serve(&place, &folder, &["--tls-verify-peer"]);
    let disk = attach(config(&socket, &folder, ""), 1);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    server.kill();
    // Neither knows what was signed by the other authority.
    renew();
    let (_server, _) = serve(&place, &folder, &["--tls-verify-peer"]);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

/// A disk whose server wants certificates, which are in the folder.
fn attached(place: &Place) -> (Folder, Server, common::Attached) {
    let folder = Folder::new(place, "pki");
    folder.key("ca", &["--key-type", "ecdsa"]);
    folder.certificate("ca", "ca\ncert_signing_key", false);
    for (name, template) in [("server", "tls_www_server"), ("client", "tls_www_client")] {
        folder.key(name, &["--key-type", "ecdsa"]);
        folder.certificate(name, &format!("signing_key\n{template}"), true);
    }
    let theirs = Folder::new(place, "theirs");
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        theirs.copy(&folder.path(name), name);
    }
    let (server, socket) = serve(place, &theirs, &["--tls-verify-peer"]);
    // A part of it is waited for the files.
    let timeout = Duration::from_secs(8);
    let disk = attach(NbdConfig { timeout, ..config(&socket, &folder, "") }, 1);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    (folder, server, disk)
}

/// A server that is started anew, with what it had.
fn again(place: &Place, mut server: Server) -> Server {
    server.kill();
    serve(place, &Folder(place.path("theirs")), &["--tls-verify-peer"]).0
}

/// They may be on the disk itself.
#[test]
fn a_connection_is_made_again_though_the_files_are_gone() {
    let place = Place::new();
    let (folder, server, disk) = attached(&place);
    std::fs::remove_dir_all(&folder.0).unwrap();
    let _server = again(&place, server);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn a_connection_is_made_again_though_the_files_are_half_renewed() {
    let place = Place::new();
    let (folder, server, disk) = attached(&place);
    folder.key("client", &["--key-type", "ecdsa"]);
    let _server = again(&place, server);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn a_connection_is_made_again_though_a_file_is_never_read_to_its_end() {
    let place = Place::new();
    let (folder, server, disk) = attached(&place);
    let fifo = folder.path("client-cert.pem");
    std::fs::remove_file(&fifo).unwrap();
    run(Command::new("mkfifo").arg(&fifo));
    let _server = again(&place, server);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

/// What is trusted, who we are, and who was revoked is not another matter because a file is gone.
#[test]
fn a_connection_is_made_again_though_our_certificate_is_gone() {
    let place = Place::new();
    let (folder, server, disk) = attached(&place);
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(folder.path(name)).unwrap();
    }
    let _server = again(&place, server);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn who_was_revoked_stays_so_though_the_list_is_gone() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    folder.key("ca", &["--key-type", "ecdsa"]);
    let ca = folder.certificate("ca", "ca\ncert_signing_key\ncrl_signing_key", false);
    let (good, revoked) = (Folder::new(&place, "good"), Folder::new(&place, "revoked"));
    for theirs in [&good, &revoked] {
        folder.key("server", &["--key-type", "ecdsa"]);
        folder.certificate("server", "signing_key\ntls_www_server", true);
        for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
            theirs.copy(&folder.path(name), name);
        }
    }
    let ours = Folder::new(&place, "ours");
    ours.copy(&ca, "ca-cert.pem");
    revoke(&folder, &revoked.path("server-cert.pem"), &ours);
    let (mut server, socket) = serve(&place, &good, &[]);
    let config = NbdConfig {
        dead_conn_timeout: Duration::from_secs(3),
        backoff: Backoff { first: Duration::from_millis(10), most: Duration::from_millis(50) },
        ..config(&socket, &ours, "")
    };
    let disk = attach(config, 1);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    std::fs::remove_file(ours.path("ca-crl.pem")).unwrap();
    server.kill();
    let (mut server, _) = serve(&place, &revoked, &[]);
    assert_eq!(disk.read(0, 512), Err(Status::Transport), "it was revoked");
    server.kill();
    let _server = serve(&place, &good, &[]);
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
}

#[test]
fn files_that_are_never_read_to_their_end_are_named() {
    let place = Place::new();
    let folder = Folder::new(&place, "pki");
    run(Command::new("mkfifo").arg(folder.path("ca-cert.pem")));
    let timeout = Duration::from_secs(1);
    let config = NbdConfig { timeout, ..config(&place.path("s"), &folder, "") };
    let error = common::try_attach(config, 1).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.chain().contains("the files of TLS for"), "{}", error.chain());
}
