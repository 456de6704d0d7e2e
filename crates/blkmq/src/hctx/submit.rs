//! The way in: a bio is checked, merged, or given a request (kernel: `submit_bio_noacct`, `blk_mq_submit_bio`).

use std::sync::Arc;

use blockyard_buf::{Segment, ZERO_RUN};

use super::{Hctx, State, Todo};
use crate::bio::{Bio, Chain, Extent};
use crate::bytes::{Held, Unaligned};
use crate::driver::Driver;
use crate::flush::Steps;
use crate::limits::{Features, Limits, NO_BOUNDARY, PAGE_SIZE};
use crate::merge;
use crate::op::{Flags, Op, Status};
use crate::request::{Role, Rq};
use crate::sched::Candidate;

/// How many requests at the end of a software queue are looked at for a merge (kernel: `blk_bio_list_merge`,
/// 8).
const MERGE_LOOKBACK: usize = 8;

/// What becomes of a bio that was checked.
enum Verdict {
    /// It goes to the driver.
    Go,
    /// There is nothing to do for it.
    Done,
    /// It is on bytes that are no whole blocks.
    Unaligned,
}

impl<D: Driver> Hctx<D> {
    /// Takes bios of the CPU `ctx`, in order: they may be merged with each other, and are issued together.
    pub(crate) fn submit(self: &Arc<Self>, ctx: usize, bios: impl Iterator<Item = Box<Bio>>) {
        let now_ns = self.shared.clock.now_ns();
        let mut todo = Todo::default();
        {
            let mut st = self.lock();
            for bio in bios {
                self.enter(&mut st, ctx, bio, now_ns, &mut todo);
            }
        }
        self.settle(&mut todo);
    }

    fn enter(
        self: &Arc<Self>,
        st: &mut State<D>,
        ctx: usize,
        bio: Box<Bio>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        if st.dying {
            return todo.ended_bios.push((bio, Status::Offline));
        }
        let (nowait, inside) = (bio.flags.contains(Flags::NOWAIT), bio.inside);
        // A reserved tag is for what must not stand behind the others.
        let queue_up = !st.waiting.is_empty() && !bio.flags.contains(Flags::RESERVED);
        let must_wait = if inside { !st.inside.is_empty() } else { st.frozen > 0 || queue_up };
        let left = if must_wait { Some(bio) } else { self.admit(st, ctx, bio, now_ns, todo) };
        match left {
            Some(bio) if nowait => {
                todo.ended_bios.push((bio, Status::Again));
                self.leave_tags_if_idle(st);
            }
            Some(bio) if inside => st.inside.push_back((ctx, bio)),
            Some(bio) => st.waiting.push_back((ctx, bio)),
            None => {}
        }
    }

    /// Lets bios in that wait, in order, as far as there are requests and tags.
    pub(super) fn let_in(self: &Arc<Self>, st: &mut State<D>, now_ns: u64, todo: &mut Todo<D>) {
        while let Some((ctx, bio)) = st.inside.pop_front() {
            if let Some(bio) = self.admit(st, ctx, bio, now_ns, todo) {
                st.inside.push_front((ctx, bio));
                return;
            }
        }
        while st.frozen == 0
            && let Some((ctx, bio)) = st.waiting.pop_front()
        {
            if let Some(bio) = self.admit(st, ctx, bio, now_ns, todo) {
                st.waiting.push_front((ctx, bio));
                return;
            }
        }
    }

    /// Checks a bio against the disk as it is now, and places it. Gives back what has to wait.
    fn admit(
        self: &Arc<Self>,
        st: &mut State<D>,
        ctx: usize,
        mut bio: Box<Bio>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> Option<Box<Bio>> {
        match self.check(st, &bio) {
            Ok(Verdict::Go) => {
                let bio = self.keep_from_locks(st, ctx, bio, todo)?;
                return self.place(st, ctx, bio, now_ns, todo);
            }
            Ok(Verdict::Done) => {
                if bio.op == Op::BlockStatus && !bio.is_empty() {
                    bio.extents.push(Extent::data(bio.len()));
                }
                todo.ended_bios.push((bio, Status::Ok));
            }
            Ok(Verdict::Unaligned) => {
                self.shared.locks.begin();
                let block = st.limits.logical_block_size;
                todo.unaligned.push(Unaligned { ctx, bio, block });
            }
            Err(status) => todo.ended_bios.push((bio, status)),
        }
        None
    }

    /// Keeps a write back while blocks that it changes are locked.
    fn keep_from_locks(
        self: &Arc<Self>,
        st: &State<D>,
        ctx: usize,
        bio: Box<Bio>,
        todo: &mut Todo<D>,
    ) -> Option<Box<Bio>> {
        if st.writes.is_none() || bio.inside || !bio.op.is_write() || self.shared.locks.is_empty() {
            return Some(bio);
        }
        let (start, end) = (bio.sector(), bio.end_sector());
        if bio.flags.contains(Flags::NOWAIT) {
            if self.shared.locks.is_locked(start, end) {
                todo.ended_bios.push((bio, Status::Again));
                return None;
            }
            return Some(bio);
        }
        let held = Held { hctx: Arc::clone(self), ctx, bio };
        self.shared.locks.hold(start, end, held).err().map(|held| held.bio)
    }

    /// Whether the disk can do what the bio asks, as it is now. Asked again whenever the bio had to wait.
    fn check(&self, st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
        let features = st.limits.features;
        if bio.op == Op::Flush || bio.flags.intersects(Flags::FUA | Flags::PREFLUSH) {
            can_be_durable(bio, features)?;
            if bio.op == Op::Flush {
                let cached = features.contains(Features::WRITE_CACHE);
                return Ok(if cached { Verdict::Go } else { Verdict::Done });
            }
        }
        let end = bio
            .sector()
            .checked_add(crate::units::Sector(bio.len().div_ceil(crate::units::SECTOR_SIZE)));
        if end.is_none_or(|end| end > self.shared.capacity()) {
            return Err(Status::OutOfRange);
        }
        let block = st.limits.logical_block_size;
        if !block.divides(bio.len() | u64::from(bio.skew))
            || !bio.sector().0.is_multiple_of(block.sectors())
        {
            return self.check_bytes(st, bio);
        }
        if bio.op.is_write() && self.shared.is_read_only() {
            return Err(Status::NotPermitted);
        }
        if bio.is_empty() {
            let flushes =
                bio.flags.contains(Flags::PREFLUSH) && features.contains(Features::WRITE_CACHE);
            return Ok(if flushes { Verdict::Go } else { Verdict::Done });
        }
        can_do(st, bio)
    }

    /// As [`Hctx::check`], for a bio that is unaligned.
    #[cold]
    fn check_bytes(&self, st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
        if !bio.by_bytes {
            return Err(Status::Invalid);
        }
        if bio.offset().checked_add(bio.len()).is_none_or(|end| end > self.shared.size_bytes()) {
            return Err(Status::OutOfRange);
        }
        if bio.op.is_write() && self.shared.is_read_only() {
            return Err(Status::NotPermitted);
        }
        if bio.is_empty() {
            return Ok(Verdict::Done);
        }
        match bio.op {
            // Less than all of it would be left.
            Op::SecureErase => Err(Status::Invalid),
            // It waits for a read, and its parts might end differently.
            Op::Write | Op::WriteZeroes if bio.flags.contains(Flags::NOWAIT) => Err(Status::Again),
            _ => match can_do(st, bio)? {
                Verdict::Go => Ok(Verdict::Unaligned),
                done => Ok(done),
            },
        }
    }

    /// Merges the bio with a request that waits, or gives it requests of its own: as many as the limits make of
    /// it, one after the other as they are to be had. Gives back what found none.
    fn place(
        self: &Arc<Self>,
        st: &mut State<D>,
        ctx: usize,
        mut bio: Box<Bio>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> Option<Box<Bio>> {
        let flags = flags_of(&bio, st.limits.features);
        if merge::allowed(&bio, flags, &st.limits) {
            bio = self.try_merge(st, ctx, bio, flags, todo)?;
        }
        loop {
            // Without a request there is no use in cutting.
            if st.free.is_empty() {
                return Some(bio);
            }
            let reserved = bio.flags.contains(Flags::RESERVED);
            let tag = if st.elevator { None } else { self.get_tag(st, reserved) };
            if tag.is_none() && !st.elevator {
                return Some(bio);
            }
            let as_zeroes = bio.op == Op::WriteZeroes && st.limits.max_write_zeroes_sectors == 0;
            let cut =
                if as_zeroes { Some(zeroes_len(&st.limits, &bio)) } else { split_len(st, &bio) };
            let Some(cut) = cut else {
                self.begin(st, ctx, bio, tag, now_ns, todo);
                return None;
            };
            if bio.flags.contains(Flags::NOWAIT) && cut < bio.len() {
                // Its pieces might end differently.
                if let Some(tag) = tag {
                    self.put_tag(st, tag);
                }
                return Some(bio);
            }
            bio = if bio.is_chained() { bio } else { Chain::wrap(bio) };
            let whole = cut >= bio.len();
            let (mut piece, rest) =
                if whole { (bio, None) } else { (Chain::split(&mut bio, cut), Some(bio)) };
            if as_zeroes {
                write_zeroes(&mut piece, zero_run(&st.limits));
            }
            self.begin(st, ctx, piece, tag, now_ns, todo);
            bio = rest?;
        }
    }

    fn begin(
        self: &Arc<Self>,
        st: &mut State<D>,
        ctx: usize,
        bio: Box<Bio>,
        tag: Option<u32>,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) {
        let Some(mut rq) = st.free.pop() else { unreachable!("looked at by the caller") };
        let flags = flags_of(&bio, st.limits.features);
        rq.begin_bio(bio, flags, now_ns);
        rq.hctx = Some(Arc::clone(self));
        rq.ctx = ctx;
        rq.tag = tag;
        st.allocated += 1;
        if let Some(writes) = &mut st.writes {
            let end = if rq.op.is_write() { rq.end_sector() } else { rq.sector };
            writes.begin(rq.internal_tag, rq.sector, end);
        }
        if rq.op != Op::Flush {
            st.stats.start(rq.op);
        }
        self.shared.busy.update(now_ns, || st.allocated > 1);
        if let Some(part) = rq.bios.front().and_then(|bio| bio.part.as_ref()) {
            part.started(rq.op, now_ns);
        }
        let steps = if rq.flags.intersects(Flags::FUA | Flags::PREFLUSH) || rq.op == Op::Flush {
            Steps::of(rq.op, rq.flags, st.limits.features.contains(Features::FUA))
        } else {
            Steps::DATA
        };
        if !steps.is_plain() {
            rq.steps = steps;
            rq.role = Role::Sequenced;
            let mut next = Vec::new();
            st.flush.start(rq, now_ns, &mut next);
            self.follow(st, next, now_ns, todo);
        } else if st.elevator {
            self.shared.elevator.insert(rq, now_ns);
            todo.run = true;
        } else if st.quiesced == 0 && st.staged == 0 && st.dispatch.is_empty() && !todo.run {
            self.start(st, &mut rq, now_ns);
            todo.issue.push(rq);
        } else {
            Self::stage(st, rq);
            todo.run = true;
        }
    }

    /// Looks for a request that the bio continues, among those that were not issued yet: of the same batch, of
    /// the scheduler, of the software queue.
    fn try_merge(
        &self,
        st: &mut State<D>,
        ctx: usize,
        bio: Box<Bio>,
        flags: Flags,
        todo: &mut Todo<D>,
    ) -> Option<Box<Bio>> {
        let op = bio.op;
        let candidate =
            Candidate { op, start: bio.sector(), end: bio.end_sector(), prio: bio.prio };
        let State { limits, ctxs, elevator, stats, writes, .. } = st;
        let mut bio = Some(bio);
        let mut grown = false;
        let mut tried = |rq: &mut Box<Rq<D>>| {
            bio = bio.take().and_then(|bio| merge::attempt(rq, bio, flags, limits));
            if bio.is_none()
                && let Some(writes) = writes
            {
                writes.grow(rq.internal_tag, rq.sector, rq.end_sector());
            }
            bio.is_none()
        };
        let merged = if todo.issue.last_mut().is_some_and(&mut tried) {
            grown = true;
            true
        } else if *elevator {
            self.shared.elevator.try_merge(candidate, &mut |rq, _| tried(rq))
        } else {
            let queue = ctx % ctxs.len();
            ctxs[queue].iter_mut().rev().take(MERGE_LOOKBACK).any(tried)
        };
        if merged {
            stats.merge(op);
        }
        if grown && let Some(rq) = todo.issue.last() {
            Self::grown(st, rq);
        }
        bio
    }
}

/// Whether the disk can make durable what is to be.
fn can_be_durable(bio: &Bio, features: Features) -> Result<(), Status> {
    let flushes = bio.op == Op::Flush || bio.flags.contains(Flags::PREFLUSH);
    let fua = bio.flags.contains(Flags::FUA) && !features.contains(Features::FUA);
    let cannot = features.contains(Features::NO_FLUSH) && (flushes || fua);
    if cannot { Err(Status::NotSupported) } else { Ok(()) }
}

/// Whether the disk has the operation, on a range that is not empty.
fn can_do<D: Driver>(st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
    let features = st.limits.features;
    match bio.op {
        Op::Discard if st.limits.max_discard_sectors == 0 => Err(Status::NotSupported),
        Op::SecureErase if st.limits.max_secure_erase_sectors == 0 => Err(Status::NotSupported),
        Op::WriteZeroes
            if st.limits.max_write_zeroes_sectors == 0 && bio.flags.contains(Flags::NOFALLBACK) =>
        {
            Err(Status::NotSupported)
        }
        Op::BlockStatus if !features.contains(Features::BLOCK_STATUS) => Ok(Verdict::Done),
        Op::Prefetch if !features.contains(Features::PREFETCH) => Ok(Verdict::Done),
        Op::Write if bio.data.is_empty() => Err(Status::Invalid),
        // Its memory is either its own or the driver's.
        Op::Read if bio.data.is_empty() != bio.wants_supply() => Err(Status::Invalid),
        _ => Ok(Verdict::Go),
    }
}

/// The flags that mean something on the disk: where nothing is lost, nothing has to be flushed.
fn flags_of(bio: &Bio, features: Features) -> Flags {
    if features.intersects(Features::WRITE_CACHE | Features::NO_FLUSH) {
        bio.flags
    } else {
        bio.flags - (Flags::FUA | Flags::PREFLUSH)
    }
}

/// Where a bio has to be cut to be a request, if it has to.
fn split_len<D: Driver>(st: &State<D>, bio: &Bio) -> Option<u64> {
    if bio.op.has_data() && !bio.wants_supply() {
        st.limits.split_at(bio.op, bio.sector(), bio.len(), bio.spans())
    } else {
        st.limits.split_at(bio.op, bio.sector(), bio.len(), [])
    }
}

/// The longest run of zeroes that is one segment to the driver, wherever it may begin.
fn zero_run(limits: &Limits) -> usize {
    if limits.seg_boundary_mask == NO_BOUNDARY && limits.virt_boundary_mask == 0 {
        ZERO_RUN.min(limits.max_segment_size as usize)
    } else {
        PAGE_SIZE as usize
    }
}

/// How much of a write-zeroes one write of zeroes does on a disk that has no such operation.
fn zeroes_len(limits: &Limits, bio: &Bio) -> u64 {
    let most = zero_run(limits) as u64 * u64::from(limits.max_segments);
    let block = u64::from(limits.logical_block_size.bytes());
    let len = limits.max_bytes(Op::Write, bio.sector()).min(most) / block * block;
    len.clamp(block, bio.len().max(block))
}

fn write_zeroes(bio: &mut Bio, run: usize) {
    bio.op = Op::Write;
    bio.flags -= Flags::NOUNMAP | Flags::NOFALLBACK;
    let mut left = usize::try_from(bio.len()).unwrap_or(usize::MAX);
    while left > 0 {
        let now = left.min(run);
        bio.data.push(Segment::zero_run(now));
        left -= now;
    }
}
