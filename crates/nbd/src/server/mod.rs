//! The server's role: [`Handshake`], then [`Request::parse`](crate::wire::Request::parse),
//! [`RequestRules`] and [`ReplyEncoder`].

mod exports;
mod extents;
mod handshake;
mod options;
mod reply;
mod rules;

pub use exports::{Export, Exports, Refusal};
pub use extents::{Extent, ExtentList, MAX_EXTENTS};
pub use handshake::{
    Config, Event, Handshake, MAX_OPTION_LEN, MAX_OPTIONS, MAX_SKIPPED_LEN, Negotiated, TlsPolicy,
};
pub use reply::{MAX_REPLY_HEAD_LEN, ReplyEncoder, ReplyHead, ReplyTo};
pub use rules::{Rejection, RequestRules, StatusQuery, Then};
