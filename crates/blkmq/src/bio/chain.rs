//! Several bios that end as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockyard_buf::Segments;
use parking_lot::Mutex;

use super::{Bio, End, Extent};
use crate::op::Status;

/// A parent that ends when all of its children have, with the first error among them (kernel: `bio_chain`).
///
/// What the children were supplied with, or answered, becomes the parent's, in the order in which they were
/// added.
pub struct Chain(Mutex<State>);

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
        Arc::new(Self(Mutex::new(State {
            parent: Some(parent),
            pending: 1,
            next: 0,
            pieces: BTreeMap::new(),
        })))
    }

    /// Makes `bio` the parent of a copy of itself, which can be cut into pieces.
    pub(crate) fn wrap(bio: Box<Bio>) -> Box<Bio> {
        let mut child = bio.clone_rest();
        let chain = Self::new(bio);
        chain.add(&mut child);
        chain.close();
        child
    }

    /// Makes `child` one of those waited for, and the last in order so far.
    pub fn add(self: &Arc<Self>, child: &mut Bio) {
        let mut state = self.0.lock();
        state.pending += 1;
        child.end = End::Chain(Arc::clone(self), state.next);
        state.next += 1;
    }

    /// Cuts the first `bytes` off a child: they take its place in the order, it comes after all others.
    pub(crate) fn split(child: &mut Bio, bytes: u64) -> Box<Bio> {
        let mut front = child.split(bytes);
        if let End::Chain(chain, index) = &child.end {
            let chain = Arc::clone(chain);
            front.end = End::Chain(Arc::clone(&chain), *index);
            chain.add(child);
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
        let mut state = self.0.lock();
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
