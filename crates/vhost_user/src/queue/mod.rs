//! Split virtqueues, as a device sees them (virtio 1.2, section 2.7).

mod chain;
mod inflight;
mod ring;

use thiserror::Error;

pub use chain::{Buffer, Chain};
pub use inflight::{InflightRegion, Resume, is_in_use, region_len};
pub use ring::{Ring, RingPlace};

/// The most descriptors of a ring: what QEMU allows (`VIRTQUEUE_MAX_SIZE`).
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// `VIRTIO_F_INDIRECT_DESC`: a descriptor may stand for a table of others.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`: both sides say from which index on they want to be signalled.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// Something that a driver must not do, or a ring that cannot be. A queue where it happens is broken until it is set up anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QueueError {
    /// A size that is no power of two, or too large.
    #[error("a queue of {0} descriptors; it must be a power of two, and {MAX_QUEUE_SIZE} at most")]
    Size(u32),
    /// A ring that is not in the guest's memory.
    #[error("the {0} is not in the guest's memory, or not aligned")]
    Place(&'static str),
    /// More was made available than the ring can hold.
    #[error("the available index {available} is more than the size of the queue past {next}")]
    AvailableIndex {
        /// As the driver has it.
        available: u16,
        /// What would be taken next.
        next: u16,
    },
    /// A descriptor that is not in its table.
    #[error("descriptor {index} of a table of {size}")]
    Descriptor {
        /// Which.
        index: u16,
        /// Descriptors in the table.
        size: u32,
    },
    /// The driver offers what the device has not given back.
    #[error("descriptor {0} was made available again before it was used")]
    Busy(u16),
    /// A chain that is longer than its table: it has a loop.
    #[error("the chain at descriptor {0} has a loop")]
    Loop(u16),
    /// An indirect descriptor inside of an indirect table, or in a queue where they were not agreed upon.
    #[error("the chain at descriptor {0} has an indirect descriptor where none may be")]
    Nested(u16),
    /// An indirect table that is no whole number of descriptors, or too large, or not in the guest's memory, or followed by
    /// another descriptor.
    #[error("the indirect table at descriptor {0} is malformed: {1} bytes")]
    Table(u16, u32),
    /// A buffer to be read after one to be written.
    #[error("the chain at descriptor {0} has a buffer to be read after one to be written")]
    Order(u16),
    /// More than 4 GiB in one chain.
    #[error("the chain at descriptor {0} has more than 4 GiB")]
    TooLong(u16),
    /// An in-flight region that was not made for this queue.
    #[error("the in-flight region is not one of this queue: {0}")]
    Inflight(&'static str),
}
