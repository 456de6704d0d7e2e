//! Messenger 2.1: frames on a byte stream, and a client's session on them (ceph: `doc/dev/msgr2.rst`,
//! `src/msg/async/frames_v2.h`, `src/msg/async/crypto_onwire.cc`).
//!
//! A connection starts with a banner from either side; then both send frames: a preamble, up to four segments, and
//! checksums or an authentication code. [`Connection`] is the client's side of it. Its sessions are lossy: when the
//! stream breaks, the session is over, and its owner opens a new one and sends again what was not answered.

mod banner;
mod body;
mod codec;
mod connection;
mod control;
mod crc;
mod frame;
mod message;
mod secure;
mod transmit;

pub use banner::{BANNER_LEN, Banner, FEATURE_COMPRESSION, FEATURE_REVISION_1};
pub use body::Rest;
pub(crate) use body::Spares;
pub use codec::{Decoder, Encoder};
pub use connection::{
    Authenticator, Config, Connection, Event, Keepalive, MAX_HANDSHAKE_FRAME, MAX_MESSAGE, Opening,
    Secrets, Session, SessionKey,
};
pub use control::{
    AuthBadMethod, AuthDone, AuthMethod, AuthRequest, ClientIdent, ConnectionMode, Hello,
    ServerIdent,
};
pub use crc::ceph_crc32c;
pub use frame::{Frame, MAX_SEGMENTS, PREAMBLE_LEN, Preamble, Segments, Tag};
pub use message::{MESSAGE_HEADER_LEN, Message};
pub use secure::{CONNECTION_SECRET_LEN, ConnectionSecret};
pub use transmit::Transmit;
