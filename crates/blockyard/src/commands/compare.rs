//! `blockyard compare`: whether two disks hold the same.

use super::{disk_uri, interrupt, threads, with_tls};
use crate::cli::CompareArgs;
use crate::error::{ErrorKind, Result};
use crate::text::term;
use crate::tools::compare::compare;

/// The exit code of disks that differ, as cmp(1) and qemu-img have it.
const DIFFERS: u8 = 1;
/// The exit code if that could not be found out.
pub(super) const TROUBLE: u8 = 2;

pub(super) fn run(args: CompareArgs) -> Result<u8> {
    match tell(args) {
        // Whatever failed, it is not to be taken for "they differ".
        Err(err) if err.kind() == ErrorKind::Failed => {
            term::tell_error(&err);
            Ok(TROUBLE)
        }
        told => told,
    }
}

fn tell(args: CompareArgs) -> Result<u8> {
    let plans = with_tls([disk_uri(&args.one)?, disk_uri(&args.two)?], args.tls)?;
    let interrupt = interrupt::signals()?;
    let compared = compare(plans, threads(args.threads), &interrupt)?;
    if args.json {
        term::say_json(&compared)?;
    } else {
        let [one, two] = &compared.disks;
        match compared.first_difference {
            None => term::say(format_args!("{one} and {two} are identical"))?,
            Some(at) if compared.sizes[0] != compared.sizes[1] => {
                let [a, b] = compared.sizes;
                term::say(format_args!(
                    "{one} ({a} bytes) and {two} ({b} bytes) differ from byte {at} on"
                ))?;
            }
            Some(at) => term::say(format_args!("{one} and {two} differ, first at byte {at}"))?,
        }
    }
    Ok(if compared.same { 0 } else { DIFFERS })
}
