//! The state machine.

use super::admission::{Admission, ShareId};
use super::config::Config;
use super::event::{Completion, ConnectionId, Event};
use super::known::Known;
use super::operation::{Operation, Purpose};
use super::routes::{Routes, Sensitivity, Verdict};
use super::session::{IDLE, Session};
use super::watches::Watch;
use crate::encoding::EntityAddr;
use crate::error::{Error, ErrorKind, Place, Result};
use crate::maps::OsdMap;
use crate::msgr::Spares;
use crate::osd::{OsdRequest, Reply, Target};
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
    /// Where the client is, by which it is put on the blocklist.
    pub(super) own: Option<EntityAddr>,
    /// The cluster has kept it out, and nothing more is done: see `fence.rs`.
    pub(super) is_fenced: bool,
    /// The epoch of the last map in which the client was looked for on the blocklist.
    pub(super) looked_at: u32,
    /// Until when it was the newest one.
    pub(super) known: Known,
    /// How often in a row no map could be used, and when a whole one is asked for again.
    pub(super) map_failures: u32,
    pub(super) map_retry: Option<Instant>,
    /// From which epoch on maps were asked for last.
    pub(super) maps_wanted: Option<u32>,
    /// Since when the newest epoch is asked for, by one who has been there all the time.
    pub(super) unanswered: Option<Instant>,
    /// When something was heard of an OSD last.
    pub(super) heard_of_osds: Option<Instant>,
    pub(super) sessions: BTreeMap<i32, Session>,
    pub(super) connections: BTreeMap<ConnectionId, i32>,
    pub(super) last_connection: u64,
    /// By number, which is the order in which they were submitted.
    pub(super) ops: BTreeMap<u64, Box<Operation>>,
    last_tid: u64,
    pub(super) admission: Admission,
    /// Those that wait for their turn, by number.
    pub(super) waiting: BTreeMap<u64, Box<Operation>>,
    /// They are being started, or are to be started when all that came before them has been looked at.
    starting: bool,
    pub(super) watches: BTreeMap<u64, Watch>,
    pub(super) events: VecDeque<Event>,
    pub(super) dirty: VecDeque<i32>,
    /// What was to be sent to this OSD is taken, so that what waits for that may follow.
    pub(super) drained: Option<i32>,
    /// Memory of large replies, of all sessions.
    pub(super) spares: Arc<Spares>,
    /// Nothing is due before this time.
    pub(super) wake: Option<Instant>,
    /// No operation's time is up before this time.
    pub(super) ops_wake: Option<Instant>,
}

pub(super) fn earlier(at: &mut Option<Instant>, other: Instant) {
    *at = Some(at.map_or(other, |at| at.min(other)));
}

impl Objecter {
    /// An objecter without a map.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            routes: Routes::new(&config),
            admission: Admission::new(config.max_ops, config.max_bytes),
            config,
            map_broken: false,
            map_usable: 0,
            own: None,
            is_fenced: false,
            looked_at: 0,
            known: Known::default(),
            map_failures: 0,
            map_retry: None,
            maps_wanted: None,
            unanswered: None,
            heard_of_osds: None,
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_connection: 0,
            ops: BTreeMap::new(),
            last_tid: 0,
            waiting: BTreeMap::new(),
            starting: false,
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
        self.admission.in_flight()
    }

    /// How many operations of a share may wait for their turn.
    #[must_use]
    pub const fn max_waiting(&self) -> usize {
        self.config.max_waiting
    }

    /// A share of what may be in flight, for one who is not to be stopped by others.
    pub fn open_share(&mut self) -> ShareId {
        self.admission.open()
    }

    /// Gives a share back. What is in flight of it goes on.
    pub fn close_share(&mut self, share: ShareId) {
        self.admission.close(share);
    }

    /// What each operation waits for, by its number.
    #[must_use]
    pub fn waiting(&self) -> Vec<(u64, Place, &'static str)> {
        let waits = |op: &Operation| (self.place(&op.request), op.waits_for());
        let of = |(&tid, (place, what))| (tid, place, what);
        let all = self.ops.iter().chain(&self.waiting);
        all.map(|(tid, op)| of((tid, waits(op)))).collect()
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

    /// Takes an operation, and gives its number, which is greater than those of all before. If as much is in flight as may be,
    /// it waits for its turn.
    ///
    /// # Errors
    /// The request, if [`Config::max_waiting`] wait already: submit it again when an operation has ended.
    pub fn submit(
        &mut self,
        now: Instant,
        request: OsdRequest,
        deadline: Option<Instant>,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        self.submit_as(now, ShareId::default(), request, deadline, Purpose::Caller)
    }

    /// The same, of one who has a [share](Self::open_share).
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_shared(
        &mut self,
        now: Instant,
        share: ShareId,
        request: OsdRequest,
        deadline: Option<Instant>,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        self.submit_as(now, share, request, deadline, Purpose::Caller)
    }

    pub(super) fn submit_as(
        &mut self,
        now: Instant,
        share: ShareId,
        request: OsdRequest,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        if self.admission.waiting(share) >= self.config.max_waiting {
            return Err(Box::new(request));
        }
        let mut op = Box::new(Operation::new(request, purpose, deadline));
        op.share = share;
        let tid = self.number(&op);
        if self.admission.submit(share, tid, op.budget) {
            self.start(now, tid, op);
        } else {
            self.waiting.insert(tid, op);
        }
        Ok(tid)
    }

    /// Starts operations whose turn it is.
    fn start_waiting(&mut self, now: Instant) {
        // One that ends at once makes room for the next, which is started by the loop that runs already.
        if std::mem::replace(&mut self.starting, true) {
            return;
        }
        while let Some(tid) = self.admission.next() {
            if let Some(op) = self.waiting.remove(&tid) {
                self.start(now, tid, op);
            }
        }
        self.starting = false;
    }

    /// Does what may end operations while others are still to be sent: those whose turn it is are started afterwards, as they
    /// came after all of these.
    pub(super) fn before_starting(&mut self, now: Instant, work: impl FnOnce(&mut Self)) {
        let starting = std::mem::replace(&mut self.starting, true);
        work(self);
        self.starting = starting;
        self.start_waiting(now);
    }

    /// Takes an operation of this side's own, which is bounded by the number of watches.
    pub(super) fn submit_own(
        &mut self,
        now: Instant,
        request: OsdRequest,
        deadline: Option<Instant>,
        purpose: Purpose,
    ) -> u64 {
        let op = Box::new(Operation::new(request, purpose, deadline));
        let tid = self.number(&op);
        self.start(now, tid, op);
        tid
    }

    /// The number that the next operation gets.
    pub(super) const fn next_tid(&self) -> u64 {
        self.last_tid + 1
    }

    /// Gives an operation its number.
    fn number(&mut self, op: &Operation) -> u64 {
        self.last_tid += 1;
        if let Some(deadline) = op.deadline {
            self.ops_wake_at(deadline);
        }
        self.last_tid
    }

    fn start(&mut self, now: Instant, tid: u64, op: Box<Operation>) {
        self.ops.insert(tid, op);
        if self.is_fenced {
            return self.refuse(now, tid);
        }
        if self.routes.map.epoch() > 0 {
            self.route(now, tid, Sensitivity::Primary, false);
        }
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
        let Some(op) = self.ops.get_mut(&tid) else { return };
        if moved || again || verdict == Verdict::Send || op.is_unsent() {
            // An OSD that stays the primary has forgotten the watch that it says it has set, also if this one has to wait.
            if op.purpose.connects().is_some() {
                op.sent = None;
            }
            op.is_due = true;
            self.send(tid);
        }
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

    /// Sends an operation that is [unsent](Operation::is_unsent), if nothing is in the way; what is will have it sent.
    fn send(&mut self, tid: u64) {
        if self.routes.is_barred() {
            return;
        }
        let Some(op) = self.ops.get_mut(&tid) else { return };
        if op.hold.paused {
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
            (op.sent, op.is_due) = (Some(connection), false);
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

    /// The operations of a session that `chosen` names, in their order.
    fn all_of(&self, osd: i32, chosen: impl Fn(&Operation) -> bool) -> Vec<u64> {
        let theirs = |op: &Operation| op.osd == Some(osd) && chosen(op);
        self.ops.iter().filter(|(_, op)| theirs(op)).map(|(&tid, _)| tid).collect()
    }

    /// Sends what a session has not sent.
    pub(super) fn send_unsent(&mut self, osd: i32) {
        for tid in self.all_of(osd, Operation::is_unsent) {
            self.send(tid);
        }
    }

    /// Sends operations of a session again that its OSD has dropped.
    pub(super) fn send_dropped(&mut self, osd: i32, dropped: impl Fn(&Operation) -> bool) {
        for tid in self.all_of(osd, dropped) {
            if let Some(op) = self.ops.get_mut(&tid) {
                op.is_due = true;
            }
            self.send(tid);
        }
    }

    /// Gives up an operation: its request, unless it ended already. One that was sent may still be done.
    pub fn cancel(&mut self, now: Instant, tid: u64) -> Option<OsdRequest> {
        if self.waiting.contains_key(&tid) {
            return self.remove(now, tid).map(|op| op.into_request());
        }
        match self.ops.get(&tid)?.purpose {
            Purpose::Unwatch => return self.unwatch_alone(now, tid),
            purpose if purpose.is_callers() => {}
            _ => return None,
        }
        self.remove(now, tid).map(|op| op.into_request())
    }

    /// Takes an operation out.
    pub(super) fn remove(&mut self, now: Instant, tid: u64) -> Option<Box<Operation>> {
        if let Some(op) = self.waiting.remove(&tid) {
            self.admission.forget(op.share, tid);
            self.start_waiting(now);
            return Some(op);
        }
        let op = self.ops.remove(&tid)?;
        if let Some(session) = op.osd.and_then(|osd| self.sessions.get_mut(&osd)) {
            leave(session, now, &mut self.wake);
        }
        if op.purpose.is_bounded() {
            self.admission.ended(op.share, op.budget);
            self.start_waiting(now);
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

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
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
