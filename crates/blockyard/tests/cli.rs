//! The command line: what it prints, what it says when something is wrong, and its exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Daemon, Said, blockyard, run};
use tempfile::TempDir;

#[test]
fn usage_errors_exit_64_and_help_0() {
    run(&["--help"]).code(0).contains(&["serve", "nbd://host/export", "Exit codes"]);
    run(&["--version"]).code(0).contains(&["blockyard"]);
    for args in [&["frobnicate"][..], &["serve"], &["bench", "ram:1G", "--rwmixread", "101"], &[]] {
        run(args).code(64);
    }
    run(&["serv"]).code(64).contains(&["serve"]);
}

#[test]
fn a_bad_uri_says_what_where_and_what_to_do() {
    for (uri, parts) in [
        ("ram:1GB", &["at \"1GB\" (column 5)", "write G or GiB"][..]),
        ("rma:1G", &["did you mean \"ram\"?"]),
        ("disk.img", &["no scheme", "./disk.img"]),
        ("ram:1G?szie=4", &["did you mean \"size\"?"]),
        ("nbd:///x", &["needs a host"]),
    ] {
        run(&["info", uri]).code(64).contains(parts);
        run(&["serve", uri, "--nbd", "unix:s"]).code(64).contains(parts);
        run(&["bench", uri]).code(64).contains(parts);
    }
    run(&["serve", "ram:1M", "--nbd", "s"]).code(64).contains(&["unix:/path", "tcp:host:port"]);
    run(&["serve", "ram:1M"]).code(64).contains(&["--nbd unix:"]);
    run(&["serve", "ram:1M", "--nbd", "unix:s", "--nbd", "unix:s"])
        .code(64)
        .contains(&["--nbd unix:s is given twice"]);
    let dir = TempDir::new().unwrap();
    let output = blockyard(dir.path()).env("BLOCKYARD_LOG", "verbose").arg("list").output();
    Said::of(&output.unwrap()).code(64).contains(&["BLOCKYARD_LOG", "\"verbose\"", "TARGET=LEVEL"]);
    run(&["serve", "ram:1M?name=a", "ram:1M?name=a", "--nbd", "unix:s"])
        .code(64)
        .contains(&["two disks are named"]);
    run(&["serve", "ram:1M", "--nbd", "unix:s", "--tls", "require"])
        .code(64)
        .contains(&["--tls-certificate"]);
}

#[test]
fn a_file_that_cannot_be_a_disk_says_why() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, len: u64| {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let missing = dir.path().join("missing").to_str().unwrap().to_owned();
    run(&["info", &missing]).code(1).contains(&["does not exist", "truncate"]);
    let odd = file("odd", 1000);
    run(&["info", &odd]).code(1).contains(&["1000 bytes", "truncate -s 1024"]);
    let empty = file("empty", 0);
    run(&["info", &empty]).code(1).contains(&["is empty"]);
    let small = file("small", 4096);
    run(&["info", &format!("file:{small}?size=1M")])
        .code(1)
        .contains(&["less than the size", "truncate -s 1048576"]);
    run(&["info", dir.path().to_str().unwrap()]).code(1).contains(&["a directory"]);
    run(&["info", &format!("file:{missing}?create=4K")]).code(1).contains(&["does not exist"]);
    assert!(!std::path::Path::new(&missing).exists(), "looking makes nothing");
}

#[test]
fn a_file_has_one_writer() {
    let daemon = Daemon::serve(&["file:disk.img?create=1M"]);
    let path = daemon.path("disk.img").to_str().unwrap().to_owned();
    let said =
        daemon.run(&["serve", &path, "--nbd", &format!("unix:{}", daemon.path("t").display())]);
    said.code(75).contains(&["in use by a writer", "fuser"]);
    daemon.run(&["info", &path]).code(0);
}

#[test]
fn a_full_disk_is_an_error_of_the_write_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let mount = dir.path().join("tmpfs");
    std::fs::create_dir(&mount).unwrap();
    common::peer("mount", &["-t", "tmpfs", "-o", "size=4M", "tmpfs", mount.to_str().unwrap()]);
    let unmount = common::Cleanup::with(&["umount", mount.to_str().unwrap()]);
    let daemon = Daemon::serve(&[format!("file:{}/disk.img?create=64M", mount.display())]);
    let script = "import errno\n\
        h.pwrite(b'a' * 1048576, 0)\nh.flush()\n\
        try:\n  [h.pwrite(b'b' * 1048576, i << 20) for i in range(1, 8)]\n  raise SystemExit('written')\n\
        except nbd.Error as e:\n  assert e.errnum == errno.ENOSPC, e.errnum\n\
        assert h.pread(1048576, 0) == b'a' * 1048576";
    common::nbdsh(&daemon.uri(""), script);
    daemon.stop();
    unmount.now();
}

#[test]
fn info_tells_what_a_disk_is() {
    run(&["info", "ram:4M?block=4096"]).code(0).contains(&[
        "4 MiB (4194304 bytes)",
        "4096 logical",
        "trim",
    ]);
    let info = run(&["info", "ram:4M", "--json"]).code(0).json();
    assert_eq!((&info["kind"], &info["size"]), (&"disk".into(), &4_194_304.into()));
    assert_eq!(info["map"]["hole"], 4_194_304);
    run(&["info", "ram:4M", "--size"]).code(0).contains(&["4194304"]);
    run(&["info", "ram:4M", "--can", "trim"]).code(0);
    run(&["info", "ram:4M?ro=1", "--can", "trim"]).code(2);
    run(&["info", "ram:4M?ro=1", "--is", "read-only"]).code(0);
    run(&["info", "ram:4M", "--can", "trmi"]).code(64).contains(&["did you mean \"trim\"?"]);
    let daemon = Daemon::serve(&["ram:4M", "--description", "four"]);
    let info = daemon.run(&["info", &daemon.uri(""), "--json"]).code(0).json();
    assert_eq!((&info["kind"], &info["export"]), (&"nbd".into(), &"ram0".into()));
    assert_eq!((&info["description"], &info["style"]), (&"four".into(), &"extended".into()));
    assert_eq!(info["block_size"]["minimum"], 512);
    assert_eq!(info["contexts"][0], "base:allocation");
    let gone = format!("nbd+unix:///?socket={}/none", daemon.dir().display());
    run(&["info", &gone]).code(1).contains(&["is the server running?"]);
}

#[test]
fn info_shows_partitions() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let script = format!(
        "printf 'label: gpt\\nsize=4096, name=boot\\nsize=8192\\n' | sfdisk -q {}",
        path.display()
    );
    common::peer("sh", &["-c", &script]);
    run(&["info", path.to_str().unwrap()]).code(0).contains(&[
        "partitions",
        "boot",
        "2 MiB",
        "4 MiB",
    ]);
    let info = run(&["info", path.to_str().unwrap(), "--json"]).json();
    assert_eq!(info["partitions"][0]["size"], 4096 * 512);
}

#[test]
fn bench_measures_disks_and_servers() {
    let daemon = Daemon::serve(&["ram:8M", "ram:8M?ro=1"]);
    let remote = daemon.uri("ram0");
    for uri in ["ram:8M", "null:8M?latency=10us", &remote] {
        for rw in ["read", "write", "randread", "randwrite", "rw", "randrw"] {
            let args = [
                "bench", uri, "--rw", rw, "--count", "1000", "--queues", "2", "--depth", "8",
                "--json",
            ];
            let report = run(&args).code(0).json();
            assert_eq!(
                (&report["ops"], &report["errors"]),
                (&1000.into(), &0.into()),
                "{uri} {rw}"
            );
            for field in ["iops", "bytes_per_second", "client_cpu_ns_per_op"] {
                assert!(report[field].as_f64().unwrap() > 0.0, "{field}");
            }
            for field in ["p50", "p99", "p999", "max", "mean"] {
                assert!(report["lat_ns"][field].as_f64().unwrap() > 0.0, "{field}");
            }
        }
    }
    run(&["bench", "ram:8M", "--time", "10ms"]).code(0).contains(&["IOPS", "p99.9"]);
    run(&["bench", &remote, "--bs", "1m", "--rw", "rw", "--count", "100", "--depth", "8"]).code(0);
    run(&["bench", "ram:8M", "--bs", "100"]).code(64).contains(&["no multiple"]);
    run(&["bench", "ram:8M", "--bs", "16M"]).code(64).contains(&["make --bs smaller"]);
    run(&["bench", "ram:8M", "--size", "9M"]).code(64).contains(&["--size or --offset"]);
    run(&["bench", "ram:8M?ro=1", "--rw", "write", "--count", "1"]).code(77);
    run(&["bench", &daemon.uri("ram1"), "--rw", "write", "--count", "1"]).code(77);
}

#[test]
fn completions_and_man_pages_are_made() {
    for shell in ["bash", "zsh", "fish"] {
        run(&["completions", shell]).code(0).contains(&["serve", "blockyard"]);
    }
    run(&["man"]).code(0).contains(&[".TH blockyard"]);
    let dir = TempDir::new().unwrap();
    let output =
        blockyard(dir.path()).args(["man", "pages"]).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success());
    for page in ["blockyard.1", "blockyard-serve.1", "blockyard-bench.1"] {
        assert!(dir.path().join("pages").join(page).exists(), "{page}");
    }
    let deeper = dir.path().join("no/pages");
    run(&["man", deeper.to_str().unwrap()]).code(1).contains(&["parent directory"]);
    assert!(!dir.path().join("no").exists());
}

#[test]
fn list_of_nothing_says_what_to_do() {
    run(&["list"]).code(0).contains(&[
        "no daemon of this user runs in",
        "those of other users",
        "blockyard serve",
    ]);
    run(&["list", "ram:1G"]).code(64).contains(&["not a server"]);
}
