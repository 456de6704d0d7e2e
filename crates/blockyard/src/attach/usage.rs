//! Who uses a disk of the kernel.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, StatxFlags, statx};

use super::helper;
use crate::error::{Error, ErrorKind, Result, quoted};

/// Where the kernel tells of its devices.
const SYSFS: &str = "/sys";
/// And of its processes.
const PROC: &str = "/proc";
/// Programs that look at every new disk for a moment (udev, say) are waited for so long.
const GLANCE: Duration = Duration::from_secs(2);
const GLANCE_POLL: Duration = Duration::from_millis(50);

/// Opens a disk that nobody but us and its daemon uses, so that nobody can mount it meanwhile. Its daemon has
/// to live: opening may
/// read from it.
///
/// # Errors
/// [`ErrorKind::Busy`] says by whom it is used.
pub(crate) fn claim(path: &str, daemon: u32) -> Result<File> {
    let end = Instant::now() + GLANCE;
    loop {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::EXCL | OFlags::CLOEXEC).bits().cast_signed());
        let claimed = match options.open(path) {
            Ok(file) => check_unused(path, daemon).map(|()| file),
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy => {
                Err(check_unused(path, daemon)
                    .err()
                    .unwrap_or_else(|| busy(path, "opened exclusively by another process")))
            }
            Err(err) => {
                return Err(Error::failed(format!("cannot open {path}")).caused_by(err));
            }
        };
        match claimed {
            Err(_) if Instant::now() < end => std::thread::sleep(GLANCE_POLL),
            claimed => return claimed,
        }
    }
}

/// Looks whether anybody but us and its daemon uses a disk or a partition of it, without opening it.
///
/// # Errors
/// [`ErrorKind::Busy`] says by whom it is used.
pub(crate) fn check_unused(path: &str, daemon: u32) -> Result<()> {
    let parts = parts(path, Path::new(SYSFS));
    let mounted = || mount_of(&parts, Path::new(PROC));
    let pooled = || pool(&parts, Path::new(SYSFS)).map(|id| format!("part of the btrfs {id}"));
    let swap = || {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        swap(&swaps, &parts)
            .map(|part| format!("used as swap space; run: swapoff {}", quoted(part)))
    };
    let held = || holder(&parts).map(|name| format!("part of {name}"));
    let looped = || loop_device(&parts, Path::new(SYSFS)).map(|name| format!("backing {name}"));
    let users = mounted().or_else(pooled).or_else(swap).or_else(held).or_else(looped);
    match users.or_else(|| opener(&parts, daemon)) {
        Some(who) => Err(busy(path, &who)),
        None => Ok(()),
    }
}

/// As [`check_unused`], of a disk whose daemon is dead, with what only the kernel knows: whoever mounts a disk, or has the log
/// of a file system on it, claims it for himself. To ask is to open it, which another process does: that may wait for ever for
/// what nobody answers, and then there is no answer.
///
/// # Errors
/// [`ErrorKind::Busy`] says by whom it is used.
pub(crate) fn check_unclaimed(path: &str, daemon: u32) -> Result<()> {
    check_unused(path, daemon)?;
    // What the kernel has no disk of can be opened by nobody, and has nobody who claims it.
    let claimed = || match has_disk(path)? {
        true => helper::may_be_claimed(path, GLANCE),
        false => Ok(Some(true)),
    };
    match claimed() {
        Ok(Some(false)) => {
            Err(busy(path, "opened exclusively by a file system or another user in the kernel"))
        }
        Ok(Some(true) | None) => Ok(()),
        Err(err) => {
            let what = format!("cannot check whether {path} is in use");
            Err(Error::failed(what).caused_by(err))
        }
    }
}

/// Claims a device and lets it go again.
///
/// # Errors
/// [`ErrorKind::Busy`] if somebody else does.
pub(crate) fn try_claim(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlags::EXCL | OFlags::CLOEXEC).bits().cast_signed());
    options.open(path).map(drop).map_err(|err| match err.kind() {
        io::ErrorKind::ResourceBusy => {
            busy(&path.display().to_string(), "opened exclusively by another process")
        }
        _ => Error::failed(format!("cannot open {}", path.display())).caused_by(err),
    })
}

/// With what to do, if that is behind a semicolon.
fn busy(path: &str, who: &str) -> Error {
    let (who, remedy) = who.split_once("; ").map_or((who, None), |(who, run)| (who, Some(run)));
    let error = Error::new(ErrorKind::Busy, format!("{path} is in use: {who}"));
    match remedy {
        Some(remedy) => error.help(remedy),
        None => error,
    }
}

/// A disk, or a partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// Where it is: `/dev/nbd0p1`.
    path: String,
    /// Its number, as `43:1`.
    number: String,
    /// Where the kernel tells of it.
    sysfs: PathBuf,
}

impl Part {
    fn is_of(&self, major: u32, minor: u32) -> bool {
        self.number == format!("{major}:{minor}")
    }
}

/// The disk, and then its partitions, which are folders in its own (Documentation/ABI/testing/sysfs-block).
fn parts(path: &str, sysfs: &Path) -> Vec<Part> {
    let disk = sysfs.join("block").join(super::device_name(path));
    let part = |path: String, sysfs: PathBuf| {
        let number = fs::read_to_string(sysfs.join("dev")).ok()?;
        Some(Part { path, number: number.trim().into(), sysfs })
    };
    let mut parts: Vec<Part> = part(path.into(), disk.clone()).into_iter().collect();
    let folders = fs::read_dir(&disk).into_iter().flatten().flatten();
    parts.extend(folders.filter(|folder| folder.path().join("partition").exists()).filter_map(
        |folder| part(format!("/dev/{}", folder.file_name().to_string_lossy()), folder.path()),
    ));
    parts
}

/// The mounts of all processes: a disk may be mounted where only a container sees it.
fn mount_of(parts: &[Part], proc: &Path) -> Option<String> {
    let point = |process: &Path| {
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        mount_point(&mounts, parts)
    };
    let own = proc.join("self");
    if let Some(point) = point(&own) {
        return Some(format!("mounted at {point}; run: umount {}", quoted(&point)));
    }
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: HashSet<_> = namespace(&own).into_iter().collect();
    for process in fs::read_dir(proc).ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // That of a process that has ended, or of another user's, is not to be seen.
        if namespace(&process.path()).is_some_and(|found| seen.insert(found))
            && let Some(point) = point(&process.path())
        {
            return Some(format!(
                "mounted at {point} in the namespace of process {pid}; run: nsenter -t {pid} -m umount {}",
                quoted(&point)
            ));
        }
    }
    None
}

/// The file system of several devices that it is one of. Mounts name the first of them only.
fn pool(parts: &[Part], sysfs: &Path) -> Option<String> {
    let is_device = |pool: &Path| {
        let name = |part: &Part| super::device_name(&part.path).to_owned();
        parts.iter().any(|part| fs::symlink_metadata(pool.join("devices").join(name(part))).is_ok())
    };
    let mut pools = fs::read_dir(sysfs.join("fs/btrfs")).ok()?.flatten();
    let pool = pools.find(|pool| is_device(&pool.path()))?;
    Some(pool.file_name().to_string_lossy().into_owned())
}

/// A device that is made of the disk: RAID, a mapping.
fn holder(parts: &[Part]) -> Option<String> {
    let held = |part: &Part| fs::read_dir(part.sysfs.join("holders")).ok()?.flatten().next();
    parts.iter().find_map(held).map(|holder| holder.file_name().to_string_lossy().into_owned())
}

/// A loop device that has it for its file: the kernel keeps that open itself.
fn loop_device(parts: &[Part], sysfs: &Path) -> Option<String> {
    let mut devices = fs::read_dir(sysfs.join("block")).ok()?.flatten();
    devices.find_map(|device| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        let name = device.file_name().to_string_lossy().into_owned();
        parts.iter().any(|part| part.path == file.trim_end()).then_some(name)
    })
}

fn swap<'a>(swaps: &str, parts: &'a [Part]) -> Option<&'a str> {
    let mut names = swaps.lines().filter_map(|line| line.split_whitespace().next());
    names.find_map(|name| parts.iter().find(|part| part.path == name)).map(|part| &*part.path)
}

/// A process that has it open besides us and its daemon, which sets an nbd device up by keeping it open.
fn opener(parts: &[Part], daemon: u32) -> Option<String> {
    let known = [std::process::id(), daemon];
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if known.contains(&pid) {
            continue;
        }
        // A process that has ended, or is another's.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Some((major, minor)) = block_device(&file.path()) else { continue };
            if let Some(part) = parts.iter().find(|part| part.is_of(major, minor)) {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                let (command, path) = (command.trim_end(), &part.path);
                return Some(format!("process {pid} ({command}) has {path} open"));
            }
        }
    }
    None
}

/// The number of a block device, as this machine knows it: the server of a file on the network, which may be away, is not asked.
fn block_device(path: &Path) -> Option<(u32, u32)> {
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    FileType::from_raw_mode(found.stx_mode.into())
        .is_block_device()
        .then_some((found.stx_rdev_major, found.stx_rdev_minor))
}

/// Where the disk, or a partition of it, is mounted (proc_pid_mountinfo(5)): by its number, or, where a file system has one
/// of its own, by its name.
fn mount_point(mountinfo: &str, parts: &[Part]) -> Option<String> {
    mountinfo.lines().find_map(|line| {
        let (fields, after) = line.split_once(" - ")?;
        let (number, point) = (fields.split(' ').nth(2)?, fields.split(' ').nth(4)?);
        let source = after.split(' ').nth(1)?;
        let is_it = parts.iter().any(|part| part.number == number || part.path == source);
        is_it.then(|| point.replace("\\040", " "))
    })
}

/// Makes what the kernel has cached for a disk durable.
///
/// # Errors
/// The disk fails.
pub(crate) fn settle(path: &str, claim: &File) -> Result<()> {
    claim.sync_all().map_err(|err| {
        let what = format!("cannot flush {path}");
        Error::failed(what).caused_by(err).help("see dmesg; to discard unwritten data, add --force")
    })
}

/// Whether the kernel has such a disk, whatever is in our `/dev`.
///
/// # Errors
/// It cannot be told.
pub(crate) fn has_disk(path: &str) -> io::Result<bool> {
    has_disk_in(Path::new(SYSFS), path)
}

fn has_disk_in(sysfs: &Path, path: &str) -> io::Result<bool> {
    is_in_sysfs(&sysfs.join("block").join(super::device_name(path)))
}

/// Whether there is such an entry in a directory of sysfs. Without that directory nobody can tell.
///
/// # Errors
/// It cannot be told.
pub(crate) fn is_in_sysfs(entry: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(entry) {
        Ok(_) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            entry.parent().map_or(Ok(false), |parent| fs::metadata(parent).map(|_| false))
        }
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::mpsc;

    use blockyard_conformance::faulty::{Call, Faulty};
    use blockyard_conformance::in_own_mounts;

    use super::*;

    /// A disk with two partitions, of which one is part of a RAID, and its neighbour of nearly the same name.
    fn sysfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = dir.path().join("block").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("nbd1/dev", "43:32\n");
        put("nbd1/nbd1p1/dev", "43:33\n");
        put("nbd1/nbd1p1/partition", "1\n");
        put("nbd1/nbd1p2/dev", "259:0\n");
        put("nbd1/nbd1p2/partition", "2\n");
        put("nbd1/queue/dev", "is none\n");
        put("nbd10/dev", "43:320\n");
        dir
    }

    #[test]
    fn partitions_are_looked_at_with_their_disk_and_no_others() {
        let sysfs = sysfs();
        let mut parts = parts("/dev/nbd1", sysfs.path());
        parts.sort_by(|one, two| one.path.cmp(&two.path));
        let names: Vec<_> = parts.iter().map(|part| (&*part.path, &*part.number)).collect();
        assert_eq!(
            names,
            [("/dev/nbd1", "43:32"), ("/dev/nbd1p1", "43:33"), ("/dev/nbd1p2", "259:0")]
        );
        assert!(parts[2].is_of(259, 0));
        assert_eq!(holder(&parts), None);
        fs::create_dir_all(sysfs.path().join("block/nbd1/nbd1p2/holders/md0")).unwrap();
        assert_eq!(holder(&parts).unwrap(), "md0");

        assert_eq!(loop_device(&parts, sysfs.path()), None);
        fs::create_dir_all(sysfs.path().join("block/loop3/loop")).unwrap();
        fs::write(sysfs.path().join("block/loop3/loop/backing_file"), "/dev/nbd1p1\n").unwrap();
        assert_eq!(loop_device(&parts, sysfs.path()).unwrap(), "loop3");

        let swaps = "Filename Type Size Used Priority\n/dev/nbd10 partition 1 0 -2\n";
        assert_eq!(swap(swaps, &parts), None);
        let swaps = format!("{swaps}/dev/nbd1p2 partition 1 0 -2\n");
        assert_eq!(swap(&swaps, &parts), Some("/dev/nbd1p2"));
    }

    #[test]
    fn a_mount_is_found_in_whatever_namespace_it_is() {
        let sysfs = sysfs();
        let parts = parts("/dev/nbd1", sysfs.path());
        let proc = tempfile::tempdir().unwrap();
        let put = |process: &str, namespace: u32, mounts: &str| {
            let process = proc.path().join(process);
            fs::create_dir_all(process.join("ns")).unwrap();
            let link = process.join("ns/mnt");
            std::os::unix::fs::symlink(format!("mnt:[{namespace}]"), link).unwrap();
            fs::write(process.join("mountinfo"), mounts).unwrap();
        };
        let line = "23 1 259:0 / /data rw - ext4 /dev/nbd1p2 rw\n";
        let other = "22 1 43:320 / /other rw shared:1 - ext4 /dev/nbd10 rw\n";
        put("self", 1, other);
        put("17", 1, line);
        assert_eq!(mount_of(&parts, proc.path()), None, "all of a namespace see the same");
        put("40", 2, other);
        put("41", 3, line);
        let found = mount_of(&parts, proc.path()).unwrap();
        assert!(found.contains("in the namespace of process 41"), "{found}");
        fs::write(proc.path().join("self/mountinfo"), line).unwrap();
        assert!(mount_of(&parts, proc.path()).unwrap().contains("run: umount /data"));
    }

    #[test]
    fn a_device_of_a_pool_is_found_whichever_it_is() {
        let sysfs = sysfs();
        let parts = parts("/dev/nbd1", sysfs.path());
        assert_eq!(pool(&parts, sysfs.path()), None);
        let devices = sysfs.path().join("fs/btrfs/1234-abcd/devices");
        fs::create_dir_all(devices.join("nbd10")).unwrap();
        assert_eq!(pool(&parts, sysfs.path()), None);
        fs::create_dir_all(devices.join("nbd1p2")).unwrap();
        assert_eq!(pool(&parts, sysfs.path()).unwrap(), "1234-abcd");
    }

    #[test]
    fn whether_there_is_a_disk_is_the_kernels_to_say() {
        let sysfs = sysfs();
        assert!(has_disk_in(sysfs.path(), "/dev/nbd1").unwrap(), "there is no such file in /dev");
        assert!(!has_disk_in(sysfs.path(), "/dev/null").unwrap(), "there is such a file in /dev");
        has_disk_in(&sysfs.path().join("elsewhere"), "/dev/nbd1").unwrap_err();
    }

    /// Killed when the test ends, however it does.
    struct Guard(Child);

    impl Drop for Guard {
        fn drop(&mut self) {
            // It may have ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn who_has_a_disk_open_is_found_while_the_server_of_another_file_hangs() {
        in_own_mounts!();
        let fs = Faulty::on_the_network(4096);
        let file = File::open(fs.file()).unwrap();
        let mut other = Command::new("cat");
        let _other = Guard(other.stdin(Stdio::piped()).stdout(file).spawn().unwrap());
        let held = fs.hold(Call::Attr);
        let parts = parts("/dev/nbd1", sysfs().path());
        let (tell, told) = mpsc::channel();
        let looking = std::thread::spawn(move || tell.send(opener(&parts, 0)));
        let found = told.recv_timeout(Duration::from_secs(60));
        drop(held);
        looking.join().unwrap().unwrap();
        assert_eq!(found, Ok(None));
    }

    #[test]
    fn a_mount_is_found_by_its_number_or_by_its_name() {
        let sysfs = sysfs();
        let parts = parts("/dev/nbd1", sysfs.path());
        let other = "22 1 43:320 / /other rw shared:1 - ext4 /dev/nbd10 rw\n";
        assert_eq!(mount_point(other, &parts), None);
        let by_number = format!("{other}23 1 259:0 / /a\\040b rw - ext4 /dev/disk/by-label/x rw\n");
        assert_eq!(mount_point(&by_number, &parts).unwrap(), "/a b");
        let by_name = format!("{other}24 1 0:44 / /pool rw - btrfs /dev/nbd1p1 rw\n");
        assert_eq!(mount_point(&by_name, &parts).unwrap(), "/pool");
    }
}
