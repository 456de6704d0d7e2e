//! When a bio may join a request (kernel: block/blk-merge.c, `blk_rq_merge_ok`, `ll_back_merge_fn`).

use std::sync::Arc;

use crate::bio::Bio;
use crate::driver::Driver;
use crate::limits::{Features, Limits, NO_BOUNDARY};
use crate::op::{Flags, Op};
use crate::request::{Role, Rq};

/// A bio or a request with one of these stays alone (kernel: `REQ_NOMERGE_FLAGS`).
const ALONE: Flags = Flags::NOMERGE.union(Flags::FUA).union(Flags::PREFLUSH);

/// Whether it is worth looking for a request that the bio may join.
pub(crate) fn allowed(bio: &Bio, flags: Flags, limits: &Limits) -> bool {
    matches!(bio.op, Op::Read | Op::Write | Op::Discard)
        && !flags.intersects(ALONE)
        && !limits.features.contains(Features::NOMERGES)
}

/// Adds the bio, done with `flags`, to the request, at its end or its front, or gives it back.
pub(crate) fn attempt<D: Driver>(
    rq: &mut Rq<D>,
    bio: Box<Bio>,
    flags: Flags,
    limits: &Limits,
) -> Option<Box<Bio>> {
    if rq.op != bio.op
        || rq.role != Role::Plain
        || rq.begun
        || rq.flags != flags
        || rq.prio != bio.prio
        || rq.hint != bio.hint
    {
        return Some(bio);
    }
    let back = rq.end_sector() == bio.sector();
    let front = bio.end_sector() == rq.sector;
    if !back && !front {
        return Some(bio);
    }
    let start = if back { rq.sector } else { bio.sector() };
    let len = rq.len + bio.len();
    let segments = rq.segments + bio.segment_count();
    if len > limits.max_bytes(rq.op, start)
        || too_many_segments(rq, &bio, len, segments, limits)
        || !same_part(rq, &bio)
    {
        return Some(bio);
    }
    if limits.virt_boundary_mask != 0 && gap(rq, &bio, back, limits) {
        return Some(bio);
    }
    rq.sector = start;
    rq.len = len;
    rq.total_len += bio.len();
    rq.segments = segments;
    if back {
        rq.bios.push_back(bio);
    } else {
        rq.bios.push_front(bio);
    }
    None
}

/// Whether the driver would have to make more segments of both than it can: some of them may be several to it.
fn too_many_segments<D: Driver>(
    rq: &Rq<D>,
    bio: &Bio,
    len: u64,
    segments: usize,
    limits: &Limits,
) -> bool {
    let most = usize::from(limits.max_segments);
    let whole =
        limits.seg_boundary_mask == NO_BOUNDARY && len <= u64::from(limits.max_segment_size);
    segments > most
        || !whole
            && limits.count_segments(rq.bios.iter().flat_map(|bio| bio.spans()).chain(bio.spans()))
                > most
}

fn same_part<D: Driver>(rq: &Rq<D>, bio: &Bio) -> bool {
    match (rq.bios.front().and_then(|first| first.part.as_ref()), &bio.part) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// Whether the memory of the two does not join as the driver needs it.
fn gap<D: Driver>(rq: &Rq<D>, bio: &Bio, back: bool, limits: &Limits) -> bool {
    let (first, second) = match (back, rq.bios.back(), rq.bios.front()) {
        (true, Some(last), _) => (&**last, bio),
        (false, _, Some(first)) => (bio, &**first),
        _ => return false,
    };
    let end = first.segments().last().map_or(0, |s| s.as_ptr().addr() + s.len());
    let start = second.segments().next().map_or(0, |s| s.as_ptr().addr());
    limits.gap_to_previous(end, start)
}
