//! A request: what a driver is given. It is made of one bio, or of several that were merged.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use blockyard_buf::{FileRange, Pages, Segment, copy_segments};

use crate::bio::{Bio, Extent};
use crate::driver::Driver;
use crate::flush::{Sequenced, Steps};
use crate::hctx::{Hctx, Mark};
use crate::op::{Flags, IoPrio, Op, Status, WriteHint};
use crate::sched::Item;
use crate::units::Sector;

/// What a request is made of; the block layer keeps a fixed number of them per hardware queue, and uses them
/// again.
pub(crate) struct Rq<D: Driver> {
    pub(crate) op: Op,
    pub(crate) flags: Flags,
    pub(crate) prio: IoPrio,
    pub(crate) hint: WriteHint,
    pub(crate) sector: Sector,
    /// Bytes that are left.
    pub(crate) len: u64,
    /// Bytes that its bios had when they came, for the statistics.
    pub(crate) total_len: u64,
    pub(crate) segments: usize,
    pub(crate) bios: VecDeque<Box<Bio>>,
    /// The software queue that it came through.
    pub(crate) ctx: usize,
    /// The driver's tag, from its issue to its end.
    pub(crate) tag: Option<u32>,
    /// Which of its hardware queue's requests it is: the tag that a scheduler knows it by.
    pub(crate) internal_tag: u32,
    /// Counts its uses, so that a late answer to an earlier one can be told.
    pub(crate) generation: u32,
    pub(crate) start_ns: u64,
    pub(crate) steps: Steps,
    pub(crate) role: Role,
    pub(crate) status: Status,
    /// Bytes that [`Request::deliver`] has brought.
    pub(crate) delivered: u64,
    /// A driver has seen it, and handed it back.
    pub(crate) begun: bool,
    /// It ends, and no driver has seen it: a fault has ended it.
    pub(crate) unseen: bool,
    /// A scheduler gave it out, and is to be told of its end.
    pub(crate) scheduled: bool,
    /// The driver's budget was asked for it already.
    pub(crate) budgeted: bool,
    /// What faults do to it. `None`: nothing.
    pub(crate) mark: Option<Box<Mark>>,
    pub(crate) cmd: D::Cmd,
    /// Set while it is in use.
    pub(crate) hctx: Option<Arc<Hctx<D>>>,
}

/// What the end of a request means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its bios end.
    Plain,
    /// It is between steps of the flush machine, which decides.
    Sequenced,
    /// It is the flush itself, on behalf of others; its tag is borrowed from one of them, or its own.
    Flush { borrowed_tag: bool },
}

impl<D: Driver> Rq<D> {
    pub(crate) fn new(cmd: D::Cmd, internal_tag: u32) -> Box<Self> {
        Box::new(Self {
            op: Op::Read,
            flags: Flags::empty(),
            prio: IoPrio::None,
            hint: WriteHint::NotSet,
            sector: Sector::ZERO,
            len: 0,
            total_len: 0,
            segments: 0,
            bios: VecDeque::new(),
            ctx: 0,
            tag: None,
            internal_tag,
            generation: 0,
            start_ns: 0,
            steps: Steps::empty(),
            role: Role::Plain,
            status: Status::Ok,
            delivered: 0,
            begun: false,
            unseen: false,
            scheduled: false,
            budgeted: false,
            mark: None,
            cmd,
            hctx: None,
        })
    }

    pub(crate) fn begin(&mut self, op: Op, flags: Flags, role: Role, now_ns: u64) {
        self.op = op;
        self.flags = flags;
        self.role = role;
        self.prio = IoPrio::None;
        self.hint = WriteHint::NotSet;
        self.sector = Sector::ZERO;
        self.len = 0;
        self.total_len = 0;
        self.segments = 0;
        self.steps = Steps::empty();
        self.status = Status::Ok;
        self.delivered = 0;
        self.begun = false;
        self.unseen = false;
        self.scheduled = false;
        self.mark = None;
        self.start_ns = now_ns;
    }

    pub(crate) fn begin_bio(&mut self, bio: Box<Bio>, flags: Flags, now_ns: u64) {
        // A write of nothing with a flush before it is that flush.
        let op = if bio.is_empty() { Op::Flush } else { bio.op };
        self.begin(op, flags, Role::Plain, now_ns);
        self.prio = bio.prio;
        self.hint = bio.hint;
        self.sector = bio.sector();
        self.len = bio.len();
        self.total_len = bio.len();
        self.segments = bio.segment_count();
        self.bios.push_back(bio);
    }

    /// Whether it wants the driver's memory, and has not got all of it.
    fn is_short(&self) -> bool {
        self.op == Op::Read
            && self.delivered < self.len
            && self.bios.front().is_some_and(|bio| bio.wants_supply())
    }

    /// Forgets what its driver has answered without calling it done: it will be issued again, and answered from
    /// there on.
    pub(crate) fn rewind(&mut self) {
        self.begun = true;
        self.status = Status::Ok;
        if self.delivered > 0 {
            self.delivered = 0;
            self.bios.iter_mut().for_each(|bio| bio.take_back_supply());
        }
        if self.op == Op::BlockStatus
            && let Some(bio) = self.bios.front_mut()
        {
            bio.extents.clear();
        }
    }

    pub(crate) fn end_sector(&self) -> Sector {
        self.sector + Sector(self.len.div_ceil(crate::units::SECTOR_SIZE))
    }
}

impl<D: Driver> Sequenced for Box<Rq<D>> {
    fn steps_mut(&mut self) -> &mut Steps {
        &mut self.steps
    }
}

impl<D: Driver> Item for Box<Rq<D>> {
    fn op(&self) -> Op {
        self.op
    }
    fn sector(&self) -> Sector {
        self.sector
    }
    fn end(&self) -> Sector {
        self.end_sector()
    }
    fn prio(&self) -> IoPrio {
        self.prio
    }
}

/// A request in the hands of its driver.
///
/// Owning it is what makes the driver answer for it: [`Request::end`] consumes it, and so does handing it back.
/// Dropped otherwise, it ends with an I/O error.
pub struct Request<D: Driver>(Option<Box<Rq<D>>>);

impl<D: Driver> Request<D> {
    pub(crate) fn new(rq: Box<Rq<D>>) -> Self {
        Self(Some(rq))
    }

    pub(crate) fn into_inner(mut self) -> Box<Rq<D>> {
        match self.0.take() {
            Some(rq) => rq,
            None => unreachable!("a request is there until it is consumed"),
        }
    }

    fn rq(&self) -> &Rq<D> {
        match &self.0 {
            Some(rq) => rq,
            None => unreachable!("a request is there until it is consumed"),
        }
    }

    fn rq_mut(&mut self) -> &mut Rq<D> {
        match &mut self.0 {
            Some(rq) => rq,
            None => unreachable!("a request is there until it is consumed"),
        }
    }

    /// What is asked.
    #[must_use]
    pub fn op(&self) -> Op {
        self.rq().op
    }

    /// How.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.rq().flags
    }

    /// How urgent it is.
    #[must_use]
    pub fn prio(&self) -> IoPrio {
        self.rq().prio
    }

    /// How long the data may live.
    #[must_use]
    pub fn write_hint(&self) -> WriteHint {
        self.rq().hint
    }

    /// Where it begins.
    #[must_use]
    pub fn sector(&self) -> Sector {
        self.rq().sector
    }

    /// Where it begins, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.rq().sector.bytes()
    }

    /// Bytes that are left of it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.rq().len
    }

    /// Bytes that are left of its first bio (kernel: `blk_rq_cur_bytes`, of a segment).
    #[must_use]
    pub fn cur_bytes(&self) -> u64 {
        self.rq().bios.front().map_or(0, |bio| bio.len())
    }

    /// Whether it has no range, as a flush.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rq().len == 0
    }

    /// Its tag: no other request that is out on this hardware queue has it.
    #[must_use]
    pub fn tag(&self) -> u32 {
        self.rq().tag.unwrap_or(u32::MAX)
    }

    /// The tag that a scheduler knows it by.
    #[must_use]
    pub fn internal_tag(&self) -> u32 {
        self.rq().internal_tag
    }

    /// Its tag in the low 32 bits, and how often the request was used in the high ones: a late answer to an
    /// earlier use is told by it.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        u64::from(self.rq().generation) << 32 | u64::from(self.tag())
    }

    /// The driver's own part.
    #[must_use]
    pub fn cmd(&self) -> &D::Cmd {
        &self.rq().cmd
    }

    /// The driver's own part, to change.
    pub fn cmd_mut(&mut self) -> &mut D::Cmd {
        &mut self.rq_mut().cmd
    }

    /// The index of its hardware queue.
    #[must_use]
    pub fn hctx_index(&self) -> usize {
        self.rq().hctx.as_ref().map_or(0, |hctx| hctx.index)
    }

    /// How many segments [`Request::segments`] has.
    #[must_use]
    pub fn segment_count(&self) -> usize {
        self.rq().segments
    }

    /// Whether its memory is the driver's to supply, all of it, by [`Request::deliver`].
    #[must_use]
    pub fn wants_supply(&self) -> bool {
        self.rq().bios.iter().all(|bio| bio.wants_supply())
    }

    /// The memory of its bios, in order: to write from, or to read into. Bios that want the driver's memory
    /// have none.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.rq().bios.iter().flat_map(|bio| bio.segments())
    }

    /// Whether pages of a file will do for its memory, all of it: see [`Request::deliver_pages`].
    #[must_use]
    pub fn takes_pages(&self) -> bool {
        let rq = self.rq();
        rq.op == Op::Read && rq.flags.contains(Flags::PAGES | Flags::SUPPLY)
    }

    /// Whether the range of a file that it is in will do for its memory, all of it.
    #[must_use]
    pub fn takes_range(&self) -> bool {
        let rq = self.rq();
        let is_wanted = rq.op == Op::Read && rq.flags.contains(Flags::RANGE | Flags::SUPPLY);
        is_wanted && rq.bios.len() == 1 && rq.delivered == 0
    }

    /// Answers a request that [takes a range](Request::takes_range).
    ///
    /// # Panics
    /// If it does not, or the range has another length.
    pub fn deliver_range(&mut self, range: FileRange) {
        assert!(self.takes_range() && range.len() == self.len(), "a range that was not asked for");
        let rq = self.rq_mut();
        rq.delivered = rq.len;
        if let Some(bio) = rq.bios.front_mut() {
            bio.range = Some(range);
        }
    }

    /// What is left of the range that a write has in place of memory, if it has one.
    #[must_use]
    pub fn file_range(&self) -> Option<FileRange> {
        let rq = self.rq();
        let bio = rq.bios.front().filter(|_| rq.op == Op::Write)?;
        let range = bio.range.as_ref()?;
        Some(range.after(range.len() - bio.len()))
    }

    /// Bytes that are left of the shortest of its bios.
    #[must_use]
    pub fn least_bio_len(&self) -> u64 {
        self.rq().bios.iter().map(|bio| bio.len()).min().unwrap_or(0)
    }

    /// Answers a request that [takes pages](Request::takes_pages), and of which nothing was delivered, as `take` gives
    /// them: for each of its bios, by its offset and length in bytes. If there are none for one of them nothing is
    /// delivered, and it says `false`.
    ///
    /// # Panics
    /// If pages have another length than was asked for.
    #[must_use]
    pub fn deliver_pages(&mut self, mut take: impl FnMut(u64, u64) -> Option<Pages>) -> bool {
        let rq = self.rq_mut();
        let is_wanted = rq.op == Op::Read && rq.flags.contains(Flags::PAGES | Flags::SUPPLY);
        if !is_wanted || rq.delivered > 0 {
            return false;
        }
        let mut at = rq.sector.bytes();
        for bio in &mut rq.bios {
            bio.pages = take(at, bio.len());
            let Some(pages) = &bio.pages else {
                rq.bios.iter_mut().for_each(|bio| bio.pages = None);
                return false;
            };
            assert!(pages.len() as u64 == bio.len(), "pages that were not asked for");
            at += bio.len();
        }
        rq.delivered = rq.len;
        true
    }

    /// The next bytes of a read's answer, in order from its start: a bio that has memory gets a copy, one that
    /// has not gets the segment itself.
    ///
    /// # Panics
    /// If it is more than was asked for.
    pub fn deliver(&mut self, segment: Segment) {
        let rq = self.rq_mut();
        let mut at = rq.delivered;
        rq.delivered += segment.len() as u64;
        assert!(rq.op == Op::Read && rq.delivered <= rq.len, "delivered more than was asked for");
        if let [only] = rq.bios.make_contiguous()
            && only.wants_supply()
        {
            only.data.push(segment);
            return;
        }
        let mut rest = Some(segment);
        for bio in &mut rq.bios {
            let Some(segment) = rest.take() else { return };
            if at >= bio.len() {
                at -= bio.len();
                rest = Some(segment);
                continue;
            }
            let here = usize::try_from(bio.len() - at).unwrap_or(usize::MAX).min(segment.len());
            if here < segment.len() {
                rest = Some(segment.slice(here, segment.len() - here));
            }
            let part = segment.into_slice(0, here);
            if bio.wants_supply() {
                bio.data.push(part);
            } else {
                let mut target = bio.clone_rest();
                target.advance(at);
                copy_segments(&target.segments().collect::<Vec<_>>(), &[part]);
            }
            at = 0;
        }
    }

    /// The answer to a [`Op::BlockStatus`], to add to, from the start of the range.
    pub fn push_extent(&mut self, extent: Extent) {
        if let Some(bio) = self.rq_mut().bios.front_mut() {
            extent.push(&mut bio.extents);
        }
    }

    /// How it went so far, for [`Driver::complete`].
    #[must_use]
    pub fn status(&self) -> Status {
        self.rq().status
    }

    /// The driver's hardware is through with it: [`Driver::complete`] is called for it.
    pub fn complete(mut self, status: Status) {
        self.rq_mut().status = status;
        if let Some(hctx) = self.rq().hctx.clone() {
            hctx.shared.driver.complete(self);
        }
    }

    /// The first `bytes` of it are done: bios that are done with them end. Gives the rest back, if there is
    /// any.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn update(mut self, status: Status, bytes: u64) -> Option<Self> {
        let rq = self.rq_mut();
        assert!(bytes <= rq.len, "more was done than was asked for");
        if bytes == rq.len {
            self.end(status);
            return None;
        }
        let mut left = bytes;
        while let Some(bio) = rq.bios.front_mut() {
            let here = left.min(bio.len());
            if here < bio.len() {
                if here > 0 && bio.status.is_ok() {
                    // However the rest of it ends; the bios after it are not concerned.
                    bio.status = status;
                }
                bio.advance(here);
                break;
            }
            left -= here;
            if let Some(bio) = rq.bios.pop_front() {
                bio.end(status);
            }
        }
        rq.len -= bytes;
        rq.delivered = rq.delivered.saturating_sub(bytes);
        rq.sector = rq.sector + Sector::from_bytes_floor(bytes);
        rq.segments = rq.bios.iter().map(|bio| bio.segment_count()).sum();
        Some(self)
    }

    /// Ends it: what is left of its bios ends with `status`. A read that was not supplied with all that it
    /// asked for ends with [`Status::Io`] instead of [`Status::Ok`]: nobody is given less than he believes.
    pub fn end(self, status: Status) {
        let (mut rq, mut status) = self.into_ended(status);
        if let Some(mark) = rq.mark.take() {
            match Hctx::after_driver(rq, mark, status) {
                Some(ended) => (rq, status) = ended,
                // It goes to the driver once more.
                None => return,
            }
        }
        if let Some(hctx) = rq.hctx.take() {
            hctx.ended(rq, status);
        }
    }

    /// What is left of it, and how it ends.
    pub(crate) fn into_ended(self, status: Status) -> (Box<Rq<D>>, Status) {
        let rq = self.into_inner();
        let status = if status.is_ok() && rq.is_short() { Status::Io } else { status };
        (rq, status)
    }

    /// Whether nothing is left to do for it but to end it.
    pub(crate) fn only_ends(&self) -> bool {
        self.rq().role == Role::Plain && self.rq().mark.is_none()
    }

    /// Gives it back to be issued again, before what waits. The driver may do so with a request that it took
    /// long ago.
    pub fn requeue(self) {
        let mut rq = self.into_inner();
        rq.rewind();
        if let Some(hctx) = rq.hctx.clone() {
            hctx.requeue(rq);
        }
    }
}

impl<D: Driver> Request<D> {
    /// Gives the rest of a long request back, to be issued again when others have had their turn: by whoever ticks
    /// the disk, if there is somebody ([`crate::Disk::set_alarm`]), so that the thread which it came from goes on.
    pub fn resume_later(self) {
        let mut rq = self.into_inner();
        rq.rewind();
        if let Some(hctx) = rq.hctx.clone() {
            hctx.resume_later(rq);
        }
    }
}

impl<D: Driver> Drop for Request<D> {
    fn drop(&mut self) {
        if let Some(rq) = self.0.take() {
            Self::new(rq).end(Status::Io);
        }
    }
}

impl<D: Driver> fmt::Display for Rq<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:?} sector {} len {} tag {:?} internal {}",
            self.op, self.flags, self.sector, self.len, self.tag, self.internal_tag
        )
    }
}

impl<D: Driver> fmt::Debug for Request<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.rq(), f)
    }
}
