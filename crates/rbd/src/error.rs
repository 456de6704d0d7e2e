//! The one error type of the crate.

use rustix::io::Errno;
use std::fmt;
use std::io;

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image or an object cannot be used, or an operation on it failed.
///
/// Match on [`kind`](Self::kind), or ask for the [`errno`](Self::errno) that a store answered with; print the whole.
#[derive(Debug, thiserror::Error)]
#[error("{}{kind}", Place(place.as_deref()))]
pub struct Error {
    kind: ErrorKind,
    place: Option<Box<str>>,
}

/// What is printed in front of an error: the image, the object, the file.
struct Place<'a>(Option<&'a str>);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |place| write!(f, "{place}: "))
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The store did not do what it was asked for. The text is the system's for the number.
    #[error("{0}")]
    Answer(Errno),
    /// A guard of the operation found other bytes.
    #[error("the bytes differ from those expected, first at {at}")]
    Mismatch {
        /// Where, from the start of the compared range.
        at: u32,
    },
    /// Bytes that are not what the format says, or an error of the cluster.
    #[error(transparent)]
    Rados(#[from] blockyard_rados::Error),
    /// A file of the store cannot be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The store's database cannot be read or written.
    #[error("the database of the store: {0}")]
    Database(Box<redb::Error>),
    /// The image needs features that are not known here.
    #[error(
        "the image has features that are not supported here: {names}; disable them, or use a newer version"
    )]
    Features {
        /// Their names, or their bits where they have none that is known.
        names: String,
    },
    /// What the caller gave cannot be used.
    #[error("{0}")]
    BadParameter(String),
    /// What is stored contradicts itself.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl Error {
    /// An answer with an error number.
    #[must_use]
    pub const fn answer(errno: Errno) -> Self {
        Self { kind: ErrorKind::Answer(errno), place: None }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        ErrorKind::Damaged(what.into()).into()
    }

    pub(crate) fn bad(what: impl Into<String>) -> Self {
        ErrorKind::BadParameter(what.into()).into()
    }

    /// The error, of something that has a name: what it is in comes in front.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Self {
        let place = match self.place {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        };
        Self { kind: self.kind, place: Some(place.into()) }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The number that a store answered with; none if it did not come to that.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match &self.kind {
            ErrorKind::Answer(errno) => Some(*errno),
            ErrorKind::Rados(error) => match error.kind() {
                blockyard_rados::ErrorKind::Osd { errno }
                | blockyard_rados::ErrorKind::Refused { errno, .. }
                | blockyard_rados::ErrorKind::WatchLost { errno } => {
                    Some(Errno::from_raw_os_error(*errno))
                }
                blockyard_rados::ErrorKind::NoPool => Some(Errno::NOENT),
                blockyard_rados::ErrorKind::TimedOut => Some(Errno::TIMEDOUT),
                _ => None,
            },
            ErrorKind::Io { source, .. } => Errno::from_io_error(source),
            ErrorKind::Database(error) => match &**error {
                redb::Error::Io(source) => Errno::from_io_error(source),
                redb::Error::PreviousIo => Some(Errno::IO),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether what is stored cannot be understood, now or later.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use blockyard_rados::ErrorKind as Rados;
        match &self.kind {
            ErrorKind::Damaged(_) => true,
            ErrorKind::Rados(error) => matches!(
                error.kind(),
                Rados::Truncated { .. } | Rados::Violation { .. } | Rados::TooNew { .. }
            ),
            _ => false,
        }
    }

    /// Whether the object, the key or the image is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::NOENT)
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, place: None }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::answer(errno)
    }
}

impl From<blockyard_rados::Error> for Error {
    fn from(error: blockyard_rados::Error) -> Self {
        ErrorKind::Rados(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_where() {
        let error = Error::answer(Errno::NOENT).at("object \"a\"").at("image b");
        assert_eq!(
            error.to_string(),
            "image b: object \"a\": No such file or directory (os error 2)"
        );
        assert!(error.is_not_found());
        assert_eq!(Error::damaged("x").errno(), None);
    }
}
