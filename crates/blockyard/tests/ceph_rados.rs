//! `blockyard rados` on a real cluster, beside Ceph's own tool; and files of images that go to one and come from it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "image/cluster.rs"]
mod images;
#[path = "image/served.rs"]
mod served;

use blockyard_lab::ceph::{Cluster, Options};
use common::{Said, run, system};

struct Yard {
    lab: Cluster,
}

impl Yard {
    fn rados(&self, args: &[&str]) -> Said {
        let conf = self.lab.conf();
        run(&[&["rados", "-c", conf.to_str().unwrap(), "-p", "yard"], args].concat())
    }

    fn tool(&self, args: &[&str]) -> String {
        self.lab.run(self.lab.tool("rados").args(["-p", "yard"]).args(args)).unwrap()
    }
}

#[test]
fn objects_of_a_cluster() {
    let lab = Cluster::start(&Options::default()).unwrap();
    lab.create_pool("yard", 8).unwrap();
    let yard = Yard { lab };
    served::images_are_served(&yard.lab);
    images::images_go_to_and_fro(&yard.lab);
    files_come_and_go(&yard);
    names_are_bytes(&yard);
    lists_and_places(&yard);
    load(&yard);
    what_goes_wrong_says_why(&yard);
    a_clock_may_be_off_by_an_hour(&yard);
}

/// Tickets last as long as they are said to, by whatever clock.
fn a_clock_may_be_off_by_an_hour(yard: &Yard) {
    for clock in ["+1h", "-1h"] {
        let conf = yard.lab.conf();
        let mut command = system("faketime");
        command.args(["-f", clock, env!("CARGO_BIN_EXE_blockyard"), "rados", "-c"]).arg(conf);
        Said::of(&command.args(["-p", "yard", "stat", "a"]).output().unwrap())
            .code(0)
            .contains(&["a", "0 B"]);
    }
}

fn files_come_and_go(yard: &Yard) {
    let path = |name: &str| yard.lab.dir().join(name).to_str().unwrap().to_owned();
    let data: Vec<u8> = (0..2_500_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(path("in"), &data).unwrap();
    yard.rados(&["put", "big", &path("in")]).code(0);
    yard.tool(&["get", "big", &path("theirs")]);
    assert!(std::fs::read(path("theirs")).unwrap() == data, "three pieces, in order");
    yard.rados(&["get", "big", &path("ours")]).code(0);
    assert!(std::fs::read(path("ours")).unwrap() == data);
    std::fs::write(path("small"), "text").unwrap();
    yard.rados(&["put", "big", &path("small")]).code(0);
    assert_eq!(yard.rados(&["get", "big"]).code(0).out, "text", "it replaces what was there");
    yard.rados(&["-N", "space", "put", "small", &path("small")]).code(0);
    assert_eq!(yard.tool(&["-N", "space", "get", "small", "-"]), "text");
    yard.rados(&["stat", "big"]).code(0).contains(&["big", "4 B"]);
    assert_eq!(yard.rados(&["--json", "stat", "big"]).code(0).json()[0]["size"], 4);
    yard.rados(&["rm", "big"]).code(0);
    let said = yard.rados(&["stat", "big"]);
    said.code(1).contains(&["no such object", "\"big\"", "stat"]);
    said.contains(&["list objects: blockyard rados --pool POOL ls"]);
    yard.rados(&["ls"]).code(0);
    run(&["rados", "ls"]).code(64).contains(&["list pools: ceph osd pool ls"]);
    let pools = yard.lab.run(yard.lab.tool("ceph").args(["osd", "pool", "ls"])).unwrap();
    assert!(pools.contains("yard"), "{pools}");
}

/// Names are bytes: those that are no text are listed escaped, and taken as they are.
fn names_are_bytes(yard: &Yard) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let odd = OsStr::from_bytes(b"odd\xff\x1b[31m");
    let file = yard.lab.dir().join("odd");
    std::fs::write(&file, "odd").unwrap();
    let mut tool = yard.lab.tool("rados");
    yard.lab.run(tool.args(["-p", "yard", "put"]).arg(odd).arg(&file)).unwrap();
    let listed = yard.rados(&["ls"]).code(0).out.clone();
    assert!(listed.contains(r"odd\xff\x1b[31m"), "{listed}");
    let with = |command: &str| {
        let mut ours = system(env!("CARGO_BIN_EXE_blockyard"));
        ours.args(["rados", "-c"]).arg(yard.lab.conf()).args(["-p", "yard", command]).arg(odd);
        Said::of(&ours.output().unwrap())
    };
    assert_eq!(with("get").code(0).out, "odd");
    with("stat").code(0).contains(&[r"odd\xff", "3 B"]);
    with("map").code(0).contains(&[r"odd\xff"]);
    with("rm").code(0);
    with("rm").code(1).contains(&[r"odd\xff", "no such object"]);
}

fn lists_and_places(yard: &Yard) {
    for name in ["a", "b", "c"] {
        yard.tool(&["create", name]);
    }
    let mut lines: Vec<_> = yard.rados(&["ls"]).code(0).out.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["a", "b", "c"]);
    assert_eq!(yard.rados(&["ls", "--all", "--json"]).code(0).json().as_array().unwrap().len(), 4);
    let theirs = yard.lab.ceph_json(&["osd", "map", "yard", "a"]).unwrap();
    let ours = yard.rados(&["map", "a", "--json"]).code(0).json();
    assert_eq!(ours[0], theirs, "all keys, and their values");
    yard.rados(&["map", "a"]).code(0).contains(&["PRIMARY", theirs["pgid"].as_str().unwrap()]);
}

fn load(yard: &Yard) {
    for rw in ["read", "write"] {
        let args = ["--json", "bench", rw, "--bs", "4k", "--depth", "8", "--time", "200ms"];
        let report = yard.rados(&args).code(0).json();
        assert!(report["ops"].as_u64().unwrap() > 0 && report["errors"] == 0, "{report}");
    }
    yard.rados(&["bench", "write", "--time", "100ms"]).code(0).contains(&["IOPS", "p99"]);
    assert!(!yard.tool(&["ls"]).contains("bench"), "nothing is left");
    objects_are_left_to_a_later_run(yard);
}

fn objects_are_left_to_a_later_run(yard: &Yard) {
    let bench = |rw, flags: &[&str]| {
        let args = ["--json", "bench", rw, "--bs", "4k", "--objects", "3", "--time", "100ms"];
        yard.rados(&[&args[..], &["--run-name", "left"], flags].concat())
    };
    let left = || yard.tool(&["ls"]).lines().filter(|name| name.starts_with("left.")).count();
    let missing = bench("read", &["--no-prepare", "--no-cleanup"]).code(1).json();
    assert!(missing["ops"] == 0 && missing["first_error"].as_str().unwrap().contains("left."));
    bench("write", &["--no-cleanup"]).code(0);
    assert_eq!(left(), 3);
    bench("read", &["--no-prepare", "--no-cleanup"]).code(0);
    assert_eq!(left(), 3);
    bench("read", &["--no-prepare"]).code(0);
    assert_eq!(left(), 0);
    yard.rados(&["bench", "read", "--no-cleanup"]).code(64).contains(&["--run-name"]);
}

fn what_goes_wrong_says_why(yard: &Yard) {
    let conf = yard.lab.conf();
    let conf = conf.to_str().unwrap();
    run(&["rados", "-c", conf, "ls"]).code(64).contains(&["--pool"]);
    run(&["rados", "-c", conf, "-p", "none", "ls"]).code(64).contains(&["no pool", "none"]);
    run(&["rados", "-c", "/nowhere", "-p", "yard", "ls"]).code(64).contains(&["/nowhere"]);
    yard.rados(&["put", "x", "/no/such/file"]).code(1).contains(&["/no/such/file"]);
    yard.rados(&["bench", "read", "--bs", "1T"]).code(64).contains(&["--bs"]);
    yard.rados(&["--timeout", "soon", "ls"]).code(64).contains(&["--timeout"]);
    let strange = yard.lab.dir().join("strange");
    let text = "[client.admin]\nkey = AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==\n";
    std::fs::write(&strange, text).unwrap();
    yard.rados(&["-k", strange.to_str().unwrap(), "ls"])
        .code(77)
        .contains(&["client.admin", "key"]);
    let closed = "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3";
    yard.rados(&["--timeout", "2s", "-m", closed, "ls"]).code(1).contains(&[
        "127.0.0.1:1",
        "127.0.0.1:2",
        "127.0.0.1:3",
        "refused",
        "mon host",
    ]);
    keyrings_that_do_not_suit(yard);
}

fn keyrings_that_do_not_suit(yard: &Yard) {
    let path = |name: &str| yard.lab.dir().join(name).to_str().unwrap().to_owned();
    yard.rados(&["-k", &path("absent"), "ls"]).code(64).contains(&["no keyring", "absent"]);
    yard.rados(&["-k", &path(""), "ls"]).code(64).contains(&["is a directory"]);
    let other = "[client.other]\nkey = AQCz4gJrSu1bCxAAvZrvs1ZNw6jjMqeNBdBPUA==\n";
    std::fs::write(path("other"), other).unwrap();
    yard.rados(&["-k", &path("other"), "ls"]).code(64).contains(&[
        "client.admin",
        "client.other",
        "--id",
    ]);
}
