//! What a disk has answered becomes a reply.

use super::slots::Slot;
use super::{Connection, Memory, Work};
use crate::server::ExtentList;
use crate::wire::{Command, CommandFlags, ErrorCode};

/// The shortest run of zeroes that is told rather than sent: a shorter one costs the client more than it saves.
const MIN_HOLE: usize = 4096;

impl<W: Work, M: Memory> Connection<W, M> {
    /// The disk has answered. Gives back what carries nothing any more; all others come by
    /// [`poll_free`](Self::poll_free).
    ///
    /// # Panics
    ///
    /// If its token is of no request at the disk.
    pub fn complete(&mut self, work: W) -> Option<W> {
        let slot = *self.slots.get(work.token());
        self.at_disk -= 1;
        self.working -= slot.work;
        if let Some(whole) = slot.whole {
            self.complete_piece(&work, whole);
            return Some(work);
        }
        match (slot.command, work.error()) {
            _ if self.is_deserted => {}
            (_, Some(error)) => self.out.head(&self.encoder.error(slot.to, error)),
            (Command::Read, None) => self.data(&slot, &work),
            (Command::BlockStatus, None) => self.extents(&slot, &work),
            (_, None) => self.out.head(&self.encoder.ok(slot.to)),
        }
        self.out.keep(work);
        None
    }

    fn complete_piece(&mut self, work: &W, whole: usize) {
        let piece = self.slots.remove(work.token());
        self.release(piece.charge);
        let slot = self.slots.get(whole);
        slot.pieces -= 1;
        slot.error = slot.error.or(work.error());
        if slot.pieces > 0 {
            return;
        }
        let slot = self.slots.remove(whole);
        match slot.error {
            _ if self.is_deserted => {}
            Some(error) => self.out.head(&self.encoder.error(slot.to, error)),
            None => self.out.head(&self.encoder.ok(slot.to)),
        }
    }

    fn data(&mut self, slot: &Slot, work: &W) {
        let segments = work.segments();
        let total: usize = (0..segments).map(|at| work.segment_len(at)).sum();
        if total as u64 != slot.length {
            // The driver supplied less than was asked of it.
            return self.out.head(&self.encoder.error(slot.to, ErrorCode::EIO));
        }
        if !self.encoder.can_send_holes() || slot.flags.contains(CommandFlags::DF) {
            let head = self.encoder.data(slot.to, slot.to.offset, len32(slot.length), true);
            self.out.head(&head);
            return (0..segments).for_each(|at| self.out.data(at));
        }
        let (mut at, mut offset) = (0, slot.to.offset);
        while at < segments {
            let run = Run::first(work, at);
            let done = at + run.segments == segments;
            if run.is_hole {
                self.out.head(&self.encoder.hole(slot.to, offset, len32(run.len), done));
            } else {
                self.out.head(&self.encoder.data(slot.to, offset, len32(run.len), done));
                (at..at + run.segments).for_each(|at| self.out.data(at));
            }
            at += run.segments;
            offset += run.len;
        }
    }

    fn extents(&mut self, slot: &Slot, work: &W) {
        let one = slot.flags.contains(CommandFlags::REQ_ONE);
        let mut list = ExtentList::new(slot.length, one, self.max_payload);
        let mut blocks = WholeBlocks::new(self.block);
        let mut more = work.extents().all(|(len, flags)| blocks.push(&mut list, len, flags));
        if more {
            more = blocks.finish(&mut list);
        }
        if more && list.extents().is_empty() {
            // A driver that has nothing to say: all of it counts as data.
            list.push(slot.length, 0);
        }
        let (encoder, context) = (self.encoder, self.contexts.first().map_or(0, |it| it.id));
        self.out.head_with(|heads| encoder.block_status(heads, slot.to, context, &list, true));
    }
}

/// Cuts extents at multiples of a block: a block of several statuses has what all of them say
/// ("`NBD_CMD_BLOCK_STATUS`": lengths are "an integer multiple of the minimum block size").
struct WholeBlocks {
    block: u64,
    /// Bytes of the block that is not complete, and what all of them say.
    part: u64,
    flags: u64,
}

impl WholeBlocks {
    fn new(block: u64) -> Self {
        Self { block, part: 0, flags: 0 }
    }

    /// Says whether more is wanted.
    fn push(&mut self, list: &mut ExtentList, mut len: u64, flags: u64) -> bool {
        if self.part > 0 {
            let here = len.min(self.block - self.part);
            self.flags &= if here > 0 { flags } else { self.flags };
            self.part += here;
            len -= here;
            if self.part < self.block {
                return true;
            }
            self.part = 0;
            if !list.push(self.block, self.flags) {
                return false;
            }
        }
        (self.part, self.flags) = (len % self.block, flags);
        list.push(len - self.part, flags)
    }

    /// What is left is the end of an export that is no multiple of the block.
    fn finish(self, list: &mut ExtentList) -> bool {
        list.push(self.part, self.flags)
    }
}

/// Segments that make one chunk.
struct Run {
    is_hole: bool,
    segments: usize,
    len: u64,
}

impl Run {
    /// The one that begins with the segment at `start`, which exists.
    fn first<W: Work>(work: &W, start: usize) -> Self {
        let mut run = Self { is_hole: is_hole(work, start), segments: 0, len: 0 };
        for at in start..work.segments() {
            let goes_on = if run.is_hole { work.is_zero(at) } else { !is_hole(work, at) };
            if !goes_on {
                break;
            }
            run.segments += 1;
            run.len += work.segment_len(at) as u64;
        }
        run
    }
}

/// Whether zeroes begin at a segment that are worth a chunk of their own.
fn is_hole<W: Work>(work: &W, start: usize) -> bool {
    let mut len = 0;
    for at in (start..work.segments()).take_while(|&at| work.is_zero(at)) {
        len += work.segment_len(at);
        if len >= MIN_HOLE {
            return true;
        }
    }
    false
}

/// A length within the maximum payload, which has 32 bits.
fn len32(len: u64) -> u32 {
    let short = u32::try_from(len);
    assert!(short.is_ok(), "{len} bytes are more than a payload can have");
    short.unwrap_or(0)
}
