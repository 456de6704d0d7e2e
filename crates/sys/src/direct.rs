//! What direct I/O (`O_DIRECT`) asks of addresses and offsets: statx(2), `STATX_DIOALIGN`, since Linux 6.1.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// Alignment in bytes, powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets in the file, and of lengths: of each segment too.
    pub offset: u32,
}

/// What the kernel says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direct {
    /// This alignment will do.
    Aligned(Alignment),
    /// The file takes no direct I/O.
    Refused,
    /// The kernel or the file system does not say.
    Unknown,
}

/// Asks the kernel for the alignment.
///
/// # Errors
/// What statx(2) says.
pub fn alignment(file: BorrowedFd<'_>) -> io::Result<Direct> {
    let stat = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
        return Ok(Direct::Unknown);
    }
    let (memory, offset) = (stat.stx_dio_mem_align, stat.stx_dio_offset_align);
    Ok(if memory.is_power_of_two() && offset.is_power_of_two() {
        Direct::Aligned(Alignment { memory, offset })
    } else {
        Direct::Refused
    })
}
