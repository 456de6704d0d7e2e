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

/// Opens a disk that nobody else uses, so that nobody can mount it meanwhile.
///
/// # Errors
/// [`ErrorKind::Busy`] says by whom it is used.
pub(crate) fn claim(path: &str) -> Result<File> {
    let end = Instant::now() + GLANCE;
    loop {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::EXCL | OFlags::CLOEXEC).bits().cast_signed());
        let claimed = match options.open(path) {
            Ok(file) => match opener(&file) {
                None => Ok(file),
                Some(who) => Err(busy(path, &who)),
            },
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy => {
                let who = mount_point(path).map_or_else(
                    || "it is part of another device, or swap space".into(),
                    |point| format!("it is mounted at {point}; run: umount {point}"),
                );
                Err(busy(path, &who))
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

fn busy(path: &str, who: &str) -> Error {
    Error::new(ErrorKind::Busy, format!("{path} is in use: {who}"))
}

/// A process that has the disk, or a partition of it, open besides us.
fn opener(disk: &File) -> Option<String> {
    let device = disk.metadata().ok()?.rdev();
    let ours = std::process::id().to_string();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        // A process that has ended, or is another's.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        for file in files.flatten() {
            let Ok(found) = fs::metadata(file.path()) else { continue };
            if pid != ours && found.file_type().is_block_device() && found.rdev() == device {
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
    let of_disk = |source: &str| {
        source.strip_prefix(path).is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix('p').is_some_and(|part| part.parse::<u32>().is_ok())
        })
    };
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (source, point) = (fields.next()?, fields.next()?);
        of_disk(source).then(|| point.replace("\\040", " "))
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
