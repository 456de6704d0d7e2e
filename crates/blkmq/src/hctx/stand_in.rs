//! Requests that stand in for others, which are put aside until the driver has ended them: a part of a write, or a read
//! whose answer is changed.

use std::collections::VecDeque;

use blockyard_buf::{Mapping, Segment, Segments, copy_segments};

use crate::bio::Bio;
use crate::driver::Driver;
use crate::fault::{Act, Page, WriteCache};
use crate::limits::Limits;
use crate::op::{Flags, Op};
use crate::request::Rq;
use crate::units::Sector;

/// A request as it came, while another stands in for it.
pub(super) struct Aside {
    bios: VecDeque<Box<Bio>>,
    op: Op,
    flags: Flags,
    sector: Sector,
    len: u64,
    segments: usize,
}

impl Aside {
    pub(super) fn put<D: Driver>(rq: &mut Rq<D>) -> Self {
        let bios = std::mem::take(&mut rq.bios);
        let (op, flags, sector) = (rq.op, rq.flags, rq.sector);
        Self { bios, op, flags, sector, len: rq.len, segments: rq.segments }
    }

    pub(super) fn take_back<D: Driver>(self, rq: &mut Rq<D>) {
        (rq.bios, rq.op, rq.flags, rq.sector) = (self.bios, self.op, self.flags, self.sector);
        (rq.len, rq.segments, rq.delivered) = (self.len, self.segments, 0);
    }
}

/// Makes it a request for that bio; without one it is a flush.
pub(super) fn stand_in<D: Driver>(rq: &mut Rq<D>, bio: Option<Box<Bio>>) {
    rq.op = bio.as_ref().map_or(Op::Flush, |bio| bio.op);
    rq.flags &= Flags::SYNC | Flags::META | Flags::NOUNMAP;
    rq.sector = bio.as_ref().map_or(Sector::ZERO, |bio| bio.sector());
    rq.len = bio.as_ref().map_or(0, |bio| bio.len());
    rq.segments = bio.as_ref().map_or(0, |bio| bio.segment_count());
    rq.delivered = 0;
    rq.bios.clear();
    rq.bios.extend(bio);
}

/// Memory of its own for so many bytes, in segments that the driver takes.
pub(super) fn memory(len: usize, limits: &Limits) -> std::io::Result<Segments> {
    let mapping = Mapping::new(len)?;
    let most = limits.max_segment_size as usize;
    let mut segments = Segments::new();
    let mut at = 0;
    while at < len {
        let run = most.min(len - at);
        segments.push(mapping.segment(at, run));
        at += run;
    }
    Ok(segments)
}

pub(super) fn fill(memory: &[Segment], mut bytes: &[u8]) {
    for segment in memory {
        let (now, rest) = bytes.split_at(segment.len().min(bytes.len()));
        segment.slice(0, now.len()).copy_from(now);
        bytes = rest;
    }
}

/// The first bytes of the memory of a request.
pub(super) fn first_of<D: Driver>(rq: &Rq<D>, len: usize) -> Segments {
    let mut left = len;
    let segments = rq.bios.iter().flat_map(|bio| bio.segments());
    let cut = segments.map_while(|segment| {
        let run = segment.len().min(left);
        left -= run;
        (run > 0).then(|| segment.into_slice(0, run))
    });
    cut.collect()
}

/// Has the cache hold the first bytes of a write; says whether there was room.
pub(super) fn cache_write<D: Driver>(cache: &WriteCache, rq: &Rq<D>, len: usize) -> bool {
    if rq.op == Op::WriteZeroes {
        return cache.write(rq.sector, len, None);
    }
    let mut bytes = Vec::with_capacity(len);
    first_of(rq, len).iter().for_each(|segment| bytes.extend(segment.to_vec()));
    cache.write(rq.sector, len, Some(&bytes))
}

/// Answers a read with what was read, changed as the faults say.
pub(super) fn answer<D: Driver>(
    rq: &mut Rq<D>,
    memory: &[Segment],
    over: &[(u64, Page)],
    act: Act,
) {
    let mut bytes: Vec<u8> = memory.iter().flat_map(Segment::to_vec).collect();
    WriteCache::lay_over(over, rq.sector, &mut bytes);
    if let Act::Corrupt { drawn, start, end } = act
        && start < end
    {
        let at = start + (drawn >> 3) % (end - start) - rq.sector.bytes();
        if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1 << (drawn & 7);
        }
    }
    let answer = Segment::from_vec(bytes);
    let mut at = 0;
    for bio in &mut rq.bios {
        let len = usize::try_from(bio.len()).unwrap_or(usize::MAX).min(answer.len() - at);
        let part = answer.slice(at, len);
        at += len;
        if bio.wants_supply() {
            bio.data.push(part);
        } else {
            copy_segments(&bio.segments().collect::<Vec<_>>(), &[part]);
        }
    }
    rq.delivered = rq.len;
}
