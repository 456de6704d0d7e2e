//! The way in: a bio is checked, merged, or given a request (kernel: `submit_bio_noacct`, `blk_mq_submit_bio`).

use std::sync::Arc;

use blockyard_buf::{Segment, ZERO_RUN};

use super::check::{Verdict, flags_of};
use super::waiting::Arrival;
use super::{Hctx, State, Todo};
use crate::bio::{Bio, Chain, Extent};
use crate::bytes::Held;
use crate::driver::Driver;
use crate::flush::Steps;
use crate::limits::{Features, Limits, NO_BOUNDARY, PAGE_SIZE};
use crate::merge;
use crate::op::{Flags, Op, Status};
use crate::request::{Role, Rq};
use crate::reservation::Registrant;
use crate::sched::Candidate;

/// How many requests at the end of a software queue are looked at for a merge (kernel: `blk_bio_list_merge`,
/// 8).
const MERGE_LOOKBACK: usize = 8;

impl<D: Driver> Hctx<D> {
    /// Takes bios of the CPU `ctx`, in order: they may be merged with each other, and are issued together.
    pub(crate) fn submit(
        self: &Arc<Self>,
        ctx: usize,
        from: Registrant,
        bios: impl Iterator<Item = Box<Bio>>,
    ) {
        let now_ns = self.shared.clock.now_ns();
        let mut todo = Todo::default();
        {
            let mut st = self.lock();
            for mut bio in bios {
                if bio.came_ns == 0 {
                    bio.came_ns = now_ns.max(1);
                }
                self.enter(&mut st, Arrival { ctx, from, bio }, now_ns, &mut todo);
            }
        }
        self.settle(&mut todo);
    }

    /// Checks a bio against the disk as it is now, and places it. Gives back what has to wait.
    pub(super) fn admit(
        self: &Arc<Self>,
        st: &mut State<D>,
        arrival: Arrival,
        now_ns: u64,
        todo: &mut Todo<D>,
    ) -> Option<Arrival> {
        match self.check(st, arrival.from, &arrival.bio) {
            Ok(Verdict::Go) => {
                let Arrival { ctx, from, bio } = self.keep_from_locks(st, arrival, todo)?;
                let bio = self.place(st, ctx, bio, now_ns, todo)?;
                return Some(Arrival { ctx, from, bio });
            }
            Ok(Verdict::Done) => {
                let mut bio = arrival.bio;
                if bio.op == Op::BlockStatus && !bio.is_empty() {
                    bio.extents.push(Extent::data(bio.len()));
                }
                todo.ended_bios.push((bio, Status::Ok));
            }
            Ok(Verdict::Unaligned) => {
                self.shared.locks.begin();
                todo.unaligned.push((arrival, st.limits.logical_block_size));
            }
            Err(status) => todo.ended_bios.push((arrival.bio, status)),
        }
        None
    }

    /// Keeps a write back while blocks that it changes are locked.
    fn keep_from_locks(
        self: &Arc<Self>,
        st: &State<D>,
        arrival: Arrival,
        todo: &mut Todo<D>,
    ) -> Option<Arrival> {
        let bio = &arrival.bio;
        if st.writes.is_none() || bio.inside || !bio.op.is_write() || self.shared.locks.is_empty() {
            return Some(arrival);
        }
        let (start, end) = (bio.sector(), bio.end_sector());
        if bio.flags.contains(Flags::NOWAIT) {
            if self.shared.locks.is_locked(start, end) {
                todo.ended_bios.push((arrival.bio, Status::Again));
                return None;
            }
            return Some(arrival);
        }
        let held = Held { hctx: Arc::clone(self), arrival };
        self.shared.locks.hold(start, end, held).err().map(|held| held.arrival)
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
        let mut pieces = 0;
        loop {
            // Without a request there is no use in cutting.
            if st.free.is_empty() || (st.is_limited(&bio) && st.allocated >= st.async_depth) {
                return Some(bio);
            }
            let as_zeroes = bio.op == Op::WriteZeroes && st.limits.max_write_zeroes_sectors == 0;
            let cut =
                if as_zeroes { Some(zeroes_len(&st.limits, &bio)) } else { split_len(st, &bio) };
            if cut.is_some() || bio.is_piece() {
                if bio.is_piece() && bio.is_abandoned() {
                    // Nobody hears how it ends.
                    todo.ended_bios.push((bio, Status::Offline));
                    return None;
                }
                // The pieces of one that may not wait might end differently.
                let nowait =
                    bio.flags.contains(Flags::NOWAIT) && cut.is_some_and(|cut| cut < bio.len());
                if nowait || !bio.has_room() || (pieces > 0 && !st.waiting.is_empty()) {
                    return Some(bio);
                }
            }
            let reserved = bio.flags.contains(Flags::RESERVED);
            let scheduled = st.elevator && !reserved;
            let tag = if scheduled { None } else { self.get_tag(st, reserved) };
            if tag.is_none() && !scheduled {
                return Some(bio);
            }
            let Some(cut) = cut else {
                bio.count_piece();
                self.begin(st, ctx, bio, tag, now_ns, todo);
                return None;
            };
            bio = if bio.is_piece() { bio } else { Chain::wrap(bio) };
            let whole = cut >= bio.len();
            let (mut piece, rest) =
                if whole { (bio, None) } else { (Chain::split(&mut bio, cut), Some(bio)) };
            if as_zeroes {
                write_zeroes(&mut piece, zero_run(&st.limits));
            }
            piece.count_piece();
            pieces += 1;
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
        st.came_ns[rq.internal_tag as usize] = bio.came_ns;
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
        self.shared.busy.update(now_ns, || st.allocated > 1 || self.others_are_busy());
        if let Some(part) = rq.bios.front().and_then(|bio| bio.part.as_ref()) {
            part.started(self.index, rq.op, now_ns);
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
        } else if rq.tag.is_none() {
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
    /// the scheduler, of the software queue; but never one of another hardware queue.
    fn try_merge(
        &self,
        st: &mut State<D>,
        ctx: usize,
        bio: Box<Bio>,
        flags: Flags,
        todo: &mut Todo<D>,
    ) -> Option<Box<Bio>> {
        let (op, part) = (bio.op, bio.part.clone());
        let candidate =
            Candidate { op, start: bio.sector(), end: bio.end_sector(), prio: bio.prio };
        let State { limits, ctxs, elevator, stats, writes, came_ns, .. } = st;
        let bio_came_ns = bio.came_ns;
        let mut bio = Some(bio);
        let mut grown = false;
        let mut tried = |rq: &mut Box<Rq<D>>| {
            bio = bio.take().and_then(|bio| merge::attempt(rq, bio, flags, limits));
            if bio.is_some() {
                return false;
            }
            debug_assert!(rq.hctx.as_ref().is_some_and(|hctx| hctx.index == self.index));
            // What has waited may be older than what it joins.
            let came_ns = &mut came_ns[rq.internal_tag as usize];
            *came_ns = bio_came_ns.min(*came_ns);
            if let Some(writes) = writes {
                writes.grow(rq.internal_tag, rq.sector, rq.end_sector());
            }
            true
        };
        let merged = if todo.issue.last_mut().is_some_and(&mut tried) {
            grown = true;
            true
        } else if *elevator {
            self.shared.elevator.try_merge(self.index, candidate, &mut |rq, _| tried(rq))
        } else {
            let queue = ctx % ctxs.len();
            ctxs[queue].iter_mut().rev().take(MERGE_LOOKBACK).any(tried)
        };
        if merged {
            stats.merge(op);
            if let Some(part) = part {
                part.merged(self.index, op);
            }
        }
        if grown && let Some(rq) = todo.issue.last() {
            Self::grown(st, rq);
        }
        bio
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
