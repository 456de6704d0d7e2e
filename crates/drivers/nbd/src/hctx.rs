//! A hardware queue's part of the driver: its connections with their sockets. Whoever talks to it (the block
//! layer, or the task of a connection) has it alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{EndBatch, Request, Status};
use blockyard_nbd::uri::Uri;
use blockyard_sys::net::IoVecs;

use crate::commands::Dialect;
use crate::disk::Inner;
use crate::driver::Nbd;
use crate::fence::LinkId;
use crate::job::Within;
use crate::link::Link;
use crate::queue::{Ended, Loss, Queue, Todo};
use crate::recovery::Made;
use crate::socket::{Channel, abort};

/// A hardware queue of an NBD disk.
pub struct Hctx {
    pub(crate) queue: Queue<Within<Nbd>, Channel>,
    ended: Ended<Within<Nbd>>,
    batch: EndBatch<Nbd>,
    vecs: IoVecs,
    index: usize,
    inner: Arc<Inner>,
}

/// How a look at a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Bytes came; there may be more.
    More,
    /// There is nothing left.
    Dry(Dry),
    /// The connection is over.
    Over,
}

/// How things are on a connection from which nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dry {
    /// Requests that are out.
    pub(crate) in_flight: usize,
    /// There is something to send, as soon as there is room.
    pub(crate) blocked: bool,
}

impl Hctx {
    pub(crate) fn new(inner: Arc<Inner>, index: usize, depth: usize) -> Self {
        let queue = Queue::new(Arc::clone(&inner.common), inner.policy, depth);
        let (ended, batch, vecs) = (Vec::new(), EndBatch::default(), IoVecs::new());
        Self { queue, ended, batch, vecs, index, inner }
    }

    /// Puts a connection in use, to the server that the disk had after so many moves.
    pub(crate) fn attach(
        &mut self,
        dialect: Dialect,
        channel: Channel,
        made: Made,
        moves: u64,
    ) -> LinkId {
        let pool = self.inner.pool(self.index).clone();
        let link = Link::new(dialect, pool, channel.tls.is_none());
        let id = self.queue.attach(link, channel, made, moves);
        self.adopt();
        self.inner.kick_all();
        id
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn submit(&mut self, rq: Request<Nbd>) {
        let rq = match Within::new(rq, self.inner.reach.load(Ordering::Acquire)) {
            Ok(rq) => rq,
            Err(past_the_end) => return past_the_end.end(Status::OutOfRange),
        };
        if self.queue.submit(rq, self.inner.now(), &mut self.ended) {
            self.inner.kick_all();
        }
        self.end();
    }

    /// Sends what waits to be sent on the connection in use, as far as it goes.
    pub(crate) fn send(&mut self) {
        if let Some(id) = self.queue.live().map(|conn| conn.id) {
            self.send_on(id);
        }
    }

    /// Sends what waits to be sent on a connection, which may have been left, as far as it goes.
    fn send_on(&mut self, id: LinkId) {
        let Some(conn) = self.queue.conn(id) else { return };
        let Some(channel) = conn.io.as_mut() else { return };
        if !conn.link.has_unsent() && !conn.blocked {
            return;
        }
        let was_blocked = std::mem::take(&mut conn.blocked);
        let sent = channel.send(&mut self.vecs, &mut conn.link);
        if conn.link.has_source_come(|| self.inner.now()) {
            // From now on it has a deadline again.
            self.inner.kick_all();
        }
        match sent {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                conn.blocked = true;
                // Its task waits for room from then on; to be told again would keep it from sleeping.
                if !was_blocked {
                    channel.socket.kick.notify_one();
                }
            }
            // What the server sent before it left is still to be read; then the task sees its end.
            Err(err) if is_peers(&err) => channel.socket.kick.notify_one(),
            Err(err) => self.lost(id, Some(err)),
        }
    }

    /// Takes requests that wait for any connection.
    pub(crate) fn adopt(&mut self) {
        if self.queue.adopt(self.inner.now(), &mut self.ended) {
            self.send();
            self.end();
        }
        if self.queue.take_released() {
            self.inner.kick_all();
        }
    }

    /// Receives from a connection, and ends the requests whose replies came.
    pub(crate) fn turn(&mut self, id: LinkId) -> Turn {
        if self.queue.conn(id).is_some_and(|conn| conn.blocked) {
            self.send_on(id);
        }
        let Some(conn) = self.queue.conn(id) else { return Turn::Over };
        let Some(channel) = conn.io.as_mut() else { return Turn::Over };
        let received = channel.receive(&mut self.vecs, &mut conn.link);
        let now = self.inner.now();
        match received {
            Ok(bytes) if bytes > 0 => conn.link.came(bytes, now),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                let in_flight = conn.link.slots.len();
                return Turn::Dry(Dry { in_flight, blocked: conn.blocked });
            }
            end => {
                self.lost(id, end.err());
                return Turn::Over;
            }
        }
        let todo = self.queue.read(id, now, &mut self.ended);
        self.act(id, todo);
        // What was answered in part is asked for further.
        if self.queue.conn(id).is_some_and(|conn| conn.link.has_unsent() && !conn.blocked) {
            self.send_on(id);
        }
        if self.queue.take_released() {
            self.inner.kick_all();
        }
        self.end();
        if self.inner.common.waiting() > 0 {
            // There may be room now.
            self.adopt();
        }
        Turn::More
    }

    pub(crate) fn lost(&mut self, id: LinkId, err: Option<io::Error>) {
        let loss = match &err {
            None => Loss::Closed,
            Some(err) if is_peers(err) => Loss::Closed,
            Some(err) if err.kind() == io::ErrorKind::InvalidData => Loss::Lied,
            Some(_) => Loss::Broken,
        };
        let reason = err.map_or_else(|| "closed by the server".to_owned(), |err| err.to_string());
        self.lose(id, loss, &reason);
        if loss == Loss::Lied {
            // Nothing can be read from a broken TLS session.
            self.lose(id, Loss::Broken, &reason);
        }
    }

    /// A connection is lost: says so once, and sees to what it had.
    pub(crate) fn lose(&mut self, id: LinkId, loss: Loss, reason: &str) {
        let was_live = self.queue.live().is_some_and(|conn| conn.id == id);
        let in_flight = self.queue.conn(id).map_or(0, |conn| conn.link.slots.len());
        if was_live && loss != Loss::Replaced && !self.inner.common.is_closed() {
            let (server, queue) = (self.server_of(id), self.index);
            tracing::warn!(%server, queue, in_flight, reason, "NBD connection lost");
        }
        let todo = self.queue.lose(id, loss, self.inner.now());
        self.act(id, todo);
        self.inner.kick_all();
    }

    /// The server of a connection, which the disk may have left.
    fn server_of(&mut self, id: LinkId) -> Uri {
        let channel = self.queue.conn(id).and_then(|conn| conn.io.as_ref());
        channel.map_or_else(|| self.inner.uri(), |channel| channel.target.uri.clone())
    }

    fn act(&mut self, id: LinkId, todo: Todo) {
        let server = match &todo {
            Todo::Nothing => return,
            Todo::Send => None,
            _ => Some(self.server_of(id)),
        };
        match todo {
            Todo::Nothing => return,
            Todo::Lied { error, is_over } => {
                if let Some(server) = &server {
                    let queue = self.index;
                    tracing::warn!(%server, queue, %error, "NBD connection closed: protocol violation by the server");
                }
                if is_over {
                    self.close(id);
                }
            }
            Todo::Send => self.send_on(id),
            Todo::Close => self.close(id),
            Todo::Abort => self.abort(id),
        }
        if let Some(parts) = self.queue.take_lost() {
            let (server, queue) = (server.unwrap_or_else(|| self.inner.uri()), self.index);
            let help = if self.inner.common.is_trusting() {
                "trust_server=1 covers restarts of the server in use only, and no unanswered flush"
            } else {
                "set trust_server=1 if a restart of this server loses nothing"
            };
            tracing::error!(
                %server,
                queue,
                bytes = %parts,
                help,
                "the server may have lost unflushed writes; flushes fail until the disk is reopened"
            );
        }
        self.inner.kick_all();
    }

    /// Ends a connection so that nothing more of it leaves this host.
    fn abort(&mut self, id: LinkId) {
        if let Some(channel) = self.queue.conn(id).and_then(|conn| conn.io.take()) {
            abort(channel.fd());
            channel.socket.kick.notify_one();
        }
    }

    /// Ends a connection that nothing is waited for on.
    fn close(&mut self, id: LinkId) {
        if let Some(conn) = self.queue.conn(id)
            && let Some(channel) = conn.io.as_mut()
        {
            conn.link.say_goodbye();
            // It is as well if the server does not hear it: it sees the end.
            let _ = channel.send(&mut self.vecs, &mut conn.link);
            channel.close();
            channel.socket.kick.notify_one();
        }
        self.queue.settle(id, self.inner.now());
    }

    /// Leaves connections on which nothing came in time.
    pub(crate) fn lose_dead(&mut self) {
        while let Some(id) = self.queue.find_dead(self.inner.now()) {
            self.lose(id, Loss::Silent, "no reply within the timeout");
        }
    }

    /// Lets the connection in use finish what it has; another takes its place.
    pub(crate) fn replace(&mut self) {
        if let Some(id) = self.queue.live().map(|conn| conn.id) {
            self.lose(id, Loss::Replaced, "replaced");
        }
    }

    /// Ends the connection in use, with nothing out on it.
    pub(crate) fn disconnect(&mut self, status: Status) {
        self.clear(status);
        while let Some(id) = self.queue.conns.first().map(|conn| conn.id) {
            self.close(id);
        }
    }

    /// Fails what is left.
    pub(crate) fn clear(&mut self, status: Status) {
        self.queue.clear(status, &mut self.ended);
        self.end();
    }

    /// Sees to what took too long.
    pub(crate) fn expire(&mut self) {
        let now = self.inner.now();
        self.lose_dead();
        if self.queue.flush_if_idle(now) {
            self.send();
        }
        let expired = self.queue.expire(now, &mut self.ended);
        let server = self.inner.uri();
        for id in &expired.abort {
            self.act(*id, Todo::Abort);
        }
        if expired.failed > 0 {
            let failed = expired.failed;
            tracing::error!(
                %server,
                failed,
                "requests failed: no NBD connection within dead_conn_timeout, or each was lost with them"
            );
        }
        if expired.given_up > 0 {
            tracing::warn!(
                %server,
                connections = expired.given_up,
                "fence_timeout expired: a lost connection was neither answered nor closed; resending its writes"
            );
        }
        if expired.outlived {
            tracing::info!(%server, "fence_timeout expired since the takeover; writes continue");
        }
        if expired.failed + expired.given_up > 0 || expired.outlived {
            self.inner.kick_all();
        }
        self.end();
    }

    fn end(&mut self) {
        for (rq, status) in self.ended.drain(..) {
            rq.end(status, &mut self.batch);
        }
        self.batch.end();
    }
}

/// Whether an error tells that the server has closed the connection; others tell of the network only.
fn is_peers(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
