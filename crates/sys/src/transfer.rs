//! Reading and writing segments by plain system calls, and the vectors that the kernel is given.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use blockyard_buf::Segment;
use rustix::io::ReadWriteFlags;
use smallvec::SmallVec;

/// One element of a vector. Its pointer is only ever used by the kernel.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct IoVec(libc::iovec);

// SAFETY: an address and a length, which belong to no thread; only the kernel follows the address, and whoever
// lets it keeps the memory alive.
unsafe impl Send for IoVec {}

impl IoVec {
    pub(crate) fn of(segment: &Segment) -> Self {
        Self(libc::iovec { iov_base: segment.as_ptr().cast(), iov_len: segment.len() })
    }
}

/// As the system calls want it: the count fits, since operations are checked to have at most 1024 segments.
pub(crate) fn count(vector: &[IoVec]) -> u32 {
    u32::try_from(vector.len()).unwrap_or(u32::MAX)
}

pub(crate) fn pointer(vector: &[IoVec]) -> *const libc::iovec {
    vector.as_ptr().cast()
}

type Vector = SmallVec<[IoVec; 16]>;

/// preadv2(2). `nowait`: `EAGAIN` rather than wait for storage.
pub(crate) fn read(
    file: BorrowedFd<'_>,
    offset: u64,
    memory: &[Segment],
    nowait: bool,
) -> io::Result<usize> {
    assert!(memory.iter().all(Segment::is_writable), "read into a read-only segment");
    let vector: Vector = memory.iter().map(IoVec::of).collect();
    let (count, offset) = (arguments(&vector)?, position(offset)?);
    let flags = if nowait { libc::RWF_NOWAIT } else { 0 };
    // SAFETY: every element of the vector is a segment's memory, writable as asserted, and `memory` keeps it
    // mapped during the call.
    let moved = unsafe { libc::preadv2(file.as_raw_fd(), pointer(&vector), count, offset, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// pwritev2(2).
pub(crate) fn write(
    file: BorrowedFd<'_>,
    offset: u64,
    memory: &[Segment],
    flags: ReadWriteFlags,
) -> io::Result<usize> {
    let vector: Vector = memory.iter().map(IoVec::of).collect();
    let (count, offset) = (arguments(&vector)?, position(offset)?);
    let flags = flags.bits().cast_signed();
    // SAFETY: every element of the vector is a segment's memory, which the kernel only reads, and `memory`
    // keeps it mapped during the call.
    let moved = unsafe { libc::pwritev2(file.as_raw_fd(), pointer(&vector), count, offset, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

fn arguments(vector: &[IoVec]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(vector.len()).map_err(|_| invalid())
}

fn position(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| invalid())
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
