//! Limits of what is done to a disk per second: options that are settings as well.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use blockyard_blkmq::{Burst, Disk, Rate, Throttle, ThrottleGroup};

use super::live::{Change, Live};
use super::options::{OptionSpec, Settings, Value, ValueKind, parse_duration, show_duration};
use super::{DiskPlan, setting};
use crate::error::Result;
use crate::text::size;

/// What is said where there is no limit.
const NONE: &str = "none";
/// The largest size that an operation counts by.
const MAX_IO_SIZE: u64 = 1 << 30;
/// The option that names the disks which keep to limits together.
pub(super) const GROUP: &str = "throttle_group";

const fn limit(
    name: &'static str,
    bytes: bool,
    help: &'static str,
    change: fn(&mut Throttle, &Value),
) -> OptionSpec {
    OptionSpec {
        live: Some(Live { check: |_, _, _| Ok(()), change: Change::Limit(change) }),
        ..OptionSpec::new(name, ValueKind::Rate { bytes }, NONE, help)
    }
}

pub(super) const IOPS: OptionSpec =
    limit("iops", false, "operations per second; with a burst: RATE:PEAK/TIME", |to, value| {
        to.iops = rate(value);
    });
pub(super) const READ_IOPS: OptionSpec =
    limit("read_iops", false, "reads per second", |to, value| to.read_iops = rate(value));
pub(super) const WRITE_IOPS: OptionSpec =
    limit("write_iops", false, "writes per second", |to, value| to.write_iops = rate(value));
pub(super) const BPS: OptionSpec =
    limit("bps", true, "bytes per second", |to, value| to.bps = rate(value));
pub(super) const READ_BPS: OptionSpec =
    limit("read_bps", true, "bytes read per second", |to, value| to.read_bps = rate(value));
pub(super) const WRITE_BPS: OptionSpec =
    limit("write_bps", true, "bytes written per second", |to, value| to.write_bps = rate(value));
pub(super) const IO_SIZE: OptionSpec = OptionSpec {
    live: Some(Live {
        check: |_, _, _| Ok(()),
        change: Change::Limit(|to, value| to.io_size = io_size(value)),
    }),
    ..OptionSpec::new(
        "io_size",
        ValueKind::Number { least: 0, most: MAX_IO_SIZE },
        "0",
        "count one operation per N bytes; 0: one per request",
    )
};
pub(super) const THROTTLE_GROUP: OptionSpec = OptionSpec::new(
    GROUP,
    ValueKind::Name,
    "none",
    "share the limits with the disks of the same group",
);

fn rate(value: &Value) -> Option<Rate> {
    match value {
        Value::Rate(rate) => *rate,
        other => unreachable!("{other:?} is not a rate"),
    }
}

fn io_size(value: &Value) -> Option<NonZeroU32> {
    match value {
        Value::Number(size) => u32::try_from(*size).ok().and_then(NonZeroU32::new),
        other => unreachable!("{other:?} is not a number"),
    }
}

/// What was said of limits.
pub(super) fn said(said: &Settings) -> Throttle {
    Throttle {
        iops: said.rate("iops"),
        read_iops: said.rate("read_iops"),
        write_iops: said.rate("write_iops"),
        bps: said.rate("bps"),
        read_bps: said.rate("read_bps"),
        write_bps: said.rate("write_bps"),
        io_size: said
            .number("io_size")
            .and_then(|size| u32::try_from(size).ok())
            .and_then(NonZeroU32::new),
    }
}

/// The limits that a disk keeps to.
#[must_use]
pub fn of(disk: &Disk) -> Throttle {
    disk.throttle().first().map(|group| group.throttle()).unwrap_or_default()
}

/// The limits that [`shown`] has shown.
///
/// # Errors
/// There are others in it, as those of another version.
pub(crate) fn of_shown(limits: &BTreeMap<String, String>) -> Result<Throttle> {
    let mut said = Settings::default();
    for (name, value) in limits {
        let (option, value) = setting(name, value)?;
        said.set(option.name, value);
    }
    Ok(self::said(&said))
}

/// Of two disks of a group that say different limits: which is the second one, and what is wrong.
pub(crate) fn conflict(disks: &[DiskPlan]) -> Option<(usize, String)> {
    // Who has said a limit of a group first.
    let mut said: BTreeMap<(&str, String), (&DiskPlan, String)> = BTreeMap::new();
    for (index, disk) in disks.iter().enumerate() {
        let Some(group) = disk.options.throttle_group.as_deref() else { continue };
        for (limit, value) in shown(&disk.options.throttle) {
            let (first, before) =
                said.entry((group, limit.clone())).or_insert_with(|| (disk, value.clone()));
            if *before != value {
                let [one, two] =
                    [*first, disk].map(|it| it.options.name.as_deref().unwrap_or_default());
                let what = format!(
                    "disks {one:?} and {two:?} of group {group:?} say different {limit}: {before} and {value}"
                );
                return Some((index, what));
            }
        }
    }
    None
}

/// What to do about a [`conflict`].
pub(crate) const CONFLICT_REMEDY: &str = "say the limits of a group on one of its disks only";

/// Has a disk that was just made keep to limits: its own, or those of a group, which are what was said last.
pub(super) fn begin(disk: &Disk, throttle: Throttle, group: Option<Arc<ThrottleGroup>>) {
    match group {
        Some(group) => {
            if throttle != Throttle::default() {
                group.update(|now| *now = over(throttle, *now));
            }
            disk.set_throttle(vec![group]);
        }
        None if throttle == Throttle::default() => {}
        None => disk.set_throttle(vec![ThrottleGroup::new(throttle)]),
    }
}

/// What was said, and the rest as it was.
fn over(said: Throttle, before: Throttle) -> Throttle {
    Throttle {
        iops: said.iops.or(before.iops),
        read_iops: said.read_iops.or(before.read_iops),
        write_iops: said.write_iops.or(before.write_iops),
        bps: said.bps.or(before.bps),
        read_bps: said.read_bps.or(before.read_bps),
        write_bps: said.write_bps.or(before.write_bps),
        io_size: said.io_size.or(before.io_size),
    }
}

/// Reads `1000`, `100M`, `1000:5000/10s` or `none`.
pub(crate) fn parse_rate(text: &str, bytes: bool) -> std::result::Result<Option<Rate>, String> {
    if text == NONE {
        return Ok(None);
    }
    let number = |text: &str| {
        let number = if bytes { size::parse(text)? } else { operations(text)? };
        NonZeroU64::new(number).ok_or_else(|| {
            "a limit of 0 would never let anything through; write none to remove it".to_owned()
        })
    };
    let Some((usual, burst)) = text.split_once(':') else {
        return Ok(Some(Rate { per_second: number(text)?, burst: None }));
    };
    let Some((peak, length)) = burst.split_once('/') else {
        return Err(format!("invalid burst {burst:?}; write PEAK/TIME, e.g. 1000:5000/10s"));
    };
    let (per_second, peak, length) = (number(usual)?, number(peak)?, parse_duration(length)?);
    if peak <= per_second {
        return Err(format!("a peak of {peak} is not above the rate of {per_second}"));
    }
    if length.is_zero() {
        return Err("a burst must be longer than 0".into());
    }
    Ok(Some(Rate { per_second, burst: Some(Burst { per_second: peak, length }) }))
}

fn operations(text: &str) -> std::result::Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1000),
        None => (text, 1),
    };
    let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    number.ok_or_else(|| {
        format!("invalid rate {text:?}; write operations per second, e.g. 500 or 20k, or none")
    })
}

/// The limits that there are, by their settings.
#[must_use]
pub fn shown(throttle: &Throttle) -> BTreeMap<String, String> {
    let rates = [
        ("iops", throttle.iops),
        ("read_iops", throttle.read_iops),
        ("write_iops", throttle.write_iops),
        ("bps", throttle.bps),
        ("read_bps", throttle.read_bps),
        ("write_bps", throttle.write_bps),
    ];
    let rates = rates.into_iter().filter(|(_, rate)| rate.is_some());
    let rates = rates.map(|(name, rate)| (name.to_owned(), show_rate(rate)));
    let io_size = throttle.io_size.map(|size| ("io_size".to_owned(), size.to_string()));
    rates.chain(io_size).collect()
}

/// A rate as it is written.
#[must_use]
pub fn show_rate(rate: Option<Rate>) -> String {
    match rate {
        None => NONE.into(),
        Some(Rate { per_second, burst: None }) => per_second.to_string(),
        Some(Rate { per_second, burst: Some(burst) }) => {
            format!("{per_second}:{}/{}", burst.per_second, show_duration(burst.length))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_read_as_they_are_written_and_as_they_are_shown() {
        let of = |per_second: u64, burst: Option<(u64, u64)>| {
            let burst = burst.map(|(peak, seconds)| Burst {
                per_second: NonZeroU64::new(peak).unwrap(),
                length: Duration::from_secs(seconds),
            });
            Some(Rate { per_second: NonZeroU64::new(per_second).unwrap(), burst })
        };
        for (text, bytes, want) in [
            ("none", false, None),
            ("500", false, of(500, None)),
            ("20k", false, of(20_000, None)),
            ("100M", true, of(100 << 20, None)),
            ("1M:1G/10s", true, of(1 << 20, Some((1 << 30, 10)))),
            ("500:5000/2m", false, of(500, Some((5000, 120)))),
            ("18446744073709551615", false, of(u64::MAX, None)),
        ] {
            assert_eq!(parse_rate(text, bytes).unwrap(), want, "{text}");
            assert_eq!(parse_rate(&show_rate(want), bytes).unwrap(), want);
            let is_short = !text.contains(char::is_uppercase) && text != "20k";
            assert!(!is_short || show_rate(want) == text, "{text}: {}", show_rate(want));
        }
        for (text, why) in [
            ("0", "write none to remove it"),
            ("-1", "operations per second"),
            ("18446744073709551616", "operations per second"),
            ("1:5", "PEAK/TIME"),
            ("5:5/1s", "not above"),
            ("5:6/0s", "longer than 0"),
        ] {
            let problem = parse_rate(text, false).unwrap_err();
            assert!(problem.contains(why), "{text}: {problem}");
        }
        assert!(parse_rate("9E", true).is_err());
    }

    #[test]
    fn limits_are_what_was_shown_of_them() {
        let said = "ram:1M?iops=500:5000/1500ms&read_bps=1M&io_size=4096";
        let throttle = *said.parse::<DiskPlan>().unwrap().options.throttle;
        let limits = shown(&throttle);
        assert_eq!(limits["iops"], "500:5000/1500ms");
        assert_eq!(of_shown(&limits).unwrap(), throttle);
        assert_eq!(of_shown(&BTreeMap::new()).unwrap(), Throttle::default());
        let other = BTreeMap::from([("latency".to_owned(), "1s".to_owned())]);
        of_shown(&other).unwrap_err();
    }

    #[test]
    fn disks_of_a_group_say_the_same_limits_or_none() {
        let conflict_of = |uris: &[&str]| {
            let mut disks: Vec<DiskPlan> = uris.iter().map(|uri| uri.parse().unwrap()).collect();
            crate::yard::plan::name_disks(&mut disks).unwrap();
            conflict(&disks)
        };
        let a = "ram:1M?name=a&throttle_group=g&iops=500:5000/10s";
        for fine in [
            "ram:1M?throttle_group=g",
            "ram:1M?throttle_group=g&iops=500:5000/10000ms",
            "ram:1M?throttle_group=g&bps=1M",
            "ram:1M?throttle_group=h&iops=1",
            "ram:1M?iops=1",
        ] {
            assert_eq!(conflict_of(&[a, fine]), None, "{fine}");
        }
        let other = "ram:1M?name=b&throttle_group=g&bps=1M&iops=600";
        let (index, what) = conflict_of(&[a, "ram:1M?iops=1", other]).unwrap();
        assert_eq!(index, 2);
        assert_eq!(
            what,
            "disks \"a\" and \"b\" of group \"g\" say different iops: 500:5000/10s and 600"
        );
    }
}
