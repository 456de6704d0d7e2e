//! What can be wrong with a CRUSH map.

use std::fmt;

/// What is wrong with a map, to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes do not begin with [`MAGIC`](crate::MAGIC).
    NotACrushMap,
    /// The bytes end before the map does.
    Truncated,
    /// A count is more than the rest of the bytes can hold, or than a [limit](crate::limits) allows.
    TooMany,
    /// A bucket has an algorithm or a hash that nobody knows.
    UnknownAlgorithm,
    /// Numbers of the map contradict each other: an item that does not exist, a bucket inside of itself.
    Inconsistent,
}

/// A map that cannot be used: the kind of fault, where it is, and its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    subject: String,
    offset: Option<usize>,
}

impl Error {
    /// A fault of the bytes at an offset.
    pub(crate) fn at(kind: ErrorKind, offset: usize, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into(), offset: Some(offset) }
    }

    /// A fault of the map's contents.
    pub(crate) fn inconsistent(subject: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Inconsistent, subject: subject.into(), offset: None }
    }

    /// What is wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The byte at which decoding stopped, if the bytes are at fault.
    #[must_use]
    pub fn offset(&self) -> Option<usize> {
        self.offset
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ErrorKind::NotACrushMap => "not a CRUSH map",
            ErrorKind::Truncated => "the CRUSH map is truncated",
            ErrorKind::TooMany => "the CRUSH map has a count beyond what it can hold",
            ErrorKind::UnknownAlgorithm => "the CRUSH map uses an unknown algorithm",
            ErrorKind::Inconsistent => "the CRUSH map contradicts itself",
        };
        write!(f, "{kind}: {}", self.subject)?;
        match self.offset {
            Some(offset) => write!(f, " (at byte {offset})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
