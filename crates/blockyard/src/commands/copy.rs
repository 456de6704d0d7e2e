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

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
fn show(copied: &Copied) -> Result<()> {
    let resumed = match copied.resumed {
        0 => String::new(),
        bytes => format!(", {} by earlier runs", size::human(bytes)),
    };
    term::say(format_args!(
        "{} in {:.2} s ({}/s): {} copied, {} zeroed, {} already zero{resumed}",
        size::human(copied.size),
        copied.seconds,
        size::human(copied.bytes_per_second as u64),
        size::human(copied.copied),
        size::human(copied.zeroed),
        size::human(copied.skipped),
    ))
}
