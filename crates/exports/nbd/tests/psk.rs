//! TLS with pre-shared keys: the clients of GnuTLS that people have, and one that can be made to misbehave.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

mod common;

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};

use blockyard_export_nbd::{Export, HeaderStyle, TlsIdentity, TlsMode};
use blockyard_nbd::client::{Config, Event, Handshake, TlsMode as Wanted};
use blockyard_nbd::wire::{Command, CommandFlags};
use common::{Client, MIB, Yard, negotiate, pattern, ram, request};
use openssl::ssl::{Ssl, SslContext, SslMethod, SslStream, SslVersion};

const KEY: [u8; 32] = *b"a key that both sides have known";
const VERSIONS: [SslVersion; 2] = [SslVersion::TLS1_2, SslVersion::TLS1_3];

/// A directory with `keys.psk`, in which `psktool` makes a key for each of `users`.
fn key_dir(users: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for user in users {
        run(
            Process::new("psktool").args(["-u", user, "-p"]).arg(dir.path().join("keys.psk")),
            true,
        );
    }
    dir
}

fn keys(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("keys.psk")
}

/// A file with [`KEY`] for alice.
fn known_key() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let hex: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(keys(&dir), format!("alice:{hex}\n")).unwrap();
    dir
}

fn yard(dir: &tempfile::TempDir) -> Yard {
    Yard::with(ram(64 * MIB), |config, _| {
        config.tls = TlsMode::Require(TlsIdentity::Psk(keys(dir)).load().unwrap());
    })
}

/// Runs a peer, which succeeds or not as expected.
fn run(process: &mut Process, succeeds: bool) -> Output {
    let output = process.output().unwrap();
    assert_eq!(output.status.success(), succeeds, "{process:?}: {output:?}");
    output
}

fn uri(yard: &Yard, user: &str, keys: &Path) -> String {
    let (socket, keys) = (yard.socket.display(), keys.display());
    format!("nbds+unix://{user}@/disk?socket={socket}&tls-psk-file={keys}")
}

/// Python that has `h` connected to argument 1, and then runs `script`.
fn python(script: &str, uri: &str) -> Process {
    let script = format!(
        "import nbd, sys, random\nh = nbd.NBD()\nh.set_uri_allow_local_file(True)\n\
         h.connect_uri(sys.argv[1])\n{script}"
    );
    let mut process = Process::new("/usr/bin/python3");
    process.args(["-c", &script, uri]).env_remove("GNUTLS_SYSTEM_PRIORITY_FILE");
    process
}

const VERIFY: &str = "
assert h.get_tls_negotiated()
data = random.Random(1).randbytes(8 << 20)
for at in range(0, len(data), 1 << 20):
    h.pwrite(data[at:at + (1 << 20)], at + 512)
h.flush()
assert h.pread(len(data), 512) == data
bufs = [nbd.Buffer(65536) for _ in range(64)]
cookies = [h.aio_pread(buf, 512 + n * 65536) for n, buf in enumerate(bufs)]
while any(not h.aio_command_completed(cookie) for cookie in cookies if h.aio_in_flight()):
    h.poll(-1)
for n, buf in enumerate(bufs):
    assert buf.to_bytearray() == data[n * 65536:(n + 1) * 65536]
";

#[test]
fn libnbd_reads_and_writes() {
    let dir = key_dir(&["bob", "alice"]);
    let yard = yard(&dir);
    for user in ["alice", "bob"] {
        let uri = uri(&yard, user, &keys(&dir));
        let output = run(Process::new("nbdinfo").arg(&uri), true);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("export-size: 67108864") && text.contains("TLS"), "{text}");
        run(&mut python(VERIFY, &uri), true);
    }
}

#[test]
fn libnbd_without_tls_1_3() {
    let dir = key_dir(&["alice"]);
    let yard = yard(&dir);
    let uri = uri(&yard, "alice", &keys(&dir));
    let priorities = dir.path().join("priorities");
    // One way to exchange keys less each time, until there is nothing but the key.
    let mut text = "[overrides]\ndisabled-version = tls1.3\n".to_owned();
    for without in ["", "tls-disabled-kx = ECDHE-PSK\n", "tls-disabled-kx = DHE-PSK\n"] {
        text += without;
        fs::write(&priorities, &text).unwrap();
        run(python(VERIFY, &uri).env("GNUTLS_SYSTEM_PRIORITY_FILE", &priorities), true);
    }
}

#[test]
fn qemu_copies_there_and_back() {
    let dir = key_dir(&["alice"]);
    let yard = yard(&dir);
    let image = dir.path().join("image");
    fs::write(&image, pattern(3, 64 << 20)).unwrap();
    let others = key_dir(&["alice", "mallory"]);
    let object = |user: &str, dir: &tempfile::TempDir| {
        format!(
            "tls-creds-psk,id=tls0,endpoint=client,dir={},username={user}",
            dir.path().display()
        )
    };
    let ours = format!(
        "driver=nbd,server.type=unix,server.path={},export=disk,tls-creds=tls0",
        yard.socket.display()
    );
    let (copy, qemu) = (dir.path().join("copy"), || Process::new("qemu-img"));
    run(
        qemu()
            .args(["convert", "--object", &object("alice", &dir), "-n", "--image-opts"])
            .arg(format!("driver=raw,file.driver=file,file.filename={}", image.display()))
            .arg("--target-image-opts")
            .arg(&ours),
        true,
    );
    run(
        qemu()
            .args([
                "convert",
                "--object",
                &object("alice", &dir),
                "--image-opts",
                &ours,
                "-O",
                "raw",
            ])
            .arg(&copy),
        true,
    );
    assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap());
    for user in ["alice", "mallory"] {
        let mut info = qemu();
        info.args(["info", "--object", &object(user, &others), "--image-opts", &ours]);
        let said = String::from_utf8_lossy(&run(&mut info, false).stderr).into_owned();
        assert!(said.contains("TLS handshake failed"), "{said}");
    }
}

#[test]
fn wrong_keys_and_strangers_are_refused_and_nobody_else_notices() {
    let (dir, other) = (key_dir(&["alice"]), key_dir(&["alice", "mallory"]));
    let yard = yard(&dir);
    let good = uri(&yard, "alice", &keys(&dir));
    // Half before, half after the strangers, on one connection.
    let halves = format!("{VERIFY}\nprint('ready', flush=True)\nsys.stdin.readline()\n{VERIFY}");
    let mut process = python(&halves, &good);
    process.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = process.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = io::BufReader::new(child.stdout.take().unwrap());
    io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    for user in ["alice", "mallory"] {
        let output = run(&mut python("", &uri(&yard, user, &keys(&other))), false);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("gnutls_handshake"), "{said}");
    }
    run(&mut python("", &good.replace("nbds+", "nbd+")), false);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success() && line == "ready\n");
    run(&mut python(VERIFY, &good), true);
}

/// A client that starts TLS before anything else.
fn psk_client(
    yard: &Yard,
    user: &'static str,
    key: [u8; 32],
    version: SslVersion,
) -> io::Result<Client> {
    psk_client_of(yard, user, key, version, "PSK")
}

/// One that speaks these ciphers of TLS 1.2.
fn psk_client_of(
    yard: &Yard,
    user: &'static str,
    key: [u8; 32],
    version: SslVersion,
    ciphers: &str,
) -> io::Result<Client> {
    let (stream, mut handshake) = started(yard);
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_min_proto_version(Some(version))?;
    context.set_max_proto_version(Some(version))?;
    context.set_cipher_list(ciphers)?;
    context.set_psk_client_callback(move |_, _, identity, room| {
        identity[..user.len()].copy_from_slice(user.as_bytes());
        identity[user.len()] = 0;
        room[..key.len()].copy_from_slice(&key);
        Ok(key.len())
    });
    let mut stream = SslStream::new(Ssl::new(&context.build())?, stream)?;
    stream.connect().map_err(io::Error::other)?;
    handshake.tls_started();
    Client::go(Box::new(stream), handshake, "", HeaderStyle::Extended)
}

/// A connection on which TLS begins now.
fn started(yard: &Yard) -> (UnixStream, Handshake) {
    let mut plain = yard.connect();
    let mut handshake =
        Handshake::new(Config { tls: Wanted::Require, best_style: HeaderStyle::Extended });
    let event = negotiate(&mut plain, &mut handshake, &mut Vec::new()).unwrap();
    assert_eq!(event, Event::StartTls);
    (plain, handshake)
}

#[test]
fn many_requests_at_a_time_in_both_versions() {
    let dir = known_key();
    let yard = yard(&dir);
    for version in VERSIONS {
        let mut client = psk_client(&yard, "alice", KEY, version).unwrap();
        assert!(client.negotiated.tls);
        let expected = pattern(1, 4 << 20);
        client.write(0, &expected);
        // More replies than the socket has room for, and nobody who reads them yet.
        let cookies: Vec<_> = (0..100_u64)
            .map(|n| {
                client.send(request(Command::Read, CommandFlags::empty(), n * 512, 65_536), &[])
            })
            .collect();
        for _ in &cookies {
            let (cookie, outcome) = client.next_reply().unwrap();
            let n = cookies.iter().position(|&other| other == cookie).unwrap();
            assert!(outcome.ok().data == expected[n * 512..n * 512 + 65_536], "{n}");
        }
        client.disconnect();
    }
}

#[test]
fn wrong_keys_and_strangers_in_both_versions() {
    let dir = known_key();
    let yard = yard(&dir);
    let mut good = psk_client(&yard, "alice", KEY, SslVersion::TLS1_3).unwrap();
    let data = pattern(2, 100 << 10);
    for version in VERSIONS {
        let mut wrong = KEY;
        wrong[0] ^= 1;
        let wrong = psk_client(&yard, "alice", wrong, version).err().unwrap().to_string();
        let unknown = psk_client(&yard, "alic", KEY, version).err().unwrap().to_string();
        assert_eq!(wrong, unknown, "nobody learns who is known");
        assert!(psk_client(&yard, "", KEY, version).is_err());
        good.write(4096, &data);
        assert!(good.read(4096, data.len() as u64) == data);
        psk_client(&yard, "alice", KEY, version).unwrap().disconnect();
    }
}

/// It would have the server raise large numbers to large powers before it has shown that it knows a key.
#[test]
fn who_speaks_nothing_but_dhe_is_refused() {
    let dir = known_key();
    let yard = yard(&dir);
    let client = |ciphers| psk_client_of(&yard, "alice", KEY, SslVersion::TLS1_2, ciphers);
    let dhe = "DHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384:DHE-PSK-AES128-GCM-SHA256";
    let refused = client(dhe).err().unwrap().to_string();
    assert!(refused.contains("handshake failure"), "{refused}");
    for ciphers in ["ECDHE-PSK-CHACHA20-POLY1305", "PSK-AES256-GCM-SHA384"] {
        client(ciphers).unwrap().disconnect();
    }
}

#[test]
fn garbage_instead_of_tls_and_a_hang_up_in_it() {
    let dir = known_key();
    let yard = yard(&dir);
    let mut good = psk_client(&yard, "alice", KEY, SslVersion::TLS1_2).unwrap();
    for garbage in [&[0x5a; 4096][..], &[0x16, 3, 1, 0xff, 0xff], &[0x16, 3, 1, 0, 5, 1]] {
        let (mut plain, _) = started(&yard);
        plain.write_all(garbage).unwrap();
        plain.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = io::Read::read_to_end(&mut plain, &mut Vec::new());
        common::eventually("hanging up", || yard.server.clients().len() == 1);
        good.write(0, &pattern(5, 4096));
    }
}

#[test]
fn allow_shows_secrets_under_tls_only() {
    let dir = known_key();
    let yard = Yard::with(ram(16 * MIB), |config, bdev| {
        config.tls = TlsMode::Allow(TlsIdentity::Psk(keys(&dir)).load().unwrap());
        config.exports.push(Export { tls_only: true, ..Export::new("secret", bdev.clone()) });
        config.default_export = Some("secret".into());
    });
    let open = |name| Client::open(Box::new(yard.connect()), name, HeaderStyle::Extended);
    assert!(open("secret").is_err() && open("disk").is_ok());
    psk_client(&yard, "alice", KEY, SslVersion::TLS1_3).unwrap().disconnect();
}

#[test]
fn files_that_will_not_do_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let message = || TlsIdentity::Psk(keys(&dir)).load().unwrap_err().to_string();
    assert!(message().contains("keys.psk"));
    for (text, problem) in
        [("", "empty"), ("alice:00ff\nbob\n", "line 2"), ("alice:secret", "line 1")]
    {
        fs::write(keys(&dir), text).unwrap();
        let message = message();
        assert!(message.contains("keys.psk") && message.contains(problem), "{message}");
        assert!(!message.contains("secret") && !message.contains("00ff"), "{message}");
    }
}
