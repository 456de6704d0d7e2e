//! The socket of a connection, in the clear or under TLS. Nothing here waits; readiness is polled for.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use blockyard_buf::Pages;
use blockyard_sys::net::{Gather, IoVecs, Watch};
use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{SockRef, Socket};
use tokio::io::Interest;
use tokio::sync::Semaphore;

use crate::tls::{Moved, Session, TlsConfig};

/// Messages that have to go out without a wait in between, before the interest in room is given up.
const CALM: u8 = 64;

/// Bytes that are thrown away at a time, and how often in a row.
const SCRATCH: usize = 16 << 10;
const DISCARD_TURNS: usize = 16;

pub(crate) struct Wire {
    /// Watched for input alone: a socket that is also watched for room wakes its thread each time the client
    /// takes a reply.
    socket: Watch,
    /// Whether the runtime may believe that there is input.
    readable: bool,
    /// The same socket, watched for room: since something had to wait for it.
    room: Option<Room>,
    tls: Option<Box<dyn Session>>,
    /// Bytes that the TLS session has taken, and of which the socket has not taken all.
    encrypted: usize,
    /// Bytes sent so far.
    sent: u64,
}

struct Room {
    socket: Watch,
    /// Whether the runtime may believe that there is room.
    writable: bool,
    calm: u8,
}

/// What came of receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing there now.
    Nothing,
    /// Nothing will come any more.
    End,
}

impl Wire {
    /// To be called on the queue thread that the connection lives on.
    pub(crate) fn new(socket: Socket) -> io::Result<Self> {
        let socket = Watch::new(socket.into(), Interest::READABLE)?;
        Ok(Self { socket, readable: false, room: None, tls: None, encrypted: 0, sent: 0 })
    }

    pub(crate) fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn start_tls(&mut self, config: &TlsConfig) -> io::Result<()> {
        self.tls = Some(config.session()?);
        Ok(())
    }

    /// Runs the TLS handshake. Its arithmetic is done by threads of its own, as many at a time as `workers` lets: a
    /// thread that others' requests wait for has none of it.
    pub(crate) async fn shake_tls(&mut self, workers: &Arc<Semaphore>) -> io::Result<()> {
        while let Some(mut tls) = self.tls.take() {
            let Ok(worker) = Arc::clone(workers).acquire_owned().await else {
                unreachable!("the semaphore is never closed")
            };
            let socket = Socket::from(self.socket.get_ref().try_clone()?);
            // Before the socket is looked at elsewhere: what comes from now on is news.
            self.no_input();
            self.no_room();
            let shake = move || {
                let shaken = tls.shake(&socket);
                // Not before: a client that has to go does not end its arithmetic.
                drop(worker);
                (tls, shaken)
            };
            let done = tokio::task::spawn_blocking(shake).await;
            let (tls, shaken) = done.map_err(io::Error::other)?;
            let waits_for_room = tls.wants_write();
            self.tls = Some(tls);
            match shaken {
                Err(err) if err.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if waits_for_room {
                poll_fn(|cx| self.poll_writable(cx)).await?;
            } else {
                poll_fn(|cx| self.poll_readable(cx)).await?;
            }
        }
        Ok(())
    }

    /// Receives into `buf`, which is not empty.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> io::Result<Received> {
        let result = match &mut self.tls {
            Some(tls) => tls.read(&SockRef::from(&self.socket), buf),
            None => (&*SockRef::from(&self.socket)).read(buf),
        };
        self.received(result, buf.len())
    }

    /// Receives into `first`, and what comes behind it into `second`. Not under TLS.
    pub(crate) fn receive_two(
        &mut self,
        first: &mut [u8],
        second: &mut [u8],
    ) -> io::Result<Received> {
        let room = first.len() + second.len();
        let mut parts = [IoSliceMut::new(first), IoSliceMut::new(second)];
        let result = (&*SockRef::from(&self.socket)).read_vectored(&mut parts);
        self.received(result, room)
    }

    fn received(&mut self, result: io::Result<usize>, room: usize) -> io::Result<Received> {
        match result {
            Ok(0) => Ok(Received::End),
            Ok(len) => {
                // As tokio's own streams have it: less than there was room for means that the socket is empty,
                // and that the next input makes it ready again.
                if len < room && self.tls.is_none() {
                    self.no_input();
                }
                Ok(Received::Bytes(len))
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                self.no_input();
                Ok(Received::Nothing)
            }
            Err(err) if err.kind() == ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(err) => Err(err),
        }
    }

    /// Whether the client cannot receive any more either: it did not only shut its side. By TCP that is seen once something was
    /// sent to it.
    pub(crate) fn is_hung_up(&self) -> bool {
        rustix::net::send(self.socket.as_fd(), &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
            .is_err_and(|err| err == Errno::PIPE || err == Errno::CONNRESET)
    }

    /// The socket was just found empty. The runtime, which looks at it on this thread alone, cannot have seen
    /// anything newer.
    fn no_input(&mut self) {
        if std::mem::take(&mut self.readable)
            && let Poll::Ready(Ok(mut ready)) =
                self.socket.poll_read_ready(&mut Context::from_waker(Waker::noop()))
        {
            ready.clear_ready();
        }
    }

    /// Whether receiving may bring something.
    pub(crate) fn maybe_readable(&self) -> bool {
        self.readable
    }

    pub(crate) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.socket.poll_read_ready(cx))?.retain_ready();
        self.readable = true;
        Poll::Ready(Ok(()))
    }

    /// Sends as much of a message as there is room for. Not under TLS.
    pub(crate) fn send(&mut self, message: Gather<'_>) -> io::Result<usize> {
        let len = message.len();
        match message.send(self.socket.as_fd()) {
            Ok(sent) => {
                self.sent += sent as u64;
                if sent < len {
                    self.no_room();
                }
                Ok(sent)
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                self.no_room();
                Ok(0)
            }
            Err(err) => Err(err),
        }
    }

    /// Sends pages as they are, as many as there is room for. Not under TLS.
    pub(crate) fn send_pages(&mut self, pages: &Pages, len: usize) -> io::Result<usize> {
        let sent = match pages.send(self.socket.as_fd()) {
            Err(err) if err.kind() == ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        self.sent += sent as u64;
        if sent < len {
            self.no_room();
        }
        Ok(sent)
    }

    /// Sends bytes, in the clear or under TLS, as many as there is room for.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.has_tls() {
            if let Some(sent) = self.flush_tls()?.filter(|&sent| sent > 0) {
                return Ok(sent);
            }
            if self.encrypted == 0 {
                self.encrypt(bytes)?;
            }
            return Ok(self.flush_tls()?.unwrap_or(0));
        }
        let mut vecs = IoVecs::new();
        let mut message = vecs.gather();
        message.push(bytes);
        self.send(message)
    }

    /// Gives bytes to the TLS session, which has room as long as [`Wire::flush_tls`] says that all was sent.
    pub(crate) fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            self.encrypted += tls.write(bytes)?;
        }
        Ok(())
    }

    /// Hands what the TLS session has to the socket. If all of it went, says how many bytes had been given to
    /// [`Wire::encrypt`] for it.
    pub(crate) fn flush_tls(&mut self) -> io::Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return Ok(Some(0)) };
        match tls.flush(&SockRef::from(&self.socket)) {
            Ok(()) => {
                self.sent += self.encrypted as u64;
                Ok(Some(std::mem::take(&mut self.encrypted)))
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                self.no_room();
                Ok(None)
            }
            Err(err) => Err(err),
        }
    }

    /// Bytes sent so far.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Whether bytes of TLS records have moved since the last time: what is not a whole record is seen nowhere
    /// else.
    pub(crate) fn took_bytes(&mut self) -> Moved {
        self.tls.as_mut().map(|tls| tls.take_moved()).unwrap_or_default()
    }

    /// Whether the TLS session has something to send of its own accord.
    pub(crate) fn wants_room(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    fn no_room(&mut self) {
        if let Some(room) = &mut self.room {
            room.calm = 0;
            if std::mem::take(&mut room.writable)
                && let Poll::Ready(Ok(mut ready)) =
                    room.socket.poll_write_ready(&mut Context::from_waker(Waker::noop()))
            {
                ready.clear_ready();
            }
        }
    }

    /// All was sent. After a while of that, the socket is not watched for room any more.
    pub(crate) fn all_sent(&mut self) {
        if let Some(room) = &mut self.room {
            room.calm += 1;
            if room.calm >= CALM {
                self.room = None;
            }
        }
    }

    pub(crate) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let room = match &mut self.room {
            Some(room) => room,
            none => {
                let socket = self.socket.get_ref().try_clone()?;
                let socket = Watch::new(socket, Interest::WRITABLE)?;
                none.insert(Room { socket, writable: false, calm: 0 })
            }
        };
        ready!(room.socket.poll_write_ready(cx))?.retain_ready();
        room.writable = true;
        Poll::Ready(Ok(()))
    }

    /// Says goodbye: nothing is sent after this.
    pub(crate) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(&SockRef::from(&self.socket));
        }
        // A peer that is gone needs no goodbye.
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Write);
    }

    /// Throws away what comes, until nothing will, or as much has come as anybody may need to say goodbye. Closing
    /// a socket while there is input to it makes some systems forget what was sent.
    pub(crate) fn poll_discard(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<()> {
        self.tls = None;
        let mut scratch = [0; SCRATCH];
        for _ in 0..DISCARD_TURNS {
            match self.receive(&mut scratch) {
                Ok(Received::Bytes(len)) if len < *left => *left -= len,
                Ok(Received::Nothing) => match ready!(self.poll_readable(cx)) {
                    Ok(()) => {}
                    Err(_) => return Poll::Ready(()),
                },
                Ok(Received::Bytes(_) | Received::End) | Err(_) => return Poll::Ready(()),
            }
        }
        // Others on the thread have their turns.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::mpsc;
    use std::time::Duration;

    use socket2::{Domain, Type};
    use tokio::sync::oneshot;

    use super::*;

    /// A handshake whose arithmetic takes until it is told.
    struct Slow {
        begun: Option<oneshot::Sender<()>>,
        done: mpsc::Receiver<()>,
    }

    impl Session for Slow {
        fn wants_write(&self) -> bool {
            false
        }

        fn shake(&mut self, _socket: &Socket) -> io::Result<()> {
            if let Some(begun) = self.begun.take() {
                begun.send(()).unwrap();
            }
            self.done.recv().map_err(io::Error::other)
        }

        fn read(&mut self, _socket: &Socket, _buf: &mut [u8]) -> io::Result<usize> {
            Ok(0)
        }

        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self, _socket: &Socket) -> io::Result<()> {
            Ok(())
        }

        fn take_moved(&mut self) -> Moved {
            Moved::default()
        }

        fn close(&mut self, _socket: &Socket) {}
    }

    /// What a client has sent is there before anybody looks: others have their turns, and it has no end of them.
    #[tokio::test]
    async fn what_is_thrown_away_is_bounded_for_a_turn_and_in_all() {
        const TURN: usize = DISCARD_TURNS * SCRATCH;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut wire = Wire::new(listener.accept().unwrap().0.into()).unwrap();
        let sending = std::thread::spawn(move || peer.write_all(&vec![0; 4 * TURN]).map(|()| peer));
        let mut left = 3 * TURN;
        let mut seen = vec![left];
        while *seen.last().unwrap() > TURN {
            let turn = poll_fn(|cx| Poll::Ready(wire.poll_discard(cx, &mut left))).await;
            assert!(turn.is_pending());
            assert!(seen.last().unwrap() - left <= TURN, "{left} after {seen:?}");
            seen.push(left);
            tokio::task::yield_now().await;
        }
        let mut rest = SCRATCH;
        let discard = poll_fn(|cx| wire.poll_discard(cx, &mut rest));
        tokio::time::timeout(Duration::from_secs(60), discard).await.unwrap();
        drop(wire);
        drop(sending.join().unwrap());
    }

    #[tokio::test]
    async fn arithmetic_of_a_client_that_has_to_go_counts_until_it_is_done() {
        let (socket, _peer) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (finish, done) = mpsc::channel();
        let workers = Arc::new(Semaphore::new(1));
        let mut wire = Wire::new(socket).unwrap();
        wire.tls = Some(Box::new(Slow { begun: Some(begun), done }));
        // As one is given up whose time is over.
        tokio::select! {
            shaken = wire.shake_tls(&workers) => panic!("{shaken:?}"),
            begun = has_begun => begun.unwrap(),
        }
        assert_eq!(workers.available_permits(), 0, "it goes on");
        finish.send(()).unwrap();
        let limit = Duration::from_secs(30);
        let _free = tokio::time::timeout(limit, workers.acquire()).await.unwrap().unwrap();
    }
}
