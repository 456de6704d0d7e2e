//! What can go wrong with a guest.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::path::Path;

/// Why a guest did not come to its end.
#[derive(thiserror::Error)]
pub enum Error {
    /// Something that setup brings, or that the test named, is not there.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is not there.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The host refused something.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// The guest, or the emulator, did something else than was expected.
    #[error("the guest {what}\n{console}")]
    Guest {
        /// What it did.
        what: String,
        /// What it has said so far.
        console: String,
    },
}

/// As `Display`: tests unwrap it, and a console is to be read.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        match self.source() {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error {
    /// For `map_err`: the reason for which `what` did not work.
    pub(super) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// For `map_err`: a file that cannot be read.
    pub(super) fn reading(path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::host(format!("cannot read {}", path.display()))
    }

    /// A missing part of the laboratory.
    pub(super) fn no_lab(what: impl Into<String>) -> Self {
        Self::Missing { what: what.into(), remedy: "run: cargo xtask setup" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_of_a_guest_is_told_line_by_line() {
        let error = Error::Guest { what: "ended".to_owned(), console: "one\ntwo".to_owned() };
        assert_eq!(format!("{error:?}"), "the guest ended\none\ntwo");
        let error = Error::host("cannot start it")(io::Error::other("none"));
        assert_eq!(format!("{error:?}"), "cannot start it: none");
    }
}
