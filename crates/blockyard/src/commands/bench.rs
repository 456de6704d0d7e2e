//! `blockyard bench`: load on any disk.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{disk_uri, one_with_tls, size};
use crate::bench::{Load, MAX_BLOCK, Mix, Stop, run as run_load};
use crate::cli::{BenchArgs, Rw};
use crate::disks::parse_duration;
use crate::error::{Error, ErrorKind, Result};
use crate::text::term;

/// How long, if nothing is said.
const TIME: Duration = Duration::from_secs(3);
/// From which on progress is shown.
const LONG: Duration = Duration::from_secs(1);

pub(super) fn run(args: BenchArgs) -> Result<u8> {
    let load = load(&args)?;
    let plan = one_with_tls(disk_uri(&args.uri)?, args.tls)?;
    let progress = progress(load.stop);
    let report = run_load(&plan, &load);
    progress.finish_and_clear();
    let report = report?;
    if args.json {
        term::say_json(&report)?;
    } else {
        term::say(report.render())?;
    }
    Ok(if report.errors > 0 { ErrorKind::Failed.exit_code() } else { 0 })
}

fn load(args: &BenchArgs) -> Result<Load> {
    let block = size("--bs", &args.bs)?;
    let block =
        u32::try_from(block).ok().filter(|&block| block > 0 && u64::from(block) <= MAX_BLOCK);
    let block = block.ok_or_else(|| {
        let most = crate::text::size::human(MAX_BLOCK);
        Error::usage(format!("invalid --bs {}; use 1 to {most}", args.bs))
    })?;
    let stop = match (args.count, &args.time) {
        (Some(count), _) => Stop::Count(count),
        (None, None) => Stop::Time(TIME),
        (None, Some(text)) => Stop::Time(
            parse_duration(text).map_err(|problem| Error::usage(format!("--time: {problem}")))?,
        ),
    };
    let reads = match args.rw {
        Rw::Read | Rw::Randread => 100,
        Rw::Write | Rw::Randwrite => 0,
        Rw::Rw | Rw::Randrw => args.rwmixread,
    };
    Ok(Load {
        mix: Mix { reads },
        random: matches!(args.rw, Rw::Randread | Rw::Randwrite | Rw::Randrw),
        block,
        depth: args.depth as usize,
        queues: args.queues as usize,
        stop,
        offset: size("--offset", &args.offset)?,
        size: args.size.as_deref().map(|text| size("--size", text)).transpose()?,
        seed: args.seed,
    })
}

/// A clock on a terminal; nothing where there is none, or it is over soon.
fn progress(stop: Stop) -> ProgressBar {
    let Stop::Time(time) = stop else { return ProgressBar::hidden() };
    // indicatif shows nothing on what is no terminal.
    if time <= LONG || !term::colored() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(format!("of {} s", time.as_secs()));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
