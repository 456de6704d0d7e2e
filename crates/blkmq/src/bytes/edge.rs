//! A write to a part of a block: the block is read, changed and written back, while no other write to it is out.

use std::sync::Arc;

use blockyard_buf::{Segment, copy_segments};
use parking_lot::Mutex;

use super::write_flags;
use crate::bio::{Bio, EndIo};
use crate::driver::Driver;
use crate::hctx::{Arrival, Hctx};
use crate::op::{Flags, Op, Status};
use crate::reservation::Registrant;
use crate::units::Sector;

/// A write to a part of a block, with what it needs to be carried out.
pub(crate) struct Edge<D: Driver> {
    hctx: Arc<Hctx<D>>,
    ctx: usize,
    from: Registrant,
    /// What it does: a write, or a write of zeroes.
    piece: Box<Bio>,
    block: u64,
    /// The first byte of the block.
    start: u64,
    /// Where in the block the piece begins.
    at: usize,
    /// Which lock it holds.
    lock: u64,
}

impl<D: Driver> Edge<D> {
    /// Carries out a write which begins with the byte `offset` of the disk and ends within the same block. It was
    /// counted with [`super::BlockLocks::begin`].
    pub(super) fn start(hctx: &Arc<Hctx<D>>, arrival: Arrival, offset: u64, block: u64) {
        let Arrival { ctx, from, bio: piece } = arrival;
        let at = usize::try_from(offset % block).unwrap_or(usize::MAX);
        let start = offset - offset % block;
        let edge = Self { hctx: Arc::clone(hctx), ctx, from, piece, block, start, at, lock: 0 };
        hctx.shared.locks.lock_block(&hctx.shared, edge);
    }

    /// When the disk was asked for it.
    pub(super) fn came_ns(&self) -> u64 {
        self.piece.came_ns
    }

    pub(super) fn range(&self) -> (Sector, Sector) {
        let sector = Sector::from_bytes_floor;
        (sector(self.start), sector(self.start + self.block))
    }

    /// It has the block for itself.
    pub(super) fn go(mut self, lock: u64) {
        self.lock = lock;
        let (hctx, ctx, from) = (Arc::clone(&self.hctx), self.ctx, self.from);
        let mut read = Bio::new(Op::Read, self.range().0, self.block);
        read.prio = self.piece.prio;
        read.flags |=
            Flags::NOMERGE | self.piece.flags & (Flags::SYNC | Flags::META | Flags::RESERVED);
        (read.inside, read.came_ns) = (true, self.piece.came_ns);
        read.set_end(Arc::new(Step(Mutex::new(Some(self)))));
        hctx.submit(ctx, from, std::iter::once(read));
    }

    /// The block as it is to be.
    fn changed(&self, old: &[Segment]) -> Segment {
        let align = self.hctx.lock().limits.dma_alignment as usize;
        let block = usize::try_from(self.block).unwrap_or(usize::MAX);
        let memory = Segment::from_vec(vec![0; block + align]);
        let unaligned = memory.as_ptr().addr() & align;
        let new = memory.into_slice(if unaligned == 0 { 0 } else { align + 1 - unaligned }, block);
        copy_segments(std::slice::from_ref(&new), old);
        let len = usize::try_from(self.piece.len()).unwrap_or(usize::MAX);
        let changed = new.slice(self.at, len);
        if self.piece.op == Op::Write {
            copy_segments(&[changed], &self.piece.segments().collect::<Vec<_>>());
        } else {
            changed.fill_zero();
        }
        new
    }

    fn end(self, status: Status) {
        let Self { hctx, piece, lock, .. } = self;
        // Whoever waits for the block goes on before its owner may ask for it again.
        hctx.shared.locks.unlock(&hctx.shared, lock);
        piece.end(status);
        hctx.shared.locks.end(&hctx.shared.drained);
    }
}

/// Takes an edge on when its block was read, and when it was written.
struct Step<D: Driver>(Mutex<Option<Edge<D>>>);

impl<D: Driver> EndIo for Step<D> {
    fn is_gone(&self) -> bool {
        self.0.lock().as_ref().is_some_and(|edge| edge.piece.is_abandoned())
    }

    fn end_io(&self, mut bio: Box<Bio>) {
        let Some(edge) = self.0.lock().take() else { return };
        if bio.op == Op::Write || !bio.status().is_ok() {
            return edge.end(bio.status());
        }
        let block = edge.changed(&bio.take_data());
        let (hctx, ctx, from) = (Arc::clone(&edge.hctx), edge.ctx, edge.from);
        bio.reset(Op::Write, edge.range().0, 0);
        bio.add_segment(block);
        bio.flags |= write_flags(edge.piece.flags);
        bio.prio = edge.piece.prio;
        bio.hint = edge.piece.hint;
        bio.part.clone_from(&edge.piece.part);
        (bio.inside, bio.came_ns) = (true, edge.piece.came_ns);
        *self.0.lock() = Some(edge);
        hctx.submit(ctx, from, std::iter::once(bio));
    }
}
