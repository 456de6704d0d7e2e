//! Errors of the control plane. How an operation ended is a [`crate::Status`].

use std::fmt;

use crate::major::MajorError;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An argument that can never be right (EINVAL).
    Invalid,
    /// Somebody else has it (EBUSY).
    Busy,
    /// There is no such thing (ENODEV, ENOENT).
    NotFound,
    /// It exists already (EEXIST).
    Exists,
    /// Not allowed (EPERM, EROFS).
    NotPermitted,
    /// The disk cannot do that (EOPNOTSUPP, ENOTTY).
    NotSupported,
    /// Memory, numbers or another resource is used up (ENOMEM, ENOSPC).
    Resource,
    /// The disk is gone or going (ENXIO).
    Offline,
    /// Reading or writing failed (EIO).
    Io,
}

/// What was being done, what went wrong, and why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of a control operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` with a sentence that says what and where.
    #[must_use]
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    /// With what caused it.
    #[must_use]
    pub fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<MajorError> for Error {
    fn from(err: MajorError) -> Self {
        let kind = match err {
            MajorError::Busy { .. } | MajorError::NoneFree => ErrorKind::Busy,
            MajorError::TooLarge(_) | MajorError::NotRegistered { .. } => ErrorKind::Invalid,
        };
        Self::new(kind, err.to_string())
    }
}
