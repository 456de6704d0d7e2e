//! The archive format of an initramfs, "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

/// The file types of `mode`, as in stat(2).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive that grows. All in it belongs to root; the directories of a path are made with it.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    /// A directory, and those above it.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if !path.is_empty() && self.known.insert(path.to_owned()) {
            self.parents(path);
            self.entry(path, DIRECTORY | 0o755, &[]);
        }
    }

    /// A file. The first one with a path stays, as the same library serves many programs.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        let path = path.trim_matches('/');
        if self.known.insert(path.to_owned()) {
            self.parents(path);
            self.entry(path, REGULAR | (permissions & 0o7777), content);
        }
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        let path = path.trim_matches('/');
        if self.known.insert(path.to_owned()) {
            self.parents(path);
            self.entry(path, SYMLINK | 0o777, target.as_bytes());
        }
    }

    /// Whether there is something at this path.
    pub(super) fn has(&self, path: &str) -> bool {
        self.known.contains(path.trim_matches('/'))
    }

    /// The bytes for the kernel.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    /// A header of 13 numbers of 8 hex digits each, the name with its zero byte, the content; name and content
    /// end at multiples of 4.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let inode = self.known.len();
        let (size, name_size) = (content.len(), name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header's fields: magic, inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor,
    /// rdevminor, namesize, check.
    #[test]
    fn a_file_as_the_format_says() {
        let mut archive = Archive::default();
        archive.file("/a/b", 0o100_755, b"hello");
        let bytes = archive.finish();
        let directory = "070701\
            00000002000041ed0000000000000000000000010000000000000000000000000000000000000000000000000000000200000000";
        let file = "070701\
            00000002000081ed0000000000000000000000010000000000000005000000000000000000000000000000000000000400000000";
        let end = "070701\
            0000000200000000000000000000000000000001000000000000000000000000000000000000000000000000000000\
            0b00000000";
        let expected = format!("{directory}a\0{file}a/b\0\0\0hello\0\0\0{end}TRAILER!!!\0\0\0\0");
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn nothing_is_in_it_twice() {
        let mut archive = Archive::default();
        archive.file("lib/one", 0o644, b"1");
        archive.file("/lib/one", 0o644, b"2");
        archive.directory("lib");
        archive.symlink("lib/two", "one");
        assert!(archive.has("/lib/two") && !archive.has("lib/three"));
        let bytes = archive.finish();
        assert_eq!(bytes.windows(6).filter(|window| window == b"070701").count(), 4);
    }
}
