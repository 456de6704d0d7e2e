//! What of a file is in the page cache.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::lane::is_in_memory;

/// cachestat(2), the same number on all architectures; since Linux 6.5.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of include/uapi/linux/mman.h.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat` of include/uapi/linux/mman.h.
#[derive(Debug, Default)]
#[repr(C)]
struct Stat {
    cached: u64,
    dirty: u64,
    under_write_back: u64,
    evicted: u64,
    recently_evicted: u64,
}

const _: () = assert!(size_of::<Range>() == 16 && size_of::<Stat>() == 40);

/// Whether it is told what is there of the file: not before Linux 6.5, not to everybody, and not of file systems in memory
/// and some others, whose files are not read without waiting (`RWF_NOWAIT`).
#[must_use]
pub fn is_known(file: BorrowedFd<'_>) -> bool {
    stat(file, 0, 1).is_ok()
        && !matches!(read_byte(file, 0), Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS))
}

/// Whether the kernel can try to read the file without waiting. It cannot where a server is asked, as by FUSE and NFS: all that
/// io_uring is asked of such a file is done by threads of the kernel, few for all files that one thread of ours submits
/// for, and of writes one at a time for each of 64 parts of all files (io_uring/io-wq.c). One that does not answer has
/// all of them, and others wait. What is in memory answers.
#[must_use]
pub fn can_try(file: BorrowedFd<'_>) -> bool {
    is_in_memory(file) || read_byte(file, 0) != Err(Errno::OPNOTSUPP)
}

/// Whether `len` bytes from `offset` on, at least one, can be had without waiting for storage. A page that is being read counts
/// as one that is there, unless it is the first or the last: the kernel reads ahead in order, so that these are seldom
/// through before those between them.
#[must_use]
pub fn has(file: BorrowedFd<'_>, offset: u64, len: u64) -> bool {
    let Some(last) = len.checked_sub(1).and_then(|more| offset.checked_add(more)) else {
        return false;
    };
    let page = rustix::param::page_size() as u64;
    let pages = last / page - offset / page + 1;
    stat(file, offset, len).is_ok_and(|stat| stat.cached >= pages)
        && [offset, last].iter().all(|&at| read_byte(file, at) == Ok(1))
}

/// Reads a byte, if that is no wait.
fn read_byte(file: BorrowedFd<'_>, at: u64) -> rustix::io::Result<usize> {
    let mut byte = [0];
    preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT)
}

fn stat(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Stat> {
    let range = Range { offset, len };
    let mut stat = Stat::default();
    let no_flags: libc::c_uint = 0;
    // SAFETY: both structures are as the kernel has them, and live until the call returns; it reads the one and writes the
    // other.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut stat, no_flags)
    };
    if result == 0 { Ok(stat) } else { Err(io::Error::last_os_error()) }
}
