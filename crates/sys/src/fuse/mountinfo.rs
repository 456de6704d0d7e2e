//! What is mounted where (proc_pid_mountinfo(5)). Asking touches none of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Its number, as long as it is mounted.
    pub id: u64,
    /// That of the mount that it is mounted upon.
    pub parent: u64,
    /// Where.
    pub target: PathBuf,
    /// The kind of file system, as `fuse.blockyard`.
    pub kind: String,
    /// What it was mounted from.
    pub source: String,
}

/// All mounts that this process sees, in the order in which they were made.
///
/// # Errors
/// `/proc` is not there.
pub fn mounts() -> io::Result<Vec<MountInfo>> {
    Ok(std::fs::read("/proc/self/mountinfo")?
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The one of `mounts` that an absolute path without symbolic links leads into, past all that is covered by others.
#[must_use]
pub fn reached<'a>(mounts: &'a [MountInfo], path: &Path) -> Option<&'a MountInfo> {
    let has_parent = |mount: &MountInfo| {
        mount.id != mount.parent && mounts.iter().any(|other| other.id == mount.parent)
    };
    let first = |is_next: &dyn Fn(&MountInfo) -> bool| {
        let on_the_way = mounts.iter().filter(|mount| path.starts_with(&mount.target));
        let next = on_the_way.filter(|mount| is_next(mount));
        next.min_by_key(|mount| mount.target.components().count())
    };
    let mut reached = first(&|mount| !has_parent(mount))?;
    // Each is met once, if the kernel's tree is one.
    for _ in 0..mounts.len() {
        let id = reached.id;
        match first(&|mount| mount.parent == id && mount.id != id) {
            Some(next) => reached = next,
            None => break,
        }
    }
    Some(reached)
}

/// ID, parent, device, root, target, options, any number of fields, `-`, kind, source, options.
fn parse(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let target = unescape(fields.nth(2)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let kind = text(fields.next()?);
    let source = text(fields.next()?);
    Some(MountInfo { id, parent, target: OsString::from_vec(target).into(), kind, source })
}

/// Blanks and backslashes are written as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = after.get(3..).unwrap_or(&[]);
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_optional_fields() {
        let line = br"36 35 98:0 / /mnt/a\040b\134c rw,noatime master:1 shared:2 - fuse.blockyard x:1 rw,user_id=0";
        let info = parse(line).unwrap();
        assert_eq!((info.id, info.parent), (36, 35));
        assert_eq!(info.target.to_str(), Some("/mnt/a b\\c"));
        assert_eq!((&info.kind[..], &info.source[..]), ("fuse.blockyard", "x:1"));
        let plain = parse(br"1 0 0:1 / / rw - rootfs none rw").unwrap();
        assert_eq!((plain.target.to_str(), &plain.source[..]), (Some("/"), "none"));
        for short in [&b""[..], b"1 2", b"1 0 0:1 / / rw", b"1 0 0:1 / / rw - ext4"] {
            assert_eq!(parse(short), None);
        }
        assert_eq!(unescape(br"\9\04"), br"\9\04");
    }

    #[test]
    fn a_path_leads_into_the_mount_on_top() {
        let mount = |(id, parent, target): (u64, u64, &str)| MountInfo {
            id,
            parent,
            target: target.into(),
            kind: String::new(),
            source: String::new(),
        };
        let list = |mounts: &[(u64, u64, &str)]| mounts.iter().copied().map(mount).collect();
        // A mount of a directory that another was mounted over later, two at one place, and the start of the boot below all.
        let mounts: Vec<_> = list(&[
            (2, 1, "/"),
            (3, 2, "/a/b"),
            (4, 2, "/a"),
            (5, 2, "/c"),
            (6, 5, "/c"),
            (7, 6, "/c/d e"),
        ]);
        for (path, id) in [("/", 2), ("/x", 2), ("/a/b", 4), ("/a", 4), ("/c", 6), ("/cc", 2)] {
            assert_eq!(reached(&mounts, Path::new(path)).map(|mount| mount.id), Some(id), "{path}");
        }
        assert_eq!(reached(&mounts, Path::new("/c/d e/f")).map(|mount| mount.id), Some(7));
        assert_eq!(reached(&[], Path::new("/")), None);
        let circle: Vec<_> = list(&[(1, 9, "/"), (2, 3, "/a"), (3, 2, "/a"), (4, 4, "/")]);
        assert_eq!(reached(&circle, Path::new("/a")).map(|mount| mount.id), Some(1));
    }

    #[test]
    fn something_is_mounted_here() {
        assert!(mounts().unwrap().iter().any(|mount| mount.target.to_str() == Some("/")));
    }
}
