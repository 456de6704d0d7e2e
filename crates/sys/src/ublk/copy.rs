//! The data of requests, copied by reads and writes of the device (`UBLK_F_USER_COPY`).

use std::os::fd::{AsRawFd, RawFd};

use blockyard_buf::{Segment, Segments, total_len};
use io_uring::{opcode, squeue, types};

use super::abi;
use super::control::Device;
use crate::operation::Operation;
use crate::transfer::{self, IoVec};

/// The copies of a queue, one for each of its requests at most.
pub(super) struct Copies {
    device: RawFd,
    queue: u16,
    slots: Vec<Slot>,
}

/// The memory of a copy, from its start to its end.
#[derive(Default)]
struct Slot {
    data: Segments,
    /// The kernel may read it until the copy has ended.
    vector: Vec<IoVec>,
}

impl Copies {
    /// None yet. The device must stay open as long as there are any.
    pub(super) fn new(device: &Device, queue: u16, depth: u16) -> Self {
        let slots = (0..depth).map(|_| Slot::default()).collect();
        Self { device: device.0.as_raw_fd(), queue, slots }
    }

    /// A copy between request `tag` and `data`, of at most [`Operation::MAX_SEGMENTS`].
    pub(super) fn start(&mut self, tag: u16, data: Segments) {
        assert!(data.len() <= Operation::MAX_SEGMENTS, "a copy of {} segments", data.len());
        let slot = &mut self.slots[usize::from(tag)];
        slot.vector.clear();
        slot.vector.extend(data.iter().map(IoVec::of));
        slot.data = data;
    }

    /// Copies what the request writes.
    pub(super) fn take(&self, tag: u16) -> squeue::Entry {
        let (file, offset) = self.place(tag);
        let Slot { data, vector } = &self.slots[usize::from(tag)];
        match data.as_slice() {
            [only] => opcode::Read::new(file, only.as_ptr(), length(only)).offset(offset).build(),
            _ => opcode::Readv::new(file, transfer::pointer(vector), transfer::count(vector))
                .offset(offset)
                .build(),
        }
    }

    /// Copies what the request reads.
    pub(super) fn give(&self, tag: u16) -> squeue::Entry {
        let (file, offset) = self.place(tag);
        let Slot { data, vector } = &self.slots[usize::from(tag)];
        match data.as_slice() {
            [only] => opcode::Write::new(file, only.as_ptr(), length(only)).offset(offset).build(),
            _ => opcode::Writev::new(file, transfer::pointer(vector), transfer::count(vector))
                .offset(offset)
                .build(),
        }
    }

    fn place(&self, tag: u16) -> (types::Fd, u64) {
        (types::Fd(self.device), abi::data_offset(self.queue, tag))
    }

    /// Ends a copy that came out as `result`, and lets its memory go. An errno if not all of it was moved.
    pub(super) fn end(&mut self, tag: u16, result: i32) -> Result<(), i32> {
        let data = std::mem::take(&mut self.slots[usize::from(tag)].data);
        match usize::try_from(result) {
            Ok(moved) if moved == total_len(&data) => Ok(()),
            Ok(_) => Err(libc::EIO),
            Err(_) => Err(-result),
        }
    }
}

/// A segment is at most 2 GiB long.
fn length(segment: &Segment) -> u32 {
    u32::try_from(segment.len()).unwrap_or(u32::MAX)
}
