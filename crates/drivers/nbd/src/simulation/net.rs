//! The network: socket pairs, at whose far ends the world plays wires and servers.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use blockyard_nbd::uri::Transport;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::dice::Dice;
use crate::connect::{Dialer, Dialing};

/// What a socket buffers, so that it is full at times.
const SOCKET_BUFFER: usize = 4608;

/// Makes sockets for the driver, and keeps their far ends for the world.
#[derive(Debug, Default)]
pub(super) struct Exchange(Mutex<Calls>);

#[derive(Debug, Default)]
struct Calls {
    /// The names of servers, and the far ends of sockets to them.
    waiting: Vec<(String, UnixStream)>,
    nobody_listens: bool,
}

impl Exchange {
    pub(super) fn listen(&self, listens: bool) {
        self.0.lock().nobody_listens = !listens;
    }

    pub(super) fn accept(&self) -> Vec<(String, UnixStream)> {
        std::mem::take(&mut self.0.lock().waiting)
    }

    fn call(&self, name: &str) -> io::Result<UnixStream> {
        let mut calls = self.0.lock();
        if calls.nobody_listens {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = UnixStream::pair()?;
        for end in [&near, &far] {
            end.set_nonblocking(true)?;
            SockRef::from(end).set_send_buffer_size(SOCKET_BUFFER)?;
        }
        calls.waiting.push((name.to_owned(), far));
        Ok(near)
    }
}

impl Dialer for Exchange {
    fn dial<'a>(&'a self, transport: &'a Transport) -> Dialing<'a> {
        Box::pin(async move {
            match transport {
                Transport::Unix { socket } => self.call(&socket.to_string_lossy()).map(Into::into),
                _ => Err(io::ErrorKind::Unsupported.into()),
            }
        })
    }
}

/// What arrives at an end of a wire.
enum Arrival {
    Bytes(Vec<u8>),
    End,
}

/// One direction: what is on its way, in order.
#[derive(Default)]
struct Way {
    queue: VecDeque<(Duration, Arrival)>,
    /// Nothing more is put on it.
    closed: bool,
}

impl Way {
    fn send(&mut self, at: Duration, what: Arrival) {
        if self.closed {
            return;
        }
        self.closed = matches!(what, Arrival::End);
        let at = self.queue.back().map_or(at, |(last, _)| at.max(*last));
        self.queue.push_back((at, what));
    }

    fn receive(&mut self, now: Duration) -> Option<Arrival> {
        let due = self.queue.front().is_some_and(|(at, _)| *at <= now);
        if due { self.queue.pop_front().map(|(_, what)| what) } else { None }
    }

    /// Loses what is on the way, and all that would come.
    fn cut(&mut self) {
        self.queue.clear();
        self.closed = true;
    }
}

/// A connection, from the driver's socket to the server's.
pub(super) struct Wire {
    far: UnixStream,
    to_server: Way,
    to_client: Way,
    /// Bytes for the driver's socket that it had no room for.
    overdue: Vec<u8>,
    /// The network takes nothing from the driver's socket until then.
    pub(super) stalled_until: Duration,
    /// Nothing gets through until then; it is kept, as TCP sends again.
    pub(super) parted_until: Duration,
    /// The driver has closed it altogether: what was on its way is lost.
    pub(super) hung_up: bool,
    /// The driver's end has heard that the server closed it.
    told_end: bool,
}

impl Wire {
    pub(super) fn new(far: UnixStream) -> Self {
        Self {
            far,
            to_server: Way::default(),
            to_client: Way::default(),
            overdue: Vec::new(),
            stalled_until: Duration::ZERO,
            parted_until: Duration::ZERO,
            hung_up: false,
            told_end: false,
        }
    }

    /// Takes what the driver has sent.
    pub(super) fn collect(&mut self, now: Duration, longest_ms: usize, dice: &mut Dice) {
        if self.hung_up || self.told_end {
            return;
        }
        if self.is_hung_up() {
            self.hung_up = true;
            self.to_server.cut();
            self.to_client.cut();
            return;
        }
        if now < self.stalled_until || self.to_server.closed {
            return;
        }
        let mut buf = [0; 4096];
        loop {
            let at = now + Duration::from_millis(dice.below(longest_ms) as u64);
            match self.far.read(&mut buf) {
                Ok(0) => return self.to_server.send(at, Arrival::End),
                Ok(len) => self.to_server.send(at, Arrival::Bytes(buf[..len].to_vec())),
                Err(_) => return,
            }
        }
    }

    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.far, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = poll(&mut fds, Some(&now));
        polled.is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// The next bytes that arrive at the server. `Some(None)`: the driver sends no more.
    pub(super) fn arrive(&mut self, now: Duration) -> Option<Option<Vec<u8>>> {
        if now < self.parted_until {
            return None;
        }
        match self.to_server.receive(now)? {
            Arrival::Bytes(bytes) => Some(Some(bytes)),
            Arrival::End => Some(None),
        }
    }

    /// The server sends bytes, which arrive in pieces.
    pub(super) fn reply(
        &mut self,
        now: Duration,
        bytes: &[u8],
        longest_ms: usize,
        dice: &mut Dice,
    ) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let len = if dice.one_in(2) { rest.len() } else { 1 + dice.below(rest.len()) };
            let (piece, later) = rest.split_at(len);
            let at = now + Duration::from_millis(dice.below(longest_ms) as u64);
            self.to_client.send(at, Arrival::Bytes(piece.to_vec()));
            rest = later;
        }
    }

    /// The server closes it.
    pub(super) fn close(&mut self, at: Duration) {
        self.to_client.send(at, Arrival::End);
    }

    /// The driver hears nothing of the server any more.
    pub(super) fn deafen(&mut self) {
        self.to_client.cut();
    }

    /// Hands over to the driver what has arrived there.
    pub(super) fn deliver(&mut self, now: Duration) {
        while !self.hung_up && self.push() && now >= self.parted_until {
            match self.to_client.receive(now) {
                Some(Arrival::Bytes(bytes)) => self.overdue = bytes,
                Some(Arrival::End) => {
                    self.told_end = true;
                    let _ = self.far.shutdown(Shutdown::Both);
                    return;
                }
                None => return,
            }
        }
    }

    /// Whether nothing is left that the socket had no room for.
    fn push(&mut self) -> bool {
        while !self.overdue.is_empty() {
            match self.far.write(&self.overdue) {
                Ok(len) => drop(self.overdue.drain(..len)),
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether the driver still has its end of it, and was not told that the server has closed it.
    pub(super) fn is_held(&self) -> bool {
        !self.hung_up && !self.told_end
    }
}
