//! The control API, by curl and by the commands that use it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bystanders;
mod changes;
#[path = "../common/mod.rs"]
mod common;
mod document;
mod removal;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use common::{Daemon, Guard, blockyard, nbdsh, peer, system, unix};
use serde_json::{Value, json};
use tempfile::TempDir;

fn socket(daemon: &Daemon) -> PathBuf {
    daemon.path(&format!("run/{}.sock", daemon.pid()))
}

/// The status and the body of an answer.
fn curl(daemon: &Daemon, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
    let socket = socket(daemon).display().to_string();
    let url = format!("http://blockyard{path}");
    let mut args =
        vec!["-sS", "--unix-socket", &socket, "-X", method, "-w", "\n%{http_code}", &url];
    let text = body.map(Value::to_string);
    if let Some(text) = &text {
        args.extend(["-d", text]);
    }
    let said = peer("curl", &args);
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn ask(daemon: &Daemon, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let (status, text) = curl(daemon, method, path, body);
    let value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
    (status, value)
}

/// The next event: its id, and what it says, which is what the document says of events.
fn event(document: &Value, lines: &mut BufReader<ChildStdout>) -> (String, Value) {
    let (mut id, mut data) = (String::new(), Value::Null);
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the stream has ended");
        match line.trim_end().split_once(": ") {
            Some(("id", text)) => id = text.into(),
            Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
            _ if data != Value::Null => {
                let schema = &document["components"]["schemas"]["Event"];
                document::check(document, schema, &data, "event").unwrap();
                return (id, data);
            }
            _ => {}
        }
    }
}

fn watch(daemon: &Daemon, last: Option<&str>) -> (Guard, BufReader<ChildStdout>) {
    let mut command = system("curl");
    command.args(["-sSN", "-i", "--max-time", "60", "--unix-socket"]).arg(socket(daemon));
    if let Some(last) = last {
        command.args(["-H", &format!("Last-Event-ID: {last}")]);
    }
    command.arg("http://blockyard/v1/events").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Guard(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap());
    // Past the head, events are heard.
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    (child, lines)
}

#[test]
fn events_go_on_where_they_were_left() {
    let daemon = Daemon::serve(&["ram:8M?name=a"]);
    let document = ask(&daemon, "GET", "/v1/openapi.json", None).1;
    let (curl, mut lines) = watch(&daemon, None);
    daemon.run(&["set", "a", "read_only=1"]).code(0);
    let changed =
        json!({ "event": "disk_changed", "disk": "a", "size": 8 << 20, "read_only": true });
    let (id, data) = event(&document, &mut lines);
    assert_eq!(data, changed);
    drop((curl, lines));
    // Nobody listens meanwhile.
    daemon.run(&["add", "ram:1M", "--name", "b"]).code(0);
    daemon.run(&["remove", "b"]).code(0);
    let (_curl, mut lines) = watch(&daemon, Some(&id));
    let happened: Vec<_> =
        (0..4).map(|_| event(&document, &mut lines).1["event"].clone()).collect();
    assert_eq!(happened, ["disk_added", "export_added", "export_removed", "disk_removed"]);
    let (_curl, mut lines) = watch(&daemon, Some("1-5"));
    assert_eq!(event(&document, &mut lines).1, json!({ "event": "missed" }));
}

fn fio(uri: &str, dir: &Path, name: &str) -> Command {
    let mut fio = system("timeout");
    fio.args([
        "--kill-after=5",
        "120",
        "fio",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
    ]);
    fio.args([
        "--size=16M",
        "--verify=crc32c",
        "--verify_backlog=64",
        "--verify_fatal=1",
        "--loops=1000",
    ]);
    fio.args(["--verify_state_save=0", "--time_based", "--runtime=100"]);
    fio.arg(format!("--uri={uri}")).arg(format!("--name={name}"));
    fio.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    fio
}

/// Others, who verify what they read, go on all the time and see no error.
#[test]
fn disks_come_and_go_while_others_are_used() {
    let daemon = Daemon::serve(&["ram:16M?name=a", "file:b.img?create=16M&name=b"]);
    let mut loads: Vec<_> = ["a", "b"]
        .map(|name| Guard(fio(&daemon.uri(name), daemon.dir(), name).spawn().unwrap()))
        .into();
    let ops = || {
        let disks = daemon.report()["disks"].as_array().unwrap().clone();
        let of = |name: &str| {
            disks.iter().find(|disk| disk["name"] == name).unwrap()["ops"].as_u64().unwrap()
        };
        [of("a"), of("b")]
    };
    // Both go on past `before`.
    let go_on = |before: [u64; 2], loads: &mut Vec<Guard>| {
        loop {
            for load in loads.iter_mut() {
                assert!(load.0.try_wait().unwrap().is_none(), "a load has ended");
            }
            let now = ops();
            if now[0] > before[0] && now[1] > before[1] {
                return now;
            }
            blockyard_conformance::pause();
        }
    };
    let mut seen = go_on([0, 0], &mut loads);
    for round in 0..6 {
        let uri = if round % 2 == 0 {
            "ram:4M".into()
        } else {
            format!("file:{}?create=4M", daemon.path("c.img").display())
        };
        daemon.run(&["add", &uri, "--name", "c"]).code(0);
        // It is used, and its client is in the middle of it when it goes.
        nbdsh(
            &daemon.uri("c"),
            "h.pwrite(b'x' * 4096, 0)\nassert h.pread(4096, 0) == b'x' * 4096\n",
        );
        let mut client = Guard(
            system("nbdsh")
                .args(["-u", &daemon.uri("c"), "-c", "while True: h.pread(65536, 0)"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        while daemon.report()["disks"][2]["ops"].as_u64().unwrap() < 20 {
            blockyard_conformance::pause();
        }
        daemon.run(&["set", "c", "size=8M"]).code(0);
        daemon.run(&["remove", "c"]).code(0);
        assert!(!client.0.wait().unwrap().success(), "its disk is gone");
        seen = go_on(seen, &mut loads);
    }
    assert_eq!(daemon.report()["disks"].as_array().unwrap().len(), 2);
    for mut load in loads {
        let pid = rustix::process::Pid::from_child(&load.0);
        // timeout(1) passes it on; fio verifies what it has, and ends well.
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = {
            let mut out = String::new();
            std::io::Read::read_to_string(&mut load.0.stdout.take().unwrap(), &mut out).unwrap();
            out
        };
        load.0.wait().unwrap();
        assert!(output.contains("err= 0") && !output.contains("verify: bad"), "{output}");
    }
    daemon.stop();
}

#[test]
fn what_is_saved_is_there_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let yard =
        "# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n\n[nbd]\nlisten = \"unix:s\"\n";
    std::fs::write(dir.path().join("yard.toml"), yard).unwrap();
    let mut command = blockyard(&dir.path().join("run"));
    command.args(["up", "-f", "yard.toml"]);
    let daemon = Daemon::start(command, dir, 1);
    let file = daemon.path("c.img").display().to_string();
    std::fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
    let add = daemon.run(&["add", &format!("file:{file}"), "--save"]);
    assert_eq!(add.code(0).out, "c\n");
    daemon.run(&["set", "c", "read_only=1", "--save"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "gone", "--save"]).code(0);
    daemon.run(&["remove", "gone", "--save"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "not-kept"]).code(0);
    // One that it has not been told of cannot be saved.
    daemon
        .run(&["set", "not-kept", "read_only=1", "--save"])
        .code(1)
        .contains(&["no disk \"not-kept\" in the file"]);
    let text = std::fs::read_to_string(daemon.path("yard.toml")).unwrap();
    let expected = format!(
        "# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n\n[[disk]]\nname = \"c\"\n\
         uri = \"file:{file}\"\nread_only = true\n\n[nbd]\nlisten = \"unix:s\"\n\n"
    );
    assert!(
        text.starts_with("# Ours.\n[[disk]]\nname = \"a\"\nuri = \"ram:8M\" # small\n"),
        "{text}"
    );
    for part in expected.split("\n\n") {
        assert!(text.contains(part.trim()), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("gone") && !text.contains("not-kept"), "{text}");
    peer("nbdinfo", &["--is", "read-only", &unix("c", &daemon.path("s"))]);
    let mut check = blockyard(&daemon.path("run"));
    let checked = check.args(["up", "--check"]).current_dir(daemon.dir()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // A daemon with no file says so, and changes nothing.
    let other = Daemon::serve(&["ram:1M"]);
    other.run(&["add", "ram:1M", "--save"]).code(64).contains(&["blockyard up -f"]);
    assert_eq!(other.report()["disks"].as_array().unwrap().len(), 1);
}
