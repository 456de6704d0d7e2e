//! ublk: block devices of the kernel whose requests a process answers (Documentation/block/ublk.rst).
//!
//! [`Control`] makes, starts, stops and removes devices. Each hardware queue of a device has a [`Queue`]: it
//! hands out the requests of the kernel, with their memory, and takes the answers. All commands of a queue have
//! to come from one thread: the one that [fetched](Queue::fetch) (the driver's rule, in all kernels before
//! 6.16).
//!
//! Requests are copied by the kernel between the pages that they concern and a buffer of ours per request ("server
//! buffer" mode), which all kernels with ublk have.

mod abi;
mod control;
mod queue;

pub use abi::{
    Attributes, BasicParams, CONTROL_PATH, Descriptor, DeviceInfo, DiscardParams, Features,
    MAX_QUEUE_DEPTH, Op, State,
};
pub use control::{Control, Device};
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
