//! ublk: block devices of the kernel whose requests a process answers (Documentation/block/ublk.rst).
//!
//! [`Control`] makes, starts, stops and removes devices. Each hardware queue of a device has a [`Queue`]: it
//! hands out the requests of the kernel, with their memory, and takes the answers. All commands of a queue have
//! to come from one thread: the one that [fetched](Queue::fetch) (the driver's rule, in all kernels before
//! 6.16).
//!
//! The data of requests travels in one of two ways. With [`Features::USER_COPY`] we read it from the character device
//! and write it there, to and from whatever memory we have it in; the ring of the commands does that, so that it costs no
//! further system calls. Without, the kernel copies it between the pages that it concerns and a buffer of ours per
//! request ("server buffer" mode), which all kernels with ublk have.

mod abi;
mod control;
mod copy;
mod queue;

pub use abi::{
    Attributes, BasicParams, CONTROL_PATH, Descriptor, DeviceInfo, DiscardParams, Features,
    MAX_QUEUE_DEPTH, Op, State,
};
pub use control::{Control, Device, OpenError};
pub use queue::{Ended, Queue};

/// Where the character device of a device is.
#[must_use]
pub fn device_path(id: u32) -> String {
    format!("/dev/ublkc{id}")
}

/// Where the disk of a device is.
#[must_use]
pub fn disk_path(id: u32) -> String {
    format!("/dev/ublkb{id}")
}
