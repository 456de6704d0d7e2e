//! A multi-queue block layer in user space, in the shape of the Linux kernel's blk-mq.
//!
//! A front-end opens a disk ([`BlockLayer::open`], [`Disk::open`]) and submits a [`Bio`]. The bio is checked,
//! cut to the disk's limits, perhaps merged with a neighbour, and becomes a [`Request`] with a tag on one of
//! the disk's hardware queues. The [`Driver`] owns the request until it ends it; then the bio goes back to the
//! front-end through its [`EndIo`].
//!
//! Everything is driven by its callers: the crate has no threads, no runtime, and takes the time from a
//! [`Clock`].
#![forbid(unsafe_code)]
#![allow(clippy::vec_box, reason = "a bio stays in its box from one use to the next")]
#![allow(clippy::boxed_local, reason = "a bio is owned by its box")]

pub mod badblocks;
mod bdev;
mod bio;
mod block_device_ops;
mod block_layer;
mod bytes;
mod changes;
mod clock;
mod disk;
mod driver;
mod elevator;
mod end_batch;
mod error;
mod fault;
mod flush;
pub mod geometry;
mod hctx;
pub mod limits;
pub mod major;
mod merge;
mod op;
mod outbox;
pub mod partition;
mod partition_device;
pub mod proc_fmt;
mod queue;
mod queue_map;
mod request;
pub mod reservation;
pub mod sched;
pub mod stats;
mod tag_set;
mod tags;
#[cfg(test)]
mod testing;
mod throttle;
mod units;
mod wait;

pub use bdev::{Bdev, Ioctl, IoctlReply, OpenMode};
pub use bio::{Bio, BvecIter, Chain, EndIo, Extent};
pub use block_device_ops::{BlockDeviceOps, NoOps};
pub use block_layer::BlockLayer;
pub use changes::{Changed, Changes};
pub use clock::{Clock, MonotonicClock};
pub use disk::{Disk, DiskConfig, DiskFlags, DiskListener, Event, WaitLimit};
pub use driver::{Budget, Busy, Driver, InFlight, Timeout};
pub use end_batch::EndBatch;
pub use error::{Error, ErrorKind, Result};
pub use fault::{
    FaultCounts, FaultInfo, FaultKind, FaultOps, FaultSpec, MAX_FAULTS, MAX_VOLATILE_BYTES,
};
pub use hctx::HctxHandle;
pub use limits::{Features, Limits};
pub use op::{Flags, IoPrio, Op, StatGroup, Status, WriteHint};
pub use outbox::Outbox;
pub use partition_device::Partition;
pub use queue::{FailedFlush, Life};
pub use queue_map::{QueueMaps, QueueType};
pub use request::Request;
pub use tag_set::{MAX_DEPTH, TagSet, TagSetConfig, TagSetFlags};
pub use throttle::{Burst, Rate, Throttle, ThrottleGroup};
pub use units::{BlockSize, SECTOR_SHIFT, SECTOR_SIZE, Sector};
