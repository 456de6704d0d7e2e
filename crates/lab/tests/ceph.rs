//! Clusters come up beside each other, survive what tests do to them, and leave nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_lab::ceph::{Auth, Cluster, Mode, Options};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{fs, thread};

fn put_and_get(cluster: &Cluster, text: &str) {
    let file = cluster.dir().join("in");
    fs::write(&file, text).unwrap();
    cluster.run(cluster.tool("rados").args(["-p", "p", "put", "object"]).arg(file)).unwrap();
    let back = cluster.run(cluster.tool("rados").args(["-p", "p", "get", "object", "-"])).unwrap();
    assert_eq!(back, text);
}

#[test]
fn two_clusters_of_different_kinds_run_side_by_side() {
    let open =
        Options { osds: 1, replicas: 1, auth: Auth::None, mode: Mode::Crc, ..Options::default() };
    let other = thread::spawn(move || {
        let cluster = Cluster::start(&open).unwrap();
        cluster.create_pool("p", 1).unwrap();
        put_and_get(&cluster, "not encrypted");
    });
    let cluster = Cluster::start(&Options { mode: Mode::Secure, ..Options::default() }).unwrap();
    cluster.create_pool("p", 8).unwrap();
    put_and_get(&cluster, "encrypted");
    cluster.kill("osd.0").unwrap();
    cluster.wait_osds_up(2).unwrap();
    put_and_get(&cluster, "by those that are left");
    cluster.start_daemon("osd.0").unwrap();
    cluster.wait_osds_up(3).unwrap();
    cluster.wait_clean().unwrap();
    cluster.stop("osd.1").unwrap();
    cluster.wait_osds_up(2).unwrap();
    cluster.start_daemon("osd.1").unwrap();
    cluster.stop("mon.a").unwrap();
    cluster.start_daemon("mon.a").unwrap();
    cluster.wait_clean().unwrap();
    put_and_get(&cluster, "by all of them");
    other.join().unwrap();
}

#[test]
fn a_panic_ends_the_daemons_and_takes_their_files() {
    let mut dir = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let options = Options { osds: 1, replicas: 1, ..Options::default() };
        let cluster = Cluster::start(&options).unwrap();
        dir = Some(cluster.dir().to_owned());
        panic!("on purpose");
    }));
    assert!(outcome.is_err());
    let dir = dir.unwrap();
    assert!(!dir.exists());
    let still_there = |line: &str| line.contains(dir.to_str().unwrap());
    for process in fs::read_dir("/proc").unwrap() {
        let words = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        assert!(!still_there(&String::from_utf8_lossy(&words)));
    }
}
