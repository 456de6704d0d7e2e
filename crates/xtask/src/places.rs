//! A directory for temporary files for each job: what a test leaves there is found and removed.

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// How many files that were left behind are told by name.
const TOLD: usize = 5;

/// The directories of jobs that run beside each other.
#[derive(Debug)]
pub(crate) struct Places {
    // Short, as paths of sockets are: at most 107 bytes, unix(7).
    root: TempDir,
}

impl Places {
    pub(crate) fn new() -> Result<Self> {
        let root = tempfile::Builder::new().prefix("by-").tempdir();
        Ok(Self { root: root.context("cannot make a directory for temporary files")? })
    }

    /// Makes the directory of a job, with this number.
    pub(crate) fn make(&self, number: usize) -> Result<PathBuf> {
        let place = self.root.path().join(number.to_string());
        fs::create_dir(&place).with_context(|| format!("cannot make {}", place.display()))?;
        Ok(place)
    }

    /// Call when nothing runs any more. Says what was left in the directory of a job, unmounts and removes it.
    pub(crate) fn left(&self, number: usize) -> Vec<String> {
        let place = self.root.path().join(number.to_string());
        let mut left = Vec::new();
        for path in mounts_below(&fs::read("/proc/self/mountinfo").unwrap_or_default(), &place) {
            left.push(format!("a mount on {}", path.display()));
            // Its server may be dead, so that nothing but this works.
            let _ = unmount(&path, UnmountFlags::DETACH);
        }
        left.extend(loop_devices(&place).iter().map(|name| format!("/dev/{name}, a loop device")));
        let files: Vec<_> = fs::read_dir(&place).into_iter().flatten().flatten().collect();
        left.extend(files.iter().take(TOLD).map(|file| file.path().display().to_string()));
        if files.len() > TOLD {
            left.push(format!("and {} more files", files.len() - TOLD));
        }
        let _ = fs::remove_dir_all(place);
        left
    }
}

/// Mount points below a directory, those on top first (proc_pid_mountinfo(5): the fifth field).
fn mounts_below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    let lines = mountinfo.split(|&byte| byte == b'\n');
    let points = lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(4));
    let mut below: Vec<_> = points.map(unescaped).filter(|path| path.starts_with(dir)).collect();
    below.reverse();
    below
}

/// Blanks, tabs, newlines and backslashes are `\` and three octal digits.
fn unescaped(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((&first, rest)) = field.split_first() {
        let code = (first == b'\\').then(|| rest.get(..3)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 8).ok());
        path.push(code.unwrap_or(first));
        field = if code.is_some() { &rest[3..] } else { rest };
    }
    OsString::from_vec(path).into()
}

/// The loop devices whose file is below a directory.
fn loop_devices(dir: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let is_below = |device: &fs::DirEntry| {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).ok()?;
        Path::new(file.trim_end()).starts_with(dir).then_some(())
    };
    devices
        .filter(|device| is_below(device).is_some())
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_were_left_are_told_and_removed() {
        let places = Places::new().unwrap();
        let (clean, full) = (places.make(0).unwrap(), places.make(1).unwrap());
        for number in 0..7 {
            fs::write(full.join(format!("file{number}")), "").unwrap();
        }
        assert_eq!(places.left(0), Vec::<String>::new());
        let left = places.left(1);
        assert!(left[0].contains("/1/file") && left[5] == "and 2 more files", "{left:?}");
        assert!(!clean.exists() && !full.exists());
    }

    #[test]
    fn mounts_are_found_by_their_place_whatever_its_name() {
        let info = b"36 35 98:0 / /a/b rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 36 0:9 / /a/b/c\\040\\134d rw - fuse.x y rw\n\
                     38 35 0:9 / /a/bc rw - fuse.x y rw\n\n";
        let found = mounts_below(info, Path::new("/a/b"));
        assert_eq!(found, [PathBuf::from("/a/b/c \\d"), PathBuf::from("/a/b")]);
    }
}
