//! The one error type of the crate: what keeps a back-end from being set up. What happens to a front-end later is logged.

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Somebody else listens there.
    InUse,
    /// The system does not allow it to this user.
    NotPermitted,
    /// A setting that cannot be.
    Config,
    /// Any other error of the system.
    Io,
}

/// What was being done, what went wrong and what to do about it, and why.
pub type Error = blockyard_error::Error<ErrorKind>;
