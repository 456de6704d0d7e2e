//! The one error type of the crate: what keeps a file system from being mounted, changed or taken away.

use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The kernel has no FUSE, or fusermount3 is missing.
    Unavailable,
    /// It is used.
    Busy,
    /// A disk has not ended what it was asked.
    InFlight,
    /// This user may not do that.
    NotPermitted,
    /// There is nothing of that name.
    NotFound,
    /// Not what can be mounted on, or no name of a file.
    Unsuitable,
    /// Any other error of the system.
    Io,
}

/// What was being done, what went wrong and what to do about it, and why.
pub type Error = blockyard_error::Error<ErrorKind>;

impl From<&io::Error> for ErrorKind {
    fn from(err: &io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            io::ErrorKind::ResourceBusy => Self::Busy,
            io::ErrorKind::NotFound => Self::NotFound,
            _ => Self::Io,
        }
    }
}
