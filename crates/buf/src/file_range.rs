//! A range of a file in place of the bytes: what a write may have instead of memory, and a read may be answered with.
//!
//! Nothing is read before somebody needs it, and who can hand the range to the kernel never sees the bytes. Unlike
//! [`Pages`](crate::Pages) a range can be used as often as need be, and says nothing of what the file has: it may be changed
//! or cut off before it is used, so that it is for those who have the file to themselves, or do not mind.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, StatxFlags, sendfile, statx};

/// Bytes of a file.
#[derive(Clone, Debug)]
pub struct FileRange {
    file: Arc<OwnedFd>,
    offset: u64,
    len: u64,
}

impl FileRange {
    /// `len` bytes of a file, which is open for reading, from `offset` on.
    #[must_use]
    pub fn new(file: &Arc<OwnedFd>, offset: u64, len: u64) -> Self {
        Self { file: Arc::clone(file), offset, len }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Where it begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// It without its first `bytes`, or nothing.
    #[must_use]
    pub fn after(&self, bytes: u64) -> Self {
        let bytes = bytes.min(self.len);
        Self { file: Arc::clone(&self.file), offset: self.offset + bytes, len: self.len - bytes }
    }

    /// Its first `bytes`, or all of it.
    #[must_use]
    pub fn first(&self, bytes: u64) -> Self {
        Self { len: self.len.min(bytes), ..self.clone() }
    }

    /// Whether the file reaches so far now, as far as this machine knows: the server of a file on the network is not asked, nor
    /// waited for. Always, if it is no regular file.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let end = self.offset.saturating_add(self.len);
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let wanted = StatxFlags::TYPE | StatxFlags::SIZE;
        statx(&self.file, c"", flags, wanted).is_ok_and(|stat| {
            let is_file = FileType::from_raw_mode(stat.stx_mode.into()).is_file();
            !is_file || stat.stx_size >= end
        })
    }

    /// Sends it without its first `skip` bytes, as far as it goes without waiting for the socket, and says how many bytes that
    /// were. What is not in the page cache is waited for. The process is to ignore SIGPIPE, as Rust's programs do: a call for
    /// that, as sendmsg(2) has it, there is none here.
    ///
    /// # Errors
    /// What sendfile(2) says: [`io::ErrorKind::WouldBlock`] if nothing could be sent now; [`io::ErrorKind::UnexpectedEof`] if
    /// the file has no more; [`io::ErrorKind::Interrupted`] also if the server of the file says so, perhaps each time.
    pub fn send(&self, skip: u64, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let rest = self.after(skip);
        let (mut at, mut sent) = (rest.offset, 0);
        let len = usize::try_from(rest.len).unwrap_or(usize::MAX);
        while sent < len {
            match sendfile(socket, &self.file, Some(&mut at), len - sent) {
                Ok(0) if sent > 0 => break,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => sent += more,
                Err(_) if sent > 0 => break,
                Err(err) => return Err(err.into()),
            }
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_sent_is_what_the_file_has_and_can_be_sent_again() {
        let bytes: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let file = Arc::new(OwnedFd::from(file));
        let range = FileRange::new(&file, 1000, 900_000);
        for skip in [0_usize, 1, 899_999] {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let (mut got, mut sent) = (Vec::new(), skip);
            while sent < 900_000 {
                match range.send(sent as u64, near.as_fd()) {
                    Ok(more) => sent += more,
                    Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
                }
                let mut part = vec![0; sent - skip - got.len()];
                far.read_exact(&mut part).unwrap();
                got.append(&mut part);
            }
            assert!(got == bytes[1000 + skip..901_000]);
        }
    }

    #[test]
    fn a_file_that_is_too_short_is_told_from_one_that_is_through() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 100], 0).unwrap();
        let file = Arc::new(OwnedFd::from(file));
        let (near, _far) = UnixStream::pair().unwrap();
        let range = FileRange::new(&file, 50, 51);
        assert!(!range.is_there() && FileRange::new(&file, 50, 50).is_there());
        assert_eq!(range.send(0, near.as_fd()).unwrap(), 50);
        let missing = range.send(50, near.as_fd()).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(range.send(51, near.as_fd()).unwrap(), 0);
        assert_eq!((range.first(7).len(), range.first(60).len()), (7, 51));
        let rest = range.after(60);
        assert!(rest.is_empty() && rest.offset() == 101);
    }
}
