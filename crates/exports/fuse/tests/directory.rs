//! Several disks, as files of a directory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Limits, Status};
use blockyard_conformance::{HeldDisk, in_own_mounts};
use blockyard_export_fuse::{Cache, Config, Shown};
use common::*;

const MIB: u64 = 1 << 20;

fn listed(mounted: &Mounted) -> BTreeSet<String> {
    let names = fs::read_dir(mounted.path()).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn disks_come_and_go_and_nothing_else_can_be_made() {
    in_own_mounts!();
    let (one, two) = (ram("ram0", MIB), ram("ram1", 2 * MIB));
    let mut mounted = Mounted::directory(&[("one", &one), ("two.img", &two)]);
    let root = mounted.path();
    assert_eq!(listed(&mounted), ["one", "two.img"].map(String::from).into());
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o500);
    assert_eq!(fs::metadata(root.join("two.img")).unwrap().len(), 2 * MIB);
    let (first, second) = (root.join("one"), root.join("two.img"));
    let rw = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (first, second) = (rw(&first), rw(&second));
    first.write_all_at(&[1; 5000], 10).unwrap();
    second.write_all_at(&[2; 5000], 10).unwrap();
    let mut back = [0; 5000];
    first.read_exact_at(&mut back, 10).unwrap();
    assert_eq!(back, [1; 5000]);
    assert_eq!(fs::metadata(root.join("three")).unwrap_err().kind(), ErrorKind::NotFound);
    let three = ram("ram2", MIB);
    mounted.mount.add("three", open(&three)).unwrap();
    assert!(mounted.mount.add("three", open(&three)).is_err());
    assert!(mounted.mount.add("..", open(&three)).is_err());
    assert_eq!(fs::metadata(root.join("three")).unwrap().len(), MIB);
    assert!(mounted.mount.remove("one") && !mounted.mount.remove("one"));
    assert_eq!(listed(&mounted), ["two.img", "three"].map(String::from).into());
    assert_eq!(fs::metadata(root.join("one")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(first.read_at(&mut back, 0).is_err(), "it is gone");
    // Queues that sleep let go of it, too.
    let end = Instant::now() + Duration::from_secs(30);
    while one.openers() > 0 {
        assert!(Instant::now() < end, "{} have it open", one.openers());
        blockyard_conformance::pause();
    }
    for refused in [
        File::create(root.join("new")).map(drop),
        fs::create_dir(root.join("new")),
        fs::remove_file(root.join("three")),
        fs::rename(root.join("three"), root.join("four")),
        fs::hard_link(root.join("three"), root.join("four")),
        std::os::unix::fs::symlink("three", root.join("four")),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    peer("df", &[root.to_str().unwrap()]);
    drop((first, second));
    mounted.stop();
}

#[test]
fn a_long_list_is_read_in_pieces() {
    in_own_mounts!();
    let disk = ram("ram0", MIB);
    let names: BTreeSet<String> =
        (0..2000).map(|n| format!("{n:0>width$}", width = 4 + n % 200)).collect();
    let disks: Vec<_> = names.iter().map(|name| (name.as_str(), &disk)).collect();
    let mounted = Mounted::directory(&disks);
    assert_eq!(listed(&mounted), names);
}

/// The kernel waits for pages that are being read before it forgets them: whoever takes the disk away does not.
#[test]
fn a_disk_is_taken_away_though_it_does_not_answer() {
    in_own_mounts!();
    let (held, other) = (HeldDisk::new(tags(), MIB, Limits::default()), ram("ram0", MIB));
    let named = [("held", &held.disk), ("other", &other)];
    let named = named.map(|(name, disk)| (name.to_owned(), open(disk)));
    let shown = Shown::Directory(named.into());
    let mut mounted = Mounted::with(shown, |config| Config { cache: Cache::Used, ..config });
    let file = File::open(mounted.path().join("held")).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| file.read_at(&mut [0; 4096], 0));
        held.wait_for(1);
        scope.spawn(|| {
            assert!(mounted.mount.remove("held"));
            tell.send(()).unwrap();
        });
        let removed = told.recv_timeout(Duration::from_secs(60));
        assert_eq!(listed(&mounted), ["other".to_owned()].into());
        while !read.is_finished() {
            held.release(Status::Ok);
            blockyard_conformance::pause();
        }
        removed.expect("it waits for the disk");
        // What was asked before is answered; where the kernel has forgotten it by then, it asks again, and hears that it is gone.
        drop(read.join().unwrap());
    });
    // What was kept goes, too.
    let end = Instant::now() + Duration::from_secs(60);
    while file.read_at(&mut [0; 4096], 0).is_ok() {
        assert!(Instant::now() < end, "it is still read");
        blockyard_conformance::pause();
    }
    drop(file);
    mounted.stop();
}
