//! From a plan to a disk: the one place that knows the drivers.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockyard_blkmq::major::DevNum;
use blockyard_blkmq::{
    BlockDeviceOps, BlockLayer, Clock, Disk, DiskConfig, DiskFlags, Driver, Features, Limits,
    NoOps, QueueType, Sector, TagSet, TagSetConfig,
};
use blockyard_driver_file::{Engine as FileEngine, File, FileConfig};
use blockyard_driver_null::{Null, NullConfig};
use blockyard_driver_ram::Ram;
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::uri::{DiskPlan, DriverPlan, Engine, FilePlan, Scheme};

/// Makes disks whose hardware queues belong to queue threads.
pub struct DiskMaker<'a> {
    layer: &'a BlockLayer,
    threads: &'a [Handle],
    clock: Arc<dyn Clock>,
    /// The major of each driver, and its next free minor.
    majors: BTreeMap<&'static str, DevNum>,
    flags: DiskFlags,
}

impl<'a> DiskMaker<'a> {
    /// Disks go to `layer`, their queues to `threads`.
    #[must_use]
    pub fn new(layer: &'a BlockLayer, threads: &'a [Handle], clock: Arc<dyn Clock>) -> Self {
        Self { layer, threads, clock, majors: BTreeMap::new(), flags: DiskFlags::empty() }
    }

    /// The disks are all of that kind.
    #[must_use]
    pub fn with_flags(mut self, flags: DiskFlags) -> Self {
        self.flags = flags;
        self
    }

    /// Makes the disk of a plan, and adds it.
    ///
    /// # Errors
    /// What keeps it from being made, with what to do.
    pub fn make(&mut self, plan: &DiskPlan) -> Result<Arc<Disk>> {
        let name = plan.options.name.clone().unwrap_or_else(|| plan.default_name(0));
        let failed = |err: Error| Error::failed(format!("cannot open {}", plan.uri)).caused_by(err);
        self.make_named(plan, &name).map_err(failed)
    }

    fn make_named(&mut self, plan: &DiskPlan, name: &str) -> Result<Arc<Disk>> {
        let disk = match &plan.driver {
            DriverPlan::Ram { size } => {
                let capacity = Sector::from_bytes_floor(*size);
                let ram = Ram::new();
                let ops = Arc::clone(&ram);
                self.alloc(plan, name, ram, ops, capacity, Ram::limits())?
            }
            DriverPlan::Null { size, latency } => {
                let capacity = Sector::from_bytes_floor(*size);
                let latency = Some(*latency).filter(|latency| !latency.is_zero());
                let null = Null::new(NullConfig { capacity, latency }, self.threads)
                    .map_err(|err| Error::failed("cannot make the disk").caused_by(err))?;
                self.alloc(plan, name, null, Arc::new(NoOps), capacity, Null::limits())?
            }
            DriverPlan::File(file) => {
                let (driver, info) =
                    File::open(&file_config(file, plan), self.threads).map_err(file_error)?;
                let capacity = file_capacity(plan, info.capacity)?;
                self.alloc(plan, name, driver, Arc::new(NoOps), capacity, info.limits)?
            }
        };
        self.layer
            .add_disk(&disk)
            .map_err(|err| Error::failed("cannot add the disk").caused_by(err))?;
        Ok(disk)
    }

    fn alloc<D: Driver<Disk = ()>>(
        &mut self,
        plan: &DiskPlan,
        name: &str,
        driver: Arc<D>,
        ops: Arc<dyn BlockDeviceOps>,
        capacity: Sector,
        limits: Limits,
    ) -> Result<Arc<Disk>> {
        let options = &plan.options;
        let refused = |err: blockyard_blkmq::Error| {
            Error::failed(format!("cannot make the disk {name}")).caused_by(err)
        };
        let mut hw_queues = [0; QueueType::COUNT];
        hw_queues[0] = options.queues.unwrap_or(usize::MAX).min(self.threads.len());
        let set = TagSetConfig {
            cpus: self.threads.len(),
            hw_queues,
            depth: options.depth,
            ..TagSetConfig::default()
        };
        let set = TagSet::new(driver, set).map_err(refused)?;
        let mut config = DiskConfig::new(name, capacity, self.limits(plan, limits)?);
        config.dev = self.device(plan.scheme().name(), options.minors)?;
        config.minors = options.minors;
        config.read_only = options.read_only;
        config.flags = self.flags;
        if plan.scheme() == Scheme::Null {
            // There is nothing on it, and looking may take as long as its latency says.
            config.flags |= DiskFlags::NO_PART_SCAN;
        }
        let disk = Disk::alloc(&set, (), config, ops, Arc::clone(&self.clock)).map_err(refused)?;
        if disk.scheduler() != options.scheduler {
            disk.set_scheduler(options.scheduler).map_err(refused)?;
        }
        Ok(disk)
    }

    fn limits(&self, plan: &DiskPlan, mut limits: Limits) -> Result<Limits> {
        let Some(block) = plan.options.block else { return Ok(limits) };
        if block < limits.logical_block_size {
            let needed = limits.logical_block_size.bytes();
            let what = format!("it is written in blocks of {needed} bytes at least");
            return Err(Error::usage(what).help(format!("use block={needed}, or leave it out")));
        }
        limits.logical_block_size = block;
        limits.physical_block_size = limits.physical_block_size.max(block);
        Ok(limits)
    }

    fn device(&mut self, driver: &'static str, minors: u32) -> Result<DevNum> {
        let next = match self.majors.get_mut(driver) {
            Some(next) => next,
            None => {
                let major = self
                    .layer
                    .register_blkdev(0, driver)
                    .map_err(|err| Error::failed("no device number is free").caused_by(err))?;
                self.majors.entry(driver).or_insert(DevNum { major, minor: 0 })
            }
        };
        let dev = *next;
        next.minor += minors;
        Ok(dev)
    }
}

fn file_config(file: &FilePlan, plan: &DiskPlan) -> FileConfig {
    FileConfig {
        direct: file.direct,
        read_only: plan.options.read_only,
        create_size: file.create,
        engine: match file.engine {
            Engine::Auto => FileEngine::Auto,
            Engine::Uring => FileEngine::Uring,
            Engine::Threads => FileEngine::Threads,
        },
        lock: file.lock,
        ..FileConfig::new(&file.path)
    }
}

fn file_error(err: blockyard_driver_file::Error) -> Error {
    use blockyard_driver_file::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::Locked => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::NotSupported => ErrorKind::Unavailable,
        Kind::NotFound | Kind::NotAFile | Kind::Size | Kind::Invalid | Kind::Io => {
            ErrorKind::Failed
        }
    };
    Error::new(kind, "the file cannot be used").caused_by(err)
}

/// A file can be shown in part, but not be larger than it is.
fn file_capacity(plan: &DiskPlan, actual: Sector) -> Result<Sector> {
    let wanted = plan.options.size.map_or(actual, Sector::from_bytes_floor);
    let block = plan.options.block.map_or(512, |block| u64::from(block.bytes()));
    if wanted > actual {
        let (wanted, actual) = (wanted.bytes(), actual.bytes());
        let what = format!(
            "it has {actual} bytes, which is less than the size of {wanted} that was asked for"
        );
        return Err(Error::failed(what)
            .help(format!("make it larger (truncate -s {wanted} FILE), or leave size= out")));
    }
    if !wanted.bytes().is_multiple_of(block) {
        let what = format!(
            "it has {} bytes, which is no multiple of the block size {block}",
            wanted.bytes()
        );
        let size = wanted.bytes() / block * block;
        return Err(Error::failed(what).help(format!("show only whole blocks: size={size}")));
    }
    Ok(wanted)
}

/// What a disk can do, as words for people and predicates.
#[must_use]
pub fn abilities(disk: &Disk) -> Vec<&'static str> {
    let limits = disk.limits();
    let mut can = vec!["flush", "fua", "multi-conn", "df", "cache"];
    let writable = !disk.is_read_only();
    if writable {
        can.extend(["write", "zero"]);
    }
    if writable && limits.max_discard_sectors > 0 {
        can.push("trim");
    }
    if writable && limits.max_write_zeroes_sectors > 0 {
        can.push("fast-zero");
    }
    if limits.features.contains(Features::BLOCK_STATUS) {
        can.push("block-status");
    }
    can
}
