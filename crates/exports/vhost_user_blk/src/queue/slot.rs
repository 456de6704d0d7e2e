//! What is remembered of a request until it is answered.

use blockyard_blkmq::Status;
use blockyard_buf::{Segment, Segments};

use super::request::Answer;

/// The place of a request, by its first descriptor.
#[derive(Default)]
pub(super) struct Slot {
    /// It is taken.
    pub(super) busy: bool,
    /// Bios that are not back.
    pub(super) pending: u32,
    /// The guest's address of the status byte.
    pub(super) status_addr: u64,
    /// Bytes that a read writes.
    pub(super) read_len: u32,
    /// How it went so far.
    pub(super) status: Status,
    /// What the memory of ours counts for that its data goes through.
    pub(super) bounced: usize,
    /// A read's data on its way to memory of the guest's that the disk cannot use.
    pub(super) bounce: Option<Box<Bounce>>,
}

/// Data that goes through memory of ours.
pub(super) struct Bounce {
    /// Ours.
    pub(super) ours: Segment,
    /// The guest's.
    pub(super) theirs: Segments,
}

impl Slot {
    /// The answer to the guest.
    pub(super) const fn answer(&self) -> Answer {
        match self.status {
            Status::Ok => Answer::Ok,
            Status::NotSupported => Answer::Unsupported,
            _ => Answer::IoErr,
        }
    }
}
