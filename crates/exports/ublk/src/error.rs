//! The one error type of the crate: what keeps a device from being made, taken over or removed.

use std::io;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The kernel has no ublk, or lacks a part of it that is needed.
    Unavailable,
    /// Somebody else has it.
    Busy,
    /// This user may not do that.
    NotPermitted,
    /// There is no such device.
    NotFound,
    /// A disk that ublk cannot show.
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
            io::ErrorKind::ResourceBusy | io::ErrorKind::AlreadyExists => Self::Busy,
            _ if err.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                Self::NotFound
            }
            _ => Self::Io,
        }
    }
}
