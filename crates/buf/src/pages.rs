//! Pages of a file, held by reference: the answer to a read that nobody has copied.
//!
//! A pipe holds pages of the page cache where splice(2) has put them, and gives them to a socket as they are. What holds a page
//! can no more fail to be read: an error, or the end of the file, is seen when the pages are taken, before anybody is told that
//! the read went well.
//!
//! The pages stay the file's own. A write to the file that comes after the read, and before the receiver has the bytes, shows in
//! them. To whoever reads both overlap, as he has no answer yet when the write is sent, and a disk says nothing of the order of
//! such two. Once all bytes have been received they are a copy, which nothing changes. A page that is cut off or discarded
//! meanwhile keeps its old bytes for those who hold it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use rustix::process::{Resource, getrlimit};

use crate::PAGE_SIZE;

/// Bytes of whole pages that one [`Pages`] holds at most: what a pipe may be by default (`fs.pipe-max-size`).
pub const MAX_PAGES_BYTES: usize = 1 << 20;
/// Bytes that a pipe holds at least, so that few are made larger later. Only a list of so many pages is allocated for it.
const LEAST_ROOM: usize = 256 << 10;
/// Pipes of a process, two descriptors each: as many as requests of a client that reads far ahead, and never more than take a
/// quarter of the descriptors that the process may have.
const MAX_PIPES: usize = 256;
/// Pages that all pipes of an unprivileged user may hold before the next ones stay small, by default (pipe(7),
/// `fs.pipe-user-pages-soft`).
const DEFAULT_USER_PAGES: usize = 16384;
/// The part of them that a pool takes. The rest is for the user's other pipes and programs.
const PART_OF_USER_PAGES: usize = 4;

/// Takes pages of files, and keeps pipes for the next ones.
#[derive(Clone, Debug)]
pub struct PagePool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stock: Mutex<Stock>,
    /// Pipes in use, and how many may be.
    in_use: AtomicUsize,
    most: usize,
    /// Pages that all pipes may hold.
    most_pages: usize,
}

#[derive(Debug, Default)]
struct Stock {
    free: Vec<Pipe>,
    /// Pages that all pipes may hold now, in use or not.
    pages: usize,
}

#[derive(Debug)]
struct Pipe {
    source: OwnedFd,
    sink: OwnedFd,
    /// Bytes of pages that it holds at most.
    room: usize,
}

/// Pages that were taken from a file, until they are sent.
#[derive(Debug)]
pub struct Pages {
    /// Always there, until the drop moves it to the pool.
    pipe: Option<Pipe>,
    len: usize,
    /// Bytes that are still in the pipe.
    left: AtomicUsize,
    pool: Weak<Shared>,
}

impl PagePool {
    /// One of at most so many pipes, and of a part of the pages that a user's pipes may hold.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self::with_pages(most, user_pages() / PART_OF_USER_PAGES)
    }

    fn with_pages(most: usize, most_pages: usize) -> Self {
        let in_use = AtomicUsize::new(0);
        Self(Arc::new(Shared { stock: Mutex::default(), in_use, most, most_pages }))
    }

    /// The one that all files of this process have together: what it may hold is the process's.
    #[must_use]
    pub fn of_process() -> Self {
        static POOL: LazyLock<PagePool> = LazyLock::new(|| {
            let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            let most = usize::try_from(descriptors / 8).unwrap_or(MAX_PIPES);
            PagePool::new(most.min(MAX_PIPES))
        });
        POOL.clone()
    }

    /// `len` bytes of a file from `offset` on. `None` if the file does not give all of them that way, for whatever reason, or
    /// as many pipes are in use as may be: they are to be read then. A page that is not in the page cache is read from
    /// storage, which the caller waits for.
    #[must_use]
    pub fn take(&self, file: BorrowedFd<'_>, offset: u64, len: usize) -> Option<Pages> {
        let skew = usize::try_from(offset % PAGE_SIZE as u64).ok()?;
        let room = len.checked_add(skew)?.next_multiple_of(PAGE_SIZE);
        if len == 0 || room > MAX_PAGES_BYTES {
            return None;
        }
        let pages = Pages {
            pipe: Some(self.0.pipe(room)?),
            len,
            left: AtomicUsize::new(0),
            pool: Arc::downgrade(&self.0),
        };
        let sink = &pages.pipe.as_ref()?.sink;
        let (mut at, mut taken) = (offset, 0);
        while taken < len {
            match splice(file, Some(&mut at), sink, None, len - taken, SpliceFlags::NONBLOCK) {
                Ok(0) => return None,
                Ok(more) => taken += more,
                Err(_) => return None,
            }
            pages.left.store(taken, Ordering::Relaxed);
        }
        Some(pages)
    }
}

impl Shared {
    /// An empty pipe for so many bytes of pages.
    fn pipe(&self, room: usize) -> Option<Pipe> {
        if self.in_use.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let pipe = self.with_room(room);
        if pipe.is_none() {
            self.in_use.fetch_sub(1, Ordering::Relaxed);
        }
        pipe
    }

    /// A pipe that was kept, or a new one. The pages are taken before the pipe holds them, so that there are never more.
    fn with_room(&self, room: usize) -> Option<Pipe> {
        let mut stock = self.stock();
        let kept = stock.free.pop();
        let has = kept.as_ref().map_or(0, |pipe| pipe.room);
        if has >= room {
            return kept;
        }
        let room = room.next_power_of_two().max(LEAST_ROOM);
        let more = (room - has) / PAGE_SIZE;
        while stock.pages + more > self.most_pages {
            let Some(idle) = stock.free.pop() else {
                stock.free.extend(kept);
                return None;
            };
            stock.pages -= idle.pages();
        }
        stock.pages += more;
        drop(stock);
        let pipe = kept.map_or_else(Pipe::new, Ok).and_then(|pipe| pipe.with_room(room));
        if pipe.is_err() {
            self.stock().pages -= room / PAGE_SIZE;
        }
        pipe.ok()
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a pipe back. One that still has pages in it is closed: they are somebody else's answer.
    fn take_back(&self, pipe: Pipe, is_empty: bool) {
        let mut stock = self.stock();
        if is_empty {
            stock.free.push(pipe);
        } else {
            stock.pages -= pipe.pages();
        }
    }
}

/// The pages that the pipes of a user may hold.
fn user_pages() -> usize {
    let limit = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").ok();
    match limit.and_then(|limit| limit.trim().parse().ok()) {
        // There is no limit.
        Some(0) => usize::MAX,
        Some(pages) => pages,
        None => DEFAULT_USER_PAGES,
    }
}

impl Pipe {
    fn new() -> rustix::io::Result<Self> {
        let (source, sink) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { source, sink, room: 0 })
    }

    fn pages(&self) -> usize {
        self.room / PAGE_SIZE
    }

    /// Refused where the user has more pipes than `fs.pipe-user-pages-soft` lets grow.
    fn with_room(mut self, room: usize) -> rustix::io::Result<Self> {
        fcntl_setpipe_size(&self.sink, room)?;
        self.room = room;
        Ok(self)
    }
}

impl Pages {
    /// Bytes that were taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a page has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sends what is left of them, as far as it goes without waiting, and says how many bytes that were. The process is to ignore
    /// SIGPIPE, as Rust's programs do: a call for that, as sendmsg(2) has it, there is none here.
    ///
    /// # Errors
    /// What the socket says: [`io::ErrorKind::WouldBlock`] if nothing could be sent now.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut sent = 0;
        loop {
            let left = self.left.load(Ordering::Relaxed);
            let Some(pipe) = self.pipe.as_ref().filter(|_| left > 0) else { return Ok(sent) };
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            match splice(&pipe.source, None, socket, None, left, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => {
                    self.left.store(left - more, Ordering::Relaxed);
                    sent += more;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if sent > 0 => return Ok(sent),
                Err(err) => return Err(err.into()),
            }
        }
    }

    /// Copies what is left of them out, and gives them up: for whoever cannot send them.
    ///
    /// # Errors
    /// What read(2) of a pipe says.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.left.load(Ordering::Relaxed)];
        let mut done = 0;
        while let (Some(pipe), true) = (&self.pipe, done < bytes.len()) {
            match rustix::io::read(&pipe.source, &mut bytes[done..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(err) => return Err(err.into()),
            }
            self.left.store(bytes.len() - done, Ordering::Relaxed);
        }
        Ok(bytes)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        if let Some(pipe) = self.pipe.take() {
            pool.take_back(pipe, *self.left.get_mut() == 0);
        }
        pool.in_use.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn file(len: usize) -> (std::fs::File, Vec<u8>) {
        let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
        let mut file = std::fs::File::from(memfd_create("pages", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn what_was_taken_arrives_in_as_many_parts_as_there_is_room_for() {
        let (file, bytes) = file(MAX_PAGES_BYTES);
        let pool = PagePool::new(8);
        for (offset, len) in [(0, MAX_PAGES_BYTES), (4096, 65536), (513, 300_001), (7, 1)] {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            let pages = pool.take(file.as_fd(), offset as u64, len).unwrap();
            assert_eq!(pages.len(), len);
            let (mut got, mut sent) = (Vec::new(), 0);
            while got.len() < len {
                match pages.send(near.as_fd()) {
                    Ok(more) => sent += more,
                    Err(err) => assert_eq!(err.kind(), io::ErrorKind::WouldBlock),
                }
                let mut part = vec![0; sent - got.len()];
                far.read_exact(&mut part).unwrap();
                got.append(&mut part);
            }
            assert!(got == bytes[offset..offset + len]);
            assert_eq!(pages.send(near.as_fd()).unwrap(), 0, "there is no more");
        }
        assert_eq!(pool.0.stock().free.len(), 1, "one pipe did for all");
    }

    #[test]
    fn what_is_not_all_there_is_not_taken() {
        let (file, _) = file(10_000);
        let pool = PagePool::new(8);
        assert!(pool.take(file.as_fd(), 4096, 10_000 - 4096).is_some());
        assert!(pool.take(file.as_fd(), 4096, 10_000 - 4095).is_none(), "past its end");
        assert!(pool.take(file.as_fd(), 0, 0).is_none());
        assert!(pool.take(file.as_fd(), 1, MAX_PAGES_BYTES).is_none(), "a page too many");
        let (socket, _peer) = UnixStream::pair().unwrap();
        assert!(pool.take(socket.as_fd(), 0, 4096).is_none(), "no file");
        assert_eq!(pool.0.in_use.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_more_pipes_are_used_than_the_limit_and_what_was_not_sent_is_no_later_answer() {
        let (file, bytes) = file(8192);
        let pool = PagePool::new(5);
        let take = || pool.take(file.as_fd(), 0, 4096);
        let all: Vec<_> = std::iter::from_fn(take).take(10).collect();
        assert_eq!(all.len(), 5);
        drop(all);
        assert!(pool.0.stock().free.is_empty(), "pipes with pages in them are closed");
        let later = pool.take(file.as_fd(), 4096, 4096).unwrap();
        assert!(later.into_bytes().unwrap() == bytes[4096..]);
    }

    /// The user's other programs want pipes, too.
    #[test]
    fn pipes_hold_no_more_pages_than_the_limit_in_use_or_not() {
        let (file, bytes) = file(MAX_PAGES_BYTES);
        let least = LEAST_ROOM / PAGE_SIZE;
        let pool = PagePool::with_pages(8, 4 * least);
        let take = |len| pool.take(file.as_fd(), 0, len);
        let kept_and_counted = || {
            let stock = pool.0.stock();
            (stock.free.len(), stock.pages)
        };
        let all: Vec<_> = std::iter::from_fn(|| take(4096)).collect();
        assert_eq!((all.len(), kept_and_counted()), (4, (0, 4 * least)));
        assert!(all.into_iter().all(|pages| pages.into_bytes().unwrap() == bytes[..4096]));
        assert_eq!(kept_and_counted(), (4, 4 * least), "they are kept");
        let long = take(MAX_PAGES_BYTES).unwrap();
        assert_eq!(kept_and_counted(), (0, 4 * least), "they made room");
        assert!(take(1).is_none(), "all is in use");
        drop(long);
        assert_eq!(kept_and_counted(), (0, 0), "it was closed with pages in it");
        let (short, other) = (take(1).unwrap(), take(1).unwrap());
        short.into_bytes().unwrap();
        assert!(take(MAX_PAGES_BYTES).is_none(), "one that cannot grow");
        assert_eq!(kept_and_counted(), (1, 2 * least), "is kept as it is");
        drop(other);
        assert!(PagePool::new(1).take(file.as_fd(), 0, 1).is_some(), "by default there is room");
    }

    /// See the head of this file.
    #[test]
    fn a_later_write_shows_until_the_bytes_were_received_and_never_after() {
        let (file, bytes) = file(8192);
        let (near, mut far) = UnixStream::pair().unwrap();
        let pool = PagePool::new(8);
        let pages = pool.take(file.as_fd(), 0, 8192).unwrap();
        assert_eq!(pages.send(near.as_fd()).unwrap(), 8192);
        let mut got = [0; 8192];
        far.read_exact(&mut got[..4096]).unwrap();
        file.write_all_at(&[0xee; 8192], 0).unwrap();
        far.read_exact(&mut got[4096..]).unwrap();
        assert!(got[..4096] == bytes[..4096], "what was received is a copy");
        assert!(got[4096..] == bytes[4096..] || got[4096..] == [0xee; 4096]);
    }

    #[test]
    fn pages_that_the_file_has_lost_keep_their_bytes() {
        let (file, bytes) = file(8192);
        let pages = PagePool::new(8).take(file.as_fd(), 0, 8192).unwrap();
        file.set_len(0).unwrap();
        assert!(pages.into_bytes().unwrap() == bytes);
    }
}
