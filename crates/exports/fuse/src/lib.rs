//! Disks as files: a file system of ours, mounted by the kernel's FUSE client, whose files are disks.
//!
//! [`Mount::start`] mounts one disk on a file, or several in a directory, and serves it on the queue threads: each has a
//! queue of the device ([`Channel`](blockyard_sys::fuse::Channel)), and a READ or a WRITE that is read from it becomes a bio,
//! its end the answer (`queue.rs`, `bios.rs`). What concerns no data is answered at once (`names.rs`).
//!
//! | what a program does with the file | what the disk is asked |
//! | --- | --- |
//! | read(2), write(2), O_DIRECT or not, at any byte | a read, a write of these bytes; with `O_DSYNC`, one that is durable |
//! | fsync(2), fdatasync(2) | a flush; nothing of one that has none |
//! | fallocate(2) with `FALLOC_FL_PUNCH_HOLE` | a write of zeroes, which may free the room for them |
//! | fallocate(2) with `FALLOC_FL_ZERO_RANGE` | a write of zeroes, which keeps it |
//! | lseek(2) with `SEEK_DATA`, `SEEK_HOLE` | its block status: what reads as zeroes is a hole |
//! | stat(2) | its size, as it is now; whether it is read-only, in the mode |
//! | open(2) with `O_TRUNC`; truncate(2) to 0 | nothing, as of a block device |
//! | ftruncate(2); truncate(2) to more than 0 | nothing; refused unless it is to its size |
//!
//! A hole that was punched has to read as zeroes, which a discard does not promise; so it is a write of zeroes.
//!
//! A request wakes every queue thread that waits for the device by epoll(7), which the driver wakes without exception, and
//! one of them finds it. `EPOLLEXCLUSIVE` would not help: the runtime waits for an epoll of its own by another, and such a
//! nested one passes every event on. So only as many queues wait as there is work for (`watchers.rs`). Requests by io_uring
//! (Linux 6.14, `FUSE_OVER_IO_URING`, where the administrator allows it) would come to the queue of the processor that asks,
//! and wake nobody else.
//!
//! What is on record of a mount ([`Mount::start`], [`clean_up`]) says which of those that are left behind by a server that
//! was killed are ours.
#![forbid(unsafe_code)]
#![allow(clippy::vec_box, reason = "a bio stays in its box from one use to the next")]

mod bios;
mod ending;
mod error;
mod follow;
mod handshake;
mod mount;
mod names;
mod outstanding;
mod point;
mod queue;
mod record;
mod seek;
mod slots;
mod tree;
mod watchers;

pub use blockyard_sys::fuse::Unmount;
pub use error::{Error, ErrorKind};
pub use mount::{Cache, Config, DEFAULT_DEPTH, InFlight, Mount, Report, ReportedFile, Shown};
pub use point::{MountPoint, Place};
pub use record::{Left, Leftover, clean_up, leftovers};
