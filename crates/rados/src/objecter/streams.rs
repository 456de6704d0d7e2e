//! Sessions with OSDs, and the streams that carry them.

use super::event::{ConnectionId, Event};
use super::machine::{Objecter, earlier};
use super::session::{CONNECT_TIMEOUT, KEEPALIVE, Link, Session};
use crate::auth::ServiceAuth;
use crate::encoding::{EntityAddr, EntityType};
use crate::error::{Error, Result};
use crate::msgr::{self, Rest};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;

impl Objecter {
    /// Makes sure that there is a session with an OSD, open or being opened; false if the map has no address of it.
    pub(super) fn open_session(&mut self, now: Instant, osd: i32) -> bool {
        if self.sessions.contains_key(&osd) {
            return true;
        }
        let Some(addr) = self.routes.map.addrs(osd).and_then(|addrs| addrs.msgr2()) else {
            return false;
        };
        if addr.socket.is_none() {
            return false;
        }
        self.sessions.insert(osd, Session::new(addr, now));
        self.connect(now, osd);
        true
    }

    /// Asks for a stream.
    pub(super) fn connect(&mut self, now: Instant, osd: i32) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        let Some(addr) = session.addr.socket else { return };
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        session.link = Link::Opening(connection, now + CONNECT_TIMEOUT);
        earlier(&mut self.wake, now + CONNECT_TIMEOUT);
        self.connections.insert(connection, osd);
        self.events.push_back(Event::Connect { connection, osd, addr });
        self.confirm(now, osd);
    }

    /// A number for a stream that is not to an OSD.
    pub(crate) const fn new_connection(&mut self) -> ConnectionId {
        self.last_connection += 1;
        ConnectionId(self.last_connection)
    }

    /// The stream is open. `session` is the one with the monitors, `auth` shows their ticket.
    pub fn connected(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        auth: ServiceAuth,
        session: &msgr::Session,
    ) {
        let Some(link) = self.session_of(connection) else { return };
        if !matches!(link.link, Link::Opening(..)) {
            return;
        }
        let peer = link.addr;
        let config = msgr::Config {
            peer_kind: EntityType::OSD,
            peer,
            own: Some(session.own),
            nonce: self.config.nonce,
            global_id: Some(session.global_id),
            global_seq: connection.0,
            supported: self.config.supported,
            handshake_timeout: CONNECT_TIMEOUT,
            keepalive: Some(KEEPALIVE),
        };
        let mut up = Box::new(msgr::Connection::new(config, auth, now));
        up.share(Arc::clone(&self.spares));
        if let Some(deadline) = up.deadline() {
            earlier(&mut self.wake, deadline);
        }
        let Some(&osd) = self.connections.get(&connection) else { return };
        if let Some(link) = self.sessions.get_mut(&osd) {
            link.link = Link::Up(connection, up);
        }
        self.mark(osd);
    }

    fn session_of(&mut self, connection: ConnectionId) -> Option<&mut Session> {
        self.sessions.get_mut(self.connections.get(&connection)?)
    }

    /// The stream could not be opened, or broke.
    pub fn failed(&mut self, now: Instant, connection: ConnectionId, why: Error) {
        if let Some(&osd) = self.connections.get(&connection) {
            self.lose(now, osd, why, false);
        }
    }

    /// A session broke: what was sent on it is sent again on the next one.
    pub(super) fn lose(&mut self, now: Instant, osd: i32, error: Error, close: bool) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        let Some(connection) = session.connection_id() else { return };
        let was_used = session.open().is_some();
        session.broke(now, error.clone());
        if let Some(deadline) = session.deadline() {
            earlier(&mut self.wake, deadline);
        }
        self.connections.remove(&connection);
        if close {
            self.events.push_back(Event::Close(connection));
        }
        self.events.push_back(Event::SessionLost(osd, error));
        let unused = session.ops == 0;
        if was_used {
            self.wait_anew(now);
        }
        for op in self.ops.values_mut().filter(|op| op.osd == Some(osd)) {
            op.sent = None;
        }
        self.carry_watches_over(now, osd);
        if unused && self.sessions.get(&osd).is_some_and(|session| session.ops == 0) {
            self.sessions.remove(&osd);
        }
    }

    /// Ends a session for good: its OSD is down, or another incarnation of it is there, or nobody needs it.
    pub(super) fn end_session(&mut self, now: Instant, osd: i32) {
        let Some(session) = self.sessions.remove(&osd) else { return };
        if let Some(connection) = session.connection_id() {
            self.connections.remove(&connection);
            self.events.push_back(Event::Close(connection));
        }
        for op in self.ops.values_mut().filter(|op| op.osd == Some(osd)) {
            (op.osd, op.sent) = (None, None);
        }
        self.carry_watches_over(now, osd);
    }

    /// The address of the OSD's incarnation that a session is with.
    pub(super) fn session_addrs(&self) -> Vec<(i32, EntityAddr)> {
        self.sessions.iter().map(|(&osd, session)| (osd, session.addr)).collect()
    }

    /// A session has something to send.
    pub(super) fn mark(&mut self, osd: i32) {
        if let Some(session) = self.sessions.get_mut(&osd)
            && !std::mem::replace(&mut session.dirty, true)
        {
            self.dirty.push_back(osd);
        }
    }

    /// Takes bytes of a stream. Whatever is wrong with them breaks that session only.
    pub fn receive(&mut self, now: Instant, connection: ConnectionId, bytes: &[u8]) {
        self.take_in(now, connection, |up| up.receive(now, bytes));
    }

    /// Lends the body of a large message that comes on a stream: see [`msgr::Connection::lend`].
    pub fn lend(&mut self, connection: ConnectionId) -> Option<Rest> {
        let osd = *self.connections.get(&connection)?;
        self.sessions.get_mut(&osd)?.connection(connection)?.lend()
    }

    /// Takes a body back, with what came of it.
    pub fn give_back(&mut self, now: Instant, connection: ConnectionId, rest: Rest) {
        self.take_in(now, connection, |up| up.give_back(now, rest));
    }

    /// An OSD took bytes that had waited for it: it lives.
    pub fn progressed(&mut self, now: Instant, connection: ConnectionId) {
        let Some(&osd) = self.connections.get(&connection) else { return };
        if let Some(up) = self.sessions.get_mut(&osd).and_then(|it| it.connection(connection)) {
            up.progressed(now);
        }
    }

    fn take_in(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        receive: impl FnOnce(&mut msgr::Connection<ServiceAuth>) -> Result<()>,
    ) {
        let Some(&osd) = self.connections.get(&connection) else { return };
        self.heard_of_osd(now);
        let Some(up) = self.sessions.get_mut(&osd).and_then(|it| it.connection(connection)) else {
            return;
        };
        let mut result = receive(up);
        // Keepalives are answered without an event.
        if up.has_output() {
            self.mark(osd);
        }
        while let Some(event) = self.next_of(osd, connection) {
            let taken = match event {
                msgr::Event::Open(_) => {
                    self.opened(now, osd);
                    Ok(())
                }
                msgr::Event::Message(message) => self.take_message(now, osd, connection, &message),
                msgr::Event::TooBig(message, bytes) => {
                    self.too_big(now, connection, &message, bytes);
                    Ok(())
                }
            };
            result = result.and(taken);
        }
        if let Err(error) = result
            && self.connections.contains_key(&connection)
        {
            self.lose(now, osd, error, true);
        }
    }

    fn next_of(&mut self, osd: i32, connection: ConnectionId) -> Option<msgr::Event> {
        self.sessions.get_mut(&osd)?.connection(connection)?.poll_event()
    }

    fn opened(&mut self, now: Instant, osd: i32) {
        if let Some(session) = self.sessions.get_mut(&osd) {
            (session.opened_at, session.trouble) = (Some(now), None);
            if let Some(deadline) = session.deadline() {
                earlier(&mut self.wake, deadline.max(now));
            }
        }
        self.send_unsent(osd);
    }

    /// Whether there may be bytes to be sent.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.dirty.is_empty() || self.drained.is_some()
    }

    /// Moves the bytes that are to be sent on one of the streams to the end of `out`: which one.
    ///
    /// A stream that does not take all of them at once is to be [held](Self::hold).
    pub fn poll_transmit(&mut self, out: &mut Vec<Bytes>) -> Option<ConnectionId> {
        if let Some(osd) = self.drained.take() {
            self.send_backlog(osd);
        }
        while let Some(osd) = self.dirty.pop_front() {
            let Some(session) = self.sessions.get_mut(&osd) else { continue };
            session.dirty = false;
            if let Link::Up(id, connection) = &mut session.link
                && connection.poll_transmit(out)
            {
                self.drained = session.backlog.then_some(osd);
                return Some(*id);
            }
        }
        None
    }

    /// A stream has not taken all that was to be sent: operations wait in order, and can still be given up, until it is
    /// [resumed](Self::resume).
    pub fn hold(&mut self, connection: ConnectionId) {
        if let Some(session) = self.session_of(connection) {
            session.held = true;
        }
    }

    /// A stream has taken all that was to be sent.
    pub fn resume(&mut self, now: Instant, connection: ConnectionId) {
        self.progressed(now, connection);
        let Some(&osd) = self.connections.get(&connection) else { return };
        if let Some(session) = self.sessions.get_mut(&osd) {
            session.held = false;
        }
        self.send_backlog(osd);
    }

    /// Sends what waited until a stream takes more.
    fn send_backlog(&mut self, osd: i32) {
        let waits = |session: &&mut Session| session.backlog && !session.held;
        if let Some(session) = self.sessions.get_mut(&osd).filter(waits) {
            session.backlog = false;
            self.send_unsent(osd);
        }
    }
}
