//! Clusters come up beside each other, survive what tests do to them, and leave nothing behind.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_lab::ceph::{Auth, Cluster, Mode, Options, POLL_LIMIT};
use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;
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

/// No waiting brings back a daemon that has ended: what it said is told at once.
#[test]
fn a_daemon_that_ends_by_itself_says_why() {
    let programs = tempfile::tempdir().unwrap();
    let system = Options::default().programs.unwrap_or_else(|| "/usr/bin".into());
    for name in ["ceph", "ceph-authtool", "monmaptool", "ceph-mon", "ceph-mgr"] {
        symlink(system.join(name), programs.path().join(name)).unwrap();
    }
    let osd = programs.path().join("ceph-osd");
    let real = system.join("ceph-osd");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--mkfs*) exec {} \"$@\";; esac\necho first\necho no luck today >&2\nexit 3\n",
        real.display()
    );
    fs::write(&osd, script).unwrap();
    fs::set_permissions(&osd, Permissions::from_mode(0o755)).unwrap();
    let programs = Some(programs.path().to_owned());
    let begun = Instant::now();
    let options = Options { osds: 1, replicas: 1, programs, ..Options::default() };
    let error = format!("{:#}", Cluster::start(&options).unwrap_err());
    assert!(error.contains("osd.0 ended by itself: exit status: 3"), "{error}");
    assert!(error.contains("first\nno luck today"), "{error}");
    assert!(begun.elapsed() < POLL_LIMIT, "it was waited for");
}
