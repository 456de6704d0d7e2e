//! What the kernel shows of its devices (sysfs).

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Where the kernel tells of its devices.
const SYSFS: &str = "/sys";

/// Where a device is.
#[must_use]
pub fn path(index: u32) -> String {
    format!("/dev/nbd{index}")
}

fn sysfs(index: u32) -> PathBuf {
    Path::new(SYSFS).join("block").join(format!("nbd{index}"))
}

fn read(index: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(sysfs(index).join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// The mark that the maker of a device gave it ([`Setup::identifier`](crate::Setup::identifier)); none if it has
/// none, or is not connected.
///
/// # Errors
/// The kernel does not tell.
pub fn backend(index: u32) -> io::Result<Option<String>> {
    backend_in(Path::new(SYSFS), index)
}

fn backend_in(sysfs: &Path, index: u32) -> io::Result<Option<String>> {
    let block = sysfs.join("block");
    match std::fs::read_to_string(block.join(format!("nbd{index}/backend"))) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // The file goes with the connection, maybe while it is read. Where there is no sysfs, that says nothing.
        Err(err) if is_no_file(&err) => std::fs::metadata(&block).map(|_| None),
        Err(err) => Err(err),
    }
}

fn is_no_file(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// The process that set a device up; none while it is not connected.
#[must_use]
pub fn server(index: u32) -> Option<u32> {
    read(index, "pid")?.parse().ok()
}

/// The first device that is not connected.
pub(crate) fn first_free() -> Option<u32> {
    (0..).take_while(|index| sysfs(*index).exists()).find(|index| server(*index).is_none())
}

/// Whether there are any devices.
pub(crate) fn any() -> bool {
    Path::new("/dev/nbd0").exists() || sysfs(0).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_a_mark_is_told_from_one_that_cannot_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        backend_in(dir.path(), 0).unwrap_err();
        let device = dir.path().join("block/nbd0");
        std::fs::create_dir_all(&device).unwrap();
        assert_eq!(backend_in(dir.path(), 0).unwrap(), None);
        assert_eq!(backend_in(dir.path(), 1).unwrap(), None);
        std::fs::write(device.join("backend"), "ours\n").unwrap();
        assert_eq!(backend_in(dir.path(), 0).unwrap().unwrap(), "ours");
        std::fs::remove_file(device.join("backend")).unwrap();
        std::fs::create_dir(device.join("backend")).unwrap();
        backend_in(dir.path(), 0).unwrap_err();
    }
}
