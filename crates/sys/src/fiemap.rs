//! What space a file has of its own: the ioctl `FS_IOC_FIEMAP` (Documentation/filesystems/fiemap.rst).

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::ioctl::opcode;

/// Extents that are asked for at once.
const EXTENTS: u32 = 32;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 0x1;
/// `FIEMAP_EXTENT_SHARED`: other files have it, too.
const SHARED: u32 = 0x2000;

/// `struct fiemap` of include/uapi/linux/fiemap.h, without the extents behind it.
#[derive(Default)]
#[repr(C)]
struct Head {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

#[repr(C)]
struct Map {
    head: Head,
    extents: [Extent; EXTENTS as usize],
}

const _: () = assert!(size_of::<Head>() == 32 && size_of::<Extent>() == 56);
const _: () =
    assert!(size_of::<Map>() == size_of::<Head>() + EXTENTS as usize * size_of::<Extent>());

/// Whether space is set aside for a byte of the range that no other file shares: for data, or before any is there, by
/// fallocate(2). Who has that can write without asking for more.
///
/// # Errors
/// `EOPNOTSUPP` where the file system does not tell.
pub(crate) fn has_own_space(file: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<bool> {
    let mut at = range.start;
    while at < range.end {
        let (mapped, extents) = extents(file, at, range.end - at)?;
        let known = extents.get(..mapped).unwrap_or(&extents);
        if known.iter().any(|extent| extent.flags & SHARED == 0) {
            return Ok(true);
        }
        match known.last() {
            Some(last) if last.flags & LAST == 0 => {
                let end = last.logical.saturating_add(last.length);
                if end <= at {
                    break;
                }
                at = end;
            }
            _ => break,
        }
    }
    Ok(false)
}

/// The first extents of a range, and how many of these there are.
fn extents(
    file: BorrowedFd<'_>,
    start: u64,
    length: u64,
) -> io::Result<(usize, [Extent; EXTENTS as usize])> {
    let head = Head { start, length, extent_count: EXTENTS, ..Head::default() };
    let mut map = Map { head, extents: [Extent::default(); EXTENTS as usize] };
    // It is `_IOWR('f', 11, struct fiemap)`.
    let command = opcode::read_write::<Head>(b'f', 11) as libc::Ioctl;
    // SAFETY: the command reads the head and writes it, and behind it as many extents as that says there is room for. All
    // of that is valid for the call, and made of integers.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, &raw mut map) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((map.head.mapped_extents as usize, map.extents))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[test]
    fn data_has_space_and_so_has_what_is_reserved_and_a_hole_has_none() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        let has = |range| has_own_space(file.as_fd(), &range);
        match has(0..64 << 20) {
            Err(err) if err.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            told => assert!(!told.unwrap(), "a hole"),
        }
        // More extents than are asked for at once, between holes.
        for at in 0..2 * u64::from(EXTENTS) {
            file.write_all_at(&[1; 4096], (1 << 20) + at * 8192).unwrap();
        }
        assert!(has(0..2 << 20).unwrap() && !has(0..1 << 20).unwrap());
        assert!(has((1 << 20)..(1 << 20) + 1).unwrap() && !has((8 << 20)..(64 << 20)).unwrap());
        fallocate(&file, FallocateFlags::KEEP_SIZE, 32 << 20, 4096).unwrap();
        assert!(has((32 << 20)..(33 << 20)).unwrap() && !has(5..5).unwrap());
        let null = File::open("/dev/null").unwrap();
        assert!(has_own_space(null.as_fd(), &(0..1)).is_err());
    }
}
