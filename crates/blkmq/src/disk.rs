//! A disk: a queue with a name, a size, partitions, and people who have it open (kernel: `struct gendisk`).

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::badblocks::BadBlocks;
use crate::bdev::{Bdev, OpenMode};
use crate::bio::Bio;
use crate::block_device_ops::BlockDeviceOps;
use crate::clock::Clock;
use crate::driver::{Driver, InFlight};
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::limits::{Features, Limits};
use crate::major::{DISK_MAX_PARTS, DevNum};
use crate::op::Status;
use crate::partition_device::Partition;
use crate::queue::{FailedFlush, Life, Queue, RequestQueue, Size};
use crate::sched::Kind;
use crate::stats::QueueStats;
use crate::tag_set::TagSet;
use crate::units::Sector;

bitflags::bitflags! {
    /// What kind of disk it is (kernel: `GENHD_FL_*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct DiskFlags: u32 {
        /// Its medium can be taken out.
        const REMOVABLE = 1 << 0;
        /// It is in no list, and has no partitions.
        const HIDDEN = 1 << 1;
        /// Its partition table is not looked at.
        const NO_PART_SCAN = 1 << 2;
        /// Its medium is not changed unless somebody reports it: media-change events are not polled for.
        const ASYNC_EVENTS = 1 << 3;
    }
}

/// What a disk is made from.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Its name, as `ram0`.
    pub name: String,
    /// The major of its driver, and its first minor.
    pub dev: DevNum,
    /// Minors that are its own: itself and its first partitions. At most 256.
    pub minors: u32,
    /// What kind of disk it is.
    pub flags: DiskFlags,
    /// How large it is.
    pub capacity: Sector,
    /// Bytes at the end of that which are not there, less than a logical block: where the bytes below end within one.
    /// The driver reads them as zeroes, and drops what is written to them.
    pub tail_padding: u32,
    /// Whether it refuses to be changed.
    pub read_only: bool,
    /// What its driver can take.
    pub limits: Limits,
    /// The NUMA node that it is near to.
    pub node: Option<u32>,
}

impl DiskConfig {
    /// A disk of that name and size, with nothing special about it.
    #[must_use]
    pub fn new(name: impl Into<String>, capacity: Sector, limits: Limits) -> Self {
        Self {
            name: name.into(),
            dev: DevNum { major: 0, minor: 0 },
            minors: 1,
            flags: DiskFlags::default(),
            capacity,
            tail_padding: 0,
            read_only: false,
            limits,
            node: None,
        }
    }
}

/// Something that happened to a disk, of which its users want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It can be used now.
    Added,
    /// Its size has changed, if only by what its last block has of padding.
    Resized {
        /// From.
        from: Sector,
        /// To.
        to: Sector,
    },
    /// It became read-only, or ceased to be.
    ReadOnly(bool),
    /// There is another medium in it, or none.
    MediaChanged,
    /// Its partitions were read anew.
    Partitions,
    /// It is gone: I/O to it fails.
    Removed,
}

/// Is told what happens to a disk, on the thread that makes it happen. It must not block.
pub trait DiskListener: Send + Sync {
    /// Something happened to `disk`.
    fn event(&self, disk: &Disk, event: Event);
}

#[derive(Default)]
struct Partitions {
    list: Vec<Arc<Partition>>,
    /// The disk is being removed: there will be none any more.
    closed: bool,
}

/// A disk. Dropping the last reference ends it as well: that waits for what is out, so that it is not for an
/// [`EndIo`](crate::EndIo) to do.
pub struct Disk {
    name: String,
    dev: DevNum,
    minors: u32,
    flags: DiskFlags,
    node: Option<u32>,
    pub(crate) ops: Arc<dyn BlockDeviceOps>,
    pub(crate) queue: Arc<dyn Queue>,
    partitions: RwLock<Partitions>,
    listeners: Mutex<Vec<Weak<dyn DiskListener>>>,
    bad_blocks: Mutex<BadBlocks>,
    openers: AtomicU32,
    resizing: Mutex<()>,
    next_registrant: AtomicU64,
}

impl Disk {
    /// A disk of `set`'s driver; nobody sees it before it is added (kernel: `blk_mq_alloc_disk`).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name or limits that cannot be; whatever the driver says when its queues are
    /// set up.
    pub fn alloc<D: Driver>(
        set: &Arc<TagSet<D>>,
        disk: D::Disk,
        mut config: DiskConfig,
        ops: Arc<dyn BlockDeviceOps>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let bad_name = |c: char| c.is_whitespace() || c.is_control() || c == '/';
        if config.name.is_empty() || config.name.len() > 31 || config.name.contains(bad_name) {
            let what = format!(
                "invalid disk name {:?}; use 1 to 31 bytes without spaces or slashes",
                config.name
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if config.minors > DISK_MAX_PARTS {
            tracing::warn!(
                disk = config.name,
                asked = config.minors,
                given = DISK_MAX_PARTS,
                "more minors than a disk can have"
            );
            config.minors = DISK_MAX_PARTS;
        }
        let limits = config.limits.validate().map_err(|err| {
            Error::new(ErrorKind::Invalid, format!("{}: impossible limits", config.name))
                .caused_by(err)
        })?;
        let size = Size::new(&config.name, config.capacity, config.tail_padding, &limits)?;
        let queue = RequestQueue::new(set, disk, limits, clock)?;
        queue.set_size(size);
        queue.set_read_only(config.read_only);
        Ok(Arc::new(Self {
            name: config.name,
            dev: config.dev,
            minors: config.minors.max(1),
            flags: config.flags,
            node: config.node,
            ops,
            queue,
            partitions: RwLock::default(),
            listeners: Mutex::default(),
            bad_blocks: Mutex::default(),
            openers: AtomicU32::new(0),
            resizing: Mutex::default(),
            next_registrant: AtomicU64::new(1),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its device number.
    #[must_use]
    pub fn dev(&self) -> DevNum {
        self.dev
    }

    /// How many minors are its own.
    #[must_use]
    pub fn minors(&self) -> u32 {
        self.minors
    }

    /// What kind of disk it is.
    #[must_use]
    pub fn flags(&self) -> DiskFlags {
        self.flags
    }

    /// The NUMA node that it is near to.
    #[must_use]
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    /// How large it is, in sectors of 512 bytes whatever its logical block size.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.queue.capacity()
    }

    /// How large it is in bytes: [`Disk::capacity`], less what its last block has of padding.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.queue.size_bytes()
    }

    /// What can be asked of it in one request. It never waits, not while the disk drains either.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.queue.limits()
    }

    /// Changes its limits, while nothing is out. Blocks until what is out has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for limits that cannot be.
    pub fn set_limits(&self, limits: Limits) -> Result<()> {
        let limits = limits
            .validate()
            .map_err(|err| Error::new(ErrorKind::Invalid, "impossible limits").caused_by(err))?;
        self.queue.set_limits(limits)
    }

    /// Whether it refuses to be changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.queue.is_read_only()
    }

    /// Lets it be changed, or not.
    pub fn set_read_only(&self, read_only: bool) {
        if self.queue.set_read_only(read_only) != read_only {
            self.notify(Event::ReadOnly(read_only));
        }
    }

    /// From now on all that is to be flushed fails: something that was promised to be durable may be lost, and whoever uses
    /// the disk has not given up what it has of that yet.
    pub fn fail_flushes(&self) {
        self.queue.fail_flushes();
    }

    /// Its driver knows that flushes will fail, as something is lost, before anybody has asked for one.
    pub fn flush_failed(&self) {
        self.queue.flush_failed();
    }

    /// Has `told` called whenever the driver has failed a flush, before whoever has asked for it hears of that, or knows that
    /// it will. Once for a disk.
    pub fn on_failed_flush(&self, told: FailedFlush) {
        self.queue.on_failed_flush(told);
    }

    /// Makes it larger or smaller, with no padding. Its users are told; what is past a new end fails from now on.
    ///
    /// # Errors
    /// As [`Disk::set_size`].
    pub fn set_capacity(&self, capacity: Sector) -> Result<()> {
        self.set_size(capacity, 0)
    }

    /// As [`Disk::set_capacity`], with [`DiskConfig::tail_padding`].
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] past the largest size, or for more padding than a block has; [`ErrorKind::Offline`] once
    /// it is being removed.
    pub fn set_size(&self, capacity: Sector, tail_padding: u32) -> Result<()> {
        self.change_size(capacity, tail_padding)?.into_iter().for_each(|event| self.notify(event));
        Ok(())
    }

    /// As [`Disk::set_size`], and says what its users are to be told.
    fn change_size(&self, capacity: Sector, tail_padding: u32) -> Result<Option<Event>> {
        let size = Size::new(&self.name, capacity, tail_padding, &self.limits())?;
        if self.queue.life() != Life::Live {
            return Err(Error::new(ErrorKind::Offline, format!("{} is being removed", self.name)));
        }
        let (from, bytes) = (self.capacity(), self.size_bytes());
        self.queue.set_size(size);
        let changed = (from, bytes) != (size.capacity, size.bytes);
        Ok(changed.then_some(Event::Resized { from, to: capacity }))
    }

    /// Has the driver make room for a new size, then takes it as [`Disk::set_capacity`] does. Nothing is out when it does: it
    /// blocks until what is has ended.
    ///
    /// # Errors
    /// What the driver says, [`ErrorKind::Invalid`] for a size that is no multiple of the logical block, and the errors
    /// of [`Disk::set_capacity`].
    pub fn resize(&self, to: Sector) -> Result<()> {
        self.whole_blocks(to.bytes())?;
        self.resize_bytes(to.bytes())
    }

    /// As [`Disk::resize`], to any size that its driver can make; its last block is padded.
    ///
    /// # Errors
    /// What the driver says, and the errors of [`Disk::set_size`].
    pub fn resize_bytes(&self, to: u64) -> Result<()> {
        // One at a time: of two, the driver and the block layer would each take another for the last.
        let _resizing = self.resizing.lock();
        let (capacity, tail_padding) = self.limits().logical_block_size.padded(to);
        Size::new(&self.name, capacity, tail_padding, &self.limits())?;
        self.ops.prepare_resize(self, to)?;
        // What is padding and what is the disk's changes for the block that was the last, while the driver and the block layer
        // would each have another end: a write of that block must be before all of it, or after.
        self.queue.freeze();
        self.ops.resize(self, to);
        let resized = self.change_size(capacity, tail_padding);
        self.queue.unfreeze();
        // Whoever is told may wait for I/O, as a kernel that freezes its own queue.
        resized?.into_iter().for_each(|event| self.notify(event));
        Ok(())
    }

    /// A size of whole logical blocks, for drivers that can make no other.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for another.
    pub fn whole_blocks(&self, bytes: u64) -> Result<Sector> {
        let block = self.limits().logical_block_size;
        if block.divides(bytes) {
            return Ok(Sector::from_bytes_floor(bytes));
        }
        let (name, block) = (&self.name, block.bytes());
        let what = format!("{bytes} is not a multiple of {block}, the block size of {name}");
        Err(Error::new(ErrorKind::Invalid, what))
    }

    /// Its heads, sectors and cylinders.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.ops.geometry(self).unwrap_or_else(|| Geometry::of_capacity(self.capacity()))
    }

    /// Its partitions, by number.
    #[must_use]
    pub fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().list.clone()
    }

    /// The name of one of its partitions: with a `p` where the disk's own name ends in a digit (kernel:
    /// `disk_name`).
    #[must_use]
    pub fn partition_name(&self, number: u32) -> String {
        crate::partition::device_name(&self.name, number)
    }

    /// Opens it, or a partition of it.
    ///
    /// # Errors
    /// [`ErrorKind::Offline`] once it is being removed, [`ErrorKind::NotFound`] for a partition that there is
    /// not, [`ErrorKind::NotPermitted`] for writing to a read-only disk, or whatever its driver says.
    pub fn open(self: &Arc<Self>, partition: Option<u32>, mode: OpenMode) -> Result<Bdev> {
        if self.queue.life() != Life::Live {
            return Err(Error::new(ErrorKind::Offline, format!("{} is being removed", self.name)));
        }
        if mode == OpenMode::ReadWrite && self.is_read_only() {
            return Err(Error::new(
                ErrorKind::NotPermitted,
                format!("{} is read-only; open it read-only", self.name),
            ));
        }
        let part = match partition {
            None => None,
            Some(number) => {
                let found = self
                    .partitions
                    .read()
                    .list
                    .iter()
                    .find(|part| part.info.number == number)
                    .cloned();
                let missing = || {
                    Error::new(
                        ErrorKind::NotFound,
                        format!("{} has no partition {number}", self.name),
                    )
                };
                Some(found.ok_or_else(missing)?)
            }
        };
        let first = self.openers.fetch_add(1, Ordering::AcqRel) == 0;
        if let Err(err) = self.ops.open(self, mode, first) {
            self.openers.fetch_sub(1, Ordering::AcqRel);
            return Err(err);
        }
        let registrant = self.next_registrant.fetch_add(1, Ordering::Relaxed);
        Ok(Bdev::new(Arc::clone(self), part, mode, registrant))
    }

    pub(crate) fn release(&self) {
        let last = self.openers.fetch_sub(1, Ordering::AcqRel) == 1;
        self.ops.release(self, last);
    }

    /// How many have it open.
    #[must_use]
    pub fn openers(&self) -> u32 {
        self.openers.load(Ordering::Acquire)
    }

    /// How far its end has come.
    #[must_use]
    pub fn life(&self) -> Life {
        self.queue.life()
    }

    /// Tells `listener` what happens from now on, as long as it lives.
    pub fn subscribe(&self, listener: &Arc<dyn DiskListener>) {
        let mut listeners = self.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(listener));
    }

    pub(crate) fn notify(&self, event: Event) {
        let listeners: Vec<_> = self.listeners.lock().iter().filter_map(Weak::upgrade).collect();
        listeners.iter().for_each(|listener| listener.event(self, event));
    }

    /// Asks the driver whether the medium was changed; if so it finds the new size out, and its users are told.
    /// Gives the partitions of the old medium back.
    pub(crate) fn check_events(self: &Arc<Self>) -> Result<Option<Vec<Arc<Partition>>>> {
        if !self.ops.check_events(self) {
            return Ok(None);
        }
        let parts = self.replace_partitions(Vec::new()).unwrap_or_default();
        let found = self.ops.revalidate(self);
        self.notify(Event::MediaChanged);
        found.map(|()| Some(parts))
    }

    /// Takes the old partitions away, last first, and puts the new ones in their place: of a disk that is being removed
    /// there are none any more, so that they are what it gives back.
    pub(crate) fn replace_partitions(
        &self,
        new: Vec<Arc<Partition>>,
    ) -> std::result::Result<Vec<Arc<Partition>>, Vec<Arc<Partition>>> {
        let mut partitions = self.partitions.write();
        if partitions.closed {
            return Err(new);
        }
        let old = std::mem::replace(&mut partitions.list, new);
        drop(partitions);
        old.iter().rev().for_each(|part| part.remove());
        Ok(old)
    }

    /// Takes all partitions away, last first, for good.
    fn close_partitions(&self) -> Vec<Arc<Partition>> {
        let old = {
            let mut partitions = self.partitions.write();
            partitions.closed = true;
            std::mem::take(&mut partitions.list)
        };
        old.iter().rev().for_each(|part| part.remove());
        old
    }

    /// Flushes what has a cache, also while it is frozen: somebody may hold it so, and wait for the flush's end.
    fn flush_inside(self: &Arc<Self>) -> Status {
        let features = self.limits().features;
        if !features.contains(Features::WRITE_CACHE) || features.contains(Features::NO_FLUSH) {
            return Status::Ok;
        }
        let bdev = Bdev::new(Arc::clone(self), None, OpenMode::Internal, 0);
        let mut bio = Bio::flush();
        bio.inside = true;
        bdev.submit_and_wait(0, bio).status()
    }

    /// Freezes it and flushes it: nothing is answered any more that is not durable, until it is unfrozen. Says how the flush
    /// has ended. Blocks as long as what is out takes.
    #[must_use]
    pub fn freeze_and_flush(self: &Arc<Self>) -> Status {
        self.freeze();
        self.flush_inside()
    }

    /// Takes it out of service (kernel: `del_gendisk`): partitions go, last first; what was written is flushed;
    /// what is out ends; its size becomes 0, and what comes later fails with [`Status::Offline`]. Blocks until
    /// all that is done. Gives the partitions back, and says how the last flush has ended.
    pub(crate) fn shut_down(self: &Arc<Self>) -> (Vec<Arc<Partition>>, Status) {
        let parts = self.close_partitions();
        // What was held back has to end, too.
        self.queue.end_quiesce();
        let mut flushed = Status::Ok;
        if self.queue.life() == Life::Live {
            flushed = self.flush_inside();
            if !flushed.is_ok() {
                tracing::error!(
                    disk = self.name,
                    status = %flushed,
                    "final flush failed; writes since the last successful flush may be lost"
                );
            }
        }
        let ended = self.queue.shut_down();
        self.queue.set_size(Size::default());
        if ended {
            self.notify(Event::Removed);
        }
        (parts, flushed)
    }

    /// The list of blocks known to be bad, which its driver keeps.
    pub fn bad_blocks(&self) -> parking_lot::MutexGuard<'_, BadBlocks> {
        self.bad_blocks.lock()
    }

    /// The scheduler that orders its requests.
    #[must_use]
    pub fn scheduler(&self) -> Kind {
        self.queue.scheduler()
    }

    /// Changes the scheduler, under load too. Blocks until what is out has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] where the driver wants none.
    pub fn set_scheduler(&self, kind: Kind) -> Result<()> {
        self.queue.set_scheduler(kind)
    }

    /// Reads a tunable of its scheduler, having set it if `value` is given.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an unknown name or a value out of range, [`ErrorKind::NotSupported`] without
    /// a scheduler.
    pub fn tune_scheduler(&self, name: &str, value: Option<u64>) -> Result<u64> {
        self.queue.tune(name, value)
    }

    /// Requests that each of its hardware queues may hold, waiting ones included (sysfs: `nr_requests`).
    #[must_use]
    pub fn nr_requests(&self) -> usize {
        self.queue.requests()
    }

    /// Changes that number. Blocks until what is out has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for none, or more than there are tags where no scheduler sorts.
    pub fn set_nr_requests(&self, count: usize) -> Result<()> {
        self.queue.set_requests(count)
    }

    /// How long a request may be out before its driver is asked about it.
    pub fn set_timeout(&self, timeout: std::time::Duration) {
        self.queue.set_timeout(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Holds new I/O back, and waits until what is out has ended. Balance it with [`Disk::unfreeze`].
    pub fn freeze(&self) {
        self.queue.freeze();
    }

    /// Lets I/O go on.
    pub fn unfreeze(&self) {
        self.queue.unfreeze();
    }

    /// Sends nothing more to the driver; what it has may end. Balance it with [`Disk::unquiesce`]. Waits for whoever is
    /// with the driver now, so that it is not for an [`EndIo`](crate::EndIo), which may be called by that one: see
    /// [`Disk::quiesce_nowait`].
    pub fn quiesce(&self) {
        self.queue.quiesce();
    }

    /// As [`Disk::quiesce`], from anywhere: what is on its way to the driver may still get there (kernel:
    /// `blk_mq_quiesce_queue_nowait`).
    pub fn quiesce_nowait(&self) {
        self.queue.quiesce_nowait();
    }

    /// Sends to the driver again.
    pub fn unquiesce(&self) {
        self.queue.unquiesce();
    }

    /// What it has done so far, and for how many milliseconds it was busy.
    #[must_use]
    pub fn stats(&self) -> (QueueStats, u64) {
        (self.queue.stats(), self.queue.busy_ms())
    }

    /// What is with the driver now: the hardware queue, and the request.
    #[must_use]
    pub fn in_flight(&self) -> Vec<(usize, InFlight)> {
        self.queue.in_flight()
    }

    /// The state of its queues in many words, for people who look for what is stuck.
    #[must_use]
    pub fn show(&self) -> String {
        self.queue.show()
    }

    /// Sees to timeouts and to what is to be tried again. Says when to call again, in the clock's time; a
    /// second later is always early enough.
    pub fn tick(&self) -> Option<u64> {
        self.queue.tick(self.queue.clock().now_ns())
    }

    /// Has `alarm` called, from whatever thread, when [`Disk::tick`] has something to do sooner than it said last. Who
    /// sets it ticks the disk, on a thread that may take its time: drivers leave the rest of long work to it.
    pub fn set_alarm(&self, alarm: Arc<dyn Fn() + Send + Sync>) {
        self.queue.set_alarm(alarm);
    }

    /// How many hardware queues it has.
    #[must_use]
    pub(crate) fn hw_queues(&self) -> usize {
        self.queue.hw_queues()
    }

    /// The number of CPUs that it knows, one software queue each.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.queue.cpus()
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.name)
            .field("dev", &self.dev)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}
