//! A disk of ours as a disk of the Linux kernel, `/dev/ublkbN`, by its ublk driver.
//!
//! [`Device::add`] makes the kernel's disk, [`Device::take_over`] goes on with one whose server died: what the
//! kernel had asked that server and got no answer to is asked again. Each hardware queue of the kernel's disk is
//! served on a queue thread ([`queue`](crate)): a request becomes a bio, and its end the answer.
//!
//! Every request that has come is answered once, errors too: the kernel would wait for ever. A server that
//! cannot go on ends, and the kernel keeps what it has for the next one.
#![forbid(unsafe_code)]
#![allow(clippy::vec_box, reason = "a bio stays in its box from one use to the next")]

mod device;
mod end;
mod error;
mod params;
mod queue;
mod resize;

pub use blockyard_sys::ublk::{State, disk_path};
pub use device::{Config, DEFAULT_DEPTH, Device, MAX_IO_BYTES};
pub use error::{Error, ErrorKind};
pub use found::{Found, find, remove};

mod found;
