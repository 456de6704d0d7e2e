//! What a range of a file has, on its way to a socket. What is in the page cache is sent from there. What is not, or does not
//! go that way, is read by a thread that may wait: for storage, or for the server of a file on the network.
//!
//! That thread also finds out whose an error is. sendfile(2) says what has failed, and not whether for the file or for the
//! socket, and these have numbers in common (`ENOTCONN` of a FUSE file, `ETIMEDOUT` of a device). A range that can be read was
//! not to blame, and a socket that takes nothing says so again.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use blockyard_buf::{FileRange, Segment};
use blockyard_sys::{Pool, page_cache, uninterrupted};
use parking_lot::Mutex;
use rustix::io::pread;

use crate::socket::Socket;

/// Bytes of which it is asked at once whether they are cached, and which are sent then.
const MOST_AT_ONCE: u64 = 1 << 20;

/// The sources of a connection's writes: one at a time, as they are in its stream.
#[derive(Default)]
pub(crate) struct Sources {
    reading: Option<Reading>,
    /// Whose range was found in the page cache just now, and up to where.
    cached: Option<(u64, u64)>,
    /// Once something was to be read.
    thread: Option<Pool>,
}

/// A range that is being read, and what came of it.
struct Reading {
    cookie: u64,
    told: Arc<Mutex<Option<Read>>>,
}

/// How a range has gone on.
pub(crate) enum Step {
    /// So many bytes were sent.
    Sent(usize),
    /// What was left of it has been read.
    Read(Read),
}

/// What a range has.
pub(crate) struct Read {
    /// All of it, so that the stream stays whole, whatever it is.
    pub(crate) bytes: Segment,
    /// Why it is not what the file has.
    pub(crate) error: Option<io::Error>,
}

impl Sources {
    /// Sends of the range of a request what goes at once, or takes what was read of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is no room in the socket, or it is being read; the socket's task is told of the end.
    pub(crate) fn send(
        &mut self,
        cookie: u64,
        range: &FileRange,
        socket: &Arc<Socket>,
    ) -> io::Result<Step> {
        if let Some(reading) = self.reading.take_if(|reading| reading.cookie == cookie) {
            let told = reading.told.lock().take();
            return told.map(Step::Read).ok_or_else(|| {
                self.reading = Some(reading);
                io::ErrorKind::WouldBlock.into()
            });
        }
        let asked =
            self.cached.take().filter(|(of, until)| *of == cookie && *until > range.offset());
        let next = range.first(asked.map_or(MOST_AT_ONCE, |(_, until)| until - range.offset()));
        if asked.is_some() || page_cache::has(next.file().as_fd(), next.offset(), next.len()) {
            match next.send(0, socket.fd.as_fd()) {
                Ok(sent) => {
                    self.cached = Some((cookie, next.offset() + next.len()));
                    return Ok(Step::Sent(sent));
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Err(err),
                Err(_) => {}
            }
        }
        self.read(cookie, range.clone(), socket);
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether a range is being read, and the server is waiting for us.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    fn read(&mut self, cookie: u64, range: FileRange, socket: &Arc<Socket>) {
        let (told, tell) = (Arc::default(), Arc::downgrade(socket));
        let reading = Reading { cookie, told: Arc::clone(&told) };
        self.reading = Some(reading);
        let thread = self.thread.get_or_insert_with(|| Pool::new(1));
        thread.execute(Box::new(move || {
            let read = read(&range);
            // Whoever hears of the end may expect the file to be closed.
            drop(range);
            *told.lock() = Some(read);
            // A connection that was left meanwhile is not kept.
            if let Some(socket) = tell.upgrade() {
                socket.kick.notify_one();
            }
        }));
    }
}

/// What a range has, at most as long as a request, with zeroes in place of what cannot be read.
fn read(range: &FileRange) -> Read {
    let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(usize::MAX)];
    let (mut done, mut error) = (0, None);
    while done < bytes.len() && error.is_none() {
        let at = range.offset() + done as u64;
        match uninterrupted(|| Ok(pread(range.file(), &mut bytes[done..], at)?)) {
            Ok(0) => error = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => done += more,
            Err(err) => error = Some(err),
        }
    }
    Read { bytes: Segment::from_vec(bytes), error }
}
