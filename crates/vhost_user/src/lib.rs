//! vhost-user: how a process that runs a virtual machine (the front-end) lends its virtqueues to another (the back-end).
//!
//! - [`wire`]: the messages of the control socket, bytes <-> values, both roles
//!   (<https://qemu-project.gitlab.io/qemu/interop/vhost-user.html>).
//! - [`queue`]: split virtqueues as a device sees them: rings, descriptor chains, and the in-flight region that lets a
//!   back-end which was killed take up what it had begun (virtio 1.2, section 2.7; "Inflight I/O tracking" of the above).
//!
//! Nothing here does I/O: messages are bytes with file descriptors beside them, and memory is what `blockyard_buf` has
//! mapped. All that comes from the guest or its front-end is checked where it is read, and read once.
#![forbid(unsafe_code)]

pub mod queue;
pub mod wire;
