//! A disk that an NBD server keeps: the kernel's `drivers/block/nbd.c` in user space.
//!
//! [`Nbd::connect`] negotiates with the server and says what the export can do; a disk is made of that with the block
//! layer's own means. Each connection is a hardware queue of the disk, and lives on one queue thread: requests are
//! sent from `queue_rq`, and a task for each connection receives the replies, in any order, into their place.
//!
//! Connection loss is normal. What was out is sent again on another connection, or on a new one, for as long as
//! [`NbdConfig::dead_conn_timeout`] says. A late reply of an old connection finds no request, and a late *write* of
//! one cannot undo a newer one: `docs/nbd-fencing.md` says how, and what NBD cannot promise.
//!
//! | file | concept |
//! | --- | --- |
//! | `disk` | connect, reconfigure, disconnect |
//! | `connect`, `wire`, `tls`, `socket` | from a URI to bytes |
//! | `server` | what a server tells of its exports |
//! | `export`, `commands` | what the export is to the block layer, and its operations to NBD |
//! | `driver`, `hctx`, `task` | the block layer's side, and the sockets' |
//! | `queue`, `queue/conn` | the connections of a hardware queue: in use, retired, over |
//! | `link`, `slots`, `inbox`, `outbox` | one connection, without its socket |
//! | `job` | a request, as far as the export reaches: the padding of its last block stays here |
//! | `held`, `place` | a request that is out, and its memory |
//! | `extents` | the server's block map as blocks |
//! | `recovery`, `fence`, `unflushed` | what the queues share once something is wrong |
//! | `backoff`, `spin` | how long to wait |
//!
//! Everything from `queue` down is free of sockets and clocks. `simulation` runs all of it, the tasks included, on
//! socket pairs and a clock of its own.
#![forbid(unsafe_code)]

mod backoff;
mod commands;
mod config;
mod connect;
mod disk;
mod driver;
mod error;
mod export;
mod extents;
mod fence;
mod hctx;
mod held;
mod inbox;
mod job;
mod link;
mod outbox;
mod place;
mod queue;
mod recovery;
mod server;
#[cfg(test)]
mod simulation;
mod slots;
mod socket;
mod sources;
mod span;
mod spin;
mod task;
mod tls;
mod unflushed;
mod wire;

pub use backoff::Backoff;
pub use config::{MAX_CONNECTIONS, NbdConfig, TlsFiles};
pub use driver::Nbd;
pub use error::{Error, ErrorKind};
pub use export::Export;
pub use hctx::Hctx;
pub use server::{Description, Offer, Server};
pub use unflushed::Ledger;
