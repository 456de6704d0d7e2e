//! What an error advises is run here, as it was printed, and helps.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::path::Path;

use common::{Cleanup, Daemon, Said, blockyard, noise, peer, run, system, unix};
use tempfile::TempDir;

/// The command behind `lead` in what was said, up to the end of it or an alternative.
#[track_caller]
fn advised(said: &Said, lead: &str) -> String {
    let (_, rest) =
        said.err.split_once(lead).unwrap_or_else(|| panic!("no {lead:?} in\n{}", said.err));
    rest.split([';', '\n']).next().unwrap().trim().to_owned()
}

/// Does what was advised; `blockyard` is the one of this build.
#[track_caller]
fn follow(dir: &Path, command: &str) -> Said {
    let own = Path::new(env!("CARGO_BIN_EXE_blockyard")).parent().unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", own.display());
    let mut shell = system("timeout");
    shell.args(["--kill-after=5", "60", "sh", "-c", command]).current_dir(dir).env("PATH", path);
    let said = Said::of(&shell.env("BLOCKYARD_RUNTIME_DIR", dir.join("run")).output().unwrap());
    said.code(0);
    said
}

fn file(dir: &TempDir, name: &str, len: u64) -> String {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_missing_file_is_made_as_advised() {
    let dir = TempDir::new().unwrap();
    for (name, lead) in [("a.img", "run: "), ("b.img", "use the URI ")] {
        let path = dir.path().join(name).to_str().unwrap().to_owned();
        let said = run(&["info", &path]);
        let advice = advised(said.code(1), "help: run: ");
        assert!(advice.starts_with("truncate -s 1G "), "{advice}");
        match lead {
            "run: " => _ = follow(dir.path(), &advice),
            _ => _ = run(&["run", &advised(&said, lead), "--", "true"]).code(0),
        }
        run(&["info", &path, "--size"]).code(0).contains(&["1073741824"]);
    }
}

#[test]
fn a_file_that_is_too_small_is_made_larger_as_advised() {
    let dir = TempDir::new().unwrap();
    let (source, small) = (file(&dir, "source", 2 << 20), file(&dir, "small", 1 << 20));
    std::fs::write(&source, noise(2 << 20, 1)).unwrap();
    let said = run(&["copy", &source, &small]);
    let part = said.code(1).err.split_once("with size=").unwrap().1;
    let size = part.split(' ').next().unwrap();
    run(&["copy", &format!("file:{source}?size={size}"), &small]).code(0);
    follow(dir.path(), &advised(&said, "run: "));
    run(&["copy", &source, &small]).code(0);
    let wanted = format!("file:{small}?size=4M");
    let said = run(&["info", &wanted]);
    follow(dir.path(), &advised(said.code(1), "run: "));
    run(&["info", &wanted, "--size"]).code(0).contains(&["4194304"]);
}

#[test]
fn a_device_is_made_writable_as_advised() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "disk", 1 << 20);
    let device = peer("losetup", &["--find", "--show", &path]).trim().to_owned();
    let detach = Cleanup::with(&["losetup", "--detach", &device]);
    peer("blockdev", &["--setro", &device]);
    let said = run(&["run", &device, "--", "true"]);
    follow(dir.path(), &advised(said.code(77), "or run: "));
    run(&["run", &device, "--", "true"]).code(0);
    detach.now();
}

#[test]
fn what_there_is_is_listed_as_advised() {
    let daemon = Daemon::serve(&["ram:1M?name=disk"]);
    let socket = daemon.path("s");
    let said = run(&["info", &unix("other", &socket)]);
    follow(daemon.dir(), &advised(said.code(1), "list the exports: ")).contains(&["disk"]);
    let said = daemon.run(&["set", "other", "size=2M"]);
    follow(daemon.dir(), &advised(said.code(1), "list daemons and disks: ")).contains(&["disk"]);
    let said = daemon.run(&["set", "disk", "2M"]);
    let examples = advised(said.code(64), "write e.g. ");
    for example in examples.split(" or ") {
        daemon.run(&["set", "disk", example]).code(0);
    }
}

#[test]
fn a_daemon_is_started_as_advised() {
    let dir = TempDir::new().unwrap();
    let output =
        |args: &[&str]| Said::of(&blockyard(&dir.path().join("run")).args(args).output().unwrap());
    let socket = dir.path().join("s").to_str().unwrap().to_owned();
    for said in [output(&["list"]), output(&["add", "ram:1M"])] {
        let command = advised(&said, "start one: ");
        assert!(command.starts_with("blockyard serve "), "{command}");
        let command = command.replace("/tmp/nbd.sock", &socket);
        follow(dir.path(), &format!("{command} --run 'blockyard info \"$uri\" --size'"));
    }
    let said = run(&["serve", "1G", "--nbd", "unix:s"]);
    run(&[
        "info",
        &advised(said.code(64), "write ").replace(" for a RAM disk, or ./1G for a file", ""),
    ])
    .code(0);
}
