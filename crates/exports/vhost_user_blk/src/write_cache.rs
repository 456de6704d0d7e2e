//! What is known of a guest's choice between write-back and write-through, across front-ends and back-ends.
//!
//! A guest that has chosen write-through does not flush, and its front-end says once what it has chosen. If it comes back to
//! another back-end, it does not say it again, and neither can know. The in-flight region outlives both; its format has no
//! place for this, but its length is ours to say, so that it stands behind what the format needs.
//!
//! QEMU asks for a region whenever it has none (a new process, a guest that was reset), and brings back the very same one at
//! once, before any queue starts (`vhost_user_blk_start`). So a region is no sign of a guest that was served before, nor is
//! what stands behind a new one anybody's choice: that is told by who [has said](Tail::was_said) it, and by the queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_buf::{SharedMapping, SharedWords};
use blockyard_vhost_user_backend::QueueStart;
use parking_lot::Mutex;

/// Bytes behind the in-flight region.
pub(crate) const TAIL_LEN: usize = 64;
/// What the tail begins with: "BLKYDWC2".
const MAGIC: u64 = u64::from_le_bytes(*b"BLKYDWC2");
const WRITEBACK_AT: usize = 8;
const SAID_AT: usize = 9;

/// Whether writes are cached, and how that is known.
pub(crate) struct WriteCache {
    /// Writes are cached until the guest flushes. A front-end that comes back, or resets the device, does not say again what
    /// its guest has chosen: this stays as it is for whoever comes, who is told (section 5.2.5).
    writeback: AtomicBool,
    /// Front-ends know what `writeback` is: one has read it, or has said it itself, to this back-end or to one before.
    is_told: AtomicBool,
    known: Mutex<Known>,
}

/// What is known of the guest that is served.
#[derive(Default)]
struct Known {
    /// The guest has said what it wants.
    was_said: bool,
    /// Where it is written down for another back-end.
    tail: Option<Tail>,
}

impl WriteCache {
    pub(crate) fn new() -> Self {
        Self {
            writeback: AtomicBool::new(true),
            is_told: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }

    /// Whether writes are cached.
    #[inline]
    pub(crate) fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// A front-end reads what it is.
    pub(crate) fn tell(&self) -> bool {
        self.is_told.store(true, Ordering::Relaxed);
        self.is_writeback()
    }

    /// The guest says what it wants.
    pub(crate) fn choose(&self, writeback: bool) {
        let mut known = self.known.lock();
        self.is_told.store(true, Ordering::Relaxed);
        self.writeback.store(writeback, Ordering::SeqCst);
        known.was_said = true;
        known.tail.iter().for_each(|tail| tail.say(writeback));
    }

    /// There is an in-flight region that was made: for a guest of which nothing is known yet.
    pub(crate) fn made(&self, mapping: &Arc<SharedMapping>) {
        let tail = Tail::make(mapping, self.is_writeback());
        *self.known.lock() = Known { was_said: false, tail };
    }

    /// There is an in-flight region that was brought, of which so many bytes are used.
    pub(crate) fn brought(&self, mapping: &Arc<SharedMapping>, used: usize) {
        let tail = Tail::find(mapping, used);
        if let Some(tail) = &tail {
            self.writeback.fetch_and(tail.is_writeback(), Ordering::SeqCst);
        }
        *self.known.lock() = Known { was_said: tail.as_ref().is_some_and(Tail::was_said), tail };
    }

    /// The guest of a queue that starts may have chosen write-through; if nobody can know, every write is made durable. It
    /// stays so until its front-end says otherwise. Says whether that is new.
    pub(crate) fn queue_starts(&self, start: QueueStart) -> bool {
        let known = self.known.lock();
        let is_known = match start {
            // Its guest goes by what its front-end knows.
            QueueStart::New => self.is_told.load(Ordering::Relaxed),
            QueueStart::Again => true,
            // The back-end that has served it went by what stands there.
            QueueStart::Recovered => {
                let is_known = known.was_said || known.tail.is_some();
                self.is_told.fetch_or(is_known, Ordering::Relaxed);
                is_known
            }
            QueueStart::Elsewhere => known.was_said,
        };
        if is_known {
            return false;
        }
        // First where it outlives us: the queue's part of the region says next that it was served.
        known.tail.iter().for_each(|tail| tail.say(false));
        self.writeback.swap(false, Ordering::SeqCst)
    }

    /// The front-end has left. The next one may have another guest.
    pub(crate) fn front_end_left(&self) {
        *self.known.lock() = Known::default();
    }
}

/// The place behind the in-flight region, and what is in there.
struct Tail(SharedWords);

impl Tail {
    /// The tail of a region that is made now: what is so, though no guest has said it.
    fn make(mapping: &Arc<SharedMapping>, writeback: bool) -> Option<Self> {
        let tail = Self::place(mapping)?;
        tail.0.store_u8(WRITEBACK_AT, writeback.into(), Ordering::Release);
        tail.0.store_u64(0, MAGIC, Ordering::Release);
        Some(tail)
    }

    /// The tail of a region of which `used` bytes are needed, if one of our kind has made it.
    fn find(mapping: &Arc<SharedMapping>, used: usize) -> Option<Self> {
        if mapping.len().checked_sub(used)? < TAIL_LEN {
            return None;
        }
        Self::place(mapping).filter(|tail| tail.0.load_u64(0, Ordering::Acquire) == MAGIC)
    }

    fn place(mapping: &Arc<SharedMapping>) -> Option<Self> {
        let start = mapping.len().checked_sub(TAIL_LEN)?;
        SharedWords::new(mapping.segment(start, TAIL_LEN)).map(Self)
    }

    fn is_writeback(&self) -> bool {
        self.0.load_u8(WRITEBACK_AT, Ordering::Acquire) != 0
    }

    fn was_said(&self) -> bool {
        self.0.load_u8(SAID_AT, Ordering::Acquire) != 0
    }

    /// It was said, or holds for want of knowledge. Another process may have to read this after we were killed between the two.
    fn say(&self, writeback: bool) {
        self.0.store_u8(WRITEBACK_AT, writeback.into(), Ordering::Release);
        self.0.store_u8(SAID_AT, 1, Ordering::Release);
    }
}
