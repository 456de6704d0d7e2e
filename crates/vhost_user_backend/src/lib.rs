//! What all vhost-user back-ends have in common, whatever their device is.
//!
//! A kind of device implements [`Device`], and [`Queue`] for its virtqueues. A [`Server`] is prepared from a device and a
//! [`Listener`]; it serves one front-end (QEMU, cloud-hypervisor, a user-space driver) at a time, and the next one when that has
//! left.
//!
//! | module | what it does |
//! | --- | --- |
//! | `listener`, `server` | waits for front-ends; one thread, which does control only |
//! | `channel`, `session` | the control socket: messages, and what they mean |
//! | `inflight` | the region of memory that outlives a back-end |
//! | `backend` | what the server's thread, its session and the queues share |
//! | `device`, `vring` | a kind of device; a virtqueue as its front-end has described it so far |
//!
//! A driver that breaks the rules of virtio has its queue stopped with one line in the log, and its front-end is told by the
//! ring's error event. A front-end that breaks the protocol is hung up on.
#![forbid(unsafe_code)]

mod backend;
mod channel;
mod device;
mod error;
mod fault;
mod inflight;
mod listener;
mod server;
mod session;
mod vring;

pub use backend::Backend;
pub use device::{
    Answer, CommandError, Device, Events, Queue, QueueStart, RegionPart, Setup, Stopping,
    not_writable,
};
pub use error::{Error, ErrorKind};
pub use fault::Fault;
pub use listener::{Listener, bind};
pub use server::{Prepared, Server, Status};

/// The most queues: their number has 8 bits in the messages that bring their events.
pub const MAX_QUEUES: u16 = 256;
