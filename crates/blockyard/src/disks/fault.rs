//! Faults that are injected into disks: how they are written on the command line and in requests, and how they are shown.

use std::num::NonZeroU64;
use std::ops::Range;
use std::time::Duration;

use blockyard_blkmq::{FaultInfo, FaultKind, FaultOps, FaultSpec, MAX_VOLATILE_BYTES, Status};
use serde::{Deserialize, Serialize};

use super::parse_duration;
use crate::text::{size, suggest};

/// Kinds of faults, as they are written, with what they do.
pub const KINDS: &[(&str, &str)] = &[
    ("corrupt", "flip one bit of what is read"),
    ("delay", "delay requests: delay=5ms, or delay=5ms..20ms for a random time"),
    ("error", "fail requests: error=EIO"),
    ("flush-lies", "acknowledge flushes without flushing"),
    ("full", "fail writes with ENOSPC"),
    (
        "power-cut",
        "drop unflushed writes, then fail everything with EIO; power is back after back=TIME",
    ),
    ("stall", "hold requests until they are released"),
    ("torn", "write only the first blocks of a write, then fail it, or acknowledge it with silent"),
    (
        "volatile",
        "hold unflushed writes in memory, up to volatile=SIZE, so that a power cut drops them",
    ),
];

/// What can be said of a fault besides, with what it means.
pub const OPTIONS: &[(&str, &str, &str)] = &[
    (
        "op",
        "OP,...",
        "operations: read, write, flush, discard, write-zeroes, block-status, prefetch",
    ),
    ("range", "START+LEN", "requests that overlap this range of the disk, e.g. 1M+64K"),
    ("p", "P", "probability, above 0 and up to 1 (default: 1)"),
    ("seed", "N", "seed of everything random (default: a random one, which is shown)"),
    ("count", "N", "inject it N times, then no more"),
    ("after", "N", "let N matching requests pass first"),
    ("for", "TIME", "clear the fault after this time, e.g. 30s"),
];

/// Errors by their names: those that a disk can end a request with.
const ERRORS: &[(&str, Status)] = &[
    ("EIO", Status::Io),
    ("ENOSPC", Status::NoSpace),
    ("ENODATA", Status::Medium),
    ("EOPNOTSUPP", Status::NotSupported),
    ("ETIMEDOUT", Status::Timeout),
    ("ENOLINK", Status::Transport),
    ("EBADE", Status::ReservationConflict),
    ("EPERM", Status::NotPermitted),
    ("ENOMEM", Status::Resource),
    ("ENODEV", Status::Offline),
    ("EINVAL", Status::Invalid),
];

const OPS: &[(&str, FaultOps)] = &[
    ("read", FaultOps::READ),
    ("write", FaultOps::WRITE),
    ("flush", FaultOps::FLUSH),
    ("discard", FaultOps::DISCARD),
    ("write-zeroes", FaultOps::WRITE_ZEROES),
    ("block-status", FaultOps::BLOCK_STATUS),
    ("prefetch", FaultOps::PREFETCH),
];

/// What a volatile cache holds unless more is said.
const VOLATILE_BYTES: u64 = 256 << 20;

/// The names of errors.
pub fn errors() -> impl Iterator<Item = &'static str> {
    ERRORS.iter().map(|(name, _)| *name)
}

/// The names of operations.
pub fn ops() -> impl Iterator<Item = &'static str> {
    OPS.iter().map(|(name, _)| *name)
}

/// What the command line calls them: words that are whole, or begin so.
pub fn words() -> impl Iterator<Item = String> {
    let kinds = KINDS.iter().map(|(kind, _)| match *kind {
        "delay" | "error" => format!("{kind}="),
        kind => kind.to_owned(),
    });
    let options = OPTIONS.iter().map(|(name, ..)| format!("{name}="));
    let verbs = ["list", "clear", "release", "silent", "back="].map(str::to_owned);
    verbs.into_iter().chain(kinds).chain(options)
}

/// A word of the command line as members of a request: `error=EIO` is a kind and its error.
///
/// # Errors
/// A sentence for people: there is no such word.
pub fn members_of(word: &str) -> Result<Vec<(&'static str, String)>, String> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (word, None),
    };
    if let Some((kind, _)) = KINDS.iter().find(|(kind, _)| *kind == key) {
        let own = match (*kind, value) {
            (_, None) => None,
            ("error", Some(value)) => Some(("errno", value)),
            ("delay", Some(value)) => Some(("delay", value)),
            ("volatile", Some(value)) => Some(("size", value)),
            (kind, Some(value)) => return Err(format!("{kind} takes no value, not {value:?}")),
        };
        return Ok([("kind", (*kind).to_owned())].into_iter().chain(own).collect());
    }
    let option = OPTIONS.iter().map(|(name, ..)| *name).chain(["back"]).find(|name| *name == key);
    match (option, value) {
        (Some("back"), Some(value)) => Ok(vec![("for", value)]),
        (Some(option), Some(value)) => Ok(vec![(option, value)]),
        (Some(option), None) => Err(format!("{option} needs a value; write {option}=VALUE")),
        (None, None) if key == "silent" => Ok(vec![("silent", "1".into())]),
        (None, _) => {
            let all: Vec<String> = words().collect();
            let all: Vec<&str> = all.iter().map(|word| word.trim_end_matches('=')).collect();
            Err(format!("unknown word {word:?}; {}", suggest::hint(key, &all)))
        }
    }
}

/// Makes a rule of the members of a request. Says which of them is wrong.
///
/// # Errors
/// The member, and a sentence for people.
pub fn spec(members: &[(String, String)]) -> Result<FaultSpec, (String, String)> {
    let said = |name: &str| {
        members.iter().find(|(member, _)| member == name).map(|(_, value)| value.as_str())
    };
    let at = |name: &'static str| move |problem: String| (name.to_owned(), problem);
    let names = ["kind", "errno", "delay", "size", "silent"];
    let names: Vec<&str> = names.into_iter().chain(OPTIONS.iter().map(|it| it.0)).collect();
    if let Some((unknown, _)) = members.iter().find(|(name, _)| !names.contains(&name.as_str())) {
        let hint = suggest::hint(unknown, &names);
        return Err((unknown.clone(), format!("unknown field {unknown:?}; {hint}")));
    }
    let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let name = said("kind").ok_or_else(|| {
        at("kind")(format!("the kind of fault is missing; supported: {}", suggest::list(&kinds)))
    })?;
    let mut spec = FaultSpec::new(kind(name, &said)?);
    if name == "full" {
        spec.ops = FaultOps::WRITE | FaultOps::WRITE_ZEROES;
    }
    for (own, whose) in
        [("errno", "error"), ("delay", "delay"), ("size", "volatile"), ("silent", "torn")]
    {
        if said(own).is_some() && name != whose {
            return Err(at(own)(format!("{own} is for faults of kind {whose}, not {name}")));
        }
    }
    if spec.kind.is_of_disk() {
        let others = OPTIONS.iter().filter(|it| it.0 != "for" || name == "volatile");
        if let Some((other, ..)) = others.into_iter().find(|it| said(it.0).is_some()) {
            return Err(at(other)(format!("{other} is not for faults of kind {name}")));
        }
    }
    if let Some(text) = said("op") {
        spec.ops = parse_ops(text).map_err(at("op"))?;
        if !spec.kind.ops().contains(spec.ops) {
            return Err(at("op")(format!("{text} is not for faults of kind {name}")));
        }
    }
    spec.range = said("range").map(parse_range).transpose().map_err(at("range"))?;
    spec.probability = said("p").map_or(Ok(1.0), parse_probability).map_err(at("p"))?;
    spec.seed = match said("seed") {
        Some(text) => parse_number(text).map_err(at("seed"))?,
        None => rand::random(),
    };
    spec.after = said("after").map_or(Ok(0), parse_number).map_err(at("after"))?;
    if let Some(text) = said("count") {
        let count = parse_number(text).map_err(at("count"))?;
        let none = || at("count")("a count of 0 would never inject anything".to_owned());
        spec.count = Some(NonZeroU64::new(count).ok_or_else(none)?);
    }
    spec.lasts = said("for").map(parse_time).transpose().map_err(at("for"))?;
    Ok(spec)
}

fn kind<'a>(
    name: &str,
    said: &impl Fn(&str) -> Option<&'a str>,
) -> Result<FaultKind, (String, String)> {
    let at = |name: &'static str| move |problem: String| (name.to_owned(), problem);
    Ok(match name {
        "error" => {
            FaultKind::Error(parse_error(said("errno").unwrap_or("EIO")).map_err(at("errno"))?)
        }
        "full" => FaultKind::Error(Status::NoSpace),
        "delay" => {
            let missing =
                || at("delay")("the delay is missing; write delay=5ms or 5ms..20ms".into());
            parse_delay(said("delay").ok_or_else(missing)?).map_err(at("delay"))?
        }
        "stall" => FaultKind::Stall,
        "torn" => match said("silent").unwrap_or("0") {
            "1" | "true" => FaultKind::Torn { silent: true },
            "0" | "false" => FaultKind::Torn { silent: false },
            other => return Err(at("silent")(format!("invalid flag {other:?}; use 0 or 1"))),
        },
        "corrupt" => FaultKind::Corrupt,
        "flush-lies" => FaultKind::FlushLies,
        "volatile" => {
            let max_bytes = said("size").map_or(Ok(VOLATILE_BYTES), size::parse);
            let max_bytes = max_bytes.map_err(at("size"))?;
            if !(1..=MAX_VOLATILE_BYTES).contains(&max_bytes) {
                let most = size::human(MAX_VOLATILE_BYTES);
                return Err(at("size")(format!("{max_bytes} is not from 1 byte to {most}")));
            }
            FaultKind::Volatile { max_bytes }
        }
        "power-cut" => FaultKind::PowerCut,
        other => {
            let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            let what = format!("unknown kind of fault {other:?}; {}", suggest::hint(other, &kinds));
            return Err(at("kind")(what));
        }
    })
}

fn parse_error(text: &str) -> Result<Status, String> {
    let known = ERRORS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    known.map(|(_, status)| *status).ok_or_else(|| {
        let names: Vec<&str> = errors().collect();
        format!("unknown error {text:?}; supported: {}", suggest::list(&names))
    })
}

fn parse_ops(text: &str) -> Result<FaultOps, String> {
    let op = |word: &str| {
        let known = OPS.iter().find(|(name, _)| *name == word);
        known.map(|(_, op)| *op).ok_or_else(|| {
            let names: Vec<&str> = ops().collect();
            format!("unknown operation {word:?}; {}", suggest::hint(word, &names))
        })
    };
    text.split(',').try_fold(FaultOps::empty(), |all, word| Ok(all | op(word)?))
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let bad = || format!("invalid range {text:?}; write START+LEN, e.g. 1M+64K");
    let (start, len) = text.split_once('+').ok_or_else(bad)?;
    let (start, len) = (size::parse(start)?, size::parse(len)?);
    let end = start.checked_add(len).filter(|_| len > 0).ok_or_else(bad)?;
    Ok(start..end)
}

fn parse_probability(text: &str) -> Result<f64, String> {
    let probability = text.parse::<f64>().ok().filter(|p| *p > 0.0 && *p <= 1.0);
    probability.ok_or_else(|| {
        format!("invalid probability {text:?}; write a number above 0 and up to 1, e.g. 0.1")
    })
}

fn parse_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("invalid number {text:?}; write a whole number"))
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text)?;
    if time.is_zero() {
        Err("a time of 0 would end it at once; write e.g. 30s".into())
    } else {
        Ok(time)
    }
}

fn parse_delay(text: &str) -> Result<FaultKind, String> {
    let (least, most) = text.split_once("..").unwrap_or((text, text));
    let (least, most) = (parse_duration(least)?, parse_duration(most)?);
    if most.is_zero() || least > most {
        return Err(format!("invalid delay {text:?}; write e.g. 5ms, or 5ms..20ms"));
    }
    Ok(FaultKind::Delay { least, most })
}

/// A rule as it is written on the command line.
#[must_use]
pub fn shown(spec: &FaultSpec) -> String {
    let name = |status: Status| {
        ERRORS.iter().find(|(_, its)| *its == status).map_or("EIO", |(name, _)| *name)
    };
    let mut words = vec![match spec.kind {
        FaultKind::Error(status) => format!("error={}", name(status)),
        FaultKind::Delay { least, most } if least == most => format!("delay={}", time(least)),
        FaultKind::Delay { least, most } => format!("delay={}..{}", time(least), time(most)),
        FaultKind::Torn { silent: true } => "torn silent".into(),
        FaultKind::Volatile { max_bytes } => format!("volatile={max_bytes}"),
        kind => kind.name().into(),
    }];
    if spec.ops != spec.kind.ops() {
        let ops = OPS.iter().filter(|(_, op)| spec.ops.contains(*op));
        words.push(format!("op={}", ops.map(|(name, _)| *name).collect::<Vec<_>>().join(",")));
    }
    words.extend(spec.range.as_ref().map(|it| format!("range={}+{}", it.start, it.end - it.start)));
    let is_chance = spec.probability < 1.0;
    words.extend(is_chance.then(|| format!("p={}", spec.probability)));
    let is_drawn = match spec.kind {
        FaultKind::Delay { least, most } => least != most,
        kind => matches!(kind, FaultKind::Torn { .. } | FaultKind::Corrupt),
    };
    words.extend((is_chance || is_drawn).then(|| format!("seed={}", spec.seed)));
    words.extend(spec.count.map(|count| format!("count={count}")));
    words.extend((spec.after > 0).then(|| format!("after={}", spec.after)));
    let ends = if spec.kind == FaultKind::PowerCut { "back" } else { "for" };
    words.extend(spec.lasts.map(|lasts| format!("{ends}={}", time(lasts))));
    words.join(" ")
}

/// A time in the largest unit that it is a whole number of.
fn time(time: Duration) -> String {
    let ns = time.as_nanos();
    let units = [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    let unit = units.into_iter().find(|(unit, _)| ns.is_multiple_of(*unit)).unwrap_or((1, "ns"));
    format!("{}{}", ns / unit.0, unit.1)
}

/// A fault of a disk, as a daemon tells of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Its number.
    pub id: u64,
    /// Its kind.
    pub kind: String,
    /// It, as it is written on the command line.
    pub rule: String,
    /// Requests that it was for.
    pub matched: u64,
    /// Of those, the ones that it was injected into.
    pub injected: u64,
    /// Of those, the ones that it holds now.
    pub held: u64,
    /// Bytes that a fault `volatile` holds, or a power cut has dropped.
    pub bytes: u64,
    /// For how long it is there yet.
    pub seconds_left: Option<f64>,
}

impl From<FaultInfo> for FaultReport {
    fn from(info: FaultInfo) -> Self {
        Self {
            id: info.id,
            kind: info.spec.kind.name().into(),
            rule: shown(&info.spec),
            matched: info.matched,
            injected: info.fired,
            held: info.held,
            bytes: info.bytes,
            seconds_left: info.left.map(|left| left.as_secs_f64()),
        }
    }
}

/// What the help says of faults.
#[must_use]
pub fn help() -> String {
    let kinds = KINDS.iter().map(|(kind, what)| ((*kind).to_owned(), (*what).to_owned()));
    let options =
        OPTIONS.iter().map(|(name, value, what)| (format!("{name}={value}"), (*what).to_owned()));
    let (kinds, options) = (kinds.collect::<Vec<_>>(), options.collect::<Vec<_>>());
    let names: Vec<&str> = errors().collect();
    format!(
        "Faults:\n{}\nOptions of faults:\n{}\nErrors: {}",
        super::help::rows(&kinds),
        super::help::rows(&options),
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<FaultSpec, String> {
        let mut members = Vec::new();
        for word in words.split(' ') {
            let own = members_of(word)?;
            members.extend(own.into_iter().map(|(name, value)| (name.to_owned(), value)));
        }
        spec(&members).map_err(|(place, problem)| format!("{place}: {problem}"))
    }

    #[test]
    fn faults_are_read_as_they_are_written_and_as_they_are_shown() {
        for (words, shown_as) in [
            ("error=eio", "error=EIO"),
            (
                "error=EIO op=write,read range=1M+64K p=0.1 seed=7 count=3 after=10 for=30s",
                "error=EIO op=read,write range=1048576+65536 p=0.1 seed=7 count=3 after=10 for=30s",
            ),
            ("delay=5ms..20ms op=read seed=1", "delay=5ms..20ms op=read seed=1"),
            ("delay=1", "delay=1s"),
            ("delay=1500us", "delay=1500us"),
            ("stall op=flush", "stall op=flush"),
            ("full", "error=ENOSPC op=write,write-zeroes"),
            ("flush-lies", "flush-lies"),
            ("torn silent seed=3", "torn silent seed=3"),
            ("corrupt seed=18446744073709551615", "corrupt seed=18446744073709551615"),
            ("volatile=1M", "volatile=1048576"),
            ("volatile", "volatile=268435456"),
            ("power-cut back=5s", "power-cut back=5s"),
            ("power-cut for=5s", "power-cut back=5s"),
        ] {
            let spec = parse(words).unwrap();
            assert_eq!(shown(&spec), shown_as, "{words}");
            let again = parse(shown_as).unwrap();
            assert_eq!(shown(&again), shown_as);
        }
        assert_ne!(parse("torn").unwrap().seed, parse("torn").unwrap().seed);
    }

    #[test]
    fn what_cannot_be_says_what_can() {
        for (words, why) in [
            ("error=EWHAT", "unknown error \"EWHAT\"; supported: EIO"),
            ("error=EIO p=2", "above 0 and up to 1"),
            ("error=EIO p=0", "above 0 and up to 1"),
            ("error=EIO p=nan", "above 0 and up to 1"),
            ("error=EIO count=0", "never inject"),
            ("error=EIO op=wriet", "did you mean \"write\""),
            ("error=EIO range=5", "START+LEN"),
            ("error=EIO range=8E+8E", "largest size"),
            ("error=EIO range=1M+0", "START+LEN"),
            ("error=EIO for=0", "end it at once"),
            ("error=EIO seed=-1", "whole number"),
            ("delay", "the delay is missing"),
            ("delay=0", "invalid delay"),
            ("delay=5ms..1ms", "invalid delay"),
            ("stall=1", "takes no value"),
            ("stal", "did you mean \"stall\""),
            ("op=read", "the kind of fault is missing"),
            ("corrupt op=write", "not for faults of kind corrupt"),
            ("volatile=0", "from 1 byte"),
            ("volatile for=5s", "not for faults of kind volatile"),
            ("power-cut op=read", "not for faults of kind power-cut"),
            ("stall silent", "silent is for faults of kind torn"),
            ("error op", "op needs a value"),
        ] {
            let told = parse(words).unwrap_err();
            assert!(told.contains(why), "{words}: {told}");
        }
        let twice = spec(&[("knid".into(), "stall".into())]).unwrap_err();
        assert_eq!(twice.0, "knid");
    }
}
