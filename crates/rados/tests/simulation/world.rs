//! Time, the network, the daemons and the clients, driven by one seed.

use crate::chaos::{Action, Chaos};
use crate::clients::ClientSim;
use crate::maps::{FSID, FULL, MapModel, OsdModel, PoolModel, crush};
use crate::rng::Rng;
use crate::store::Store;
use crate::wire::{Server, WireRequest, maps_message, version_reply, wanted_osdmaps};
use blockyard_rados::cluster::Peer;
use blockyard_rados::encoding::{EntityAddr, EntityType, PgId};
use blockyard_rados::maps::{Incremental, OsdMap, Placer};
use blockyard_rados::msgr::Message;
use blockyard_rados::objecter::ConnectionId;
use blockyard_rados::osd::Backoff;
use bytes::Bytes;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

pub(crate) const OSDS: usize = 4;
pub(crate) const MONITORS: usize = 2;
pub(crate) const CLIENTS: usize = 2;
/// The erasure-coded pool.
pub(crate) const ERASURE: i64 = 3;
const UP: usize = 0;
const DOWN: usize = 1;
pub(crate) const MILLI: u64 = 1000;
/// Most bytes that a slow daemon takes at a time, unless it takes more in a tenth of a second.
const MAX_SLOW_PIECE: usize = 500;
/// How many bytes a second slow OSDs take.
const SLOW: [u32; 3] = [20_000, 200_000, 2_000_000];

#[derive(Debug)]
pub(crate) enum Event {
    /// A stream is to be opened.
    Open {
        client: usize,
        id: ConnectionId,
        peer: Peer,
        addr: EntityAddr,
    },
    /// The next piece of a stream arrives.
    ToServer(u64),
    ToClient(u64),
    /// The client hears that its stream broke, or could not be opened.
    Broken(usize, ConnectionId),
    Timer(usize),
    Work(usize),
    Execute {
        osd: usize,
        incarnation: u32,
        pg: PgId,
    },
    Unblock {
        osd: usize,
        conn: u64,
        backoff: u64,
    },
    NotifyTimeout(u64),
    /// A monitor has a new map for its subscribers.
    Publish(usize),
    Chaos,
    Later(Action),
}

/// A stream.
pub(crate) struct Conn {
    pub(crate) client: usize,
    pub(crate) id: ConnectionId,
    pub(crate) peer: Process,
    pub(crate) server: Server,
    /// What is on its way, in both directions.
    pieces: [VecDeque<Vec<u8>>; 2],
    to_server: Duration,
    to_client: Duration,
    /// How many bytes a second its daemon takes, if it is slow.
    pub(crate) rate: Option<u32>,
    /// Of a monitor's: the first epoch that is wanted.
    wanted: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    Monitor(usize),
    Osd(usize, u32),
}

/// A request that waits for its group.
pub(crate) struct Queued {
    pub(crate) conn: u64,
    pub(crate) client: usize,
    pub(crate) request: WireRequest,
}

/// A range that is held back on a connection. It is let go when the client has said that it knows of it, so that what
/// the client sent before it knew is dropped.
pub(crate) struct HeldBack {
    pub(crate) conn: u64,
    pub(crate) backoff: Backoff,
    pub(crate) acknowledged: bool,
    pub(crate) over: bool,
}

/// Who serves a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Served {
    /// None while nobody can.
    pub(crate) primary: Option<i32>,
    /// The shard that it serves; -1 in replicated pools.
    pub(crate) shard: i8,
    pub(crate) acting: Vec<Option<i32>>,
}

/// Who serves a group, and since which epoch the primary does.
pub(crate) struct Interval {
    pub(crate) served: Served,
    pub(crate) since: u32,
}

/// An OSD's process.
pub(crate) struct OsdProcess {
    pub(crate) alive: bool,
    pub(crate) incarnation: u32,
    pub(crate) frozen_until: Duration,
    pub(crate) queues: BTreeMap<PgId, VecDeque<Queued>>,
    pub(crate) backoffs: Vec<HeldBack>,
    pub(crate) last_backoff: u64,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) now: Duration,
    base: Instant,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    pub(crate) last_event: u64,
    pub(crate) conns: BTreeMap<u64, Conn>,
    pub(crate) last_conn: u64,
    /// No client reaches anybody.
    pub(crate) is_cut_off: bool,
    /// Monitors do not say which map is the newest.
    pub(crate) monitors_are_silent: bool,
    /// Monitors send no maps.
    pub(crate) holds_maps: bool,
    /// No map that is sent can be used.
    pub(crate) spoils_maps: bool,
    /// OSDs let nobody in, with this error number.
    pub(crate) osds_refuse: Option<i32>,
    /// OSDs refuse whole requests, with this error number, and say nothing of their operations.
    pub(crate) refuses_requests: Option<i32>,
    /// The OSD that gets the next request holds it back.
    pub(crate) backs_off_next: bool,
    /// No answer of an OSD can be read.
    pub(crate) spoils_replies: bool,
    pub(crate) model: MapModel,
    pub(crate) map: OsdMap,
    placer: Placer,
    changes: BTreeMap<u32, Bytes>,
    pub(crate) intervals: BTreeMap<PgId, Interval>,
    /// The requests that OSDs got: the client, and the epoch of its map.
    pub(crate) requests: Vec<(usize, u32)>,
    /// Per pool: the last epoch in which groups were split, or everything had to be sent again.
    pub(crate) forced: BTreeMap<i64, u32>,
    /// Per pool: the last epoch in which it became full.
    pub(crate) marked_full: BTreeMap<i64, u32>,
    pub(crate) osds: Vec<OsdProcess>,
    pub(crate) clients: Vec<ClientSim>,
    pub(crate) store: Store,
    pub(crate) chaos: Chaos,
}

pub(crate) fn monitor_addr(monitor: usize) -> EntityAddr {
    EntityAddr::msgr2(([10, 0, 1, u8::try_from(monitor).unwrap()], 3300).into(), 0)
}

fn osd_addr(osd: usize, incarnation: u32) -> EntityAddr {
    let port = 6800 + u16::try_from(incarnation).unwrap();
    EntityAddr::msgr2(([10, 0, 2, u8::try_from(osd).unwrap()], port).into(), incarnation)
}

impl World {
    pub(crate) fn new(seed: u64, chaos: Chaos) -> Self {
        let base = Instant::now();
        let mut rng = Rng::new(seed);
        let osds: Vec<_> =
            (0..OSDS).map(|osd| OsdModel { up: true, addr: osd_addr(osd, 1) }).collect();
        let pool = PoolModel::replicated();
        let erasure = PoolModel { erasure: true, ..PoolModel::replicated() };
        let model = MapModel {
            epoch: 3,
            modified: 0,
            blocklist: BTreeSet::new(),
            flags: 0,
            pools: BTreeMap::from([(1, pool.clone()), (2, pool), (ERASURE, erasure)]),
            osds,
            pg_temp: BTreeMap::new(),
            primary_temp: BTreeMap::new(),
            affinities: vec![0x1_0000; OSDS],
            crush: crush(OSDS),
        };
        let map = OsdMap::decode(&model.whole()).unwrap();
        let process = |_| OsdProcess {
            alive: true,
            incarnation: 1,
            frozen_until: Duration::ZERO,
            queues: BTreeMap::new(),
            backoffs: Vec::new(),
            last_backoff: 0,
        };
        let clients = (0..CLIENTS).map(|client| ClientSim::new(client, base, &mut rng)).collect();
        let mut world = Self {
            rng,
            now: Duration::ZERO,
            base,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            last_event: 0,
            conns: BTreeMap::new(),
            last_conn: 0,
            is_cut_off: false,
            monitors_are_silent: false,
            holds_maps: false,
            spoils_maps: false,
            osds_refuse: None,
            refuses_requests: None,
            backs_off_next: false,
            spoils_replies: false,
            placer: Placer::new(&map).unwrap(),
            map,
            model,
            changes: BTreeMap::new(),
            intervals: BTreeMap::new(),
            requests: Vec::new(),
            forced: BTreeMap::new(),
            marked_full: BTreeMap::new(),
            osds: (0..OSDS).map(process).collect(),
            clients,
            store: Store::default(),
            chaos,
        };
        world.follow_intervals();
        for client in 0..CLIENTS {
            world.pump(client);
            world.after(Duration::from_millis(1), Event::Work(client));
        }
        world.after(Duration::from_millis(50), Event::Chaos);
        world
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.last_event += 1;
        self.events.insert(self.last_event, event);
        self.queue.push(Reverse((at, self.last_event)));
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// Does what is next; false if nothing is before `until`.
    pub(crate) fn step(&mut self, until: Duration) -> bool {
        let Some(&Reverse((at, number))) = self.queue.peek() else { return false };
        if at > until {
            self.now = until;
            return false;
        }
        self.queue.pop();
        self.now = at;
        let event = self.events.remove(&number).unwrap();
        match event {
            Event::Open { client, id, peer, addr } => self.open(client, id, peer, addr),
            Event::ToServer(conn) => self.arrived(conn),
            Event::ToClient(conn) => {
                if let Some(Conn { client, id, pieces, .. }) = self.conns.get_mut(&conn) {
                    let (client, id) = (*client, *id);
                    let bytes = pieces[DOWN].pop_front().unwrap();
                    let now = self.instant();
                    self.clients[client].machine.receive(now, id, &bytes);
                    self.pump(client);
                }
            }
            Event::Broken(client, id) => {
                let now = self.instant();
                self.clients[client].streams.remove(&id);
                self.clients[client].machine.failed(now, id, None);
                self.pump(client);
            }
            Event::Timer(client) => {
                let now = self.instant();
                self.clients[client].timer = None;
                self.clients[client].machine.expire(now);
                self.pump(client);
            }
            Event::Work(client) => self.work(client),
            Event::Execute { osd, incarnation, pg } => self.execute(osd, incarnation, pg),
            Event::Unblock { osd, conn, backoff } => self.unblock(osd, conn, backoff),
            Event::NotifyTimeout(id) => self.notify_timeout(id),
            Event::Publish(monitor) => self.publish(monitor),
            Event::Chaos => self.make_chaos(),
            Event::Later(action) => self.act(action),
        }
        true
    }

    fn process_alive(&self, process: Process) -> bool {
        match process {
            Process::Monitor(_) => true,
            Process::Osd(osd, incarnation) => {
                self.osds[osd].alive && self.osds[osd].incarnation == incarnation
            }
        }
    }

    fn open(&mut self, client: usize, id: ConnectionId, peer: Peer, addr: EntityAddr) {
        if !self.clients[client].streams.contains_key(&id) {
            return;
        }
        let (process, addr) = match peer {
            Peer::Monitor(socket) => {
                let found = (0..MONITORS).find(|&m| monitor_addr(m).socket == Some(socket));
                let monitor = found.unwrap();
                (Process::Monitor(monitor), monitor_addr(monitor))
            }
            Peer::Osd(osd) => {
                let osd = usize::try_from(osd).unwrap();
                let incarnation = self.osds[osd].incarnation;
                let there = osd_addr(osd, incarnation);
                if there.socket != addr.socket || !self.osds[osd].alive {
                    self.after(Duration::from_micros(500), Event::Broken(client, id));
                    return;
                }
                (Process::Osd(osd, incarnation), there)
            }
        };
        if self.is_cut_off {
            return;
        }
        if self.chaos.active && self.rng.one_in(12) {
            // Nobody answers, or somebody refuses.
            if self.rng.one_in(2) {
                self.after(Duration::from_micros(500), Event::Broken(client, id));
            }
            return;
        }
        self.last_conn += 1;
        let conn = self.last_conn;
        let kind = match process {
            Process::Monitor(_) => EntityType::MON,
            Process::Osd(..) => EntityType::OSD,
        };
        let mut server = Server::new(kind, addr, 4100 + client as u64);
        if kind == EntityType::MON && self.chaos.active && self.rng.one_in(8) {
            // There is no quorum; or the key is another one now, for a while.
            let was_in = self.clients[client].machine.session().is_some();
            server.refuses = Some(if was_in && self.rng.one_in(2) { -13 } else { -16 });
        }
        if kind == EntityType::OSD {
            server.refuses = self.osds_refuse;
        }
        let (to_server, to_client, wanted) = (self.now, self.now, None);
        let slow = kind == EntityType::OSD && self.chaos.active;
        let slow = slow && self.rng.one_in(self.chaos.slow_one_in);
        let rate = slow.then(|| SLOW[self.rng.index(SLOW.len())]);
        let new = Conn {
            client,
            id,
            peer: process,
            server,
            pieces: Default::default(),
            to_server,
            to_client,
            rate,
            wanted,
        };
        self.conns.insert(conn, new);
        self.clients[client].streams.insert(id, Some(conn));
        let now = self.instant();
        self.clients[client].machine.connected(now, id);
        self.flush(conn);
        self.pump(client);
    }

    /// Sends what a daemon has to send.
    pub(crate) fn flush(&mut self, conn: u64) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        let bytes = connection.server.drain();
        self.transfer(conn, &bytes, false);
    }

    /// Puts bytes on their way, in pieces; sometimes the stream breaks on the way.
    pub(crate) fn transfer(&mut self, conn: u64, mut bytes: &[u8], up: bool) {
        while !bytes.is_empty() {
            let whole = bytes.len() < 2 || !self.rng.one_in(4);
            let len = if whole { bytes.len() } else { 1 + self.rng.index(bytes.len() - 1) };
            let slow = self.conns.get(&conn).and_then(|it| it.rate).filter(|_| up);
            let most = |rate: u32| MAX_SLOW_PIECE.max(rate as usize / 10);
            let len = slow.map_or(len, |rate| len.min(most(rate)));
            let (piece, rest) = bytes.split_at(len);
            bytes = rest;
            let cut = self.chaos.active && self.rng.one_in(self.chaos.reset_one_in);
            let delay = Duration::from_micros(50) + self.rng.micros(self.chaos.delay_micros);
            let Some(connection) = self.conns.get_mut(&conn) else { return };
            let clock = if up { &mut connection.to_server } else { &mut connection.to_client };
            let takes = slow.map_or(Duration::ZERO, |rate| Duration::from_secs(len as u64) / rate);
            *clock = (*clock).max(self.now + delay) + takes;
            let at = *clock;
            connection.pieces[if up { UP } else { DOWN }].push_back(piece.to_vec());
            let event = if up { Event::ToServer } else { Event::ToClient };
            self.at(at, event(conn));
            if cut {
                self.break_later(conn);
            }
        }
    }

    /// The stream breaks: the daemon's end at once, the client's some time later. What is on its way is lost.
    pub(crate) fn break_later(&mut self, conn: u64) {
        if let Some(connection) = self.close(conn) {
            let delay = self.rng.micros(200 * MILLI);
            self.after(delay, Event::Broken(connection.client, connection.id));
        }
    }

    /// A connection is over for its daemon.
    fn close(&mut self, conn: u64) -> Option<Conn> {
        let connection = self.conns.remove(&conn)?;
        self.store.disconnect(self.now, |_, other| other == conn);
        for osd in &mut self.osds {
            osd.backoffs.retain(|held| held.conn != conn);
        }
        if let Some(stream) = self.clients[connection.client].streams.get_mut(&connection.id) {
            *stream = None;
        }
        Some(connection)
    }

    /// The client closed a stream.
    pub(crate) fn closed_by_client(&mut self, client: usize, id: ConnectionId) {
        if let Some(Some(conn)) = self.clients[client].streams.remove(&id) {
            self.close(conn);
        }
    }

    /// All streams of a process break.
    pub(crate) fn break_all(&mut self, process: Process) {
        let theirs = self.conns.iter().filter(|(_, it)| it.peer == process);
        for conn in theirs.map(|(&conn, _)| conn).collect::<Vec<_>>() {
            self.break_later(conn);
        }
    }

    fn arrived(&mut self, conn: u64) {
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        let peer = connection.peer;
        if !self.process_alive(peer) {
            return;
        }
        if let Process::Osd(osd, _) = peer
            && self.osds[osd].frozen_until >= self.now
        {
            let until = self.osds[osd].frozen_until + Duration::from_nanos(1);
            self.at(until, Event::ToServer(conn));
            return;
        }
        let connection = self.conns.get_mut(&conn).unwrap();
        let bytes = connection.pieces[UP].pop_front().unwrap();
        if connection.rate.is_some() {
            let (client, id, all) =
                (connection.client, connection.id, connection.pieces[UP].is_empty());
            let now = self.instant();
            self.clients[client].machine.progressed(now, id);
            if all {
                self.clients[client].machine.resume(now, id);
                self.pump(client);
            }
        }
        // What is sent may break it.
        let Some(connection) = self.conns.get_mut(&conn) else { return };
        let messages = connection.server.receive(&bytes);
        for message in messages {
            match peer {
                Process::Monitor(_) => self.monitor_message(conn, &message),
                Process::Osd(osd, _) => self.osd_message(osd, conn, &message),
            }
        }
        self.flush(conn);
    }

    fn monitor_message(&mut self, conn: u64, message: &Message) {
        match message.kind {
            15 => {
                let Some(start) = wanted_osdmaps(message) else { return };
                self.conns.get_mut(&conn).unwrap().wanted = Some(u32::try_from(start).unwrap());
                self.send_maps(conn);
            }
            19 if self.monitors_are_silent => {}
            19 => {
                let reply = version_reply(message, self.model.epoch);
                self.conns.get_mut(&conn).unwrap().server.send(reply);
            }
            other => panic!("a monitor got a message {other}"),
        }
    }

    /// Sends what a subscriber does not have.
    fn send_maps(&mut self, conn: u64) {
        if self.holds_maps {
            return;
        }
        let newest = self.model.epoch;
        let wanted = self.conns.get(&conn).and_then(|connection| connection.wanted);
        let Some(wanted) = wanted.filter(|&wanted| wanted <= newest) else { return };
        let trimmed = self.changes.keys().next().is_none_or(|&oldest| wanted < oldest);
        let message = if wanted == 0 || trimmed {
            let whole = BTreeMap::from([(newest, self.spoiled(self.model.whole()))]);
            maps_message(FSID, &BTreeMap::new(), &whole)
        } else {
            let changes = self.changes.range(wanted..);
            let changes = changes.map(|(&e, b)| (e, self.spoiled(b.clone()))).collect();
            maps_message(FSID, &changes, &BTreeMap::new())
        };
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.wanted = Some(newest + 1);
            connection.server.send(message);
        }
    }

    /// A map as it is sent.
    fn spoiled(&self, map: Bytes) -> Bytes {
        let len = map.len();
        if self.spoils_maps { map.slice(..len - 1) } else { map }
    }

    fn publish(&mut self, monitor: usize) {
        let theirs = self.conns.iter().filter(|(_, it)| it.peer == Process::Monitor(monitor));
        for conn in theirs.map(|(&conn, _)| conn).collect::<Vec<_>>() {
            self.send_maps(conn);
            self.flush(conn);
        }
    }

    /// An OSD tells a client of newer maps than the client has.
    pub(crate) fn share_maps(&mut self, conn: u64, theirs: u32) {
        if theirs >= self.model.epoch || !self.changes.contains_key(&(theirs + 1)) {
            return;
        }
        let changes = self.changes.range(theirs + 1..);
        let changes = changes.map(|(&e, b)| (e, self.spoiled(b.clone()))).collect();
        let message = maps_message(FSID, &changes, &BTreeMap::new());
        if let Some(connection) = self.conns.get_mut(&conn) {
            connection.server.send(message);
        }
    }

    /// The cluster has another map.
    pub(crate) fn change_map(&mut self, change: impl FnOnce(&mut MapModel)) {
        let before = self.model.clone();
        change(&mut self.model);
        // Monitors clean up behind OSDs that go down (ceph: `OSDMap::clean_temps`).
        let MapModel { osds, pg_temp, primary_temp, .. } = &mut self.model;
        let up = |osd: &i32| osds[usize::try_from(*osd).unwrap()].up;
        pg_temp.retain(|_, temp| temp.iter().all(up));
        primary_temp.retain(|_, osd| up(osd));
        if self.model == before {
            return;
        }
        self.model.epoch += 1;
        self.model.modified = u32::try_from(self.now.as_secs()).unwrap();
        let epoch = self.model.epoch;
        let mut resized = Vec::new();
        for (id, pool) in &mut self.model.pools {
            let then = before.pools.get(id);
            if then.is_some_and(|then| then.size != pool.size) {
                resized.push(*id);
            }
            let split = then.is_some_and(|then| then.pg_num != pool.pg_num);
            if split || pool.last_force_resend == u32::MAX {
                if pool.last_force_resend == u32::MAX {
                    pool.last_force_resend = epoch;
                }
                self.forced.insert(*id, epoch);
            }
            let full = |flags: u32, pool: &PoolModel| flags & FULL != 0 || pool.flags & 2 != 0;
            if full(self.model.flags, pool) && !then.is_some_and(|then| full(before.flags, then)) {
                self.marked_full.insert(*id, epoch);
            }
            if then.is_some_and(|then| then != pool) {
                pool.last_change = epoch;
            }
        }
        let bytes = self.model.change(&before);
        self.map.apply(&Incremental::decode(&bytes).unwrap()).unwrap();
        assert_eq!(OsdMap::decode(&self.model.whole()).unwrap().pools(), self.map.pools());
        self.placer.update(&self.map).unwrap();
        self.changes.insert(epoch, bytes);
        if self.changes.len() > self.chaos.kept_changes {
            self.changes.pop_first();
        }
        self.follow_intervals();
        // An interval in which the primary stays: it keeps requests, and forgets who watches and who was told (ceph:
        // `PrimaryLogPG::on_change`).
        self.store.disconnect(self.now, |name, _| resized.contains(&name.0));
        for monitor in 0..MONITORS {
            let delay = self.rng.micros(self.chaos.publish_micros);
            self.after(delay, Event::Publish(monitor));
        }
    }

    /// Where a group is.
    pub(crate) fn served(&mut self, pg: PgId) -> Served {
        let placed = self.placer.place(&self.map, pg);
        let primary = placed.primary.filter(|&osd| self.map.is_up(osd));
        let erasure = self.model.pools.get(&pg.pool).is_some_and(|pool| pool.erasure);
        let at = placed.acting.iter().position(|osd| osd.is_some() && *osd == primary);
        let shard = at.filter(|_| erasure).map_or(-1, |at| i8::try_from(at).unwrap());
        Served { primary, shard, acting: placed.acting }
    }

    /// What OSDs do when their groups change: a new primary starts with nothing, and an old one forgets.
    fn follow_intervals(&mut self) {
        let epoch = self.model.epoch;
        let pools = &self.model.pools;
        let pgs: Vec<_> = pools
            .iter()
            .flat_map(|(&pool, model)| (0..model.pg_num).map(move |seed| PgId { pool, seed }))
            .collect();
        let (mut changed, mut renewed) = (Vec::new(), Vec::new());
        for &pg in &pgs {
            let served = self.served(pg);
            let split = self.forced.get(&pg.pool) == Some(&epoch);
            let before = self.intervals.get(&pg);
            let of = |it: &Served| (it.primary, it.shard);
            let moved = before.is_none_or(|before| of(&before.served) != of(&served)) || split;
            let since = before.filter(|_| !moved).map_or(epoch, |before| before.since);
            if moved {
                changed.push(pg);
            }
            if before.is_none_or(|before| before.served != served) {
                renewed.push(pg);
            }
            self.intervals.insert(pg, Interval { served, since });
        }
        self.intervals.retain(|pg, _| pgs.contains(pg));
        for osd in &mut self.osds {
            osd.queues.retain(|pg, _| pgs.contains(pg) && !changed.contains(pg));
        }
        let mut ended = Vec::new();
        for (osd, process) in self.osds.iter().enumerate() {
            let held = process.backoffs.iter().filter(|held| changed.contains(&held.backoff.pg.pg));
            ended.extend(held.map(|held| (osd, held.conn, held.backoff.id)));
        }
        for (osd, conn, id) in ended {
            self.unblock(osd, conn, id);
        }
        let map = &self.map;
        let moved = |name: &(i64, String)| {
            map.pools().get(&name.0).is_none_or(|_| {
                let locator = blockyard_rados::encoding::ObjectLocator::new(name.0, "");
                let group = map.object_group(&locator, &name.1);
                group.is_ok_and(|(_, pg)| changed.contains(&pg) || renewed.contains(&pg))
            })
        };
        self.store.disconnect(self.now, |name, _| moved(name));
    }

    pub(crate) fn is_full(&self, pool: i64) -> bool {
        let pool_full = self.model.pools.get(&pool).is_some_and(|pool| pool.flags & 2 != 0);
        self.model.flags & FULL != 0 || pool_full
    }

    /// Starts an OSD again.
    pub(crate) fn restart(&mut self, osd: usize) {
        let process = &mut self.osds[osd];
        process.incarnation += 1;
        process.alive = true;
        process.frozen_until = Duration::ZERO;
        process.queues.clear();
        process.backoffs.clear();
        let addr = osd_addr(osd, process.incarnation);
        self.change_map(|model| model.osds[osd] = OsdModel { up: true, addr });
    }

    pub(crate) fn kill(&mut self, osd: usize) {
        let incarnation = self.osds[osd].incarnation;
        self.osds[osd].alive = false;
        self.osds[osd].queues.clear();
        self.osds[osd].backoffs.clear();
        self.break_all(Process::Osd(osd, incarnation));
    }
}
