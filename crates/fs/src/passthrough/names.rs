//! What is made, removed and renamed.

use std::os::fd::OwnedFd;

use blockyard_fuse::wire::{CreateIn, EntryOut, MkdirIn, MknodIn, OpenOut};
use blockyard_fuse::{Errno, Name};
use blockyard_sys::credentials::act_for;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use super::{At, PLACE, Passthrough, RESOLVE, device, errno, open_flags};
use crate::filesystem::{Outcome, Who};

/// Permissions, less the kind of file.
const PERMISSIONS: u32 = 0o7777;
/// There is something of that name.
const EEXIST: Errno = Errno::from_raw(17);
/// A number that cannot be told.
const EOVERFLOW: Errno = Errno::from_raw(75);
/// What was known of the name is not so any more.
const ESTALE: Errno = Errno::from_raw(116);

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

impl Passthrough {
    /// Where something is to be made.
    fn parent(&self, parent: u64) -> Outcome<At> {
        self.may_change()?;
        let parent = self.at(parent)?;
        if parent.kind == FileType::Directory { Ok(parent) } else { Err(Errno::ENOTDIR) }
    }

    /// Makes something that is of who has asked for it from the start: what is given away later may be another's by then.
    fn make<T>(
        &self,
        who: Who,
        make: impl FnOnce() -> std::result::Result<T, rustix::io::Errno>,
    ) -> Outcome<T> {
        if who.uid == u32::MAX || who.gid == u32::MAX {
            // He has no number here.
            return Err(EOVERFLOW);
        }
        let is_own = (who.uid, who.gid) == self.own;
        let acting = (!is_own).then(|| act_for(who.uid, who.gid)).transpose();
        let _acting = match acting {
            // Without the right to, this process makes nothing for others; what it makes for its own user is of its own group.
            Err(_) if who.uid != self.own.0 => return Err(Errno::EPERM),
            acting => acting.ok(),
        };
        make().map_err(errno)
    }

    /// What has that name now.
    fn made(&self, parent: &At, name: Name<'_>) -> Outcome<EntryOut> {
        self.entry(self.place(parent, name)?)
    }

    pub(super) fn make_symlink(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        target: &[u8],
    ) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        self.make(who, || rustix::fs::symlinkat(target, &parent.fd, name.bytes()))?;
        self.made(&parent, name)
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
        let (mode, device) = (permissions(args.mode), device(args.rdev));
        self.make(who, || rustix::fs::mknodat(&parent.fd, name.bytes(), kind, mode, device))?;
        self.made(&parent, name)
    }

    pub(super) fn make_directory(
        &self,
        who: Who,
        parent: u64,
        name: Name<'_>,
        args: &MkdirIn,
    ) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        let mode = permissions(args.mode);
        self.make(who, || rustix::fs::mkdirat(&parent.fd, name.bytes(), mode))?;
        self.made(&parent, name)
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
        let mode = permissions(args.mode);
        let make = || rustix::fs::openat2(&parent.fd, name.bytes(), new, mode, RESOLVE);
        let file = self.make(who, make).map_err(|errno| match errno {
            // Somebody else was faster. Whether who asks may open that, the client has not looked: he does when he tries again.
            EEXIST if args.flags & OFlags::EXCL.bits() == 0 => ESTALE,
            errno => errno,
        })?;
        Ok((self.entry(self.open_own(&file, PLACE)?)?, self.opened(file)))
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
        let mode = permissions(args.mode);
        let file = self.make(who, || rustix::fs::openat(&parent.fd, c".", flags, mode))?;
        let place = self.open_own(&file, PLACE)?;
        Ok((self.entry(place)?, self.opened(file)))
    }

    pub(super) fn make_link(&self, node: u64, parent: u64, name: Name<'_>) -> Outcome<EntryOut> {
        let parent = self.parent(parent)?;
        let inode = self.at(node)?;
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
