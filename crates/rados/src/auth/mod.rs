//! Authentication: "none", and cephx with both of its ciphers (ceph: `doc/dev/cephx_protocol.rst`).
//!
//! With cephx a client and the monitors share a key. The client proves that it knows the key, and gets a ticket for the
//! authentication service, and with that tickets for others. A ticket holds a session key twice: for the client, and
//! in a blob that only the service can read. [`MonitorAuth`] does the first part, and keeps the tickets;
//! [`ServiceAuth`] shows one of them to a service. Both are [`Authenticator`](crate::msgr::Authenticator)s, which a
//! [`Connection`](crate::msgr::Connection) carries.
//!
//! A ticket ends. Ask for new ones at [`MonitorAuth::renew_after`].

mod base64;
mod cephx;
mod cipher;
mod identity;
mod key;
mod keyring;
mod monitor;
mod random;
mod service;
#[cfg(test)]
mod tests;
mod ticket;

pub use identity::Identity;
pub use key::CryptoKey;
pub use keyring::{Keyring, MAX_KEYRING};
pub use monitor::{Credentials, MonitorAuth};
pub use random::Random;
pub use service::ServiceAuth;
pub use ticket::{Ticket, Tickets};

use crate::error::{Error, ErrorKind};
use crate::msgr::{AuthBadMethod, ConnectionMode};

/// What a peer answers when no way to protect the connection suits both (ceph: `src/msg/async/ProtocolV2.cc`,
/// `_handle_auth_request`).
const EOPNOTSUPP: i32 = 95;

/// Whether a refusal is about the ways to protect a connection: then it says nothing about keys.
pub(crate) fn check_modes(
    doing: &'static str,
    option: &str,
    wanted: &[ConnectionMode],
    refused: &AuthBadMethod,
) -> Result<(), Error> {
    let suits_both = wanted.iter().any(|mode| refused.modes.contains(mode));
    if refused.modes.is_empty() || suits_both || !refused.methods.contains(&refused.method) {
        return Ok(());
    }
    let names = |modes: &[ConnectionMode]| {
        modes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let (theirs, ours) = (names(&refused.modes), names(wanted));
    let reason =
        format!("connection modes do not match: offered {theirs}, wanted {ours} ({option})");
    Err(refusal(doing, &reason, if refused.result == 0 { EOPNOTSUPP } else { refused.result }))
}

/// Error numbers with which a monitor says that it cannot let anybody in now, as while there is no quorum: nothing about
/// keys.
const EAGAIN: i32 = 11;
const EBUSY: i32 = 16;
const ETIMEDOUT: i32 = 110;

/// Whether a refusal with this error number, whatever its sign, is about the monitor and not the client.
pub(crate) const fn is_transient(errno: i32) -> bool {
    matches!(errno.saturating_abs(), EAGAIN | EBUSY | ETIMEDOUT)
}

/// A peer's refusal, with its error number, which is negative on the wire.
pub(crate) fn refusal(doing: &'static str, reason: &str, result: i32) -> Error {
    let errno = result.saturating_abs();
    Error::new(doing, ErrorKind::Refused { reason: reason.to_owned(), errno })
}
