//! A disk that keeps nothing: it reads as zeroes, and completes everything at once or after a given latency
//! (kernel: `null_blk`).
//!
//! It shows what the block layer and a front-end cost by themselves, and how they behave above storage that
//! takes its time.
#![forbid(unsafe_code)]

mod delay;

use std::io;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use blockyard_blkmq::badblocks::Check;
use blockyard_blkmq::{
    BlockDeviceOps, Busy, Disk, Driver, Error, ErrorKind, Extent, Features, HctxHandle, Limits, Op,
    QueueType, Request, Sector, Status,
};
use blockyard_buf::{Segment, Segments, ZERO_RUN};
use tokio::runtime::Handle;

use crate::delay::Delay;

/// What a null disk is made from.
#[derive(Clone, Copy, Debug)]
pub struct NullConfig {
    /// How large it pretends to be.
    pub capacity: Sector,
    /// How long it takes for a request; `None` for no time at all.
    pub latency: Option<Duration>,
}

/// The driver of null disks.
pub struct Null {
    config: NullConfig,
    runtimes: Vec<Handle>,
    bad_blocks_of: OnceLock<Weak<Disk>>,
}

impl Null {
    /// A driver as `config` says. Requests that take time end on the queue threads `runtimes`, hardware queue
    /// `i` on `i` modulo their number; without latency none is needed.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for latency without a queue thread.
    pub fn new(config: NullConfig, runtimes: &[Handle]) -> Result<Arc<Self>, Error> {
        if config.latency.is_some() && runtimes.is_empty() {
            let what = "a null disk with latency needs a queue thread to keep the time";
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let runtimes = runtimes.to_vec();
        Ok(Arc::new(Self { config, runtimes, bad_blocks_of: OnceLock::new() }))
    }

    /// What it can take: everything in one request, with no cache to flush.
    #[must_use]
    pub fn limits() -> Limits {
        Limits {
            max_hw_sectors: u32::MAX,
            max_user_sectors: Some(u32::MAX),
            max_segments: u16::MAX,
            max_segment_size: u32::MAX,
            max_hw_discard_sectors: u32::MAX,
            max_write_zeroes_sectors: u32::MAX,
            discard_granularity: 4096,
            features: Features::NOMERGES
                | Features::NOWAIT
                | Features::POLL
                | Features::BLOCK_STATUS
                | Features::PREFETCH
                | Features::OWN_MEMORY,
            ..Limits::default()
        }
    }

    /// How large its disks are.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.config.capacity
    }

    /// Reads and writes that touch the bad blocks of `disk` fail from now on, with [`Status::Medium`]. Once for
    /// a driver.
    pub fn fail_bad_blocks_of(&self, disk: &Arc<Disk>) {
        let _ = self.bad_blocks_of.set(Arc::downgrade(disk));
    }

    fn is_bad(&self, rq: &Request<Self>) -> bool {
        let Some(disk) = self.bad_blocks_of.get().and_then(Weak::upgrade) else { return false };
        let bad_blocks = disk.bad_blocks();
        rq.op().has_data()
            && bad_blocks.check(rq.sector(), Sector::from_bytes_floor(rq.len())) != Check::Good
    }

    /// Does nothing, as asked.
    fn answer(&self, mut rq: Request<Self>) {
        if self.bad_blocks_of.get().is_some() && self.is_bad(&rq) {
            return rq.end(Status::Medium);
        }
        match rq.op() {
            Op::Read => read(&mut rq),
            Op::BlockStatus => rq.push_extent(Extent::hole(rq.len())),
            Op::SecureErase => return rq.end(Status::NotSupported),
            Op::Write | Op::Flush | Op::Discard | Op::WriteZeroes | Op::Prefetch => {}
        }
        rq.end(Status::Ok);
    }
}

impl BlockDeviceOps for Null {
    fn prepare_resize(&self, disk: &Disk, to: u64) -> Result<(), Error> {
        disk.whole_blocks(to).map(drop)
    }
}

fn read(rq: &mut Request<Null>) {
    if !rq.wants_supply() {
        rq.segments().for_each(|segment| segment.fill_zero());
        return;
    }
    let len = usize::try_from(rq.len()).unwrap_or(usize::MAX);
    if len <= ZERO_RUN {
        rq.deliver(Segment::zero_run(len));
    } else {
        let mut zeroes = Segments::new();
        Segment::zeroes(&mut zeroes, len);
        zeroes.into_iter().for_each(|segment| rq.deliver(segment));
    }
}

impl Driver for Null {
    type Disk = ();
    type Hctx = Option<Delay>;
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), handle: HctxHandle<Self>) -> Result<Option<Delay>, Error> {
        let Some(latency) = self.config.latency else { return Ok(None) };
        if handle.kind() == QueueType::Poll {
            return Ok(Some(Delay::polled(latency)));
        }
        let runtime = &self.runtimes[handle.index() % self.runtimes.len()];
        let failed = |err: io::Error| {
            Error::new(ErrorKind::Resource, "a null disk cannot have a timer").caused_by(err)
        };
        Delay::timed(latency, handle, runtime).map(Some).map_err(failed)
    }

    fn queue_rq(
        &self,
        delay: &mut Option<Delay>,
        rq: Request<Self>,
        _last: bool,
    ) -> Result<(), Busy<Self>> {
        match delay {
            None => self.answer(rq),
            Some(delay) => delay.push(rq),
        }
        Ok(())
    }

    fn poll(&self, delay: &mut Option<Delay>) -> usize {
        delay.as_mut().map_or(0, Delay::end_due)
    }

    /// What was delayed comes back for its answer.
    fn complete(&self, rq: Request<Self>) {
        self.answer(rq);
    }
}

#[cfg(test)]
mod tests;
