//! Settings: options that change while the disk is used.

use blockyard_blkmq::{Disk, ErrorKind};

use super::options::Value;
use crate::error::{Error, Result};

pub(super) fn resize(disk: &Disk, size: &Value) -> Result<()> {
    let Value::Number(bytes) = *size else { unreachable!("a size is a number: {size:?}") };
    let failed = |err| Error::failed("cannot change the disk").caused_by(err);
    disk.resize_bytes(bytes).map_err(|err| match err.kind() {
        ErrorKind::Invalid => not_whole(disk, bytes).unwrap_or_else(|| failed(err)),
        _ => failed(err),
    })
}

pub(super) fn set_read_only(disk: &Disk, read_only: &Value) -> Result<()> {
    let Value::Flag(read_only) = *read_only else { unreachable!("no flag: {read_only:?}") };
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
