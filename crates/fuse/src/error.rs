//! The one error type of the crate.

use crate::wire::Opcode;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a message cannot be taken.
///
/// Match on [`kind`](Self::kind), print the whole: it names the message and what is wrong with it. A peer's mistake
/// is always returned as one of these, never a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {kind}")]
pub struct Error {
    message: String,
    kind: ErrorKind,
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// It ends before what belongs in it.
    #[error("it ends within its {0}")]
    Truncated(&'static str),
    /// It goes on behind its end.
    #[error("{0} bytes follow its end")]
    Trailing(usize),
    /// A length in it is not that of what it measures.
    #[error("its {what} is {got} where {expected} is right")]
    Length {
        /// Which length, with its unit.
        what: &'static str,
        /// What it says.
        got: u64,
        /// What is there, or the most that may be.
        expected: u64,
    },
    /// A name that no file can have.
    #[error("its name {0}")]
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
    pub(crate) fn new(message: impl Into<String>, kind: ErrorKind) -> Self {
        Self { message: message.into(), kind }
    }

    pub(crate) fn of(opcode: Opcode, kind: ErrorKind) -> Self {
        Self::new(format!("{opcode:?}"), kind)
    }

    /// What is wrong.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The errno that answers such a request, as Linux has it: `ENOSYS` for what is not known, `EPROTO` for a
    /// version that is not spoken, `EINVAL` for the rest.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        const EINVAL: i32 = 22;
        const ENOSYS: i32 = 38;
        const EPROTO: i32 = 71;
        match self.kind {
            ErrorKind::UnknownOpcode => ENOSYS,
            ErrorKind::Version { .. } => EPROTO,
            _ => EINVAL,
        }
    }
}
