//! Several bios that end as one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use blockyard_buf::Segments;
use parking_lot::Mutex;

use super::{Bio, End, Extent};
use crate::op::Status;

/// A parent that ends when all of its children have, with the first error among them (kernel: `bio_chain`).
///
/// What the children were supplied with, or answered, becomes the parent's, in the order in which they were
/// added.
pub struct Chain {
    state: Mutex<State>,
    /// Of a bio that is cut: pieces that are under way, and their bytes.
    pieces: AtomicUsize,
    bytes: AtomicU64,
}

/// Pieces of a bio that are under way at a time, so that others wait for no more of them.
const MAX_PIECES: usize = 4;
/// More may be while they are no more bytes than this together.
const MAX_PIECES_BYTES: u64 = 4 << 20;

struct State {
    parent: Option<Box<Bio>>,
    pending: usize,
    next: usize,
    pieces: BTreeMap<usize, Piece>,
}

/// What a child brings for its parent. Most bring nothing.
struct Piece {
    data: Segments,
    extents: Vec<Extent>,
}

impl Chain {
    /// Holds `parent` back until [`Chain::close`] was called and every child has ended.
    #[must_use]
    pub fn new(parent: Box<Bio>) -> Arc<Self> {
        let state = State { parent: Some(parent), pending: 1, next: 0, pieces: BTreeMap::new() };
        Arc::new(Self {
            state: Mutex::new(state),
            pieces: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    /// Makes `bio` the parent of a copy of itself, which can be cut into pieces.
    pub(crate) fn wrap(bio: Box<Bio>) -> Box<Bio> {
        let mut child = bio.clone_rest();
        let chain = Self::new(bio);
        chain.add_piece(&mut child);
        chain.close();
        child
    }

    pub(super) fn has_room(&self) -> bool {
        self.pieces.load(Ordering::Acquire) < MAX_PIECES
            || self.bytes.load(Ordering::Acquire) < MAX_PIECES_BYTES
    }

    pub(super) fn piece_begins(&self, bytes: u64) {
        self.pieces.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn piece_ends(&self, bytes: u64) {
        self.pieces.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.state.lock().parent.as_ref().is_some_and(|parent| parent.is_abandoned())
    }

    /// Makes `child` one of those waited for, and the last in order so far.
    pub fn add(self: &Arc<Self>, child: &mut Bio) {
        let index = self.next_child();
        child.end = End::Chain(Arc::clone(self), index);
    }

    fn add_piece(self: &Arc<Self>, child: &mut Bio) {
        let index = self.next_child();
        child.end = End::Piece(Arc::clone(self), index, None);
    }

    fn next_child(&self) -> usize {
        let mut state = self.state.lock();
        state.pending += 1;
        state.next += 1;
        state.next - 1
    }

    /// Cuts the first `bytes` off a piece: they take its place in the order, it comes after all others.
    pub(crate) fn split(piece: &mut Bio, bytes: u64) -> Box<Bio> {
        let mut front = piece.split(bytes);
        if let End::Piece(chain, index, _) = &piece.end {
            let chain = Arc::clone(chain);
            front.end = End::Piece(Arc::clone(&chain), *index, None);
            chain.add_piece(piece);
        }
        front
    }

    /// No more children will come.
    pub fn close(&self) {
        self.release(Status::Ok, None);
    }

    pub(super) fn child_ended(&self, mut child: Box<Bio>, index: usize) {
        let supplied = child.wants_supply();
        let piece = Piece {
            data: if supplied { child.take_data() } else { Segments::new() },
            extents: std::mem::take(&mut child.extents),
        };
        self.release(child.status, Some((index, piece)));
    }

    fn release(&self, status: Status, piece: Option<(usize, Piece)>) {
        let mut state = self.state.lock();
        if let Some((index, piece)) = piece
            && !(piece.data.is_empty() && piece.extents.is_empty())
        {
            state.pieces.insert(index, piece);
        }
        if let Some(parent) = &mut state.parent
            && parent.status.is_ok()
        {
            parent.status = status;
        }
        state.pending -= 1;
        if state.pending > 0 {
            return;
        }
        let pieces = std::mem::take(&mut state.pieces);
        let parent = state.parent.take();
        drop(state);
        if let Some(mut parent) = parent {
            for piece in pieces.into_values() {
                parent.data.extend(piece.data);
                piece.extents.into_iter().for_each(|extent| extent.push(&mut parent.extents));
            }
            parent.end(Status::Ok);
        }
    }
}
