//! Why a file cannot be a disk.

use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such file.
    NotFound,
    /// It is a directory, a pipe, or otherwise nothing that holds a disk.
    NotAFile,
    /// The kernel does not let us.
    NotPermitted,
    /// Somebody else uses it.
    Locked,
    /// Its size is no disk's.
    Size,
    /// An option that cannot be met here: direct I/O, locks, io_uring.
    NotSupported,
    /// Options that contradict each other, or can never be right.
    Invalid,
    /// Anything else that the kernel says.
    Io,
}

/// What is wrong with which file, and what to do about it.
pub type Error = blockyard_error::Error<ErrorKind>;

impl From<&io::Error> for ErrorKind {
    fn from(err: &io::Error) -> Self {
        match err.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::NotPermitted
            }
            io::ErrorKind::ResourceBusy => Self::Locked,
            _ => Self::Io,
        }
    }
}
