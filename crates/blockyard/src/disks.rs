//! From a plan to a disk: the one place that knows the drivers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::major::DevNum;
use blockyard_blkmq::{
    BlockDeviceOps, BlockLayer, BlockSize, Clock, Disk, DiskConfig, DiskFlags, Driver, Features,
    Limits, QueueType, Sector, TagSet, TagSetConfig,
};
use blockyard_driver_file::{
    Engine as FileEngine, ErrorKind as FileErrorKind, File, FileConfig, Info as FileInfo,
};
use blockyard_driver_nbd::Nbd;
use blockyard_driver_null::{Null, NullConfig};
use blockyard_driver_ram::Ram;
use tokio::runtime::Handle;

use crate::error::{Error, ErrorKind, Result};
use crate::remote::{self, Remote};
use crate::uri::{DiskPlan, DriverPlan, Engine, FilePlan, NbdPlan, Scheme};

/// How long the lock of a file is waited for.
const LOCK_LIMIT: Duration = Duration::from_millis(500);

/// Makes disks whose hardware queues belong to queue threads.
pub struct DiskMaker<'a> {
    layer: &'a BlockLayer,
    threads: &'a [Handle],
    clock: Arc<dyn Clock>,
    /// The major of each driver, and its next free minor.
    majors: BTreeMap<&'static str, DevNum>,
    flags: DiskFlags,
    remotes: Vec<Remote>,
}

/// What a driver makes a disk of.
struct Parts<D> {
    driver: Arc<D>,
    ops: Arc<dyn BlockDeviceOps>,
    size: u64,
    limits: Limits,
    read_only: bool,
    tags: TagSetConfig,
}

impl<'a> DiskMaker<'a> {
    /// Disks go to `layer`, their queues to `threads`.
    #[must_use]
    pub fn new(layer: &'a BlockLayer, threads: &'a [Handle], clock: Arc<dyn Clock>) -> Self {
        Self {
            layer,
            threads,
            clock,
            majors: BTreeMap::new(),
            flags: DiskFlags::empty(),
            remotes: Vec::new(),
        }
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
                let ram = Ram::new();
                let ops = Arc::clone(&ram);
                self.alloc(plan, name, self.parts(plan, ram, ops, *size, Ram::limits()))?
            }
            DriverPlan::Null { size, latency } => {
                let capacity = Sector::from_bytes_floor(*size);
                let latency = Some(*latency).filter(|latency| !latency.is_zero());
                let null = Null::new(NullConfig { capacity, latency }, self.threads)
                    .map_err(|err| Error::failed("cannot make the disk").caused_by(err))?;
                let ops = Arc::<Null>::clone(&null);
                let parts = self.parts(plan, null, ops, *size, Null::limits());
                self.alloc(plan, name, parts)?
            }
            DriverPlan::File(file) => {
                let (driver, info) = open_file(&file_config(file, plan), self.threads)?;
                let size = shown_size(plan, info.size)?;
                driver.show(size);
                let ops = Arc::<File>::clone(&driver);
                let parts = self.parts(plan, driver, ops, size, info.limits);
                self.alloc(plan, name, parts)?
            }
            DriverPlan::Nbd(nbd) => return self.make_remote(plan, nbd, name),
        };
        self.add(&disk)?;
        Ok(disk)
    }

    fn add(&self, disk: &Arc<Disk>) -> Result<()> {
        let added = self.layer.add_disk(disk);
        added.map_err(|err| Error::failed("cannot add the disk").caused_by(err))
    }

    /// A disk at an NBD server: a hardware queue for each connection.
    fn make_remote(&mut self, plan: &DiskPlan, nbd: &NbdPlan, name: &str) -> Result<Arc<Disk>> {
        let mut config = nbd.config(plan.options.read_only);
        let threads = self.threads.len();
        config.connections = Some(config.connections.unwrap_or(threads).min(threads));
        let (driver, export) = remote::connect(config, self.threads)?;
        let block = export.limits.logical_block_size;
        let parts = Parts {
            ops: Arc::<Nbd>::clone(&driver),
            size: shown_blocks(plan, export.bytes(), block)?,
            limits: export.limits,
            read_only: export.read_only,
            tags: driver.tag_set_config(threads),
            driver: Arc::clone(&driver),
        };
        let disk = self.alloc(plan, name, parts)?;
        let remote = Remote::new(Arc::clone(&disk), driver);
        if let Err(err) = self.add(&disk) {
            // Nothing was written to it.
            let _ = remote.leave_and_wait(Duration::ZERO);
            return Err(err);
        }
        if plan.options.size.is_none()
            && let Some(thread) = self.threads.first()
        {
            remote.follow_size(thread);
        }
        self.remotes.push(remote);
        Ok(disk)
    }

    /// The disks at servers that are to be told when they end.
    #[must_use]
    pub fn into_remotes(self) -> Vec<Remote> {
        self.remotes
    }

    fn parts<D: Driver<Disk = ()>>(
        &self,
        plan: &DiskPlan,
        driver: Arc<D>,
        ops: Arc<dyn BlockDeviceOps>,
        size: u64,
        limits: Limits,
    ) -> Parts<D> {
        let queues = plan.options.queues.unwrap_or(usize::MAX).min(self.threads.len());
        let mut hw_queues = [0; QueueType::COUNT];
        hw_queues[0] = queues;
        let tags = TagSetConfig { cpus: self.threads.len(), hw_queues, ..TagSetConfig::default() };
        Parts { driver, ops, size, limits, read_only: plan.options.read_only, tags }
    }

    fn alloc<D: Driver<Disk = ()>>(
        &mut self,
        plan: &DiskPlan,
        name: &str,
        parts: Parts<D>,
    ) -> Result<Arc<Disk>> {
        let options = &plan.options;
        let refused = |err: blockyard_blkmq::Error| {
            Error::failed(format!("cannot make the disk {name}")).caused_by(err)
        };
        let Parts { driver, ops, size, limits, read_only, tags } = parts;
        let set = TagSetConfig { depth: options.depth, ..tags };
        let set = TagSet::new(driver, set).map_err(refused)?;
        let limits = self.limits(plan, limits)?;
        let (capacity, tail_padding) = limits.logical_block_size.padded(size);
        let mut config = DiskConfig::new(name, capacity, limits);
        config.tail_padding = tail_padding;
        config.dev = self.device(plan.scheme().name(), options.minors)?;
        config.minors = options.minors;
        config.read_only = read_only;
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

/// Opens a file. The kernel closes the files of a process that was killed a moment after its end if it had an
/// io_uring, so that a lock may be gone in a while.
fn open_file(config: &FileConfig, threads: &[Handle]) -> Result<(Arc<File>, FileInfo)> {
    let begun = Instant::now();
    loop {
        match File::open(config, threads) {
            Err(err) if err.kind() == FileErrorKind::Locked && begun.elapsed() < LOCK_LIMIT => {
                std::thread::sleep(LOCK_LIMIT / 20);
            }
            opened => return opened.map_err(file_error),
        }
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

/// A disk can be shown in part, but not be larger than it is.
fn shown_size(plan: &DiskPlan, actual: u64) -> Result<u64> {
    let wanted = plan.options.size.unwrap_or(actual);
    if wanted > actual {
        let what = format!(
            "it has {actual} bytes, which is less than the size of {wanted} that was asked for"
        );
        let help = match &plan.driver {
            DriverPlan::File(file) if file.path.is_file() => {
                let path = file.path.display();
                format!("make it larger (truncate -s {wanted} {path}), or leave size= out")
            }
            _ => "leave size= out".into(),
        };
        return Err(Error::failed(what).help(help));
    }
    Ok(wanted)
}

/// As [`shown_size`], of a disk that can only be cut between blocks.
fn shown_blocks(plan: &DiskPlan, actual: u64, block: BlockSize) -> Result<u64> {
    let wanted = shown_size(plan, actual)?;
    let block = plan.options.block.unwrap_or(block);
    if wanted < actual && !block.divides(wanted) {
        let block = block.bytes();
        let what = format!("a size of {wanted} bytes is no multiple of the block size {block}");
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
