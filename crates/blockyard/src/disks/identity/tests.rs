use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn of(uri: &str) -> DiskIdentity {
    DiskIdentity::of(&uri.parse().unwrap()).unwrap()
}

fn of_new(path: &Path) -> DiskIdentity {
    let _ = fs::remove_file(path);
    fs::write(path, "a").unwrap();
    DiskIdentity::of_path(path).unwrap()
}

#[test]
fn a_file_is_itself_by_every_path_and_another_in_its_place_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    fs::write(path("a"), "a").unwrap();
    fs::write(path("b"), "a").unwrap();
    symlink(path("a"), path("link")).unwrap();
    fs::hard_link(path("a"), path("hard")).unwrap();
    let a = of(&text("a"));
    for same in [text("link"), text("hard"), format!("file:{}?ro=1", text("a"))] {
        assert!(a.same_disk(&of(&same)) && a == of(&same), "{same}");
    }
    assert!(!a.same_disk(&of(&text("b"))) && !a.overlaps(&of(&text("b"))));
    // Renamed it is the same; made anew it is not, even where the inode is used again.
    fs::rename(path("a"), path("c")).unwrap();
    assert!(a.same_disk(&of(&text("c"))) && a.is_still(&of(&text("c"))));
    for name in ["c", "hard", "link"] {
        fs::remove_file(path(name)).unwrap();
    }
    // The clock of a file system ticks a few hundred times a second.
    while of_new(&path("a")).is_still(&a) {}
    assert!(!a.same_disk(&of(&text("a"))) && !a.is_still(&of(&text("a"))));
}

/// The numbers of btrfs, NFS and their like are given anew with each mount.
#[test]
fn a_file_is_itself_after_its_file_system_was_mounted_again() {
    let parse = |text: &str| text.parse::<DiskIdentity>().unwrap();
    let before = parse("file/0:45/131/17/00c0ffee00c0ffee");
    let after = parse("file/0:52/131/17/00c0ffee00c0ffee");
    assert!(before.same_disk(&after) && after.is_still(&before));
    // Another file system has got its number meanwhile.
    let other = parse("file/0:45/131/17/00c0ffee00c0ffef");
    assert!(!before.same_disk(&other) && !other.is_still(&before));
    let nfs = |number| parse(&format!("file/0:{number}/131/-/nfs4%3Afar%3A%2Fvolume"));
    assert!(nfs(45).same_disk(&nfs(46)) && !nfs(45).same_disk(&before));
    // What an earlier version has on record knows the number only.
    let old = parse("file/0:45/131/17");
    assert!(old.same_disk(&before) && !old.same_disk(&after));
    assert!(!parse("file/8:1/131/17").same_disk(&parse("file/8:2/131/17")));
}

#[test]
fn a_file_that_is_not_there_is_known_by_its_folder_and_name() {
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let one = DiskIdentity::of_path(&dir.path().join("new")).unwrap();
    let two = DiskIdentity::of_path(&dir.path().join("link/new")).unwrap();
    assert!(one.is_absent() && one.same_disk(&two));
    assert!(!one.same_disk(&DiskIdentity::of_path(&dir.path().join("other")).unwrap()));
    assert!(DiskIdentity::of_path(&dir.path().join("none/new")).is_err());
    assert!(!dir.path().join("new").exists(), "asking makes nothing");
}

#[test]
fn an_export_is_known_by_its_server_and_its_name() {
    let dir = tempfile::tempdir().unwrap();
    symlink(dir.path(), dir.path().join("link")).unwrap();
    let socket = |folder: &str| {
        format!("nbd+unix:///x?socket={}", dir.path().join(folder).join("s").display())
    };
    let same = [
        ("nbd://Far.example:10809/x", "nbds://user@far.example./x?tls-hostname=n&connections=2"),
        ("nbd://[::ffff:10.0.0.1]/", "nbd://10.0.0.1/"),
        ("nbd+vsock:///x", "nbd+vsock://2:10809/x"),
        (&socket("."), &socket("link")),
    ];
    for (one, two) in same {
        assert!(of(one).same_disk(&of(two)) && of(one) == of(two), "{one} {two}");
    }
    for (one, two) in [
        ("nbd://far/x", "nbd://far/y"),
        ("nbd://far/x", "nbd://near/x"),
        ("nbd://far/x", "nbd://far:1/x"),
        ("nbd+vsock:///x", "nbd+vsock://3/x"),
        ("nbd+unix:///x?socket=/a", "nbd+unix:///x?socket=%00/a"),
    ] {
        assert!(!of(one).same_disk(&of(two)) && !of(one).overlaps(&of(two)), "{one} {two}");
    }
    assert_eq!(of("nbd://far:1/a/b").to_string(), "nbd/tcp/far/1/a%2Fb");
    // Two names of this machine: perhaps two servers, perhaps one.
    let (one, two) = (of("nbd://localhost/x"), of("nbd://[::1]/x"));
    assert!(!one.same_disk(&two) && one.overlaps(&two));
}

#[test]
fn memory_is_never_the_same() {
    let one = of("ram:1M");
    assert!(one.is_volatile() && of("null:1M").is_volatile() && !of("/").is_volatile());
    assert!(!one.same_disk(&one) && !one.overlaps(&one));
}

/// A sysfs of a disk with two partitions, a loop device over a file, and two volumes on the first partition.
struct Sysfs(tempfile::TempDir);

impl Sysfs {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.device("sda", "8:0", &[("diskseq", "7"), ("device/wwid", "naa.5 ")]);
        let partition = |number: &str, start: &str| {
            [("partition", number), ("start", start), ("size", "100")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        };
        for (name, dev, part) in [
            ("sda/sda1", "8:1", partition("1", "2048")),
            ("sda/sda2", "8:2", partition("2", "2148")),
        ] {
            let part: Vec<_> =
                part.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            this.device(name, dev, &part);
        }
        let file = this.file().display().to_string();
        this.device(
            "loop0",
            "7:0",
            &[
                ("loop/backing_file", &format!("{file}\n")),
                ("loop/offset", "0"),
                ("loop/sizelimit", "0"),
            ],
        );
        this.device(
            "loop1",
            "7:1",
            &[("loop/backing_file", &file), ("loop/offset", "4096"), ("loop/sizelimit", "4096")],
        );
        this.device(
            "loop2",
            "7:2",
            &[("loop/backing_file", &file), ("loop/offset", "8192"), ("loop/sizelimit", "4096")],
        );
        for (name, dev) in [("dm-0", "253:0"), ("dm-1", "253:1")] {
            this.device(
                name,
                dev,
                &[("dm/uuid", &format!("LVM-{name}")), ("slaves/sda1/dev", "8:1")],
            );
        }
        fs::write(this.file(), "x").unwrap();
        this
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("file")
    }

    fn device(&self, name: &str, dev: &str, attributes: &[(&str, &str)]) {
        let folder = self.0.path().join("devices").join(name);
        for (key, value) in attributes.iter().chain([&("dev", dev)]) {
            let path = folder.join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let links = self.0.path().join("dev/block");
        fs::create_dir_all(&links).unwrap();
        symlink(folder, links.join(dev)).unwrap();
    }

    fn identity(&self, number: Number) -> DiskIdentity {
        let (sequence, serial) =
            (layers::sequence(self.0.path(), number), layers::serial(self.0.path(), number));
        DiskIdentity(Kind::Device { number, sequence, serial })
    }
}

#[test]
fn what_is_below_decides_whether_disks_overlap() {
    let sysfs = Sysfs::new();
    let device = |number| sysfs.identity(number);
    let (sda, sda1, sda2) = (device((8, 0)), device((8, 1)), device((8, 2)));
    let (lv0, lv1) = (device((253, 0)), device((253, 1)));
    let file = DiskIdentity::of_path(&sysfs.file()).unwrap();
    let (all, first, second) = (device((7, 0)), device((7, 1)), device((7, 2)));
    let overlap = [
        (&sda, &sda1),
        (&sda, &sda2),
        (&sda, &lv0),
        (&sda1, &lv1),
        (&file, &all),
        (&file, &first),
        (&all, &second),
    ];
    for (one, two) in overlap {
        assert!(
            one.overlaps_by(two, sysfs.0.path()) && two.overlaps_by(one, sysfs.0.path()),
            "{one} {two}"
        );
        assert!(!one.same_disk(two), "{one} {two}");
    }
    let apart = [
        (&sda1, &sda2),
        (&lv0, &lv1),
        (&sda2, &lv0),
        (&first, &second),
        (&file, &sda),
        (&sda1, &all),
    ];
    for (one, two) in apart {
        assert!(
            !one.overlaps_by(two, sysfs.0.path()) && !two.overlaps_by(one, sysfs.0.path()),
            "{one} {two}"
        );
    }
}

#[test]
fn a_device_is_known_by_what_its_maker_says() {
    let sysfs = Sysfs::new();
    let sda1 = sysfs.identity((8, 1));
    assert_eq!(sda1.to_string(), "device/8:1/7/naa.5%20part%201%20at%202048");
    let parse = |text: &str| text.parse::<DiskIdentity>().unwrap();
    // Another disk at its place, since the machine was started and after that.
    assert!(!sda1.same_disk(&parse("device/8:1/8/naa.5%20part%201%20at%202048")));
    assert!(!sda1.is_still(&parse("device/8:1/7/naa.6%20part%201%20at%202048")));
    // The same disk with another number, which says something only since then.
    let moved = parse("device/8:17/1/naa.5%20part%201%20at%202048");
    assert!(!sda1.same_disk(&moved) && sda1.is_still(&moved));
    // Of one of which nothing is known nobody can say that.
    let loop0 = sysfs.identity((7, 0));
    assert!(loop0.same_disk(&loop0) && !loop0.is_still(&loop0));
}

fn kinds() -> impl Strategy<Value = Kind> {
    let number = any::<(u32, u32)>;
    let bytes = || prop::collection::vec(any::<u8>(), 0..12);
    prop_oneof![
        Just(Kind::Volatile),
        (number(), any::<u64>(), any::<Option<i128>>(), prop::option::of(".{0,8}")).prop_map(
            |(device, inode, born, filesystem)| Kind::File { device, inode, born, filesystem }
        ),
        (number(), any::<u64>(), bytes()).prop_map(|(device, inode, name)| Kind::Absent {
            device,
            inode,
            name: OsString::from_vec(name)
        }),
        (number(), any::<Option<u64>>(), prop::option::of(".{1,8}|-"))
            .prop_map(|(number, sequence, serial)| Kind::Device { number, sequence, serial }),
        ("[a-z]{1,8}", prop::collection::vec(bytes(), 1..6))
            .prop_filter("words of their own", |(kind, _)| {
                !["volatile", "file", "absent", "device"].contains(&kind.as_str())
            })
            .prop_map(|(kind, words)| Kind::Named { kind, words }),
    ]
}

proptest! {
    #[test]
    fn identities_are_written_and_read_back(kind in kinds(), text in "(file|device|nbd)?[-/:0-9a-z%]{0,40}") {
        let identity = DiskIdentity(kind);
        prop_assert_eq!(identity.to_string().parse(), Ok(identity.clone()));
        let json = serde_json::to_string(&identity).unwrap();
        prop_assert_eq!(serde_json::from_str::<DiskIdentity>(&json).unwrap(), identity);
        if let Ok(parsed) = text.parse::<DiskIdentity>() {
            prop_assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
    }
}
