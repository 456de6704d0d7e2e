//! The one error type of the crate.

use crate::wire::{Opt, ReplyType};

/// Why a connection cannot go on, or why a URI cannot be used.
///
/// Match on [`kind`](Self::kind), print the whole: it names what was being done and the values at fault.
/// A peer's mistake is always returned as one of these, never a panic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{doing}: {kind}")]
pub struct Error {
    doing: &'static str,
    kind: ErrorKind,
}

/// Who has to change something for the operation to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer broke the protocol, or is no NBD peer at all.
    Peer,
    /// Both sides follow the protocol, but their configurations do not fit together.
    Policy,
    /// Whoever wrote the URI or chose the parameter.
    User,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A message does not begin with its magic number: the stream is lost, or the peer speaks something else.
    #[error("the peer sent the magic number {got:#x} where {expected:#x} belongs")]
    BadMagic {
        /// The magic that belongs there.
        expected: u64,
        /// What came instead.
        got: u64,
    },
    /// A rule of the specification was broken in a way that no reply can repair.
    #[error("{rule} (got {got})")]
    Violation {
        /// The rule.
        rule: &'static str,
        /// The offending value.
        got: u64,
    },
    /// A length or a count is over a bound that this side keeps.
    #[error("{what} is {got}, the limit is {limit}")]
    TooBig {
        /// What was measured, with its unit.
        what: &'static str,
        /// How much came.
        got: u64,
        /// How much is taken.
        limit: u64,
    },
    /// The peer did what the specification allows, but this side's configuration forbids it.
    #[error("{0}")]
    Policy(&'static str),
    /// The server answered an option with an error.
    #[error("the server refused {option}: {reply}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The option.
        option: Opt,
        /// The error.
        reply: ReplyType,
        /// The server's words, empty if it sent none.
        message: String,
    },
    /// A URI, a name or another parameter of the caller is not what the protocol allows.
    #[error("{problem}: {text:?}")]
    BadParameter {
        /// What is wrong, and what would be right.
        problem: &'static str,
        /// The text at fault.
        text: String,
    },
}

impl Error {
    pub(crate) const fn new(doing: &'static str, kind: ErrorKind) -> Self {
        Self { doing, kind }
    }

    /// The peer broke a rule, as whoever drives the protocol has found.
    #[must_use]
    pub const fn violation(doing: &'static str, rule: &'static str, got: u64) -> Self {
        Self::new(doing, ErrorKind::Violation { rule, got })
    }

    pub(crate) const fn too_big(
        doing: &'static str,
        what: &'static str,
        got: u64,
        limit: u64,
    ) -> Self {
        Self::new(doing, ErrorKind::TooBig { what, got, limit })
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// What was being done, such as "reading an option".
    #[must_use]
    pub const fn doing(&self) -> &'static str {
        self.doing
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self.kind {
            ErrorKind::BadMagic { .. } | ErrorKind::Violation { .. } | ErrorKind::TooBig { .. } => {
                Blame::Peer
            }
            ErrorKind::Policy(_) | ErrorKind::Refused { .. } => Blame::Policy,
            ErrorKind::BadParameter { .. } => Blame::User,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_operation_and_the_values() {
        let magic = Error::new("reading a request", ErrorKind::BadMagic { expected: 1, got: 0xff });
        assert_eq!(
            magic.to_string(),
            "reading a request: the peer sent the magic number 0xff where 0x1 belongs"
        );
        assert_eq!(magic.blame(), Blame::Peer);
        let refused = |message: &str| {
            Error::new(
                "opening an export",
                ErrorKind::Refused {
                    option: Opt::GO,
                    reply: ReplyType::ERR_UNKNOWN,
                    message: message.into(),
                },
            )
        };
        assert_eq!(
            refused("no disk").to_string(),
            "opening an export: the server refused NBD_OPT_GO: NBD_REP_ERR_UNKNOWN: no disk"
        );
        assert_eq!(
            refused("").to_string(),
            "opening an export: the server refused NBD_OPT_GO: NBD_REP_ERR_UNKNOWN"
        );
        assert_eq!(refused("").blame(), Blame::Policy);
    }
}
