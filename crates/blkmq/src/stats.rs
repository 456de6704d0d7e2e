//! What a disk has done, as `/proc/diskstats` counts it, and how long it took.
//!
//! Each hardware queue counts for itself in a [`QueueStats`], without sharing memory with another; whoever
//! shows them sums them with [`QueueStats::add`]. Only how long the disk was busy cannot be told queue by
//! queue, as two may be busy at a time: that is a [`BusyClock`], one for each disk and partition.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use crate::op::{Op, StatGroup};
use crate::units::SECTOR_SHIFT;

/// Nanoseconds of a tick of a [`BusyClock`]: a millisecond, as `/proc/diskstats` shows no less.
const TICK_NS: u64 = 1_000_000;

/// What is counted for each kind of operation (kernel: `struct disk_stats`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that have ended.
    pub ios: u64,
    /// Bios that joined a request that was there already.
    pub merges: u64,
    /// Sectors of 512 bytes that were transferred.
    pub sectors: u64,
    /// Nanoseconds from a request's start to its end, summed over all.
    pub nsecs: u64,
}

impl Counters {
    fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.merges += other.merges;
        self.sectors += other.sectors;
        self.nsecs += other.nsecs;
    }
}

/// The statistics of one hardware queue, or the sum of several.
#[derive(Clone, Debug, Default)]
pub struct QueueStats {
    groups: [Counters; StatGroup::COUNT],
    latency: [LatencyHistogram; StatGroup::COUNT],
    /// Reads and writes under way. One that starts on one queue and ends on another leaves two numbers that
    /// only as a sum make sense.
    in_flight: [i64; 2],
    /// Of reads, and of what changes the disk.
    throttled: [LatencyHistogram; 2],
}

impl QueueStats {
    /// Nothing counted yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A request starts (kernel: `blk_account_io_start`).
    pub const fn start(&mut self, op: Op) {
        self.in_flight[op.is_write() as usize] += 1;
    }

    /// A bio has joined a request (kernel: `blk_account_io_merge_bio`).
    pub const fn merge(&mut self, op: Op) {
        if let Some(group) = op.group() {
            self.groups[group as usize].merges += 1;
        }
    }

    /// Bytes of a request are done, maybe not all of them (kernel: `blk_account_io_completion`).
    pub const fn transfer(&mut self, op: Op, bytes: u64) {
        if let Some(group) = op.group() {
            self.groups[group as usize].sectors += bytes >> SECTOR_SHIFT;
        }
    }

    /// A request has ended, `nsecs` after its start (kernel: `blk_account_io_done`).
    pub fn done(&mut self, op: Op, nsecs: u64) {
        self.in_flight[usize::from(op.is_write())] -= 1;
        let Some(group) = op.group().map(|group| group as usize) else { return };
        self.groups[group].ios += 1;
        self.groups[group].nsecs += nsecs;
        self.latency[group].record(nsecs);
    }

    /// A bio was let in after the limits of its disk had kept it for `nsecs`.
    pub fn throttled(&mut self, op: Op, nsecs: u64) {
        self.throttled[usize::from(op.is_write())].record(nsecs);
    }

    /// How long the limits of the disk have kept those that they have kept: reads, and what changes the disk.
    #[must_use]
    pub const fn throttle_waits(&self) -> &[LatencyHistogram; 2] {
        &self.throttled
    }

    /// What was counted for a kind of operation.
    #[must_use]
    pub const fn counters(&self, group: StatGroup) -> &Counters {
        &self.groups[group as usize]
    }

    /// How long requests of a kind took.
    #[must_use]
    pub const fn latency(&self, group: StatGroup) -> &LatencyHistogram {
        &self.latency[group as usize]
    }

    /// Requests under way: reads and flushes, and what changes the disk (sysfs: `inflight`).
    #[must_use]
    pub fn in_flight(&self) -> [u64; 2] {
        self.in_flight.map(|count| u64::try_from(count).unwrap_or(0))
    }

    /// Nanoseconds that requests of all kinds took together (kernel: `time_in_queue`, the sum of `nsecs`).
    #[must_use]
    pub fn time_in_queue_ns(&self) -> u64 {
        self.groups.iter().map(|counters| counters.nsecs).sum()
    }

    /// Adds those of another queue.
    pub fn add(&mut self, other: &Self) {
        for group in StatGroup::ALL.map(|group| group as usize) {
            self.groups[group].add(&other.groups[group]);
            self.latency[group].add(&other.latency[group]);
        }
        for (mine, other) in self.throttled.iter_mut().zip(&other.throttled) {
            mine.add(other);
        }
        for (mine, other) in self.in_flight.iter_mut().zip(other.in_flight) {
            *mine += other;
        }
    }
}

/// How long a disk was busy: had a request under way (kernel: `bd_stamp` and `io_ticks`, `update_io_ticks`).
///
/// All queues of the disk share it. Only the first call in a millisecond writes to it, as the kernel's does
/// only in the first of a jiffy, so that it costs a read of memory that rarely changes. Whether the disk was
/// busy is asked then, and taken as the answer for all the time since the last call: whoever ends a request
/// knows it was. The error is below a tick for each change between idle and busy.
#[derive(Debug, Default)]
pub struct BusyClock {
    stamp: AtomicU64,
    ticks: AtomicU64,
}

impl BusyClock {
    /// Call at each start of a request with whether others are under way (asked rarely), and at each end, and
    /// before the value is shown while something is under way, with `|| true`.
    pub fn update(&self, now_ns: u64, busy: impl FnOnce() -> bool) {
        let now = now_ns / TICK_NS;
        let stamp = self.stamp.load(Ordering::Relaxed);
        if now > stamp
            && self.stamp.compare_exchange(stamp, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            && busy()
        {
            self.ticks.fetch_add(now - stamp, Ordering::Relaxed);
        }
    }

    /// Milliseconds that the disk was busy.
    #[must_use]
    pub fn busy_ms(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }
}

/// Shortest time that a [`LatencyHistogram`] tells from shorter ones.
pub const LATENCY_MIN_NS: u64 = 64;
/// Longest time that a [`LatencyHistogram`] tells from longer ones: 1000 s.
pub const LATENCY_MAX_NS: u64 = 1_000_000_000_000;
/// Significant decimal digits of a time.
const LATENCY_DIGITS: u8 = 2;

/// How often something took how long, to two digits.
///
/// Takes no memory until something is recorded, and 14 KiB from then on, whatever is recorded. Times outside
/// [`LATENCY_MIN_NS`]..=[`LATENCY_MAX_NS`] count as the nearest of these; a count stops at 2^32 - 1.
#[derive(Clone, Default)]
pub struct LatencyHistogram(Option<Box<Histogram<u32>>>);

impl LatencyHistogram {
    /// Counts one.
    pub fn record(&mut self, nsecs: u64) {
        if let Some(histogram) = self.histogram() {
            histogram.saturating_record(nsecs.clamp(LATENCY_MIN_NS, LATENCY_MAX_NS));
        }
    }

    /// Adds all that another has counted.
    pub fn add(&mut self, other: &Self) {
        if let (Some(other), Some(histogram)) = (&other.0, self.histogram()) {
            // Both have the same bounds, the only reason to fail.
            let _same_bounds = histogram.add(other.as_ref());
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |histogram| histogram.len())
    }

    /// The time that a share `q` (0 to 1) of all took no longer than, in nanoseconds; `None` if nothing was
    /// counted.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<u64> {
        self.some().map(|histogram| histogram.value_at_quantile(q))
    }

    /// The longest, in nanoseconds.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        self.some().map(Histogram::max)
    }

    /// The average, in nanoseconds.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        self.some().map(Histogram::mean)
    }

    /// How many took at most so many nanoseconds: what a metric's bucket shows.
    #[must_use]
    pub fn count_up_to(&self, nsecs: u64) -> u64 {
        self.some().map_or(0, |histogram| histogram.count_between(0, nsecs))
    }

    fn some(&self) -> Option<&Histogram<u32>> {
        self.0.as_deref().filter(|histogram| !histogram.is_empty())
    }

    /// The histogram, made when it is first needed. The bounds are constants that it takes.
    fn histogram(&mut self) -> Option<&mut Histogram<u32>> {
        if self.0.is_none() {
            let made = Histogram::new_with_bounds(LATENCY_MIN_NS, LATENCY_MAX_NS, LATENCY_DIGITS);
            self.0 = made.ok().map(Box::new);
        }
        self.0.as_deref_mut()
    }
}

impl fmt::Debug for LatencyHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LatencyHistogram")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = TICK_NS;

    #[test]
    fn a_request_is_counted_from_its_start_to_its_end() {
        let mut stats = QueueStats::new();
        stats.start(Op::Write);
        stats.start(Op::Flush);
        stats.merge(Op::Write);
        assert_eq!(stats.in_flight(), [1, 1]);
        stats.transfer(Op::Write, 4096);
        stats.transfer(Op::Write, 512);
        stats.done(Op::Write, 1000);
        stats.done(Op::Flush, 500);
        let expected = Counters { ios: 1, merges: 1, sectors: 9, nsecs: 1000 };
        assert_eq!(stats.counters(StatGroup::Write), &expected);
        assert_eq!(stats.counters(StatGroup::Flush).ios, 1);
        assert_eq!((stats.in_flight(), stats.time_in_queue_ns()), ([0, 0], 1500));
    }

    #[test]
    fn the_sum_of_two_queues_is_both_and_a_request_that_moved_counts_once() {
        let (mut a, mut b) = (QueueStats::new(), QueueStats::new());
        a.start(Op::Read);
        a.start(Op::Read);
        b.done(Op::Read, 70_000);
        assert_eq!(b.in_flight(), [0, 0], "less than none is none");
        a.add(&b);
        assert_eq!(a.in_flight(), [1, 0]);
        assert_eq!((a.counters(StatGroup::Read).ios, a.latency(StatGroup::Read).count()), (1, 1));
    }

    #[test]
    fn a_disk_is_busy_while_a_request_is_under_way_and_not_between() {
        let clock = BusyClock::default();
        clock.update(100 * MS, || false);
        clock.update(130 * MS, || true);
        clock.update(150 * MS, || false);
        clock.update(170 * MS, || true);
        assert_eq!(clock.busy_ms(), 50);
        clock.update(170 * MS + 1, || panic!("asked again within a tick"));
        clock.update(160 * MS, || panic!("asked about the past"));
        assert_eq!(clock.busy_ms(), 50);
    }

    #[test]
    fn a_histogram_is_made_when_needed_and_stays_small() {
        let mut latency = LatencyHistogram::default();
        assert!(latency.0.is_none() && latency.quantile(0.5).is_none());
        for nsecs in [0, 1, u64::MAX] {
            latency.record(nsecs);
        }
        let counters = latency.0.as_ref().unwrap().distinct_values();
        assert!(counters * size_of::<u32>() <= 14 << 10, "{counters} counters");
        assert_eq!(latency.count(), 3);
        assert!(latency.max().unwrap() >= LATENCY_MAX_NS);
    }

    #[test]
    fn a_quantile_is_right_to_two_digits() {
        let (mut all, mut other) = (LatencyHistogram::default(), LatencyHistogram::default());
        for i in 1..=1000 {
            if i % 2 == 0 { &mut all } else { &mut other }.record(i * 1000);
        }
        all.add(&other);
        all.add(&LatencyHistogram::default());
        let median = all.quantile(0.5).unwrap();
        assert!(median.abs_diff(500_000) <= 5_000, "{median}");
        assert!(all.count_up_to(250_000).abs_diff(250) <= 3);
        assert!((all.mean().unwrap() - 500_500.0).abs() < 5_000.0);
    }
}
