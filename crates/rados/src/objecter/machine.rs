//! The state machine.

use super::config::Config;
use super::event::{Completion, ConnectionId, Event};
use super::operation::{Operation, Purpose};
use super::routes::{Routes, Sensitivity, Verdict};
use super::session::{CONNECT_TIMEOUT, IDLE, KEEPALIVE, Link, Session};
use super::watches::Watch;
use crate::auth::ServiceAuth;
use crate::encoding::{EntityAddr, EntityType};
use crate::error::{Error, ErrorKind, Place, Result};
use crate::maps::OsdMap;
use crate::msgr::{self, Rest, Spares};
use crate::osd::{OsdRequest, Reply, Target};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// Sends operations to OSDs. See the [module](super).
#[derive(Debug)]
pub struct Objecter {
    pub(super) config: Config,
    pub(super) routes: Routes,
    /// A change could not be applied: only a whole map helps.
    pub(super) map_broken: bool,
    /// The epoch of the last map that could be used.
    pub(super) map_usable: u32,
    /// How often in a row no map could be used, and when a whole one is asked for again.
    pub(super) map_failures: u32,
    pub(super) map_retry: Option<Instant>,
    /// From which epoch on maps were asked for last.
    pub(super) maps_wanted: Option<u32>,
    /// Whether the newest epoch was asked for.
    pub(super) newest_wanted: bool,
    pub(super) sessions: BTreeMap<i32, Session>,
    connections: BTreeMap<ConnectionId, i32>,
    last_connection: u64,
    /// By number, which is the order in which they were submitted.
    pub(super) ops: BTreeMap<u64, Box<Operation>>,
    last_tid: u64,
    in_flight: (usize, u64),
    pub(super) watches: BTreeMap<u64, Watch>,
    pub(super) events: VecDeque<Event>,
    dirty: VecDeque<i32>,
    /// What was to be sent to this OSD is taken, so that what waits for that may follow.
    drained: Option<i32>,
    /// Memory of large replies, of all sessions.
    spares: Arc<Spares>,
    /// Nothing is due before this time.
    wake: Option<Instant>,
    /// No operation's time is up before this time.
    ops_wake: Option<Instant>,
}

fn earlier(at: &mut Option<Instant>, other: Instant) {
    *at = Some(at.map_or(other, |at| at.min(other)));
}

impl Objecter {
    /// An objecter without a map.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            routes: Routes::new(&config),
            config,
            map_broken: false,
            map_usable: 0,
            map_failures: 0,
            map_retry: None,
            maps_wanted: None,
            newest_wanted: false,
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            ops: BTreeMap::new(),
            last_tid: 0,
            in_flight: (0, 0),
            watches: BTreeMap::new(),
            events: VecDeque::new(),
            dirty: VecDeque::new(),
            drained: None,
            spares: Arc::default(),
            wake: None,
            ops_wake: None,
        }
    }

    /// The map in use; of epoch 0 before the first one came.
    #[must_use]
    pub const fn map(&self) -> &OsdMap {
        &self.routes.map
    }

    /// How many operations are in flight, and their bytes.
    #[must_use]
    pub const fn in_flight(&self) -> (usize, u64) {
        self.in_flight
    }

    /// What each operation in flight waits for, by its number.
    #[must_use]
    pub fn waiting(&self) -> Vec<(u64, Place, &'static str)> {
        let waits = |op: &Operation| (self.place(&op.request), op.waits_for());
        let of = |(&tid, (place, what))| (tid, place, what);
        self.ops.iter().map(|(tid, op)| of((tid, waits(op)))).collect()
    }

    /// How many sessions with OSDs there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many watches there are.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.watches.len()
    }

    /// Takes an operation, and gives its number, which is greater than those of all before.
    ///
    /// # Errors
    /// The request, if as much is in flight as may be: submit it again when an operation has ended.
    pub fn submit(
        &mut self,
        now: Instant,
        request: OsdRequest,
        deadline: Option<Instant>,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        self.submit_as(now, request, deadline, Purpose::Caller)
    }

    pub(super) fn submit_as(
        &mut self,
        now: Instant,
        request: OsdRequest,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        let op = Box::new(Operation::new(request, purpose, deadline));
        let (ops, bytes) = (self.in_flight.0 + 1, self.in_flight.1 + op.budget);
        if ops > self.config.max_ops || ops > 1 && bytes > self.config.max_bytes {
            return Err(Box::new(op.into_request()));
        }
        self.in_flight = (ops, bytes);
        Ok(self.take(now, op))
    }

    /// Takes an operation of this side's own, which is bounded by the number of watches.
    pub(super) fn submit_own(
        &mut self,
        now: Instant,
        request: OsdRequest,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> u64 {
        self.take(now, Box::new(Operation::new(request, purpose, deadline)))
    }

    /// The number that the next operation gets.
    pub(super) const fn next_tid(&self) -> u64 {
        self.last_tid + 1
    }

    fn take(&mut self, now: Instant, op: Box<Operation>) -> u64 {
        self.last_tid += 1;
        let tid = self.last_tid;
        if let Some(deadline) = op.deadline {
            self.ops_wake_at(deadline);
        }
        self.ops.insert(tid, op);
        if self.routes.map.epoch() > 0 {
            self.route(now, tid, Sensitivity::Primary, false);
        }
        tid
    }

    /// Looks where an operation is to go, and sends it if that changed, or `again`.
    pub(super) fn route(&mut self, now: Instant, tid: u64, sensitivity: Sensitivity, again: bool) {
        let Some(op) = self.ops.get_mut(&tid) else { return };
        let verdict = self.routes.aim(op, sensitivity);
        if verdict == Verdict::NoPool {
            op.aim.placed = None;
            self.unassign(now, tid);
            self.pool_missing(now, tid);
            return;
        }
        op.pool_missing_until = None;
        let target = op.aim.osd.filter(|&osd| self.routes.map.is_up(osd));
        let moved = op.osd != target;
        if moved {
            self.unassign(now, tid);
            self.assign(now, tid, target);
        }
        if moved || again || verdict == Verdict::Send || self.is_unsent(tid) {
            // An OSD that stays the primary has forgotten the watch that it says it has set, also if this one has to wait.
            if let Some(op) = self.ops.get_mut(&tid).filter(|op| op.purpose.connects().is_some()) {
                op.sent = None;
            }
            self.send(tid);
        }
    }

    /// Whether an operation has not been sent, or has to be sent again when that is possible.
    fn is_unsent(&self, tid: u64) -> bool {
        self.ops.get(&tid).is_some_and(|op| op.sent.is_none())
    }

    fn assign(&mut self, now: Instant, tid: u64, osd: Option<i32>) {
        let Some(osd) = osd else { return };
        if !self.open_session(now, osd) {
            return;
        }
        if let (Some(op), Some(session)) = (self.ops.get_mut(&tid), self.sessions.get_mut(&osd)) {
            op.osd = Some(osd);
            session.ops += 1;
        }
    }

    /// Takes an operation off its session.
    pub(super) fn unassign(&mut self, now: Instant, tid: u64) {
        let Some(op) = self.ops.get_mut(&tid) else { return };
        op.sent = None;
        if let Some(session) = op.osd.take().and_then(|osd| self.sessions.get_mut(&osd)) {
            leave(session, now, &mut self.wake);
        }
    }

    /// Makes sure that there is a session with an OSD, open or being opened; false if the map has no address of it.
    fn open_session(&mut self, now: Instant, osd: i32) -> bool {
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
    fn connect(&mut self, now: Instant, osd: i32) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        let Some(addr) = session.addr.socket else { return };
        self.last_connection += 1;
        let connection = ConnectionId(self.last_connection);
        session.link = Link::Opening(connection, now + CONNECT_TIMEOUT);
        earlier(&mut self.wake, now + CONNECT_TIMEOUT);
        self.connections.insert(connection, osd);
        self.events.push_back(Event::Connect { connection, osd, addr });
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

    /// Sends an operation, if nothing is in the way; what is will have it sent.
    pub(super) fn send(&mut self, tid: u64) {
        if self.routes.is_barred() {
            return;
        }
        let Some(op) = self.ops.get_mut(&tid) else { return };
        if op.aim.paused {
            return;
        }
        let Some(osd) = op.osd else { return };
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        if !session.is_free() && session.holds_back(op.aim.pg, &op.position()) {
            return;
        }
        if session.is_full() {
            session.backlog = true;
            return;
        }
        let Some((connection, open)) = session.open() else { return };
        if op.attempts > 0
            && let Some(cookie) = op.purpose.connects()
        {
            self.send_anew(tid, cookie);
            return;
        }
        if let Purpose::Notify(id) = &mut op.purpose {
            // What an OSD said of it before is not of the one that is sent now.
            *id = None;
        }
        let target = Target { pg: op.aim.pg, hash: op.aim.hash, epoch: self.routes.map.epoch() };
        let message = op.request.message(tid, target, op.attempts, self.config.supported);
        if open.send(message).is_ok() {
            op.attempts = op.attempts.saturating_add(1);
            op.sent = Some(connection);
            self.mark(osd);
        }
    }

    /// Sends under another number what is not to be known to the OSD: it would answer that it is done, and not connect
    /// the watch to this session.
    fn send_anew(&mut self, tid: u64, cookie: u64) {
        let Some(mut op) = self.ops.remove(&tid) else { return };
        (op.attempts, op.sent) = (0, None);
        self.last_tid += 1;
        let tid = self.last_tid;
        self.ops.insert(tid, op);
        self.renumbered(cookie, tid);
        self.send(tid);
    }

    /// Sends all operations of a session that `chosen` names, in their order.
    pub(super) fn send_all(&mut self, osd: i32, chosen: impl Fn(&Operation) -> bool) {
        let theirs = |op: &Operation| op.osd == Some(osd) && chosen(op);
        let all = self.ops.iter();
        let tids: Vec<_> = all.filter(|(_, op)| theirs(op)).map(|(&tid, _)| tid).collect();
        for tid in tids {
            self.send(tid);
        }
    }

    /// A session has something to send.
    pub(super) fn mark(&mut self, osd: i32) {
        if let Some(session) = self.sessions.get_mut(&osd)
            && !std::mem::replace(&mut session.dirty, true)
        {
            self.dirty.push_back(osd);
        }
    }

    /// Gives up an operation: its request, unless it ended already. One that was sent may still be done.
    pub fn cancel(&mut self, now: Instant, tid: u64) -> Option<OsdRequest> {
        match self.ops.get(&tid)?.purpose {
            Purpose::Unwatch => return self.unwatch_alone(now, tid),
            purpose if purpose.is_callers() => {}
            _ => return None,
        }
        self.remove(now, tid).map(|op| op.into_request())
    }

    /// Takes an operation out.
    pub(super) fn remove(&mut self, now: Instant, tid: u64) -> Option<Box<Operation>> {
        let op = self.ops.remove(&tid)?;
        if op.purpose.is_bounded() {
            self.in_flight.0 -= 1;
            self.in_flight.1 -= op.budget;
        }
        if let Some(session) = op.osd.and_then(|osd| self.sessions.get_mut(&osd)) {
            leave(session, now, &mut self.wake);
        }
        Some(op)
    }

    /// Ends an operation without a reply.
    pub(super) fn fail(&mut self, now: Instant, tid: u64, error: Error) {
        let Some(op) = self.remove(now, tid) else { return };
        match op.purpose {
            purpose if purpose.is_callers() => self.completed(tid, op.into_request(), Err(error)),
            purpose => self.own_ended(now, purpose, Err(error)),
        }
    }

    /// Tells the caller of the end of an operation.
    pub(super) fn completed(&mut self, tid: u64, request: OsdRequest, result: Result<Reply>) {
        let result = result.map_err(|error| error.at(self.place(&request)));
        let completion = Completion { tid, request, result };
        self.events.push_back(Event::Completed(Box::new(completion)));
    }

    /// What errors say of an operation.
    #[must_use]
    pub fn place(&self, request: &OsdRequest) -> Place {
        let pool = request.locator.pool;
        let names: Vec<_> = request.ops.iter().map(|op| op.code.name()).collect();
        Place {
            cluster: self.routes.map.fsid(),
            pool,
            pool_name: self.routes.map.pool_name(pool).map(str::to_owned),
            object: request.object.clone(),
            operations: names.join(", "),
        }
    }

    /// The error of an OSD's negative answer to an operation.
    #[must_use]
    pub fn refusal(&self, request: &OsdRequest, result: i32) -> Error {
        let kind = ErrorKind::Osd { errno: result.saturating_abs() };
        Error::new("waiting for the OSD's reply", kind).at(self.place(request))
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
        self.send_all(osd, |_| true);
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
            self.send_all(osd, |op| op.sent.is_none());
        }
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`expire`](Self::expire) is to be called.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// An operation's time is up then.
    pub(super) fn ops_wake_at(&mut self, at: Instant) {
        earlier(&mut self.ops_wake, at);
        earlier(&mut self.wake, at);
    }

    /// Something is due then.
    pub(super) fn wake_at(&mut self, at: Instant) {
        earlier(&mut self.wake, at);
    }

    /// Does what is due: gives up operations, opens sessions again, asks silent OSDs, keeps watches.
    pub fn expire(&mut self, now: Instant) {
        if self.wake.is_none_or(|wake| now < wake) {
            return;
        }
        self.wake = None;
        if self.ops_wake.is_some_and(|wake| now >= wake) {
            self.expire_ops(now);
        }
        let osds: Vec<_> = self.sessions.keys().copied().collect();
        for osd in osds {
            self.expire_session(now, osd);
        }
        self.expire_watches(now);
        self.expire_map(now);
        let due = self.sessions.values().filter_map(Session::deadline).min();
        for at in due.into_iter().chain(self.ops_wake).chain(self.map_retry) {
            earlier(&mut self.wake, at);
        }
    }

    fn expire_ops(&mut self, now: Instant) {
        let late = |op: &Operation| op.deadline.is_some_and(|at| at <= now);
        let all = self.ops.iter();
        let tids: Vec<_> = all.filter(|(_, op)| late(op)).map(|(&tid, _)| tid).collect();
        for tid in tids {
            let Some(op) = self.ops.get(&tid) else { continue };
            let session = op.osd.and_then(|osd| self.sessions.get(&osd));
            let trouble = session.and_then(|session| session.trouble.clone());
            let error = Error::new(op.waits_for(), ErrorKind::TimedOut).after(trouble);
            match self.unwatch_alone(now, tid) {
                Some(request) => self.completed(tid, request, Err(error)),
                None => self.fail(now, tid, error),
            }
        }
        self.ops_wake = self.ops.values().filter_map(|op| op.deadline).min();
    }

    fn expire_session(&mut self, now: Instant, osd: i32) {
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        if session.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if session.ops == 0 && now >= session.idle_since + IDLE {
            if !self.watches.values().any(|watch| watch.osd() == Some(osd)) {
                self.end_session(now, osd);
                return;
            }
            session.idle_since = now;
        }
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        match &mut session.link {
            Link::Waiting(until) if now >= *until => self.connect(now, osd),
            Link::Opening(_, until) if now >= *until => {
                let error = Error::new("connecting to an OSD", ErrorKind::TimedOut);
                self.lose(now, osd, error, true);
            }
            Link::Up(_, connection) => match connection.expire(now) {
                Ok(()) => self.mark(osd),
                Err(error) => self.lose(now, osd, error, true),
            },
            _ => {}
        }
    }
}

/// One operation less on a session.
fn leave(session: &mut Session, now: Instant, wake: &mut Option<Instant>) {
    session.ops -= 1;
    if session.ops == 0 {
        session.idle_since = now;
        earlier(wake, now + IDLE);
    }
}
