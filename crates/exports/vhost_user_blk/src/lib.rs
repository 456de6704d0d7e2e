//! A vhost-user-blk back-end: a block device as the disk of a virtual machine.
//!
//! A [`Server`] is [prepared](prepare) from an [`Export`], a [`Listener`] and the runtimes of the queue threads. It serves one
//! front-end (QEMU, cloud-hypervisor, a user-space driver) at a time, and the next one when that has left. What back-ends of
//! all kinds have in common is in `blockyard_vhost_user_backend`.
//!
//! | module | what it does |
//! | --- | --- |
//! | `device`, `write_cache` | features and configuration space of the disk |
//! | `queue` | a virtqueue on its queue thread: chains become bios whose segments are the guest's own memory |
#![forbid(unsafe_code)]

mod device;
mod queue;
mod write_cache;

use blockyard_vhost_user_backend::Backend;
use device::Device;
use tokio::runtime::{Handle, RuntimeFlavor};

pub use blockyard_vhost_user_backend::{
    Error, ErrorKind, Listener, MAX_QUEUES, Prepared, Server, Status, bind,
};
pub use device::{DEFAULT_QUEUES, Export, OnResume};

/// Prepares a server. Queue number i of the disk lives on `queue_threads[i % n]`; each of these is the runtime of a thread of its
/// own, with I/O and time enabled, and its place in the list is the number that [`blockyard_blkmq::Bdev::submit`] is
/// given for it.
///
/// # Errors
/// [`ErrorKind::Config`] for what cannot be, [`ErrorKind::Io`] if there is no room for a thread.
pub fn prepare(
    export: Export,
    listener: Listener,
    queue_threads: Vec<Handle>,
) -> Result<Prepared, Error> {
    let single = |handle: &Handle| handle.runtime_flavor() == RuntimeFlavor::CurrentThread;
    if queue_threads.is_empty() || !queue_threads.iter().all(single) {
        let what = "a vhost-user-blk back-end needs queue threads, each a current-thread runtime";
        return Err(Error::new(ErrorKind::Config, what));
    }
    let failed = |err| Error::new(ErrorKind::Io, "cannot start serving").caused_by(err);
    let backend = Backend::new(&listener).map_err(failed)?;
    let device = Device::new(export, backend, queue_threads).map_err(failed)?;
    Server::prepare(device, listener)
}

/// Prepares a server, and starts it at once.
///
/// # Errors
/// As those of [`prepare`].
pub fn start(
    export: Export,
    listener: Listener,
    queue_threads: Vec<Handle>,
) -> Result<Server, Error> {
    prepare(export, listener, queue_threads).map(Prepared::start)
}
