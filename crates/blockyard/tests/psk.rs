//! `serve --tls-psk`, and URIs with `tls-psk-file`, in builds with and without the feature `psk`.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// `blockyard serve` with the keys, for as long as `script` runs.
fn serve(keys: &Path, script: &str) -> Output {
    let mut serve = Command::new(env!("CARGO_BIN_EXE_blockyard"));
    serve.args(["serve", "ram:16M", "--tls", "require", "--run", script, "--tls-psk"]);
    serve.arg(keys).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[cfg(feature = "psk")]
#[test]
fn users_of_the_file_get_in_and_nobody_else() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.psk");
    let other = dir.path().join("other.psk");
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    fs::set_permissions(&keys, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&other, format!("alice:{}\nmallory:{KEY}\n", KEY.replace('0', "1"))).unwrap();
    // The socket of $uri, which leads in by the first user of the server's file; here others are tried.
    let socket = "socket=${uri%%&*}; socket=${socket#*\\?}; ";
    let info = |user: &str, keys: &Path| {
        let keys = keys.display();
        format!("{socket}nbdinfo --size \"nbds+unix://{user}@/?$socket&tls-psk-file={keys}\"")
    };
    let good = serve(&keys, &info("alice", &keys));
    assert!(good.status.success() && good.stdout == b"16777216\n", "{good:?}");
    assert!(!said(&good).contains("chmod"), "{good:?}");

    let wrong = serve(&keys, &info("alice", &other));
    assert!(
        !wrong.status.success() && said(&wrong).contains("wrong key of user \"alice\""),
        "{wrong:?}"
    );
    let stranger = serve(&keys, &info("mallory", &other));
    assert!(
        !stranger.status.success() && said(&stranger).contains("no user \"mallory\""),
        "{stranger:?}"
    );
    // Our own client, and another of our servers that hands the disk on.
    let ours = |command: &str, user: &str, keys: &Path| {
        let (program, keys) = (env!("CARGO_BIN_EXE_blockyard"), keys.display());
        let uri = format!("\"nbds+unix://{user}@/?$socket&tls-psk-file={keys}\"");
        socket.to_owned() + &command.replace("blockyard", program).replace("URI", &uri)
    };
    let info = serve(&keys, &ours("blockyard info URI && blockyard list URI", "alice", &keys));
    let shown = String::from_utf8_lossy(&info.stdout);
    assert!(
        info.status.success() && shown.contains("16777216") && shown.contains("ram0"),
        "{info:?}"
    );
    let copy =
        "blockyard bench URI --rw randrw --count 500 --queues 2 && blockyard compare URI URI";
    let copy = serve(&keys, &ours(copy, "alice", &keys));
    assert!(copy.status.success(), "{copy:?}");
    for user in ["alice", "mallory"] {
        let wrong = serve(&keys, &ours("blockyard info URI", user, &other));
        assert!(
            !wrong.status.success()
                && said(&wrong).contains("must have the same key on the server"),
            "{wrong:?}"
        );
    }
    let open = serve(&other, "true");
    assert!(open.status.success() && said(&open).contains("run: chmod 600"), "{open:?}");
    let text = said(&open);
    let advice = text.split("run: ").nth(1).unwrap().lines().next().unwrap();
    // The fields of the line stand behind it.
    let field = [" path=", " mode="].iter().filter_map(|field| advice.find(field)).min();
    let advice = &advice[..field.unwrap_or(advice.len())];
    assert!(Command::new("sh").args(["-c", advice]).status().unwrap().success(), "{advice}");
    let closed = serve(&other, "true");
    assert!(closed.status.success() && !said(&closed).contains("chmod"), "{closed:?}");

    fs::write(&other, "alice:00\n\nbob 00\n").unwrap();
    let malformed = serve(&other, "true");
    assert_eq!(malformed.status.code(), Some(1), "{malformed:?}");
    assert!(said(&malformed).contains("other.psk: line 3: no colon"), "{malformed:?}");
}

#[cfg(not(feature = "psk"))]
#[test]
fn a_build_without_says_how_to_get_one() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.psk");
    fs::write(&keys, format!("alice:{KEY}\n")).unwrap();
    let output = serve(&keys, "true");
    assert_eq!(output.status.code(), Some(69), "{output:?}");
    assert!(said(&output).contains("--features psk"), "{output:?}");
    let uri = format!("nbds+unix://alice@/?socket=s&tls-psk-file={}", keys.display());
    for command in ["info", "list", "bench"] {
        let mut client = Command::new(env!("CARGO_BIN_EXE_blockyard"));
        let output = client.args([command, &uri]).output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert!(said(&output).contains("--features psk"), "{output:?}");
    }
}

#[test]
fn keys_or_certificates_and_not_in_vain() {
    let run = |args: &[&str]| {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_blockyard"));
        serve.args(["serve", "ram:1M", "--run", "true", "--tls-psk", "keys.psk"]);
        serve.args(args).output().unwrap()
    };
    let both = run(&["--tls", "require", "--tls-key", "key.pem"]);
    assert!(!both.status.success() && said(&both).contains("cannot be used with"), "{both:?}");
    let off = run(&[]);
    assert!(!off.status.success() && said(&off).contains("--tls is off"), "{off:?}");
}
