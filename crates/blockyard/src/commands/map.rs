//! `blockyard map`: how the bytes of a disk are allocated.

use blockyard_blkmq::{DiskFlags, OpenMode, Status};
use serde::Serialize;

use super::{disk_uri, one_with_tls};
use crate::cli::MapArgs;
use crate::error::{Error, Result};
use crate::text::{size, term};
use crate::tools::extents::{Extents, Run};
use crate::tools::session::Session;

/// A line of the map. The keys are those of `nbdinfo --map --json`, and `hole` and `zero`.
#[derive(Serialize)]
struct Line {
    offset: u64,
    length: u64,
    hole: bool,
    zero: bool,
    description: &'static str,
}

/// What there is of a kind.
#[derive(Serialize)]
struct Total {
    description: &'static str,
    bytes: u64,
    percent: f64,
}

const KINDS: [&str; 4] = ["data", "zero", "hole", "hole,zero"];

const fn kind(run: &Run) -> usize {
    match (run.hole, run.zero) {
        (false, false) => 0,
        (false, true) => 1,
        (true, false) => 2,
        (true, true) => 3,
    }
}

pub(super) fn run(args: MapArgs) -> Result<()> {
    let plan = one_with_tls(disk_uri(&args.uri)?, args.tls)?;
    let mut session = Session::start(1)?;
    let disk = session.look_at(&plan, DiskFlags::NO_PART_SCAN)?;
    let bdev = disk
        .open(None, OpenMode::ReadOnly)
        .map_err(|err| Error::failed(format!("cannot open {}", plan.uri)).caused_by(err))?;
    let failed = |status: Status| {
        Error::failed(format!("cannot read the block map of {}", plan.uri)).caused_by(status)
    };
    if args.totals {
        let mut bytes = [0_u64; KINDS.len()];
        for run in Extents::of(&bdev) {
            let run = run.map_err(failed)?;
            bytes[kind(&run)] += run.len;
        }
        return show_totals(bytes, args.json);
    }
    // Line by line: a map may be longer than memory.
    let mut first = true;
    for run in Extents::of(&bdev) {
        let run = run.map_err(failed)?;
        let (offset, length) = (run.start, run.len);
        let description = KINDS[kind(&run)];
        if args.json {
            let line = Line { offset, length, hole: run.hole, zero: run.zero, description };
            let text = serde_json::to_string(&line)
                .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
            term::say(format_args!("{} {text}", if first { "[" } else { "," }))?;
        } else {
            term::say(format_args!("{offset:>20} {length:>20}  {description}"))?;
        }
        first = false;
    }
    match args.json {
        true if first => term::say("[]"),
        true => term::say("]"),
        false => Ok(()),
    }
}

fn show_totals(bytes: [u64; KINDS.len()], json: bool) -> Result<()> {
    let all: u64 = bytes.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let percent = |part: u64| if all == 0 { 0.0 } else { part as f64 * 100.0 / all as f64 };
    let totals: Vec<_> = KINDS
        .iter()
        .zip(bytes)
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(description, bytes)| Total { description, bytes, percent: percent(bytes) })
        .collect();
    if json {
        return term::say_json(&totals);
    }
    let mut table = term::table(&["BYTES", "", "SHARE", "KIND"]);
    for total in totals {
        table.add_row([
            total.bytes.to_string(),
            size::human(total.bytes),
            format!("{:.1}%", total.percent),
            total.description.into(),
        ]);
    }
    term::say(table.trim_fmt())
}
