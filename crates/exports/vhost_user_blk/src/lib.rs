//! A vhost-user-blk back-end: a block device as the disk of a virtual machine.
//!
//! A [`Server`] is made from an [`Export`], a [`Listener`] and the runtimes of the queue threads. It serves one front-end
//! (QEMU, cloud-hypervisor, a user-space driver) at a time, and the next one when that has left.
//!
//! | module | what it does |
//! | --- | --- |
//! | `listener`, `server` | waits for front-ends; one thread, which does control only |
//! | `channel`, `session` | the control socket: messages, and what they mean |
//! | `device`, `write_cache` | features and configuration space of the disk |
//! | `queue` | a virtqueue on its queue thread: chains become bios whose segments are the guest's own memory |
//!
//! A driver that breaks the rules of virtio has its queue stopped with one line in the log, and its front-end is told by the
//! ring's error event. A front-end that breaks the protocol is hung up on.
#![forbid(unsafe_code)]

mod channel;
mod device;
mod error;
mod listener;
mod queue;
mod server;
mod session;
mod vring;
mod write_cache;

pub use device::{DEFAULT_QUEUES, Export, MAX_QUEUES, OnResume};
pub use error::{Error, ErrorKind};
pub use listener::{Listener, bind};
pub use server::{Prepared, Server, Status};
