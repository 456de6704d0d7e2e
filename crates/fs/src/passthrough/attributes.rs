//! Attributes: what the system says, as the client wants it, and how they are changed.

use std::os::fd::OwnedFd;

use blockyard_fuse::wire::{Attr, AttrOut, StatxOut, SxTime};
use blockyard_fuse::{Errno, SetAttr, SetTime, wire};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Statx, StatxTimestamp, Timespec, Timestamps, Uid};
use rustix::fs::{UTIME_NOW, UTIME_OMIT};
use rustix::path::DecInt;

use super::{At, Passthrough, errno, stat};
use crate::filesystem::Outcome;

/// Permissions, less the kind of file.
const PERMISSIONS: u32 = 0o7777;

/// A device's number as the kernel reads it (`new_decode_dev`).
const fn rdev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn attr(found: &Statx, ino: u64) -> Attr {
    Attr {
        ino,
        size: found.stx_size,
        blocks: found.stx_blocks,
        atime: found.stx_atime.tv_sec.cast_unsigned(),
        mtime: found.stx_mtime.tv_sec.cast_unsigned(),
        ctime: found.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: found.stx_atime.tv_nsec,
        mtimensec: found.stx_mtime.tv_nsec,
        ctimensec: found.stx_ctime.tv_nsec,
        mode: found.stx_mode.into(),
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        rdev: rdev(found.stx_rdev_major, found.stx_rdev_minor),
        blksize: found.stx_blksize,
        ..Attr::default()
    }
}

fn time(from: StatxTimestamp) -> SxTime {
    SxTime { sec: from.tv_sec, nsec: from.tv_nsec }
}

/// A time that is set; what is not said stays.
fn set_time(to: Option<SetTime>) -> Timespec {
    match to {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(seconds, nanoseconds)) => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    }
}

impl Passthrough {
    fn ino(&self, found: &Statx) -> u64 {
        self.devices.ino((found.stx_dev_major, found.stx_dev_minor), found.stx_ino)
    }

    pub(super) fn attr(&self, found: &Statx) -> Attr {
        attr(found, self.ino(found))
    }

    pub(super) fn attr_out(&self, found: &Statx) -> AttrOut {
        AttrOut {
            attr_valid: self.valid.as_secs(),
            attr_valid_nsec: self.valid.subsec_nanos(),
            attr: self.attr(found),
        }
    }

    pub(super) fn statx_out(&self, found: &Statx) -> StatxOut {
        let stat = wire::Statx {
            mask: found.stx_mask,
            blksize: found.stx_blksize,
            attributes: 0,
            nlink: found.stx_nlink,
            uid: found.stx_uid,
            gid: found.stx_gid,
            mode: found.stx_mode,
            ino: self.ino(found),
            size: found.stx_size,
            blocks: found.stx_blocks,
            attributes_mask: 0,
            atime: time(found.stx_atime),
            btime: time(found.stx_btime),
            ctime: time(found.stx_ctime),
            mtime: time(found.stx_mtime),
            rdev_major: found.stx_rdev_major,
            rdev_minor: found.stx_rdev_minor,
            dev_major: found.stx_dev_major,
            dev_minor: found.stx_dev_minor,
        };
        StatxOut {
            attr_valid: self.valid.as_secs(),
            attr_valid_nsec: self.valid.subsec_nanos(),
            stat,
            ..StatxOut::default()
        }
    }

    pub(super) fn set_attributes(&self, node: u64, set: &SetAttr) -> Outcome<AttrOut> {
        let inode = self.at(node)?;
        if set.uid().is_some() || set.gid().is_some() {
            self.set_owner(&inode, set)?;
        }
        // Another owner takes bits away that are asked for.
        if let Some(mode) = set.mode() {
            self.set_mode(&inode.fd, mode)?;
        }
        if let Some(size) = set.size() {
            match set.fh() {
                Some(fh) => rustix::fs::ftruncate(&*self.files.find(fh)?, size),
                None => rustix::fs::ftruncate(&self.reopen(&inode, OFlags::WRONLY)?, size),
            }
            .map_err(errno)?;
        }
        if set.atime().is_some() || set.mtime().is_some() {
            let times = Timestamps {
                last_access: set_time(set.atime()),
                last_modification: set_time(set.mtime()),
            };
            rustix::fs::utimensat(&inode.fd, c"", &times, AtFlags::EMPTY_PATH).map_err(errno)?;
        }
        Ok(self.attr_out(&stat(&inode.fd).map_err(errno)?))
    }

    /// Permissions of what a descriptor of ours stands for.
    fn set_mode(&self, fd: &OwnedFd, mode: u32) -> Outcome {
        let mode = Mode::from_raw_mode(mode & PERMISSIONS);
        rustix::fs::chmodat(&self.own_files, DecInt::from_fd(fd), mode, AtFlags::empty())
            .map_err(errno)
    }

    fn set_owner(&self, inode: &At, set: &SetAttr) -> Outcome {
        // That number means that it stays as it is.
        let is_none = |id: Option<u32>| id == Some(u32::MAX);
        if is_none(set.uid()) || is_none(set.gid()) {
            return Err(Errno::EINVAL);
        }
        let (uid, gid) = (set.uid().map(Uid::from_raw), set.gid().map(Gid::from_raw));
        rustix::fs::chownat(&inode.fd, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)
    }
}
