//! Where a file has data: lseek(2) with `SEEK_DATA` and `SEEK_HOLE`.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// A run of bytes that are all data, or all a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Nothing is allocated for them, or it is known to be zeroes.
    pub hole: bool,
}

/// The first runs of `range`, at most `most` of them: they may end before the range does. What lies past the
/// end of the file is a hole.
///
/// Others may change the file meanwhile; each run was right at some moment of the call.
///
/// # Errors
/// What lseek(2) says: `EINVAL` where the file system does not know, as for block devices.
pub fn map(file: BorrowedFd<'_>, range: Range<u64>, most: usize) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = range.start;
    while at < range.end && runs.len() < most {
        let data = next(file, SeekFrom::Data(at), &range)?;
        if data > at {
            runs.push(Run { len: data - at, hole: true });
        } else {
            let hole = next(file, SeekFrom::Hole(at), &range)?;
            // At least a byte: a hole that was just punched here must not make this loop for ever.
            let end = hole.max(at + 1);
            runs.push(Run { len: end - at, hole: false });
            at = end;
            continue;
        }
        at = data;
    }
    Ok(runs)
}

/// `ENXIO`: there is none from here on.
fn next(file: BorrowedFd<'_>, from: SeekFrom, range: &Range<u64>) -> io::Result<u64> {
    match seek(file, from) {
        Ok(at) => Ok(at.clamp(range.start, range.end)),
        Err(Errno::NXIO) => Ok(range.end),
        Err(err) => Err(err.into()),
    }
}

/// Whether the file can tell its holes.
#[must_use]
pub fn is_known(file: BorrowedFd<'_>) -> bool {
    matches!(seek(file, SeekFrom::Data(0)), Ok(_) | Err(Errno::NXIO))
}
