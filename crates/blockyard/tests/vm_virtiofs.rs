//! A directory of ours under a real guest's virtiofs, by QEMU's vhost-user-fs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use blockyard_lab::vm::Vm;
use common::Daemon;
use tempfile::TempDir;

/// Software emulation on a busy machine: some minutes.
const LIMIT: Duration = Duration::from_secs(420);

/// Two directories are mounted; the second one is the first, and read-only.
const CHECKS: &str = include_str!("vm_virtiofs.sh");

fn share(dir: &Path, socket: &Path, args: &[&str]) -> Daemon {
    let places = [dir.to_str().unwrap(), "--socket", socket.to_str().unwrap()];
    Daemon::share(&[&places, args].concat())
}

#[test]
fn a_guest_uses_a_directory_as_any_other() {
    let place = TempDir::new().unwrap();
    let dir = place.path().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("from-host"), "the host's").unwrap();
    let (socket, fixed) = (place.path().join("tree.sock"), place.path().join("fixed.sock"));
    let daemon = share(&dir, &socket, &["--queues=2"]);
    let read_only = share(&dir, &fixed, &["--read-only", "--cache=never"]);
    let vm = Vm::new()
        .cpus(2)
        .vhost_user_fs(&socket, "tree", "num-request-queues=2,queue-size=256")
        .vhost_user_fs(&fixed, "fixed", "");
    let programs = ["flock", "xfs_io", "setfattr", "getfattr", "setpriv"];
    let vm = programs.into_iter().fold(vm, Vm::program);
    let mut guest = vm.script(CHECKS).limit(LIMIT).boot().unwrap();
    guest.expect("written").unwrap();
    assert_eq!(fs::read_to_string(dir.join("from-guest")).unwrap(), "the guest's\n");
    assert_eq!(fs::read_dir(dir.join("many")).unwrap().count(), 1000);
    let mapped = fs::read(dir.join("mapped")).unwrap();
    assert_eq!((mapped.len(), &mapped[4096..4100], mapped[8191]), (8192, &b"aaaa"[..], b'z'));
    let mut value = [0; 16];
    let len = rustix::fs::getxattr(dir.join("moved"), "user.colour", &mut value).unwrap();
    assert_eq!(&value[..len], b"blue");
    let found = fs::metadata(dir.join("theirs")).unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (1000, 1001, 0o640));
    fs::write(dir.join("from-host"), "the host's, again").unwrap();
    fs::set_permissions(dir.join("from-host"), fs::Permissions::from_mode(0o600)).unwrap();
    guest.answer("go on").unwrap();
    let outcome = guest.finish().unwrap();
    let (log, other) = (daemon.stop(), read_only.stop());
    assert_eq!(outcome.status, 0, "{}\n{log}\n{other}", outcome.console);
    assert!(!log.contains("violated"), "{log}");
    assert_eq!(fs::read_dir(dir.join("many")).unwrap().count(), 0);
}
