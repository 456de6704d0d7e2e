//! Where data come from and go to: bytes of ours, or segments of memory that others may change.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};

use blockyard_buf::{Segment, total_len};
use blockyard_fuse::Errno;
use blockyard_sys::segments;
use rustix::io::ReadWriteFlags;
use smallvec::SmallVec;

use super::errno;
use crate::filesystem::Outcome;

/// Segments of which the first bytes are done.
type Rest = SmallVec<[Segment; 16]>;

/// Data to write.
pub(super) trait Source {
    /// Bytes.
    fn len(&self) -> usize;
    /// Writes some of what stands behind the first `done` bytes to a place.
    fn write_some(&self, done: usize, to: &Target<'_>) -> Outcome<usize>;
}

/// Where data are written, and how.
#[derive(Clone, Copy)]
pub(super) struct Target<'f> {
    pub(super) file: BorrowedFd<'f>,
    pub(super) offset: u64,
    pub(super) how: ReadWriteFlags,
}

/// A place to read to.
pub(super) trait Sink {
    /// Bytes.
    fn len(&self) -> usize;
    /// Reads some of what is at `offset` of a file to behind the first `done` bytes.
    fn read_some(&mut self, done: usize, file: BorrowedFd<'_>, offset: u64) -> Outcome<usize>;
}

impl Source for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn write_some(&self, done: usize, to: &Target<'_>) -> Outcome<usize> {
        // That would be where the descriptor is (pwritev2(2)).
        if to.offset == u64::MAX {
            return Err(Errno::EINVAL);
        }
        let rest = [IoSlice::new(self.get(done..).unwrap_or(&[]))];
        let write = || rustix::io::pwritev2(to.file, &rest, to.offset, to.how);
        rustix::io::retry_on_intr(write).map_err(errno)
    }
}

impl Sink for &mut [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn read_some(&mut self, done: usize, file: BorrowedFd<'_>, offset: u64) -> Outcome<usize> {
        let rest = self.get_mut(done..).unwrap_or(&mut []);
        rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *rest, offset)).map_err(errno)
    }
}

impl Source for &[Segment] {
    fn len(&self) -> usize {
        total_len(self)
    }

    fn write_some(&self, done: usize, to: &Target<'_>) -> Outcome<usize> {
        by_segments(self, done, |segments| segments::write_at(to.file, to.offset, segments, to.how))
    }
}

impl Sink for &[Segment] {
    fn len(&self) -> usize {
        total_len(self)
    }

    fn read_some(&mut self, done: usize, file: BorrowedFd<'_>, offset: u64) -> Outcome<usize> {
        by_segments(self, done, |segments| segments::read_at(file, offset, segments))
    }
}

fn by_segments(
    segments: &[Segment],
    done: usize,
    call: impl FnOnce(&[Segment]) -> std::io::Result<usize>,
) -> Outcome<usize> {
    let moved = if done == 0 { call(segments) } else { call(&behind(segments, done)) };
    moved.map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(Errno::EIO.raw())))
}

/// All but the first `done` bytes.
fn behind(segments: &[Segment], mut done: usize) -> Rest {
    let mut rest = Rest::new();
    for segment in segments {
        let skipped = done.min(segment.len());
        done -= skipped;
        if skipped < segment.len() {
            rest.push(segment.slice(skipped, segment.len() - skipped));
        }
    }
    rest
}

/// As much as there is. An error behind it is one: what is short is the end of the file for the kernel.
pub(super) fn read_all(file: impl AsFd, offset: u64, mut into: impl Sink) -> Outcome<usize> {
    let mut done = 0;
    while done < into.len() {
        match into.read_some(done, file.as_fd(), offset.saturating_add(done as u64))? {
            0 => break,
            len => done += len,
        }
    }
    Ok(done)
}

/// As much as there is room for, and why not all of it.
pub(super) fn write_most(to: Target<'_>, data: &impl Source) -> (usize, Outcome) {
    let mut done = 0;
    while done < data.len() {
        let rest = Target { offset: to.offset.saturating_add(done as u64), ..to };
        match data.write_some(done, &rest) {
            Ok(0) => return (done, Err(Errno::EIO)),
            Ok(len) => done += len,
            Err(errno) => return (done, Err(errno)),
        }
    }
    (done, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_go_on_behind_what_is_done() {
        let parts = [3, 0, 4].map(|len| Segment::from_vec((0..len).collect()));
        let left = |done| behind(&parts, done).iter().flat_map(Segment::to_vec).collect::<Vec<_>>();
        assert_eq!(left(0), [0, 1, 2, 0, 1, 2, 3]);
        assert_eq!(left(2), [2, 0, 1, 2, 3]);
        assert_eq!(left(3), [0, 1, 2, 3]);
        assert_eq!(left(7), [0; 0]);
        assert_eq!(left(8), [0; 0]);
    }

    /// More parts than a system call takes.
    #[test]
    fn many_small_parts_are_all_written_and_read() {
        let file = tempfile::tempfile().unwrap();
        let parts: Vec<_> = (0..=u8::MAX).cycle().take(3000).collect();
        let parts: Vec<_> = parts.iter().map(|byte| Segment::from_vec(vec![*byte])).collect();
        let to = Target { file: file.as_fd(), offset: 5, how: ReadWriteFlags::empty() };
        assert_eq!(write_most(to, &parts.as_slice()), (3000, Ok(())));
        let mut back = vec![0; 3000];
        assert_eq!(read_all(&file, 5, back.as_mut_slice()), Ok(3000));
        assert!(parts.iter().zip(&back).all(|(part, byte)| part.to_vec() == [*byte]));
        let into: Vec<_> = (0..3500).map(|_| Segment::from_vec(vec![9])).collect();
        assert_eq!(read_all(&file, 5, into.as_slice()), Ok(3000));
        assert_eq!(into.iter().take(3000).flat_map(Segment::to_vec).collect::<Vec<_>>(), back);
    }
}
