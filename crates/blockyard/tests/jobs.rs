//! Jobs of a daemon: what is under way is listed, can be waited for by events, and given up.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Daemon, nbdkit, nbdsh, unix};
use serde_json::{Value, json};

/// More than anything here waits for.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(daemon: &Daemon) -> UnixStream {
    let socket = daemon.path(&format!("run/{}.sock", daemon.pid()));
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The status of an answer, its head, and its body.
fn ask(
    daemon: &Daemon,
    method: &str,
    path: &str,
    headers: &str,
    body: &Value,
) -> (u16, String, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: b\r\nconnection: close\r\n{headers}\
         content-length: {length}\r\n\r\n{body}"
    );
    let mut stream = connect(daemon);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, _, value) = ask(daemon, "GET", path, "", &Value::Null);
    assert_eq!(status, 200, "{path}: {value}");
    value
}

/// Waits until a job has ended.
fn ended(daemon: &Daemon, id: &Value) -> Value {
    let begun = Instant::now();
    loop {
        let job = get(daemon, &format!("/v1/jobs/{id}"));
        if job["state"] != "running" {
            return job;
        }
        assert!(begun.elapsed() < PATIENCE, "{job}");
        blockyard_conformance::pause();
    }
}

/// The events of a daemon, from behind that one on.
struct Events(BufReader<UnixStream>);

impl Events {
    fn of(daemon: &Daemon, last: Option<&str>) -> Self {
        let last = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let mut stream = connect(daemon);
        write!(stream, "GET /v1/events HTTP/1.1\r\nhost: b\r\n{last}\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        Self(lines)
    }

    /// The next one, with its id.
    fn next(&mut self) -> (String, Value) {
        let (mut id, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream has ended");
            match line.trim_end().split_once(": ") {
                Some(("id", text)) => text.clone_into(&mut id),
                Some(("data", text)) => return (id, serde_json::from_str(text).unwrap()),
                _ => {}
            }
        }
    }
}

fn post(daemon: &Daemon, wanted: &Value) -> Value {
    let (status, head, job) = ask(daemon, "POST", "/v1/jobs", "", wanted);
    assert_eq!(status, 202, "{job}");
    assert!(head.to_lowercase().contains(&format!("location: /v1/jobs/{}", job["id"])), "{head}");
    job
}

#[test]
fn a_disk_is_copied_and_checked_while_it_is_served_and_the_events_say_when() {
    let daemon = Daemon::serve(&["ram:8M?name=a", "ram:16M?name=b", "ram:1M?name=small"]);
    nbdsh(&daemon.uri("a"), "h.pwrite(b'x' * 65536, 1 << 20)\n");
    let mut events = Events::of(&daemon, None);
    let job = post(&daemon, &json!({ "kind": "copy", "source": "a", "target": "b" }));
    assert_eq!(
        (&job["kind"], &job["subject"], &job["source"]),
        (&json!("copy"), &json!("b"), &json!("a"))
    );
    let (id, begun) = events.next();
    assert_eq!(begun, json!({ "event": "job_begun", "job": job["id"] }));
    drop(events);
    let job = ended(&daemon, &job["id"]);
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!((&job["done"], &job["total"]), (&json!(8 << 20), &json!(8 << 20)), "{job}");
    assert_eq!(job["result"]["copied"], 65536, "{job}");
    let (_, end) = Events::of(&daemon, Some(&id)).next();
    assert_eq!(end, json!({ "event": "job_ended", "job": job["id"] }));
    nbdsh(&daemon.uri("b"), "assert h.pread(65536, 1 << 20) == b'x' * 65536\n");
    let job = post(&daemon, &json!({ "kind": "check", "disk": "b" }));
    let job = ended(&daemon, &job["id"]);
    assert_eq!(
        (&job["state"], &job["result"]["unreadable"]),
        (&json!("done"), &json!([])),
        "{job}"
    );
    let job = post(&daemon, &json!({ "kind": "copy", "source": "a", "target": "small" }));
    let job = ended(&daemon, &job["id"]);
    assert_eq!(job["state"], "failed");
    assert!(job["problem"]["what"].as_str().unwrap().contains("missing"), "{job}");
    assert_eq!(get(&daemon, "/v1/jobs").as_array().unwrap().len(), 3);
    let forget = ask(&daemon, "DELETE", &format!("/v1/jobs/{}", job["id"]), "", &Value::Null);
    assert_eq!(forget.0, 204);
    assert_eq!(get(&daemon, "/v1/jobs").as_array().unwrap().len(), 2);
    daemon.stop();
}

#[test]
fn a_change_that_nobody_waits_for_is_a_job() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let later = "prefer: respond-async, wait=1\r\n";
    let (status, head, job) = ask(&daemon, "PATCH", "/v1/disks/a", later, &json!({ "size": "2M" }));
    assert_eq!(status, 202, "{job}");
    assert!(head.to_lowercase().contains("preference-applied: respond-async"), "{head}");
    let job = ended(&daemon, &job["id"]);
    assert_eq!((&job["state"], &job["kind"]), (&json!("done"), &json!("set_disk")), "{job}");
    let (_, _, job) = ask(&daemon, "PUT", "/v1/disks/a", later, &json!({ "uri": "ram:7M" }));
    let job = ended(&daemon, &job["id"]);
    assert_eq!(
        (&job["state"], &job["problem"]["kind"]),
        (&json!("failed"), &json!("busy")),
        "{job}"
    );
    // What somebody has waited for is not kept.
    daemon.run(&["set", "a", "size=3M"]).code(0);
    assert_eq!(get(&daemon, "/v1/jobs").as_array().unwrap().len(), 2);
}

#[test]
fn a_disk_that_does_not_open_is_listed_and_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("silent");
    let silent = UnixListener::bind(&path).unwrap();
    let uri = format!("{}&timeout=10m", unix("", &path));
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let later = "prefer: respond-async\r\n";
    let (_, _, job) = ask(&daemon, "PUT", "/v1/disks/stuck", later, &json!({ "uri": uri }));
    let _peer = silent.accept().unwrap();
    let listed = get(&daemon, "/v1/jobs");
    assert_eq!((&listed[0]["state"], &listed[0]["subject"]), (&json!("running"), &json!("stuck")));
    assert_eq!(listed[0]["cancellable"], true);
    let place = format!("/v1/jobs/{}", job["id"]);
    assert_eq!(ask(&daemon, "DELETE", &place, "", &Value::Null).0, 202);
    assert_eq!(ended(&daemon, &job["id"])["state"], "cancelled");
    // Its name is free again.
    let put = ask(&daemon, "PUT", "/v1/disks/stuck", "", &json!({ "uri": "ram:1M" }));
    assert_eq!(put.0, 201, "{}", put.2);
    let (_, _, job) = ask(&daemon, "PUT", "/v1/disks/other", later, &json!({ "uri": uri }));
    let _other = silent.accept().unwrap();
    assert_eq!(get(&daemon, &format!("/v1/jobs/{}", job["id"]))["state"], "running");
    // It keeps nobody from an end.
    daemon.stop();
}

/// What they keep would take days.
#[test]
fn a_job_that_is_given_up_does_not_wait_for_the_limits_of_its_disks() {
    let daemon = Daemon::serve(&["ram:1M?name=a", "ram:1M?name=b&bps=1"]);
    nbdsh(&daemon.uri("a"), "h.pwrite(b'x' * 65536, 0)\n");
    let copy = json!({ "kind": "copy", "source": "a", "target": "b" });
    for (wanted, read) in [(copy, 65536), (json!({ "kind": "check", "disk": "b" }), 0)] {
        let job = post(&daemon, &wanted);
        let begun = Instant::now();
        while get(&daemon, "/v1/disks/a")["bytes_read"].as_u64().unwrap() < read {
            assert!(begun.elapsed() < PATIENCE, "nothing is copied");
            blockyard_conformance::pause();
        }
        let place = format!("/v1/jobs/{}", job["id"]);
        assert_eq!(ask(&daemon, "DELETE", &place, "", &Value::Null).0, 202);
        // All that it had to do may have been under way.
        let job = ended(&daemon, &job["id"]);
        assert_ne!(job["state"], "failed", "{job}");
    }
    daemon.stop();
}

#[test]
fn a_copy_that_is_given_up_ends_soon_and_nobody_copies_to_its_disks_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("slow");
    // All of it is data, and takes hours.
    let _server = nbdkit(&path, &["--filter=delay", "pattern", "1T", "rdelay=100ms"]);
    let source = format!("{}&name=a", unix("", &path));
    let daemon = Daemon::serve(&[&source, "null:1T?name=b", "null:1T?name=c"]);
    let copy =
        |source: &str, target: &str| json!({ "kind": "copy", "source": source, "target": target });
    let job = post(&daemon, &copy("a", "b"));
    for (source, target) in [("a", "b"), ("c", "b"), ("b", "c"), ("c", "a")] {
        let (status, _, problem) = ask(&daemon, "POST", "/v1/jobs", "", &copy(source, target));
        assert_eq!((status, &problem["kind"]), (409, &json!("busy")), "{source} {target}");
        assert!(problem["what"].as_str().unwrap().contains("\"b\" is under way"), "{problem}");
    }
    let place = format!("/v1/jobs/{}", job["id"]);
    let (status, _, dismissed) = ask(&daemon, "DELETE", &place, "", &Value::Null);
    assert_eq!(status, 202, "{dismissed}");
    let job = ended(&daemon, &job["id"]);
    assert_eq!(job["state"], "cancelled", "{job}");
    assert!(job["done"].as_u64().unwrap() < job["total"].as_u64().unwrap(), "{job}");
    let job = post(&daemon, &copy("c", "b"));
    assert_eq!(ended(&daemon, &job["id"])["state"], "done");
    daemon.stop();
}

/// Each has a connection, for as long as its server says nothing.
#[test]
fn changes_that_are_stuck_leave_room_for_those_who_ask_and_cancel() {
    const CONNECTIONS: usize = 128;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("silent");
    let _silent = UnixListener::bind(&path).unwrap();
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    let body = json!({ "uri": format!("{}&timeout=10m", unix("", &path)) }).to_string();
    let add = |index| {
        let mut stream = connect(&daemon);
        let head =
            format!("PUT /v1/disks/stuck{index} HTTP/1.1\r\nhost: b\r\nconnection: close\r\n");
        let length = body.len();
        write!(stream, "{head}content-length: {length}\r\n\r\n{body}").unwrap();
        stream
    };
    let _stuck: Vec<_> = (0..CONNECTIONS).map(add).collect();
    let begun = Instant::now();
    let running = loop {
        let running = get(&daemon, "/v1/jobs");
        if running.as_array().unwrap().len() == CONNECTIONS / 4 {
            break running;
        }
        assert!(begun.elapsed() < PATIENCE, "{running}");
        blockyard_conformance::pause();
    };
    let body = json!({ "uri": "ram:1M" });
    let (status, _, problem) = ask(&daemon, "PUT", "/v1/disks/more", "", &body);
    assert_eq!(status, 503, "{problem}");
    assert!(problem["remedy"].as_str().unwrap().contains("GET /v1/jobs"), "{problem}");
    let place = format!("/v1/jobs/{}", running[0]["id"]);
    assert_eq!(ask(&daemon, "DELETE", &place, "", &Value::Null).0, 202);
    daemon.stop();
}
