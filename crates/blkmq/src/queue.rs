//! The request queue of a disk: its hardware queues taken together.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use event_listener::{Event, Listener};
use parking_lot::{Mutex, RwLock};

use crate::bio::Bio;
use crate::bytes::BlockLocks;
use crate::clock::Clock;
use crate::driver::{Driver, InFlight};
use crate::elevator::Elevator;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::FaultSet;
use crate::hctx::Hctx;
use crate::limits::{Features, Limits};
use crate::op::Status;
use crate::queue_map::QueueType;
use crate::reservation::{Fence, Registrant};
use crate::sched::Kind;
use crate::stats::{BusyClock, QueueStats};
use crate::tag_set::{TagSet, TagSetFlags};
use crate::throttle::ThrottleGroup;
use crate::units::Sector;

/// What all hardware queues of a disk share, and seldom change.
pub(crate) struct QueueShared<D: Driver> {
    pub(crate) driver: Arc<D>,
    pub(crate) disk: D::Disk,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) elevator: Elevator<D>,
    pub(crate) drained: Event,
    pub(crate) busy: BusyClock,
    timeout_ns: AtomicU64,
    capacity: AtomicU64,
    size_bytes: AtomicU64,
    read_only: AtomicBool,
    /// Nobody is promised any more that anything is durable.
    fails_flushes: AtomicBool,
    on_failed_flush: OnceLock<FailedFlush>,
    pub(crate) fence: Fence,
    queues: OnceLock<Vec<Weak<Hctx<D>>>>,
    alarm: RwLock<Option<Alarm>>,
    pub(crate) locks: BlockLocks<D>,
}

impl<D: Driver> QueueShared<D> {
    /// Whether somebody is told when there is a tick to come that was not known before.
    pub(crate) fn has_alarm(&self) -> bool {
        self.alarm.read().is_some()
    }

    pub(crate) fn ring_alarm(&self) {
        let alarm = self.alarm.read().clone();
        if let Some(alarm) = alarm {
            alarm();
        }
    }

    /// All hardware queues, by their indices.
    pub(crate) fn queues(&self) -> impl Iterator<Item = Arc<Hctx<D>>> + '_ {
        self.queues.get().into_iter().flatten().filter_map(Weak::upgrade)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn timeout_ns(&self) -> u64 {
        self.timeout_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn capacity(&self) -> Sector {
        Sector(self.capacity.load(Ordering::Acquire))
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub(crate) fn fails_flushes(&self) -> bool {
        self.fails_flushes.load(Ordering::Acquire)
    }

    /// The driver has failed a flush, or will, and nobody has heard of it yet.
    #[cold]
    pub(crate) fn flush_failed(&self) {
        if let Some(told) = self.on_failed_flush.get() {
            told();
        }
    }
}

/// Told of a flush that has failed, before whoever has asked for it; on a queue thread, and it must not block.
pub type FailedFlush = Box<dyn Fn() + Send + Sync>;

/// Tells whoever ticks a disk to do so now.
pub(crate) type Alarm = Arc<dyn Fn() + Send + Sync>;

/// How large a disk is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    pub(crate) capacity: Sector,
    /// That in bytes, less the padding.
    pub(crate) bytes: u64,
}

impl Size {
    pub(crate) fn new(
        disk: &str,
        capacity: Sector,
        tail_padding: u32,
        limits: &Limits,
    ) -> Result<Self> {
        if capacity > Sector::MAX {
            let what = format!("{disk}: no disk is larger than 2^63 - 1 bytes");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let block = limits.logical_block_size.bytes();
        match capacity.bytes().checked_sub(tail_padding.into()) {
            Some(bytes) if tail_padding < block => Ok(Self { capacity, bytes }),
            _ => {
                let what = format!(
                    "{disk}: {tail_padding} bytes of padding are not within its last block of {block}"
                );
                Err(Error::new(ErrorKind::Invalid, what))
            }
        }
    }
}

/// How far the end of a queue has come (kernel: `QUEUE_FLAG_DYING`, `QUEUE_FLAG_DEAD`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// It works.
    Live,
    /// What is out may end; what comes fails.
    Dying,
    /// Nothing is out, the driver's part is gone.
    Dead,
}

/// A queue, whatever its driver: what a disk knows of it.
pub(crate) trait Queue: Send + Sync {
    fn submit(&self, cpu: usize, from: Registrant, bio: Box<Bio>);
    /// Drains `bios`.
    fn submit_all(&self, cpu: usize, from: Registrant, bios: &mut Vec<Box<Bio>>);
    fn fence(&self) -> &Fence;
    fn hw_queues(&self) -> usize;
    fn set_alarm(&self, alarm: Alarm);
    fn poll(&self, cpu: usize) -> usize;
    fn cpus(&self) -> usize;
    fn capacity(&self) -> Sector;
    fn size_bytes(&self) -> u64;
    fn set_size(&self, size: Size);
    fn is_read_only(&self) -> bool;
    /// Says what it was.
    fn set_read_only(&self, read_only: bool) -> bool;
    fn fail_flushes(&self);
    fn flush_failed(&self);
    fn on_failed_flush(&self, told: FailedFlush);
    fn limits(&self) -> Limits;
    fn set_limits(&self, limits: Limits) -> Result<()>;
    fn freeze(&self);
    fn start_freeze(&self);
    /// Waits until a freeze that was started is one.
    fn wait_frozen(&self);
    fn unfreeze(&self);
    fn quiesce(&self);
    /// As [`Queue::quiesce`], not waiting for whoever is with the driver.
    fn quiesce_nowait(&self);
    fn unquiesce(&self);
    /// Undoes every [`Queue::quiesce`].
    fn end_quiesce(&self);
    fn life(&self) -> Life;
    /// Says whether it was this call that ended it.
    fn shut_down(&self) -> bool;
    fn scheduler(&self) -> Kind;
    fn set_scheduler(&self, kind: Kind) -> Result<()>;
    fn tune(&self, name: &str, value: Option<u64>) -> Result<u64>;
    fn requests(&self) -> usize;
    fn set_requests(&self, count: usize) -> Result<()>;
    fn stats(&self) -> QueueStats;
    /// Milliseconds that the disk was busy.
    fn busy_ms(&self) -> u64;
    fn in_flight(&self) -> Vec<(usize, InFlight)>;
    fn show(&self) -> String;
    fn set_timeout(&self, timeout_ns: u64);
    fn set_throttle(&self, groups: &[Arc<ThrottleGroup>]);
    /// One of its groups has other limits.
    fn throttle_changed(&self);
    fn set_longest_wait(&self, longest_ns: u64);
    /// Lets in what has come by now.
    fn admit_kept(&self);
    /// Lets in what may not wait any longer.
    fn admit_due(&self);
    /// How long ago the oldest of what has not ended was asked.
    fn oldest_age_ns(&self) -> Option<u64>;
    /// From when it returns on, everything goes by these faults.
    fn set_faults(&self, faults: Option<Arc<FaultSet>>);
    /// Requests that faults hold: by which rule, and whether somebody has to release them.
    fn held(&self) -> Vec<(Option<u64>, bool)>;
    /// Lets those go on, and says how many there were.
    fn release(&self, which: &dyn Fn(Option<u64>) -> bool) -> usize;
    /// Ends all that faults hold.
    fn fail_held(&self, status: Status);
    /// Changes what the disk is said to do, under load too.
    fn set_features(&self, features: Features);
    fn tick(&self, now_ns: u64) -> Option<u64>;
    fn clock(&self) -> &Arc<dyn Clock>;
}

pub(crate) struct RequestQueue<D: Driver> {
    set: Arc<TagSet<D>>,
    shared: Arc<QueueShared<D>>,
    hctxs: Vec<Arc<Hctx<D>>>,
    /// Freezing and what is done while frozen: one at a time. It is held for as long as a drain takes, so that nobody
    /// takes it who only wants to know something.
    control: Mutex<()>,
    /// What the hardware queues go by, for those who ask.
    limits: RwLock<Limits>,
    /// Requests of each hardware queue.
    requests: AtomicUsize,
    life: AtomicU8,
}

impl<D: Driver> RequestQueue<D> {
    pub(crate) fn new(
        set: &Arc<TagSet<D>>,
        disk: D::Disk,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let shared = Arc::new(QueueShared {
            driver: Arc::clone(&set.driver),
            disk,
            clock,
            elevator: Elevator::default(),
            drained: Event::new(),
            busy: BusyClock::default(),
            timeout_ns: AtomicU64::new(
                u64::try_from(set.config.timeout.as_nanos()).unwrap_or(u64::MAX),
            ),
            capacity: AtomicU64::new(0),
            size_bytes: AtomicU64::new(0),
            locks: BlockLocks::default(),
            fence: Fence::default(),
            queues: OnceLock::new(),
            alarm: RwLock::new(None),
            read_only: AtomicBool::new(false),
            fails_flushes: AtomicBool::new(false),
            on_failed_flush: OnceLock::new(),
        });
        let mut hctxs = Vec::with_capacity(set.tags.len());
        for (index, tags) in set.tags.iter().enumerate() {
            let kind = set.maps.kind_of(index);
            let hctx = Hctx::new(
                Arc::clone(&shared),
                index,
                kind,
                Arc::clone(tags),
                set.config.cpus,
                limits.clone(),
            );
            if let Err(err) = hctx.attach() {
                hctxs.iter().for_each(|hctx: &Arc<Hctx<D>>| hctx.detach());
                return Err(err);
            }
            hctxs.push(hctx);
        }
        let _only_once = shared.queues.set(hctxs.iter().map(Arc::downgrade).collect());
        Ok(Arc::new(Self {
            set: Arc::clone(set),
            shared,
            hctxs,
            control: Mutex::new(()),
            limits: RwLock::new(limits),
            requests: AtomicUsize::new(set.config.depth as usize),
            life: AtomicU8::new(0),
        }))
    }

    fn hctx(&self, cpu: usize, bio: &Bio) -> usize {
        self.set.maps.hctx(QueueType::of(bio.op, bio.flags), cpu)
    }

    fn begin_freeze(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.freeze());
        self.shared.locks.hurry(&self.shared);
    }

    /// Waits until no request is in use, and nothing is between two of its own. Blocks: not for a thread that
    /// completions come by.
    fn wait_drained(&self) {
        // In this order: what is under way brings requests into use, and is through before the last of them is free.
        let drained = || {
            self.shared.locks.is_idle() && self.hctxs.iter().all(|hctx| hctx.lock().allocated == 0)
        };
        while !drained() {
            let listener = self.shared.drained.listen();
            if drained() {
                return;
            }
            listener.wait();
        }
    }

    fn end_freeze(&self) {
        self.shared.locks.calm();
        self.hctxs.iter().for_each(|hctx| hctx.unfreeze());
    }

    /// Does `f` while no request is in use, and none begins.
    fn while_frozen<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let _alone = self.control.lock();
        if self.life() != Life::Live {
            return Err(Error::new(ErrorKind::Offline, "the disk is being removed"));
        }
        self.begin_freeze();
        self.wait_drained();
        let result = f();
        self.end_freeze();
        result
    }

    /// Tells the hardware queues what the scheduler says of it.
    fn set_async_depth(&self) {
        let depth = self.shared.elevator.async_depth();
        self.hctxs.iter().for_each(|hctx| hctx.set_async_depth(depth));
    }

    /// Gives every hardware queue `count` requests, or leaves all as they are.
    fn resize_pools(&self, count: usize) -> Result<()> {
        for (done, hctx) in self.hctxs.iter().enumerate() {
            if let Err(err) = hctx.resize_pool(count) {
                // Only making requests fails, so that these become fewer again, which does not.
                for hctx in &self.hctxs[..done] {
                    hctx.resize_pool(self.requests())?;
                }
                return Err(err);
            }
        }
        self.requests.store(count, Ordering::Relaxed);
        Ok(())
    }
}

impl<D: Driver> Queue for RequestQueue<D> {
    fn submit(&self, cpu: usize, from: Registrant, bio: Box<Bio>) {
        let hctx = self.hctx(cpu, &bio);
        self.hctxs[hctx].submit(cpu, from, std::iter::once(bio));
    }

    fn fence(&self) -> &Fence {
        &self.shared.fence
    }

    fn hw_queues(&self) -> usize {
        self.hctxs.len()
    }

    fn set_alarm(&self, alarm: Alarm) {
        *self.shared.alarm.write() = Some(alarm);
    }

    fn submit_all(&self, cpu: usize, from: Registrant, bios: &mut Vec<Box<Bio>>) {
        let mut bios = bios.drain(..).peekable();
        while let Some(first) = bios.peek() {
            let hctx = self.hctx(cpu, first);
            let same = std::iter::from_fn(|| bios.next_if(|bio| self.hctx(cpu, bio) == hctx));
            self.hctxs[hctx].submit(cpu, from, same);
        }
    }

    fn poll(&self, cpu: usize) -> usize {
        self.hctxs[self.set.maps.hctx(QueueType::Poll, cpu)].poll()
    }

    fn cpus(&self) -> usize {
        self.set.config.cpus
    }

    fn capacity(&self) -> Sector {
        self.shared.capacity()
    }

    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes()
    }

    fn set_size(&self, size: Size) {
        self.shared.size_bytes.store(size.bytes, Ordering::Release);
        self.shared.capacity.store(size.capacity.0, Ordering::Release);
    }

    fn is_read_only(&self) -> bool {
        self.shared.is_read_only()
    }

    fn set_read_only(&self, read_only: bool) -> bool {
        self.shared.read_only.swap(read_only, Ordering::AcqRel)
    }

    fn fail_flushes(&self) {
        self.shared.fails_flushes.store(true, Ordering::Release);
    }

    fn flush_failed(&self) {
        self.shared.flush_failed();
    }

    fn on_failed_flush(&self, told: FailedFlush) {
        // Whoever was first is told.
        let _ = self.shared.on_failed_flush.set(told);
    }

    fn limits(&self) -> Limits {
        self.limits.read().clone()
    }

    fn set_limits(&self, limits: Limits) -> Result<()> {
        self.while_frozen(|| {
            self.hctxs.iter().for_each(|hctx| hctx.set_limits(limits.clone()));
            *self.limits.write() = limits;
            Ok(())
        })
    }

    fn freeze(&self) {
        self.begin_freeze();
        self.wait_drained();
    }

    fn start_freeze(&self) {
        self.begin_freeze();
    }

    fn wait_frozen(&self) {
        self.wait_drained();
    }

    fn unfreeze(&self) {
        self.end_freeze();
    }

    fn quiesce(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.quiesce());
    }

    fn quiesce_nowait(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.quiesce_nowait());
    }

    fn unquiesce(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.unquiesce());
    }

    fn end_quiesce(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.end_quiesce());
    }

    fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            0 => Life::Live,
            1 => Life::Dying,
            _ => Life::Dead,
        }
    }

    /// DYING: what comes fails; what is out ends; DEAD: the driver's part goes (kernel:
    /// `blk_mq_destroy_queue`).
    fn shut_down(&self) -> bool {
        let control = self.control.lock();
        if self.life.fetch_max(1, Ordering::AcqRel) > 0 {
            return false;
        }
        self.hctxs.iter().for_each(|hctx| hctx.die());
        // For good: nobody ticks it any more.
        self.begin_freeze();
        self.wait_drained();
        self.shared.elevator.replace(None);
        self.life.store(2, Ordering::Release);
        self.hctxs.iter().for_each(|hctx| hctx.detach());
        drop(control);
        true
    }

    fn scheduler(&self) -> Kind {
        self.shared.elevator.kind()
    }

    fn set_scheduler(&self, kind: Kind) -> Result<()> {
        if kind != Kind::None && self.set.config.flags.contains(TagSetFlags::NO_SCHED) {
            return Err(Error::new(
                ErrorKind::NotSupported,
                format!("disks of this driver take no scheduler, {kind} neither"),
            ));
        }
        self.while_frozen(|| {
            // As the kernel: twice the depth, of at most 128 (BLKDEV_DEFAULT_RQ), where a scheduler sorts; the
            // depth itself else.
            let depth = self.set.config.depth;
            let scheduler = kind.build(depth.min(128) * 2);
            let requests = if scheduler.is_some() { depth.min(128) * 2 } else { depth } as usize;
            self.resize_pools(requests)?;
            self.hctxs.iter().for_each(|hctx| hctx.set_elevator(scheduler.is_some()));
            self.shared.elevator.replace(scheduler);
            self.set_async_depth();
            Ok(())
        })
    }

    fn tune(&self, name: &str, value: Option<u64>) -> Result<u64> {
        let tuned = self.shared.elevator.with(|scheduler| {
            if let Some(value) = value {
                scheduler.set(name, value)?;
            }
            scheduler.get(name)
        });
        if value.is_some() {
            self.set_async_depth();
        }
        match tuned {
            Some(result) => result.map_err(|err| {
                Error::new(ErrorKind::Invalid, "the scheduler cannot be tuned so").caused_by(err)
            }),
            None => Err(Error::new(
                ErrorKind::NotSupported,
                "no scheduler to tune; set one first: mq-deadline",
            )),
        }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    fn set_requests(&self, count: usize) -> Result<()> {
        let depth = self.set.config.depth as usize;
        let most =
            if self.scheduler() == Kind::None { depth } else { crate::tag_set::MAX_DEPTH as usize };
        if count == 0 || count > most {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("nr_requests is from 1 to {most} here, not {count}"),
            ));
        }
        self.while_frozen(|| {
            self.resize_pools(count)?;
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.shared.elevator.with(|scheduler| scheduler.depth_updated(count));
            self.set_async_depth();
            Ok(())
        })
    }

    fn stats(&self) -> QueueStats {
        let mut sum = QueueStats::default();
        for hctx in &self.hctxs {
            sum.add(&hctx.lock().stats);
        }
        sum
    }

    fn busy_ms(&self) -> u64 {
        let busy = || self.hctxs.iter().any(|hctx| hctx.lock().allocated > 0);
        self.shared.busy.update(self.shared.clock.now_ns(), busy);
        self.shared.busy.busy_ms()
    }

    fn in_flight(&self) -> Vec<(usize, InFlight)> {
        let now_ns = self.shared.clock.now_ns();
        self.hctxs
            .iter()
            .flat_map(|hctx| hctx.in_flight(now_ns).into_iter().map(|rq| (hctx.index, rq)))
            .collect()
    }

    fn show(&self) -> String {
        let queues: String = self.hctxs.iter().map(ToString::to_string).collect();
        format!("{queues}{}", self.shared.locks)
    }

    fn set_timeout(&self, timeout_ns: u64) {
        self.shared.timeout_ns.store(timeout_ns, Ordering::Relaxed);
    }

    fn set_throttle(&self, groups: &[Arc<ThrottleGroup>]) {
        self.hctxs.iter().for_each(|hctx| hctx.set_throttle(groups));
    }

    fn throttle_changed(&self) {
        self.shared.ring_alarm();
    }

    fn set_longest_wait(&self, longest_ns: u64) {
        self.hctxs.iter().for_each(|hctx| hctx.set_longest_wait(longest_ns));
    }

    fn admit_kept(&self) {
        let now_ns = self.shared.clock.now_ns();
        self.hctxs.iter().for_each(|hctx| hctx.set_admitted_until(now_ns));
        self.admit_due();
    }

    fn admit_due(&self) {
        self.hctxs.iter().for_each(|hctx| hctx.admit_due());
        // What may wait for a while has another time now.
        self.shared.ring_alarm();
    }

    fn oldest_age_ns(&self) -> Option<u64> {
        // In this order: what locks keep back has come from the queues, and keeps its place until it has ended.
        let queued = self.hctxs.iter().filter_map(|hctx| hctx.oldest_ns()).min();
        let oldest_ns = queued.into_iter().chain(self.shared.locks.oldest_ns()).min()?;
        Some(self.shared.clock.now_ns().saturating_sub(oldest_ns))
    }

    fn set_faults(&self, faults: Option<Arc<FaultSet>>) {
        self.hctxs.iter().for_each(|hctx| hctx.set_faults(faults.clone()));
        self.shared.ring_alarm();
    }

    fn held(&self) -> Vec<(Option<u64>, bool)> {
        self.hctxs.iter().flat_map(|hctx| hctx.held()).collect()
    }

    fn release(&self, which: &dyn Fn(Option<u64>) -> bool) -> usize {
        self.hctxs.iter().map(|hctx| hctx.release(which)).sum()
    }

    fn fail_held(&self, status: Status) {
        self.hctxs.iter().for_each(|hctx| hctx.fail_held(status));
    }

    fn set_features(&self, features: Features) {
        let mut limits = self.limits.write();
        limits.features = features;
        self.hctxs.iter().for_each(|hctx| hctx.set_limits(limits.clone()));
    }

    fn tick(&self, now_ns: u64) -> Option<u64> {
        let again = self.shared.locks.take_on(&self.shared).then_some(now_ns);
        self.hctxs.iter().filter_map(|hctx| hctx.tick(now_ns)).chain(again).min()
    }

    fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }
}

impl<D: Driver> Drop for RequestQueue<D> {
    fn drop(&mut self) {
        self.shut_down();
    }
}
