//! Which file system a file is on, where its device number does not tell: those of file systems without a block device of their
//! own (btrfs, NFS, FUSE) are given anew with each mount, and may have been another's before.

use std::fs;
use std::path::Path;

use super::Number;

/// The mounts that this process sees (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/self/mountinfo";
/// The major number of devices that are none (`get_anon_bdev`).
const ANONYMOUS: u32 = 0;

/// What stays the same when it is mounted again: what the file system says of itself (btrfs: made of its UUID and the
/// subvolume's), or where it is from. None where the number tells, or nothing does.
pub(super) fn of(path: &Path, device: Number) -> Option<String> {
    if device.0 != ANONYMOUS {
        return None;
    }
    match rustix::fs::statvfs(path).map(|found| found.f_fsid) {
        Ok(id) if id != 0 => Some(format!("{id:016x}")),
        _ => source(&fs::read_to_string(MOUNTS).ok()?, device),
    }
}

/// The kind of a file system, and from where it is mounted: `nfs4:server:/volume`.
fn source(mounts: &str, (major, minor): Number) -> Option<String> {
    let number = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        let (fields, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, source) = (after.next()?, after.next()?);
        (fields.split(' ').nth(2)? == number).then(|| format!("{kind}:{source}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_where_it_is_from() {
        let mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                      40 22 0:45 / /data rw shared:9 - nfs4 far:/volume rw,vers=4.2\n";
        assert_eq!(source(mounts, (0, 45)).unwrap(), "nfs4:far:/volume");
        assert_eq!(source(mounts, (0, 46)), None);
        assert_eq!(of(Path::new("/"), (8, 1)), None, "its number tells");
        // That of /proc says nothing of itself.
        let proc = fs::metadata("/proc").unwrap();
        let device = super::super::number(std::os::unix::fs::MetadataExt::dev(&proc));
        assert!(of(Path::new("/proc"), device).is_some());
    }
}
