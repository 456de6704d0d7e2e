//! Why a connection ends, and what is said of it.

use std::io;
use std::time::Duration;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Close {
    /// The client said goodbye, or hung up between two messages.
    #[error("the client has left")]
    Left,
    /// The client hung up within a message.
    #[error("the client hung up in the middle of a message")]
    Truncated,
    /// The client was gone when something was sent to it, or left without reading all: what clients that have what they came
    /// for often do.
    #[error("the client hung up")]
    HungUp,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Lost(#[source] io::Error),
    /// The client, or its trust, is not what TLS needs.
    #[error("TLS failed: {0}")]
    Tls(#[source] io::Error),
    /// The client broke a rule of the protocol that no reply can repair, or this server's policy.
    #[error("{0}")]
    Protocol(#[from] blockyard_nbd::Error),
    /// A request that cannot be skipped.
    #[error("a request was refused and its payload is too long to skip: {0}")]
    Refused(&'static str),
    /// Plain bytes behind the request for TLS: somebody may have put them there.
    #[error("the client did not wait for TLS before it went on")]
    NotTls,
    /// The client took too long to choose an export.
    #[error("the handshake was not complete after {0:?}")]
    HandshakeTimeout(Duration),
    /// A message stood still.
    #[error("a message was half-way, in one direction or the other, and nothing moved for {0:?}")]
    Stalled(Duration),
    /// The client asked for nothing.
    #[error("the client asked for nothing for {0:?}")]
    Idle(Duration),
    /// The server ends.
    #[error("the server is shutting down")]
    Shutdown,
}

impl Close {
    /// Whether there is nobody left to say goodbye to.
    pub(crate) fn peer_has_left(&self) -> bool {
        matches!(
            self,
            Self::Left
                | Self::HungUp
                | Self::Truncated
                | Self::Lost(_)
                | Self::Tls(_)
                | Self::Stalled(_)
        )
    }

    /// One line, loud where the client is to blame.
    pub(crate) fn log(&self, peer: &str) {
        match self {
            Self::Left | Self::HungUp | Self::Shutdown | Self::Lost(_) | Self::Idle(_) => {
                tracing::info!(peer, reason = %self, "connection closed");
            }
            _ => tracing::warn!(peer, reason = %self, "connection closed"),
        }
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
