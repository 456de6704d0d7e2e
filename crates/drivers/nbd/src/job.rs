//! What the connection machinery needs to know of a request: the block layer's, or a simulation's.

use blockyard_blkmq::{Driver, Extent, Flags, Op, Request};
use blockyard_buf::{Segment, Segments, total_len};

use crate::span::Span;

/// A request as the connections see it.
pub(crate) trait Job {
    fn ask(&self) -> Ask;
    /// The memory to write from or to read into, in order; less than the length of the request if some, or all,
    /// of it is the driver's to supply.
    fn memory(&self) -> Segments;
    /// The next bytes of a read's answer, in order.
    fn deliver(&mut self, segment: Segment);
    /// The next part of the answer to a block status query.
    fn extent(&mut self, extent: Extent);
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) op: Op,
    pub(crate) flags: Flags,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Ask {
    pub(crate) const FLUSH: Self = Self { op: Op::Flush, flags: Flags::empty(), offset: 0, len: 0 };

    /// The range that is changed, if any is.
    pub(crate) fn changes(&self) -> Option<Span> {
        self.op.is_write().then(|| Span::new(self.offset, self.len))
    }
}

impl<D: Driver> Job for Request<D> {
    fn ask(&self) -> Ask {
        Ask { op: self.op(), flags: self.flags(), offset: self.offset(), len: self.len() }
    }

    fn memory(&self) -> Segments {
        if self.op() == Op::Read && self.wants_supply() {
            return Segments::new();
        }
        self.segments().collect()
    }

    fn deliver(&mut self, segment: Segment) {
        Self::deliver(self, segment);
    }

    fn extent(&mut self, extent: Extent) {
        self.push_extent(extent);
    }
}

/// Whether all of a read's answer has a place of its own.
pub(crate) fn has_all_memory(memory: &Segments, ask: &Ask) -> bool {
    total_len(memory) as u64 == ask.len
}
