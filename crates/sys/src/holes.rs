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
/// end of the file is data: reading it fails, and nobody may take it for zeroes.
///
/// Others may change the file meanwhile; each run was right at some moment of the call.
///
/// # Errors
/// What lseek(2) says: `EINVAL` where the file system does not know, as for block devices.
pub fn map(file: BorrowedFd<'_>, range: Range<u64>, most: usize) -> io::Result<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = range.start;
    while at < range.end && runs.len() < most {
        let data = match next(file, SeekFrom::Data(at))? {
            Some(data) => data,
            // No data up to the end, or nothing at all.
            None => seek(file, SeekFrom::End(0))?,
        };
        let (end, hole) = if data > at {
            (data.min(range.end), true)
        } else {
            let hole = next(file, SeekFrom::Hole(at))?.unwrap_or(range.end);
            // At least a byte: a hole that was just punched here, or an end that has moved, must not make this loop for
            // ever. A hole at the end is what every file has: lseek(2).
            let hole = if hole > at { hole } else { range.end };
            (hole.min(range.end), false)
        };
        runs.push(Run { len: end - at, hole });
        at = end;
    }
    Ok(runs)
}

/// `None` (`ENXIO`): there is none from here to the end of the file, or the end comes before.
fn next(file: BorrowedFd<'_>, from: SeekFrom) -> io::Result<Option<u64>> {
    match seek(file, from) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(err) => Err(err.into()),
    }
}

/// Whether the file can tell its holes.
#[must_use]
pub fn is_known(file: BorrowedFd<'_>) -> bool {
    matches!(seek(file, SeekFrom::Data(0)), Ok(_) | Err(Errno::NXIO))
}
