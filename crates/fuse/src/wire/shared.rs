//! Structures that stand in several messages.

use super::flags::AttrFlags;
use super::{Reader, Wire, structure};

structure! {
    /// What every request begins with (`fuse_in_header`).
    InHeader: 40 {
        /// Bytes of the whole request.
        len: u32,
        /// The operation's number.
        opcode: u32,
        /// What the reply names. Never 0.
        unique: u64,
        /// The node that it concerns.
        nodeid: u64,
        /// The caller.
        uid: u32,
        /// The caller.
        gid: u32,
        /// The caller.
        pid: u32,
        /// Units of 8 bytes of extensions at its end (7.38).
        total_extlen: u16 [pad 2],
    }
}

structure! {
    /// What every reply begins with (`fuse_out_header`).
    OutHeader: 16 {
        /// Bytes of the whole reply.
        len: u32,
        /// 0, or an errno with its sign turned; the code of a notification.
        error: i32,
        /// The request's; 0 for a notification.
        unique: u64,
    }
}

structure! {
    /// Attributes of a node (`fuse_attr`).
    Attr: 88 {
        /// What stat(2) shows as inode number.
        ino: u64,
        /// Bytes.
        size: u64,
        /// Blocks of 512 bytes.
        blocks: u64,
        /// Seconds of the last access.
        atime: u64,
        /// Seconds of the last modification.
        mtime: u64,
        /// Seconds of the last change.
        ctime: u64,
        /// Nanoseconds beside `atime`.
        atimensec: u32,
        /// Nanoseconds beside `mtime`.
        mtimensec: u32,
        /// Nanoseconds beside `ctime`.
        ctimensec: u32,
        /// Type and permissions.
        mode: u32,
        /// Names.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Of a device, its number.
        rdev: u32,
        /// The preferred size of I/O in bytes.
        blksize: u32,
        /// Submount and DAX (7.32).
        flags: AttrFlags,
    }
}

structure! {
    /// A time of [`Statx`] (`fuse_sx_time`).
    SxTime: 16 {
        /// Seconds.
        sec: i64,
        /// Nanoseconds.
        nsec: u32 [pad 4],
    }
}

structure! {
    /// Attributes as statx(2) has them (`fuse_statx`, 7.39).
    Statx: 256 {
        /// Which fields count (`STATX_*`).
        mask: u32,
        /// The preferred size of I/O in bytes.
        blksize: u32,
        /// `STATX_ATTR_*`.
        attributes: u64,
        /// Names.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Type and permissions.
        mode: u16 [pad 2],
        /// Inode number.
        ino: u64,
        /// Bytes.
        size: u64,
        /// Blocks of 512 bytes.
        blocks: u64,
        /// Which bits of `attributes` count.
        attributes_mask: u64,
        /// Last access.
        atime: SxTime,
        /// Birth.
        btime: SxTime,
        /// Last change.
        ctime: SxTime,
        /// Last modification.
        mtime: SxTime,
        /// Of a device.
        rdev_major: u32,
        /// Of a device.
        rdev_minor: u32,
        /// Where it lies.
        dev_major: u32,
        /// Where it lies.
        dev_minor: u32 [pad 112],
    }
}

structure! {
    /// A file system (`fuse_kstatfs`).
    Kstatfs: 80 {
        /// Blocks of `frsize` bytes.
        blocks: u64,
        /// Free blocks.
        bfree: u64,
        /// Free blocks for others than root.
        bavail: u64,
        /// Inodes.
        files: u64,
        /// Free inodes.
        ffree: u64,
        /// The preferred size of I/O in bytes.
        bsize: u32,
        /// The longest name in bytes.
        namelen: u32,
        /// Bytes of a block.
        frsize: u32 [pad 28],
    }
}

structure! {
    /// A POSIX or flock(2) lock (`fuse_file_lock`).
    FileLock: 24 {
        /// Its first byte.
        start: u64,
        /// Its last byte; `i64::MAX` is the end of the file, wherever it is.
        end: u64,
        /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
        kind: u32,
        /// The process that holds it.
        pid: u32,
    }
}

structure! {
    /// A range of memory of an ioctl's caller (`fuse_ioctl_iovec`).
    IoctlIovec: 16 {
        /// Its address.
        base: u64,
        /// Bytes.
        len: u64,
    }
}
