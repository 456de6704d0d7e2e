//! The server's role: [`Handshake`], then [`Connection`], which is made of
//! [`Request::parse`](crate::wire::Request::parse), [`RequestRules`] and [`ReplyEncoder`].

mod connection;
mod exports;
mod extents;
mod handshake;
mod options;
mod reply;
mod rules;

pub use connection::{
    Chunk, Connection, ConnectionLimits, Data, Direction, Ending, Expired, HalfWay, Lease, Memory,
    MemoryBudget, MemoryShare, PRESSED_TIMEOUT, Piece, Place, Submission, Waits, Work,
};
pub use exports::{Export, Exports, Refusal};
pub use extents::{Extent, ExtentList, MAX_EXTENTS};
pub use handshake::{
    Config, Event, Handshake, MAX_OPTION_LEN, MAX_OPTIONS, MAX_SKIPPED_LEN, Negotiated, TlsPolicy,
};
pub use reply::{MAX_REPLY_HEAD_LEN, ReplyEncoder, ReplyHead, ReplyTo};
pub use rules::{Rejection, RequestRules, StatusQuery, Then};
