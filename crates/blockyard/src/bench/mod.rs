//! A load generator: closed loops of requests on a disk, and what they cost.

mod local;
mod pattern;
mod rados;
mod report;

use std::time::{Duration, Instant};

pub use local::run;
pub use pattern::Mix;
pub use rados::{ObjectLoad, run_objects};
pub use report::Report;

use crate::error::{Error, Result};

/// The largest request.
pub const MAX_BLOCK: u64 = 32 << 20;

/// What to do, checked as far as it does not depend on the disk.
#[derive(Clone, Debug)]
pub struct Load {
    /// Reads and writes.
    pub mix: Mix,
    /// Anywhere, or one block after the other.
    pub random: bool,
    /// Bytes of a request.
    pub block: u32,
    /// Requests at a time, in each queue.
    pub depth: usize,
    /// Queue threads or connections.
    pub queues: usize,
    /// When to stop.
    pub stop: Stop,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// How much to use, in bytes; all of the rest without.
    pub size: Option<u64>,
    /// The same seed makes the same requests.
    pub seed: u64,
}

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After so long.
    Time(Duration),
    /// After so many requests.
    Count(u64),
}

impl Load {
    /// The blocks that are used on a disk of `size` bytes: the first byte, and how many blocks.
    fn range(&self, size: u64) -> Result<(u64, u64)> {
        let block = u64::from(self.block);
        let rest = size.saturating_sub(self.offset);
        let used = self.size.unwrap_or(rest);
        if used > rest {
            let what =
                format!("{used} bytes at offset {} exceed the disk of {size} bytes", self.offset);
            return Err(Error::usage(what).help("make --size or --offset smaller"));
        }
        if used < block {
            let what = format!("--bs {block} is larger than the tested range of {used} bytes");
            return Err(Error::usage(what).help("make --bs smaller"));
        }
        Ok((self.offset, used / block))
    }

    /// Blocks and offsets are whole blocks of the disk.
    fn check_alignment(&self, minimum: u32) -> Result<()> {
        let aligned = |bytes: u64| bytes.is_multiple_of(minimum.into());
        if aligned(self.block.into()) && aligned(self.offset) {
            return Ok(());
        }
        Err(Error::usage(format!(
            "--bs or --offset is not a multiple of the block size of the disk, {minimum}"
        )))
    }

    /// How many requests the `queue`-th queue makes, and until when.
    fn quota(&self, queue: usize, start: Instant) -> (u64, Option<Instant>) {
        match self.stop {
            Stop::Time(time) => (u64::MAX, start.checked_add(time)),
            Stop::Count(count) => {
                let queues = self.queues as u64;
                (count / queues + u64::from((queue as u64) < count % queues), None)
            }
        }
    }
}
