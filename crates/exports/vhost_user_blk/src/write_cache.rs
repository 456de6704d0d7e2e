//! What is remembered of a guest's choice between write-back and write-through, across front-ends and back-ends.
//!
//! A front-end says once what its guest has chosen. If it comes back to another back-end, it does not say it again, and neither
//! can know that a guest which has chosen write-through does not flush. The in-flight region outlives both; its format has no
//! place for this, but its length is ours to say, so that it stands behind what the format needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_buf::{SharedMapping, SharedWords};

/// Bytes behind the in-flight region.
pub(crate) const TAIL_LEN: usize = 64;
/// What the tail begins with: "BLKYDWC1".
const MAGIC: u64 = u64::from_le_bytes(*b"BLKYDWC1");
const WRITEBACK_AT: usize = 8;

/// The place behind the in-flight region, and what is in there.
pub(crate) struct Tail(SharedWords);

impl Tail {
    /// The tail of a region that is made now.
    pub(crate) fn make(mapping: &Arc<SharedMapping>) -> Option<Self> {
        let tail = Self::place(mapping)?;
        tail.0.store_u64(0, MAGIC, Ordering::Release);
        Some(tail)
    }

    /// The tail of a region of which `used` bytes are needed, if one of our kind has made it.
    pub(crate) fn find(mapping: &Arc<SharedMapping>, used: usize) -> Option<Self> {
        if mapping.len().checked_sub(used)? < TAIL_LEN {
            return None;
        }
        Self::place(mapping).filter(|tail| tail.0.load_u64(0, Ordering::Acquire) == MAGIC)
    }

    fn place(mapping: &Arc<SharedMapping>) -> Option<Self> {
        let start = mapping.len().checked_sub(TAIL_LEN)?;
        SharedWords::new(mapping.segment(start, TAIL_LEN)).map(Self)
    }

    pub(crate) fn writeback(&self) -> bool {
        self.0.load_u8(WRITEBACK_AT, Ordering::Acquire) != 0
    }

    pub(crate) fn set_writeback(&self, writeback: bool) {
        self.0.store_u8(WRITEBACK_AT, writeback.into(), Ordering::Release);
    }
}
