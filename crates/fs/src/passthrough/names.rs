//! What is made, removed and renamed.

use std::os::fd::{AsFd, OwnedFd};

use blockyard_fuse::wire::{CreateIn, EntryOut, MkdirIn, MknodIn, OpenOut};
use blockyard_fuse::{Errno, Name};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid};

use super::{Found, PLACE, Passthrough, RESOLVE, device, errno, open_flags, stat};
use crate::filesystem::{Outcome, Who};

/// The set-group-ID bit.
const S_ISGID: u32 = 0o2000;
/// Bits that are lost when a file gets another owner.
const S_ISUID_OR_GID: u32 = 0o6000;
/// Permissions, less the kind of file.
const PERMISSIONS: u32 = 0o7777;
/// How often a file is looked for again that others make and remove meanwhile.
const MAX_TRIES: usize = 8;

/// Permissions of something new, which is its maker's only from the next step on.
fn private(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS & !S_ISUID_OR_GID)
}

impl Passthrough {
    /// Where something is to be made.
    fn parent(&self, parent: u64) -> Outcome<Found> {
        self.may_change()?;
        let parent = self.inodes.find(parent)?;
        if parent.kind == FileType::Directory { Ok(parent) } else { Err(Errno::ENOTDIR) }
    }

    /// Gives what was just made to who has asked for it. In a directory with the set-group-ID bit the group is the directory's.
    fn give(&self, who: Who, parent: &Found, made: impl AsFd) -> Outcome {
        let found = stat(&made).map_err(errno)?;
        let inherits = u32::from(stat(&parent.fd).map_err(errno)?.stx_mode) & S_ISGID != 0;
        let uid = (found.stx_uid != who.uid).then(|| Uid::from_raw(who.uid));
        let gid = (!inherits && found.stx_gid != who.gid).then(|| Gid::from_raw(who.gid));
        if uid.is_none() && gid.is_none() {
            return Ok(());
        }
        rustix::fs::chownat(made, c"", uid, gid, AtFlags::EMPTY_PATH).map_err(errno)
    }

    /// What was just made by that name, or nothing is left of it.
    fn made(
        &self,
        who: Who,
        parent: &Found,
        name: Name<'_>,
        mode: Option<u32>,
        how: AtFlags,
    ) -> Outcome<EntryOut> {
        let finish = || {
            let place = self.place(parent, name)?;
            self.give(who, parent, &place)?;
            if let Some(mode) = mode.filter(|mode| mode & S_ISUID_OR_GID != 0) {
                self.set_mode(&place, mode)?;
            }
            self.entry(place)
        };
        finish().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&parent.fd, name.bytes(), how);
        })
    }

    pub(super) fn make_symlink(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        target: &[u8],
    ) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        rustix::fs::symlinkat(target, &parent.fd, name.bytes()).map_err(errno)?;
        self.made(who, &parent, name, None, AtFlags::empty())
    }

    pub(super) fn make_node(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &MknodIn,
    ) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        let kind = FileType::from_raw_mode(args.mode);
        let made = private(args.mode);
        rustix::fs::mknodat(&parent.fd, name.bytes(), kind, made, device(args.rdev))
            .map_err(errno)?;
        self.made(who, &parent, name, Some(args.mode), AtFlags::empty())
    }

    pub(super) fn make_directory(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &MkdirIn,
    ) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        rustix::fs::mkdirat(&parent.fd, name.bytes(), private(args.mode)).map_err(errno)?;
        // The set-group-ID bit of a directory is its parent's to give.
        self.made(who, &parent, name, None, AtFlags::REMOVEDIR)
    }

    pub(super) fn create_file(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &CreateIn,
    ) -> Outcome<(EntryOut, OpenOut)> {
        let parent = self.parent(parent)?;
        let flags = open_flags(args.flags);
        let new = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..MAX_TRIES {
            match rustix::fs::openat2(&parent.fd, name.bytes(), new, private(args.mode), RESOLVE) {
                Ok(file) => {
                    let entry = self.made(who, &parent, name, Some(args.mode), AtFlags::empty())?;
                    return Ok((entry, self.opened(file)));
                }
                Err(rustix::io::Errno::EXIST) if args.flags & OFlags::EXCL.bits() == 0 => {}
                Err(err) => return Err(errno(err)),
            }
            // Somebody else was faster.
            let place = match self.place(&parent, name) {
                Err(Errno::ENOENT) => continue,
                place => place?,
            };
            let entry = self.entry(place)?;
            let inode = self.inodes.find(entry.nodeid)?;
            let file =
                self.reopen(&inode, flags).inspect_err(|_| self.inodes.forget(inode.id, 1))?;
            return Ok((entry, self.opened(file)));
        }
        Err(Errno::EAGAIN)
    }

    pub(super) fn make_tmpfile(
        &self,
        who: Who,
        parent: u64,
        args: &CreateIn,
    ) -> Outcome<(EntryOut, OpenOut)> {
        let parent = self.parent(parent)?;
        let mut flags = open_flags(args.flags) | OFlags::TMPFILE | OFlags::CLOEXEC;
        if args.flags & OFlags::EXCL.bits() != 0 {
            flags |= OFlags::EXCL;
        }
        let file =
            rustix::fs::openat(&parent.fd, c".", flags, private(args.mode)).map_err(errno)?;
        self.give(who, &parent, &file)?;
        if args.mode & S_ISUID_OR_GID != 0 {
            self.set_mode(&file, args.mode)?;
        }
        let place = self.open_own(&file, PLACE)?;
        Ok((self.entry(place)?, self.opened(file)))
    }

    pub(super) fn make_link(&self, node: u64, parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        let inode = self.inodes.find(node)?;
        let own = own_path(&inode.fd);
        rustix::fs::linkat(CWD, own, &parent.fd, name.bytes(), AtFlags::SYMLINK_FOLLOW)
            .map_err(errno)?;
        self.entry(self.place(&parent, name)?)
    }

    pub(super) fn remove(&self, parent: u64, name: Name<'_>, how: AtFlags) -> Outcome {
        let parent = self.parent(parent)?;
        rustix::fs::unlinkat(&parent.fd, name.bytes(), how).map_err(errno)
    }

    pub(super) fn move_to(
        &self,
        (parent, name): (u64, Name<'_>),
        (new_parent, new_name): (u64, Name<'_>),
        flags: u32,
    ) -> Outcome {
        let (from, to) = (self.parent(parent)?, self.parent(new_parent)?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        rustix::fs::renameat_with(&from.fd, name.bytes(), &to.fd, new_name.bytes(), flags)
            .map_err(errno)
    }
}

/// The path of what a descriptor of ours stands for.
pub(super) fn own_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
