//! What the connection machinery needs to know of a request: the block layer's, or a simulation's.

use blockyard_blkmq::{Driver, EndBatch, Extent, Flags, Op, Request, Status};
use blockyard_buf::{FileRange, Segment, Segments, total_len};

use crate::span::Span;

/// A request as the connections see it.
pub(crate) trait Job {
    fn ask(&self) -> Ask;
    /// The memory to write from or to read into, in order; less than the length of the request if some, or all,
    /// of it is the driver's to supply.
    fn memory(&self) -> Segments;
    /// The range of a file that a write has in place of memory.
    fn range(&self) -> Option<FileRange> {
        None
    }
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

/// A request of the block layer, as far as the export reaches: the padding of the last block is kept from the server.
pub(crate) struct Within<D: Driver> {
    rq: Request<D>,
    /// Bytes at its end that the export does not have.
    padding: u64,
    /// Bytes whose extents were told.
    told: u64,
}

impl<D: Driver> Within<D> {
    /// A request to an export of `size` bytes.
    ///
    /// # Errors
    /// The request, if all of it is past the export's end.
    pub(crate) fn new(rq: Request<D>, size: u64) -> Result<Self, Request<D>> {
        let padding = (rq.offset() + rq.len()).saturating_sub(size);
        if padding == 0 {
            return Ok(Self { rq, padding, told: 0 });
        }
        if padding >= rq.len() {
            return Err(rq);
        }
        let within = Self { rq, padding, told: 0 };
        if within.rq.op() == Op::Read && !within.rq.wants_supply() {
            let (_, padding) = split(within.rq.segments(), within.rq.len() - padding);
            padding.iter().for_each(Segment::fill_zero);
        }
        Ok(within)
    }

    /// It has ended; `batch` tells of it.
    pub(crate) fn end(mut self, status: Status, batch: &mut EndBatch<D>) {
        if self.padding > 0 && status.is_ok() && self.rq.op() == Op::Read && self.rq.wants_supply()
        {
            let mut zeroes = Segments::new();
            Segment::zeroes(&mut zeroes, usize::try_from(self.padding).unwrap_or(usize::MAX));
            zeroes.into_iter().for_each(|segment| self.rq.deliver(segment));
        }
        batch.add(self.rq, status);
    }
}

impl<D: Driver> Job for Within<D> {
    fn ask(&self) -> Ask {
        let rq = &self.rq;
        let len = rq.len() - self.padding;
        Ask { op: rq.op(), flags: rq.flags(), offset: rq.offset(), len }
    }

    fn memory(&self) -> Segments {
        if self.rq.op() == Op::Read && self.rq.wants_supply() {
            return Segments::new();
        }
        if self.padding > 0 {
            return split(self.rq.segments(), self.rq.len() - self.padding).0;
        }
        self.rq.segments().collect()
    }

    fn range(&self) -> Option<FileRange> {
        Some(self.rq.file_range()?.first(self.rq.len() - self.padding))
    }

    fn deliver(&mut self, segment: Segment) {
        self.rq.deliver(segment);
    }

    fn extent(&mut self, mut extent: Extent) {
        self.told += extent.len;
        if self.told == self.rq.len() - self.padding {
            extent.len += self.padding;
        }
        self.rq.push_extent(extent);
    }
}

/// Some memory, and what is behind its first `len` bytes.
fn split(memory: impl Iterator<Item = Segment>, len: u64) -> (Segments, Segments) {
    let (mut head, mut rest) = (Segments::new(), Segments::new());
    let mut left = usize::try_from(len).unwrap_or(usize::MAX);
    for segment in memory {
        let here = left.min(segment.len());
        left -= here;
        if here > 0 {
            head.push(segment.slice(0, here));
        }
        if here < segment.len() {
            let behind = segment.len() - here;
            rest.push(segment.into_slice(here, behind));
        }
    }
    (head, rest)
}

/// Whether all of a read's answer has a place of its own.
pub(crate) fn has_all_memory(memory: &Segments, ask: &Ask) -> bool {
    total_len(memory) as u64 == ask.len
}
