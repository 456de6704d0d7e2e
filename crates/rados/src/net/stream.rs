//! One TCP connection.

use super::engine::Engine;
use crate::objecter::ConnectionId;
use bytes::{Buf as _, Bytes};
use core::net::SocketAddr;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// What is taken from a socket at a time.
const RECEIVE_BYTES: usize = 256 << 10;
/// Most pieces of one write (Linux: `UIO_FASTIOV` and beyond; IOV_MAX is 1024).
const MAX_PIECES: usize = 64;

/// A socket, and what waits until it has room.
pub(super) struct Stream {
    socket: TcpStream,
    waiting: Mutex<VecDeque<Bytes>>,
    /// There is something that waits.
    full: Notify,
}

impl Stream {
    /// Sends as much as the socket takes; the rest waits. What may wait is bounded by what may be in flight.
    pub(super) fn send(&self, pieces: &mut Vec<Bytes>) {
        let mut waiting = self.waiting.lock();
        let was_waiting = !waiting.is_empty();
        waiting.extend(pieces.drain(..));
        if was_waiting {
            return;
        }
        // An error shows itself to the one who receives.
        let _ = self.flush(&mut waiting);
        if !waiting.is_empty() {
            self.full.notify_one();
        }
    }

    fn flush(&self, waiting: &mut VecDeque<Bytes>) -> io::Result<()> {
        while !waiting.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = waiting.len().min(MAX_PIECES);
            for (slice, piece) in slices.iter_mut().zip(waiting.iter()) {
                *slice = IoSlice::new(piece);
            }
            let sent = self.socket.try_write_vectored(&slices[..count])?;
            advance(waiting, sent);
        }
        Ok(())
    }

    /// Sends what waits whenever there is room.
    async fn drain(&self) -> io::Result<()> {
        loop {
            self.full.notified().await;
            loop {
                self.socket.writable().await?;
                match self.flush(&mut self.waiting.lock()) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Receives until the end.
    async fn receive(&self, engine: &Arc<Engine>, connection: ConnectionId) -> io::Result<()> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(received) => engine.received(connection, &buffer[..received]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
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
    let _ = carry(&engine, connection, addr).await;
    engine.broke(connection);
}

async fn carry(engine: &Arc<Engine>, connection: ConnectionId, addr: SocketAddr) -> io::Result<()> {
    let socket = TcpStream::connect(addr).await?;
    socket.set_nodelay(true)?;
    let stream = Stream { socket, waiting: Mutex::default(), full: Notify::new() };
    let stream = Arc::new(stream);
    engine.opened(connection, Arc::clone(&stream));
    tokio::select! {
        result = stream.receive(engine, connection) => result,
        result = stream.drain() => result,
    }
}
