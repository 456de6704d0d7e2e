//! What a file system answers.

use blockyard_buf::{Segment, copy_segments, total_len};
use blockyard_fuse::dirent::Entries;
use blockyard_fuse::wire::*;
use blockyard_fuse::{Errno, Name, SetAttr};

/// What comes of an operation.
pub type Outcome<T = ()> = Result<T, Errno>;

/// `EFAULT`: memory that is no more.
const EFAULT: Errno = Errno::from_raw(14);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Who {
    /// That of a request.
    #[must_use]
    pub const fn of(header: &InHeader) -> Self {
        Self { uid: header.uid, gid: header.gid }
    }
}

/// A file system: one method for each operation, called by several threads at a time, with the node that it is about.
///
/// A node that is found or made counts a lookup, until [`FileSystem::forget`] gives it back. What is not there answers `ENOSYS`:
/// the kernel does without then, and does not ask again. Names are never `.` or `..`.
#[allow(unused_variables, reason = "the names say what they are")]
pub trait FileSystem: Send + Sync + 'static {
    /// What is wanted of what the kernel offers, beyond what every file system has.
    fn flags(&self) -> InitFlags {
        InitFlags::empty()
    }
    /// A node by its name.
    ///
    /// # Errors
    /// `ENOENT` if there is none.
    fn lookup(&self, parent: u64, name: Name<'_>) -> Outcome<EntryOut>;
    /// So many lookups of a node are given back.
    fn forget(&self, node: u64, lookups: u64);
    /// Attributes, of an open file if one is named.
    ///
    /// # Errors
    /// Those of fstat(2).
    fn getattr(&self, node: u64, fh: Option<u64>) -> Outcome<AttrOut>;
    /// Attributes as statx(2) has them.
    ///
    /// # Errors
    /// Those of statx(2).
    fn statx(&self, node: u64, args: &StatxIn) -> Outcome<StatxOut> {
        Err(Errno::ENOSYS)
    }
    /// Changes attributes, and answers what they are then.
    ///
    /// # Errors
    /// Those of chmod(2), chown(2), truncate(2), utimensat(2).
    fn setattr(&self, node: u64, set: &SetAttr) -> Outcome<AttrOut> {
        Err(Errno::ENOSYS)
    }
    /// The target of a symbolic link, appended.
    ///
    /// # Errors
    /// Those of readlink(2).
    fn readlink(&self, node: u64, target: &mut Vec<u8>) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Makes a symbolic link.
    ///
    /// # Errors
    /// Those of symlink(2).
    fn symlink(&self, who: Who, parent: u64, name: Name<'_>, target: &[u8]) -> Outcome<EntryOut> {
        Err(Errno::ENOSYS)
    }
    /// Makes a file that is not opened.
    ///
    /// # Errors
    /// Those of mknod(2).
    fn mknod(&self, who: Who, parent: u64, name: Name<'_>, args: &MknodIn) -> Outcome<EntryOut> {
        Err(Errno::ENOSYS)
    }
    /// Makes a directory.
    ///
    /// # Errors
    /// Those of mkdir(2).
    fn mkdir(&self, who: Who, parent: u64, name: Name<'_>, args: &MkdirIn) -> Outcome<EntryOut> {
        Err(Errno::ENOSYS)
    }
    /// Removes a file.
    ///
    /// # Errors
    /// Those of unlink(2).
    fn unlink(&self, parent: u64, name: Name<'_>) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Removes a directory.
    ///
    /// # Errors
    /// Those of rmdir(2).
    fn rmdir(&self, parent: u64, name: Name<'_>) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Renames, with `RENAME_*` flags.
    ///
    /// # Errors
    /// Those of renameat2(2).
    fn rename(&self, from: (u64, Name<'_>), to: (u64, Name<'_>), flags: u32) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Gives a node one more name.
    ///
    /// # Errors
    /// Those of link(2).
    fn link(&self, node: u64, parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        Err(Errno::ENOSYS)
    }
    /// Opens a file.
    ///
    /// # Errors
    /// Those of open(2).
    fn open(&self, node: u64, args: &OpenIn) -> Outcome<OpenOut> {
        Err(Errno::ENOSYS)
    }
    /// Makes a file, and opens it.
    ///
    /// # Errors
    /// Those of open(2); `ESTALE` if there is one by now, and it need not be new: the kernel looks it up and opens it then.
    fn create(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &CreateIn,
    ) -> Outcome<(EntryOut, OpenOut)> {
        Err(Errno::ENOSYS)
    }
    /// Makes a file without a name, and opens it.
    ///
    /// # Errors
    /// Those of open(2) with `O_TMPFILE`.
    fn tmpfile(&self, who: Who, parent: u64, args: &CreateIn) -> Outcome<(EntryOut, OpenOut)> {
        Err(Errno::ENOSYS)
    }
    /// Reads to `into`; says how much. Less than that is the end of the file.
    ///
    /// # Errors
    /// Those of pread(2).
    fn read(&self, args: &ReadIn, into: &mut [u8]) -> Outcome<usize> {
        Err(Errno::ENOSYS)
    }
    /// Writes; says how much.
    ///
    /// # Errors
    /// Those of pwrite(2).
    fn write(&self, args: &WriteIn, data: &[u8]) -> Outcome<u32> {
        Err(Errno::ENOSYS)
    }
    /// As [`FileSystem::read`], to memory that others may change.
    ///
    /// # Errors
    /// Those of preadv(2).
    fn read_segments(&self, args: &ReadIn, into: &[Segment]) -> Outcome<usize> {
        let mut bytes = vec![0; total_len(into)];
        let len = self.read(args, &mut bytes)?.min(bytes.len());
        bytes.truncate(len);
        Ok(copy_segments(into, &[Segment::from_vec(bytes)]))
    }
    /// As [`FileSystem::write`], from memory that others may change.
    ///
    /// # Errors
    /// Those of pwritev(2): `EFAULT` for memory that is lost.
    fn write_segments(&self, args: &WriteIn, data: &[Segment]) -> Outcome<u32> {
        let bytes: Vec<u8> = data.iter().flat_map(Segment::to_vec).collect();
        // Zeroes may have taken the place of some of it.
        if data.iter().any(Segment::is_lost) {
            return Err(EFAULT);
        }
        self.write(args, &bytes)
    }
    /// A file is closed by one who has it open.
    ///
    /// # Errors
    /// Those of close(2).
    fn flush(&self, args: &FlushIn) -> Outcome {
        Ok(())
    }
    /// Nobody has the open file any more.
    fn release(&self, fh: u64) {}
    /// Makes a file durable, or only its data.
    ///
    /// # Errors
    /// Those of fsync(2).
    fn fsync(&self, fh: u64, data_only: bool) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Opens a directory.
    ///
    /// # Errors
    /// Those of open(2).
    fn opendir(&self, node: u64) -> Outcome<OpenOut> {
        Err(Errno::ENOSYS)
    }
    /// Entries of an open directory behind a cookie; with `plus`, each with what a lookup of it answers.
    ///
    /// # Errors
    /// Those of getdents(2).
    fn readdir(&self, node: u64, args: &ReadIn, plus: bool, entries: &mut Entries<'_>) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Nobody has the open directory any more.
    fn releasedir(&self, fh: u64) {}
    /// Makes a directory durable.
    ///
    /// # Errors
    /// Those of fsync(2).
    fn fsyncdir(&self, fh: u64, data_only: bool) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// The file system that a node is of.
    ///
    /// # Errors
    /// Those of statfs(2).
    fn statfs(&self, node: u64) -> Outcome<Kstatfs> {
        Err(Errno::ENOSYS)
    }
    /// Sets an extended attribute, with `XATTR_*` flags.
    ///
    /// # Errors
    /// Those of setxattr(2).
    fn setxattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Reads one to `into`, or only its size where there is no room; says how long it is.
    ///
    /// # Errors
    /// Those of getxattr(2).
    fn getxattr(&self, node: u64, name: &[u8], into: &mut [u8]) -> Outcome<usize> {
        Err(Errno::ENOSYS)
    }
    /// The same of the list of their names.
    ///
    /// # Errors
    /// Those of listxattr(2).
    fn listxattr(&self, node: u64, into: &mut [u8]) -> Outcome<usize> {
        Err(Errno::ENOSYS)
    }
    /// Removes one.
    ///
    /// # Errors
    /// Those of removexattr(2).
    fn removexattr(&self, node: u64, name: &[u8]) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// Allocates, punches a hole, writes zeroes.
    ///
    /// # Errors
    /// Those of fallocate(2).
    fn fallocate(&self, args: &FallocateIn) -> Outcome {
        Err(Errno::ENOSYS)
    }
    /// The next data, or the next hole.
    ///
    /// # Errors
    /// Those of lseek(2).
    fn lseek(&self, args: &LseekIn) -> Outcome<u64> {
        Err(Errno::ENOSYS)
    }
    /// Copies within the file system; says how much.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    fn copy_file_range(&self, args: &CopyFileRangeIn) -> Outcome<u64> {
        Err(Errno::ENOSYS)
    }
    /// The client is gone, or begins anew: nodes and open files are nobody's any more. What is asked meanwhile finds either.
    fn reset(&self) {}
    /// Makes all of it durable.
    ///
    /// # Errors
    /// Those of syncfs(2).
    fn syncfs(&self) -> Outcome {
        Err(Errno::ENOSYS)
    }
}
