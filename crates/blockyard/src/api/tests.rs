use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::client::{self, Ask};
use super::*;
use crate::yard::Yard;
use crate::yard::plan::NbdPlan;

#[test]
fn a_socket_is_named_for_its_process() {
    assert_eq!(socket_name(7, 0), "7.sock");
    for index in [0, 1, MAX_SAME_PID] {
        assert_eq!(pid_of_socket(&socket_name(7, index)), Some(7));
    }
    for other in ["7.sock.0a1b2c3d", "x.sock", "7", ".sock", "attached"] {
        assert_eq!(pid_of_socket(other), None, "{other}");
    }
}

/// As two containers that share a runtime directory may have them.
#[tokio::test]
async fn of_daemons_with_the_same_number_the_one_that_is_meant_is_asked_to_detach() {
    let dir = tempfile::tempdir().unwrap();
    let start = |device: &str, mark| {
        let (ask, mut asked) = mpsc::channel::<Reply>(1);
        let detached = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&detached);
        tokio::spawn(async move {
            while let Some(reply) = asked.recv().await {
                count.fetch_add(1, Ordering::Relaxed);
                reply.send(Ok(())).unwrap();
            }
        });
        let device = DeviceReport {
            path: format!("/dev/{device}"),
            via: "nbd".into(),
            uri: "ram:1M".into(),
            recoverable: false,
            mark: DeviceReport::told_mark(mark),
        };
        let attached = Attached { device, detach: ask };
        let yard = Yard::start(1, &NbdPlan::default()).unwrap();
        let server = Server::bind_in(dir.path(), 7, yard, Some(attached)).unwrap();
        tokio::spawn(server.serve());
        detached
    };
    let (first, second) = (start("nbd0", 1), start("nbd1", 2));
    assert!(dir.path().join("7.sock").exists() && dir.path().join("7-1.sock").exists());
    let detach = async |device: &str, mark: u64| {
        let mark = DeviceReport::told_mark(mark);
        let question = Ask::delete(format!("/v1/devices/{device}?mark={mark}"));
        let path = dir.path().to_owned();
        let ask = move || client::ask_one_in(&path, 7, &question);
        tokio::task::spawn_blocking(ask).await.unwrap().unwrap().unwrap()
    };
    let counts = || (first.load(Ordering::Relaxed), second.load(Ordering::Relaxed));
    detach("nbd1", 2).await.accepted().unwrap();
    assert_eq!(counts(), (0, 1));
    detach("nbd0", 1).await.accepted().unwrap();
    assert_eq!(counts(), (1, 1));
    // One of that name, or of that mark, is not enough.
    for (device, mark) in [("nbd1", 1), ("nbd2", 2)] {
        assert!(detach(device, mark).await.is_not_found(), "{device}");
    }
    assert_eq!(counts(), (1, 1));
    // What serves a disk of the kernel is not taken apart.
    let question = Ask::put("/v1/disks/a", serde_json::json!({ "uri": "ram:1M" }));
    let socket = dir.path().join("7.sock");
    let put = tokio::task::spawn_blocking(move || client::ask_at(&socket, &question));
    let refused = put.await.unwrap().unwrap().unwrap().accepted().unwrap_err();
    assert!(refused.to_string().contains("only /dev/nbd0"), "{refused}");
}

/// Each has one of the connections that there are.
#[tokio::test]
async fn who_names_a_body_and_sends_none_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let yard = Yard::start(1, &NbdPlan::default()).unwrap();
    let server = Server::bind_in(dir.path(), 7, Arc::clone(&yard), None).unwrap();
    tokio::spawn(server.serve());
    let socket = dir.path().join("7.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let head = b"PUT /v1/disks/a HTTP/1.1\r\nhost: b\r\ncontent-length: 9\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(std::time::Duration::from_secs(60), read).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(yard.report().disks.is_empty());
}
