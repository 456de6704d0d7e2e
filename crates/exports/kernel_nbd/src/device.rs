//! What the kernel shows of its devices (sysfs).

use std::path::{Path, PathBuf};

/// Where a device is.
#[must_use]
pub fn path(index: u32) -> String {
    format!("/dev/nbd{index}")
}

fn sysfs(index: u32) -> PathBuf {
    Path::new("/sys/block").join(format!("nbd{index}"))
}

fn read(index: u32, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(sysfs(index).join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// The mark that the maker of a device gave it ([`Setup::identifier`](crate::Setup::identifier)); none if it has
/// none, or is not connected.
#[must_use]
pub fn backend(index: u32) -> Option<String> {
    read(index, "backend")
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
