//! Options: what each is called, what it can be, and what was said of it; and those that all disks have.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockyard_blkmq::{BlockSize, MAX_DEPTH, Rate, Throttle, sched};

use super::live::{self, Live};
use super::throttle;
use crate::text::{size, suggest};

/// The most hardware queues of a disk.
const MAX_QUEUES: u64 = 1024;
/// The most minors of a disk (kernel: `DISK_MAX_PARTS`).
const MAX_MINORS: u64 = 256;
/// The option that names the disk below.
pub(super) const BELOW: &str = "below";

/// An option of a disk or a front-end: a key in `yard.toml`; of a disk also a parameter of its URI, and, if it can change while
/// the disk is used, a setting.
pub struct OptionSpec {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub value: ValueKind,
    /// What it is if nothing is said, for the help.
    pub default: &'static str,
    /// What it is for, in a line.
    pub help: &'static str,
    /// How it is changed while the disk is used, if it can be.
    pub live: Option<Live>,
    /// Only a command that starts a daemon can say it: nobody else knows what it means.
    pub only_at_start: bool,
}

impl OptionSpec {
    /// An option that stays as it is while the disk is used.
    #[must_use]
    pub const fn new(
        name: &'static str,
        value: ValueKind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, value, default, help, live: None, only_at_start: false }
    }

    /// Whether it is so when nothing is said.
    #[must_use]
    pub fn is_default(&self, value: &Value) -> bool {
        self.default == "0" && *value == Value::Flag(false)
    }
}

/// What an option can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Yes or no.
    Flag,
    /// Bytes.
    Size,
    /// 512 or 4096 bytes.
    BlockSize,
    /// A whole number.
    Number {
        /// From this.
        least: u64,
        /// To this.
        most: u64,
    },
    /// A time, up to this.
    Time {
        /// No time at all is one, too.
        zero: bool,
        /// The longest.
        most: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// The name of a disk.
    Name,
    /// The URI of a disk.
    Uri,
    /// Any text.
    Text,
    /// The path of a file.
    Path,
    /// The permissions of a file, in octal.
    Mode,
    /// So much per second, or no limit.
    Rate {
        /// It is bytes.
        bytes: bool,
    },
    /// A power of two.
    PowerOfTwo {
        /// From this.
        least: u64,
        /// To this.
        most: u64,
    },
}

/// The longest time that an option without a limit of its own can be.
pub const NO_LIMIT: Duration = Duration::MAX;

impl ValueKind {
    /// What stands for it in the help.
    #[must_use]
    pub fn placeholder(&self) -> String {
        match self {
            Self::Flag => "0|1".into(),
            Self::Size => "SIZE".into(),
            Self::BlockSize => "512|4096".into(),
            Self::Number { .. } => "N".into(),
            Self::Time { .. } => "TIME".into(),
            Self::Choice(words) => words.join("|"),
            Self::Name => "NAME".into(),
            Self::Uri => "URI".into(),
            Self::Text => "TEXT".into(),
            Self::Path => "PATH".into(),
            Self::Mode => "MODE".into(),
            Self::Rate { .. } => "RATE".into(),
            Self::PowerOfTwo { .. } => "BYTES".into(),
        }
    }

    /// Reads a value of the option `name`, whose `default` is an example.
    ///
    /// # Errors
    /// A sentence for people: what is wrong and what would be right.
    pub fn parse(&self, name: &str, default: &str, value: &str) -> Result<Value, String> {
        Ok(match self {
            Self::Flag => Value::Flag(flag(value)?),
            Self::Size => Value::Number(size::parse(value)?),
            Self::BlockSize => match size::parse(value)? {
                bytes @ (512 | 4096) => Value::Number(bytes),
                _ => {
                    let what = "is not a supported block size; use 512 or 4096";
                    return Err(format!("{value:?} {what}"));
                }
            },
            Self::Number { least, most } => Value::Number(number(value, *least, *most)?),
            Self::Time { zero, most } => {
                let time = parse_duration(value)?;
                if time.is_zero() && !zero {
                    return Err(format!("must be greater than 0 (default: {default})"));
                }
                if time > *most {
                    return Err(format!("{value:?} is longer than {most:?}"));
                }
                Value::Time(time)
            }
            Self::Choice(words) => match words.iter().find(|word| **word == value) {
                Some(word) => Value::Text((*word).into()),
                None => {
                    let hint = suggest::hint(value, words);
                    return Err(format!("unknown {name} {value:?}; {hint}"));
                }
            },
            Self::Name => Value::Text(disk_name(value)?),
            Self::Uri | Self::Text => Value::Text(value.into()),
            Self::Path => Value::Path(value.into()),
            Self::Mode => {
                let mode = u64::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o777);
                Value::Number(mode.ok_or_else(|| {
                    format!("invalid mode {value:?}; use octal up to 777, e.g. 660")
                })?)
            }
            Self::Rate { bytes } => Value::Rate(throttle::parse_rate(value, *bytes)?),
            Self::PowerOfTwo { least, most } => match number(value, *least, *most)? {
                number if number.is_power_of_two() => Value::Number(number),
                _ => return Err(format!("{value:?} is not a power of two; use e.g. 4096")),
            },
        })
    }
}

/// What an option is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Yes or no.
    Flag(bool),
    /// A number, of bytes if it is a size.
    Number(u64),
    /// A time.
    Time(Duration),
    /// So much per second. `None`: no limit.
    Rate(Option<Rate>),
    /// A text.
    Text(String),
    /// A path.
    Path(PathBuf),
}

/// What was said, option by option.
#[derive(Clone, Debug, Default)]
pub struct Settings(Vec<(&'static str, Value)>);

/// The order is for people.
impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        // No option is there twice.
        self.0.len() == other.0.len()
            && self.0.iter().all(|(name, value)| other.get(name) == Some(value))
    }
}

impl Eq for Settings {}

impl Settings {
    /// Says no if it was said before.
    pub(crate) fn set(&mut self, name: &'static str, value: Value) -> bool {
        let is_new = self.get(name).is_none();
        if is_new {
            self.0.push((name, value));
        }
        is_new
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// A flag, if it was said.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Flag(flag) => Some(*flag),
            other => unreachable!("{name} is not a flag: {other:?}"),
        }
    }

    /// A number or a size, if it was said.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => Some(*number),
            other => unreachable!("{name} is not a number: {other:?}"),
        }
    }

    /// A time, if it was said.
    #[must_use]
    pub fn time(&self, name: &str) -> Option<Duration> {
        match self.get(name)? {
            Value::Time(time) => Some(*time),
            other => unreachable!("{name} is not a time: {other:?}"),
        }
    }

    /// A limit, if one was said.
    #[must_use]
    pub fn rate(&self, name: &str) -> Option<Rate> {
        match self.get(name)? {
            Value::Rate(rate) => *rate,
            other => unreachable!("{name} is not a rate: {other:?}"),
        }
    }

    /// A path, if it was said.
    #[must_use]
    pub fn path(&self, name: &str) -> Option<&Path> {
        match self.get(name)? {
            Value::Path(path) => Some(path),
            other => unreachable!("{name} is not a path: {other:?}"),
        }
    }

    /// The path of a socket, if it was said.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        self.path("socket")
    }

    /// Relative paths start at `folder`.
    ///
    /// # Errors
    /// A sentence for people: the working directory is unknown.
    pub fn make_paths_absolute(&mut self, folder: &Path) -> Result<(), String> {
        for (_, value) in &mut self.0 {
            if let Value::Path(path) = value {
                *path = super::absolute(folder, path)?;
            }
        }
        Ok(())
    }

    /// What was said, in its order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// A word or a name, if it was said.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            other => unreachable!("{name} is not a text: {other:?}"),
        }
    }
}

/// The options that every disk has, unless its kind says otherwise.
pub static COMMON: [OptionSpec; 17] = [
    OptionSpec {
        live: Some(live::SIZE),
        ..OptionSpec::new(
            "size",
            ValueKind::Size,
            "the whole",
            "size of the disk, or of the part that is used",
        )
    },
    OptionSpec {
        live: Some(live::READ_ONLY),
        ..OptionSpec::new("read_only", ValueKind::Flag, "0", "refuse writes (also: ro)")
    },
    OptionSpec::new("name", ValueKind::Name, "made from the URI", "name of the disk"),
    OptionSpec::new("block", ValueKind::BlockSize, "512", "logical block size"),
    OptionSpec::new(
        "queues",
        ValueKind::Number { least: 1, most: MAX_QUEUES },
        "one per queue thread",
        "number of hardware queues",
    ),
    OptionSpec::new(
        "depth",
        ValueKind::Number { least: 1, most: MAX_DEPTH as u64 },
        "128",
        "requests per hardware queue",
    ),
    OptionSpec::new(
        "scheduler",
        ValueKind::Choice(&["none", "mq-deadline"]),
        "none",
        "I/O scheduler",
    ),
    OptionSpec::new(
        "minors",
        ValueKind::Number { least: 1, most: MAX_MINORS },
        "16",
        "device numbers, for the disk and its first partitions",
    ),
    throttle::IOPS,
    throttle::READ_IOPS,
    throttle::WRITE_IOPS,
    throttle::BPS,
    throttle::READ_BPS,
    throttle::WRITE_BPS,
    throttle::IO_SIZE,
    throttle::THROTTLE_GROUP,
    OptionSpec::new(BELOW, ValueKind::Uri, "none", "the disk below; required"),
];

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
    /// What may be done to it per second.
    pub throttle: Box<Throttle>,
    /// Who shares that.
    pub throttle_group: Option<String>,
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
            throttle: Box::default(),
            throttle_group: None,
        }
    }
}

impl DiskOptions {
    /// What was said, and the usual of the rest.
    pub(super) fn of(said: &Settings) -> Self {
        let usual = Self::default();
        let small = |name| said.number(name).and_then(|number| u32::try_from(number).ok());
        let block = said.number("block").map(|bytes| match bytes {
            4096 => BlockSize::B4096,
            _ => BlockSize::B512,
        });
        Self {
            size: said.number("size"),
            block,
            read_only: said.flag("read_only").unwrap_or(usual.read_only),
            name: said.text("name").map(str::to_owned),
            queues: said.number("queues").and_then(|count| usize::try_from(count).ok()),
            depth: small("depth").unwrap_or(usual.depth),
            scheduler: said
                .text("scheduler")
                .and_then(|name| name.parse().ok())
                .unwrap_or(usual.scheduler),
            minors: small("minors").unwrap_or(usual.minors),
            throttle: Box::new(throttle::said(said)),
            throttle_group: said.text(throttle::GROUP).map(str::to_owned),
        }
    }
}

/// The one spelling of a key, in URIs, in `yard.toml` and of settings: `ro` and `readonly` are
/// `read_only`, and `-` stands for `_`, as in flags.
#[must_use]
pub fn canonical_key(key: &str) -> Cow<'_, str> {
    match key {
        "ro" | "readonly" => Cow::Borrowed("read_only"),
        _ if key.contains('-') => Cow::Owned(key.replace('-', "_")),
        _ => Cow::Borrowed(key),
    }
}

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("invalid boolean {value:?}; use 1 or 0")),
    }
}

fn number(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("invalid number {value:?}; use {least} to {most}"))
}

fn disk_name(value: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if value.is_empty() || value.len() > 31 || value.contains(bad) {
        return Err(format!(
            "invalid disk name {value:?}; use 1 to 31 bytes without spaces or slashes"
        ));
    }
    Ok(value.into())
}

/// Units of durations, in nanoseconds.
const TIME_UNITS: [(&str, u64); 5] =
    [("m", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

/// A duration as it is typed: a whole number of the largest unit that can say it.
#[must_use]
pub fn show_duration(time: Duration) -> String {
    let nanoseconds = time.as_nanos();
    let says = |(_, unit): &&(&str, u64)| nanoseconds.is_multiple_of(u128::from(*unit));
    match TIME_UNITS.iter().find(says) {
        Some((name, unit)) if nanoseconds > 0 => {
            format!("{}{name}", nanoseconds / u128::from(*unit))
        }
        _ => "0s".to_owned(),
    }
}

/// `100us`, `3s`, `2m`: a whole number and a unit; a bare number is seconds.
///
/// # Errors
/// A sentence for people.
pub fn parse_duration(value: &str) -> Result<Duration, String> {
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let bad = || {
        format!(
            "invalid duration {value:?}; write seconds, or a whole number with a unit (ns, us, ms, s, m), e.g. 100us"
        )
    };
    let name = match unit {
        "" => "s",
        "µs" => "us",
        unit => unit,
    };
    let nanoseconds = TIME_UNITS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, unit)| *unit)
        .ok_or_else(bad)?;
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(nanoseconds).map(Duration::from_nanos).ok_or_else(bad)
}
