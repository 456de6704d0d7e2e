//! The one error type of the crate, and the errnos that answer a request.

use std::fmt;

use crate::wire::{NotifyCode, Opcode};

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// What a reply may say of a request that failed: 1 to 511. The kernel has those above for itself, and refuses a reply
/// that has one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(u16);

impl Errno {
    /// Errnos end before this one.
    pub(crate) const END: i32 = 512;

    /// Not allowed to this caller.
    pub const EPERM: Self = Self(1);
    /// No such name.
    pub const ENOENT: Self = Self(2);
    /// Anything else that went wrong.
    pub const EIO: Self = Self(5);
    /// Nothing there: past the end.
    pub const ENXIO: Self = Self(6);
    /// No such open file.
    pub const EBADF: Self = Self(9);
    /// Not now; of an INTERRUPT: not yet.
    pub const EAGAIN: Self = Self(11);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// Not allowed by its permissions.
    pub const EACCES: Self = Self(13);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(20);
    /// A directory.
    pub const EISDIR: Self = Self(21);
    /// Not valid.
    pub const EINVAL: Self = Self(22);
    /// Not a file with such commands.
    pub const ENOTTY: Self = Self(25);
    /// Larger than a file may be.
    pub const EFBIG: Self = Self(27);
    /// No room.
    pub const ENOSPC: Self = Self(28);
    /// Read-only.
    pub const EROFS: Self = Self(30);
    /// No such operation; the client does not ask again.
    pub const ENOSYS: Self = Self(38);
    /// A version that is not spoken.
    pub const EPROTO: Self = Self(71);
    /// Not supported for this file.
    pub const EOPNOTSUPP: Self = Self(95);

    /// That of `raw`, as a system call has it: what is not for user space becomes one that is. 524 (`ENOTSUPP`), which NFS
    /// lets through, is [`Errno::EOPNOTSUPP`], and all others are [`Errno::EIO`].
    #[must_use]
    pub const fn from_raw(raw: i32) -> Self {
        const ENOTSUPP: i32 = 524;
        match raw {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 511")]
            1..Self::END => Self(raw as u16),
            ENOTSUPP => Self::EOPNOTSUPP,
            _ => Self::EIO,
        }
    }

    /// The number: 1 to 511.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

/// Why a message cannot be taken. It holds no memory: refusing a message costs none.
///
/// Match on [`kind`](Self::kind), print the whole: it names the message and what is wrong with it. A peer's mistake
/// is always returned as one of these, never a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {kind}")]
pub struct Error {
    message: Message,
    kind: ErrorKind,
}

/// Which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A request whose opcode is not known, or not there.
    Request(Option<u32>),
    Operation(Opcode),
    Reply(Option<Opcode>),
    Notification(i32),
    Extensions,
    Session,
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(None) => f.write_str("request"),
            Self::Request(Some(number)) => write!(f, "operation {number}"),
            Self::Operation(opcode) => write!(f, "{opcode:?}"),
            Self::Reply(None) => f.write_str("reply"),
            Self::Reply(Some(opcode)) => write!(f, "reply to {opcode:?}"),
            Self::Notification(number) => match NotifyCode::new(*number) {
                Some(code) => write!(f, "notification {code:?}"),
                None => write!(f, "notification {number}"),
            },
            Self::Extensions => f.write_str("extensions"),
            Self::Session => f.write_str("settings of the server"),
        }
    }
}

impl From<Opcode> for Message {
    fn from(opcode: Opcode) -> Self {
        Self::Operation(opcode)
    }
}

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It ends before what belongs in it.
    #[error("truncated within its {0}")]
    Truncated(&'static str),
    /// It goes on behind its end.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A length in it is not that of what it measures, or more than may be.
    #[error("invalid {what} {got}, expected {expected}")]
    Length {
        /// Which length, with its unit.
        what: &'static str,
        /// What it says.
        got: u64,
        /// What is there, or the most that may be.
        expected: u64,
    },
    /// A name that no file can have.
    #[error("invalid name: it {0}")]
    Name(&'static str),
    /// A value that the protocol does not allow.
    #[error("{rule} (got {got})")]
    Violation {
        /// The rule.
        rule: &'static str,
        /// The value.
        got: u64,
    },
    /// An operation that is not known.
    #[error("no such operation is known")]
    UnknownOpcode,
    /// A version that is too old, or another protocol.
    #[error("version {major}.{minor} is not spoken; 7.27 or newer is")]
    Version {
        /// What the peer says.
        major: u32,
        /// What the peer says.
        minor: u32,
    },
}

impl Error {
    pub(crate) fn new(message: impl Into<Message>, kind: ErrorKind) -> Self {
        Self { message: message.into(), kind }
    }

    /// What is wrong.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The errno that answers such a request, as Linux has it: `ENOSYS` for what is not known, `EPROTO` for a
    /// version that is not spoken, `EINVAL` for the rest.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self.kind {
            ErrorKind::UnknownOpcode => Errno::ENOSYS,
            ErrorKind::Version { .. } => Errno::EPROTO,
            _ => Errno::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_that_is_none_for_user_space_becomes_one() {
        for (raw, errno) in [(0, 5), (-1, 5), (512, 5), (524, 95), (i32::MAX, 5), (i32::MIN, 5)] {
            assert_eq!(Errno::from_raw(raw).raw(), errno, "{raw}");
        }
        for raw in 1..512 {
            assert_eq!(Errno::from_raw(raw).raw(), raw);
        }
    }

    #[test]
    fn what_is_parsed_or_refused_owns_no_memory() {
        const fn owns_none<T: Copy>() {}
        owns_none::<Error>();
        owns_none::<crate::Rejected>();
        owns_none::<crate::Request<'_>>();
        owns_none::<crate::Reply<'_>>();
        owns_none::<crate::Notification<'_>>();
        owns_none::<crate::extension::Extension<'_>>();
    }
}
