//! Settings: options that change while the disk is used.

use blockyard_blkmq::{Disk, ErrorKind};

use super::open::OpenDisk;
use super::options::{OptionSpec, Value};
use crate::error::{Error, Result};

/// How an option changes while its disk is used.
#[derive(Clone, Copy)]
pub struct Live {
    /// Whether it may be that now. Nothing is changed yet; a disk may become smaller only if `shrink` is said.
    pub check: fn(&OpenDisk, &Value, bool) -> Result<()>,
    /// Changes it.
    pub change: fn(&Disk, &Value) -> Result<()>,
}

pub(super) const SIZE: Live = Live { check: check_size, change: resize };
pub(super) const READ_ONLY: Live = Live { check: check_read_only, change: set_read_only };

/// Changes settings of a disk, all that can be told to be wrong before the first.
///
/// # Errors
/// One cannot be so.
pub fn set(open: &OpenDisk, settings: &[(&'static OptionSpec, Value)], shrink: bool) -> Result<()> {
    let mut settings: Vec<(&str, Live, &Value)> = settings
        .iter()
        .filter_map(|(option, value)| Some((option.name, option.live?, value)))
        .collect();
    settings.iter().try_for_each(|(_, live, value)| (live.check)(open, value, shrink))?;
    // What the driver may refuse comes before what cannot fail.
    settings.sort_by_key(|(name, ..)| *name != "size");
    settings.iter().try_for_each(|(_, live, value)| (live.change)(open.disk(), value))
}

fn check_size(open: &OpenDisk, size: &Value, shrink: bool) -> Result<()> {
    let Value::Number(bytes) = *size else { unreachable!("invalid size: {size:?}") };
    let disk = open.disk();
    let before = disk.size_bytes();
    let stalled = disk.stalled();
    if stalled > 0 {
        let name = disk.name();
        let what = format!("{stalled} requests of {name} are stalled by a fault");
        let err = Error::new(crate::error::ErrorKind::Busy, what);
        return Err(err.help(format!("release them: blockyard fault {name} release")));
    }
    if bytes < before && !shrink {
        let what = format!(
            "cannot shrink {} from {before} to {bytes} bytes without --shrink",
            disk.name()
        );
        let remedy = "add --shrink (?shrink=true) if nothing past the new end is needed";
        return Err(Error::usage(what).help(remedy));
    }
    Ok(())
}

fn check_read_only(open: &OpenDisk, read_only: &Value, _: bool) -> Result<()> {
    if *read_only == Value::Flag(false) && open.only_reads() {
        let what = format!("{} was opened read-only", open.disk().name());
        return Err(Error::usage(what).help("remove the disk, and add it without read_only"));
    }
    Ok(())
}

fn resize(disk: &Disk, size: &Value) -> Result<()> {
    let Value::Number(bytes) = *size else { unreachable!("invalid size: {size:?}") };
    let failed = |err| Error::failed("cannot change the disk").caused_by(err);
    disk.resize_bytes(bytes).map_err(|err| match err.kind() {
        ErrorKind::Invalid => not_whole(disk, bytes).unwrap_or_else(|| failed(err)),
        _ => failed(err),
    })
}

fn set_read_only(disk: &Disk, read_only: &Value) -> Result<()> {
    let Value::Flag(read_only) = *read_only else { unreachable!("invalid flag: {read_only:?}") };
    disk.set_read_only(read_only);
    Ok(())
}

/// What is wrong with a size that is no multiple of a disk's blocks, if the disk can have no other.
fn not_whole(disk: &Disk, bytes: u64) -> Option<Error> {
    let block = u64::from(disk.limits().logical_block_size.bytes());
    if bytes.is_multiple_of(block) {
        return None;
    }
    let what = format!("{bytes} is not a multiple of {block}, the block size of {}", disk.name());
    let next = bytes.checked_next_multiple_of(block).unwrap_or(bytes - bytes % block);
    Some(Error::usage(what).help(format!("write size={next}")))
}
