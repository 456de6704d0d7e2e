//! The one error type of the crate.

use crate::encoding::{Fsid, ObjectName};
use std::fmt;

/// Why bytes, a peer, a file or an argument cannot be used, or why an operation on an object failed.
///
/// Match on [`kind`](Self::kind), or ask for the [`blame`](Self::blame); print the whole: it names what was being done
/// and the values at fault. A peer's mistake is always returned as one of these, never a panic. No key is ever in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{doing}: {kind}{}", Prefix(place.as_deref()), Because(cause.as_deref()))]
pub struct Error {
    doing: &'static str,
    kind: ErrorKind,
    place: Option<Box<Place>>,
    cause: Option<Box<Self>>,
}

/// Which operation on which object an error is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cluster.
    pub cluster: Fsid,
    /// The pool's number.
    pub pool: i64,
    /// Its name, if it is known.
    pub pool_name: Option<String>,
    /// The object.
    pub object: ObjectName,
    /// The operations, such as "write" or "stat, read".
    pub operations: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {}: pool ", self.cluster)?;
        match &self.pool_name {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{}", self.pool)?,
        }
        write!(f, ": object {:?}: {}", self.object, self.operations)
    }
}

/// A place in front of an error's text.
struct Prefix<'a>(Option<&'a Place>);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |place| write!(f, "{place}: "))
    }
}

/// What went wrong before, behind an error's text.
struct Because<'a>(Option<&'a Error>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |cause| write!(f, "; before that, {cause}"))
    }
}

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// Who has to change something for the operation to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The peer sent what the protocol does not allow, or is no Ceph daemon at all.
    Peer,
    /// Both sides follow the protocol, but their versions or configurations do not fit together.
    Policy,
    /// Whoever wrote the configuration, the keyring, or chose the parameter.
    User,
    /// Nobody: the connection broke, or time ran out.
    Network,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An encoded structure ends before its last field.
    #[error("truncated: {needed} bytes expected, {left} left")]
    Truncated {
        /// How many bytes the next field has.
        needed: u64,
        /// How many are there.
        left: u64,
    },
    /// A value that the format does not allow.
    #[error("protocol violation ({rule}): got {got:#x}")]
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
    /// A checksum or an authentication code is wrong: the bytes were changed on their way.
    #[error("the {what} does not match its checksum")]
    Corrupted {
        /// What was checked.
        what: &'static str,
    },
    /// A structure was encoded in a way that only newer readers understand.
    #[error("the encoding needs version {compat}; this client supports up to {known}")]
    TooNew {
        /// The oldest version that can read it.
        compat: u8,
        /// The newest version known here.
        known: u8,
    },
    /// The peer lacks something that this side needs, or the other way round.
    #[error("{problem} ({features:#x})")]
    Features {
        /// Who lacks what.
        problem: &'static str,
        /// The bits that are missing.
        features: u64,
    },
    /// The peer refused.
    #[error("refused: {reason} ({})", Errno(*errno))]
    Refused {
        /// The peer's reason.
        reason: String,
        /// The peer's error number, positive.
        errno: i32,
    },
    /// A secret is wrong: what was encrypted with it cannot be read with the one that is known here.
    #[error("the key of {entity} is not the cluster's: {what} cannot be decrypted")]
    WrongKey {
        /// Whose key.
        entity: String,
        /// What was to be decrypted.
        what: &'static str,
    },
    /// The peer cannot prove that it knows the secret.
    #[error("the peer does not know the secret: {0}")]
    Impostor(&'static str),
    /// There is no ticket for a service, or it ended.
    #[error("no ticket for {0}")]
    NoTicket(&'static str),
    /// A deadline passed.
    #[error("no answer in time")]
    TimedOut,
    /// No monitor of the cluster lets the client in before time is over.
    #[error("no monitor reachable in time; last error: {reason}")]
    Unreachable {
        /// What was wrong with each that was tried.
        reason: String,
    },
    /// What the cluster says of itself cannot be read here.
    #[error("cannot use the map: {reason}")]
    MapUnusable {
        /// What is wrong with it.
        reason: String,
    },
    /// The peer ended the session.
    #[error("the peer ended the session")]
    Reset,
    /// There is no connection, or it broke.
    #[error("{reason}")]
    Broken {
        /// What the system says.
        reason: String,
    },
    /// A file that is there, but not for this user.
    #[error("{problem}: {text:?}")]
    NotPermitted {
        /// What is not permitted, and what to do about it.
        problem: &'static str,
        /// The file.
        text: String,
    },
    /// There is no such pool, or it was deleted.
    #[error("no such pool, or it was deleted")]
    NoPool,
    /// The caller gave the operation up.
    #[error("cancelled")]
    Cancelled,
    /// An OSD did not do what it was asked for.
    #[error("the OSD returned {}", Errno(*errno))]
    Osd {
        /// The error number, positive.
        errno: i32,
    },
    /// The watch is gone: changes may have been missed.
    #[error("the watch is gone, changes may have been missed ({})", Errno(*errno))]
    WatchLost {
        /// The error number that the OSD gave, positive.
        errno: i32,
    },
    /// A file or a parameter of the caller cannot be used.
    #[error("{problem}{}", quoted(text))]
    BadParameter {
        /// What is wrong, and what would be right.
        problem: &'static str,
        /// The text at fault; empty where something is missing.
        text: String,
    },
}

/// An error number of a peer's, which are Linux', with its name.
struct Errno(i32);

/// Those that OSDs and monitors answer with (include/uapi/asm-generic/errno-base.h, errno.h). 108 is Ceph's EBLOCKLISTED.
const ERRNO_NAMES: [(i32, &str); 36] = [
    (1, "EPERM"),
    (2, "ENOENT"),
    (4, "EINTR"),
    (5, "EIO"),
    (6, "ENXIO"),
    (7, "E2BIG"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (17, "EEXIST"),
    (18, "EXDEV"),
    (19, "ENODEV"),
    (20, "ENOTDIR"),
    (21, "EISDIR"),
    (22, "EINVAL"),
    (27, "EFBIG"),
    (28, "ENOSPC"),
    (30, "EROFS"),
    (31, "EMLINK"),
    (33, "EDOM"),
    (34, "ERANGE"),
    (35, "EDEADLK"),
    (36, "ENAMETOOLONG"),
    (38, "ENOSYS"),
    (39, "ENOTEMPTY"),
    (40, "ELOOP"),
    (61, "ENODATA"),
    (75, "EOVERFLOW"),
    (95, "EOPNOTSUPP"),
    (107, "ENOTCONN"),
    (108, "EBLOCKLISTED"),
    (110, "ETIMEDOUT"),
    (122, "EDQUOT"),
    (125, "ECANCELED"),
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ERRNO_NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((number, name)) => write!(f, "{name}, errno {number}"),
            None => write!(f, "errno {}", self.0),
        }
    }
}

/// A text at fault, behind what is wrong with it.
fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text:?}") }
}

impl Error {
    pub(crate) const fn new(doing: &'static str, kind: ErrorKind) -> Self {
        Self { doing, kind, place: None, cause: None }
    }

    /// The error, of an operation on an object.
    pub(crate) fn at(self, place: Place) -> Self {
        Self { place: Some(Box::new(place)), ..self }
    }

    /// The error, with what went wrong while it was waited.
    pub(crate) fn after(self, cause: Option<Self>) -> Self {
        Self { cause: cause.map(Box::new), ..self }
    }

    /// What went wrong before, which may be why.
    #[must_use]
    pub fn cause(&self) -> Option<&Self> {
        self.cause.as_deref()
    }

    /// Whether a peer did not let the client in, or could not be asked to.
    #[must_use]
    pub(crate) const fn is_about_tickets(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Refused { .. } | ErrorKind::WrongKey { .. } | ErrorKind::NoTicket(_)
        )
    }

    /// Which operation on which object it is of, if it is of one.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        self.place.as_deref()
    }

    pub(crate) const fn violation(doing: &'static str, rule: &'static str, got: u64) -> Self {
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

    /// What was being done, such as "reading a frame".
    #[must_use]
    pub const fn doing(&self) -> &'static str {
        self.doing
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self.kind {
            ErrorKind::Truncated { .. }
            | ErrorKind::Violation { .. }
            | ErrorKind::TooBig { .. }
            | ErrorKind::MapUnusable { .. }
            | ErrorKind::Impostor(_) => Blame::Peer,
            ErrorKind::TooNew { .. }
            | ErrorKind::Features { .. }
            | ErrorKind::Refused { .. }
            | ErrorKind::Osd { .. } => Blame::Policy,
            ErrorKind::WrongKey { .. }
            | ErrorKind::BadParameter { .. }
            | ErrorKind::NotPermitted { .. }
            | ErrorKind::NoPool
            | ErrorKind::Cancelled => Blame::User,
            ErrorKind::Corrupted { .. }
            | ErrorKind::NoTicket(_)
            | ErrorKind::TimedOut
            | ErrorKind::Unreachable { .. }
            | ErrorKind::Broken { .. }
            | ErrorKind::WatchLost { .. }
            | ErrorKind::Reset => Blame::Network,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_an_operation_says_where() {
        let place = Place {
            cluster: Fsid([7; 16]),
            pool: 3,
            pool_name: Some("rbd".into()),
            object: "rbd_header.1".into(),
            operations: "write".into(),
        };
        let error = Error::new("waiting for the reply", ErrorKind::TimedOut).at(place);
        assert_eq!(
            error.to_string(),
            "cluster 07070707-0707-0707-0707-070707070707: pool rbd: object \"rbd_header.1\": write: \
             waiting for the reply: no answer in time"
        );
    }

    #[test]
    fn an_error_says_what_went_wrong_before() {
        let cause = Error::new("connecting", ErrorKind::Reset);
        let error = Error::new("waiting", ErrorKind::TimedOut).after(Some(cause.clone()));
        let text =
            "waiting: no answer in time; before that, connecting: the peer ended the session";
        assert_eq!((error.to_string(), error.cause()), (text.to_owned(), Some(&cause)));
    }

    #[test]
    fn error_numbers_have_names() {
        let osd = |errno| Error::new("x", ErrorKind::Osd { errno }).to_string();
        assert_eq!(osd(2), "x: the OSD returned ENOENT, errno 2");
        assert_eq!(osd(85), "x: the OSD returned errno 85");
        let refused = ErrorKind::Refused { reason: "no".into(), errno: 13 };
        assert_eq!(Error::new("x", refused).to_string(), "x: refused: no (EACCES, errno 13)");
        assert!(ERRNO_NAMES.is_sorted());
    }

    #[test]
    fn messages_name_the_operation_and_the_values() {
        let error = Error::violation("reading a frame", "a frame has 1 to 4 segments", 9);
        assert_eq!(
            error.to_string(),
            "reading a frame: protocol violation (a frame has 1 to 4 segments): got 0x9"
        );
        assert_eq!(error.blame(), Blame::Peer);
        let bad = |text: &str| {
            let kind = ErrorKind::BadParameter { problem: "set mon host", text: text.into() };
            Error::new("connecting", kind).to_string()
        };
        assert_eq!(bad("x y"), "connecting: set mon host: \"x y\"");
        assert_eq!(bad(""), "connecting: set mon host");
        let kind = ErrorKind::WrongKey { entity: "client.admin".into(), what: "a ticket" };
        let error = Error::new("authenticating", kind);
        assert_eq!(
            error.to_string(),
            "authenticating: the key of client.admin is not the cluster's: a ticket cannot be decrypted"
        );
        assert_eq!(error.blame(), Blame::User);
    }
}
