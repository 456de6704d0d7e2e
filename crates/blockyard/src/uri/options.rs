//! What can be said of a disk, in a URI or in `yard.toml`, and the plan that comes of it.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_blkmq::{BlockSize, MAX_DEPTH, Sector, sched};

use super::absolute;
use super::nbd::NbdPlan;
use crate::{size, suggest};

/// The drivers that make disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Memory.
    Ram,
    /// Nothing at all.
    Null,
    /// A file or a block device.
    File,
    /// An export of an NBD server.
    Nbd,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ram, Self::Null, Self::File, Self::Nbd];

    /// As a URI begins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Null => "null",
            Self::File => "file",
            Self::Nbd => "nbd",
        }
    }

    /// The scheme of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name().eq_ignore_ascii_case(name))
    }

    /// The options that only this one has.
    const fn own_options(self) -> &'static [&'static str] {
        match self {
            Self::Ram => &[],
            Self::Null => &["latency"],
            Self::File => &["direct", "create", "lock", "engine"],
            Self::Nbd => {
                &["connections", "timeout", "dead_conn_timeout", "fence_timeout", "trust_server"]
            }
        }
    }
}

/// The options that every disk has; but the hardware queues of an NBD disk are its connections.
pub const OPTIONS: [&str; 8] =
    ["size", "block", "read_only", "name", "queues", "depth", "scheduler", "minors"];

/// The one spelling of a key, in URIs, in `yard.toml` and of settings: `ro` is short for `read_only`, and who writes `-` for `_`,
/// as flags have it, is understood.
#[must_use]
pub fn canonical_key(key: &str) -> Cow<'_, str> {
    match key {
        "ro" => Cow::Borrowed("read_only"),
        _ if key.contains('-') => Cow::Owned(key.replace('-', "_")),
        _ => Cow::Borrowed(key),
    }
}

/// The longest latency of a `null:` disk.
const MAX_LATENCY: Duration = Duration::from_secs(60);
/// The most hardware queues of a disk.
const MAX_QUEUES: u64 = 1024;
/// The most minors of a disk (kernel: `DISK_MAX_PARTS`).
const MAX_MINORS: u32 = 256;

/// How a file is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the kernel has it, else threads.
    #[default]
    Auto,
    /// io_uring, or not at all.
    Uring,
    /// A pool of threads.
    Threads,
}

/// What is common to all disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its size in bytes, where that is not a matter of fact.
    pub size: Option<u64>,
    /// Its logical block size, where the user chose one.
    pub block: Option<BlockSize>,
    /// Nobody may change it.
    pub read_only: bool,
    /// Its name; one is made up without.
    pub name: Option<String>,
    /// Hardware queues; as many as queue threads without.
    pub queues: Option<usize>,
    /// Requests in each hardware queue.
    pub depth: u32,
    /// Who sorts its requests.
    pub scheduler: sched::Kind,
    /// Its device numbers: itself and its first partitions.
    pub minors: u32,
}

impl Default for DiskOptions {
    fn default() -> Self {
        Self {
            size: None,
            block: None,
            read_only: false,
            name: None,
            queues: None,
            depth: 128,
            scheduler: sched::Kind::None,
            minors: 16,
        }
    }
}

/// How a file is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The file or block device.
    pub path: PathBuf,
    /// Past the page cache.
    pub direct: bool,
    /// Make it, sparse and so large, if it is not there.
    pub create: Option<u64>,
    /// Keep others from using it at the same time.
    pub lock: bool,
    /// How it is read and written.
    pub engine: Engine,
}

/// What is particular to a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverPlan {
    /// Memory.
    Ram {
        /// Bytes.
        size: u64,
    },
    /// Nothing at all.
    Null {
        /// Bytes.
        size: u64,
        /// From a request to its end.
        latency: Duration,
    },
    /// A file or a block device.
    File(FilePlan),
    /// An export of an NBD server.
    Nbd(Box<NbdPlan>),
}

/// A disk that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    /// As the user wrote it.
    pub uri: String,
    /// What is particular to its driver.
    pub driver: DriverPlan,
    /// What is common to all disks.
    pub options: DiskOptions,
}

impl DiskPlan {
    /// The driver.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        match self.driver {
            DriverPlan::Ram { .. } => Scheme::Ram,
            DriverPlan::Null { .. } => Scheme::Null,
            DriverPlan::File(_) => Scheme::File,
            DriverPlan::Nbd(_) => Scheme::Nbd,
        }
    }

    /// With paths that mean the same from everywhere; relative ones start at `folder`.
    fn with_absolute_paths(mut self, folder: &Path) -> Result<Self, String> {
        match &mut self.driver {
            DriverPlan::File(file) => file.path = absolute(folder, &file.path)?,
            DriverPlan::Nbd(nbd) => nbd.make_paths_absolute(folder)?,
            DriverPlan::Ram { .. } | DriverPlan::Null { .. } => {}
        }
        Ok(self)
    }

    /// What the disk is called if the user says nothing, and it is the `index`-th of its driver.
    #[must_use]
    pub fn default_name(&self, index: usize) -> String {
        let stem = match &self.driver {
            DriverPlan::File(file) => file.path.file_stem().and_then(|stem| stem.to_str()),
            DriverPlan::Nbd(nbd) => nbd.uri.export.rsplit('/').next(),
            DriverPlan::Ram { .. } | DriverPlan::Null { .. } => None,
        };
        let clean: String = stem
            .unwrap_or("")
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' })
            .take(24)
            .collect();
        if clean.is_empty() { format!("{}{index}", self.scheme().name()) } else { clean }
    }
}

/// Gathers options, each checked as it comes.
#[derive(Clone, Debug)]
pub struct PlanBuilder {
    scheme: Scheme,
    given: Vec<String>,
    path: Option<PathBuf>,
    options: DiskOptions,
    latency: Duration,
    direct: bool,
    create: Option<u64>,
    lock: bool,
    engine: Engine,
    nbd: Option<Box<NbdPlan>>,
}

impl PlanBuilder {
    /// Nothing said yet.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            given: Vec::new(),
            path: None,
            options: DiskOptions::default(),
            latency: Duration::ZERO,
            direct: false,
            create: None,
            lock: true,
            engine: Engine::Auto,
            nbd: None,
        }
    }

    /// The path of a file.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn path(&mut self, path: impl Into<PathBuf>) -> Result<(), String> {
        let path = path.into();
        if path.as_os_str().is_empty() {
            return Err("the path is missing; write file:/path".into());
        }
        if path.as_os_str().as_bytes().contains(&0) {
            return Err("a path has no zero byte".into());
        }
        self.path = Some(path);
        Ok(())
    }

    /// The export of an NBD server.
    pub(super) fn export(&mut self, uri: blockyard_nbd::uri::Uri) {
        self.nbd = Some(Box::new(NbdPlan::new(uri)));
    }

    /// All options that can be set.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        let all = OPTIONS.iter().chain(self.scheme.own_options()).copied();
        all.filter(|name| self.scheme != Scheme::Nbd || *name != "queues").collect()
    }

    /// Sets an option.
    ///
    /// # Errors
    /// A sentence for people: what is wrong and what would be right.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let key = canonical_key(key);
        let key = key.as_ref();
        let names = self.names();
        if !names.contains(&key) {
            let others = Scheme::ALL.into_iter().find(|other| other.own_options().contains(&key));
            let scheme = self.scheme.name();
            return Err(match others {
                Some(other) => format!(
                    "{key:?} is an option of {}: disks, not of {scheme}: disks",
                    other.name()
                ),
                None => format!(
                    "a {scheme}: disk has no option {key:?}; {}",
                    suggest::hint(key, &names)
                ),
            });
        }
        if self.given.iter().any(|given| given == key) {
            return Err(format!("{key:?} is given twice: leave one out"));
        }
        self.given.push(key.into());
        self.set_known(key, value).map_err(|problem| format!("{key}: {problem}"))
    }

    fn set_known(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "size" => self.options.size = Some(size::parse(value)?),
            "block" => self.options.block = Some(block_size(value)?),
            "read_only" => self.options.read_only = flag(value)?,
            "name" => self.options.name = Some(disk_name(value)?),
            "queues" => {
                let count = number(value, 1, MAX_QUEUES)?;
                self.options.queues = usize::try_from(count).ok();
            }
            "depth" => self.options.depth = small(value, 1, MAX_DEPTH)?,
            "scheduler" => self.options.scheduler = scheduler(value)?,
            "minors" => self.options.minors = small(value, 1, MAX_MINORS)?,
            "latency" => self.latency = latency(value)?,
            "direct" => self.direct = flag(value)?,
            "create" => self.create = Some(size::parse(value)?),
            "lock" => self.lock = flag(value)?,
            "connections" | "timeout" | "dead_conn_timeout" | "fence_timeout" | "trust_server" => {
                let nbd = self.nbd.as_mut().ok_or("the server is missing; write nbd://host")?;
                nbd.set(key, value)?;
            }
            _ => self.engine = engine(value)?,
        }
        Ok(())
    }

    /// Checks what the options say together. Relative paths start at `folder`.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn finish(self, uri: &str, folder: &Path) -> Result<DiskPlan, String> {
        let driver = match self.scheme {
            Scheme::Ram => DriverPlan::Ram { size: self.needed_size()? },
            Scheme::Null => DriverPlan::Null { size: self.needed_size()?, latency: self.latency },
            Scheme::File => {
                let path = self.path.clone().ok_or("the path is missing; write file:/path")?;
                if let Some(create) = self.create {
                    self.whole_blocks(create)?;
                }
                if let Some(size) = self.options.size {
                    self.whole_blocks(size)?;
                }
                if self.options.read_only && self.create.is_some() {
                    return Err(
                        "create makes an empty file, and read_only keeps it empty; leave one out"
                            .into(),
                    );
                }
                DriverPlan::File(FilePlan {
                    path,
                    direct: self.direct,
                    create: self.create,
                    lock: self.lock,
                    engine: self.engine,
                })
            }
            Scheme::Nbd => {
                if let Some(size) = self.options.size {
                    self.whole_blocks(size)?;
                }
                DriverPlan::Nbd(self.nbd.ok_or("the server is missing; write nbd://host/export")?)
            }
        };
        let plan = DiskPlan { uri: uri.into(), driver, options: self.options };
        let plan = plan.with_absolute_paths(folder)?;
        match &plan.driver {
            DriverPlan::File(file) if super::is_path(uri) => not_options(uri, &file.path)?,
            _ => {}
        }
        Ok(plan)
    }

    fn needed_size(&self) -> Result<u64, String> {
        let scheme = self.scheme.name();
        let size = self.options.size;
        let size =
            size.ok_or_else(|| format!("how large? write {scheme}:1G or {scheme}:?size=1G"))?;
        self.whole_blocks(size)?;
        Ok(size)
    }

    fn whole_blocks(&self, size: u64) -> Result<(), String> {
        let block = self.options.block.unwrap_or(BlockSize::B512);
        let bytes = u64::from(block.bytes());
        if !block.divides(size) {
            let (below, above) = (size / bytes * bytes, (size / bytes).saturating_add(1) * bytes);
            return Err(match above {
                above if above <= Sector::MAX.bytes() => {
                    format!(
                        "a size of {size} bytes is no multiple of the block size {bytes}; take {below} or {above}"
                    )
                }
                _ => format!(
                    "a size of {size} bytes is no multiple of the block size {bytes}; take {below}"
                ),
            });
        }
        Ok(())
    }
}

/// A path is taken as it is, but what looks like options and is no file was meant as options.
fn not_options(text: &str, path: &Path) -> Result<(), String> {
    let Some((_, query)) = text.split_once('?') else { return Ok(()) };
    let key = query.split(['=', '&']).next().unwrap_or(query);
    let is_key = |c: char| c.is_ascii_lowercase() || "-_".contains(c);
    if key.is_empty() || !key.chars().all(is_key) || path.symlink_metadata().is_ok() {
        return Ok(());
    }
    Err(format!("there is no such file, and a path has no options; write file:{text}"))
}

fn block_size(value: &str) -> Result<BlockSize, String> {
    match size::parse(value)? {
        512 => Ok(BlockSize::B512),
        4096 => Ok(BlockSize::B4096),
        _ => Err(format!("{value:?} is no block size of a disk; there are 512 and 4096")),
    }
}

pub(crate) fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{value:?} is neither yes nor no; write 1 or 0")),
    }
}

pub(super) fn number(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{value:?} is no number from {least} to {most}"))
}

fn small(value: &str, least: u32, most: u32) -> Result<u32, String> {
    let number = number(value, least.into(), most.into())?;
    u32::try_from(number).map_err(|err| err.to_string())
}

fn disk_name(value: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if value.is_empty() || value.len() > 31 || value.contains(bad) {
        return Err(format!("{value:?} is no name of a disk: 1 to 31 bytes, no blank, no slash"));
    }
    Ok(value.into())
}

fn scheduler(value: &str) -> Result<sched::Kind, String> {
    let names = ["none", "mq-deadline"];
    value
        .parse()
        .map_err(|_| format!("there is no scheduler {value:?}; {}", suggest::hint(value, &names)))
}

fn engine(value: &str) -> Result<Engine, String> {
    match value {
        "auto" => Ok(Engine::Auto),
        "uring" => Ok(Engine::Uring),
        "threads" => Ok(Engine::Threads),
        _ => {
            let hint = suggest::hint(value, &["auto", "uring", "threads"]);
            Err(format!("there is no engine {value:?}; {hint}"))
        }
    }
}

fn latency(value: &str) -> Result<Duration, String> {
    let latency = parse_duration(value)?;
    if latency > MAX_LATENCY {
        return Err(format!("{value:?} is longer than a minute"));
    }
    Ok(latency)
}

/// `100us`, `3s`, `2m`: a whole number and a unit.
///
/// # Errors
/// A sentence for people.
pub fn parse_duration(value: &str) -> Result<Duration, String> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let bad =
        || format!("{value:?} is no time; write a whole number and ns, us, ms, s or m, as 100us");
    let nanoseconds = match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "" if number == "0" => 0,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(nanoseconds).map(Duration::from_nanos).ok_or_else(bad)
}

impl AsRef<Path> for FilePlan {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}
