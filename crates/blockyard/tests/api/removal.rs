//! Removing what a disk has not done with.

use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bystanders::{Holding, Nbd, wait_until};
use crate::common::{Daemon, blockyard, nbdkit, unix};
use crate::{ask, document};

const YARD: &str = "[threads]\ncount = 1\nshutdown_grace = \"1s\"\n\n[nbd]\nlisten = \"unix:s\"\n\n\
                    [[disk]]\nname = \"memory\"\nuri = \"ram:1M\"\n";

/// The export is gone at once. Who asks again, as he has not heard that, or wants to know when the disk is free, is told.
#[test]
fn an_export_whose_disk_does_not_answer_is_removed_all_the_same() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("yard.toml"), YARD).unwrap();
    let mut up = blockyard(&dir.path().join("run"));
    up.args(["up", "-f", "yard.toml"]);
    let daemon = Daemon::start(up, dir, 1);
    let far = daemon.path("far");
    let server = nbdkit(&far, &["memory", "8M"]);
    let holding = Holding::new(server.0.id());
    let done = |method: &str, path: &str, body: Option<&Value>| {
        let (status, answer) = ask(&daemon, method, path, body);
        assert!(status < 300, "{method} {path}: {status} {answer}");
        (status, answer)
    };
    let uri = format!("{}&timeout=10m", unix("", &far));
    done("PUT", "/v1/disks/hung", Some(&json!({ "uri": uri })));
    let exports = ["one", "two"];
    let path = |export: &str| format!("/v1/exports/nbd/{export}");
    let mut clients = exports.map(|export| {
        done("PUT", &path(export), Some(&json!({ "disk": "hung" })));
        Nbd::connect(&daemon.path("s"), export)
    });
    holding.hold();
    clients.iter_mut().for_each(|client| client.send(0, 4 << 20, 4096));
    wait_until("not all are in flight", || {
        ask(&daemon, "GET", "/v1/disks/hung", None).1["in_flight"] == 2
    });
    let described = ask(&daemon, "GET", "/v1/openapi.json", None).1;
    for _ in 0..2 {
        let (status, left) = done("DELETE", &path("one"), None);
        assert_eq!((status, &left), (200, &json!({ "in_flight": 1 })));
        let schema = &described["components"]["schemas"]["RemovedExport"];
        document::check(&described, schema, &left, "the answer").unwrap();
        assert_eq!(ask(&daemon, "GET", &path("one"), None).0, 404);
    }
    // Another export of the disk: the command says what is left of it, and goes on with the disk.
    let mut remove = blockyard(&daemon.path("run"));
    let mut removing = remove.args(["remove", "hung"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the disk is not removed", || {
        let jobs = ask(&daemon, "GET", "/v1/jobs", None).1;
        let is_begun = jobs.as_array().unwrap().iter().any(|job| job["kind"] == "remove_disk");
        is_begun || removing.try_wait().unwrap().is_some()
    });
    holding.release();
    let said = String::from_utf8(removing.wait_with_output().unwrap().stderr).unwrap();
    let expected = "removed export two; 1 request of its clients still in flight at the disk";
    assert!(said.contains(expected), "{said}");
    wait_until("the disk stays", || ask(&daemon, "GET", "/v1/disks/hung", None).0 == 404);
    assert_eq!(ask(&daemon, "DELETE", &path("one"), None).0, 404, "its disk is gone");
    daemon.stop();
}
