//! An NBD server in front of block devices.
//!
//! A [`Server`] is made from a [`Config`] and the runtimes of the queue threads, and then
//! [listens](Server::listen) at what [`bind`] makes from an [`Address`]. Each connection lives on one queue
//! thread, and submits to the disk from there.
//!
//! What a client can cost is bounded by [`ServerLimits`]. A client that breaks the protocol gets the error that
//! the specification names, or is hung up on with one line in the log; no other client notices.
//!
//! The protocol is that of <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>, with the
//! branch `extension-ext-header`.
#![forbid(unsafe_code)]

mod address;
mod catalogue;
mod client;
mod clients;
mod config;
mod connection;
mod error;
mod flushes;
mod listener;
mod rate_limit;
mod server;
mod status;
mod thread;
mod tls;

pub use address::{Address, DEFAULT_PORT};
pub use blockyard_nbd::wire::HeaderStyle;
pub use blockyard_sys::spin::MAX_SPIN;
pub use client::{ClientInfo, SessionInfo};
pub use config::{
    Config, DEFAULT_FLUSH_GRACE, DEFAULT_HANDSHAKE_TIMEOUT, DEFAULT_IN_FLIGHT_PER_CLIENT,
    DEFAULT_MAX_CLIENTS, DEFAULT_MAX_MEMORY, DEFAULT_MAX_PAYLOAD, DEFAULT_MEMORY_PER_CLIENT,
    DEFAULT_STALL_TIMEOUT, Export, ServerLimits, TlsMode, longest_flush_grace,
};
pub use error::{Error, ErrorKind};
pub use listener::{Listener, bind};
pub use server::{RemovedExport, Server};
pub use tls::{TlsConfig, TlsFiles, TlsIdentity};
