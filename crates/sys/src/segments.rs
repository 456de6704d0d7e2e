//! Files read to and written from segments, by the thread that asks, which may wait.

use std::io;
use std::os::fd::BorrowedFd;

use blockyard_buf::{Access, Segment};
use rustix::io::ReadWriteFlags;

use crate::interrupted::uninterrupted;
use crate::net::{Faults, IOV_MAX};
use crate::transfer;

/// Reads what is at `offset` of a file (preadv2(2)); says how many bytes those were: 0 at its end. More than [`IOV_MAX`] segments
/// are not filled at once. Memory whose file became shorter is lost from then on, and the rest is read all the same.
///
/// # Errors
/// What preadv2(2) says.
///
/// # Panics
/// A segment is read-only.
pub fn read_at(file: BorrowedFd<'_>, offset: u64, into: &[Segment]) -> io::Result<usize> {
    let into = into.get(..IOV_MAX).unwrap_or(into);
    let mut faults = Faults::default();
    loop {
        match uninterrupted(|| transfer::read(file, offset, into, false)) {
            Err(err) if faults.is_mended(&err, into.iter(), Access::Write) => {}
            done => return done,
        }
    }
}

/// Writes to `offset` of a file (pwritev2(2)), in the way that the flags say; says how many bytes. Otherwise as [`read_at`], but
/// nothing is written for memory that is lost.
///
/// # Errors
/// What pwritev2(2) says: `EFAULT` for memory that is lost.
pub fn write_at(
    file: BorrowedFd<'_>,
    offset: u64,
    from: &[Segment],
    how: ReadWriteFlags,
) -> io::Result<usize> {
    let from = from.get(..IOV_MAX).unwrap_or(from);
    let written = uninterrupted(|| transfer::write(file, offset, from, how));
    if written.as_ref().is_err_and(|err| err.raw_os_error() == Some(libc::EFAULT)) {
        // It is found out which, for who asks later.
        from.iter().for_each(|segment| _ = segment.probe(Access::Read));
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use blockyard_buf::SharedMapping;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn what_is_written_is_read_back_also_to_memory_that_is_lost() {
        let file = tempfile::tempfile().unwrap();
        let write_at =
            |at, parts: &[Segment]| write_at(file.as_fd(), at, parts, ReadWriteFlags::empty());
        let parts = [b"one ".to_vec(), Vec::new(), b"two".to_vec()].map(Segment::from_vec);
        assert_eq!(write_at(3, &parts).unwrap(), 7);
        let back = [2, 5, 9].map(|len| Segment::from_vec(vec![0; len]));
        assert_eq!(read_at(file.as_fd(), 3, &back).unwrap(), 7);
        assert_eq!((back[0].to_vec(), back[1].to_vec()), (b"on".to_vec(), b"e two".to_vec()));

        let guest = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&guest, 8192).unwrap();
        let mapping = SharedMapping::new(guest.as_fd(), 0, 8192).unwrap();
        ftruncate(&guest, 4096).unwrap();
        let part = [mapping.segment(4096, 7)];
        let refused = write_at(0, &part).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EFAULT));
        assert!(mapping.is_lost(), "who has lost it is told");
        assert_eq!(read_at(file.as_fd(), 3, &part).unwrap(), 7);
        let many = vec![Segment::from_vec(vec![7]); IOV_MAX + 1];
        assert_eq!(write_at(0, &many).unwrap(), IOV_MAX);
    }
}
