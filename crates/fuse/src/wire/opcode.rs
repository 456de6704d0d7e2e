//! What a request asks, and what a notification tells.

macro_rules! numbers {
    ($(#[$meta:meta])* $name:ident: $type:ty { $($(#[$value_meta:meta])* $value:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$value_meta])* $value = $number,)*
        }

        impl $name {
            /// All that there are.
            pub const ALL: &[Self] = &[$(Self::$value),*];

            /// Which one has this number.
            #[must_use]
            pub const fn new(number: $type) -> Option<Self> {
                match number {
                    $($number => Some(Self::$value),)*
                    _ => None,
                }
            }
        }
    };
}

numbers! {
    /// An operation. The numbers without a name are of CUSE, or never were.
    Opcode: u32 {
        /// Finds a name in a directory.
        Lookup = 1,
        /// Gives lookups back; has no reply.
        Forget = 2,
        /// Asks for attributes.
        Getattr = 3,
        /// Changes attributes.
        Setattr = 4,
        /// Reads a symbolic link.
        Readlink = 5,
        /// Makes a symbolic link.
        Symlink = 6,
        /// Makes a file, device, socket or FIFO.
        Mknod = 8,
        /// Makes a directory.
        Mkdir = 9,
        /// Removes a name.
        Unlink = 10,
        /// Removes a directory.
        Rmdir = 11,
        /// Renames, without flags.
        Rename = 12,
        /// Makes a hard link.
        Link = 13,
        /// Opens a file.
        Open = 14,
        /// Reads.
        Read = 15,
        /// Writes.
        Write = 16,
        /// Asks about the file system.
        Statfs = 17,
        /// Ends an open file.
        Release = 18,
        /// Makes a file durable.
        Fsync = 20,
        /// Sets an extended attribute.
        Setxattr = 21,
        /// Reads an extended attribute.
        Getxattr = 22,
        /// Lists extended attributes.
        Listxattr = 23,
        /// Removes an extended attribute.
        Removexattr = 24,
        /// A descriptor of an open file was closed.
        Flush = 25,
        /// Begins a session.
        Init = 26,
        /// Opens a directory.
        Opendir = 27,
        /// Reads a directory.
        Readdir = 28,
        /// Ends an open directory.
        Releasedir = 29,
        /// Makes a directory durable.
        Fsyncdir = 30,
        /// Asks for a POSIX lock.
        Getlk = 31,
        /// Takes or gives up a lock.
        Setlk = 32,
        /// Takes a lock, waiting for it.
        Setlkw = 33,
        /// Asks whether access is allowed.
        Access = 34,
        /// Makes and opens a file.
        Create = 35,
        /// Interrupts a request; answered only if it is not supported, or comes too early.
        Interrupt = 36,
        /// Maps a block of a file to one of its device.
        Bmap = 37,
        /// Ends the session.
        Destroy = 38,
        /// An ioctl.
        Ioctl = 39,
        /// Asks whether I/O is possible.
        Poll = 40,
        /// Answers a `Retrieve` notification; has no reply.
        NotifyReply = 41,
        /// Gives lookups of several nodes back; has no reply.
        BatchForget = 42,
        /// Allocates or frees space.
        Fallocate = 43,
        /// Reads a directory, with a lookup of each entry.
        Readdirplus = 44,
        /// Renames, with flags.
        Rename2 = 45,
        /// Finds data or a hole.
        Lseek = 46,
        /// Copies from file to file.
        CopyFileRange = 47,
        /// Maps a part of a file into the DAX window.
        Setupmapping = 48,
        /// Unmaps parts of the DAX window.
        Removemapping = 49,
        /// Makes a file system durable (7.34).
        Syncfs = 50,
        /// Makes and opens a file without a name (7.37).
        Tmpfile = 51,
        /// Asks for attributes as statx(2) does (7.39).
        Statx = 52,
        /// As `CopyFileRange`, with an answer of 64 bits (7.45).
        CopyFileRange64 = 53,
    }
}

impl Opcode {
    /// Whether the client waits for the answer. To an INTERRUPT there may be one
    /// ([`Answered::Interrupt`](crate::Answered::Interrupt)), which nobody waits for.
    #[must_use]
    pub const fn waits(self) -> bool {
        !matches!(self, Self::Forget | Self::BatchForget | Self::Interrupt | Self::NotifyReply)
    }
}

numbers! {
    /// What a notification tells.
    NotifyCode: i32 {
        /// A poll that was asked about is worth repeating.
        Poll = 1,
        /// Attributes or data of a node have changed.
        InvalInode = 2,
        /// A name has changed.
        InvalEntry = 3,
        /// Data for the client's cache.
        Store = 4,
        /// Asks for data of the client's cache.
        Retrieve = 5,
        /// A name was removed.
        Delete = 6,
        /// Asks for all requests again that have no reply (7.40).
        Resend = 7,
        /// All that was looked up before is to be looked up again (7.44).
        IncEpoch = 8,
        /// Asks to forget nodes that nobody uses (7.45).
        Prune = 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // enum fuse_opcode: 1 to 53 but for 7 and 19; enum fuse_notify_code: 1 to 9.
        let known: Vec<u32> = (0..4100).filter(|&number| Opcode::new(number).is_some()).collect();
        let header: Vec<u32> = (1..=53).filter(|number| ![7, 19].contains(number)).collect();
        assert_eq!(known, header);
        assert_eq!((Opcode::Init as u32, Opcode::Readdirplus as u32), (26, 44));
        let codes: Vec<i32> =
            (-20..20).filter(|&number| NotifyCode::new(number).is_some()).collect();
        assert_eq!(codes, (1..=9).collect::<Vec<_>>());
        assert!(Opcode::ALL.iter().all(|&opcode| Opcode::new(opcode as u32) == Some(opcode)));
    }
}
