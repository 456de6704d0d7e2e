//! A disk: a queue with a name, a size, partitions, and people who have it open (kernel: `struct gendisk`).

mod faults;
mod queue;
mod size;

pub use queue::WaitLimit;

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::badblocks::BadBlocks;
use crate::bdev::{Bdev, OpenMode};
use crate::bio::Bio;
use crate::block_device_ops::BlockDeviceOps;
use crate::clock::Clock;
use crate::driver::Driver;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::Faults;
use crate::geometry::Geometry;
use crate::limits::{Features, Limits};
use crate::major::{DISK_MAX_PARTS, DevNum};
use crate::op::Status;
use crate::partition_device::Partition;
use crate::queue::{FailedFlush, Life, Queue, RequestQueue, Size};
use crate::tag_set::TagSet;
use crate::throttle::ThrottleGroup;
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
    /// Its limits were changed. Others of its group hear nothing of that.
    Throttled,
    /// There is another medium in it, or none.
    MediaChanged,
    /// Its partitions were read anew.
    Partitions,
    /// Other faults are injected into it than before, or none.
    Faults,
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
    throttle: Mutex<Vec<Arc<ThrottleGroup>>>,
    /// Nanoseconds, one for each [`WaitLimit`].
    wait_limits: Arc<Mutex<Vec<u64>>>,
    faults: Faults,
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
                "minors reduced to the maximum of a disk"
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
            faults: Faults::of(&config.name),
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
            throttle: Mutex::default(),
            wait_limits: Arc::default(),
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
        self.warn_of_stalled();
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
        self.start_freeze();
        self.flush_frozen()
    }

    /// The second half of [`Disk::freeze_and_flush`], after [`Disk::start_freeze`]. It may be unfrozen meanwhile, by whoever does
    /// not wait for this any longer.
    #[must_use]
    pub fn flush_frozen(self: &Arc<Self>) -> Status {
        self.queue.wait_frozen();
        self.flush_inside()
    }

    /// Takes it out of service (kernel: `del_gendisk`): partitions go, last first; what was written is flushed;
    /// what is out ends; its size becomes 0, and what comes later fails with [`Status::Offline`]. Blocks until
    /// all that is done. Gives the partitions back, and says how the last flush has ended.
    pub(crate) fn shut_down(self: &Arc<Self>) -> (Vec<Arc<Partition>>, Status) {
        let parts = self.close_partitions();
        // What was held back has to end, too.
        self.end_faults();
        self.queue.end_quiesce();
        let mut flushed = Status::Ok;
        if self.queue.life() == Life::Live {
            // What comes while that goes on is not to be held in memory that goes with the disk.
            flushed = if self.has_volatile() { self.write_back() } else { self.flush_inside() };
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
