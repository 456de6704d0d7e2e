//! How much may be done to disks per second: rates that one disk, or a group of them, keeps to (kernel: block/blk-throttle.c).
//!
//! A rate is a bucket that is one number: the time at which the next unit may be had (generic cell rate algorithm, ITU-T I.371).
//! Taking units moves it on by what they cost, and says since when, or from when on, they may be used. So whoever takes is
//! served in the order in which it came, over all disks of a group and all their queues, without a lock; and as a queue takes
//! a slice of [`SLICE_NS`] at a time, what is large does not keep what is small from the next slice, and most requests take
//! nothing at all.
//!
//! A bucket never changes its rate. Other limits are other buckets: whoever has not heard of them yet takes from those that
//! nobody waits for any more.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

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

struct Bucket {
    per_second: NonZeroU64,
    /// How much of the past may be had later.
    saves_ns: u64,
    /// When the next unit may be had.
    next_ns: AtomicU64,
}

impl Bucket {
    fn new(per_second: NonZeroU64, saves_ns: u64) -> Self {
        Self { per_second, saves_ns, next_ns: AtomicU64::new(0) }
    }

    /// How long it takes to bring that.
    fn takes_ns(&self, amount: u64) -> u64 {
        let ns = u128::from(amount) * SECOND_NS / u128::from(self.per_second.get());
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    fn brings(&self, ns: u64) -> u64 {
        let amount = u128::from(ns) * u128::from(self.per_second.get()) / SECOND_NS;
        u64::try_from(amount).unwrap_or(u64::MAX)
    }

    fn slice(&self) -> u64 {
        self.brings(SLICE_NS).max(1)
    }

    fn start_ns(&self, next_ns: u64, now_ns: u64) -> u64 {
        next_ns.max(now_ns.saturating_sub(self.saves_ns))
    }

    /// What may be had by now, and a slice.
    fn ready(&self, now_ns: u64) -> u64 {
        let start_ns = self.start_ns(self.next_ns.load(Ordering::Relaxed), now_ns);
        self.brings(now_ns.saturating_sub(start_ns)).saturating_add(self.slice())
    }

    /// Takes `amount`, and says from when on it may be used: all of it, once all but a slice is there.
    fn take(&self, amount: u64, now_ns: u64) -> u64 {
        let cost_ns = self.takes_ns(amount);
        let ahead_ns = cost_ns.min(self.takes_ns(1).max(SLICE_NS));
        let mut next_ns = self.next_ns.load(Ordering::Relaxed);
        loop {
            let start_ns = self.start_ns(next_ns, now_ns);
            let then_ns = start_ns.saturating_add(cost_ns);
            let set = self.next_ns.compare_exchange_weak(
                next_ns,
                then_ns,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match set {
                Ok(_) => return start_ns.saturating_add(cost_ns - ahead_ns),
                Err(other) => next_ns = other,
            }
        }
    }
}

/// Of one limit: the rate itself, and what a burst may reach.
struct Buckets {
    rate: Rate,
    long: Bucket,
    peak: Option<Bucket>,
}

impl Buckets {
    fn new(rate: Rate) -> Self {
        let Rate { per_second, burst } = rate;
        let Some(Burst { per_second: peak, length }) = burst else {
            return Self { rate, long: Bucket::new(per_second, SLACK_NS), peak: None };
        };
        // What the burst has beyond the rate is what the rate gives in this time.
        let beyond = u128::from(peak.get().saturating_sub(per_second.get()));
        let saves_ns = length.as_nanos().saturating_mul(beyond) / u128::from(per_second.get());
        let saves_ns = u64::try_from(saves_ns).unwrap_or(u64::MAX).max(SLACK_NS);
        let long = Bucket::new(per_second, saves_ns);
        Self { rate, long, peak: Some(Bucket::new(peak, SLACK_NS)) }
    }

    fn iter(&self) -> impl Iterator<Item = &Bucket> {
        std::iter::once(&self.long).chain(&self.peak)
    }

    /// A slice of what it brings now, which may be a burst, and what is ready besides.
    fn offers(&self, now_ns: u64) -> (u64, u64) {
        let ready = self.long.ready(now_ns);
        match &self.peak {
            None => (self.long.slice(), ready),
            Some(peak) => (peak.slice().min(ready), peak.ready(now_ns).min(ready)),
        }
    }
}

/// What a group keeps to, until it is told of something else.
#[derive(Clone, Default)]
pub(crate) struct Rates {
    /// By unit, and by who is counted: all, reads, writes.
    limits: [[Option<Arc<Buckets>>; 3]; 2],
    io_size: Option<NonZeroU32>,
}

impl Rates {
    /// Others: rates that are as they were go on.
    fn changed(&self, throttle: &Throttle) -> Self {
        let mut limits = self.limits.clone();
        for (limits, rates) in limits.iter_mut().zip(throttle.rates()) {
            for (limit, rate) in limits.iter_mut().zip(rates) {
                if limit.as_ref().map(|buckets| buckets.rate) != rate {
                    *limit = rate.map(|rate| Arc::new(Buckets::new(rate)));
                }
            }
        }
        Self { limits, io_size: throttle.io_size }
    }

    fn of(&self, unit: Unit, way: Way) -> impl Iterator<Item = &Arc<Buckets>> {
        let limits = &self.limits[unit as usize];
        [&limits[0], &limits[1 + way as usize]].into_iter().flatten()
    }

    /// Whether others bring the same: what was bought of them may be used.
    pub(crate) fn is_as(&self, other: &Self, unit: Unit, way: Way) -> bool {
        self.of(unit, way).map(Arc::as_ptr).eq(other.of(unit, way).map(Arc::as_ptr))
    }

    /// What a bio counts for.
    pub(crate) fn cost(&self, unit: Unit, bio: &Bio) -> u64 {
        let bytes = match bio.op {
            Op::Discard | Op::SecureErase => DISCARD_BYTES,
            _ => bio.len(),
        };
        match (unit, self.io_size) {
            (Unit::Bytes, _) => bytes,
            (Unit::Ios, None) => 1,
            (Unit::Ios, Some(size)) => bytes.div_ceil(size.get().into()).max(1),
        }
    }

    /// How long that takes at the slowest of the rates.
    pub(crate) fn takes_ns(&self, unit: Unit, way: Way, amount: u64) -> u64 {
        let buckets = self.of(unit, way).flat_map(|buckets| buckets.iter());
        buckets.map(|bucket| bucket.takes_ns(amount)).max().unwrap_or(0)
    }

    /// Takes a slice for somebody who needs so much, or as much of that as is ready; says how much it is, and from when on it may
    /// be used. `None`: there is no limit.
    pub(crate) fn buy(&self, unit: Unit, way: Way, need: u64, now_ns: u64) -> Option<(u64, u64)> {
        let offers = self.of(unit, way).map(|buckets| buckets.offers(now_ns));
        let (slice, ready) = offers.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)))?;
        let amount = slice.max(need.min(ready));
        let buckets = self.of(unit, way).flat_map(|buckets| buckets.iter());
        let starts = buckets.map(|bucket| bucket.take(amount, now_ns));
        Some((amount, starts.max().unwrap_or(now_ns)))
    }
}

/// Disks that keep to the same limits together. One disk's own limits are a group of one.
///
/// The clocks of its disks are one.
#[derive(Default)]
pub struct ThrottleGroup {
    /// Counts the changes.
    epoch: AtomicU64,
    now: Mutex<Now>,
    members: Mutex<Vec<Weak<dyn Queue>>>,
}

#[derive(Default)]
struct Now {
    throttle: Throttle,
    rates: Arc<Rates>,
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
        self.now.lock().throttle
    }

    /// Has it keep to other limits: what waits keeps to the new ones at once.
    pub fn set(&self, throttle: Throttle) {
        self.update(|now| *now = throttle);
    }

    /// Changes some of its limits, and nothing comes between. Those that stay as they are go on as if nothing had happened.
    pub fn update(&self, change: impl FnOnce(&mut Throttle)) {
        {
            let mut now = self.now.lock();
            let before = now.throttle;
            change(&mut now.throttle);
            if now.throttle == before {
                return;
            }
            now.rates = Arc::new(now.rates.changed(&now.throttle));
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

    pub(crate) fn rates(&self) -> Arc<Rates> {
        Arc::clone(&self.now.lock().rates)
    }
}

impl std::fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ThrottleGroup").field(&self.throttle()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(per_second: u64) -> NonZeroU64 {
        NonZeroU64::new(per_second).unwrap()
    }

    fn rates(bps: u64, burst: Option<(u64, u64)>) -> Arc<Rates> {
        let burst = burst.map(|(peak, seconds)| Burst {
            per_second: per_second(peak),
            length: Duration::from_secs(seconds),
        });
        let bps = Some(Rate { per_second: per_second(bps), burst });
        ThrottleGroup::new(Throttle { bps, ..Throttle::default() }).rates()
    }

    /// Buys until there is so much, and says how often, and when all of it is there.
    fn buy(rates: &Rates, need: u64, now_ns: u64) -> (u64, u64) {
        let (mut has, mut count, mut last_ns) = (0, 0, 0);
        while has < need {
            let (amount, from_ns) =
                rates.buy(Unit::Bytes, Way::Write, need - has, now_ns.max(last_ns)).unwrap();
            (has, count, last_ns) = (has + amount, count + 1, from_ns.max(last_ns));
        }
        (count, last_ns)
    }

    #[test]
    fn what_is_ready_is_bought_at_once() {
        // Three years: so long it takes until all of the burst is there.
        const NOW_NS: u64 = 100_000_000 * 1_000_000_000;
        let rates = rates(1024, Some((1 << 30, 60)));
        let (count, there_ns) = buy(&rates, 32 << 20, NOW_NS);
        assert!(count <= 3 && there_ns <= NOW_NS, "{count} at {there_ns}");
        // Past what the peak had saved it comes by slices of the peak, for as long as the burst does.
        let (count, there_ns) = buy(&rates, 256 << 20, NOW_NS);
        let took_ns = there_ns - NOW_NS;
        assert!(
            count <= 150 && took_ns.abs_diff(231_000_000) <= 5_000_000,
            "{count}, {took_ns} ns"
        );
    }

    #[test]
    fn what_is_not_ready_is_bought_by_slices_and_what_others_took_meanwhile_is_waited_for() {
        const NOW_NS: u64 = 1_000_000_000;
        let rates = rates(1_000_000, None);
        let (amount, from_ns) = rates.buy(Unit::Bytes, Way::Read, 1 << 20, NOW_NS).unwrap();
        assert_eq!((amount, from_ns), (52_000, NOW_NS), "50 ms that were saved, and a slice");
        let (amount, from_ns) = rates.buy(Unit::Bytes, Way::Write, 1 << 20, NOW_NS).unwrap();
        assert_eq!((amount, from_ns), (2000, NOW_NS + SLICE_NS));
        // As by somebody who had looked before the two.
        let buckets = rates.of(Unit::Bytes, Way::Read).next().unwrap();
        let from_ns = buckets.long.take(52_000, NOW_NS);
        assert_eq!(from_ns, NOW_NS + 2 * SLICE_NS + 50_000_000);
    }

    #[test]
    fn changes_at_the_same_time_are_all_made() {
        const CHANGES: u64 = 10_000;
        let group = ThrottleGroup::new(Throttle::default());
        let rate = |at| Some(Rate { per_second: per_second(at), burst: None });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..=CHANGES).for_each(|at| group.update(|throttle| throttle.iops = rate(at)));
            });
            (1..=CHANGES).for_each(|at| group.update(|throttle| throttle.write_bps = rate(at)));
        });
        let Throttle { iops, write_bps, .. } = group.throttle();
        assert_eq!((iops, write_bps), (rate(CHANGES), rate(CHANGES)));
        let rates = group.rates();
        let now = [rates.limits[0][0].as_ref(), rates.limits[1][2].as_ref()];
        assert_eq!(now.map(|buckets| buckets.map(|it| it.rate)), [rate(CHANGES); 2]);
    }
}
