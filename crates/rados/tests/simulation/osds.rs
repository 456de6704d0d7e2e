//! What OSDs do with requests.

use crate::store::{Notify, ObjectName, Watcher};
use crate::wire::{WireOp, WireRequest};
use crate::world::{Event, HeldBack, MILLI, Queued, Served, World};
use blockyard_rados::encoding::{Hobject, NOSNAP, ObjectLocator, PgId, Reader, Writer};
use blockyard_rados::msgr::Message;
use blockyard_rados::osd::{Backoff, BackoffOp, OpCode, OpFlags, WatchEvent, WatchNotify};
use std::time::Duration;

const EAGAIN: i32 = -11;
/// Reads that a replica may answer.
const ANYWHERE: OpFlags = OpFlags::BALANCE_READS.union(OpFlags::LOCALIZE_READS);
const ENOSPC: i32 = -28;
const ENOTCONN: i32 = -107;
const ETIMEDOUT: i32 = -110;
/// Objects with this in front of their names are others without it.
pub(crate) const ELSEWHERE: &str = "redirected-";

/// Those who answered, and those who did not (ceph: `src/osd/Watch.cc`, `Notify::maybe_complete_notify`).
fn answers(notify: &Notify) -> Vec<u8> {
    let who = |w: &mut Writer, (client, cookie): (usize, u64)| {
        w.u64(4100 + client as u64);
        w.u64(cookie);
    };
    let mut w = Writer::new();
    w.vec(&notify.answers, |w, (watcher, answer)| {
        who(w, *watcher);
        w.bytes(answer);
    });
    w.vec(&notify.waiting.iter().copied().collect::<Vec<_>>(), |w, &watcher| who(w, watcher));
    w.into_bytes()
}

impl World {
    pub(crate) fn osd_message(&mut self, osd: usize, conn: u64, message: &Message) {
        match message.kind {
            42 => self.request(osd, conn, WireRequest::parse(message)),
            61 => {
                let ack = Backoff::parse(message).unwrap();
                assert_eq!(ack.op, BackoffOp::AckBlock);
                let known = self.osds[osd].backoffs.iter_mut();
                let mut known = known.filter(|held| held.conn == conn && held.backoff.id == ack.id);
                if let Some(held) = known.next() {
                    assert_eq!(Backoff { op: BackoffOp::Block, ..ack.clone() }, held.backoff);
                    held.acknowledged = true;
                }
                self.osds[osd].backoffs.retain(|held| !held.over || !held.acknowledged);
            }
            other => panic!("an OSD got a message {other}"),
        }
    }

    /// Takes a request, or drops it where its client is known to send it again.
    fn request(&mut self, osd: usize, conn: u64, request: WireRequest) {
        let flags = OpFlags::from_bits_retain(request.flags);
        let pool = request.pg.pg.pool;
        assert_eq!(flags.contains(OpFlags::RETRY), request.attempt > 0);
        assert!(request.epoch <= self.model.epoch);
        self.share_maps(conn, request.epoch);
        let Ok((hash, pg)) = self.map.object_group(&request.locator, &request.object) else {
            return;
        };
        assert_eq!(hash, request.hash);
        if pg != request.pg.pg {
            return;
        }
        self.requests.push((self.conns[&conn].client, request.epoch));
        let Served { primary, shard, acting } = self.served(pg);
        let this = i32::try_from(osd).unwrap();
        let replica = flags.intersects(ANYWHERE) && !flags.contains(OpFlags::WRITE);
        if primary != Some(this) && !(replica && acting.contains(&Some(this))) {
            return;
        }
        // It has no such shard, or none that is the primary.
        if request.pg.shard != shard {
            return;
        }
        let since = self.intervals[&pg].since.max(self.forced.get(&pool).copied().unwrap_or(0));
        if request.epoch < since {
            return;
        }
        // That the cluster is paused is the clients' affair; what was sent before it became full is dropped (ceph:
        // `PrimaryLogPG::do_op`, `last_epoch_marked_full`).
        let marked = self.marked_full.get(&pool).is_some_and(|&full| request.epoch < full);
        if flags.contains(OpFlags::WRITE) && marked && !flags.contains(OpFlags::FULL_TRY) {
            return;
        }
        if primary == Some(this) && self.backs_off(osd, conn, &request) {
            return;
        }
        let client = self.conns[&conn].client;
        let queue = self.osds[osd].queues.entry(pg).or_default();
        queue.push_back(Queued { conn, client, request });
        let delay = self.rng.micros(self.chaos.work_micros);
        let incarnation = self.osds[osd].incarnation;
        self.after(delay, Event::Execute { osd, incarnation, pg });
    }

    /// Whether a request is dropped because its range is held back.
    fn backs_off(&mut self, osd: usize, conn: u64, request: &WireRequest) -> bool {
        let name = |name: &str, hash, max| Hobject {
            key: Default::default(),
            name: name.into(),
            snap: NOSNAP,
            hash,
            max,
            namespace: Default::default(),
            pool: request.pg.pg.pool,
        };
        let object = name(&request.object, request.hash, false);
        let mut held = self.osds[osd].backoffs.iter();
        if held.any(|held| {
            held.conn == conn && held.backoff.pg == request.pg && held.backoff.contains(&object)
        }) {
            return true;
        }
        let by_chance = self.chaos.active && self.rng.one_in(self.chaos.backoff_one_in);
        if !std::mem::take(&mut self.backs_off_next) && !by_chance {
            return false;
        }
        let (begin, end) = if self.rng.one_in(2) {
            (object.clone(), object)
        } else {
            (name("", 0, false), name("", 0, true))
        };
        self.osds[osd].last_backoff += 1;
        let id = self.osds[osd].last_backoff;
        let backoff = Backoff {
            pg: request.pg,
            epoch: self.model.epoch,
            op: BackoffOp::Block,
            id,
            begin,
            end,
        };
        let held = HeldBack { conn, backoff: backoff.clone(), acknowledged: false, over: false };
        self.osds[osd].backoffs.push(held);
        self.conns.get_mut(&conn).unwrap().server.send(backoff.message());
        let delay = self.rng.micros(2000 * MILLI);
        self.after(delay, Event::Unblock { osd, conn, backoff: id });
        true
    }

    /// A range is let go. What comes before the client has said that it knows of the backoff is dropped all the same.
    pub(crate) fn unblock(&mut self, osd: usize, conn: u64, id: u64) {
        let this = |held: &HeldBack| held.conn == conn && held.backoff.id == id;
        let backoffs = &mut self.osds[osd].backoffs;
        let Some(held) = backoffs.iter_mut().find(|held| this(held) && !held.over) else { return };
        held.over = true;
        let unblock = Backoff { op: BackoffOp::Unblock, ..held.backoff.clone() };
        backoffs.retain(|held| !this(held) || !held.acknowledged);
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.server.send(unblock.message());
            self.flush(conn);
        }
    }

    pub(crate) fn execute(&mut self, osd: usize, incarnation: u32, pg: PgId) {
        let process = &mut self.osds[osd];
        if !process.alive || process.incarnation != incarnation {
            return;
        }
        if process.frozen_until >= self.now {
            let until = process.frozen_until + Duration::from_nanos(1);
            self.at(until, Event::Execute { osd, incarnation, pg });
            return;
        }
        let Some(queued) =
            process.queues.get_mut(&pg).and_then(std::collections::VecDeque::pop_front)
        else {
            return;
        };
        let on_primary = self.served(pg).primary == Some(i32::try_from(osd).unwrap());
        let (result, data, redirect) = self.perform(&queued, on_primary);
        let redirect = redirect.then(|| queued.request.object[ELSEWHERE.len()..].to_owned());
        let reply = queued.request.reply(self.model.epoch, result, &data, redirect.as_deref());
        let reply = match self.refuses_requests {
            None => reply,
            Some(errno) => WireRequest { ops: Vec::new(), ..queued.request.clone() }.reply(
                self.model.epoch,
                errno,
                &[],
                None,
            ),
        };
        let reply = if self.spoils_replies {
            Message { front: reply.front.slice(..reply.front.len() / 2), ..reply }
        } else {
            reply
        };
        let nonsense = self.chaos.active && self.rng.one_in(self.chaos.nonsense_one_in);
        let nonsense = nonsense.then(|| self.nonsense(&reply));
        if let Some(connection) = self.conns.get_mut(&queued.conn) {
            nonsense.into_iter().for_each(|message| connection.server.send(message));
            connection.server.send(reply);
            self.flush(queued.conn);
        }
    }

    /// What a broken OSD sends before an answer: one to a request that nobody made, one cut short, one that promises more
    /// than it brings, a message of no kind.
    fn nonsense(&mut self, reply: &Message) -> Message {
        let mut message = reply.clone();
        match self.rng.below(4) {
            0 => message.tid += 1_000_000,
            1 => {
                let len = self.rng.index(message.front.len());
                message.front.truncate(len);
            }
            // Which leaves an answer without data what it is: one that comes twice.
            2 => message.data.clear(),
            _ => message.kind = 999,
        }
        message
    }

    fn perform(&mut self, queued: &Queued, on_primary: bool) -> (i32, Vec<u8>, bool) {
        let Queued { conn, client, request } = queued;
        let name = (request.pg.pg.pool, request.object.clone());
        if request.object.starts_with(ELSEWHERE) {
            return (0, Vec::new(), true);
        }
        // Also a primary may have become a replica in a map that only it has.
        let flags = OpFlags::from_bits_retain(request.flags);
        if flags.intersects(ANYWHERE) && self.rng.one_in(if on_primary { 16 } else { 3 }) {
            return (EAGAIN, Vec::new(), false);
        }
        let op = &request.ops[0];
        let done = match op.code {
            OpCode::WRITE => {
                let known = self.store.done.contains_key(&(*client, request.tid));
                if self.is_full(name.0) && flags.contains(OpFlags::FULL_TRY) && !known {
                    (ENOSPC, Vec::new())
                } else {
                    let id = u64::from_le_bytes(*op.data.first_chunk().unwrap());
                    (self.store.write((*client, request.tid), &name, id), Vec::new())
                }
            }
            OpCode::READ => {
                let last = self.store.object(&name).log.last().copied().unwrap_or(0);
                (0, last.to_le_bytes().to_vec())
            }
            OpCode::WATCH => (self.watch(*conn, *client, &name, op), Vec::new()),
            OpCode::NOTIFY => (0, self.notify(*conn, &name, op).to_le_bytes().to_vec()),
            OpCode::NOTIFY_ACK => {
                let mut r = Reader::new("reading an answer", &op.data);
                let (id, cookie) = (r.u64().unwrap(), r.u64().unwrap());
                let answer = r.bytes().unwrap().to_vec();
                self.answered(id, (*client, cookie), answer);
                (0, Vec::new())
            }
            other => panic!("operation {other:?}"),
        };
        (done.0, done.1, false)
    }

    fn watch(&mut self, conn: u64, client: usize, name: &ObjectName, op: &WireOp) -> i32 {
        self.store.expire_watchers(self.now);
        let mut args = Reader::new("reading a watch", &op.args);
        let cookie = args.u64().unwrap();
        args.u64().unwrap();
        let kind = args.u8().unwrap();
        let key = (client, cookie);
        let (now, there) = (self.now, self.conns.contains_key(&conn).then_some(conn));
        let watchers = &mut self.store.object(name).watchers;
        match kind {
            0 => {
                watchers.remove(&key);
            }
            3 => {
                watchers.insert(key, Watcher { conn: there, seen: now });
            }
            5 | 7 => {
                let Some(watcher) = watchers.get_mut(&key) else { return ENOTCONN };
                if kind == 7 && watcher.conn.is_none() {
                    return ETIMEDOUT;
                }
                *watcher = Watcher { conn: there, seen: now };
            }
            other => panic!("watch operation {other}"),
        }
        if kind == 5 {
            // What was told while it was away is told again.
            let missed = self.store.notifies.iter();
            let missed = missed.filter(|(_, it)| it.object == *name && it.waiting.contains(&key));
            let missed: Vec<_> = missed.map(|(&id, it)| (id, it.payload.clone())).collect();
            for (id, payload) in missed {
                self.tell(conn, id, cookie, &payload);
            }
        }
        0
    }

    /// An OSD drops a watcher, and says so: as when the object is removed.
    pub(crate) fn disconnect_a_watch(&mut self) {
        let all = self.store.objects.iter();
        let all = all.flat_map(|(name, it)| it.watchers.iter().map(move |at| (name, at)));
        let there = all.filter_map(|(name, (&key, at))| Some((name.clone(), key, at.conn?)));
        let there: Vec<_> = there.collect();
        if there.is_empty() {
            return;
        }
        let (name, key, conn) = there[self.rng.index(there.len())].clone();
        self.store.object(&name).watchers.remove(&key);
        let told = WatchNotify {
            event: WatchEvent::Disconnect,
            cookie: key.1,
            notify_id: 0,
            payload: Default::default(),
            result: 0,
            notifier: 0,
        };
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.server.send(told.message());
            self.flush(conn);
        }
    }

    fn tell(&mut self, conn: u64, notify_id: u64, cookie: u64, payload: &[u8]) {
        let told = WatchNotify {
            event: WatchEvent::Notify,
            cookie,
            notify_id,
            payload: payload.to_vec().into(),
            result: 0,
            notifier: 1,
        };
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.server.send(told.message());
            self.flush(conn);
        }
    }

    fn notify(&mut self, conn: u64, name: &ObjectName, op: &WireOp) -> u64 {
        self.store.expire_watchers(self.now);
        let cookie = u64::from_le_bytes(*op.args.first_chunk().unwrap());
        let payload = op.data[12..].to_vec();
        self.store.last_notify += 1;
        let id = self.store.last_notify;
        self.store.told.entry(name.clone()).or_default().push(id);
        let watchers = &self.store.object(name).watchers;
        let waiting = watchers.keys().copied().collect();
        let there: Vec<_> =
            watchers.iter().filter_map(|(key, it)| Some((key.1, it.conn?))).collect();
        let object = name.clone();
        let (payload, answers) = (payload.clone(), Vec::new());
        let told = payload.clone();
        let notify = Notify { object, conn, cookie, waiting, payload, answers };
        self.store.notifies.insert(id, notify);
        for (cookie, conn) in there {
            self.tell(conn, id, cookie, &told);
        }
        self.after(Duration::from_secs(5), Event::NotifyTimeout(id));
        self.finish_notify(id, false);
        id
    }

    fn answered(&mut self, id: u64, watcher: (usize, u64), answer: Vec<u8>) {
        if let Some(notify) = self.store.notifies.get_mut(&id)
            && notify.waiting.remove(&watcher)
        {
            notify.answers.push((watcher, answer));
        }
        self.finish_notify(id, false);
    }

    pub(crate) fn notify_timeout(&mut self, id: u64) {
        self.finish_notify(id, true);
    }

    fn finish_notify(&mut self, id: u64, timeout: bool) {
        if self.store.notifies.get(&id).is_none_or(|notify| !timeout && !notify.waiting.is_empty())
        {
            return;
        }
        let notify = self.store.notifies.remove(&id).unwrap();
        let done = WatchNotify {
            event: WatchEvent::NotifyComplete,
            cookie: notify.cookie,
            notify_id: id,
            payload: answers(&notify).into(),
            result: if timeout { ETIMEDOUT } else { 0 },
            notifier: 1,
        };
        if let Some(connection) = self.conns.get_mut(&notify.conn) {
            connection.server.send(done.message());
            self.flush(notify.conn);
        }
    }

    /// The name under which the store has an object.
    pub(crate) fn stored_name(locator: &ObjectLocator, object: &str) -> ObjectName {
        (locator.pool, object.trim_start_matches(ELSEWHERE).to_owned())
    }
}
