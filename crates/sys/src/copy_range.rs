//! Bytes of one file to another within the kernel: by reference, where the file system lets both have the same blocks, or by a
//! pipe, which holds the pages of the one until they are copied to the other.
//!
//! copy_file_range(2) shares blocks wherever it can (XFS, btrfs; servers of NFS and SMB do as they like), and cannot be told
//! not to. A shared block has been paid for once: whoever overwrites it, in either file, needs another one, which a full file
//! system has not. So that is for those who say that it may be, and for places that have no space of their own yet.

use std::io;
use std::os::fd::BorrowedFd;

use blockyard_buf::FileRange;
use rustix::fs::copy_file_range;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::fiemap;
use crate::interrupted::uninterrupted;

/// Bytes of pages that the pipe holds, if the kernel lets it: what one may be by default (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1 << 20;

/// Goes on until all is there, the other file ends, or something keeps it from going on: that is said by the next call.
pub(crate) fn copy(
    file: BorrowedFd<'_>,
    offset: u64,
    from: &FileRange,
    may_share: bool,
) -> io::Result<usize> {
    let range = offset..offset.saturating_add(from.len());
    if may_share
        && matches!(fiemap::has_own_space(file, &range), Ok(false))
        && let Some(copied) = share(file, offset, from)
    {
        return Ok(copied);
    }
    by_pipe(file, offset, from)
}

/// As far as it goes; `None` if it does not go at all, for whatever reason.
fn share(file: BorrowedFd<'_>, offset: u64, from: &FileRange) -> Option<usize> {
    let (mut at, mut to, mut copied) = (from.offset(), offset, 0);
    let len = usize::try_from(from.len()).unwrap_or(usize::MAX);
    while copied < len {
        let most = len - copied;
        let copy = || Ok(copy_file_range(from.file(), Some(&mut at), file, Some(&mut to), most)?);
        match uninterrupted(copy) {
            Ok(0) | Err(_) => break,
            Ok(more) => copied += more,
        }
    }
    (copied > 0).then_some(copied)
}

fn by_pipe(file: BorrowedFd<'_>, offset: u64, from: &FileRange) -> io::Result<usize> {
    let (source, sink) = pipe_with(PipeFlags::CLOEXEC)?;
    // Where it stays small, it takes more turns.
    let _ = fcntl_setpipe_size(&sink, PIPE_BYTES);
    let (mut at, mut to, mut copied) = (from.offset(), offset, 0);
    let len = usize::try_from(from.len()).unwrap_or(usize::MAX);
    while copied < len {
        let most = (len - copied).min(PIPE_BYTES);
        let none = SpliceFlags::empty();
        let read = || Ok(splice(from.file(), Some(&mut at), &sink, None, most, none)?);
        let mut held = match uninterrupted(read) {
            Ok(0) => break,
            Ok(held) => held,
            Err(err) => return ended(copied, err),
        };
        while held > 0 {
            let write = || Ok(splice(&source, None, file, Some(&mut to), held, SpliceFlags::MOVE)?);
            match uninterrupted(write) {
                // It has taken none, and says nothing.
                Ok(0) => return ended(copied, Errno::IO.into()),
                Ok(more) => (held, copied) = (held - more, copied + more),
                // What is left in the pipe goes with it.
                Err(err) => return ended(copied, err),
            }
        }
    }
    Ok(copied)
}

fn ended(copied: usize, err: io::Error) -> io::Result<usize> {
    if copied > 0 { Ok(copied) } else { Err(err) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn bytes_are_the_same_wherever_they_begin_and_whether_or_not_blocks_may_be_shared() {
        const LEN: usize = 3 << 20;
        let bytes: Vec<u8> = (0..=250).cycle().take(LEN).collect();
        let named = tempfile::NamedTempFile::new().unwrap();
        let read_only = std::fs::File::open(named.path()).unwrap();
        let file = named.reopen().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let from = Arc::new(OwnedFd::from(file));
        for may_share in [false, true] {
            for (offset, to, len) in
                [(0, 0, LEN), (4096, 8192, 1 << 20), (1, 0, 2 << 20), (7, 13, 1)]
            {
                let target = tempfile::tempfile().unwrap();
                let range = FileRange::new(&from, offset as u64, len as u64);
                let copied = copy(target.as_fd(), to, &range, may_share).unwrap();
                let expected = len.min(LEN - offset);
                assert_eq!(copied, expected, "{offset} {to} {len} {may_share}");
                let mut found = vec![0; expected];
                target.read_exact_at(&mut found, to).unwrap();
                assert!(found == bytes[offset..offset + expected], "{offset} {to} {may_share}");
            }
            let target = tempfile::tempfile().unwrap();
            let past = FileRange::new(&from, LEN as u64 - 10, 100);
            assert_eq!(copy(target.as_fd(), 0, &past, may_share).unwrap(), 10, "it ends there");
            let behind = FileRange::new(&from, LEN as u64, 100);
            assert_eq!(copy(target.as_fd(), 0, &behind, may_share).unwrap(), 0);
            let err = copy(read_only.as_fd(), 1 << 30, &past, may_share).unwrap_err();
            assert_eq!(err.raw_os_error(), Some(libc::EBADF));
        }
    }
}
