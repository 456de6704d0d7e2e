//! The options of disks: what each is called, what it can be, and what was said of it.

use std::borrow::Cow;
use std::time::Duration;

use blockyard_blkmq::{BlockSize, Disk, MAX_DEPTH, sched};

use crate::error::Result;
use crate::text::{size, suggest};

/// The most hardware queues of a disk.
const MAX_QUEUES: u64 = 1024;
/// The most minors of a disk (kernel: `DISK_MAX_PARTS`).
const MAX_MINORS: u64 = 256;
/// The option that names the disk below.
pub(super) const BELOW: &str = "below";

/// An option of a disk: a parameter of its URI, a key in `yard.toml`, and, if it can change while the disk is used, a setting.
pub struct DiskOption {
    /// Its name.
    pub name: &'static str,
    /// What it can be.
    pub value: ValueKind,
    /// What it is if nothing is said, for the help.
    pub default: &'static str,
    /// What it is for, in a line.
    pub help: &'static str,
    /// How it is changed while the disk is used, if it can be.
    pub live: Option<fn(&Disk, &Value) -> Result<()>>,
}

impl DiskOption {
    /// An option that stays as it is while the disk is used.
    #[must_use]
    pub const fn new(
        name: &'static str,
        value: ValueKind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, value, default, help, live: None }
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
                    let what = "is no block size of a disk; there are 512 and 4096";
                    return Err(format!("{value:?} {what}"));
                }
            },
            Self::Number { least, most } => Value::Number(number(value, *least, *most)?),
            Self::Time { zero, most } => {
                let time = parse_duration(value)?;
                if time.is_zero() && !zero {
                    return Err(format!("no time at all is too little; {default} is usual"));
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
                    return Err(format!("there is no {name} {value:?}; {hint}"));
                }
            },
            Self::Name => Value::Text(disk_name(value)?),
            Self::Uri => Value::Text(value.into()),
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
    /// A text.
    Text(String),
}

/// What was said, option by option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(Vec<(&'static str, Value)>);

impl Settings {
    /// Says no if it was said before.
    pub(super) fn set(&mut self, name: &'static str, value: Value) -> bool {
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
            other => unreachable!("{name} is no flag but {other:?}"),
        }
    }

    /// A number or a size, if it was said.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(number) => Some(*number),
            other => unreachable!("{name} is no number but {other:?}"),
        }
    }

    /// A time, if it was said.
    #[must_use]
    pub fn time(&self, name: &str) -> Option<Duration> {
        match self.get(name)? {
            Value::Time(time) => Some(*time),
            other => unreachable!("{name} is no time but {other:?}"),
        }
    }

    /// A word or a name, if it was said.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            other => unreachable!("{name} is no text but {other:?}"),
        }
    }
}

/// The options that every disk has, unless its kind says otherwise.
pub static COMMON: [DiskOption; 9] = [
    DiskOption {
        live: Some(super::live::resize),
        ..DiskOption::new(
            "size",
            ValueKind::Size,
            "all of it",
            "its size, or how much of it is used",
        )
    },
    DiskOption {
        live: Some(super::live::set_read_only),
        ..DiskOption::new("read_only", ValueKind::Flag, "0", "refuse writes; ro for short")
    },
    DiskOption::new("name", ValueKind::Name, "made from the URI", "its name"),
    DiskOption::new("block", ValueKind::BlockSize, "512", "logical block size"),
    DiskOption::new(
        "queues",
        ValueKind::Number { least: 1, most: MAX_QUEUES },
        "one per queue thread",
        "number of hardware queues",
    ),
    DiskOption::new(
        "depth",
        ValueKind::Number { least: 1, most: MAX_DEPTH as u64 },
        "128",
        "requests per hardware queue",
    ),
    DiskOption::new(
        "scheduler",
        ValueKind::Choice(&["none", "mq-deadline"]),
        "none",
        "I/O scheduler",
    ),
    DiskOption::new(
        "minors",
        ValueKind::Number { least: 1, most: MAX_MINORS },
        "16",
        "device numbers, for itself and its first partitions",
    ),
    DiskOption::new(BELOW, ValueKind::Uri, "none", "the disk that it lies on; required"),
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
        }
    }
}

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

fn flag(value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{value:?} is neither yes nor no; write 1 or 0")),
    }
}

fn number(value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.parse::<u64>().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{value:?} is no number from {least} to {most}"))
}

fn disk_name(value: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    if value.is_empty() || value.len() > 31 || value.contains(bad) {
        return Err(format!("{value:?} is no name of a disk: 1 to 31 bytes, no blank, no slash"));
    }
    Ok(value.into())
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
