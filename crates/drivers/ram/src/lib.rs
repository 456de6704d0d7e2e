//! A RAM disk: sparse, of any size, which gives memory back when it is told to discard.
//!
//! The disk is a tree of regions of 64 MiB, made when they are first written. What was never written, or was
//! discarded, is a hole: it is answered with the shared run of zeroes, and no page is touched for it. A read
//! that leaves the memory to the driver gets the disk's own pages, uncopied.
#![forbid(unsafe_code)]

mod region;
mod tree;

use std::sync::Arc;

use blockyard_blkmq::{
    BlockDeviceOps, Busy, Disk, Driver, Extent, Features, Flags, HctxHandle, Limits, Op, Request,
    Result, Sector, Status,
};
use blockyard_buf::{Segment, Segments};

use crate::region::Run;
use crate::tree::Tree;

/// Extents in one answer to a block status query: what is past them has to be asked for again.
pub const MAX_EXTENTS: usize = 16384;

/// Bytes that are zeroed in one turn: whoever zeroes gigabytes takes many, and others have theirs between.
const ZEROED_A_TURN: u64 = 4 << 20;
/// Bytes of memory that are given back in one turn, the last region of it not counted. Each region counts for some, as
/// a look at it takes its time too.
const GIVEN_BACK_A_TURN: u64 = 32 << 20;

/// A request to zero takes two turns: then it gives its tag back, and what is left of a large operation stands in line
/// with others, or is not done if nobody waits for it any more.
const ZEROED_A_REQUEST: Sector = Sector::from_bytes_floor(2 * ZEROED_A_TURN);
/// One to discard takes as many regions as two turns can look at; more turns only where these are full.
const GIVEN_BACK_A_REQUEST: Sector =
    Sector::from_bytes_floor(2 * GIVEN_BACK_A_TURN / tree::LEAST_A_REGION * region::REGION_SIZE);

/// A RAM disk's bytes.
pub struct Ram {
    tree: Tree,
}

impl Ram {
    /// All of it a hole. Its size is the disk's to say, and to change.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { tree: Tree::default() })
    }

    /// What it can take: any read and write in one request, with no cache to flush.
    #[must_use]
    pub fn limits() -> Limits {
        Limits {
            max_hw_sectors: u32::MAX,
            max_user_sectors: Some(u32::MAX),
            max_segments: u16::MAX,
            max_segment_size: u32::MAX,
            max_hw_discard_sectors: sectors(GIVEN_BACK_A_REQUEST),
            max_write_zeroes_sectors: sectors(ZEROED_A_REQUEST),
            discard_granularity: 4096,
            features: Features::NOMERGES
                | Features::BLOCK_STATUS
                | Features::NOWAIT
                | Features::OWN_MEMORY,
            ..Limits::default()
        }
    }

    /// Bytes of memory that hold data.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.tree.allocated_bytes()
    }

    fn read(&self, rq: &mut Request<Self>) {
        let mut zeroes = Segments::new();
        self.tree.runs(rq.offset(), rq.len(), |run, len| match run {
            Run::Data(segment) => rq.deliver(segment),
            Run::Hole => {
                Segment::zeroes(&mut zeroes, len);
                zeroes.drain(..).for_each(|segment| rq.deliver(segment));
            }
        });
    }

    fn write(&self, rq: &Request<Self>) -> Status {
        let mut at = rq.offset();
        for segment in rq.segments() {
            if let Err(err) = self.tree.write(at, &segment) {
                return err.raw_os_error().map_or(Status::Resource, Status::from_errno);
            }
            at += segment.len() as u64;
        }
        Status::Ok
    }
}

impl Driver for Ram {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<()> {
        Ok(())
    }

    fn queue_rq(
        &self,
        _hctx: &mut (),
        mut rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        let status = match rq.op() {
            Op::Read => {
                self.read(&mut rq);
                Status::Ok
            }
            Op::Write => self.write(&rq),
            Op::WriteZeroes if rq.flags().contains(Flags::NOUNMAP) => {
                let now = rq.len().min(ZEROED_A_TURN);
                if self.tree.zero_in_place(rq.offset(), now).is_ok() {
                    done(rq, now);
                    return Ok(());
                }
                Status::Resource
            }
            Op::WriteZeroes | Op::Discard => {
                let now = self.tree.discard(rq.offset(), rq.len(), GIVEN_BACK_A_TURN);
                done(rq, now);
                return Ok(());
            }
            Op::BlockStatus => {
                let most = if rq.flags().contains(Flags::FIRST_EXTENT) { 1 } else { MAX_EXTENTS };
                for (data, len) in self.tree.extents(rq.offset(), rq.len(), most) {
                    rq.push_extent(if data { Extent::data(len) } else { Extent::hole(len) });
                }
                Status::Ok
            }
            Op::Flush | Op::Prefetch => Status::Ok,
            Op::SecureErase => Status::NotSupported,
        };
        rq.end(status);
        Ok(())
    }
}

fn sectors(of: Sector) -> u32 {
    u32::try_from(of.0).unwrap_or(u32::MAX)
}

/// The first `bytes` of a request are done. The rest has its turn later.
fn done(rq: Request<Ram>, bytes: u64) {
    if let Some(rest) = rq.update(Status::Ok, bytes) {
        rest.resume_later();
    }
}

impl BlockDeviceOps for Ram {
    fn prepare_resize(&self, disk: &Disk, to: u64) -> Result<()> {
        disk.whole_blocks(to).map(drop)
    }

    /// Nothing of what is past the end, before or after, comes back: not even what a write has left there that was
    /// under way while the disk shrank.
    fn resize(&self, disk: &Disk, to: u64) {
        let from = disk.capacity().bytes();
        let (first, last) = (from.min(to), from.max(to));
        self.tree.discard(first, last - first, u64::MAX);
    }

    fn swap_slot_free_notify(&self, _disk: &Disk, sector: Sector) {
        self.tree.discard(sector.bytes(), 4096, u64::MAX);
    }
}

#[cfg(test)]
mod tests;
