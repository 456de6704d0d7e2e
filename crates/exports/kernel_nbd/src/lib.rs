//! NBD connections for the kernel's own client, which makes `/dev/nbdN` of them.
//!
//! The connections are past their handshake: who serves them is the caller's. There are two ways to hand them
//! over. By generic netlink ([`Driver`]): several connections, which can be replaced when they break; the
//! device outlives the process that set it up. By ioctls ([`IoctlDevice`]), which every kernel has: one
//! connection, whose end is that of the device.
#![forbid(unsafe_code)]

mod device;
mod driver;
mod error;
pub mod genl;
mod ioctl;

pub use device::{backend, path, server};
pub use driver::{Driver, Links, Setup};
pub use error::{Error, ErrorKind};
pub use ioctl::{IoctlDevice, Sizer};
