//! The in-flight region: what a back-end writes down of the chains it has taken, in memory that outlives it ("Inflight I/O
//! tracking", the format for split virtqueues).

use std::sync::atomic::Ordering;

use blockyard_buf::{Segment, SharedWords};

use super::QueueError;

/// `QueueRegionSplit`: features 0, version 8, desc_num 10, last_batch_head 12, used_idx 14, then the descriptors.
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADER_LEN: usize = 16;
/// `DescStateSplit`: inflight 0, next 6, counter 8.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const DESC_LEN: usize = 16;
/// The version of the format.
const VERSION_1: u16 = 1;
/// Regions of different queues share no cache line.
const ALIGNMENT: usize = 64;

/// Bytes of the region of a queue with so many descriptors.
#[must_use]
pub const fn region_len(queue_size: u16) -> usize {
    (HEADER_LEN + DESC_LEN * queue_size as usize).next_multiple_of(ALIGNMENT)
}

/// Whether a queue was served with this region: it is not new, and says what a guest has been doing.
#[must_use]
pub fn is_in_use(region: &Segment) -> bool {
    let words = SharedWords::new(region.clone()).filter(|words| words.len() >= HEADER_LEN);
    words.is_some_and(|words| words.load_u16(VERSION, Ordering::Relaxed) != 0)
}

/// The region of one queue.
///
/// Another process of ours may have to read it after this one was killed at any instruction, so that each step is a store
/// with release order: they are seen in the order in which they are written here.
#[derive(Debug)]
pub struct InflightRegion {
    words: SharedWords,
    size: u16,
    /// The number of the next chain that is taken.
    counter: u64,
    /// What was given back since the last [`InflightRegion::published`].
    batch: Vec<u16>,
}

/// Where a queue is to go on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Chains to begin anew, in this order.
    pub chains: Vec<u16>,
    /// Where in the available ring to go on; none if that is as the front-end says.
    pub next_available: Option<u16>,
}

impl InflightRegion {
    /// Takes up the region of a queue of `size` descriptors, whose used index is `used_index` now. A new region, which is all
    /// zeroes, is made ready.
    ///
    /// # Errors
    /// [`QueueError::Inflight`].
    pub fn attach(
        region: Segment,
        size: u16,
        used_index: u16,
    ) -> Result<(Self, Resume), QueueError> {
        let wrong = QueueError::Inflight;
        if region.len() < region_len(size) {
            return Err(wrong("too small"));
        }
        let words = SharedWords::new(region).ok_or(wrong("not aligned"))?;
        let mut region = Self { words, size, counter: 0, batch: Vec::with_capacity(size.into()) };
        let resume = match region.header(VERSION) {
            0 => {
                region.set_header(DESC_NUM, size);
                region.set_header(USED_IDX, used_index);
                region.set_header(VERSION, VERSION_1);
                Resume::default()
            }
            VERSION_1 if region.header(DESC_NUM) == size => region.recover(used_index),
            VERSION_1 => return Err(wrong("made for another queue size")),
            _ => return Err(wrong("unknown version")),
        };
        Ok((region, resume))
    }

    fn recover(&mut self, used_index: u16) -> Resume {
        // Chains of the last batch are with the driver already, if it has seen the index.
        let given_back = used_index.wrapping_sub(self.header(USED_IDX)).min(self.size);
        let mut head = self.header(LAST_BATCH_HEAD);
        for _ in 0..given_back {
            if head >= self.size {
                break;
            }
            self.set_inflight(head, false);
            head = self.words.load_u16(Self::desc(head) + NEXT, Ordering::Relaxed);
        }
        self.set_header(USED_IDX, used_index);
        let is_open =
            |head: &u16| self.words.load_u8(Self::desc(*head) + INFLIGHT, Ordering::Relaxed) == 1;
        let counter =
            |head: u16| self.words.load_u64(Self::desc(head) + COUNTER, Ordering::Relaxed);
        let mut chains: Vec<u16> = (0..self.size).filter(is_open).collect();
        chains.sort_by_key(|head| counter(*head));
        self.counter = chains.last().map_or(0, |head| counter(*head).wrapping_add(1));
        let open = u16::try_from(chains.len()).unwrap_or(self.size);
        Resume { chains, next_available: Some(used_index.wrapping_add(open)) }
    }

    /// A chain was taken.
    #[inline]
    pub fn taken(&mut self, head: u16) {
        self.words.store_u64(Self::desc(head) + COUNTER, self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.set_inflight(head, true);
    }

    /// A chain was taken, but not begun, and is to be taken again.
    pub fn put_back(&mut self, head: u16) {
        self.set_inflight(head, false);
    }

    /// A chain is about to be shown to the driver as used.
    #[inline]
    pub fn used(&mut self, head: u16) {
        let last = self.header(LAST_BATCH_HEAD);
        self.words.store_u16(Self::desc(head) + NEXT, last, Ordering::Release);
        self.set_header(LAST_BATCH_HEAD, head);
        self.batch.push(head);
    }

    /// The driver sees them now.
    #[inline]
    pub fn published(&mut self, used_index: u16) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.drain(..).for_each(|head| self.set_inflight(head, false));
        self.batch = batch;
        self.set_header(USED_IDX, used_index);
    }

    fn set_inflight(&self, head: u16, inflight: bool) {
        self.words.store_u8(Self::desc(head) + INFLIGHT, inflight.into(), Ordering::Release);
    }

    fn header(&self, field: usize) -> u16 {
        self.words.load_u16(field, Ordering::Relaxed)
    }

    fn set_header(&self, field: usize, value: u16) {
        self.words.store_u16(field, value, Ordering::Release);
    }

    fn desc(head: u16) -> usize {
        HEADER_LEN + DESC_LEN * usize::from(head)
    }
}
