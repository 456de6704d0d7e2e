//! Errors of the control plane. How an operation ended is a [`crate::Status`].

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
pub type Error = blockyard_error::Error<ErrorKind>;

/// The result of a control operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<MajorError> for Error {
    fn from(err: MajorError) -> Self {
        let kind = match err {
            MajorError::Busy { .. } | MajorError::NoneFree => ErrorKind::Busy,
            MajorError::TooLarge(_) | MajorError::NotRegistered { .. } => ErrorKind::Invalid,
        };
        Self::new(kind, err.to_string())
    }
}
