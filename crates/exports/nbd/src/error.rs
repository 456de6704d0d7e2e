//! The one error type of the crate: what keeps a server from being set up. What happens to a client later is
//! logged.

use blockyard_nbd::certificates::BadFile;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A text that is no address.
    Address,
    /// Somebody else listens there.
    InUse,
    /// The system does not allow it to this user.
    NotPermitted,
    /// A setting that cannot be.
    Config,
    /// A certificate or a key that cannot be used.
    Tls,
    /// Something that this build is without.
    Unavailable,
    /// Any other error of the system.
    Io,
}

/// What was being done, what went wrong and what to do about it, and why.
pub type Error = blockyard_error::Error<ErrorKind>;

impl From<&BadFile> for ErrorKind {
    fn from(_: &BadFile) -> Self {
        Self::Tls
    }
}
