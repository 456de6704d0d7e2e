//! Why a file cannot be a disk.

use std::fmt;
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
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: String) -> Self {
        Self { kind, what, source: None }
    }

    pub(crate) fn caused_by(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// For a system call that failed with nothing better to say about it.
    pub(crate) fn io(what: String, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                ErrorKind::NotPermitted
            }
            io::ErrorKind::ResourceBusy => ErrorKind::Locked,
            _ => ErrorKind::Io,
        };
        Self::new(kind, what).caused_by(source)
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
