//! `attach`, `detach` and `recover` where the kernel has neither ublk nor NBD, or nothing is attached. What they do
//! with a kernel that has both: `vm_attach.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{Said, blockyard, run};
use tempfile::TempDir;

/// Whether this machine's kernel could attach; the tests do not attach anything to it.
fn has(path: &str) -> bool {
    std::path::Path::new(path).exists()
}

#[test]
fn a_kernel_without_drivers_is_told_with_what_to_do() {
    let (ublk, nbd) = (has("/dev/ublk-control"), has("/dev/nbd0"));
    if !ublk {
        run(&["attach", "ram:1M", "--via", "ublk"])
            .code(69)
            .contains(&["modprobe ublk_drv", "cannot attach ram:1M"]);
    }
    if !nbd {
        for via in ["nbd", "nbd-ioctl"] {
            run(&["attach", "ram:1M", "--via", via]).code(69).contains(&["modprobe nbd"]);
        }
    }
    if !ublk && !nbd {
        run(&["attach", "ram:1M"]).code(69).contains(&[
            "modprobe ublk_drv",
            "modprobe nbd",
            "blockyard serve",
        ]);
        run(&["attach", "ram:1M", "--foreground"]).code(69).contains(&["modprobe ublk_drv"]);
    }
}

#[test]
fn mistakes_are_told_before_anything_is_started() {
    run(&["attach", "ram:1GB"]).code(64).contains(&["write G or GiB"]);
    run(&["attach", "ram:1M", "--via", "loop"]).code(64).contains(&["ublk", "nbd-ioctl"]);
    run(&["attach"]).code(64);
    run(&["detach"]).code(64).contains(&["DEVICE|URI"]);
    run(&["detach", "/dev/sda"]).code(64).contains(&["/dev/ublkb0", "blockyard list"]);
    run(&["recover", "/dev/nbd0p1"]).code(64).contains(&["/dev/nbd0"]);
    run(&["attach", "ram:1M", "--number", "4294967295"]).code(64).contains(&["1048575"]);
    let fenced = ["attach", "nbd://localhost/x", "--via", "nbd", "--timeout", "3"];
    let fenced = [&fenced[..], &["--dead-conn-timeout", "57"]].concat();
    run(&fenced).code(64).contains(&[
        "fence_timeout",
        "--kernel-timeout",
        "--kernel-dead-conn-timeout",
    ]);
}

#[test]
fn a_record_of_another_version_is_told_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let records = dir.path().join("attached");
    std::fs::create_dir(&records).unwrap();
    let record = records.join("nbd5.json");
    std::fs::write(&record, "{\"version\": 99}").unwrap();
    let run = |args: &[&str]| Said::of(&blockyard(dir.path()).args(args).output().unwrap());
    run(&["list"]).code(0).contains(&["/dev/nbd5 is in use", "version 99"]);
    let listed = run(&["list", "--json"]).code(0).json();
    assert_eq!(listed[0]["not_understood"]["device"], "/dev/nbd5");
    run(&["detach", "/dev/nbd5", "--force"]).code(1).contains(&["version 99"]);
    run(&["recover", "/dev/nbd5"]).code(1).contains(&["version 99"]);
    run(&["detach", "--all", "--force"]).code(0);
    run(&["recover"]).code(0).contains(&["nothing to recover"]);
    assert!(record.exists());
}
