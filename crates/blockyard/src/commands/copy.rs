//! `blockyard copy`: a disk onto another.

use std::path::Path;

use super::{disk_uri, interrupt, threads, with_tls};
use crate::cli::{CopyArgs, Reflink};
use crate::disks::absolute;
use crate::error::{Error, Result};
use crate::text::{size, term};
use crate::tools::copy::{CHECKPOINT, Copied, Copy};

pub(super) fn run(args: CopyArgs) -> Result<()> {
    let [source, target] = with_tls([disk_uri(&args.source)?, disk_uri(&args.target)?], args.tls)?;
    let copy = Copy {
        source,
        target,
        detect_zeroes: args.detect_zeroes,
        shares_blocks: args.reflink == Reflink::Auto,
        threads: threads(args.threads),
        journal: args
            .resume
            .map(|path| absolute(Path::new(""), &path))
            .transpose()
            .map_err(Error::usage)?,
        checkpoint: CHECKPOINT,
    };
    let interrupt = interrupt::signals()?;
    let copied = copy.run(&interrupt)?;
    if args.json { term::say_json(&copied) } else { show(&copied) }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a rate for people"
)]
fn show(copied: &Copied) -> Result<()> {
    let resumed = match copied.resumed {
        0 => String::new(),
        bytes => format!(", {} by earlier runs", size::human(bytes)),
    };
    // Of what was moved: holes cost nothing.
    let rate = match copied.copied as f64 / copied.seconds {
        rate if copied.copied > 0 && rate.is_finite() => {
            format!(" ({}/s)", size::human(rate as u64))
        }
        _ => String::new(),
    };
    term::say(format_args!(
        "{} in {:.2} s: {} copied{rate}, {} zeroed, {} already zero{resumed}",
        size::human(copied.size),
        copied.seconds,
        size::human(copied.copied),
        size::human(copied.zeroed),
        size::human(copied.skipped),
    ))
}
