//! Extended attributes. Those that are POSIX ACLs have none of a client's that does not know of them: he would not keep to them.

use blockyard_fuse::Errno;
use rustix::fs::{FileType, XattrFlags};

use super::names::own_path;
use super::{At, Passthrough, errno};
use crate::filesystem::Outcome;

/// How the names of ACLs begin.
const ACL: &[u8] = b"system.posix_acl_";

impl Passthrough {
    /// A node that can have one of that name, and its path as long as it is open.
    fn bearer(&self, node: u64, name: &[u8]) -> Outcome<(At, String)> {
        let inode = self.at(node)?;
        if name.starts_with(ACL) {
            return Err(Errno::EOPNOTSUPP);
        }
        // By way of its path, one would get at those of what it leads to.
        if inode.kind == FileType::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let path = own_path(&inode.fd);
        Ok((inode, path))
    }

    pub(super) fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        let (_open, path) = self.bearer(node, name)?;
        rustix::fs::setxattr(path, name, value, flags).map_err(errno)
    }

    pub(super) fn xattr(&self, node: u64, name: &[u8], into: &mut [u8]) -> Outcome<usize> {
        let (_open, path) = self.bearer(node, name)?;
        if into.is_empty() {
            return rustix::fs::getxattr_query(path, name).map_err(errno);
        }
        rustix::fs::getxattr(path, name, into).map_err(errno)
    }

    pub(super) fn xattr_names(&self, node: u64, into: &mut [u8]) -> Outcome<usize> {
        let (_open, path) = self.bearer(node, b"")?;
        if into.is_empty() {
            return rustix::fs::listxattr_query(path).map_err(errno);
        }
        rustix::fs::listxattr(path, into).map_err(errno)
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &[u8]) -> Outcome {
        let (_open, path) = self.bearer(node, name)?;
        rustix::fs::removexattr(path, name).map_err(errno)
    }
}
