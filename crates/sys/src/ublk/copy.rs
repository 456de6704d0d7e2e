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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use io_uring::IoUring;

    use super::*;

    fn run(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: the memory is that of a slot of the test's, which is there until this has waited for the copy.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    fn segments<const N: usize>(texts: [&str; N]) -> Segments {
        texts.map(|text| Segment::from_vec(text.into())).into_iter().collect()
    }

    /// A sparse file stands for the device: it has a place for each request, too.
    #[test]
    fn data_goes_to_the_place_of_its_request_and_comes_from_there() {
        let file: File = tempfile::tempfile().unwrap();
        let device = Device(Arc::new(file.try_clone().unwrap().into()));
        let mut copies = Copies::new(&device, 1, 4);
        let mut ring = IoUring::new(4).unwrap();
        for (tag, data) in [(0, segments(["whole"])), (3, segments(["in ", "two parts"]))] {
            let bytes: Vec<u8> = data.iter().flat_map(Segment::to_vec).collect();
            copies.start(tag, data);
            let given = run(&mut ring, &copies.give(tag));
            assert_eq!(copies.end(tag, given), Ok(()));
            let mut found = vec![0; bytes.len()];
            file.read_exact_at(&mut found, abi::data_offset(1, tag)).unwrap();
            assert_eq!(found, bytes);

            let memory = segments(["....", &".".repeat(bytes.len() - 4)]);
            copies.start(tag, memory.clone());
            let taken = run(&mut ring, &copies.take(tag));
            assert_eq!(copies.end(tag, taken), Ok(()));
            assert_eq!(memory.iter().flat_map(Segment::to_vec).collect::<Vec<_>>(), bytes);
        }
        // The file ends there.
        copies.start(3, segments(["longer than what is there"]));
        let taken = run(&mut ring, &copies.take(3));
        assert_eq!((taken, copies.end(3, taken)), (12, Err(libc::EIO)));
        copies.start(1, segments(["x"]));
        assert_eq!(copies.end(1, -libc::EFAULT), Err(libc::EFAULT));
    }
}
