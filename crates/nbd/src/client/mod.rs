//! The client's role: [`Handshake`], then [`Request::encode`](crate::wire::Request::encode) and
//! [`ReplyParser`].

mod expected;
mod handshake;
mod options;
mod question;
mod replies;

pub use expected::{Expected, InFlight, MAX_READ_FRAGMENTS};
pub use handshake::{Config, Event, Handshake, Negotiated, TlsMode};
pub use options::{ListedExport, MAX_OPTION_REPLIES_LEN, MAX_OPTION_REPLY_LEN};
pub use replies::{Chunk, Parsed, Reply, ReplyParser, StatusExtents, status_payload};
