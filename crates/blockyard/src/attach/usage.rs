//! Who uses a disk of the kernel.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::error::{Error, ErrorKind, Result};

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
                    .unwrap_or_else(|| busy(path, "somebody claims it")))
            }
            Err(err) => {
                return Err(Error::failed(format!("{path} cannot be opened")).caused_by(err));
            }
        };
        match claimed {
            Err(_) if Instant::now() < end => std::thread::sleep(GLANCE_POLL),
            claimed => return claimed,
        }
    }
}

/// Looks whether anybody but us and its daemon uses a disk, without opening it.
///
/// # Errors
/// [`ErrorKind::Busy`] says by whom it is used.
pub(crate) fn check_unused(path: &str, daemon: u32) -> Result<()> {
    let mounted =
        || mount_point(path).map(|point| format!("it is mounted at {point}; run: umount {point}"));
    let swap = || is_swap(path).then(|| format!("it is swap space; run: swapoff {path}"));
    let held = || holder(path).map(|name| format!("it is part of {name}"));
    match mounted().or_else(swap).or_else(held).or_else(|| opener(path, daemon)) {
        Some(who) => Err(busy(path, &who)),
        None => Ok(()),
    }
}

fn busy(path: &str, who: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("{path} is in use: {who}"))
}

/// A device that is made of the disk: RAID, a mapping.
fn holder(path: &str) -> Option<String> {
    let holders = Path::new("/sys/class/block").join(super::device_name(path)).join("holders");
    let holder = fs::read_dir(holders).ok()?.flatten().next()?;
    Some(holder.file_name().to_string_lossy().into_owned())
}

fn is_swap(path: &str) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().any(|line| is_of_disk(path, line.split_whitespace().next().unwrap_or("")))
}

/// Whether a path is that of the disk or of a partition of it.
fn is_of_disk(disk: &str, path: &str) -> bool {
    path.strip_prefix(disk).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('p').is_some_and(|part| part.parse::<u32>().is_ok())
    })
}

/// A process that has the disk open besides us and its daemon, which sets an nbd device up by keeping it open.
fn opener(path: &str, daemon: u32) -> Option<String> {
    let device = fs::metadata(path).ok()?.rdev();
    let known = [std::process::id(), daemon];
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A process that has ended, or is another's.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(found) = fs::metadata(file.path()) else { continue };
            if !known.contains(&pid)
                && found.file_type().is_block_device()
                && found.rdev() == device
            {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!("process {pid} ({}) has it open", command.trim_end()));
            }
        }
    }
    None
}

/// Where the disk, or a partition of it, is mounted.
fn mount_point(path: &str) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (source, point) = (fields.next()?, fields.next()?);
        is_of_disk(path, source).then(|| point.replace("\\040", " "))
    })
}

/// Makes what the kernel has cached for a disk durable.
///
/// # Errors
/// The disk fails.
pub(crate) fn settle(path: &str, claim: &File) -> Result<()> {
    claim.sync_all().map_err(|err| {
        let what = format!("what was written to {path} cannot be made durable");
        Error::failed(what).caused_by(err).help("see dmesg; add --force to give it up")
    })
}

/// Whether a process has ended, or is about to: threads of it that the kernel cannot stop may be left.
pub(super) fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may be anything in parentheses (proc_pid_stat(5)).
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// Whether there is such a device.
pub(crate) fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_belong_to_their_disk_and_other_disks_do_not() {
        for path in ["/dev/nbd1", "/dev/nbd1p2", "/dev/nbd1p10"] {
            assert!(is_of_disk("/dev/nbd1", path), "{path}");
        }
        for path in ["/dev/nbd10", "/dev/nbd1px", "/dev/nbd1p", "/dev/nbd2p1", "tmpfs"] {
            assert!(!is_of_disk("/dev/nbd1", path), "{path}");
        }
    }

    #[test]
    fn a_process_that_is_there_has_not_ended() {
        assert!(!has_ended(std::process::id()));
        assert!(has_ended(u32::MAX));
    }
}
