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
    show(Extents::of(&bdev).map(|run| run.map_err(failed)), args.json, term::say_on)
}

/// Line by line, as a map may be longer than memory; and no further than somebody reads it, as it may take long to make.
fn show(
    runs: impl Iterator<Item = Result<Run>>,
    json: bool,
    mut say: impl FnMut(String) -> Result<bool>,
) -> Result<()> {
    let mut first = true;
    for run in runs {
        let run = run?;
        let (offset, length) = (run.start, run.len);
        let description = KINDS[kind(&run)];
        let line = if json {
            let line = Line { offset, length, hole: run.hole, zero: run.zero, description };
            let text = serde_json::to_string(&line)
                .map_err(|err| Error::failed("cannot write JSON").caused_by(err))?;
            format!("{} {text}", if first { "[" } else { "," })
        } else {
            format!("{offset:>20} {length:>20}  {description}")
        };
        if !say(line)? {
            return Ok(());
        }
        first = false;
    }
    match json {
        true if first => say("[]".into()).map(drop),
        true => say("]".into()).map(drop),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As `map | head` does.
    #[test]
    fn a_map_ends_where_nobody_reads_on() {
        for json in [false, true] {
            let runs = (0_u64..).map(|at| {
                assert!(at < 3, "it goes on for nobody");
                Ok(Run { start: at << 20, len: 1 << 20, hole: at % 2 == 0, zero: at % 2 == 0 })
            });
            let mut said = Vec::new();
            let say = |line| {
                said.push(line);
                Ok(said.len() < 3)
            };
            show(runs, json, say).unwrap();
            assert_eq!(said.len(), 3, "{said:?}");
        }
    }
}
