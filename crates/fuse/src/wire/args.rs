//! Arguments of requests.

use super::flags::*;
use super::shared::FileLock;
use super::{Reader, Wire, structure};

structure! {
    /// One of a BATCH_FORGET (`fuse_forget_one`).
    ForgetOne: 16 {
        /// The node.
        nodeid: u64,
        /// How many lookups are given back.
        nlookup: u64,
    }
}

structure! {
    /// `fuse_batch_forget_in`.
    BatchForgetIn: 8 {
        /// How many [`ForgetOne`] follow.
        count: u32 [pad 4],
    }
}

structure! {
    /// `fuse_getattr_in`.
    GetattrIn: 16 {
        /// Whether `fh` counts.
        flags: GetattrFlags [pad 4],
        /// The open file.
        fh: u64,
    }
}

structure! {
    /// `fuse_statx_in` (7.39).
    StatxIn: 24 {
        /// Whether `fh` counts.
        flags: GetattrFlags [pad 4],
        /// The open file.
        fh: u64,
        /// `AT_STATX_*`.
        sx_flags: u32,
        /// `STATX_*`: what is asked for.
        sx_mask: u32,
    }
}

structure! {
    /// `fuse_mknod_in`.
    MknodIn: 16 {
        /// Type and permissions.
        mode: u32,
        /// Of a device.
        rdev: u32,
        /// The caller's umask.
        umask: u32 [pad 4],
    }
}

structure! {
    /// `fuse_mkdir_in`.
    MkdirIn: 8 {
        /// Permissions.
        mode: u32,
        /// The caller's umask.
        umask: u32,
    }
}

structure! {
    /// `fuse_rename2_in`.
    Rename2In: 16 {
        /// Where to.
        newdir: u64,
        /// `RENAME_*`.
        flags: u32 [pad 4],
    }
}

structure! {
    /// `fuse_setattr_in`.
    SetattrIn: 88 {
        /// Which of the others count.
        valid: SetattrValid [pad 4],
        /// The open file.
        fh: u64,
        /// Bytes.
        size: u64,
        /// Whose POSIX locks do not stand in the way.
        lock_owner: u64,
        /// Seconds.
        atime: u64,
        /// Seconds.
        mtime: u64,
        /// Seconds.
        ctime: u64,
        /// Nanoseconds.
        atimensec: u32,
        /// Nanoseconds.
        mtimensec: u32,
        /// Nanoseconds.
        ctimensec: u32,
        /// Permissions.
        mode: u32 [pad 4],
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32 [pad 4],
    }
}

structure! {
    /// `fuse_open_in`, of files and directories.
    OpenIn: 8 {
        /// `O_*`.
        flags: u32,
        /// What else.
        open_flags: OpenInFlags,
    }
}

structure! {
    /// `fuse_create_in`.
    CreateIn: 16 {
        /// `O_*`.
        flags: u32,
        /// Type and permissions.
        mode: u32,
        /// The caller's umask.
        umask: u32,
        /// What else.
        open_flags: OpenInFlags,
    }
}

structure! {
    /// `fuse_release_in`, of files and directories.
    ReleaseIn: 24 {
        /// The open file.
        fh: u64,
        /// `O_*`.
        flags: u32,
        /// What is done beside.
        release_flags: ReleaseFlags,
        /// Whose locks go.
        lock_owner: u64,
    }
}

structure! {
    /// `fuse_flush_in`.
    FlushIn: 24 {
        /// The open file.
        fh: u64 [pad 8],
        /// Whose POSIX locks go.
        lock_owner: u64,
    }
}

structure! {
    /// `fuse_read_in`, of files and directories.
    ReadIn: 40 {
        /// The open file.
        fh: u64,
        /// Where; of a directory, a cookie.
        offset: u64,
        /// Bytes.
        size: u32,
        /// Whether `lock_owner` counts.
        read_flags: ReadFlags,
        /// Whose locks do not stand in the way.
        lock_owner: u64,
        /// `O_*` of the open file.
        flags: u32 [pad 4],
    }
}

structure! {
    /// `fuse_write_in`; the data follow it.
    WriteIn: 40 {
        /// The open file.
        fh: u64,
        /// Where.
        offset: u64,
        /// Bytes.
        size: u32,
        /// How.
        write_flags: WriteFlags,
        /// Whose locks do not stand in the way.
        lock_owner: u64,
        /// `O_*` of the open file.
        flags: u32 [pad 4],
    }
}

structure! {
    /// `fuse_fsync_in`, of files and directories.
    FsyncIn: 16 {
        /// The open file.
        fh: u64,
        /// How much.
        flags: FsyncFlags [pad 4],
    }
}

structure! {
    /// `fuse_setxattr_in` in its long form; the short one ends after `flags`.
    SetxattrIn: 16 {
        /// Bytes of the value.
        size: u32,
        /// `XATTR_CREATE`, `XATTR_REPLACE`.
        flags: u32,
        /// What else (7.33).
        setxattr_flags: SetxattrFlags [pad 4],
    }
}

/// Bytes of [`SetxattrIn`] without [`InitFlags::SETXATTR_EXT`] (`FUSE_COMPAT_SETXATTR_IN_SIZE`).
pub const SETXATTR_IN_SHORT: usize = 8;

structure! {
    /// `fuse_getxattr_in`, of LISTXATTR too.
    GetxattrIn: 8 {
        /// Bytes that the caller has room for; 0 asks how many are needed.
        size: u32 [pad 4],
    }
}

structure! {
    /// `fuse_lk_in`.
    LkIn: 48 {
        /// The open file.
        fh: u64,
        /// Whose lock.
        owner: u64,
        /// Which.
        lock: FileLock,
        /// Of which kind.
        flags: LkFlags [pad 4],
    }
}

structure! {
    /// `fuse_access_in`.
    AccessIn: 8 {
        /// `R_OK`, `W_OK`, `X_OK`.
        mask: u32 [pad 4],
    }
}

structure! {
    /// `fuse_bmap_in`.
    BmapIn: 16 {
        /// Of the file.
        block: u64,
        /// Bytes of a block.
        blocksize: u32 [pad 4],
    }
}

structure! {
    /// `fuse_ioctl_in`; `in_size` bytes of data follow it.
    IoctlIn: 32 {
        /// The open file.
        fh: u64,
        /// How.
        flags: IoctlFlags,
        /// Its number.
        cmd: u32,
        /// Its argument as the caller gave it.
        arg: u64,
        /// Bytes of data in.
        in_size: u32,
        /// Bytes of data out, at most.
        out_size: u32,
    }
}

structure! {
    /// `fuse_poll_in`.
    PollIn: 24 {
        /// The open file.
        fh: u64,
        /// What a notification names.
        kh: u64,
        /// Whether one is wanted.
        flags: PollFlags,
        /// `POLL*`: what is asked about.
        events: u32,
    }
}

structure! {
    /// `fuse_fallocate_in`.
    FallocateIn: 32 {
        /// The open file.
        fh: u64,
        /// Where.
        offset: u64,
        /// Bytes.
        length: u64,
        /// `FALLOC_FL_*`.
        mode: u32 [pad 4],
    }
}

structure! {
    /// `fuse_lseek_in`.
    LseekIn: 24 {
        /// The open file.
        fh: u64,
        /// From where.
        offset: u64,
        /// `SEEK_DATA`, `SEEK_HOLE`.
        whence: u32 [pad 4],
    }
}

structure! {
    /// `fuse_copy_file_range_in`.
    CopyFileRangeIn: 56 {
        /// The open file to read; its node is the request's.
        fh_in: u64,
        /// Where to read.
        off_in: u64,
        /// The node to write to.
        nodeid_out: u64,
        /// The open file to write to.
        fh_out: u64,
        /// Where to write.
        off_out: u64,
        /// Bytes.
        len: u64,
        /// None are defined.
        flags: u64,
    }
}

structure! {
    /// `fuse_setupmapping_in`.
    SetupmappingIn: 40 {
        /// The open file.
        fh: u64,
        /// Where in the file.
        foffset: u64,
        /// Bytes.
        len: u64,
        /// How.
        flags: MappingFlags,
        /// Where in the DAX window.
        moffset: u64,
    }
}

structure! {
    /// `fuse_removemapping_one`.
    RemovemappingOne: 16 {
        /// Where in the DAX window.
        moffset: u64,
        /// Bytes.
        len: u64,
    }
}

structure! {
    /// `fuse_notify_retrieve_in`: answers a `Retrieve`; the data follow it.
    NotifyRetrieveIn: 40 [lead 8] {
        /// Where in the node.
        offset: u64,
        /// Bytes.
        size: u32 [pad 20],
    }
}
