//! `blockyard check`: whether all of a disk can be read, and its partition table makes sense. Exit codes as those of
//! `qemu-img check`.

use super::{disk_uri, interrupt, one_with_tls, threads};
use crate::cli::CheckArgs;
use crate::error::Result;
use crate::text::{size, term};
use crate::tools::check::{Checked, check};

/// The exit code of a disk that has errors. 1 is one that could not be checked; 3, a leak, no disk here has.
const CORRUPT: u8 = 2;

pub(super) fn run(args: CheckArgs) -> Result<u8> {
    let plan = one_with_tls(disk_uri(&args.uri)?, args.tls)?;
    let interrupt = interrupt::signals()?;
    let checked = check(plan, threads(args.threads), &interrupt)?;
    if args.json {
        term::say_json(&checked)?;
    } else {
        show(&checked)?;
    }
    Ok(if checked.is_sound() { 0 } else { CORRUPT })
}

fn show(checked: &Checked) -> Result<()> {
    for range in &checked.unreadable {
        term::say(format_args!("unreadable: {} bytes at {}", range.length, range.offset))?;
    }
    for problem in &checked.partition_table {
        term::say(format_args!("partition table: {}", term::plain(problem)))?;
    }
    let verdict = if checked.is_sound() { "no errors" } else { "errors" };
    let (read, zero) = (size::human(checked.read), size::human(checked.zero));
    term::say(format_args!("{verdict} on {}: {read} read, {zero} unallocated", checked.disk))
}
