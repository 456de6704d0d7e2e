//! How much may be done to disks per second: rates that one disk, or a group of them, keeps to (kernel: block/blk-throttle.c).
//!
//! A rate is a bucket that is one number: the time at which the next unit may be had (generic cell rate algorithm, ITU-T I.371).
//! Taking units moves it on by what they cost, and says since when, or from when on, they may be used. So whoever takes is
//! served in the order in which it came, over all disks of a group and all their queues, without a lock; and as a queue takes
//! a slice of [`SLICE_NS`] at a time, what is large does not keep what is small from the next slice, and most requests take
//! nothing at all.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::bio::Bio;
use crate::op::{Op, StatGroup};
use crate::queue::Queue;
use crate::units::SECTOR_SIZE;

/// Nanoseconds' worth of a rate that a queue takes at a time.
const SLICE_NS: u64 = 2_000_000;
/// How late whoever waits may come for what was its own, and still have it: a timer that is late, and the time between two
/// requests of one who has one out at a time. An idle disk saves as much, 1 % of five seconds.
const SLACK_NS: u64 = 50_000_000;
const SECOND_NS: u128 = 1_000_000_000;
/// What a discard counts for, however long it is (kernel: `throtl_bio_data_size`).
const DISCARD_BYTES: u64 = SECTOR_SIZE;

/// How much may be done in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: NonZeroU64,
    /// For a while, after as long a while with less.
    pub burst: Option<Burst>,
}

/// More than the rate, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// At most.
    pub per_second: NonZeroU64,
    /// How long, after the disk was idle.
    pub length: Duration,
}

/// What is limited. Flushes never are, nor is what moves no bytes and changes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// Requests of all kinds.
    pub iops: Option<Rate>,
    /// Reads.
    pub read_iops: Option<Rate>,
    /// Writes, discards included.
    pub write_iops: Option<Rate>,
    /// Bytes, either way.
    pub bps: Option<Rate>,
    /// Bytes read.
    pub read_bps: Option<Rate>,
    /// Bytes written. A discard counts as one sector.
    pub write_bps: Option<Rate>,
    /// A request counts as one for each so many bytes of it. `None`: as one.
    pub io_size: Option<NonZeroU32>,
}

impl Throttle {
    /// By unit, and by who is counted.
    fn rates(&self) -> [[Option<Rate>; 3]; 2] {
        [[self.iops, self.read_iops, self.write_iops], [self.bps, self.read_bps, self.write_bps]]
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Ios,
    Bytes,
}

impl Unit {
    pub(crate) const ALL: [Self; 2] = [Self::Ios, Self::Bytes];
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

impl Way {
    pub(crate) const COUNT: usize = 2;

    /// `None`: it is not limited.
    pub(crate) const fn of(op: Op) -> Option<Self> {
        match op.group() {
            Some(StatGroup::Read) => Some(Self::Read),
            Some(StatGroup::Write | StatGroup::Discard) => Some(Self::Write),
            Some(StatGroup::Flush) | None => None,
        }
    }
}

#[derive(Default)]
struct Bucket {
    /// 0: no limit.
    per_second: AtomicU64,
    /// How much of the past may be had later.
    saves_ns: AtomicU64,
    /// When the next unit may be had.
    next_ns: AtomicU64,
}

impl Bucket {
    fn set(&self, per_second: u64, saves_ns: u64) {
        self.per_second.store(per_second, Ordering::Relaxed);
        self.saves_ns.store(saves_ns, Ordering::Relaxed);
        // Nobody waits for what was taken at another rate.
        self.next_ns.store(0, Ordering::Relaxed);
    }

    fn rate(&self) -> Option<u64> {
        Some(self.per_second.load(Ordering::Relaxed)).filter(|&rate| rate > 0)
    }

    /// Takes `amount`, and says from when on it may be used.
    fn take(&self, amount: u64, per_second: u64, now_ns: u64) -> u64 {
        let cost_ns = u128::from(amount) * SECOND_NS / u128::from(per_second);
        let cost_ns = u64::try_from(cost_ns).unwrap_or(u64::MAX);
        let oldest_ns = now_ns.saturating_sub(self.saves_ns.load(Ordering::Relaxed));
        let mut next_ns = self.next_ns.load(Ordering::Relaxed);
        loop {
            let start_ns = next_ns.max(oldest_ns);
            let then_ns = start_ns.saturating_add(cost_ns);
            let set = self.next_ns.compare_exchange_weak(
                next_ns,
                then_ns,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match set {
                Ok(_) => return start_ns,
                Err(other) => next_ns = other,
            }
        }
    }
}

/// Of one limit: the rate itself, and what a burst may reach.
#[derive(Default)]
struct Buckets {
    long: Bucket,
    peak: Bucket,
}

impl Buckets {
    fn set(&self, rate: Option<Rate>) {
        let Some(Rate { per_second, burst }) = rate else {
            self.long.set(0, 0);
            return self.peak.set(0, 0);
        };
        let Some(Burst { per_second: peak, length }) = burst else {
            self.long.set(per_second.get(), SLACK_NS);
            return self.peak.set(0, 0);
        };
        // What the burst has beyond the rate is what the rate gives in this time.
        let beyond = u128::from(peak.get().saturating_sub(per_second.get()));
        let saves_ns = length.as_nanos().saturating_mul(beyond) / u128::from(per_second.get());
        let saves_ns = u64::try_from(saves_ns).unwrap_or(u64::MAX).max(SLACK_NS);
        self.long.set(per_second.get(), saves_ns);
        self.peak.set(peak.get(), SLACK_NS);
    }
}

/// Disks that keep to the same limits together. One disk's own limits are a group of one.
///
/// The clocks of its disks are one.
#[derive(Default)]
pub struct ThrottleGroup {
    /// By unit, and by who is counted: all, reads, writes.
    limits: [[Buckets; 3]; 2],
    io_size: AtomicU32,
    /// Counts the changes.
    epoch: AtomicU64,
    throttle: Mutex<Throttle>,
    members: Mutex<Vec<Weak<dyn Queue>>>,
}

impl ThrottleGroup {
    /// One that keeps to these limits.
    #[must_use]
    pub fn new(throttle: Throttle) -> Arc<Self> {
        let group = Arc::new(Self::default());
        group.set(throttle);
        group
    }

    /// Its limits.
    #[must_use]
    pub fn throttle(&self) -> Throttle {
        *self.throttle.lock()
    }

    /// Changes its limits: what waits keeps to the new ones at once.
    pub fn set(&self, throttle: Throttle) {
        {
            let mut now = self.throttle.lock();
            for (limits, rates) in self.limits.iter().zip(throttle.rates()) {
                for (buckets, rate) in limits.iter().zip(rates) {
                    buckets.set(rate);
                }
            }
            self.io_size.store(throttle.io_size.map_or(0, NonZeroU32::get), Ordering::Relaxed);
            *now = throttle;
            // What was bought before is not used any more.
            self.epoch.fetch_add(1, Ordering::Release);
        }
        let members: Vec<_> = self.members.lock().iter().filter_map(Weak::upgrade).collect();
        members.iter().for_each(|queue| queue.throttle_changed());
    }

    pub(crate) fn join(&self, queue: &Arc<dyn Queue>) {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(queue));
    }

    pub(crate) fn leave(&self, queue: &Arc<dyn Queue>) {
        let left = Arc::downgrade(queue);
        self.members.lock().retain(|member| !member.ptr_eq(&left));
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What a bio counts for.
    pub(crate) fn cost(&self, unit: Unit, bio: &Bio) -> u64 {
        let bytes = match bio.op {
            Op::Discard | Op::SecureErase => DISCARD_BYTES,
            _ => bio.len(),
        };
        match (unit, self.io_size.load(Ordering::Relaxed)) {
            (Unit::Bytes, _) => bytes,
            (Unit::Ios, 0) => 1,
            (Unit::Ios, size) => bytes.div_ceil(size.into()).max(1),
        }
    }

    fn buckets(&self, unit: Unit, way: Way) -> impl Iterator<Item = (&Bucket, u64)> {
        let limits = &self.limits[unit as usize];
        let both = [&limits[0], &limits[1 + way as usize]];
        let buckets = both.into_iter().flat_map(|buckets| [&buckets.long, &buckets.peak]);
        buckets.filter_map(|bucket| Some((bucket, bucket.rate()?)))
    }

    /// Takes what was used without having been taken: others wait for it.
    pub(crate) fn owe(&self, unit: Unit, way: Way, amount: u64, now_ns: u64) {
        for (bucket, rate) in self.buckets(unit, way) {
            bucket.take(amount, rate, now_ns);
        }
    }

    /// Takes a slice, and says how much that is, and from when on it may be used. `None`: there is no limit.
    pub(crate) fn buy(&self, unit: Unit, way: Way, now_ns: u64) -> Option<(u64, u64)> {
        // Each rate is read once: it may change meanwhile.
        let buckets: SmallVec<[(&Bucket, u64); 4]> = self.buckets(unit, way).collect();
        let slowest = buckets.iter().map(|&(_, rate)| rate).min()?;
        let slice = u128::from(slowest) * u128::from(SLICE_NS) / SECOND_NS;
        let amount = u64::try_from(slice).unwrap_or(u64::MAX).max(1);
        let starts = buckets.iter().map(|(bucket, rate)| bucket.take(amount, *rate, now_ns));
        Some((amount, starts.max().unwrap_or(now_ns)))
    }
}

impl std::fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ThrottleGroup").field(&self.throttle()).finish()
    }
}
