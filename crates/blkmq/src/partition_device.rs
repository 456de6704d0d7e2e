//! A partition of a disk, as a device of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};

use crate::major::DevNum;
use crate::op::Op;
use crate::partition::PartitionInfo;
use crate::stats::{BusyClock, QueueStats};
use crate::units::Sector;

/// A range of a disk with a number.
pub struct Partition {
    pub(crate) info: PartitionInfo,
    pub(crate) dev: DevNum,
    gone: AtomicBool,
    /// Of each hardware queue, so that they share nothing.
    stats: Box<[CachePadded<Mutex<QueueStats>>]>,
    busy: BusyClock,
}

impl Partition {
    pub(crate) fn new(info: PartitionInfo, dev: DevNum, queues: usize) -> Self {
        Self {
            info,
            dev,
            gone: AtomicBool::new(false),
            stats: (0..queues.max(1)).map(|_| CachePadded::default()).collect(),
            busy: BusyClock::default(),
        }
    }

    /// What the partition table says of it.
    #[must_use]
    pub fn info(&self) -> &PartitionInfo {
        &self.info
    }

    /// Its device number.
    #[must_use]
    pub fn dev(&self) -> DevNum {
        self.dev
    }

    /// Its first sector on the disk.
    #[must_use]
    pub fn start(&self) -> Sector {
        self.info.start
    }

    /// Its length.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.info.len
    }

    /// Whether the partition was taken away from its disk; I/O to it fails then.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    pub(crate) fn remove(&self) {
        self.gone.store(true, Ordering::Release);
    }

    fn of_queue(&self, queue: usize) -> MutexGuard<'_, QueueStats> {
        self.stats[queue % self.stats.len()].lock()
    }

    pub(crate) fn started(&self, queue: usize, op: Op, now_ns: u64) {
        self.busy
            .update(now_ns, || self.stats.iter().any(|stats| stats.lock().in_flight() != [0, 0]));
        self.of_queue(queue).start(op);
    }

    pub(crate) fn merged(&self, queue: usize, op: Op) {
        self.of_queue(queue).merge(op);
    }

    pub(crate) fn done(&self, queue: usize, op: Op, len: u64, elapsed_ns: u64, now_ns: u64) {
        self.busy.update(now_ns, || true);
        let mut stats = self.of_queue(queue);
        stats.transfer(op, len);
        stats.done(op, elapsed_ns);
    }

    fn sum(&self) -> QueueStats {
        let mut sum = QueueStats::default();
        self.stats.iter().for_each(|stats| sum.add(&stats.lock()));
        sum
    }

    /// A copy of its statistics, and the milliseconds that it was busy.
    #[must_use]
    pub fn stats(&self) -> (QueueStats, u64) {
        (self.sum(), self.busy.busy_ms())
    }
}
