//! `blockyard info`: what a disk is, and what it can do.

use blockyard_blkmq::DiskFlags;
use blockyard_driver_nbd::Description;
use blockyard_nbd::ExportInfo;
use blockyard_nbd::wire::TransmissionFlags;
use serde::Serialize;

use super::{NO, disk_uri, one_with_tls};
use crate::cli::InfoArgs;
use crate::control::report::style_name;
use crate::error::{Error, Result};
use crate::inspect::{DiskInfo, MapSummary, PartitionInfo};
use crate::remote;
use crate::session::Session;
use crate::uri::{DriverPlan, NbdPlan};
use crate::{size, suggest, term};

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
    match &plan.driver {
        DriverPlan::Ram { .. } | DriverPlan::Null { .. } | DriverPlan::File(_) => {
            let mut session = Session::start(1)?;
            let disk = session.look_into(&plan, DiskFlags::empty())?;
            let info = DiskInfo::of(&disk, &plan)?;
            match predicate {
                Some(predicate) => Ok(answer(match predicate {
                    Predicate::Is("read-only") => info.read_only,
                    Predicate::Is("rotational") => info.rotational,
                    Predicate::Is(_) => false,
                    Predicate::Can(what) => info.can.contains(&what),
                })),
                None if args.size => term::say(info.size).map(|()| 0),
                None if args.json => {
                    term::say_json(&Tagged { kind: "disk", info: &info }).map(|()| 0)
                }
                None => show_disk(&info).map(|()| 0),
            }
        }
        DriverPlan::Nbd(nbd) => {
            let info = NbdInfo::ask(nbd)?;
            match predicate {
                Some(predicate) => Ok(answer(match predicate {
                    Predicate::Is("read-only") => info.read_only,
                    Predicate::Is("rotational") => info.rotational,
                    Predicate::Is(_) => info.tls,
                    Predicate::Can(what) => info.can.contains(&what),
                })),
                None if args.size => term::say(info.size).map(|()| 0),
                None if args.json => {
                    term::say_json(&Tagged { kind: "nbd", info: &info }).map(|()| 0)
                }
                None => show_nbd(&info).map(|()| 0),
            }
        }
    }
}

const fn answer(yes: bool) -> u8 {
    if yes { 0 } else { NO }
}

fn predicate(args: &InfoArgs) -> Result<Option<Predicate>> {
    let find = |flag: &str, text: &str, names: &[&'static str]| {
        names.iter().find(|name| **name == text).copied().ok_or_else(|| {
            Error::usage(format!("{flag}: nobody knows {text:?}; {}", suggest::hint(text, names)))
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

/// What a server says of an export.
#[derive(Serialize)]
struct NbdInfo {
    uri: String,
    export: String,
    description: String,
    size: u64,
    read_only: bool,
    rotational: bool,
    can: Vec<&'static str>,
    block_size: Option<BlockSizes>,
    contexts: Vec<String>,
    tls: bool,
    style: &'static str,
}

#[derive(Serialize)]
struct BlockSizes {
    minimum: u32,
    preferred: u32,
    maximum: u32,
}

impl NbdInfo {
    fn ask(plan: &NbdPlan) -> Result<Self> {
        let Description { negotiated, contexts } = remote::describe(&plan.uri, &plan.tls_files)?;
        let info = &negotiated.export;
        Ok(Self {
            uri: plan.uri.to_string(),
            export: info.name.clone(),
            description: info.description.clone(),
            size: info.size,
            read_only: info.flags.contains(TransmissionFlags::READ_ONLY),
            rotational: info.flags.contains(TransmissionFlags::ROTATIONAL),
            can: abilities(info, &contexts),
            block_size: info.block_sizes.map(|sizes| BlockSizes {
                minimum: sizes.minimum(),
                preferred: sizes.preferred(),
                maximum: sizes.max_payload(),
            }),
            contexts,
            tls: negotiated.tls,
            style: style_name(negotiated.style),
        })
    }
}

fn abilities(info: &ExportInfo, contexts: &[String]) -> Vec<&'static str> {
    use TransmissionFlags as F;
    let writable = !info.flags.contains(F::READ_ONLY);
    let of_flag = [
        ("flush", F::SEND_FLUSH, true),
        ("fua", F::SEND_FUA, true),
        ("trim", F::SEND_TRIM, writable),
        ("zero", F::SEND_WRITE_ZEROES, writable),
        ("fast-zero", F::SEND_FAST_ZERO, writable),
        ("cache", F::SEND_CACHE, true),
        ("df", F::SEND_DF, true),
        ("multi-conn", F::CAN_MULTI_CONN, true),
    ];
    let mut can: Vec<_> = of_flag
        .into_iter()
        .filter(|(_, flag, also)| *also && info.flags.contains(*flag))
        .map(|(name, ..)| name)
        .collect();
    if !contexts.is_empty() {
        can.push("block-status");
    }
    if writable {
        can.push("write");
    }
    can
}

/// Lines of a name and a value.
fn lines(rows: &[(&str, String)]) -> Result<()> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(name, value)| term::say(format_args!("{name:width$}  {value}")))
}

const fn yes_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", size::human(bytes))
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
            part.name.clone().unwrap_or_default(),
            part.uuid.clone().unwrap_or_default(),
        ]);
    }
    term::say(table.trim_fmt())
}

fn show_nbd(info: &NbdInfo) -> Result<()> {
    let mut rows = vec![
        ("uri", info.uri.clone()),
        ("export", format!("{:?}", info.export)),
        ("description", info.description.clone()),
        ("size", exact_size(info.size)),
        ("read-only", yes_no(info.read_only).into()),
        ("can", info.can.join(", ")),
        (
            "contexts",
            if info.contexts.is_empty() { "none".into() } else { info.contexts.join(", ") },
        ),
        ("headers", info.style.into()),
        ("TLS", yes_no(info.tls).into()),
    ];
    if let Some(sizes) = &info.block_size {
        let text = format!(
            "{} at least, {} preferred, {} at most",
            sizes.minimum, sizes.preferred, sizes.maximum
        );
        rows.push(("block size", text));
    }
    if info.rotational {
        rows.push(("rotational", "yes".into()));
    }
    rows.retain(|(_, value)| !value.is_empty());
    lines(&rows)
}
