//! Changes of a daemon that runs: what is refused, what is told, and several at a time.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};

use crate::common::{Daemon, Guard, blockyard, nbdkit, unix};

/// How long an answer may take: more than anything here waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a daemon's control socket, once it has asked for something.
fn asked(daemon: &Daemon, request: &str) -> UnixStream {
    let mut stream =
        UnixStream::connect(daemon.path(&format!("run/{}.sock", daemon.pid()))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// The status of an answer, and its body.
pub(crate) fn ask(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &str,
    body: &Value,
) -> (u16, String) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: b\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut answer = String::new();
    asked(daemon, &request).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn a_disk_that_was_opened_read_only_stays_so_where_its_driver_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let server = dir.path().join("server");
    let _server = nbdkit(&server, &["memory", "1M"]);
    let file = dir.path().join("file.img");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let there = unix("", &server);
    let separator = if there.contains('?') { '&' } else { '?' };
    let daemon = Daemon::serve(&[
        format!("file:{}?read_only=1&name=file", file.display()),
        format!("{there}{separator}read_only=1&name=there"),
        "ram:1M?read_only=1&name=ram".into(),
    ]);
    for disk in ["file", "there"] {
        let refused = daemon.run(&["set", disk, "read_only=0"]);
        refused.code(64).contains(&["was opened read-only", "add it without read_only"]);
        // What it is already is no change.
        daemon.run(&["set", disk, "read_only=1"]).code(0);
    }
    daemon.run(&["set", "ram", "read_only=0"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "new"]).code(0);
    let report = daemon.report();
    let read_only = |list: &str, name: &str| {
        let all = report[list].as_array().unwrap().clone();
        all.iter().find(|it| it["name"] == name).unwrap()["read_only"].clone()
    };
    for (name, disk, export) in
        [("file", true, true), ("there", true, true), ("ram", false, true), ("new", false, false)]
    {
        assert_eq!(read_only("disks", name), disk, "{name}");
        assert_eq!(read_only("exports", name), export, "clients of {name}");
    }
}

#[test]
fn disks_that_are_added_at_the_same_time_have_names_of_their_own() {
    const ADDED: usize = 8;
    let daemon = Daemon::serve(&["ram:1M"]);
    let adding: Vec<_> = (0..ADDED)
        .map(|_| {
            let mut add = blockyard(&daemon.path("run"));
            add.args(["add", "ram:1M"]).stdout(Stdio::piped()).stdin(Stdio::null());
            add.spawn().unwrap()
        })
        .collect();
    let mut names = BTreeSet::new();
    for add in adding {
        let output = add.wait_with_output().unwrap();
        assert!(output.status.success());
        let name = String::from_utf8(output.stdout).unwrap();
        assert!(names.insert(name.clone()), "{name} is two disks");
    }
    let report = daemon.report();
    assert_eq!(report["disks"].as_array().unwrap().len(), ADDED + 1);
    assert_eq!(report["exports"].as_array().unwrap().len(), ADDED + 1);
    let taken =
        ask(&daemon, "PUT", "/v1/disks/ram0", "if-none-match: *\r\n", &json!({ "uri": "ram:1M" }));
    assert_eq!(taken.0, 412, "{}", taken.1);
}

#[test]
fn a_disk_that_is_there_already_is_told_from_a_new_one() {
    let daemon = Daemon::serve(&["ram:1M"]);
    let add = |more: &[&str]| {
        let said = daemon.run(&[&["add", "ram:2M", "--name", "a"], more].concat());
        assert_eq!((said.code, said.out.as_str()), (0, "a\n"), "{}", said.err);
        said.err
    };
    assert_eq!(add(&["--no-nbd"]), "");
    assert_eq!(add(&["--no-nbd"]), "a already exists: nothing changed\n");
    assert_eq!(add(&[]), "a already exists: only exports were added\n");
    daemon.run(&["add", "ram:3M", "--name", "a"]).code(75).contains(&["already exists"]);
}

#[test]
fn of_several_settings_all_are_made_or_none() {
    let daemon = Daemon::serve(&["ram:8M?name=a"]);
    for (wanted, part) in [
        (json!({ "read_only": true, "size": "1M" }), "cannot shrink"),
        (json!({ "read_only": true, "size": 8_388_609 }), "not a multiple"),
    ] {
        let (status, answer) = ask(&daemon, "PATCH", "/v1/disks/a", "", &wanted);
        assert_eq!(status, 400, "{answer}");
        assert!(answer.contains(part), "{answer}");
        assert_eq!(daemon.report()["disks"][0]["read_only"], false, "{wanted}");
    }
    daemon.run(&["set", "a", "read_only=1", "size=1M"]).code(64).contains(&["cannot shrink"]);
    daemon.run(&["set", "a", "size=9M", "size=1M"]).code(64).contains(&["size is given twice"]);
    let disk = &daemon.report()["disks"][0];
    assert_eq!((&disk["read_only"], &disk["size"]), (&json!(false), &json!(8 << 20)));
    let wanted = json!({ "read_only": true, "size": "16M" });
    assert_eq!(ask(&daemon, "PATCH", "/v1/disks/a", "", &wanted).0, 200);
    let report = daemon.report();
    assert_eq!(
        (&report["disks"][0]["read_only"], &report["disks"][0]["size"]),
        (&json!(true), &json!(16 << 20))
    );
}

#[test]
fn a_descriptor_of_the_daemon_is_nothing_to_ask_for() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let wanted = json!({ "disk": "a", "fd": 3 });
    let (status, answer) = ask(&daemon, "PUT", "/v1/exports/vhost-user-blk/x", "", &wanted);
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("no option \\\"fd\\\""), "{answer}");
}

#[test]
fn a_daemon_that_cannot_be_reached_keeps_nobody_from_the_others() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    // One that takes no connection any more, and one whose name leads nowhere.
    let full = daemon.path("run/1.sock");
    let address = SocketAddrUnix::new(&full).unwrap();
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waits = UnixStream::connect(&full).unwrap();
    std::os::unix::fs::symlink("2.sock", daemon.path("run/2.sock")).unwrap();
    let mut list = blockyard(&daemon.path("run"));
    let mut list = Guard(
        list.args(["list", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut out = list.0.stdout.take().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        let _ = tell.send(text);
    });
    let text = told.recv_timeout(PATIENCE).expect("list waits for a daemon that does not answer");
    assert!(list.0.wait().unwrap().success());
    let listed: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(listed[0]["pid"], daemon.pid());
}

#[test]
fn those_who_listen_to_events_leave_room_for_those_who_ask() {
    const LISTENERS: usize = 200;
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let mut listening = Vec::new();
    let mut refused = 0;
    for _ in 0..LISTENERS {
        let mut stream = asked(&daemon, "GET /v1/events HTTP/1.1\r\nhost: b\r\n\r\n");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("no room for another connection");
        match &head[9..] {
            b"200" => listening.push(stream),
            b"503" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(!listening.is_empty() && refused > 0, "{} and {refused}", listening.len());
    assert_eq!(daemon.report()["disks"][0]["name"], "a");
    // Who goes makes room.
    drop(listening);
    let again = || {
        let mut stream = asked(&daemon, "GET /v1/events HTTP/1.1\r\nhost: b\r\n\r\n");
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        head[9..] == *b"200"
    };
    let begun = std::time::Instant::now();
    while !again() {
        assert!(begun.elapsed() < PATIENCE, "nobody is let in any more");
        blockyard_conformance::pause();
    }
}

/// More than one: each of them waits on a thread.
const STUCK: usize = 4;

/// A peer that takes connections and never says a word, until it is dropped.
struct Silent(std::os::unix::net::UnixListener, std::path::PathBuf);

impl Silent {
    fn new(path: std::path::PathBuf) -> Self {
        Self(std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
    }

    fn uri(&self, name: &str) -> String {
        format!("{}&timeout=10m&name={name}", unix("", &self.1))
    }
}

#[test]
fn a_disk_that_does_not_open_keeps_nobody_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let silent = Silent::new(dir.path().join("silent"));
    let yard = dir.path().join("yard.toml");
    let (socket, begin) = (dir.path().join("s"), "[[disk]]\nname = \"a\"\nuri = \"ram:1M\"\n");
    std::fs::write(&yard, format!("[nbd]\nlisten = \"unix:{}\"\n{begin}", socket.display()))
        .unwrap();
    let runtime = tempfile::TempDir::new().unwrap();
    let mut up = blockyard(&runtime.path().join("run"));
    up.args(["up", "-f"]).arg(&yard);
    let daemon = Daemon::start(up, runtime, 1);
    let stuck: Vec<_> = (0..STUCK)
        .map(|at| {
            let mut add = blockyard(&daemon.path("run"));
            add.args(["add", "--save", &silent.uri(&format!("stuck{at}"))]).stdin(Stdio::null());
            let add = Guard(add.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            // It is being opened now.
            (add, silent.0.accept().unwrap())
        })
        .collect();
    daemon.run(&["add", "ram:1M", "--name", "b", "--save"]).code(0);
    daemon.run(&["set", "b", "read_only=1", "--save"]).code(0);
    daemon.run(&["set", "a", "size=2M"]).code(0);
    daemon.run(&["remove", "b", "--save"]).code(0);
    daemon.run(&["add", "ram:1M", "--name", "c", "--save"]).code(0);
    let names: Vec<_> = daemon.report()["disks"].as_array().unwrap().clone();
    let names: Vec<_> = names.iter().map(|disk| disk["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "c"]);
    let saved = std::fs::read_to_string(&yard).unwrap();
    assert!(saved.contains("\"c\"") && !saved.contains("stuck"), "{saved}");
    // Who is hung up on hears of it.
    for (mut add, peer) in stuck {
        assert!(add.0.try_wait().unwrap().is_none(), "it did not wait");
        drop(peer);
        assert_eq!(add.0.wait().unwrap().code(), Some(1));
    }
    daemon.stop();
}
