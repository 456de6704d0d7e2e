//! The virtual machine itself: a guest boots, talks, ends, and leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use blockyard_lab::ceph::eventually;
use blockyard_lab::vm::Vm;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command};
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
             grep ext4 /proc/filesystems\ntest $(cat /proc/sys/kernel/panic_on_oops) = 1\n\
             test $(host 'two and two?') = 4\necho the end\nexit 3\n",
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

/// A function for scripts that does not notice what is wrong would let every test pass.
#[test]
fn the_functions_of_scripts_notice_what_is_wrong() {
    let script = "set -e
fails() {
    if sh -c '. /lab.sh; set -e; \"$@\"; true' - \"$@\"; then echo \"not noticed: $*\"; exit 1; fi
}
truncate -s 32M /tmp/image
losetup /dev/loop0 /tmp/image
check_file_system /dev/loop0
check_attribute loop0 size 65536
fails check_attribute loop0 size 65537
make_files /tmp/files /tmp/sums
check_files /tmp/files /tmp/sums
printf x >>/tmp/files/4095/file
fails check_files /tmp/files /tmp/sums
no_disk_errors
refuses false
fails refuses true
for trouble in 'I/O error, dev none, sector 0' 'critical space allocation error, dev none, sector 0' \
    'EXT4-fs error (device none): none' 'INFO: task none:1 blocked for more than 120 seconds.' 'Out of memory: Killed' \
    'kernel BUG at none' 'WARNING: CPU: 0'
do
    no_trouble
    echo \"$trouble\" >/dev/kmsg
    fails no_trouble
    fails no_disk_errors
    dmesg -c >/tmp/trouble
done
echo 'nbd0: Connection timed out' >/dev/kmsg
no_trouble
fails no_disk_errors
fails check_file_system /dev/loop0
fails check_file_system /dev/loop1
";
    let outcome = Vm::new().module("loop").file_systems().script(script).boot().unwrap().finish();
    let outcome = outcome.unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.console);
}

#[test]
fn a_disk_of_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("socket"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let programs = std::env::var("BLOCKYARD_QEMU_MODERN").unwrap_or_default();
    let mut backend = Command::new(Path::new(&programs).join("qemu-storage-daemon"));
    backend
        .arg("--blockdev")
        .arg(format!("file,node-name=disk,filename={},discard=unmap", image.display()));
    backend.arg("--export").arg(format!(
        "vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    ));
    let pid_file = dir.path().join("pid");
    // It writes this file once it listens.
    backend.arg("--pidfile").arg(&pid_file);
    let mut backend = Backend(backend.spawn().expect("run: cargo xtask setup"));
    eventually("the file of the storage daemon", || {
        assert!(backend.0.try_wait()?.is_none(), "the storage daemon has ended");
        Ok(pid_file.exists().then_some(()))
    })
    .unwrap();
    let vm = Vm::new().module("virtio_blk").file_systems().vhost_user_blk(&socket, "num-queues=1");
    let vm = vm.script("set -e\ncheck_attribute vda size 131072\ncheck_file_system /dev/vda\n");
    let outcome = vm.boot().unwrap().finish().unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.console);
}

/// A process that is ended when it is dropped.
struct Backend(Child);

impl Drop for Backend {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
