//! What a block device is and can do (`linux/fs.h`, `BLK*`; sysfs' `queue` folder,
//! Documentation/ABI/stable/sysfs-block).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{fstat, major, minor};

const BLKROSET: libc::Ioctl = 0x125d;
const BLKROGET: libc::Ioctl = 0x125e;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKIOMIN: libc::Ioctl = 0x1278;
const BLKIOOPT: libc::Ioctl = 0x1279;
const BLKDISCARDZEROES: libc::Ioctl = 0x127c;
const BLKROTATIONAL: libc::Ioctl = 0x127e;
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Its size in bytes.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn size(file: BorrowedFd<'_>) -> io::Result<u64> {
    get(file, BLKGETSIZE64)
}

/// Whether it refuses writes.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn is_read_only(file: BorrowedFd<'_>) -> io::Result<bool> {
    get::<libc::c_int>(file, BLKROGET).map(|flag| flag != 0)
}

/// Makes it refuse writes, or take them again; one that its driver has made read-only stays so.
///
/// # Errors
/// `EACCES` for whom may not do that, `ENOTTY` if it is no block device.
pub fn set_read_only(file: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let flag = libc::c_int::from(read_only);
    // SAFETY: the command reads one integer of that type from memory that is valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKROSET, std::ptr::from_ref(&flag)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The unit of its addresses, in bytes.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn logical_block_size(file: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blksszget(file)?)
}

/// The unit of its writes, in bytes.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn physical_block_size(file: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(rustix::fs::ioctl_blkpbszget(file)?)
}

/// The smallest preferred transfer, in bytes.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn io_min(file: BorrowedFd<'_>) -> io::Result<u32> {
    get(file, BLKIOMIN)
}

/// The preferred transfer, in bytes; 0 if there is none.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn io_opt(file: BorrowedFd<'_>) -> io::Result<u32> {
    get(file, BLKIOOPT)
}

/// Whether seeking costs time.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn is_rotational(file: BorrowedFd<'_>) -> io::Result<bool> {
    get::<libc::c_ushort>(file, BLKROTATIONAL).map(|flag| flag != 0)
}

/// Whether discarded blocks are sure to read as zeroes. Linux says no for all devices since 4.12: ask for
/// zeroes instead.
///
/// # Errors
/// `ENOTTY` if it is no block device.
pub fn discard_zeroes(file: BorrowedFd<'_>) -> io::Result<bool> {
    get::<libc::c_uint>(file, BLKDISCARDZEROES).map(|flag| flag != 0)
}

/// Lets it forget a range: what it reads as afterwards is anything.
///
/// # Errors
/// `EOPNOTSUPP` if it cannot, `EINVAL` for a range that is not whole logical blocks.
pub fn discard(file: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<()> {
    set_range(file, BLKDISCARD, range)
}

/// Writes zeroes, by whatever means it has.
///
/// # Errors
/// `EINVAL` for a range that is not whole logical blocks, or what writing says.
pub fn write_zeroes(file: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<()> {
    set_range(file, BLKZEROOUT, range)
}

/// A number from sysfs' `queue` folder, of the whole disk if the device is a partition. `None`: there is no
/// such, or sysfs is not there.
#[must_use]
pub fn queue_attribute(file: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let dev = fstat(file).ok()?.st_rdev;
    let device = PathBuf::from(format!("/sys/dev/block/{}:{}", major(dev), minor(dev)));
    let read = |folder: &str| std::fs::read_to_string(device.join(folder).join(name)).ok();
    read("queue").or_else(|| read("../queue"))?.trim().parse().ok()
}

/// What the kernel writes for these commands.
trait Answer: Copy + Default {}
impl Answer for u64 {}
impl Answer for libc::c_int {}
impl Answer for libc::c_uint {}
impl Answer for libc::c_ushort {}

/// The type that a command answers with is fixed by `linux/fs.h`; the functions above name it.
fn get<T: Answer>(file: BorrowedFd<'_>, command: libc::Ioctl) -> io::Result<T> {
    let mut answer = T::default();
    // SAFETY: the command writes one `T`, an integer of the type that `linux/fs.h` gives it, to memory that is
    // valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, std::ptr::from_mut(&mut answer)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn set_range(file: BorrowedFd<'_>, command: libc::Ioctl, range: &Range<u64>) -> io::Result<()> {
    let argument = [range.start, range.end.saturating_sub(range.start)];
    // SAFETY: the command reads two 64-bit integers, start and length, from memory that is valid for the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, argument.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
