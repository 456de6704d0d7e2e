//! A bio: what a front-end asks of a disk, with the memory it concerns.

use std::fmt;
use std::sync::Arc;

use blockyard_buf::{FileRange, Pages, Segment, Segments, total_len};

use crate::op::{Flags, IoPrio, Op, Status, WriteHint};
use crate::partition_device::Partition;
use crate::units::{SECTOR_SIZE, Sector};

mod chain;

pub use chain::Chain;

/// Is told that a bio has ended, and gets it back, to use it again.
///
/// It is called by whichever thread ends the bio, maybe before the call that submitted it returns. It must not
/// block; it may submit.
pub trait EndIo: Send + Sync + 'static {
    /// `bio.status()` says how it went.
    fn end_io(&self, bio: Box<Bio>);

    /// Whether nobody is interested any more: what is left of a bio that is done in pieces need not be done.
    fn is_gone(&self) -> bool {
        false
    }
}

impl<F: Fn(Box<Bio>) + Send + Sync + 'static> EndIo for F {
    fn end_io(&self, bio: Box<Bio>) {
        self(bio);
    }
}

/// Where a bio stands: what is left of it (kernel: `struct bvec_iter`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BvecIter {
    /// Where on the disk the rest begins.
    pub sector: Sector,
    /// Bytes that are left. More than 4 GiB only where no data travels.
    pub size: u64,
    /// Which segment the rest begins in.
    pub index: usize,
    /// Bytes of that segment which are done.
    pub done: usize,
}

/// A run of bytes with the same answer to a block status query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub len: u64,
    /// Nothing is allocated for it.
    pub hole: bool,
    /// It reads as zeroes.
    pub zero: bool,
}

impl Extent {
    /// Allocated bytes of unknown content.
    #[must_use]
    pub const fn data(len: u64) -> Self {
        Self { len, hole: false, zero: false }
    }

    /// Nothing allocated, which reads as zeroes.
    #[must_use]
    pub const fn hole(len: u64) -> Self {
        Self { len, hole: true, zero: true }
    }

    /// Appends to `list`, as part of the last extent if that has the same answer.
    pub fn push(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            _ if self.len == 0 => {}
            Some(last) if last.hole == self.hole && last.zero == self.zero => last.len += self.len,
            _ => list.push(self),
        }
    }
}

pub(crate) enum End {
    Nobody,
    Owner(Arc<dyn EndIo>),
    Chain(Arc<Chain>, usize),
    /// A piece of a bio that is cut, and how many bytes of it are counted as under way.
    Piece(Arc<Chain>, usize, Option<u64>),
}

/// An operation on a range of a disk.
///
/// The block layer owns it from its submission until its end, which is certain: it comes back through [`EndIo`]
/// exactly once.
pub struct Bio {
    /// What is asked.
    pub op: Op,
    /// How.
    pub flags: Flags,
    /// How urgent it is.
    pub prio: IoPrio,
    /// How long the data may live.
    pub hint: WriteHint,
    /// The submitter's own mark, which comes back with it.
    pub private: u64,
    /// The answer to a [`Op::BlockStatus`].
    pub extents: Vec<Extent>,
    pub(crate) iter: BvecIter,
    pub(crate) data: Segments,
    /// The answer to a read that takes [`Flags::PAGES`], if it is that.
    pub(crate) pages: Option<Pages>,
    /// Of a write: what it writes in place of memory. Of a read that takes [`Flags::RANGE`]: its answer, if it is that.
    pub(crate) range: Option<FileRange>,
    pub(crate) status: Status,
    pub(crate) end: End,
    pub(crate) part: Option<Arc<Partition>>,
    /// Bytes of its first sector that are before it.
    pub(crate) skew: u16,
    /// It is on bytes, which need not be whole blocks.
    pub(crate) by_bytes: bool,
    /// It is a step of something that was let in before: neither a freeze nor a lock on blocks holds it back.
    pub(crate) inside: bool,
    /// The limits of its disk have let it in: what is made of it then is not kept by them again.
    pub(crate) paid: bool,
    /// When its disk was asked for it, or for what it is a part of. 0: it was not yet.
    pub(crate) came_ns: u64,
}

impl Bio {
    /// An operation on `len` bytes from `sector` on, with no memory of its own: a discard, say, or a read whose
    /// memory the driver supplies ([`Flags::SUPPLY`] is set for it).
    #[must_use]
    pub fn new(op: Op, sector: Sector, len: u64) -> Box<Self> {
        let flags = if op == Op::Read { Flags::SUPPLY } else { Flags::empty() };
        Self::build(op, flags, BvecIter { sector, size: len, index: 0, done: 0 }, Segments::new())
    }

    /// A read into, or a write from, `data`.
    #[must_use]
    pub fn with_data(op: Op, sector: Sector, data: Segments) -> Box<Self> {
        let size = total_len(&data) as u64;
        Self::build(op, Flags::empty(), BvecIter { sector, size, index: 0, done: 0 }, data)
    }

    /// An operation on any `len` bytes of a disk from byte `offset` on, whatever its block size, with no memory of its
    /// own as [`Bio::new`] makes it. [`Bio::add_segment`] adds memory.
    ///
    /// On whole blocks it is what it would be without this. Else reads are fetched in whole blocks; a write or a
    /// write-zeroes reads the blocks that it has a part of, and writes them back, which no other write to them comes
    /// between; a discard is of the whole blocks within it. What is past [`crate::Bdev::size_bytes`] is
    /// [`Status::OutOfRange`].
    #[must_use]
    pub fn at_bytes(op: Op, offset: u64, len: u64) -> Box<Self> {
        let mut bio = Self::new(op, Sector::ZERO, 0);
        bio.reset_bytes(op, offset, len);
        bio
    }

    /// A write of a range of a file, from byte `offset` of the disk on, to a disk with [`crate::Features::FILE_RANGES`]. It ends
    /// with [`Status::NotSupported`], and nothing is written, if the disk has not that, or it would have to be cut.
    #[must_use]
    pub fn write_range(offset: u64, range: FileRange) -> Box<Self> {
        let mut bio = Self::at_bytes(Op::Write, offset, range.len());
        bio.flags |= Flags::NOMERGE;
        bio.range = Some(range);
        bio
    }

    /// Makes all earlier writes durable.
    #[must_use]
    pub fn flush() -> Box<Self> {
        Self::new(Op::Flush, Sector::ZERO, 0)
    }

    fn build(op: Op, flags: Flags, iter: BvecIter, data: Segments) -> Box<Self> {
        Box::new(Self {
            op,
            flags,
            prio: IoPrio::None,
            hint: WriteHint::NotSet,
            private: 0,
            extents: Vec::new(),
            iter,
            data,
            pages: None,
            range: None,
            status: Status::Ok,
            end: End::Nobody,
            part: None,
            skew: 0,
            by_bytes: false,
            inside: false,
            paid: false,
            came_ns: 0,
        })
    }

    /// Makes an ended bio a new one, in the same memory. Its owner and its private mark stay.
    pub fn reset(&mut self, op: Op, sector: Sector, len: u64) {
        self.op = op;
        self.flags = if op == Op::Read { Flags::SUPPLY } else { Flags::empty() };
        self.prio = IoPrio::None;
        self.hint = WriteHint::NotSet;
        self.extents.clear();
        self.iter = BvecIter { sector, size: len, index: 0, done: 0 };
        self.data.clear();
        self.pages = None;
        self.range = None;
        self.status = Status::Ok;
        self.part = None;
        (self.skew, self.by_bytes, self.inside) = (0, false, false);
        (self.paid, self.came_ns) = (false, 0);
    }

    /// As [`Bio::reset`], to an operation on bytes as [`Bio::at_bytes`] makes it.
    pub fn reset_bytes(&mut self, op: Op, offset: u64, len: u64) {
        self.reset(op, Sector::from_bytes_floor(offset), len);
        let skew = (offset % SECTOR_SIZE) as u16;
        (self.skew, self.by_bytes) = (skew, true);
    }

    /// Who is told when it ends.
    pub fn set_end(&mut self, owner: Arc<dyn EndIo>) {
        self.end = End::Owner(owner);
    }

    /// As [`Bio::set_end`], for building one.
    #[must_use]
    pub fn on_end(mut self: Box<Self>, owner: Arc<dyn EndIo>) -> Box<Self> {
        self.set_end(owner);
        self
    }

    /// With more flags.
    #[must_use]
    pub fn with_flags(mut self: Box<Self>, flags: Flags) -> Box<Self> {
        self.flags |= flags;
        self
    }

    /// Adds a segment to its memory, and its length to the operation.
    pub fn add_segment(&mut self, segment: Segment) {
        self.flags -= Flags::SUPPLY;
        self.iter.size += segment.len() as u64;
        self.data.push(segment);
    }

    /// Where it stands.
    #[must_use]
    pub fn iter(&self) -> BvecIter {
        self.iter
    }

    /// Where the rest of it begins.
    #[must_use]
    pub fn sector(&self) -> Sector {
        self.iter.sector
    }

    /// The byte of the disk that the rest of it begins with.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.iter.sector.bytes().saturating_add(self.skew.into())
    }

    /// Bytes that are left of it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.iter.size
    }

    /// Whether nothing is left, or was ever asked, as of a flush.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter.size == 0
    }

    /// The sector after its last.
    #[must_use]
    pub fn end_sector(&self) -> Sector {
        Sector(
            self.iter.sector.0.saturating_add(
                self.iter.size.saturating_add(self.skew.into()).div_ceil(SECTOR_SIZE),
            ),
        )
    }

    /// How it ended.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status
    }

    /// All of its memory; after a supplied read, the driver's.
    #[must_use]
    pub fn data(&self) -> &[Segment] {
        &self.data
    }

    /// Takes its memory away, as what answers a supplied read.
    pub fn take_data(&mut self) -> Segments {
        std::mem::take(&mut self.data)
    }

    /// What answers a read with [`Flags::PAGES`], if it is not memory: all of it.
    #[must_use]
    pub fn pages(&self) -> Option<&Pages> {
        self.pages.as_ref()
    }

    /// Takes these away.
    pub fn take_pages(&mut self) -> Option<Pages> {
        self.pages.take()
    }

    /// Takes away what answers a read with [`Flags::RANGE`], if it is no memory: all of it.
    pub fn take_range(&mut self) -> Option<FileRange> {
        self.range.take()
    }

    /// Whether it wants the driver's memory.
    #[must_use]
    pub fn wants_supply(&self) -> bool {
        self.flags.contains(Flags::SUPPLY)
    }

    /// What is left of its memory, cut to what is left of the operation.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let mut left = self.iter.size;
        let mut done = self.iter.done;
        self.data.get(self.iter.index..).unwrap_or(&[]).iter().map_while(move |segment| {
            let len = u64::try_from(segment.len() - done).map_or(left, |len| len.min(left));
            let part =
                (left > 0).then(|| segment.slice(done, usize::try_from(len).unwrap_or(usize::MAX)));
            left -= len;
            done = 0;
            part
        })
    }

    /// Addresses and lengths of [`Bio::segments`].
    pub(crate) fn spans(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut left = self.iter.size;
        let mut done = self.iter.done;
        self.data.get(self.iter.index..).unwrap_or(&[]).iter().map_while(move |segment| {
            let len = u64::try_from(segment.len() - done).map_or(left, |len| len.min(left));
            let span = (left > 0).then(|| {
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                (segment.as_ptr().addr() + done, len)
            });
            left -= len;
            done = 0;
            span
        })
    }

    /// How many segments are left.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        if self.wants_supply() {
            usize::from(self.iter.size > 0)
        } else {
            self.data.len() - self.iter.index.min(self.data.len())
        }
    }

    /// Moves on by `bytes`.
    ///
    /// # Panics
    /// If fewer are left.
    pub fn advance(&mut self, bytes: u64) {
        assert!(bytes <= self.iter.size, "advance past the end of a bio");
        self.iter.size -= bytes;
        self.iter.sector = self.iter.sector + Sector::from_bytes_floor(bytes);
        let mut left = bytes;
        while left > 0 && self.iter.index < self.data.len() {
            let here = (self.data[self.iter.index].len() - self.iter.done) as u64;
            if left < here {
                #[expect(clippy::cast_possible_truncation, reason = "less than a segment's length")]
                let left = left as usize;
                self.iter.done += left;
                return;
            }
            left -= here;
            self.iter.index += 1;
            self.iter.done = 0;
        }
    }

    /// Drops the memory that a driver has supplied for what is not done yet.
    pub(crate) fn take_back_supply(&mut self) {
        self.pages = None;
        if self.wants_supply() {
            self.range = None;
            let BvecIter { index, done, .. } = self.iter;
            self.data.truncate(index + usize::from(done > 0));
            if done > 0
                && let Some(last) = self.data.last_mut()
            {
                *last = last.slice(0, done);
                self.iter.index += 1;
                self.iter.done = 0;
            }
        }
    }

    /// The same operation on the same memory, as far as it is left, with nobody told of its end. A read that pages would do
    /// for wants memory here: whoever puts pieces together does not know what to do with them.
    #[must_use]
    pub fn clone_rest(&self) -> Box<Self> {
        let data = if self.wants_supply() { Segments::new() } else { self.segments().collect() };
        let flags = self.flags - (Flags::PAGES | Flags::RANGE);
        let mut clone =
            Self::build(self.op, flags, BvecIter { index: 0, done: 0, ..self.iter }, data);
        clone.prio = self.prio;
        clone.hint = self.hint;
        clone.part.clone_from(&self.part);
        (clone.skew, clone.by_bytes, clone.inside) = (self.skew, self.by_bytes, self.inside);
        (clone.paid, clone.came_ns) = (self.paid, self.came_ns);
        clone
    }

    /// Cuts the first `bytes` off as a bio of its own, with the memory of these; `self` goes on after them.
    ///
    /// # Panics
    /// If there are not more than so many.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Box<Self> {
        assert!(bytes < self.iter.size, "a split that leaves nothing");
        let all = std::mem::replace(&mut self.iter.size, bytes);
        let front = self.clone_rest();
        self.iter.size = all;
        self.advance(bytes);
        front
    }

    /// Gives up all but the first `bytes` of the rest.
    pub fn truncate(&mut self, bytes: u64) {
        self.iter.size = self.iter.size.min(bytes);
    }

    /// Whether it is a piece of a bio that is cut.
    pub(crate) fn is_piece(&self) -> bool {
        matches!(self.end, End::Piece(..))
    }

    /// Whether one more piece of what it is left of may be under way.
    pub(crate) fn has_room(&self) -> bool {
        match &self.end {
            End::Piece(chain, ..) => chain.has_room(),
            _ => true,
        }
    }

    /// It is under way from now on, if it is a piece.
    pub(crate) fn count_piece(&mut self) {
        if let End::Piece(chain, _, counted) = &mut self.end {
            *counted = Some(self.iter.size);
            chain.piece_begins(self.iter.size);
        }
    }

    /// Whether nobody is interested in it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match &self.end {
            End::Nobody => false,
            End::Owner(owner) => owner.is_gone(),
            End::Chain(chain, _) | End::Piece(chain, ..) => chain.is_abandoned(),
        }
    }

    /// Ends it: whoever submitted it gets it back.
    pub fn end(mut self: Box<Self>, status: Status) {
        if self.status.is_ok() {
            self.status = status;
        }
        (self.paid, self.came_ns) = (false, 0);
        // The owner stays set, so that a bio which is used again need not be told twice.
        match &self.end {
            End::Nobody => {}
            End::Owner(owner) => {
                let owner = Arc::clone(owner);
                owner.end_io(self);
            }
            End::Chain(chain, index) => {
                let (chain, index) = (Arc::clone(chain), *index);
                chain.child_ended(self, index);
            }
            End::Piece(chain, index, counted) => {
                let (chain, index) = (Arc::clone(chain), *index);
                if let Some(bytes) = *counted {
                    chain.piece_ends(bytes);
                }
                chain.child_ended(self, index);
            }
        }
    }
}

impl fmt::Debug for Bio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bio")
            .field("op", &self.op)
            .field("flags", &self.flags)
            .field("sector", &self.iter.sector.0)
            .field("len", &self.iter.size)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
