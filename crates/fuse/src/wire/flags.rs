//! Flags of the header.

use super::{Reader, Wire, flag_set};

flag_set! {
    /// What an INIT offers and answers (`FUSE_ASYNC_READ` and its neighbours). The upper half travels in `flags2`.
    InitFlags: u64 {
        /// Reads are sent side by side.
        ASYNC_READ = 1 << 0;
        /// POSIX locks are the server's.
        POSIX_LOCKS = 1 << 1;
        /// Never supported.
        FILE_OPS = 1 << 2;
        /// The server truncates at an open with `O_TRUNC`.
        ATOMIC_O_TRUNC = 1 << 3;
        /// The server looks `.` and `..` up.
        EXPORT_SUPPORT = 1 << 4;
        /// Writes may be larger than 4 KiB.
        BIG_WRITES = 1 << 5;
        /// The umask is the server's to apply.
        DONT_MASK = 1 << 6;
        /// The device can be spliced to.
        SPLICE_WRITE = 1 << 7;
        /// Pages can be moved by splice.
        SPLICE_MOVE = 1 << 8;
        /// The device can be spliced from.
        SPLICE_READ = 1 << 9;
        /// flock(2) locks are the server's.
        FLOCK_LOCKS = 1 << 10;
        /// Directories have ioctls.
        HAS_IOCTL_DIR = 1 << 11;
        /// Cached data goes when attributes show a change.
        AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS is used.
        DO_READDIRPLUS = 1 << 13;
        /// READDIRPLUS is used where it seems worth it.
        READDIRPLUS_AUTO = 1 << 14;
        /// Direct I/O is sent side by side.
        ASYNC_DIO = 1 << 15;
        /// Buffered writes are written back later.
        WRITEBACK_CACHE = 1 << 16;
        /// OPEN may be answered ENOSYS, and is not sent again then.
        NO_OPEN_SUPPORT = 1 << 17;
        /// Lookups and reads of one directory run side by side.
        PARALLEL_DIROPS = 1 << 18;
        /// The server drops set-user-ID and capabilities at writes.
        HANDLE_KILLPRIV = 1 << 19;
        /// POSIX ACLs are kept.
        POSIX_ACL = 1 << 20;
        /// Reading the device after an abort gives ECONNABORTED.
        ABORT_ERROR = 1 << 21;
        /// `max_pages` counts.
        MAX_PAGES = 1 << 22;
        /// Symbolic links are cached.
        CACHE_SYMLINKS = 1 << 23;
        /// As `NO_OPEN_SUPPORT`, for directories.
        NO_OPENDIR_SUPPORT = 1 << 24;
        /// Cached data goes only when the server says so.
        EXPLICIT_INVAL_DATA = 1 << 25;
        /// `map_alignment` counts.
        MAP_ALIGNMENT = 1 << 26;
        /// Submounts are mounted by the client.
        SUBMOUNTS = 1 << 27;
        /// As `HANDLE_KILLPRIV`, as the client says in each request.
        HANDLE_KILLPRIV_V2 = 1 << 28;
        /// SETXATTR has its long form.
        SETXATTR_EXT = 1 << 29;
        /// INIT has its long form, with `flags2`.
        INIT_EXT = 1 << 30;
        /// Reserved.
        INIT_RESERVED = 1 << 31;
        /// Security contexts come with what makes files.
        SECURITY_CTX = 1 << 32;
        /// Nodes say whether they want DAX.
        HAS_INODE_DAX = 1 << 33;
        /// A supplementary group comes with what makes files.
        CREATE_SUPP_GROUP = 1 << 34;
        /// An entry can be expired without being invalidated.
        HAS_EXPIRE_ONLY = 1 << 35;
        /// Shared mappings of files with direct I/O.
        DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Reads and writes may go to a backing file.
        PASSTHROUGH = 1 << 37;
        /// No export over NFS.
        NO_EXPORT_SUPPORT = 1 << 38;
        /// Requests can be sent again.
        HAS_RESEND = 1 << 39;
        /// ID-mapped mounts.
        ALLOW_IDMAP = 1 << 40;
        /// Requests can travel over io_uring.
        OVER_IO_URING = 1 << 41;
        /// `request_timeout` counts.
        REQUEST_TIMEOUT = 1 << 42;
    }
}

flag_set! {
    /// Which attributes a SETATTR changes (`FATTR_*`).
    SetattrValid: u32 {
        /// `mode`.
        MODE = 1 << 0;
        /// `uid`.
        UID = 1 << 1;
        /// `gid`.
        GID = 1 << 2;
        /// `size`.
        SIZE = 1 << 3;
        /// `atime`.
        ATIME = 1 << 4;
        /// `mtime`.
        MTIME = 1 << 5;
        /// `fh` says which open file.
        FH = 1 << 6;
        /// The access time becomes now.
        ATIME_NOW = 1 << 7;
        /// The time of modification becomes now.
        MTIME_NOW = 1 << 8;
        /// `lock_owner` counts.
        LOCKOWNER = 1 << 9;
        /// `ctime`.
        CTIME = 1 << 10;
        /// Set-user-ID and set-group-ID are dropped.
        KILL_SUIDGID = 1 << 11;
    }
}

flag_set! {
    /// What an open file is (`FOPEN_*`).
    FopenFlags: u32 {
        /// The page cache is bypassed.
        DIRECT_IO = 1 << 0;
        /// Cached data stays.
        KEEP_CACHE = 1 << 1;
        /// There is no seeking.
        NONSEEKABLE = 1 << 2;
        /// The directory may be cached.
        CACHE_DIR = 1 << 3;
        /// There is no position.
        STREAM = 1 << 4;
        /// No FLUSH at close, unless there is dirty data.
        NOFLUSH = 1 << 5;
        /// Direct writes run side by side.
        PARALLEL_DIRECT_WRITES = 1 << 6;
        /// Reads and writes go to the backing file.
        PASSTHROUGH = 1 << 7;
    }
}

flag_set! {
    /// How an OPEN or CREATE is meant (`FUSE_OPEN_*`).
    OpenInFlags: u32 {
        /// Drop set-user-ID and set-group-ID as the file is truncated.
        KILL_SUIDGID = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_RELEASE_*`.
    ReleaseFlags: u32 {
        /// As a FLUSH too.
        FLUSH = 1 << 0;
        /// Give up the flock(2) locks.
        FLOCK_UNLOCK = 1 << 1;
    }
}

flag_set! {
    /// `FUSE_GETATTR_*`.
    GetattrFlags: u32 {
        /// `fh` says which open file.
        FH = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_LK_*`.
    LkFlags: u32 {
        /// The lock is one of flock(2).
        FLOCK = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_READ_*`.
    ReadFlags: u32 {
        /// `lock_owner` counts.
        LOCKOWNER = 1 << 1;
    }
}

flag_set! {
    /// `FUSE_WRITE_*`.
    WriteFlags: u32 {
        /// Written back from the page cache; `fh` is one of those that are open.
        CACHE = 1 << 0;
        /// `lock_owner` counts.
        LOCKOWNER = 1 << 1;
        /// Drop set-user-ID and set-group-ID.
        KILL_SUIDGID = 1 << 2;
    }
}

flag_set! {
    /// `FUSE_FSYNC_*`.
    FsyncFlags: u32 {
        /// Data and what is needed to find it, as fdatasync(2).
        FDATASYNC = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_ATTR_*`.
    AttrFlags: u32 {
        /// The root of a submount.
        SUBMOUNT = 1 << 0;
        /// Wants DAX.
        DAX = 1 << 1;
    }
}

flag_set! {
    /// `FUSE_SETXATTR_*`.
    SetxattrFlags: u32 {
        /// Drop set-group-ID as the ACL changes.
        ACL_KILL_SGID = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_IOCTL_*`.
    IoctlFlags: u32 {
        /// Of a 32-bit process.
        COMPAT = 1 << 0;
        /// May be anything, and may be asked for again with other areas.
        UNRESTRICTED = 1 << 1;
        /// Answer: try again with these areas.
        RETRY = 1 << 2;
        /// With 32-bit structures.
        BIT32 = 1 << 3;
        /// On a directory.
        DIR = 1 << 4;
        /// Of an x32 process.
        COMPAT_X32 = 1 << 5;
    }
}

flag_set! {
    /// `FUSE_POLL_*`.
    PollFlags: u32 {
        /// Tell by a notification when there is something.
        SCHEDULE_NOTIFY = 1 << 0;
    }
}

flag_set! {
    /// `FUSE_SETUPMAPPING_FLAG_*`.
    MappingFlags: u64 {
        /// Writable.
        WRITE = 1 << 0;
        /// Readable.
        READ = 1 << 1;
    }
}

flag_set! {
    /// Of an `InvalEntry` notification.
    InvalEntryFlags: u32 {
        /// The entry is to be revalidated, not dropped.
        EXPIRE_ONLY = 1 << 0;
    }
}
