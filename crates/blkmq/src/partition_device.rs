//! A partition of a disk, as a device of its own.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

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
    stats: Mutex<QueueStats>,
    busy: BusyClock,
}

impl Partition {
    pub(crate) fn new(info: PartitionInfo, dev: DevNum) -> Self {
        Self {
            info,
            dev,
            gone: AtomicBool::new(false),
            stats: Mutex::default(),
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

    pub(crate) fn started(&self, op: Op, now_ns: u64) {
        let mut stats = self.stats.lock();
        self.busy.update(now_ns, || stats.in_flight() != [0, 0]);
        stats.start(op);
    }

    pub(crate) fn done(&self, op: Op, len: u64, elapsed_ns: u64, now_ns: u64) {
        self.busy.update(now_ns, || true);
        let mut stats = self.stats.lock();
        stats.transfer(op, len);
        stats.done(op, elapsed_ns);
    }

    /// A copy of its statistics, and the milliseconds that it was busy.
    #[must_use]
    pub fn stats(&self) -> (QueueStats, u64) {
        (self.stats.lock().clone(), self.busy.busy_ms())
    }
}
