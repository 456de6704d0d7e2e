//! The FUSE protocol in both roles: bytes to values and values to bytes, without I/O.
//!
//! A *client* (the kernel's `fs/fuse`, a guest, or an engine in user space) sends requests, a *server* (a file
//! system) replies, and notifies. What travels is the same over `/dev/fuse`, over io_uring and over virtio queues:
//!
//! - a request is an [`InHeader`](wire::InHeader), the arguments of its [`Opcode`](wire::Opcode), names that end with
//!   a NUL, and for some a payload: [`Request::parse`] and [`Operation::encode`];
//! - a reply is an [`OutHeader`](wire::OutHeader) and, unless it is an error, what the operation answers:
//!   [`Reply::encode`] and [`Reply::parse`];
//! - a notification is a reply to nobody, whose code stands where the error does: [`Notification`].
//!
//! Versions 7.27 to 7.45 are spoken. What a connection agreed on is a [`Protocol`], made by [`init`], and whoever
//! parses is given it: some messages are shorter without a flag.
//!
//! Numbers travel in the byte order of the machine on `/dev/fuse`, and as little-endian over virtio (virtio 1.3,
//! 5.11.6). This crate writes little-endian, which is both on every machine that Blockyard runs on.
//!
//! Facts are from `include/uapi/linux/fuse.h` of Linux 6.18 unless another source is named; names are those of that
//! header in Rust's spelling.
#![forbid(unsafe_code)]

#[cfg(not(target_endian = "little"))]
compile_error!("FUSE messages are written for little-endian machines");

pub mod dirent;
mod error;
pub mod extension;
pub mod init;
mod notify;
mod reply;
mod request;
pub mod uring;
pub mod wire;

pub use error::{Errno, Error, ErrorKind, Result};
pub use init::{Limits, Protocol};
pub use notify::Notification;
pub use reply::{Answered, Expected, Interrupted, Reply};
pub use request::{
    CBytes, Caller, List, Name, Operation, Payload, Rejected, Request, SetAttr, SetTime, head_len,
};

/// The only major version.
pub const MAJOR: u32 = 7;
/// The newest minor version that is spoken.
pub const MINOR: u32 = 45;
/// The oldest: that of Linux 4.18.
pub const MINOR_MIN: u32 = 27;
/// The node ID of the root.
pub const ROOT_ID: u64 = 1;
/// A server's buffer for requests is at least this long (`FUSE_MIN_READ_BUFFER`).
pub const MIN_READ_BUFFER: usize = 8192;
/// Set in the `unique` of an INTERRUPT, which is otherwise that of the request; all others are even
/// (`FUSE_INT_REQ_BIT` of Linux).
pub const UNIQUE_INTERRUPT: u64 = 1;
/// Set in the `unique` of a request that is sent again (7.40).
pub const UNIQUE_RESEND: u64 = 1 << 63;
/// The user or group of a request whose caller has none in the file system's ID map (7.41).
pub const INVALID_ID: u32 = u32::MAX;
