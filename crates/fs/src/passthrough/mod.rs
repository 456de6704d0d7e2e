//! A directory of the host, passed through.
//!
//! | what | by |
//! | --- | --- |
//! | a node | a file descriptor with `O_PATH`, opened by one name below the directory's own, links not followed |
//! | one of many nodes | the same, but closed: what the kernel names it (name_to_handle_at(2)) opens it when it is asked for |
//! | a file that is opened | `/proc/self/fd/N` of its node: regular files and directories only |
//! | what is made | for who has asked for it, from the start (setfsuid(2)): nothing is given to anybody |
//!
//! So nothing leads out of the directory: a name has no slash in it and is not `..`, what it stands for is not followed, and
//! what is renamed meanwhile is the same file still. A directory that somebody on the host moves elsewhere stays known to who
//! knows it. File systems that are mounted below are part of it, with numbers of files
//! that differ from its own.

mod attributes;
mod devices;
mod files;
mod inodes;
mod listing;
mod memory;
mod names;
mod sync;
mod xattrs;

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blockyard_buf::Segment;
use blockyard_fuse::dirent::Entries;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name, SetAttr};
use blockyard_sys::file_handle::FileHandle;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, ResolveFlags, StatVfs, Statx, StatxFlags};
use rustix::path::DecInt;

use crate::filesystem::{FileSystem, Outcome, Who};
use devices::Devices;
use inodes::{Handles, Inode, Inodes, Key, Place};

/// How a name is looked up: it stays what it is and where it is, whoever changes links meanwhile.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
/// A place.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What is asked of each node.
const ATTRIBUTES: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// What the client may keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Nothing: what the host changes is seen at once.
    Never,
    /// Names and attributes for a second, data until a file is opened anew or seen to have changed.
    #[default]
    Auto,
    /// All of it: nobody else changes anything.
    Always,
}

/// Nodes that stay open, unless told otherwise: others, as many as the client knows, are opened when they are asked for.
const OPEN_NODES: usize = 512;

/// How a directory is passed through.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What the client may keep.
    pub cache: CachePolicy,
    /// Nothing can be changed.
    pub read_only: bool,
    /// Nodes that stay open, where others can be opened by a handle: as root, on file systems that have handles.
    pub open_nodes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache: CachePolicy::default(), read_only: false, open_nodes: OPEN_NODES }
    }
}

/// A directory, by which files of its mount are opened.
struct MountRoot {
    fd: OwnedFd,
    mount: i32,
}

impl MountRoot {
    /// That of a directory; `None` where nothing can be opened so.
    fn of(directory: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
        let (handle, mount) = FileHandle::of(&fd).ok()?;
        handle.open(&fd, PLACE).ok()?;
        Some(Self { fd, mount })
    }
}

/// A node, open for as long as it is asked something.
struct At {
    inode: Arc<Inode>,
    fd: Arc<OwnedFd>,
}

impl Deref for At {
    type Target = Inode;
    fn deref(&self) -> &Inode {
        &self.inode
    }
}

/// A directory of the host.
pub struct Passthrough {
    options: Options,
    /// How long a name and attributes hold.
    valid: Duration,
    /// User and group of this process.
    own: (u32, u32),
    /// Where files are opened by their handles, if that is possible.
    root: Option<MountRoot>,
    /// `/proc/self/fd`.
    own_files: OwnedFd,
    devices: Devices,
    inodes: Inodes,
    files: Handles<OwnedFd>,
    directories: Handles<Mutex<OwnedFd>>,
}

impl Passthrough {
    /// What is in that directory. What a program's umask takes away, the kernel has taken from what it asks for: the process of
    /// this is to have none.
    ///
    /// # Errors
    /// What keeps it from being opened; there is no `/proc`.
    pub fn new(directory: &Path, options: Options) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory, flags, Mode::empty())?;
        let own_files = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
        let found = stat(&root)?;
        let (device, ino) = ((found.stx_dev_major, found.stx_dev_minor), found.stx_ino);
        let key = Key { device, ino, handle: None };
        let handles = MountRoot::of(directory);
        let valid = match options.cache {
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Always => Duration::from_secs(24 * 60 * 60),
        };
        let inodes = Inodes::new(root, key, options.open_nodes);
        let (files, directories) = (Handles::default(), Handles::default());
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (root, devices) = (handles, Devices::new(device));
        Ok(Self { options, valid, own, root, own_files, devices, inodes, files, directories })
    }

    fn may_change(&self) -> Outcome {
        if self.options.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// A place below a directory, by one name.
    fn place(&self, parent: &At, name: Name<'_>) -> Outcome<OwnedFd> {
        rustix::fs::openat2(&parent.fd, name.bytes(), PLACE, Mode::empty(), RESOLVE).map_err(errno)
    }

    /// What a node is, open.
    fn at(&self, node: u64) -> Outcome<At> {
        let inode = self.inodes.find(node)?;
        let fd = match &inode.place {
            Place::Open(fd) => Arc::clone(fd),
            Place::Handle(handle) => {
                let root = self.root.as_ref().ok_or(Errno::EIO)?;
                let opened = handle.open(&root.fd, PLACE);
                Arc::new(opened.map_err(|err| {
                    Errno::from_raw(err.raw_os_error().unwrap_or(Errno::EIO.raw()))
                })?)
            }
        };
        Ok(At { inode, fd })
    }

    /// What tells a file from all others: with its handle, where it can be opened by that.
    fn key(&self, place: &OwnedFd, found: &Statx) -> Key {
        let handle = self.root.as_ref().and_then(|root| {
            let (handle, mount) = FileHandle::of(place).ok()?;
            (mount == root.mount).then_some(handle)
        });
        Key { device: (found.stx_dev_major, found.stx_dev_minor), ino: found.stx_ino, handle }
    }

    /// The node of a place, looked up once more.
    fn entry(&self, place: OwnedFd) -> Outcome<EntryOut> {
        let found = stat(&place).map_err(errno)?;
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        let key = self.key(&place, &found);
        let inode = self.inodes.look_up(place, key, kind);
        let (seconds, nanoseconds) = (self.valid.as_secs(), self.valid.subsec_nanos());
        Ok(EntryOut {
            nodeid: inode.id,
            generation: 0,
            entry_valid: seconds,
            attr_valid: seconds,
            entry_valid_nsec: nanoseconds,
            attr_valid_nsec: nanoseconds,
            attr: self.attr(&found),
        })
    }

    /// Opens what a node is, for good. What is no file and no directory is the client's to open. It waits for who has a lease
    /// of it (fcntl(2)): a client that has not asked not to wait would be surprised by `EAGAIN`.
    fn reopen(&self, inode: &At, flags: OFlags) -> Outcome<OwnedFd> {
        if !matches!(inode.kind, FileType::RegularFile | FileType::Directory) {
            return Err(Errno::EPERM);
        }
        self.open_own(&inode.fd, flags)
    }

    /// Opens what one of our own descriptors stands for.
    fn open_own(&self, fd: &OwnedFd, flags: OFlags) -> Outcome<OwnedFd> {
        let flags = (flags | OFlags::CLOEXEC) & !OFlags::NOFOLLOW;
        rustix::fs::openat(&self.own_files, DecInt::from_fd(fd), flags, Mode::empty())
            .map_err(errno)
    }

    fn by_fh_or_node(&self, node: u64, fh: Option<u64>) -> Outcome<Statx> {
        // One that has lost its name is found by its open file, and by its node as well.
        match fh.and_then(|fh| self.files.find(fh).ok()) {
            Some(file) => stat(&*file),
            None => stat(&self.at(node)?.fd),
        }
        .map_err(errno)
    }
}

/// What the system says of a descriptor.
fn stat(fd: impl AsFd) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, ATTRIBUTES)
}

fn errno(err: rustix::io::Errno) -> Errno {
    Errno::from_raw(err.raw_os_error())
}

/// `O_*` of a client, less what is not his to say.
fn open_flags(raw: u32) -> OFlags {
    // Not O_DIRECT: his buffers are not aligned as that wants it here. Not O_APPEND: each write says so.
    let his = OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC | OFlags::NOATIME;
    OFlags::from_bits_retain(raw) & his
}

impl FileSystem for Passthrough {
    fn flags(&self) -> InitFlags {
        let flags = InitFlags::DO_READDIRPLUS
            | InitFlags::READDIRPLUS_AUTO
            | InitFlags::DIRECT_IO_ALLOW_MMAP;
        match self.options.cache {
            CachePolicy::Never => flags,
            CachePolicy::Auto | CachePolicy::Always => flags | InitFlags::AUTO_INVAL_DATA,
        }
    }

    fn lookup(&self, parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        let parent = self.at(parent)?;
        self.entry(self.place(&parent, name)?)
    }

    fn forget(&self, node: u64, lookups: u64) {
        self.inodes.forget(node, lookups);
    }

    fn getattr(&self, node: u64, fh: Option<u64>) -> Outcome<AttrOut> {
        self.by_fh_or_node(node, fh).map(|found| self.attr_out(&found))
    }

    fn statx(&self, node: u64, args: &StatxIn) -> Outcome<StatxOut> {
        let fh = args.flags.contains(GetattrFlags::FH).then_some(args.fh);
        self.by_fh_or_node(node, fh).map(|found| self.statx_out(&found))
    }

    fn setattr(&self, node: u64, set: &SetAttr) -> Outcome<AttrOut> {
        self.may_change()?;
        self.set_attributes(node, set)
    }

    fn readlink(&self, node: u64, target: &mut Vec<u8>) -> Outcome {
        let inode = self.at(node)?;
        let found = rustix::fs::readlinkat(&inode.fd, c"", Vec::new()).map_err(errno)?;
        target.extend_from_slice(found.to_bytes());
        Ok(())
    }

    fn symlink(&self, who: Who, parent: u64, name: Name<'_>, target: &[u8]) -> Outcome<EntryOut> {
        self.make_symlink(who, parent, name, target)
    }

    fn mknod(&self, who: Who, parent: u64, name: Name<'_>, args: &MknodIn) -> Outcome<EntryOut> {
        self.make_node(who, parent, name, args)
    }

    fn mkdir(&self, who: Who, parent: u64, name: Name<'_>, args: &MkdirIn) -> Outcome<EntryOut> {
        self.make_directory(who, parent, name, args)
    }

    fn unlink(&self, parent: u64, name: Name<'_>) -> Outcome {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, parent: u64, name: Name<'_>) -> Outcome {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(&self, from: (u64, Name<'_>), to: (u64, Name<'_>), flags: u32) -> Outcome {
        self.move_to(from, to, flags)
    }

    fn link(&self, node: u64, parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        self.make_link(node, parent, name)
    }

    fn open(&self, node: u64, args: &OpenIn) -> Outcome<OpenOut> {
        self.open_file(node, args)
    }

    fn create(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &CreateIn,
    ) -> Outcome<(EntryOut, OpenOut)> {
        self.create_file(who, parent, name, args)
    }

    fn tmpfile(&self, who: Who, parent: u64, args: &CreateIn) -> Outcome<(EntryOut, OpenOut)> {
        self.make_tmpfile(who, parent, args)
    }

    fn read(&self, args: &ReadIn, into: &mut [u8]) -> Outcome<usize> {
        memory::read_all(&*self.files.find(args.fh)?, args.offset, into)
    }

    fn write(&self, args: &WriteIn, data: &[u8]) -> Outcome<u32> {
        self.write_file(args, &data)
    }

    fn read_segments(&self, args: &ReadIn, into: &[Segment]) -> Outcome<usize> {
        memory::read_all(&*self.files.find(args.fh)?, args.offset, into)
    }

    fn write_segments(&self, args: &WriteIn, data: &[Segment]) -> Outcome<u32> {
        self.write_file(args, &data)
    }

    fn flush(&self, args: &FlushIn) -> Outcome {
        files::flush(&*self.files.find(args.fh)?)
    }

    fn release(&self, fh: u64) {
        self.files.remove(fh);
    }

    fn fsync(&self, fh: u64, data_only: bool) -> Outcome {
        files::sync(&*self.files.find(fh)?, data_only)
    }

    fn opendir(&self, node: u64) -> Outcome<OpenOut> {
        self.open_directory(node)
    }

    fn readdir(&self, node: u64, args: &ReadIn, plus: bool, entries: &mut Entries<'_>) -> Outcome {
        self.list(node, args, plus, entries)
    }

    fn releasedir(&self, fh: u64) {
        self.directories.remove(fh);
    }

    fn fsyncdir(&self, fh: u64, data_only: bool) -> Outcome {
        files::sync(&*self.directories.find(fh)?.lock(), data_only)
    }

    fn statfs(&self, node: u64) -> Outcome<Kstatfs> {
        let found = rustix::fs::fstatvfs(&self.at(node)?.fd).map_err(errno)?;
        Ok(kstatfs(&found))
    }

    fn setxattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        self.may_change()?;
        self.set_xattr(node, name, value, flags)
    }

    fn getxattr(&self, node: u64, name: &[u8], into: &mut [u8]) -> Outcome<usize> {
        self.xattr(node, name, into)
    }

    fn listxattr(&self, node: u64, into: &mut [u8]) -> Outcome<usize> {
        self.xattr_names(node, into)
    }

    fn removexattr(&self, node: u64, name: &[u8]) -> Outcome {
        self.may_change()?;
        self.remove_xattr(node, name)
    }

    fn fallocate(&self, args: &FallocateIn) -> Outcome {
        self.may_change()?;
        files::allocate(&*self.files.find(args.fh)?, args)
    }

    fn lseek(&self, args: &LseekIn) -> Outcome<u64> {
        files::seek(&*self.files.find(args.fh)?, args)
    }

    fn copy_file_range(&self, args: &CopyFileRangeIn) -> Outcome<u64> {
        self.may_change()?;
        let (from, to) = (self.files.find(args.fh_in)?, self.files.find(args.fh_out)?);
        files::copy(&*from, &*to, args)
    }

    fn reset(&self) {
        let nodes = self.inodes.clear();
        let (directories, files) = (self.directories.take_all(), self.files.take_all());
        if !(nodes.is_empty() && directories.is_empty() && files.is_empty()) {
            // To close one may be to ask a file server that does not answer, also for one that was only looked up (a file of NFS
            // that was removed meanwhile), and the next client is here. Where there is no thread, they are closed at once.
            let close = move || drop((nodes, directories, files));
            let _ = std::thread::Builder::new().name("fs-close".into()).spawn(close);
        }
    }

    fn syncfs(&self) -> Outcome {
        self.sync_all()
    }
}

fn kstatfs(found: &StatVfs) -> Kstatfs {
    let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Kstatfs {
        blocks: found.f_blocks,
        bfree: found.f_bfree,
        bavail: found.f_bavail,
        files: found.f_files,
        ffree: found.f_ffree,
        bsize: small(found.f_bsize),
        namelen: small(found.f_namemax),
        frsize: small(found.f_frsize),
    }
}

/// Who may be asked for a device: its number as the kernel writes it for a client (`new_encode_dev`).
fn device(raw: u32) -> Dev {
    let (major, minor) = ((raw & 0xfff00) >> 8, (raw & 0xff) | ((raw >> 12) & 0xfff00));
    rustix::fs::makedev(major, minor)
}
