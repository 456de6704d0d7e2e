//! One TCP connection.

use super::engine::{Came, Engine};
use crate::msgr::Rest;
use crate::objecter::ConnectionId;
use bytes::{Buf as _, Bytes};
use core::net::SocketAddr;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::yield_now;

/// What is taken from a socket at a time.
const RECEIVE_BYTES: usize = 64 << 10;
/// Most pieces of one write (Linux: `UIO_FASTIOV` and beyond; IOV_MAX is 1024).
const MAX_PIECES: usize = 64;
/// That a peer takes bytes is told so often at most.
const PROGRESS: Duration = Duration::from_secs(1);

/// A socket, and what waits until it has room.
pub(super) struct Stream {
    socket: OwnedWriteHalf,
    waiting: Mutex<VecDeque<Bytes>>,
    /// There is something that waits.
    full: Notify,
}

impl Stream {
    /// Sends as much as the socket takes, and says whether that was all; the rest waits. The machine makes no more of what is
    /// large until [`Engine::sent`] has told it that nothing waits.
    pub(super) fn send(&self, pieces: &mut Vec<Bytes>) -> bool {
        let mut waiting = self.waiting.lock();
        let was_waiting = !waiting.is_empty();
        waiting.extend(pieces.drain(..));
        if was_waiting {
            return false;
        }
        // An error shows itself to the one who receives.
        let _ = self.flush(&mut waiting);
        if !waiting.is_empty() {
            self.full.notify_one();
        }
        waiting.is_empty()
    }

    /// Sends what waits: an error of kind `WouldBlock` if the socket has no room for all of it.
    fn flush(&self, waiting: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !waiting.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = waiting.len().min(MAX_PIECES);
            for (slice, piece) in slices.iter_mut().zip(waiting.iter()) {
                *slice = IoSlice::new(piece);
            }
            let sent = match &slices[..count] {
                [one] => self.socket.try_write(one)?,
                several => self.socket.try_write_vectored(several)?,
            };
            advance(waiting, sent);
        }
        Ok(())
    }

    /// Sends what waits whenever there is room, and says so: a peer that takes bytes lives.
    async fn drain(&self, engine: &Arc<Engine>, connection: ConnectionId) -> io::Result<()> {
        loop {
            self.full.notified().await;
            let mut told = Instant::now();
            loop {
                self.socket.writable().await?;
                let flushed = self.flush(&mut self.waiting.lock());
                match flushed {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
                if told.elapsed() >= PROGRESS {
                    told = Instant::now();
                    engine.sent(connection, false);
                }
            }
            engine.sent(connection, true);
        }
    }
}

/// Receives until the end.
async fn receive(
    mut socket: OwnedReadHalf,
    engine: &Arc<Engine>,
    connection: ConnectionId,
) -> io::Result<()> {
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut rest: Option<Rest> = None;
    loop {
        let came = match rest.take() {
            Some(mut rest) => match socket.read_buf(&mut rest.room()).await? {
                0 => return Ok(()),
                _ => Came::Rest(rest),
            },
            None => match socket.read(&mut buffer).await? {
                0 => return Ok(()),
                count => Came::Bytes(&buffer[..count]),
            },
        };
        let was_large = matches!(came, Came::Rest(_));
        rest = engine.received(connection, came);
        if was_large && rest.is_none() {
            // Whoever waited for it may be done with its memory before the next one comes.
            yield_now().await;
        }
    }
}

/// Takes bytes off the front.
fn advance(pieces: &mut VecDeque<Bytes>, mut sent: usize) {
    while let Some(first) = pieces.front_mut() {
        if sent < first.len() {
            first.advance(sent);
            return;
        }
        sent -= first.len();
        pieces.pop_front();
    }
}

/// Opens a connection, and carries bytes until it breaks.
pub(super) async fn run(engine: Arc<Engine>, connection: ConnectionId, addr: SocketAddr) {
    // Whatever goes wrong, the machine tries again, and says so when it gives up.
    let why = carry(&engine, connection, addr).await.err();
    engine.broke(connection, why.map(|err| err.to_string()));
}

async fn carry(engine: &Arc<Engine>, connection: ConnectionId, addr: SocketAddr) -> io::Result<()> {
    let socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    // Each half waits for its own readiness; a read that leaves room says that nothing is left to read.
    let (reader, socket) = socket.into_split();
    let stream = Stream { socket, waiting: Mutex::default(), full: Notify::new() };
    let stream = Arc::new(stream);
    engine.opened(connection, Arc::clone(&stream));
    tokio::select! {
        result = receive(reader, engine, connection) => result,
        result = stream.drain(engine, connection) => result,
    }
}
