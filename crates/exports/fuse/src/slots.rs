//! Room for the requests of a queue. Every disk has a share of it: one whose requests do not end keeps no other from its own.
//!
//! The kernel has one list of requests for all files, and nobody can tell whose the next one is before it is read. What is read
//! for a disk whose share is used up is put by, in the order in which it came: a read is a few bytes then, a write its data.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use blockyard_blkmq::{Bio, Outbox};
use blockyard_buf::{Mapping, Segment};

use crate::bios::{Asked, Wanted};
use crate::outstanding::{Epoch, Outstanding};

/// Requests of all disks that a queue puts by, at most. Then it reads no more until one has ended.
pub(crate) const MAX_PARKED: usize = 16 << 10;
/// Bytes of writes that it puts by, at most, and the last one of them.
pub(crate) const MAX_PARKED_BYTES: usize = 32 << 20;

/// The most slots of a queue, whatever the disks are: each has memory for the longest request.
const MAX_SLOTS: usize = 1024;

/// Room for a request that waits for the disk.
pub(crate) struct Slot {
    pub(crate) unique: u64,
    node: u64,
    epoch: Option<Epoch>,
    pub(crate) asked: Asked,
    /// Data of a request are read into this, and those of an answer where they are the disk's to fill in.
    pub(crate) memory: Segment,
    /// Here unless it is out.
    pub(crate) bio: Option<Box<Bio>>,
}

/// A request that waits for its disk's share.
pub(crate) struct Parked {
    pub(crate) unique: u64,
    pub(crate) wanted: Wanted,
    /// The data of a write.
    pub(crate) data: Option<Segment>,
    /// When it came.
    pub(crate) epoch: Epoch,
}

impl Parked {
    fn bytes(&self) -> usize {
        self.data.as_ref().map_or(0, Segment::len)
    }
}

/// What a disk has of it.
struct Share {
    outstanding: Arc<Outstanding>,
    out: usize,
    parked: VecDeque<Parked>,
}

/// Those of a queue.
pub(crate) struct Slots {
    /// The number of the queue.
    queue: usize,
    /// The share of a disk.
    depth: usize,
    /// Bytes of each.
    room: usize,
    outbox: Arc<Outbox>,
    all: Vec<Slot>,
    /// Those that nothing is in; the last one that came back is the first to be used again.
    free: Vec<usize>,
    /// By their nodes. A disk that was here once keeps its entry until it is taken away.
    shares: BTreeMap<u64, Share>,
    out: usize,
    parked: usize,
    parked_bytes: usize,
}

impl Slots {
    /// Those of a queue: `depth` for each disk, with `room` bytes each, whose bios end into `outbox`.
    pub(crate) fn new(
        queue: usize,
        depth: usize,
        room: usize,
        outbox: Arc<Outbox>,
    ) -> io::Result<Self> {
        let mut slots = Self {
            queue,
            depth,
            room,
            outbox,
            all: Vec::with_capacity(depth),
            free: Vec::with_capacity(depth),
            shares: BTreeMap::new(),
            out: 0,
            parked: 0,
            parked_bytes: 0,
        };
        for _ in 0..depth {
            slots.grow()?;
        }
        Ok(slots)
    }

    /// Of its own, so that one that was never needed costs nothing.
    fn grow(&mut self) -> io::Result<()> {
        let number = self.all.len();
        let mut bio = Bio::flush().on_end(Arc::<Outbox>::clone(&self.outbox));
        bio.private = number as u64;
        let memory = Mapping::new(self.room)?.segment(0, self.room);
        let (epoch, asked) = (None, Asked::Nothing);
        self.all.push(Slot { unique: 0, node: 0, epoch, asked, memory, bio: Some(bio) });
        self.free.push(number);
        Ok(())
    }

    /// One that nothing is in, to read a request into. There are never more than the shares of all disks, and one, nor more than
    /// [`MAX_SLOTS`].
    pub(crate) fn vacant(&mut self) -> Option<usize> {
        if self.parked >= MAX_PARKED || self.parked_bytes >= MAX_PARKED_BYTES {
            return None;
        }
        if self.free.is_empty()
            && self.all.len() < MAX_SLOTS.max(self.depth)
            && let Err(err) = self.grow()
        {
            tracing::debug!(error = %err, "out of memory; a request waits");
        }
        self.free.last().copied()
    }

    pub(crate) fn at(&mut self, slot: usize) -> Option<&mut Slot> {
        self.all.get_mut(slot)
    }

    /// A request for the disk of `node` has come: when, and whether the disk may have one more.
    pub(crate) fn enter(&mut self, node: u64, outstanding: &Arc<Outstanding>) -> (Epoch, bool) {
        let share = self.shares.entry(node).or_insert_with(|| {
            let outstanding = Arc::clone(outstanding);
            Share { outstanding, out: 0, parked: VecDeque::new() }
        });
        (share.outstanding.enter(self.queue), share.out < self.depth)
    }

    /// One that has come is answered.
    pub(crate) fn leave(&self, node: u64, epoch: Epoch) {
        if let Some(share) = self.shares.get(&node) {
            share.outstanding.leave(self.queue, epoch);
        }
    }

    /// The vacant one goes to the disk of `node`, for a request that has come.
    pub(crate) fn take(&mut self, node: u64, epoch: Epoch) {
        if let Some(slot) = self.free.pop().and_then(|slot| self.all.get_mut(slot)) {
            (slot.node, slot.epoch) = (node, Some(epoch));
        }
        if let Some(share) = self.shares.get_mut(&node) {
            share.out += 1;
        }
        self.out += 1;
    }

    /// The request, which has come, waits until the disk of `node` has room.
    pub(crate) fn park(&mut self, node: u64, parked: Parked) {
        let Some(share) = self.shares.get_mut(&node) else { return };
        self.parked += 1;
        self.parked_bytes += parked.bytes();
        share.parked.push_back(parked);
    }

    /// The next request that waits for the disk of `node`, if that has room now.
    pub(crate) fn unpark(&mut self, node: u64) -> Option<Parked> {
        let share = self.shares.get_mut(&node).filter(|share| share.out < self.depth)?;
        let parked = share.parked.pop_front()?;
        self.parked -= 1;
        self.parked_bytes -= parked.bytes();
        Some(parked)
    }

    /// The slot is vacant again, as its request is answered, and the next one to be used; says whose it was.
    pub(crate) fn give_back(&mut self, slot: usize, bio: Box<Bio>) -> Option<u64> {
        let room = self.all.get_mut(slot)?;
        room.bio = Some(bio);
        let (node, epoch) = (room.node, room.epoch.take());
        self.free.push(slot);
        self.out -= 1;
        if let Some(share) = self.shares.get_mut(&node) {
            share.out -= 1;
            epoch.into_iter().for_each(|epoch| share.outstanding.leave(self.queue, epoch));
        }
        Some(node)
    }

    /// Forgets disks that are gone, but for what they have.
    pub(crate) fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.shares
            .retain(|&node, share| share.out > 0 || !share.parked.is_empty() || is_there(node));
    }

    /// Nobody waits for what is put by any more.
    pub(crate) fn forget_parked(&mut self) {
        for share in self.shares.values_mut() {
            for parked in share.parked.drain(..) {
                share.outstanding.leave(self.queue, parked.epoch);
            }
        }
        (self.parked, self.parked_bytes) = (0, 0);
    }

    /// Whether nothing is with the disks.
    pub(crate) fn are_idle(&self) -> bool {
        self.out == 0
    }
}
