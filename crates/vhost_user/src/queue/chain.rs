//! Descriptor chains (section 2.7.5), and their indirect tables (section 2.7.5.3).

use blockyard_buf::GuestView;

use super::ring::DESCRIPTOR_LEN;
use super::{MAX_QUEUE_SIZE, QueueError, Ring};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes of a guest that are in a request. They may be anywhere, also nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The guest's address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// The buffers of one request: those that the device reads, then those that it writes. To be used again and again.
#[derive(Debug, Default)]
pub struct Chain {
    /// Those that the device reads.
    pub readable: Vec<Buffer>,
    /// Those that the device writes.
    pub writable: Vec<Buffer>,
    /// An indirect table.
    table: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[expect(clippy::cast_possible_truncation, reason = "parts of a number")]
    fn new((addr, rest): (u64, u64)) -> Self {
        Self { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Chain {
    /// Reads the chain that begins with descriptor `head` of the ring. Each descriptor is read once.
    ///
    /// # Errors
    /// What the driver did wrong.
    #[inline]
    pub fn read(
        &mut self,
        ring: &Ring,
        guest: &GuestView,
        indirect: bool,
        head: u16,
    ) -> Result<(), QueueError> {
        self.readable.clear();
        self.writable.clear();
        let (mut index, mut total) = (head, 0_u32);
        for _ in 0..ring.size() {
            ring.check_descriptor(index)?;
            let descriptor = Descriptor::new(ring.descriptor(index));
            if descriptor.has(INDIRECT) {
                // "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT".
                if !indirect {
                    return Err(QueueError::Nested(head));
                }
                if descriptor.has(NEXT) {
                    return Err(QueueError::Table(head, descriptor.len));
                }
                return self.read_table(guest, head, descriptor, total);
            }
            self.add(head, descriptor, &mut total)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop(head))
    }

    fn read_table(
        &mut self,
        guest: &GuestView,
        head: u16,
        place: Descriptor,
        mut total: u32,
    ) -> Result<(), QueueError> {
        let malformed = QueueError::Table(head, place.len);
        let len = usize::try_from(place.len).unwrap_or(usize::MAX);
        let count = len / DESCRIPTOR_LEN;
        if count == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) || count > usize::from(MAX_QUEUE_SIZE)
        {
            return Err(malformed);
        }
        self.table.resize(len, 0);
        guest.read(place.addr, &mut self.table).ok_or(malformed)?;
        let mut index = 0;
        for _ in 0..count {
            let at = usize::from(index) * DESCRIPTOR_LEN;
            let entry = self.table.get(at..at + DESCRIPTOR_LEN);
            let size = u32::try_from(count).unwrap_or(u32::MAX);
            let entry = entry.ok_or(QueueError::Descriptor { index, size })?;
            let descriptor = Descriptor::new(split(entry));
            if descriptor.has(INDIRECT) {
                return Err(QueueError::Nested(head));
            }
            self.add(head, descriptor, &mut total)?;
            if !descriptor.has(NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop(head))
    }

    #[inline]
    fn add(
        &mut self,
        head: u16,
        descriptor: Descriptor,
        total: &mut u32,
    ) -> Result<(), QueueError> {
        // "A device MUST NOT ... a buffer of more than 2^32 bytes in total" (section 2.7.5).
        *total = total.checked_add(descriptor.len).ok_or(QueueError::TooLong(head))?;
        let buffer = Buffer { addr: descriptor.addr, len: descriptor.len };
        if descriptor.has(WRITE) {
            self.writable.push(buffer);
        } else if self.writable.is_empty() {
            self.readable.push(buffer);
        } else {
            return Err(QueueError::Order(head));
        }
        Ok(())
    }
}

/// The two numbers of a descriptor.
fn split(entry: &[u8]) -> (u64, u64) {
    let word = |at| entry.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let word = |at| word(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (word(0), word(8))
}
