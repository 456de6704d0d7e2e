//! The virtual machine itself: a guest boots, talks, ends, and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use blockyard_lab::vm::Vm;
use std::path::Path;
use std::time::Duration;

#[test]
fn a_guest_runs_its_script_talks_and_ends() {
    let mut guest = Vm::new()
        .module("nbd")
        .module("ext4")
        .program("mkfs.ext4")
        .file("/etc/greeting", Path::new("/etc/hostname"))
        .script(
            "set -e\necho hello from $(uname -s)\ntest -b /dev/nbd0\ncat /etc/greeting\nmkfs.ext4 -V\n\
             grep ext4 /proc/filesystems\ntest $(host 'two and two?') = 4\necho the end\nexit 3\n",
        )
        .boot()
        .unwrap();
    guest.expect("two and two?").unwrap();
    let (dir, pid) = (guest.dir(), guest.pid());
    assert!(dir.exists() && is_running(pid));
    guest.answer("4").unwrap();
    let outcome = guest.finish().unwrap();
    assert_eq!(outcome.status, 3, "{}", outcome.console);
    for part in ["hello from Linux", "mke2fs", "the end"] {
        assert!(outcome.console.contains(part), "{part:?} is not in\n{}", outcome.console);
    }
    assert!(!dir.exists() && !is_running(pid));
}

/// Every way in which a guest is left early.
#[test]
fn a_guest_that_is_left_is_gone() {
    let silent = Vm::new().script("sleep 1000").limit(Duration::from_millis(300));
    let guest = silent.boot().unwrap();
    let (dir, pid) = (guest.dir(), guest.pid());
    let error = guest.finish().unwrap_err().to_string();
    assert!(error.contains("did not come to its end within 300ms"), "{error}");
    assert!(!dir.exists() && !is_running(pid));

    let guest = silent.boot().unwrap();
    let (dir, pid) = (guest.dir(), guest.pid());
    let outcome = std::panic::catch_unwind(move || {
        let _guest = guest;
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    assert!(!dir.exists() && !is_running(pid));
}

#[test]
fn what_is_missing_is_named() {
    let error = Vm::new().module("no-such-module").boot().unwrap_err().to_string();
    assert!(error.contains("no-such-module"), "{error}");
    let error = Vm::new().program("blockyard-none").boot().unwrap_err().to_string();
    assert!(error.contains("blockyard-none"), "{error}");
    let error =
        Vm::new().args(["-no-such-option"]).boot().unwrap().finish().unwrap_err().to_string();
    assert!(error.contains("no-such-option"), "{error}");
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
