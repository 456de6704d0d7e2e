//! Requests of a queue on their way to the disk and back, and the bios that carry them, which are used again and again.

use std::sync::Arc;

use blockyard_blkmq::{Bdev, Bio, EndIo, Flags, Op, Outbox, SECTOR_SIZE, Sector, Status};
use blockyard_buf::{Access, GuestView, Segment, Segments, copy_segments, losses, total_len};
use blockyard_vhost_user::queue::Buffer;

use super::Bios;
use super::bounce::{BounceMemory, MAX_BOUNCE};
use super::request::{Answer, Range};
use super::slot::{Bounce, Slot};
use crate::device::SEG_MAX;

/// More room for segments than a bio keeps for its next use.
const KEPT_SEGMENTS: usize = 64;
/// Bytes of ours that data goes through with which a queue takes no further request: the others are to have some, too.
const BOUNCED_BYTES: usize = 4 << 20;

/// Bytes of memory that are brought in when a disk has failed with them, as others wait meanwhile, and the guest may never have
/// touched them. A file that became shorter is found without that, wherever its end is; a page behind these that is broken, or
/// has no room in its file system, when somebody touches it.
const PROBED_BYTES: usize = 2 << 20;

/// What [`Bio::private`] has beside the first descriptor of its request: whether it has met memory that was lost, and how many
/// [`losses`] there had been before it was begun.
const MET_LOSS: u64 = 1 << 16;
const LOSSES_SHIFT: u32 = 17;

/// Where bios end. The memory of a write is let go of here, so that here is looked whether it was all there.
#[derive(Default)]
pub(super) struct Ends(pub(super) Outbox);

impl EndIo for Ends {
    #[inline]
    fn end_io(&self, mut bio: Box<Bio>) {
        // What is lost counts as lost before anybody can have met what is in its place.
        let unchanged = bio.private >> LOSSES_SHIFT == (losses() << LOSSES_SHIFT) >> LOSSES_SHIFT;
        if !unchanged && bio.data().iter().any(Segment::is_lost) {
            bio.private |= MET_LOSS;
        }
        if bio.status() == Status::Io {
            probe(&bio);
        }
        self.0.end_io(bio);
    }

    fn is_gone(&self) -> bool {
        self.0.is_gone()
    }
}

/// Writes whose data was lost while the disk had them: it may have got zeroes instead.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LostWrites {
    pub(super) count: usize,
    /// The first sector of any, and the one behind the last.
    pub(super) sectors: std::ops::Range<u64>,
}

impl LostWrites {
    fn add(&mut self, start: u64, sectors: u64) {
        let end = start.saturating_add(sectors);
        let known = if self.count == 0 { start..end } else { self.sectors.clone() };
        self.sectors = known.start.min(start)..known.end.max(end);
        self.count += 1;
    }
}

pub(super) struct Io {
    pub(super) ends: Arc<Ends>,
    /// One for each descriptor.
    pub(super) slots: Vec<Slot>,
    /// Bios that carry nothing.
    free: Bios,
    /// Those that wait to be submitted together.
    batch: Bios,
    /// Those that have ended: empty but for a moment.
    ended: Bios,
    /// Requests that the disk has.
    pub(super) outstanding: usize,
    memory: Arc<BounceMemory>,
    /// Bytes of that.
    bounced: usize,
    /// There may be too little of it for a further request.
    is_pressed: bool,
    /// Bits that the address and the length of a segment must not have.
    dma_alignment: usize,
    /// Mappings that were lost before the requests that are begun now.
    losses: u64,
    pub(super) lost_writes: LostWrites,
}

/// Why a read or a write was not begun.
pub(super) enum NotBegun {
    /// It is to be answered at once.
    Answered(Answer),
    /// The memory is out that its data has to go through. It can begin when some of that was given back.
    NoMemory,
}

impl From<Answer> for NotBegun {
    fn from(answer: Answer) -> Self {
        Self::Answered(answer)
    }
}

impl Io {
    pub(super) fn new(memory: Arc<BounceMemory>) -> Self {
        Self {
            ends: Arc::default(),
            slots: Vec::new(),
            free: Vec::new(),
            batch: Vec::new(),
            ended: Vec::new(),
            outstanding: 0,
            memory,
            bounced: 0,
            is_pressed: false,
            dma_alignment: 0,
            losses: 0,
            lost_writes: LostWrites::default(),
        }
    }

    /// Makes ready for a ring of `size` descriptors.
    pub(super) fn prepare(&mut self, size: u16, bdev: &Bdev) {
        debug_assert_eq!(self.outstanding, 0, "a ring that starts with requests of another");
        self.slots.clear();
        self.slots.resize_with(size.into(), Slot::default);
        self.dma_alignment = bdev.limits().dma_alignment as usize;
    }

    /// To be called before anything is read of the requests that are begun next.
    #[inline]
    pub(super) fn note_losses(&mut self) {
        self.losses = losses();
    }

    /// No further request is taken before one ends, of this queue or of another.
    #[inline]
    pub(super) fn is_full(&mut self) -> bool {
        self.is_pressed && self.is_still_pressed()
    }

    #[cold]
    fn is_still_pressed(&mut self) -> bool {
        self.is_pressed = self.bounced > BOUNCED_BYTES || self.memory.is_waiting(&self.ends);
        self.is_pressed
    }

    /// The place of the request with that first descriptor, which the ring has checked.
    pub(super) fn slot(&mut self, head: u16) -> &mut Slot {
        &mut self.slots[usize::from(head)]
    }

    fn bio(&mut self, head: u16, op: Op, sector: u64, len: u64, flags: Flags) -> Box<Bio> {
        let mut bio = match self.free.pop() {
            Some(bio) => bio,
            None => Bio::flush().on_end(Arc::<Ends>::clone(&self.ends)),
        };
        bio.reset(op, Sector(sector), len);
        bio.private = u64::from(head) | self.losses << LOSSES_SHIFT;
        bio.flags |= flags;
        bio
    }

    /// The request takes its place, with so many bios.
    fn join(&mut self, head: u16, bios: u32, status_addr: u64, read_len: u32) {
        let slot = self.slot(head);
        *slot = Slot { busy: true, pending: bios, status_addr, read_len, ..Slot::default() };
        self.outstanding += 1;
    }

    /// A read or a write, into or from the guest's own memory.
    ///
    /// # Errors
    /// [`NotBegun`].
    #[inline]
    pub(super) fn transfer(
        &mut self,
        head: u16,
        write: Option<Flags>,
        sector: u64,
        data: &[Buffer],
        guest: &GuestView,
        status_addr: u64,
    ) -> Result<(), NotBegun> {
        if data.len() > SEG_MAX as usize {
            return Err(Answer::IoErr.into());
        }
        let (op, access, flags) = match write {
            Some(flags) => (Op::Write, Access::Read, flags),
            None => (Op::Read, Access::Write, Flags::empty()),
        };
        let mut bio = self.bio(head, op, sector, 0, flags);
        let mut misaligned = false;
        let mask = self.dma_alignment;
        for buffer in data {
            let len = usize::try_from(buffer.len).unwrap_or(usize::MAX);
            let there = guest.pieces(buffer.addr, len, access, |piece| {
                misaligned |= (piece.as_ptr().addr() | piece.len()) & mask != 0;
                bio.add_segment(piece);
            });
            if there.is_none() {
                self.recycle(bio);
                return Err(Answer::IoErr.into());
            }
        }
        let len = u32::try_from(bio.len()).ok();
        let Some(len) = len.filter(|len| !misaligned || *len as usize <= MAX_BOUNCE) else {
            self.recycle(bio);
            return Err(Answer::IoErr.into());
        };
        let bounced = if misaligned {
            match self.bounce(&mut bio) {
                Ok(bounced) => Some(bounced),
                Err(err) => {
                    self.recycle(bio);
                    return Err(err);
                }
            }
        } else {
            None
        };
        self.join(head, 1, status_addr, if write.is_some() { 0 } else { len });
        if let Some((bounce, charge)) = bounced {
            let slot = self.slot(head);
            slot.bounced = charge;
            slot.bounce = write.is_none().then(|| Box::new(bounce));
        }
        self.batch.push(bio);
        Ok(())
    }

    /// Has the data go through memory that the disk can use. Says what that counts for, too.
    #[cold]
    fn bounce(&mut self, bio: &mut Bio) -> Result<(Bounce, usize), NotBegun> {
        let theirs: Segments = bio.take_data();
        let len = total_len(&theirs);
        let Some((ours, charge)) = self.memory.take(len, &self.ends) else {
            self.is_pressed = true;
            return Err(NotBegun::NoMemory);
        };
        let ours = ours.into_segment_mut(len);
        let (op, sector, flags) = (bio.op, bio.sector(), bio.flags);
        if op == Op::Write {
            copy_segments(std::slice::from_ref(&ours), &theirs);
            if losses() != self.losses && theirs.iter().any(Segment::is_lost) {
                drop(ours);
                self.memory.give_back(charge);
                return Err(Answer::IoErr.into());
            }
        }
        self.bounced += charge;
        self.is_pressed |= self.bounced > BOUNCED_BYTES;
        bio.reset(op, sector, 0);
        bio.flags = flags;
        bio.add_segment(Segment::clone(&ours));
        Ok((Bounce { ours, theirs }, charge))
    }

    /// The memory that data has gone through is not needed any more.
    #[cold]
    fn unbounce(&mut self, charge: usize) {
        self.bounced -= charge;
        self.memory.give_back(charge);
    }

    pub(super) fn flush(&mut self, head: u16, status_addr: u64) {
        let bio = self.bio(head, Op::Flush, 0, 0, Flags::empty());
        self.join(head, 1, status_addr, 0);
        self.batch.push(bio);
    }

    /// A discard or the like of those ranges, one at least.
    pub(super) fn ranges(
        &mut self,
        head: u16,
        op: Op,
        list: &[Range],
        flags: Flags,
        status_addr: u64,
    ) {
        self.join(head, u32::try_from(list.len()).unwrap_or(u32::MAX), status_addr, 0);
        for range in list {
            let mut flags = flags;
            flags.set(Flags::NOUNMAP, op == Op::WriteZeroes && !range.unmap);
            let len = Sector(range.sectors.into()).bytes();
            let bio = self.bio(head, op, range.sector, len, flags);
            self.batch.push(bio);
        }
    }

    /// Has the disk carry out what has been gathered. Some of it may have ended when this returns.
    pub(super) fn submit(&mut self, bdev: &Bdev, cpu: usize) {
        if !self.batch.is_empty() {
            bdev.submit_all(cpu, &mut self.batch);
        }
    }

    /// Takes back what has been gathered: what it was made from is not the guest's. It stays unanswered, so that it is begun anew
    /// where there is an in-flight region.
    #[cold]
    pub(super) fn withhold(&mut self) {
        for bio in std::mem::take(&mut self.batch) {
            if let Ok(head) = u16::try_from(bio.private & 0xffff) {
                let slot = &mut self.slots[usize::from(head)];
                let charge = std::mem::take(&mut slot.bounced);
                slot.bounce = None;
                slot.pending -= 1;
                self.outstanding -= usize::from(slot.pending == 0);
                self.recycle(bio);
                if charge > 0 {
                    self.unbounce(charge);
                }
            } else {
                self.recycle(bio);
            }
        }
    }

    /// Calls `done` with the first descriptor of each request that has ended; says whether any has.
    #[inline]
    pub(super) fn collect(&mut self, mut done: impl FnMut(u16, &Slot)) -> bool {
        let mut ended = std::mem::take(&mut self.ended);
        self.ends.0.take(&mut ended);
        let any = !ended.is_empty();
        for bio in ended.drain(..) {
            if let Some(head) = self.ended_one(bio) {
                done(head, &self.slots[usize::from(head)]);
            }
        }
        self.ended = ended;
        any
    }

    /// A bio is back: the first descriptor of its request, if that has ended now.
    #[inline]
    fn ended_one(&mut self, bio: Box<Bio>) -> Option<u16> {
        let head = u16::try_from(bio.private & 0xffff).ok()?;
        let slot = &mut self.slots[usize::from(head)];
        if slot.status == Status::Ok {
            slot.status = bio.status();
        }
        if bio.private & MET_LOSS != 0 {
            slot.status = Status::Io;
            if bio.op == Op::Write {
                self.lost_writes.add(bio.sector().0, bio.len() / SECTOR_SIZE);
            }
        }
        if let Some(bounce) = slot.bounce.take()
            && slot.status == Status::Ok
        {
            copy_segments(&bounce.theirs, std::slice::from_ref(&bounce.ours));
        }
        let charge = std::mem::take(&mut slot.bounced);
        slot.pending -= 1;
        let last = slot.pending == 0;
        if last {
            slot.busy = false;
            self.outstanding -= 1;
        }
        self.recycle(bio);
        if charge > 0 {
            self.unbounce(charge);
        }
        last.then_some(head)
    }

    #[inline]
    fn recycle(&mut self, mut bio: Box<Bio>) {
        if bio.data().len() > KEPT_SEGMENTS {
            drop(bio.take_data());
        }
        // Lets go of the guest's memory.
        bio.reset(Op::Flush, Sector::ZERO, 0);
        self.free.push(bio);
    }
}

/// Looks whether the memory of a bio that failed is there: the kernel may have found that it is not (EFAULT), which the disk
/// calls an error like any other. How long its files are is asked for all of it.
#[cold]
fn probe(bio: &Bio) {
    let access = if bio.op == Op::Read { Access::Write } else { Access::Read };
    let mut left = PROBED_BYTES;
    for segment in bio.data() {
        let len = segment.len().min(left);
        let _ = segment.slice(0, len).probe(access);
        left -= len;
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        self.ends.0.close();
        if self.bounced > 0 {
            self.unbounce(self.bounced);
        }
    }
}
