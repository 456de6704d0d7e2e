//! From a plan to a disk: what all kinds have in common.

use std::sync::{Arc, Weak};
use std::time::Duration;

use blockyard_blkmq::major::DevNum;
use blockyard_blkmq::{
    BlockDeviceOps, BlockLayer, BlockSize, Clock, Disk, DiskConfig, DiskFlags, Driver, FailedFlush,
    Features, Limits, QueueType, TagSet, TagSetConfig, Throttle, ThrottleGroup,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::kind::Fresh;
use super::open::OpenDisk;
use super::plan::DiskPlan;
use super::remote::Remote;
use super::throttle;
use crate::error::{Error, Result, quoted};

/// Makes disks whose hardware queues belong to queue threads.
pub struct DiskMaker {
    layer: Arc<BlockLayer>,
    threads: Vec<Handle>,
    clock: Arc<dyn Clock>,
    flags: DiskFlags,
    numbers: Arc<Mutex<Numbers>>,
    /// What it has taken of these, for disks that the block layer may not have yet.
    taken: Vec<DevNums>,
}

/// The first device number of a disk, and how many it has.
type DevNums = (DevNum, u32);

/// What all makers of a block layer share.
#[derive(Default)]
struct Numbers {
    /// The majors that were registered, by the kinds of disks.
    majors: Vec<(&'static str, u32)>,
    /// Those of disks that are being made.
    taken: Vec<DevNums>,
    /// Disks that keep to limits together.
    groups: Vec<(String, Weak<ThrottleGroup>)>,
}

/// What a driver makes a disk of.
pub struct Parts<D> {
    /// The driver.
    pub driver: Arc<D>,
    /// What a whole disk can do besides I/O.
    pub ops: Arc<dyn BlockDeviceOps>,
    /// Bytes.
    pub size: u64,
    /// What it can take.
    pub limits: Limits,
    /// Nobody may change it.
    pub read_only: bool,
    /// Its hardware queues.
    pub tags: TagSetConfig,
    /// What else is particular to it.
    pub flags: DiskFlags,
}

impl<D: Driver<Disk = ()> + BlockDeviceOps> Parts<D> {
    /// A hardware queue for each queue thread, and nothing special.
    #[must_use]
    pub fn new(
        plan: &DiskPlan,
        maker: &DiskMaker,
        driver: Arc<D>,
        size: u64,
        limits: Limits,
    ) -> Self {
        let threads = maker.threads.len();
        let mut hw_queues = [0; QueueType::COUNT];
        hw_queues[0] = plan.options.queues.unwrap_or(usize::MAX).min(threads);
        let tags = TagSetConfig { cpus: threads, hw_queues, ..TagSetConfig::default() };
        let ops = Arc::<D>::clone(&driver);
        let read_only = plan.options.read_only;
        Self { driver, ops, size, limits, read_only, tags, flags: DiskFlags::empty() }
    }
}

impl DiskMaker {
    /// Disks go to `layer`, their queues to `threads`.
    #[must_use]
    pub fn new(layer: &Arc<BlockLayer>, threads: &[Handle], clock: Arc<dyn Clock>) -> Self {
        Self {
            layer: Arc::clone(layer),
            threads: threads.to_vec(),
            clock,
            flags: DiskFlags::empty(),
            numbers: Arc::default(),
            taken: Vec::new(),
        }
    }

    /// Another one for the same block layer: each opens one disk at a time, which may take long.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            layer: Arc::clone(&self.layer),
            threads: self.threads.clone(),
            clock: Arc::clone(&self.clock),
            flags: DiskFlags::empty(),
            numbers: Arc::clone(&self.numbers),
            taken: Vec::new(),
        }
    }

    /// The queue threads.
    #[must_use]
    pub fn threads(&self) -> &[Handle] {
        &self.threads
    }

    /// Opens the disk of a plan, and those that it lies on, and adds them. Never called on a queue thread: it may wait.
    ///
    /// # Errors
    /// What keeps one from being opened, with what to do. Nothing of it is left then.
    pub fn open(&mut self, plan: &DiskPlan) -> Result<OpenDisk> {
        self.open_with(plan, DiskFlags::empty())
    }

    /// As [`DiskMaker::open`]; the disk, and those that it lies on, have these flags.
    ///
    /// # Errors
    /// As those of [`DiskMaker::open`].
    pub fn open_with(&mut self, plan: &DiskPlan, flags: DiskFlags) -> Result<OpenDisk> {
        let name = plan.options.name.clone().unwrap_or_else(|| plan.default_name(0));
        let below = match &plan.below {
            Some(below) => {
                let mut below = DiskPlan::clone(below);
                below.options.name = Some(format!("{name}.{}", below.kind.name));
                Some(Box::new(self.open_with(&below, flags | DiskFlags::NO_PART_SCAN)?))
            }
            None => None,
        };
        let mut plan = plan.clone();
        plan.options.name = Some(name);
        self.flags = flags;
        let opened = self.open_above(&plan, below.as_deref());
        self.give_back();
        match opened {
            Ok((disk, remote)) => Ok(OpenDisk::new(plan.kind, disk, remote, below)),
            Err(err) => {
                if let Some(below) = below {
                    // Nothing was written to it.
                    let _ = below.close_now(&self.layer, Duration::ZERO);
                }
                Err(Error::failed(format!("cannot open {}", plan.uri)).caused_by(err))
            }
        }
    }

    fn open_above(
        &mut self,
        plan: &DiskPlan,
        below: Option<&OpenDisk>,
    ) -> Result<(Arc<Disk>, Option<Remote>)> {
        let Fresh { disk, remote } = plan.source.open(plan, below.map(OpenDisk::disk), self)?;
        let remote = remote.map(|driver| Remote::new(Arc::clone(&disk), driver));
        if let Err(err) = self.layer.add_disk(&disk) {
            if let Some(remote) = remote {
                // Nothing was written to it.
                let _ = remote.leave_now(Duration::ZERO);
            }
            return Err(Error::failed("cannot add the disk").caused_by(err));
        }
        if plan.options.size.is_none()
            && let (Some(remote), Some(thread)) = (&remote, self.threads.first())
        {
            remote.follow_size(thread);
        }
        // Not before its partitions are read: who waits for that does not tick it yet.
        let group = plan.options.throttle_group.as_deref().map(|name| self.throttle_group(name));
        throttle::begin(&disk, *plan.options.throttle, group);
        Ok((disk, remote))
    }

    /// A disk with a driver, as the options of its plan have it.
    ///
    /// # Errors
    /// The options and the driver do not go together, or there is no room.
    pub fn alloc<D: Driver<Disk = ()>>(
        &mut self,
        plan: &DiskPlan,
        parts: Parts<D>,
    ) -> Result<Arc<Disk>> {
        let options = &plan.options;
        let name = options.name.as_deref().unwrap_or_default();
        let refused = |err: blockyard_blkmq::Error| {
            Error::failed(format!("cannot create the disk {name}")).caused_by(err)
        };
        let Parts { driver, ops, size, limits, read_only, tags, flags } = parts;
        let set = TagSetConfig { depth: options.depth, ..tags };
        let set = TagSet::new(driver, set).map_err(refused)?;
        let limits = with_block(plan, limits)?;
        let (capacity, tail_padding) = limits.logical_block_size.padded(size);
        let mut config = DiskConfig::new(name, capacity, limits);
        config.tail_padding = tail_padding;
        config.dev = self.device(plan.kind.name, options.minors)?;
        config.minors = options.minors;
        config.read_only = read_only;
        config.flags = self.flags | flags;
        let disk = Disk::alloc(&set, (), config, ops, Arc::clone(&self.clock)).map_err(refused)?;
        if disk.scheduler() != options.scheduler {
            disk.set_scheduler(options.scheduler).map_err(refused)?;
        }
        Ok(disk)
    }

    /// The group of that name, as long as a disk belongs to it.
    fn throttle_group(&self, name: &str) -> Arc<ThrottleGroup> {
        let groups = &mut self.numbers.lock().groups;
        groups.retain(|(_, group)| group.strong_count() > 0);
        let known = groups.iter().find(|(known, _)| known == name);
        known.and_then(|(_, group)| group.upgrade()).unwrap_or_else(|| {
            let group = ThrottleGroup::new(Throttle::default());
            groups.push((name.to_owned(), Arc::downgrade(&group)));
            group
        })
    }

    /// The first free numbers of a kind.
    fn device(&mut self, kind: &'static str, minors: u32) -> Result<DevNum> {
        let mut numbers = self.numbers.lock();
        let major = match numbers.majors.iter().find(|(known, _)| *known == kind) {
            Some((_, major)) => *major,
            None => {
                let major = self
                    .layer
                    .register_blkdev(0, kind)
                    .map_err(|err| Error::failed("no device number is free").caused_by(err))?;
                numbers.majors.push((kind, major));
                major
            }
        };
        let disks = self.layer.disks();
        let added = disks.iter().map(|disk| (disk.dev(), disk.minors()));
        let mut taken: Vec<(u32, u32)> = added
            .chain(numbers.taken.iter().copied())
            .filter(|(dev, _)| dev.major == major)
            .map(|(dev, minors)| (dev.minor, dev.minor + minors))
            .collect();
        taken.sort_unstable();
        let mut minor = 0;
        for (start, end) in taken {
            if minor + minors <= start {
                break;
            }
            minor = minor.max(end);
        }
        let dev = DevNum { major, minor };
        numbers.taken.push((dev, minors));
        self.taken.push((dev, minors));
        Ok(dev)
    }

    /// The disks that it has made are added, or will not be.
    fn give_back(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        self.numbers.lock().taken.retain(|(dev, _)| !taken.iter().any(|(its, _)| its == dev));
    }
}

impl Drop for DiskMaker {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// What a driver calls that knows of flushes to come that they will fail.
pub(super) fn failed_flush_of(disk: &Arc<Disk>) -> FailedFlush {
    let disk = Arc::downgrade(disk);
    Box::new(move || {
        if let Some(disk) = disk.upgrade() {
            disk.flush_failed();
        }
    })
}

fn with_block(plan: &DiskPlan, mut limits: Limits) -> Result<Limits> {
    let Some(block) = plan.options.block else { return Ok(limits) };
    if block < limits.logical_block_size {
        let needed = limits.logical_block_size.bytes();
        let what = format!("the disk needs blocks of at least {needed} bytes");
        return Err(Error::usage(what).help(format!("use block={needed}, or omit it")));
    }
    limits.logical_block_size = block;
    limits.physical_block_size = limits.physical_block_size.max(block);
    Ok(limits)
}

/// A disk can be shown in part, but not be larger than it is.
pub(super) fn shown_size(plan: &DiskPlan, actual: u64) -> Result<u64> {
    let wanted = plan.options.size.unwrap_or(actual);
    if wanted > actual {
        let what = format!("the disk has {actual} bytes, less than size={wanted}");
        let help = match plan.source.file() {
            Some(path) if path.is_file() => {
                format!("run: truncate -s {wanted} {}; or omit size=", quoted(path))
            }
            _ => "omit size=".into(),
        };
        return Err(Error::failed(what).help(help));
    }
    Ok(wanted)
}

/// As [`shown_size`], of a disk that can only be cut between blocks.
pub(super) fn shown_blocks(plan: &DiskPlan, actual: u64, block: BlockSize) -> Result<u64> {
    let wanted = shown_size(plan, actual)?;
    let block = plan.options.block.unwrap_or(block);
    if wanted < actual && !block.divides(wanted) {
        let block = block.bytes();
        let what = format!("size {wanted} is not a multiple of the block size {block}");
        let size = wanted - wanted % u64::from(block);
        return Err(Error::failed(what).help(format!("show only whole blocks: size={size}")));
    }
    Ok(wanted)
}

/// What may be asked for, beyond what all disks can.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// It may be changed.
    pub writable: bool,
    /// It can forget.
    pub trim: bool,
    /// It can make zeroes without being sent them.
    pub fast_zero: bool,
    /// It can tell what is allocated.
    pub block_status: bool,
}

/// What a disk can do, as words for people and predicates.
#[must_use]
pub fn abilities(disk: &Disk) -> Vec<&'static str> {
    let limits = disk.limits();
    ability_names(Abilities {
        writable: !disk.is_read_only(),
        trim: limits.max_discard_sectors > 0,
        fast_zero: limits.max_write_zeroes_sectors > 0,
        block_status: limits.features.contains(Features::BLOCK_STATUS),
    })
}

/// The words for them.
#[must_use]
pub fn ability_names(abilities: Abilities) -> Vec<&'static str> {
    let Abilities { writable, trim, fast_zero, block_status } = abilities;
    let mut can = vec!["flush", "fua", "multi-conn", "df", "cache"];
    let more = [
        ("write", writable),
        ("zero", writable),
        ("trim", writable && trim),
        ("fast-zero", writable && fast_zero),
        ("block-status", block_status),
    ];
    can.extend(more.into_iter().filter(|(_, can)| *can).map(|(name, _)| name));
    can
}
