//! The shape of an error: its kind, what went wrong, what to do about it, and why.
//!
//! A crate has kinds of its own, and a name for the shape with them:
//!
//! ```
//! #[derive(Clone, Copy, Debug, PartialEq, Eq)]
//! pub enum ErrorKind {
//!     /// No such file.
//!     NotFound,
//!     /// Any other error of the system.
//!     Io,
//! }
//!
//! pub type Error = blockyard_error::Error<ErrorKind>;
//!
//! impl From<&std::io::Error> for ErrorKind {
//!     fn from(err: &std::io::Error) -> Self {
//!         match err.kind() {
//!             std::io::ErrorKind::NotFound => Self::NotFound,
//!             _ => Self::Io,
//!         }
//!     }
//! }
//!
//! let err = Error::io("cannot open disk.img", std::io::ErrorKind::NotFound.into());
//! assert_eq!(err.kind(), ErrorKind::NotFound);
//! assert_eq!(err.chain(), "cannot open disk.img: entity not found");
//! ```
//!
//! Match on the kind, print the whole chain: an error shows what went wrong, and its causes are its sources. What to do about it
//! is apart from that, so that the command can print it last: it is a [`Remedy`] in the chain of sources, which is the same type
//! whatever the kind, so that who walks a chain finds those of crates that it does not know.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt;
use std::io;

/// What caused an error.
pub type Source = Box<dyn StdError + Send + Sync>;

/// A word of a command that a remedy advises, a path say, as a shell takes it: quoted if it has to be.
#[must_use]
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    // It fails for a NUL, which no path and no argument can have.
    shlex::try_quote(&word).map_or_else(|_| word.to_string(), Cow::into_owned)
}

/// What was being done and what went wrong, its kind to match on, what to do about it, and why.
#[derive(Debug)]
pub struct Error<K> {
    kind: K,
    what: String,
    why: Remedy,
}

/// What can be done about the error whose source it is, and what caused that.
#[derive(Debug, Default)]
pub struct Remedy {
    text: Option<Box<str>>,
    cause: Option<Source>,
}

impl Remedy {
    /// What can be done, if this is a remedy.
    #[must_use]
    pub fn of<'a>(source: &'a (dyn StdError + 'static)) -> Option<&'a str> {
        source.downcast_ref::<Self>().and_then(|remedy| remedy.text.as_deref())
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "help: {}", self.text.as_deref().unwrap_or_default())
    }
}

impl StdError for Remedy {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl<K> Error<K> {
    /// An error of a kind, with a sentence that says what, and where.
    #[must_use]
    pub fn new(kind: K, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: Remedy::default() }
    }

    /// What the system says, which decides the kind, with what was being done.
    #[must_use]
    pub fn io(what: impl Into<String>, source: io::Error) -> Self
    where
        K: for<'a> From<&'a io::Error>,
    {
        Self::new(K::from(&source), what).caused_by(source)
    }

    /// With what caused it.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Source>) -> Self {
        self.why.cause = Some(source.into());
        self
    }

    /// With what to do about it: one instruction, ready to be followed.
    #[must_use]
    pub fn help(mut self, remedy: impl Into<String>) -> Self {
        self.why.text = Some(remedy.into().into());
        self
    }

    /// The same with a kind of another crate.
    #[must_use]
    pub fn with_kind<L>(self, kind: L) -> Error<L> {
        Error { kind, what: self.what, why: self.why }
    }

    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> Option<&str> {
        self.why.text.as_deref()
    }

    /// The whole chain in one line, for a log.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut line = self.what.clone();
        let mut source = self.cause();
        while let Some(cause) = source {
            if Remedy::of(cause).is_none() {
                line.push_str(": ");
                line.push_str(&cause.to_string());
            }
            source = cause.source();
        }
        line
    }

    /// What caused it.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn StdError + 'static)> {
        self.why.source()
    }
}

impl<K: Copy> Error<K> {
    /// The kind, to match on.
    #[must_use]
    pub fn kind(&self) -> K {
        self.kind
    }
}

impl<K> fmt::Display for Error<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl<K: fmt::Debug> StdError for Error<K> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        if self.why.text.is_some() { Some(&self.why) } else { self.cause() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As who pastes the command does.
    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        for word in
            ["/srv/disk.img", "it's a disk.img", "a;b", "$HOME `id`", "\"q\"", "*?", "", "é ~"]
        {
            let command = format!("printf '[%s]' {}", quoted(word));
            let shell = std::process::Command::new("sh").args(["-c", &command]).output();
            assert_eq!(String::from_utf8_lossy(&shell.unwrap().stdout), format!("[{word}]"));
        }
        assert_eq!(quoted("/srv/disk.img"), "/srv/disk.img");
    }

    #[test]
    fn an_error_shows_what_and_keeps_the_rest_apart() {
        let low = Error::new('l', "connection refused");
        let error = Error::new('e', "cannot connect to localhost").caused_by(low).help("start it");
        assert_eq!(error.to_string(), "cannot connect to localhost");
        assert_eq!(error.chain(), "cannot connect to localhost: connection refused");
        assert_eq!((error.kind(), error.remedy()), ('e', Some("start it")));
        let other = error.with_kind(7);
        assert_eq!((other.kind(), other.remedy()), (7, Some("start it")));
        assert_eq!(other.cause().unwrap().to_string(), "connection refused");
        let above = Error::new(1, "cannot copy").caused_by(other);
        assert_eq!(above.chain(), "cannot copy: cannot connect to localhost: connection refused");
        let remedy = above.source().and_then(StdError::source).and_then(Remedy::of);
        assert_eq!(remedy, Some("start it"));
    }
}
