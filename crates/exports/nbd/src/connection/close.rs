//! Why a connection ends, and what is said of it.

use std::io;
use std::time::Duration;

use blockyard_nbd::server::Expired;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Close {
    /// The client said goodbye, or hung up between two messages.
    #[error("client disconnected")]
    Left,
    /// The client hung up within a message.
    #[error("client disconnected in the middle of a message")]
    Truncated,
    /// The client was gone when something was sent to it, or left without reading all: what clients that have what they came
    /// for often do.
    #[error("client disconnected before it read all replies")]
    HungUp,
    /// The connection broke.
    #[error("connection failed: {0}")]
    Lost(#[source] io::Error),
    /// The client, or its trust, is not what TLS needs.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// The client broke a rule of the protocol that no reply can repair, or this server's policy.
    #[error("{0}")]
    Protocol(#[from] blockyard_nbd::Error),
    /// Plain bytes behind the request for TLS: somebody may have put them there.
    #[error("the client sent data before the TLS handshake")]
    NotTls,
    /// The client took too long to choose an export.
    #[error("handshake incomplete after {0:?}")]
    HandshakeTimeout(Duration),
    /// There are too many that have not chosen an export, and this is the oldest of them.
    #[error("too many handshakes; the oldest was closed")]
    Crowded,
    /// There are as many clients as there may be.
    #[error("max_clients reached")]
    Full,
    /// Its host has as many clients as it may have.
    #[error("max_clients_per_host reached ({0})")]
    HostFull(usize),
    /// The disk has not done with as many clients as there may be, which have all left.
    #[error("too many disconnected clients still have requests in flight")]
    Abandoned,
    /// The client took too long for something else.
    #[error("{}", what_expired(.0))]
    Expired(Expired),
    /// The server ends, or takes the export away.
    #[error("the server is shutting down")]
    Shutdown,
    /// The export was taken away while the client chose it.
    #[error("the export was removed")]
    Removed,
}

impl Close {
    /// Whether nobody is there to say goodbye to, or nobody who is worth the wait.
    pub(crate) fn peer_has_left(&self) -> bool {
        matches!(
            self,
            Self::Left
                | Self::HungUp
                | Self::Truncated
                | Self::Lost(_)
                | Self::Tls(_)
                | Self::Crowded
                | Self::Expired(Expired::Stalled(..) | Expired::Pressed(..))
        )
    }

    /// One line, loud where the client is to blame.
    pub(crate) fn log(&self, peer: &str) {
        match self {
            Self::Left
            | Self::HungUp
            | Self::Shutdown
            | Self::Removed
            | Self::Lost(_)
            | Self::Expired(Expired::Idle(_)) => {
                tracing::info!(peer, reason = %self, "connection closed");
            }
            _ => tracing::warn!(peer, reason = %self, "connection closed"),
        }
    }
}

fn what_expired(expired: &Expired) -> String {
    match expired {
        Expired::Stalled(what, limit) => {
            format!("{what}, and made no progress for {limit:?} (stall_timeout)")
        }
        Expired::Pressed(what, limit) => format!(
            "{what}, and made no progress for {limit:?} while others waited for its memory (max_memory)"
        ),
        Expired::Idle(limit) => format!("idle for {limit:?}"),
    }
}

impl From<io::Error> for Close {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            // What a TLS session says comes as invalid data; sockets never say that.
            io::ErrorKind::InvalidData => Self::Tls(err),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::HungUp,
            _ => Self::Lost(err),
        }
    }
}

#[cfg(test)]
mod tests {
    use blockyard_nbd::server::HalfWay;

    use super::*;

    #[test]
    fn the_log_says_what_was_half_way() {
        let limit = Duration::from_secs(30);
        let text = |expired| Close::Expired(expired).to_string();
        let stalled = text(Expired::Stalled(HalfWay::Payload(7), limit));
        assert!(stalled.contains("7 bytes of its payload") && stalled.contains("30s"), "{stalled}");
        assert!(stalled.contains("stall_timeout"), "{stalled}");
        let pressed = text(Expired::Pressed(HalfWay::Replies, limit));
        assert!(pressed.contains("its replies") && pressed.contains("max_memory"), "{pressed}");
    }
}
