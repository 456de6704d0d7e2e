//! What concerns no data: names, attributes, opening, listing. All of it is answered at once.

use blockyard_fuse::dirent::{Dirent, Entries};
use blockyard_fuse::wire::{Attr, AttrOut, EntryOut, FopenFlags, Kstatfs, OpenIn, OpenOut, ReadIn};
use blockyard_fuse::{Errno, Name, Operation, Payload, ROOT_ID, Reply, SetAttr};

use crate::mount::Cache;
use crate::tree::{NAME_MAX, Node, Nodes, Tree};

/// For how many seconds a name holds. One that is taken away is told of.
const ENTRY_VALID: u64 = 1;
/// Bytes of a block in what statfs(2) shows.
const BLOCK: u32 = 4096;
/// How a file is opened (`O_ACCMODE` and what it says).
const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;
/// What kind of file an entry is (`DT_*`).
const DT_DIR: u32 = 4;
const DT_REG: u32 = 8;
/// A node that is not there any more (`ESTALE`).
const ESTALE: i32 = 116;

/// The files, as they are answered with.
pub(crate) struct Names<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) nodes: &'a Nodes,
    pub(crate) cache: Cache,
}

/// The errno of a node that there is not.
pub(crate) const fn stale() -> Errno {
    Errno::from_raw(ESTALE)
}

impl Names<'_> {
    /// The answer to `operation` on `node`, with `list` as room for entries; `None` if it is not one of these.
    pub(crate) fn answer<'l>(
        &self,
        nodeid: u64,
        operation: &Operation<'_>,
        list: &'l mut Vec<u8>,
    ) -> Option<Reply<'l>> {
        let is_root = self.nodes.is_directory && nodeid == ROOT_ID;
        let answer = match operation {
            Operation::Lookup(name) if is_root => self.lookup(*name),
            Operation::Getattr(_) => self.attr(nodeid).map(attr_out),
            Operation::Setattr(set) => self.set(nodeid, set),
            Operation::Open(args) => self.open(nodeid, args),
            Operation::Opendir(_) if is_root => Ok(Reply::Open(OpenOut::default())),
            Operation::Readdir(args) if is_root => {
                self.list(args, list);
                let payload = Payload { here: list, elsewhere: 0 };
                return Some(Reply::Data(payload));
            }
            Operation::Lookup(_) | Operation::Opendir(_) | Operation::Readdir(_) => {
                Err(Errno::ENOTDIR)
            }
            Operation::Statfs => Ok(Reply::Statfs(self.statfs())),
            Operation::Release(_) | Operation::Releasedir(_) | Operation::Fsyncdir(_) => {
                Ok(Reply::Empty)
            }
            Operation::Destroy => Ok(Reply::Empty),
            // Nobody makes disks by making files.
            Operation::Mknod(..)
            | Operation::Mkdir(..)
            | Operation::Create(..)
            | Operation::Tmpfile(_)
            | Operation::Symlink { .. }
            | Operation::Link { .. }
            | Operation::Unlink(_)
            | Operation::Rmdir(_)
            | Operation::Rename { .. }
            | Operation::Rename2 { .. } => Err(Errno::EPERM),
            Operation::Ioctl(..) => Err(Errno::ENOTTY),
            Operation::Read(_)
            | Operation::Write(..)
            | Operation::Fsync(_)
            | Operation::Fallocate(_)
            | Operation::Lseek(_) => return None,
            // The kernel does without, and does not ask again.
            _ => Err(Errno::ENOSYS),
        };
        Some(answer.unwrap_or_else(Reply::Error))
    }

    fn node(&self, nodeid: u64) -> Result<&Node, Errno> {
        self.nodes.files.get(&nodeid).map(|node| &**node).ok_or(stale())
    }

    fn attr(&self, nodeid: u64) -> Result<Attr, Errno> {
        if self.nodes.is_directory && nodeid == ROOT_ID {
            return Ok(self.tree.directory_attr());
        }
        self.node(nodeid).map(|node| self.tree.file_attr(node))
    }

    fn lookup(&self, name: Name<'_>) -> Result<Reply<'static>, Errno> {
        if name.bytes().len() > NAME_MAX {
            /// `ENAMETOOLONG`.
            const TOO_LONG: i32 = 36;
            return Err(Errno::from_raw(TOO_LONG));
        }
        let node = self.nodes.named(name.bytes()).ok_or(Errno::ENOENT)?;
        Ok(Reply::Entry(EntryOut {
            nodeid: node.id,
            entry_valid: ENTRY_VALID,
            attr: self.tree.file_attr(node),
            ..EntryOut::default()
        }))
    }

    /// Size, owner and mode are the disk's; times are nobody's.
    fn set(&self, nodeid: u64, set: &SetAttr) -> Result<Reply<'static>, Errno> {
        let attr = self.attr(nodeid)?;
        let changes = |asked: Option<u32>, is: u32| asked.is_some_and(|asked| asked != is);
        // A size of 0 without an open file is what an open with O_TRUNC asks for: it leaves a disk as it is, and the answer
        // says so. As the size stays the same, the kernel keeps what is in its cache. truncate(2) cannot be told from it.
        let is_open_truncate = |size| size == 0 && set.fh().is_none();
        if set.size().is_some_and(|size| size != attr.size && !is_open_truncate(size)) {
            return Err(Errno::EINVAL);
        }
        /// Permissions, less the kind of file.
        const PERMISSIONS: u32 = 0o7777;
        let mode = set.mode().map(|mode| mode & PERMISSIONS);
        if changes(mode, attr.mode & PERMISSIONS)
            || changes(set.uid(), attr.uid)
            || changes(set.gid(), attr.gid)
        {
            return Err(Errno::EPERM);
        }
        Ok(attr_out(attr))
    }

    fn open(&self, nodeid: u64, args: &OpenIn) -> Result<Reply<'static>, Errno> {
        let node = self.node(nodeid)?;
        if args.flags & O_ACCMODE != O_RDONLY && node.bdev.is_read_only() {
            return Err(Errno::EROFS);
        }
        // Not NOFLUSH: without the kernel's FLUSH, which is not answered, it would not write back what is dirty either.
        let open_flags = match self.cache {
            // A disk does not grow by writes, so that they need not wait for each other.
            Cache::Bypassed => FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES,
            Cache::Used => FopenFlags::empty(),
        };
        Ok(Reply::Open(OpenOut { open_flags, ..OpenOut::default() }))
    }

    /// The entries behind a cookie: 0 is the start, 1 and 2 stand behind the dots, a node's ID behind its entry.
    fn list(&self, args: &ReadIn, list: &mut Vec<u8>) {
        list.clear();
        let mut entries = Entries::new(list, args.size);
        let dots = [(1, &b"."[..]), (2, b"..")];
        let dots = dots.into_iter().map(|(next, name)| (next, ROOT_ID, DT_DIR, name));
        let files = self.nodes.files.values();
        let files = files.map(|node| (node.id, node.id, DT_REG, node.name.as_bytes()));
        for (next, ino, kind, name) in dots.chain(files).filter(|entry| entry.0 > args.offset) {
            let Ok(name) = Name::new(name) else { continue };
            if !entries.add(&Dirent { ino, next, kind, name }) {
                return;
            }
        }
    }

    fn statfs(&self) -> Kstatfs {
        let bytes = self.nodes.files.values().map(|node| node.bdev.size_bytes());
        Kstatfs {
            blocks: bytes.fold(0, u64::saturating_add) / u64::from(BLOCK),
            files: self.nodes.files.len() as u64,
            bsize: BLOCK,
            frsize: BLOCK,
            namelen: u32::try_from(NAME_MAX).unwrap_or(u32::MAX),
            ..Kstatfs::default()
        }
    }
}

/// Attributes hold until they are looked at: a disk may change its size at any time.
fn attr_out(attr: Attr) -> Reply<'static> {
    Reply::Attr(AttrOut { attr, ..AttrOut::default() })
}
