//! The one error type of the crate: what keeps a server from being set up. What happens to a client later is
//! logged.

use std::error::Error as StdError;
use std::fmt;

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
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    pub(crate) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<BadFile> for Error {
    fn from(bad: BadFile) -> Self {
        let (what, source) = bad.into_parts();
        Self { kind: ErrorKind::Tls, what, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
