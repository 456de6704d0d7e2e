//! Limits of disks: kept by whoever serves them, changed while they are used, shared by groups.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Daemon, blockyard};
use serde_json::{Value, json};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Operations per second of so many reads. A limit is the most that there may be; the least is a matter of the machine.
fn iops(daemon: &Daemon, export: &str, count: u32) -> f64 {
    let count = count.to_string();
    let args = ["bench", &daemon.uri(export), "--count", &count, "--depth", "8", "--json"];
    let report: Value = daemon.run(&args).code(0).json();
    report["iops"].as_f64().unwrap()
}

fn limits(daemon: &Daemon, name: &str) -> Value {
    let report = daemon.report();
    let disks = report["disks"].as_array().unwrap();
    disks.iter().find(|disk| disk["name"] == name).unwrap()["limits"].clone()
}

#[test]
fn a_limit_is_kept_and_changed_under_load_and_taken_away() {
    let daemon = Daemon::serve(&["ram:16M?name=a&iops=400", "ram:16M?name=b"]);
    assert_eq!(limits(&daemon, "a"), json!({ "iops": "400" }));
    assert_eq!(limits(&daemon, "b"), json!({}));
    daemon.run(&["list"]).code(0).contains(&["limits a: iops=400"]);
    let limited = iops(&daemon, "a", 400);
    assert!(limited < 440.0, "{limited}");
    // Who waits for what would take an hour goes on as soon as it need not.
    daemon.run(&["set", "a", "iops=none", "read_bps=1", "write_iops=10k:20k/5s"]).code(0);
    let mut waits = blockyard(&daemon.path("run"));
    waits.args(["bench", &daemon.uri("a"), "--count", "400", "--json"]).stdout(Stdio::null());
    let mut waits = waits.spawn().unwrap();
    let asks = |report: &Value| {
        let clients = report["nbd"]["clients"].as_array().unwrap().clone();
        clients.iter().any(|client| client["in_flight"].as_u64().unwrap() > 0)
    };
    let end = Instant::now() + PATIENCE;
    while !asks(&daemon.report()) {
        assert!(waits.try_wait().unwrap().is_none(), "it has ended");
        assert!(Instant::now() < end, "it asks for nothing");
        blockyard_conformance::pause();
    }
    assert_eq!(limits(&daemon, "a"), json!({ "read_bps": "1", "write_iops": "10000:20000/5s" }));
    assert!(waits.try_wait().unwrap().is_none());
    daemon.run(&["set", "a", "read_bps=none", "write_iops=none"]).code(0);
    assert!(waits.wait().unwrap().success());
    assert_eq!(limits(&daemon, "a"), json!({}));
    daemon.run(&["set", "b", "bps=4M"]).code(0);
    assert!(iops(&daemon, "b", 1024) < 1024.0 * 1.1);
}

#[test]
fn a_command_keeps_to_the_limits_of_its_disks() {
    let report: Value =
        common::run(&["bench", "ram:1M?iops=400", "--count", "200", "--json"]).code(0).json();
    let iops = report["iops"].as_f64().unwrap();
    // Whoever is let in by the tick of each second only has 20 of them in it.
    assert!(iops > 40.0 && iops < 480.0, "{iops}");
}

#[test]
fn disks_of_a_group_share_their_limits() {
    let one = "ram:16M?name=a&throttle_group=g&iops=400";
    let daemon = Daemon::serve(&[one, "ram:16M?name=b&throttle_group=g", "ram:1M?name=c"]);
    assert_eq!(limits(&daemon, "b"), json!({ "iops": "400" }));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let both = ["a", "b"].map(|name| scope.spawn(|| iops(&daemon, name, 400)));
        both.into_iter().for_each(|load| _ = load.join().unwrap());
    });
    let together = 800.0 / start.elapsed().as_secs_f64();
    assert!(together < 440.0, "{together}");
    daemon.run(&["set", "b", "iops=500"]).code(0);
    assert_eq!(limits(&daemon, "a"), json!({ "iops": "500" }));
    assert_eq!(limits(&daemon, "c"), json!({}));
}

#[test]
fn a_limit_that_cannot_be_says_what_can() {
    let daemon = Daemon::serve(&["ram:1M?name=a"]);
    for (setting, why) in [
        ("iops=0", "write none to remove it"),
        ("iops=-1", "operations per second"),
        ("bps=1X", "unknown unit"),
        ("iops=18446744073709551616", "operations per second"),
        ("iops=5:4/1s", "not above the rate"),
        ("iops=5:10", "PEAK/TIME"),
        ("io_size=9999999999", "use 0 to 1073741824"),
    ] {
        daemon.run(&["set", "a", setting]).code(64).contains(&[why]);
    }
    assert_eq!(limits(&daemon, "a"), json!({}));
    common::run(&["info", "ram:1M?iops=0"]).code(64).contains(&["write none to remove it"]);
}
