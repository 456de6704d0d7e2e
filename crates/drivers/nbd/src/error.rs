//! Errors of connecting and of the control plane. How a request ended is a [`blockyard_blkmq::Status`].

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
pub type Error = blockyard_error::Error<ErrorKind>;

impl From<&BadFile> for ErrorKind {
    fn from(_: &BadFile) -> Self {
        Self::Tls
    }
}
