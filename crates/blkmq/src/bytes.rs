//! Operations on bytes that are no whole blocks ([`Bio::at_bytes`]).
//!
//! `check` in `hctx/submit.rs` finds them where it finds what is unaligned, so that nothing else pays for them. A read
//! is fetched in whole blocks and trimmed. A write becomes up to three bios: its whole blocks, which go the usual way,
//! and its edges, of each of which the block is read, changed and written back ([`edge`]) while [`locks`] keeps every
//! other write from it.

mod edge;
mod locks;
mod writes;

use std::sync::Arc;

use blockyard_buf::{Segment, Segments, copy_segments};
use parking_lot::Mutex;

pub(crate) use edge::Edge;
pub(crate) use locks::{BlockLocks, Held};
pub(crate) use writes::{Waiters, WritesOut};

use crate::bio::{Bio, Chain, EndIo, Extent};
use crate::driver::Driver;
use crate::hctx::{Arrival, Hctx};
use crate::op::{Flags, Op, Status};
use crate::units::{BlockSize, Sector};

/// The whole blocks that bytes are in, or that are in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Blocks {
    start: u64,
    end: u64,
}

impl Blocks {
    /// Those that have a byte of the bio.
    fn around(bio: &Bio, block: u64) -> Self {
        let (start, end) = (bio.offset(), bio.offset() + bio.len());
        Self { start: start - start % block, end: end.next_multiple_of(block) }
    }

    /// Those that have no other.
    fn within(bio: &Bio, block: u64) -> Self {
        let (start, end) = (bio.offset(), bio.offset() + bio.len());
        let start = start.next_multiple_of(block);
        Self { start, end: (end - end % block).max(start) }
    }

    fn len(self) -> u64 {
        self.end - self.start
    }

    fn sector(self) -> Sector {
        Sector::from_bytes_floor(self.start)
    }
}

impl<D: Driver> Hctx<D> {
    /// Carries a bio out that is unaligned on blocks of that size, which are not others before it is through. It was
    /// counted with [`BlockLocks::begin`].
    pub(crate) fn carry_out_bytes(self: &Arc<Self>, arrival: Arrival, block: BlockSize) {
        let block = block.bytes().into();
        match arrival.bio.op {
            Op::Read | Op::BlockStatus | Op::Prefetch => {
                let Arrival { ctx, from, bio } = arrival;
                self.submit(ctx, from, std::iter::once(around(bio, block)));
            }
            Op::Discard => self.discard_within(arrival, block),
            _ => self.write_bytes(arrival, block),
        }
        self.shared.locks.end(&self.shared.drained);
    }

    fn discard_within(self: &Arc<Self>, arrival: Arrival, block: u64) {
        let Arrival { ctx, from, bio } = arrival;
        let blocks = Blocks::within(&bio, block);
        if blocks.len() == 0 {
            return bio.end(Status::Ok);
        }
        let mut child = Bio::new(Op::Discard, blocks.sector(), blocks.len());
        inherit(&mut child, &bio);
        child.set_end(Arc::new(Whole::of(bio, 0)));
        self.submit(ctx, from, std::iter::once(child));
    }

    /// A write or a write-zeroes: its edges, and what is between them.
    fn write_bytes(self: &Arc<Self>, arrival: Arrival, block: u64) {
        let Arrival { ctx, from, bio } = arrival;
        let (start, end) = (bio.offset(), bio.offset() + bio.len());
        let whole = Blocks::within(&bio, block);
        let cuts = [start, whole.start.clamp(start, end), whole.end.clamp(start, end), end];
        let mut rest = bio.clone_rest();
        (rest.skew, rest.by_bytes) = (0, false);
        let mut rest = Some(rest);
        let chain = Chain::new(bio);
        let mut pieces =
            [(cuts[0], cuts[1]), (cuts[1], cuts[2]), (cuts[2], cuts[3])].map(|(from, to)| {
                let front = rest
                    .as_mut()
                    .filter(|_| from < to && to < end)
                    .map(|rest| rest.split(to - from));
                let mut piece = front.or_else(|| rest.take_if(|_| from < to))?;
                piece.iter.sector = Sector::from_bytes_floor(from);
                chain.add(&mut piece);
                Some(piece)
            });
        chain.close();
        let [head, middle, tail] = &mut pieces;
        for (edge, offset) in [(head, cuts[0]), (tail, cuts[2])] {
            if let Some(bio) = edge.take() {
                self.shared.locks.begin();
                Edge::start(self, Arrival { ctx, from, bio }, offset, block);
            }
        }
        if let Some(middle) = middle.take() {
            self.submit(ctx, from, std::iter::once(middle));
        }
    }
}

/// The bio that asks for all of the blocks which another has a part of, and answers that.
fn around(bio: Box<Bio>, block: u64) -> Box<Bio> {
    let blocks = Blocks::around(&bio, block);
    let skip = bio.offset() - blocks.start;
    let mut child = Bio::new(bio.op, blocks.sector(), blocks.len());
    inherit(&mut child, &bio);
    child.set_end(Arc::new(Whole::of(bio, skip)));
    child
}

fn inherit(child: &mut Bio, parent: &Bio) {
    child.flags |= parent.flags - (Flags::PAGES | Flags::RANGE);
    child.prio = parent.prio;
    child.hint = parent.hint;
    (child.paid, child.came_ns) = (parent.paid, parent.came_ns);
    child.part.clone_from(&parent.part);
}

/// Ends a bio with what that for its whole blocks has brought.
struct Whole {
    parent: Mutex<Option<Box<Bio>>>,
    /// Bytes of the first block that are before the parent.
    skip: u64,
}

impl Whole {
    fn of(parent: Box<Bio>, skip: u64) -> Self {
        Self { parent: Mutex::new(Some(parent)), skip }
    }
}

impl EndIo for Whole {
    fn is_gone(&self) -> bool {
        self.parent.lock().as_ref().is_some_and(|parent| parent.is_abandoned())
    }

    fn end_io(&self, mut child: Box<Bio>) {
        let Some(mut parent) = self.parent.lock().take() else { return };
        if child.status().is_ok() {
            match child.op {
                Op::Read => answer_read(&mut parent, &child.take_data(), self.skip),
                Op::BlockStatus => answer_extents(&mut parent, &child.extents, self.skip),
                _ => {}
            }
        }
        parent.end(child.status());
    }
}

fn answer_read(parent: &mut Bio, data: &[Segment], skip: u64) {
    let mut found = Segments::new();
    let (mut skip, mut left) = (skip, parent.len());
    for segment in data {
        let len = segment.len() as u64;
        let from = skip.min(len);
        let here = (len - from).min(left);
        skip -= from;
        left -= here;
        if here > 0 {
            // Both are within a segment, whose length is a usize.
            let (from, here) = (usize::try_from(from), usize::try_from(here));
            found.push(segment.slice(from.unwrap_or(usize::MAX), here.unwrap_or(usize::MAX)));
        }
    }
    if parent.wants_supply() {
        parent.data = found;
    } else {
        copy_segments(&parent.segments().collect::<Vec<_>>(), &found);
    }
}

fn answer_extents(parent: &mut Bio, extents: &[Extent], skip: u64) {
    let (mut skip, mut left) = (skip, parent.len());
    for extent in extents {
        let from = skip.min(extent.len);
        let len = (extent.len - from).min(left);
        skip -= from;
        left -= len;
        Extent { len, ..*extent }.push(&mut parent.extents);
    }
    if parent.extents.is_empty() {
        // All that was told is before it. Something has to be said of its first byte.
        Extent::data(left).push(&mut parent.extents);
    }
}

/// What the edges of a write, and the writes that wait for them, keep of how a bio is to be done.
fn write_flags(flags: Flags) -> Flags {
    flags - (Flags::NOUNMAP | Flags::NOFALLBACK | Flags::SUPPLY)
}
