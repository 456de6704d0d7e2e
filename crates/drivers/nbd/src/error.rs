//! Errors of connecting and of the control plane. How a request ended is a [`blockyard_blkmq::Status`].

use std::fmt;

use blockyard_nbd::certificates::BadFile;

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A setting that cannot be.
    Config,
    /// A file of TLS cannot be used.
    Tls,
    /// What is asked for is not in this build.
    Unsupported,
    /// The server cannot be reached, or broke off.
    Connect,
    /// The server did not answer in time.
    Timeout,
    /// The server does not speak NBD as it should.
    Protocol,
    /// The server refused the export.
    Refused,
    /// The export is not what it was: smaller, or it cannot do something any more that users rely on.
    Changed,
    /// The disk was disconnected.
    Closed,
}

/// What was being done with which server, what went wrong, and why.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None }
    }

    pub(crate) fn caused_by(
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

    /// The whole chain in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.what.clone();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        line
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<Error> for blockyard_blkmq::Error {
    fn from(err: Error) -> Self {
        use blockyard_blkmq::ErrorKind as Block;
        let kind = match err.kind {
            ErrorKind::Config | ErrorKind::Tls => Block::Invalid,
            ErrorKind::Unsupported => Block::NotSupported,
            ErrorKind::Refused => Block::NotPermitted,
            ErrorKind::Closed => Block::Offline,
            _ => Block::Io,
        };
        Self::new(kind, err.what.clone()).caused_by(err)
    }
}
