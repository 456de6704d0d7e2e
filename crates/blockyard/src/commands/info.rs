//! `blockyard info`: what a disk is, and what it can do.

use blockyard_blkmq::DiskFlags;
use serde::Serialize;

use super::{NO, disk_uri, one_with_tls};
use crate::cli::InfoArgs;
use crate::error::{Error, Result};
use crate::text::term::{exact_size, plain, yes_no};
use crate::text::{size, suggest, term};
use crate::tools::inspect::{DiskInfo, MapSummary, PartitionInfo};
use crate::tools::session::Session;

/// The predicates of `--is`.
const IS: [&str; 3] = ["read-only", "rotational", "tls"];
/// The predicates of `--can`.
const CAN: [&str; 10] = [
    "flush",
    "fua",
    "trim",
    "zero",
    "fast-zero",
    "cache",
    "df",
    "multi-conn",
    "block-status",
    "write",
];

/// A question with the answer yes or no, checked.
enum Predicate {
    Is(&'static str),
    Can(&'static str),
}

pub(super) fn run(args: InfoArgs) -> Result<u8> {
    let predicate = predicate(&args)?;
    let plan = one_with_tls(disk_uri(&args.uri)?, args.tls)?;
    if let Some(described) = plan.source.describe() {
        let info = described?;
        return match predicate {
            Some(Predicate::Is("read-only")) => Ok(answer(info.read_only)),
            Some(Predicate::Is("rotational")) => Ok(answer(info.rotational)),
            Some(Predicate::Is(_)) => Ok(answer(info.tls)),
            Some(Predicate::Can(what)) => Ok(answer(info.can.contains(&what))),
            None if args.size => term::say(info.size).map(|()| 0),
            None if args.json => term::say_json_text(&info.json).map(|()| 0),
            None => lines(&info.rows).map(|()| 0),
        };
    }
    let mut session = Session::start(1)?;
    let disk = session.look_into(&plan, DiskFlags::empty())?;
    let info = DiskInfo::of(&disk, &plan)?;
    match predicate {
        Some(Predicate::Is("read-only")) => Ok(answer(info.read_only)),
        Some(Predicate::Is("rotational")) => Ok(answer(info.rotational)),
        Some(Predicate::Is(_)) => Ok(answer(false)),
        Some(Predicate::Can(what)) => Ok(answer(info.can.contains(&what))),
        None if args.size => term::say(info.size).map(|()| 0),
        None if args.json => term::say_json(&Tagged { kind: "disk", info: &info }).map(|()| 0),
        None => show_disk(&info).map(|()| 0),
    }
}

const fn answer(yes: bool) -> u8 {
    if yes { 0 } else { NO }
}

fn predicate(args: &InfoArgs) -> Result<Option<Predicate>> {
    let find = |flag: &str, text: &str, names: &[&'static str]| {
        names.iter().find(|name| **name == text).copied().ok_or_else(|| {
            Error::usage(format!(
                "{flag}: unknown property {text:?}; {}",
                suggest::hint(text, names)
            ))
        })
    };
    match (&args.is, &args.can) {
        (Some(text), _) => Ok(Some(Predicate::Is(find("--is", text, &IS)?))),
        (None, Some(text)) => Ok(Some(Predicate::Can(find("--can", text, &CAN)?))),
        (None, None) => Ok(None),
    }
}

#[derive(Serialize)]
struct Tagged<'a, T> {
    kind: &'static str,
    #[serde(flatten)]
    info: &'a T,
}

/// Lines of a name and a value.
fn lines(rows: &[(&str, String)]) -> Result<()> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter()
        .try_for_each(|(name, value)| term::say(format_args!("{name:width$}  {}", plain(value))))
}

fn show_disk(info: &DiskInfo) -> Result<()> {
    let mut rows = vec![
        ("disk", info.uri.clone()),
        ("driver", info.driver.into()),
        ("size", exact_size(info.size)),
        (
            "block size",
            format!("{} logical, {} physical", info.block_size, info.physical_block_size),
        ),
        ("read-only", yes_no(info.read_only).into()),
        ("can", info.can.join(", ")),
    ];
    if info.optimal_io_size > 0 {
        rows.push(("optimal I/O", size::human(info.optimal_io_size.into())));
    }
    if let Some(map) = info.map {
        rows.push(("allocated", show_map(map, info.size)));
    }
    rows.push((
        "partitions",
        if info.partitions.is_empty() { "none".into() } else { info.partitions.len().to_string() },
    ));
    lines(&rows)?;
    if info.partitions.is_empty() { Ok(()) } else { show_partitions(&info.partitions) }
}

fn show_map(map: MapSummary, size: u64) -> String {
    let percent =
        if size == 0 { 0 } else { u128::from(map.data + map.zero) * 100 / u128::from(size) };
    format!(
        "{} of data, {} of zeroes, {} of holes: {percent}% in {} extent{}",
        size::human(map.data),
        size::human(map.zero),
        size::human(map.hole),
        map.extents,
        if map.extents == 1 { "" } else { "s" }
    )
}

fn show_partitions(partitions: &[PartitionInfo]) -> Result<()> {
    let mut table = term::table(&["PARTITION", "START", "SIZE", "TYPE", "NAME", "UUID"]);
    for part in partitions {
        table.add_row([
            part.number.to_string(),
            part.start.to_string(),
            size::human(part.size),
            part.r#type.clone(),
            plain(part.name.as_deref().unwrap_or_default()).into_owned(),
            part.uuid.clone().unwrap_or_default(),
        ]);
    }
    term::say(table.trim_fmt())
}
