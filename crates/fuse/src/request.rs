//! Requests: from bytes to an operation, and back.

use std::fmt;

use crate::Protocol;
use crate::error::{Error, ErrorKind, Result};
use crate::init::InitIn;
use crate::wire::*;

mod encode;
mod parse;
#[cfg(test)]
mod tests;

pub use crate::wire::CBytes;
pub use encode::Caller;
pub use parse::head_len;

/// Where the data of a WRITE and of a NOTIFY_REPLY begin: what is before them fits this.
pub(crate) const DATA_AT: usize = InHeader::LEN + WriteIn::LEN;
const _: () = assert!(WriteIn::LEN == NotifyRetrieveIn::LEN);
/// Bytes of the largest extended attribute, and of the longest list of their names (`XATTR_SIZE_MAX` of Linux).
pub(crate) const XATTR_SIZE_MAX: u32 = 64 << 10;
/// The longest name that a client takes, in bytes (`FUSE_NAME_MAX` since Linux 6.14: `PATH_MAX`, less the NUL).
const NAME_MAX: usize = 4095;

/// The name of an entry in a directory: not empty, at most 4095 bytes, no slash and no NUL in it. `.` and `..` are names
/// of entries too, but never of what a request is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// A name of these bytes.
    ///
    /// # Errors
    /// What no name may be.
    pub fn new(bytes: &'a [u8]) -> std::result::Result<Self, ErrorKind> {
        if bytes.is_empty() {
            return Err(ErrorKind::Name("is empty"));
        }
        if bytes.len() > NAME_MAX {
            return Err(ErrorKind::Name("is longer than 4095 bytes"));
        }
        if bytes.contains(&b'/') {
            return Err(ErrorKind::Name("has a slash in it"));
        }
        if bytes.contains(&0) {
            return Err(ErrorKind::Name("has a NUL in it"));
        }
        Ok(Self(bytes))
    }

    /// Its bytes, which need not be UTF-8.
    #[must_use]
    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether it is `.` or `..`.
    #[must_use]
    pub const fn is_dots(self) -> bool {
        matches!(self.0, b"." | b"..")
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Data of a request. They may lie elsewhere than its head, as in a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payload<'a> {
    /// What lies behind the head's arguments.
    pub here: &'a [u8],
    /// How many bytes follow elsewhere.
    pub elsewhere: usize,
}

impl Payload<'_> {
    /// Bytes in all.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.here.len() + self.elsewhere
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which attributes are changed: what [`SetattrIn`] says, by attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAttr(pub SetattrIn);

/// A time that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// To the server's clock.
    Now,
    /// To seconds and nanoseconds.
    To(i64, u32),
}

impl SetAttr {
    fn given<T>(&self, flag: SetattrValid, value: T) -> Option<T> {
        self.0.valid.contains(flag).then_some(value)
    }

    /// The open file to do it by.
    #[must_use]
    pub fn fh(&self) -> Option<u64> {
        self.given(SetattrValid::FH, self.0.fh)
    }

    /// Permissions.
    #[must_use]
    pub fn mode(&self) -> Option<u32> {
        self.given(SetattrValid::MODE, self.0.mode)
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.given(SetattrValid::UID, self.0.uid)
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> Option<u32> {
        self.given(SetattrValid::GID, self.0.gid)
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.given(SetattrValid::SIZE, self.0.size)
    }

    /// Last access.
    #[must_use]
    pub fn atime(&self) -> Option<SetTime> {
        let to = (self.0.atime, self.0.atimensec);
        self.time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, to)
    }

    /// Last modification.
    #[must_use]
    pub fn mtime(&self) -> Option<SetTime> {
        let to = (self.0.mtime, self.0.mtimensec);
        self.time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, to)
    }

    /// Last change.
    #[must_use]
    pub fn ctime(&self) -> Option<SetTime> {
        let to = (self.0.ctime, self.0.ctimensec);
        self.time(SetattrValid::CTIME, SetattrValid::empty(), to)
    }

    /// Whether set-user-ID and set-group-ID are dropped.
    #[must_use]
    pub fn kills_suidgid(&self) -> bool {
        self.0.valid.contains(SetattrValid::KILL_SUIDGID)
    }

    fn time(&self, set: SetattrValid, now: SetattrValid, to: (u64, u32)) -> Option<SetTime> {
        let is_now = !now.is_empty() && self.0.valid.contains(now);
        // The kernel sends a signed number of seconds.
        let time = if is_now { SetTime::Now } else { SetTime::To(to.0.cast_signed(), to.1) };
        self.given(set, time)
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request<'a> {
    /// Who asks, and of which node.
    pub header: InHeader,
    /// What is asked.
    pub operation: Operation<'a>,
    /// Its extensions, for [`extension::iter`](crate::extension::iter).
    pub extensions: &'a [u8],
}

impl Request<'_> {
    /// Whether it was sent before, and may have been carried out then (7.40).
    #[must_use]
    pub const fn is_resent(&self) -> bool {
        self.header.unique & crate::UNIQUE_RESEND != 0
    }
}

/// A request that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// Its header, if that much of it is there: what to answer, with [`Error::errno`].
    pub header: Option<InHeader>,
    /// Why.
    pub error: Error,
}

impl Rejected {
    /// Whether whoever sent it waits for an answer. Nobody does who has not said what it is to name.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        let asked = self.header.filter(|header| header.unique != 0);
        let opcode = asked.map(|header| Opcode::new(header.opcode));
        opcode.is_some_and(|opcode| opcode.is_none_or(Opcode::waits))
    }
}

/// Nodes to forget, in a BATCH_FORGET; parts of the DAX window, in a REMOVEMAPPING.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a, T> {
    bytes: &'a [u8],
    of: std::marker::PhantomData<T>,
}

impl<'a, T: Wire> List<'a, T> {
    /// All of `bytes`, if that is a whole number of them.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len().is_multiple_of(T::LEN) {
            Some(Self { bytes, of: std::marker::PhantomData })
        } else {
            None
        }
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let mut bytes = self.bytes;
        std::iter::from_fn(move || T::take(&mut bytes))
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / T::LEN
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// What is asked, with its arguments. The node is the header's.
///
/// Arguments that say how many bytes of data follow are what those data are: when a request is written, that of the data
/// counts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
#[allow(
    missing_docs,
    reason = "the opcode of the same name says what it is, its argument what it takes"
)]
pub enum Operation<'a> {
    Lookup(Name<'a>),
    /// A LOOKUP of `.`: of the directory itself, with [`InitFlags::EXPORT_SUPPORT`].
    LookupDot,
    /// A LOOKUP of `..`, with [`InitFlags::EXPORT_SUPPORT`].
    LookupParent,
    Forget {
        nlookup: u64,
    },
    BatchForget(List<'a, ForgetOne>),
    Getattr(GetattrIn),
    Statx(StatxIn),
    Setattr(SetAttr),
    Readlink,
    Symlink {
        name: Name<'a>,
        target: CBytes<'a>,
    },
    Mknod(MknodIn, Name<'a>),
    Mkdir(MkdirIn, Name<'a>),
    Unlink(Name<'a>),
    Rmdir(Name<'a>),
    Rename {
        newdir: u64,
        from: Name<'a>,
        to: Name<'a>,
    },
    Rename2 {
        to_dir: Rename2In,
        from: Name<'a>,
        to: Name<'a>,
    },
    Link {
        oldnodeid: u64,
        name: Name<'a>,
    },
    Open(OpenIn),
    Opendir(OpenIn),
    Read(ReadIn),
    Readdir(ReadIn),
    Readdirplus(ReadIn),
    Write(WriteIn, Payload<'a>),
    Statfs,
    Release(ReleaseIn),
    Releasedir(ReleaseIn),
    Fsync(FsyncIn),
    Fsyncdir(FsyncIn),
    Flush(FlushIn),
    Setxattr {
        args: SetxattrIn,
        name: CBytes<'a>,
        value: &'a [u8],
    },
    Getxattr {
        size: u32,
        name: CBytes<'a>,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: CBytes<'a>,
    },
    Init(InitIn),
    Destroy,
    Getlk(LkIn),
    Setlk(LkIn),
    Setlkw(LkIn),
    Access {
        mask: u32,
    },
    Create(CreateIn, Name<'a>),
    Tmpfile(CreateIn),
    Interrupt {
        unique: u64,
    },
    Bmap(BmapIn),
    Ioctl(IoctlIn, &'a [u8]),
    Poll(PollIn),
    NotifyReply(NotifyRetrieveIn, Payload<'a>),
    Fallocate(FallocateIn),
    Lseek(LseekIn),
    CopyFileRange(CopyFileRangeIn),
    CopyFileRange64(CopyFileRangeIn),
    Setupmapping(SetupmappingIn),
    Removemapping(List<'a, RemovemappingOne>),
    Syncfs,
}

impl Operation<'_> {
    /// Its number.
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        match self {
            Self::Lookup(_) | Self::LookupDot | Self::LookupParent => Opcode::Lookup,
            Self::Forget { .. } => Opcode::Forget,
            Self::BatchForget(_) => Opcode::BatchForget,
            Self::Getattr(_) => Opcode::Getattr,
            Self::Statx(_) => Opcode::Statx,
            Self::Setattr(_) => Opcode::Setattr,
            Self::Readlink => Opcode::Readlink,
            Self::Symlink { .. } => Opcode::Symlink,
            Self::Mknod(..) => Opcode::Mknod,
            Self::Mkdir(..) => Opcode::Mkdir,
            Self::Unlink(_) => Opcode::Unlink,
            Self::Rmdir(_) => Opcode::Rmdir,
            Self::Rename { .. } => Opcode::Rename,
            Self::Rename2 { .. } => Opcode::Rename2,
            Self::Link { .. } => Opcode::Link,
            Self::Open(_) => Opcode::Open,
            Self::Opendir(_) => Opcode::Opendir,
            Self::Read(_) => Opcode::Read,
            Self::Readdir(_) => Opcode::Readdir,
            Self::Readdirplus(_) => Opcode::Readdirplus,
            Self::Write(..) => Opcode::Write,
            Self::Statfs => Opcode::Statfs,
            Self::Release(_) => Opcode::Release,
            Self::Releasedir(_) => Opcode::Releasedir,
            Self::Fsync(_) => Opcode::Fsync,
            Self::Fsyncdir(_) => Opcode::Fsyncdir,
            Self::Flush(_) => Opcode::Flush,
            Self::Setxattr { .. } => Opcode::Setxattr,
            Self::Getxattr { .. } => Opcode::Getxattr,
            Self::Listxattr { .. } => Opcode::Listxattr,
            Self::Removexattr { .. } => Opcode::Removexattr,
            Self::Init(_) => Opcode::Init,
            Self::Destroy => Opcode::Destroy,
            Self::Getlk(_) => Opcode::Getlk,
            Self::Setlk(_) => Opcode::Setlk,
            Self::Setlkw(_) => Opcode::Setlkw,
            Self::Access { .. } => Opcode::Access,
            Self::Create(..) => Opcode::Create,
            Self::Tmpfile(_) => Opcode::Tmpfile,
            Self::Interrupt { .. } => Opcode::Interrupt,
            Self::Bmap(_) => Opcode::Bmap,
            Self::Ioctl(..) => Opcode::Ioctl,
            Self::Poll(_) => Opcode::Poll,
            Self::NotifyReply(..) => Opcode::NotifyReply,
            Self::Fallocate(_) => Opcode::Fallocate,
            Self::Lseek(_) => Opcode::Lseek,
            Self::CopyFileRange(_) => Opcode::CopyFileRange,
            Self::CopyFileRange64(_) => Opcode::CopyFileRange64,
            Self::Setupmapping(_) => Opcode::Setupmapping,
            Self::Removemapping(_) => Opcode::Removemapping,
            Self::Syncfs => Opcode::Syncfs,
        }
    }
}

/// Whether requests of this operation may carry extensions: what makes files.
const fn takes_extensions(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Mknod | Opcode::Mkdir | Opcode::Symlink | Opcode::Create | Opcode::Tmpfile
    )
}
