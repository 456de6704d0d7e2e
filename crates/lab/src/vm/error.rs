//! What can go wrong with a guest.

use std::io;
use std::path::Path;

/// Why a guest did not come to its end.
#[derive(Debug, thiserror::Error)]
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
