//! `blockyard up`: the demo, and yards from a file.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{Daemon, Said, blockyard, peer};
use tempfile::TempDir;

#[test]
fn the_demo_is_served_and_says_what_to_do() {
    let dir = TempDir::new().unwrap();
    let said = dir.path().join("said");
    let mut command = blockyard(&dir.path().join("run"));
    command.arg("up").stdout(std::fs::File::create(&said).unwrap());
    let daemon = Daemon::start(command, dir, 2);
    for uri in &daemon.uris {
        assert_eq!(peer("nbdinfo", &["--size", uri]).trim(), "1073741824", "{uri}");
    }
    let disks = daemon.report()["disks"].clone();
    assert_eq!((&disks[0]["name"], &disks[1]["name"]), (&"ram".into(), &"disk".into()));
    assert_eq!((&disks[2]["name"], &disks[3]["name"]), (&"image".into(), &"clone".into()));
    assert!(daemon.path("yard/disk.img").exists());
    // What it says works as it stands, except that the command may not be on PATH.
    let text = std::fs::read_to_string(&said).unwrap();
    let lines: Vec<_> =
        text.lines().filter(|line| line.starts_with("  ") && !line.contains('#')).collect();
    assert_eq!(lines.len(), 10, "{text}");
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_blockyard")).parent().unwrap().to_owned();
    let out = daemon.path("out.img").display().to_string();
    for line in lines {
        let line = line.replace("/tmp/disk.img", &out);
        let line = format!(
            "cd {}; export PATH={}:$PATH BLOCKYARD_RUNTIME_DIR={}; {line}",
            daemon.dir().display(),
            bin.display(),
            daemon.path("run").display()
        );
        peer("sh", &["-e", "-c", &line]);
    }
    // The same demo again finds the first, and its configuration can be edited.
    let mut again = blockyard(&daemon.path("run"));
    let said = Said::of(&again.arg("up").current_dir(daemon.dir()).output().unwrap());
    let running = format!("the demo in ./yard is already running (PID {})", daemon.pid());
    said.code(75).contains(&[&running, "help: list daemons and disks: blockyard list"]);
    let mut check = blockyard(&daemon.path("run"));
    let args = ["up", "yard/yard.toml", "--check"];
    let said = Said::of(&check.args(args).current_dir(daemon.dir()).output().unwrap());
    said.code(0).contains(&["yard/yard.toml: OK (4 disks, 4 exports)"]);
    assert!(text.contains("blockyard up -f yard/yard.toml"), "{text}");
    daemon.stop();
}

#[test]
fn an_edited_demo_is_served_as_it_is() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("yard")).unwrap();
    let yard = "[[disk]]\nname = \"mine\"\nuri = \"ram:2M\"\n[nbd]\nlisten = \"unix:s\"\n";
    std::fs::write(dir.path().join("yard/yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.arg("up").stdout(Stdio::null());
    let daemon = Daemon::start(command, dir, 1);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uris[0]]).trim(), "2097152");
    daemon.stop();
}

#[test]
fn the_demo_takes_another_port_if_its_own_is_in_use() {
    // Whoever has the port, one of the two demos gets another.
    let demo = || {
        let dir = TempDir::new().unwrap();
        let mut command = blockyard(&dir.path().join("run"));
        command.arg("up").stdout(Stdio::null());
        Daemon::start(command, dir, 2)
    };
    let (first, second) = (demo(), demo());
    assert_ne!(first.uris[1], second.uris[1]);
    let moved =
        [&first, &second].into_iter().find(|demo| demo.log().contains("port 10809 is in use"));
    let moved = moved.unwrap_or_else(|| panic!("{}\n{}", first.log(), second.log()));
    assert!(moved.log().contains("the demo uses tcp:127.0.0.1:"), "{}", moved.log());
    assert_eq!(peer("nbdinfo", &["--size", &moved.uris[1]]).trim(), "1073741824");
}

#[test]
fn a_yard_from_a_file() {
    let dir = TempDir::new().unwrap();
    let yard = "[[disk]]\nname = \"a\"\nuri = \"ram:8M\"\n\n[[disk]]\nuri = \"file:data.img\"\ncreate = \"4M\"\n\n\
                [[export]]\ndisk = \"data\"\nname = \"read\"\nread_only = true\n\n\
                [[export]]\ndisk = \"a\"\ndescription = \"A\"\n\n\
                [nbd]\nlisten = [\"unix:s\", \"tcp:127.0.0.1:0\"]\ndefault_export = \"a\"\n\n[threads]\ncount = 1\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut check = blockyard(&dir.path().join("run"));
    let output = check.args(["up", "--check"]).current_dir(dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "yard.toml: OK (2 disks, 2 exports)\n");
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["up", "-f", "yard.toml"]);
    let daemon = Daemon::start(command, dir, 2);
    assert_eq!(peer("nbdinfo", &["--size", &daemon.uri("")]).trim(), "8388608");
    peer("nbdinfo", &["--is", "read-only", &daemon.uri("read")]);
    assert_eq!(daemon.report()["threads"], 1);
    daemon.stop();
}

#[test]
fn mistakes_are_shown_and_nothing_starts() {
    let dir = TempDir::new().unwrap();
    let yard = "[[disk]]\nuri = \"file:made.img?create=1M\"\n\n\
                [[disk]]\nuri = \"ram:1GB\"\ndephth = 3\n\n[nbd]\nlisten = \"unix:s\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    let mut child = common::Guard(
        command.arg("up").current_dir(dir.path()).stderr(Stdio::piped()).spawn().unwrap(),
    );
    let lines: Vec<String> =
        BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap).collect();
    assert_eq!(child.0.wait().unwrap().code(), Some(64));
    let expected = [
        "error: invalid disk URI",
        " --> yard.toml:5:12",
        "5 | uri = \"ram:1GB\"",
        "  |            ^^^",
    ];
    assert_eq!(&lines[..4], expected, "{lines:#?}");
    assert!(lines[4].starts_with("  = help: size: invalid size \"1GB\""), "{}", lines[4]);
    assert!(!dir.path().join("made.img").exists() && !dir.path().join("s").exists());
    common::run(&["up", "-f", "nowhere.toml"])
        .code(1)
        .contains(&["cannot read nowhere.toml", "-f"]);
    common::run(&["mount", "nowhere.toml", "mnt"]).code(1).contains(&[
        "cannot read nowhere.toml",
        "help: name the yard.toml",
        "process ID",
    ]);
}
