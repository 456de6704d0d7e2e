//! A real file system on a served disk: nbdfuse makes it a file, a loop device makes that a disk, and the
//! kernel does the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use blockyard_conformance::{LoopDevice, in_own_mounts};
use common::{Cleanup, Daemon, fuse, noise, peer};

fn tree(root: &Path) {
    for (index, size) in [0, 1, 4095, 4096, 70_000, 3 << 20].into_iter().enumerate() {
        let folder = root.join(format!("folder{}", index % 3));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("file{index}")), noise(size, index as u64)).unwrap();
    }
}

fn checksums(root: &str) -> String {
    peer("sh", &["-c", &format!("cd {root} && find . -type f | sort | xargs sha256sum")])
}

#[test]
fn ext4_on_a_file_disk_survives_unmounting_and_a_restart() {
    in_own_mounts!();
    let daemon = Daemon::serve(&["file:disk.img?create=64M", "ram:64M"]);
    for export in ["disk", "ram0"] {
        let (unmount_fuse, file) = fuse(&daemon, export);
        let device = LoopDevice::attach(&["--direct-io=off", &file]);
        peer("mkfs.ext4", &["-q", device.path()]);
        let mount = daemon.path("mnt");
        std::fs::create_dir_all(&mount).unwrap();
        let mount = mount.to_str().unwrap();
        peer("mount", &[device.path(), mount]);
        let unmount = Cleanup::with(&["umount", mount]);
        tree(Path::new(mount));
        let before = checksums(mount);
        assert_eq!(before.lines().count(), 6);
        unmount.now();
        peer("mount", &[device.path(), mount]);
        let unmount = Cleanup::with(&["umount", mount]);
        assert_eq!(checksums(mount), before);
        unmount.now();
        peer("fsck.ext4", &["-f", "-n", device.path()]);
        drop(device);
        unmount_fuse.now();
        if export == "disk" {
            peer("fsck.ext4", &["-f", "-n", daemon.path("disk.img").to_str().unwrap()]);
        }
    }
    daemon.stop();
}

/// The experiment: a 2 MiB RAM disk with 3 minors and 2 hardware queues of depth 2, with a partition table, a file
/// system on the first partition, and files that are there after it was mounted again. The partitions are loop
/// devices of their own, as not every kernel looks for them.
#[test]
fn the_two_mebibyte_disk_takes_partitions_and_a_file_system() {
    in_own_mounts!();
    let daemon = Daemon::serve(&["ram:2M?minors=3&queues=2&depth=2", "--threads", "2"]);
    let (unmount_fuse, file) = fuse(&daemon, "ram0");
    let mut sfdisk =
        Command::new("sfdisk").arg("-q").arg(&file).stdin(Stdio::piped()).spawn().unwrap();
    let table = "label: dos\nstart=64, size=3000\nstart=3064\n";
    std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let dump = peer("sfdisk", &["--dump", &file]);
    assert_eq!(dump.lines().filter(|line| line.contains("type=")).count(), 2, "{dump}");
    let [offset, limit] = [64, 3000].map(|sectors: u32| (sectors * 512).to_string());
    let device = LoopDevice::attach(&["--offset", &offset, "--sizelimit", &limit, &file]);
    peer("mke2fs", &["-q", device.path()]);
    let mount = daemon.path("mnt");
    std::fs::create_dir_all(&mount).unwrap();
    let mount = mount.to_str().unwrap();
    peer("mount", &[device.path(), mount]);
    let unmount = Cleanup::with(&["umount", mount]);
    for index in 0..5 {
        std::fs::write(format!("{mount}/file{index}"), noise(100_000, index)).unwrap();
    }
    let before = checksums(mount);
    unmount.now();
    peer("mount", &[device.path(), mount]);
    let unmount = Cleanup::with(&["umount", mount]);
    assert_eq!(checksums(mount), before);
    unmount.now();
    peer("e2fsck", &["-f", "-n", device.path()]);
    drop(device);
    assert_eq!(peer("sfdisk", &["--dump", &file]), dump, "the table is still there");
    unmount_fuse.now();
    daemon.stop();
}
