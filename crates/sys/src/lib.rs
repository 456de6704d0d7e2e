//! System calls that the rest of Blockyard needs, behind safe interfaces.
//!
//! - Reading and writing files without waiting: an [`IoQueue`] takes [`Operation`]s and gives them back as
//!   [`Completion`]s. Below it is an io_uring ([`uring`]) or, where the kernel refuses that, a bounded pool of
//!   threads ([`Pool`]). By a thread that may wait: [`segments`].
//! - What a file or block device can do and where its holes are: [`fallocate`], [`holes`], [`block_device`],
//!   [`direct`], [`lock`]; what of it is in memory: [`page_cache`]; what comes of its end: [`close`].
//! - Sockets: [`net`], and their files: [`SocketFile`]. How long to look before going to sleep: [`spin`].
//! - Block devices of the kernel that a process serves: [`ublk`], [`nbd`] and, for the latter, [`netlink`]; what such a
//!   process must not wait for: [`write_back`]. File systems that it serves: [`fuse`].
//! - Limits that a command starts with: [`limits`].
//!
//! This crate is one of the two that may hold `unsafe` code. Memory that the kernel works on is owned by the
//! queue that handed it over, from the submission to the completion: that is the invariant which nearly every
//! `SAFETY` line here names.

pub mod block_device;
mod close;
mod copy_range;
pub mod credentials;
pub mod direct;
mod event;
pub mod fallocate;
mod fiemap;
pub mod file_handle;
pub mod fuse;
pub mod holes;
mod interrupted;
mod io_queue;
mod lane;
pub mod limits;
pub mod lock;
pub mod nbd;
pub mod net;
pub mod netlink;
mod operation;
pub mod page_cache;
mod passed;
mod pool;
mod ring;
pub mod segments;
mod signaller;
mod socket_file;
pub mod spin;
mod transfer;
pub mod ublk;
pub mod uring;
pub mod write_back;
mod writer;

pub use close::close;
pub use event::{Event, EventWatch, PeerEvent, Timer, Waitable};
pub use interrupted::uninterrupted;
pub use io_queue::{Files, IoEngine, IoQueue};
pub use operation::{Completion, Operation};
pub use passed::passed_fd;
pub use pool::Pool;
pub use signaller::Signaller;
pub use socket_file::{MAX_SOCKET_PATH, ShortPath, SocketFile, connect_unix};
pub use writer::Writer;
