//! Extended attributes. Those that are POSIX ACLs have none of a client's that does not know of them: he would not keep to them.

use blockyard_fuse::Errno;
use rustix::fs::{FileType, XattrFlags};

use super::names::own_path;
use super::{Found, Passthrough, errno};
use crate::filesystem::Outcome;

/// How the names of ACLs begin.
const ACL: &[u8] = b"system.posix_acl_";

impl Passthrough {
    /// The path of a node that can have them, by that name.
    fn bearer(&self, node: u64, name: &[u8]) -> Outcome<String> {
        let inode: Found = self.inodes.find(node)?;
        if name.starts_with(ACL) {
            return Err(Errno::EOPNOTSUPP);
        }
        // By way of its path, one would get at those of what it leads to.
        if inode.kind == FileType::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        Ok(own_path(&inode.fd))
    }

    pub(super) fn set_xattr(&self, node: u64, name: &[u8], value: &[u8], flags: u32) -> Outcome {
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        rustix::fs::setxattr(self.bearer(node, name)?, name, value, flags).map_err(errno)
    }

    pub(super) fn xattr(&self, node: u64, name: &[u8], into: &mut [u8]) -> Outcome<usize> {
        let path = self.bearer(node, name)?;
        if into.is_empty() {
            return rustix::fs::getxattr_query(path, name).map_err(errno);
        }
        rustix::fs::getxattr(path, name, into).map_err(errno)
    }

    pub(super) fn xattr_names(&self, node: u64, into: &mut [u8]) -> Outcome<usize> {
        let path = self.bearer(node, b"")?;
        if into.is_empty() {
            return rustix::fs::listxattr_query(path).map_err(errno);
        }
        rustix::fs::listxattr(path, into).map_err(errno)
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &[u8]) -> Outcome {
        rustix::fs::removexattr(self.bearer(node, name)?, name).map_err(errno)
    }
}
