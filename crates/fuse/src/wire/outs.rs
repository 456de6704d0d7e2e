//! What replies and notifications are made of.

use super::flags::*;
use super::shared::{Attr, Statx};
use super::{Reader, Wire, structure};

structure! {
    /// A node, found or made (`fuse_entry_out`). Each one is a lookup that is to be given back, unless `nodeid` is 0.
    EntryOut: 128 {
        /// The node; 0 for a name that does not exist, which may be remembered for as long.
        nodeid: u64,
        /// With `nodeid`, unique for as long as the file system lives.
        generation: u64,
        /// Seconds for which the name holds.
        entry_valid: u64,
        /// Seconds for which the attributes hold.
        attr_valid: u64,
        /// Nanoseconds beside `entry_valid`.
        entry_valid_nsec: u32,
        /// Nanoseconds beside `attr_valid`.
        attr_valid_nsec: u32,
        /// The attributes.
        attr: Attr,
    }
}

structure! {
    /// `fuse_attr_out`.
    AttrOut: 104 {
        /// Seconds for which they hold.
        attr_valid: u64,
        /// Nanoseconds beside `attr_valid`.
        attr_valid_nsec: u32 [pad 4],
        /// The attributes.
        attr: Attr,
    }
}

structure! {
    /// `fuse_statx_out` (7.39).
    StatxOut: 288 {
        /// Seconds for which they hold.
        attr_valid: u64,
        /// Nanoseconds beside `attr_valid`.
        attr_valid_nsec: u32,
        /// None are defined.
        flags: u32 [pad 16],
        /// The attributes.
        stat: Statx,
    }
}

structure! {
    /// `fuse_open_out`, of files and directories.
    OpenOut: 16 {
        /// What later requests name the open file by.
        fh: u64,
        /// What it is.
        open_flags: FopenFlags,
        /// The backing file of [`FopenFlags::PASSTHROUGH`] (7.40).
        backing_id: i32,
    }
}

structure! {
    /// `fuse_write_out`.
    WriteOut: 8 {
        /// Bytes written.
        size: u32 [pad 4],
    }
}

structure! {
    /// `fuse_getxattr_out`: how large a value or a list is.
    GetxattrOut: 8 {
        /// Bytes.
        size: u32 [pad 4],
    }
}

structure! {
    /// `fuse_ioctl_out`.
    IoctlOut: 16 {
        /// What ioctl(2) returns.
        result: i32,
        /// [`IoctlFlags::RETRY`], or none.
        flags: IoctlFlags,
        /// How many areas to read follow.
        in_iovs: u32,
        /// How many areas to write follow those.
        out_iovs: u32,
    }
}

structure! {
    /// `fuse_poll_out`.
    PollOut: 8 {
        /// `POLL*`: what there is.
        revents: u32 [pad 4],
    }
}

structure! {
    /// `fuse_notify_inval_inode_out`.
    NotifyInvalInode: 24 {
        /// The node.
        ino: u64,
        /// Where its data are no longer right; negative for its attributes only.
        off: i64,
        /// Bytes; 0 or less for all that follow.
        len: i64,
    }
}

structure! {
    /// `fuse_notify_inval_entry_out`; the name follows.
    NotifyInvalEntryOut: 16 {
        /// The directory.
        parent: u64,
        /// Bytes of the name, without the NUL behind it.
        namelen: u32,
        /// How.
        flags: InvalEntryFlags,
    }
}

structure! {
    /// `fuse_notify_delete_out`; the name follows.
    NotifyDeleteOut: 24 {
        /// The directory.
        parent: u64,
        /// The node that had the name.
        child: u64,
        /// Bytes of the name, without the NUL behind it.
        namelen: u32 [pad 4],
    }
}

structure! {
    /// `fuse_notify_store_out`; the data follow.
    NotifyStoreOut: 24 {
        /// The node.
        nodeid: u64,
        /// Where.
        offset: u64,
        /// Bytes.
        size: u32 [pad 4],
    }
}

structure! {
    /// `fuse_notify_retrieve_out`.
    NotifyRetrieveOut: 32 {
        /// What the answer names.
        notify_unique: u64,
        /// The node.
        nodeid: u64,
        /// Where.
        offset: u64,
        /// Bytes.
        size: u32 [pad 4],
    }
}

structure! {
    /// `fuse_notify_prune_out` (7.45); the node IDs follow.
    NotifyPruneOut: 16 {
        /// How many.
        count: u32 [pad 12],
    }
}
