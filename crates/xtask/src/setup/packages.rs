//! The one list of Debian packages that the tests and benchmarks need.

/// A Debian package.
#[derive(Debug)]
pub(super) struct Package {
    /// Its name for apt.
    pub name: &'static str,
    /// Commands that succeed when it is there.
    pub probes: &'static [&'static str],
    /// What it is for.
    pub purpose: &'static str,
}

/// Every package. To add one, add a line: `cargo xtask setup` installs it, and fails if a probe does.
pub(super) const PACKAGES: &[Package] = &[
    package(
        "nbdkit",
        &["nbdkit --version", "nbdkit memory --version"],
        "a peer: NBD server, and client by its nbd plugin",
    ),
    package(
        "libnbd-bin",
        &["nbdinfo --version", "nbdcopy --version", "nbdfuse --version"],
        "a peer: NBD clients",
    ),
    package("python3-libnbd", &["nbdsh --version"], "a peer: NBD client driven by scripts"),
    package("curl", &["curl --version"], "a peer: a client of the control API"),
    package("fio", &["fio --version"], "load over NBD, with verification"),
    package(
        "qemu-utils",
        &["qemu-img --version", "qemu-io --version", "qemu-nbd --version"],
        "a peer: NBD client and server, image formats",
    ),
    package("nbd-server", &["nbd-server -V"], "a peer: the reference NBD server"),
    package("nbd-client", &["nbd-client -V"], "a peer: the reference NBD client"),
    package("e2fsprogs", &["mkfs.ext4 -V", "e2fsck -V"], "a file system on a served disk"),
    package("xfsprogs", &["mkfs.xfs -V"], "a file system on a served disk"),
    package("attr", &["setfattr --version"], "extended attributes in a guest"),
    package("fuse3", &["fusermount3 --version"], "mounts of nbdfuse"),
    package("mount", &["mount --version", "losetup --version"], "loop devices on a served disk"),
    package("fdisk", &["sfdisk --version"], "partition tables that we did not write ourselves"),
    package("gdisk", &["sgdisk --version"], "partition tables that we did not write ourselves"),
    package("parted", &["parted --version"], "partition tables that we did not write ourselves"),
    package(
        "gnutls-bin",
        &["certtool --version", "psktool --version"],
        "keys and certificates for TLS",
    ),
    package("openssl", &["openssl version"], "a TLS client that can be made to misbehave"),
    package(
        "pkg-config",
        &["pkg-config --version"],
        "finds libssl when the feature `psk` is built",
    ),
    package(
        "libssl-dev",
        &["pkg-config --exists openssl"],
        "TLS with pre-shared keys, the feature `psk`",
    ),
    package("ceph-base", &["crushtool --help"], "Ceph's crushtool, the judge of placement"),
    package(
        "kmod",
        &["depmod --version", "modprobe --version"],
        "the order in which a guest's kernel loads modules",
    ),
    package("xz-utils", &["xz --version"], "unpacks a guest's modules"),
    package(
        "ceph-mon",
        &["ceph-mon --version", "monmaptool --help"],
        "a peer: the monitor of a cluster on loopback",
    ),
    package("ceph-osd", &["ceph-osd --version"], "a peer: its OSDs"),
    package("ceph-mgr", &["ceph-mgr --version"], "a peer: its manager, which splits groups"),
    package(
        "ceph-common",
        &["ceph --version", "rados --version", "ceph-authtool --gen-print-key"],
        "a peer: Ceph's own clients",
    ),
    package("faketime", &["faketime -f +1h true"], "a client whose clock is off by an hour"),
    package("uuid-runtime", &["uuidgen --version"], "names of clusters and OSDs"),
    package("iproute2", &["ss -V", "ip -V"], "remedies that messages print are run"),
    package("psmisc", &["fuser --version"], "remedies that messages print are run"),
    package(
        "util-linux",
        &["setpriv --version", "lsblk --version"],
        "daemons of a cluster end with their test",
    ),
    package("g++", &["g++ --version"], "builds the fuzzing engine"),
    package("valgrind", &["valgrind --version"], "counts instructions and heap for profiles"),
];

const fn package(
    name: &'static str,
    probes: &'static [&'static str],
    purpose: &'static str,
) -> Package {
    Package { name, probes, purpose }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_package_is_listed_once_and_proved() {
        let mut names = HashSet::new();
        for package in PACKAGES {
            assert!(names.insert(package.name), "{} is listed twice", package.name);
            assert!(
                !package.probes.is_empty(),
                "{} has no probe: name a program that proves it",
                package.name
            );
            assert!(!package.purpose.is_empty(), "{}: say what it is for", package.name);
        }
    }
}
