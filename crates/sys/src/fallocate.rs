//! Holes and allocation: fallocate(2).

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{FallocateFlags, fallocate};

/// What a range is made to be. The file's size never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// A hole, which reads as zeroes. On a block device: zeroes, its space given back, only if it can do that
    /// fast.
    PunchHole,
    /// Zeroes, its space kept. On a block device the kernel writes them if it must.
    ZeroRange,
    /// Allocated where it is not yet; what is there stays.
    Reserve,
}

impl Allocate {
    pub(crate) fn flags(self) -> FallocateFlags {
        FallocateFlags::KEEP_SIZE
            | match self {
                Self::PunchHole => FallocateFlags::PUNCH_HOLE,
                Self::ZeroRange => FallocateFlags::ZERO_RANGE,
                Self::Reserve => FallocateFlags::empty(),
            }
    }
}

/// Makes `range` what `mode` says.
///
/// # Errors
/// What fallocate(2) says; [`is_not_supported`] tells whether the file system does not know the mode at all.
pub fn allocate(file: BorrowedFd<'_>, mode: Allocate, range: &Range<u64>) -> io::Result<()> {
    Ok(fallocate(file, mode.flags(), range.start, range.end.saturating_sub(range.start))?)
}

/// Whether an error says that the file cannot do this at all, whatever the range.
#[must_use]
pub fn is_not_supported(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY | libc::ENODEV)
    )
}

/// Whether holes can be punched into a file of `size` bytes. Its contents are not touched: the hole that is
/// tried lies past its end. A file that refuses that one, for whatever reason, has none to punch: a server of FUSE files may
/// say `ENOSPC`, `EINVAL` or `EIO` there.
///
/// # Errors
/// `EPERM` or `ETXTBSY`, if nothing of the file may be changed: it is sealed, immutable, or swapped to.
pub fn can_punch_holes(file: BorrowedFd<'_>, size: u64) -> io::Result<bool> {
    const STEP: u64 = 1 << 16;
    const LAST: u64 = i64::MAX as u64;
    // A file as large as files can be has nothing past its end; the first operation will tell.
    let Some(start) = size.checked_next_multiple_of(STEP).filter(|&start| start <= LAST - STEP)
    else {
        return Ok(true);
    };
    match allocate(file, Allocate::PunchHole, &(start..start + STEP)) {
        Ok(()) => Ok(true),
        Err(err) => match err.raw_os_error() {
            Some(libc::EFBIG) => Ok(true),
            Some(libc::EPERM | libc::ETXTBSY) => Err(err),
            _ => Ok(false),
        },
    }
}
