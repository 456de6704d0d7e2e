//! A vhost-user-fs back-end: a file system that a virtual machine mounts by virtiofs.
//!
//! A server is [prepared](prepare) from an [`Export`] and a [`Listener`]. It serves one front-end (QEMU, cloud-hypervisor) at a
//! time, and the next one when that has left. What back-ends of all kinds have in common is in
//! `blockyard_vhost_user_backend`.
//!
//! | module | what it does |
//! | --- | --- |
//! | `device` | features and configuration space (virtio 1.3, section 5.11) |
//! | `queue`, `serving` | a virtqueue, and the threads that take requests from it in turn |
//! | `turn` | whose turn that is |
//! | `exchange` | a descriptor chain as a request, and a place for its answer, in the guest's own memory |
//! | `connection` | what was agreed upon with the guest, from its INIT to the next |
//!
//! Requests are carried out as those of the kernel's own client are: by `blockyard_fs`.
#![forbid(unsafe_code)]

mod connection;
mod device;
mod exchange;
mod queue;
mod serving;
mod turn;

use std::sync::Arc;

pub use blockyard_vhost_user_backend::{
    Backend, Error, ErrorKind, Listener, Prepared, Server, Status, bind,
};
pub use connection::{Connection, Guest};
pub use device::{Export, MAX_REQUEST_QUEUES, MAX_TAG_BYTES};
pub use exchange::{Broken, Exchange};

/// Prepares a server.
///
/// # Errors
/// [`ErrorKind::Config`] for what cannot be, [`ErrorKind::Io`] if there is no room for a thread.
pub fn prepare(export: Export, listener: Listener) -> Result<Prepared, Error> {
    export.check()?;
    let failed = |err| Error::new(ErrorKind::Io, "cannot start serving").caused_by(err);
    let backend = Backend::new(&listener).map_err(failed)?;
    Server::prepare(Arc::new(device::Device::new(export, backend)), listener)
}
