//! The clients, what they do, and what they expect.

use crate::chaos::Chaos;
use crate::osds::ELSEWHERE;
use crate::rng::Rng;
use crate::store::ObjectName;
use crate::world::{ERASURE, Event, MILLI, MONITORS, World, monitor_addr};
use blockyard_rados::auth::{Credentials, Identity, MonitorAuth, Random};
use blockyard_rados::cluster::{self, Client};
use blockyard_rados::encoding::{EntityAddr, EntityType, ObjectLocator};
use blockyard_rados::error::ErrorKind;
use blockyard_rados::features;
use blockyard_rados::mon;
use blockyard_rados::msgr::{AuthMethod, ConnectionMode};
use blockyard_rados::objecter::{self, Addressed, Completion, ConnectionId, ShareId};
use blockyard_rados::osd::{NotifyAnswers, Op, OpFlags, OsdRequest};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Most operations in flight.
pub(crate) const MAX_OPS: usize = 24;
/// Most of their bytes.
const MAX_BYTES: u64 = 4 << 20;
/// Most that wait for their turn.
const MAX_WAITING: usize = 8;
pub(crate) const OBJECTS: u64 = 6;
/// What writes have at most, but for a few large ones, and what these have.
const USUAL_WRITE: usize = 6000;
pub(crate) const MAX_WRITE: usize = 600 << 10;
const EBLOCKLISTED: i32 = 108;
/// A pool that never was.
const NO_POOL: i64 = 77;

#[derive(Clone, Debug)]
pub(crate) enum Pending {
    Write {
        id: u64,
    },
    /// The last write that was acknowledged before the read.
    Read {
        object: ObjectName,
        floor: usize,
    },
    Notify,
    Unwatch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Acknowledged,
    /// It ended in an error after which nothing is known.
    Unknown,
    /// The OSD refused.
    Refused,
}

pub(crate) struct ClientSim {
    pub(crate) machine: Client,
    /// Streams, and the connection once there is one.
    pub(crate) streams: BTreeMap<ConnectionId, Option<u64>>,
    pub(crate) timer: Option<Duration>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) watches: BTreeMap<u64, (ObjectName, bool)>,
    /// Of each watch: up to which notification its owner has read the object again, and which it heard of since.
    pub(crate) news: BTreeMap<u64, (u64, BTreeSet<u64>)>,
    /// Watches that ended without being asked.
    pub(crate) lost: BTreeSet<u64>,
    /// Writes in the order in which they were submitted.
    pub(crate) writes: Vec<(ObjectName, u64, Fate)>,
    pub(crate) work_left: u32,
    /// What the last operation that failed said.
    pub(crate) last_error: String,
    pub(crate) counts: BTreeMap<&'static str, u64>,
}

impl ClientSim {
    pub(crate) fn new(index: usize, base: Instant, rng: &mut Rng) -> Self {
        let identity = Identity::default();
        let credentials = Credentials { identity, key: Err(None), methods: vec![AuthMethod::NONE] };
        let fill = |bytes: &mut [u8]| bytes.fill(1);
        let modes = vec![ConnectionMode::CRC];
        let auth =
            MonitorAuth::new(credentials, modes.clone(), vec![EntityType::OSD], Random::new(fill));
        let monitors = (0..MONITORS).map(|m| monitor_addr(m).socket.unwrap()).collect();
        let nonce = 100 + u32::try_from(index).unwrap();
        let config = cluster::Config {
            mon: mon::Config { monitors, seed: 0, nonce, supported: features::SUPPORTED },
            objecter: objecter::Config {
                max_ops: MAX_OPS,
                max_bytes: MAX_BYTES,
                max_waiting: MAX_WAITING,
                seed: rng.next(),
                ..objecter::Config::default()
            },
            osd_modes: modes,
            random: fill,
        };
        Self {
            machine: Client::new(config, auth, base).unwrap(),
            streams: BTreeMap::new(),
            timer: None,
            pending: BTreeMap::new(),
            watches: BTreeMap::new(),
            news: BTreeMap::new(),
            lost: BTreeSet::new(),
            writes: Vec::new(),
            work_left: 250,
            last_error: String::new(),
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

impl World {
    /// Carries out what a client wants.
    pub(crate) fn pump(&mut self, client: usize) {
        let now = self.instant();
        loop {
            if let Some(event) = self.clients[client].machine.poll_event(now) {
                self.client_event(client, event);
                continue;
            }
            let mut out = Vec::new();
            let Some(id) = self.clients[client].machine.poll_transmit(&mut out) else { break };
            if let Some(&Some(conn)) = self.clients[client].streams.get(&id) {
                self.transfer(conn, &out.concat(), true);
                if self.conns.get(&conn).is_some_and(|it| it.rate.is_some()) {
                    self.clients[client].machine.hold(id);
                }
            }
        }
        let sim = &mut self.clients[client];
        if let Some(deadline) = sim.machine.deadline() {
            let at = deadline.saturating_duration_since(now) + self.now;
            if sim.timer.is_none_or(|timer| at < timer) {
                sim.timer = Some(at);
                self.at(at, Event::Timer(client));
            }
        }
    }

    fn client_event(&mut self, client: usize, event: cluster::Event) {
        match event {
            cluster::Event::Connect { connection: id, peer, addr } => {
                self.clients[client].streams.insert(id, None);
                let delay = Duration::from_micros(100) + self.rng.micros(5 * MILLI);
                let addr = EntityAddr::msgr2(addr, 0);
                self.after(delay, Event::Open { client, id, peer, addr });
            }
            cluster::Event::Close(id) => self.closed_by_client(client, id),
            cluster::Event::Completed(completion) => self.completed(client, *completion),
            cluster::Event::Watching(watch) => {
                self.clients[client].watches.get_mut(&watch).unwrap().1 = true;
                self.read_again(client, watch);
                self.clients[client].count("watches");
            }
            cluster::Event::WatchMissed(watch) => {
                self.read_again(client, watch);
                self.clients[client].count("missed");
            }
            cluster::Event::WatchLost(watch, error) => {
                let (object, set) = self.clients[client].watches.remove(&watch).unwrap();
                let expected = match error.kind() {
                    ErrorKind::WatchLost { .. } | ErrorKind::NoPool | ErrorKind::TimedOut => true,
                    ErrorKind::Osd { errno: EBLOCKLISTED } => true,
                    // It was dropped before the answer that it was set came.
                    ErrorKind::Osd { errno: 107 } => !set,
                    // What its OSD says of it cannot be read.
                    ErrorKind::Truncated { .. } | ErrorKind::Violation { .. } => true,
                    _ => false,
                };
                assert!(expected, "{error} {set}");
                let place = error.place().unwrap();
                assert_eq!((place.pool, place.object.to_string()), (object.0, object.1.clone()));
                self.clients[client].lost.insert(watch);
                self.clients[client].count("watches lost");
            }
            cluster::Event::Notified(told) => {
                assert_eq!(&told.payload[..], b"news");
                let now = self.instant();
                self.clients[client].news.entry(told.watch).or_default().1.insert(told.notify_id);
                self.clients[client].machine.objecter_mut().acknowledge(now, &told, b"heard");
                self.clients[client].count("notified");
            }
            cluster::Event::MapUnusable(_) => self.clients[client].count("unusable maps"),
            cluster::Event::Lost(..) => self.clients[client].count("sessions lost"),
            cluster::Event::Open(_) | cluster::Event::Map(_) | cluster::Event::MonMap(_) => {}
            cluster::Event::Refused(error) => panic!("refused: {error}"),
            cluster::Event::Answer(..) => panic!("nothing was asked"),
        }
    }

    /// The owner of a watch reads the object: it knows all that was told of it until now.
    fn read_again(&mut self, client: usize, watch: u64) {
        let read = self.store.last_notify;
        self.clients[client].news.entry(watch).or_default().0 = read;
    }

    /// The owner of a watch heard of all that was told, or that it missed some.
    pub(crate) fn check_news(&self, client: usize, watch: u64) {
        let sim = &self.clients[client];
        let (read, heard) = &sim.news[&watch];
        let told = self.store.told.get(&sim.watches[&watch].0);
        let missed = told.into_iter().flatten().find(|id| *id > read && !heard.contains(id));
        assert_eq!(missed, None, "watch {watch} did not hear of it, {read} {heard:?}");
    }

    fn completed(&mut self, client: usize, completion: Completion) {
        let Completion { tid, request, result } = completion;
        let pending = self.clients[client].pending.remove(&tid).expect("it ends once");
        let result = match result {
            Ok(reply) => {
                assert_eq!(reply.tid, tid);
                let data = reply.ops.first().map(|op| op.data.clone()).unwrap_or_default();
                Ok((reply.result, data))
            }
            Err(error) => {
                self.clients[client].last_error = error.to_string();
                let place = error.place().unwrap();
                assert_eq!((place.pool, &place.object), (request.locator.pool, &request.object));
                let known = self.clients[client].machine.objecter().map();
                assert!(place.cluster == crate::maps::FSID || known.epoch() == 0);
                match error.kind() {
                    ErrorKind::Truncated { .. } | ErrorKind::Violation { .. } => {
                        self.clients[client].count("unreadable");
                    }
                    ErrorKind::TimedOut => self.clients[client].count("timed out"),
                    ErrorKind::Osd { errno: EBLOCKLISTED } => {
                        self.clients[client].count("kept out");
                    }
                    ErrorKind::NoPool => {
                        assert!(!self.model.pools.contains_key(&request.locator.pool));
                        self.clients[client].count("no pool");
                    }
                    other => panic!("{other}"),
                }
                Err(error)
            }
        };
        match pending {
            Pending::Write { id } => {
                let fate = match result {
                    Ok((0, _)) => Fate::Acknowledged,
                    Ok((-28, _)) => Fate::Refused,
                    Ok((errno @ -108, _)) if self.refuses_requests == Some(errno) => Fate::Unknown,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => Fate::Unknown,
                };
                let writes = &mut self.clients[client].writes;
                let write = writes.iter_mut().rev().find(|(_, other, _)| *other == id).unwrap();
                assert_eq!(write.2, Fate::Open);
                write.2 = fate;
                self.clients[client].count(if fate == Fate::Refused { "full" } else { "writes" });
            }
            Pending::Read { object, floor } => {
                let Ok((result, data)) = result else { return };
                assert_eq!(result, 0);
                let id = u64::from_le_bytes(*data.first_chunk().unwrap());
                let log = &self.store.object(&object).log;
                let seen = log.iter().position(|&other| other == id).map_or(0, |at| at + 1);
                assert!(
                    seen >= floor,
                    "a read of {object:?} gave write {seen}, and {floor} was acknowledged"
                );
                self.clients[client].count("reads");
            }
            Pending::Notify => {
                // Of the one that was sent last: that of an earlier one is the OSD's number of it, and no answer.
                if let Ok((_, data)) = &result {
                    let answers = NotifyAnswers::parse(data).unwrap();
                    assert!(answers.answered.iter().all(|(_, answer)| answer == "heard"));
                }
                self.clients[client].count("notifies");
            }
            Pending::Unwatch => self.clients[client].count("unwatches"),
        }
    }

    pub(crate) fn work(&mut self, client: usize) {
        if self.clients[client].work_left == 0 {
            return;
        }
        self.clients[client].work_left -= 1;
        let number = self.rng.below(OBJECTS);
        let pool = match self.rng.below(20) {
            0 => 2,
            1 if self.rng.one_in(4) => NO_POOL,
            2..6 => ERASURE,
            _ => 1,
        };
        let object =
            if number == 0 { format!("{ELSEWHERE}{number}") } else { format!("object{number}") };
        let deadline = self.deadline();
        match self.rng.below(24) {
            0..=10 => self.submit_write(client, pool, &object, deadline),
            11..=18 => self.submit_read(client, pool, &object, deadline),
            19 => self.give_up(client),
            20 | 21 if number > 0 => {
                let tries = if self.rng.one_in(4) { OpFlags::FULL_TRY } else { OpFlags::empty() };
                self.submit_watch(client, pool, &object, tries, deadline);
            }
            22 if number > 0 => self.submit_notify(client, pool, &object, deadline),
            _ => self.end_a_watch(client),
        }
        self.pump(client);
        let pause = self.rng.micros(2 * self.chaos.pause_micros / 3);
        let pause = if self.rng.one_in(3) { pause } else { Duration::from_micros(20) };
        self.after(pause, Event::Work(client));
    }

    fn deadline(&mut self) -> Option<Instant> {
        let seconds = 1 + self.rng.below(20);
        self.rng.one_in(4).then(|| self.instant() + Duration::from_secs(seconds))
    }

    fn submit(
        &mut self,
        client: usize,
        request: OsdRequest,
        pending: Pending,
        deadline: Option<Instant>,
    ) -> bool {
        let now = self.instant();
        let sim = &mut self.clients[client];
        let (ops, bytes) = sim.machine.objecter().in_flight();
        match sim.machine.objecter_mut().submit(now, request, deadline) {
            Ok(tid) => {
                assert!(sim.pending.insert(tid, pending).is_none());
                true
            }
            Err(_) => {
                assert!(ops == MAX_OPS || bytes > MAX_BYTES - MAX_WRITE as u64, "{ops} {bytes}");
                sim.count("busy");
                false
            }
        }
    }

    pub(crate) fn submit_write(
        &mut self,
        client: usize,
        pool: i64,
        object: &str,
        deadline: Option<Instant>,
    ) {
        let large = self.chaos.large_one_in.is_some_and(|many| self.rng.one_in(many));
        let len = if large { MAX_WRITE / 2 } else { 8 + self.rng.index(USUAL_WRITE) };
        self.submit_write_of(client, pool, object, len, deadline);
    }

    /// A write of so many bytes.
    pub(crate) fn submit_write_of(
        &mut self,
        client: usize,
        pool: i64,
        object: &str,
        len: usize,
        deadline: Option<Instant>,
    ) {
        let id = self.rng.next() | 1;
        let locator = ObjectLocator::new(pool, "");
        let name = Self::stored_name(&locator, object);
        let mut data = id.to_le_bytes().to_vec();
        data.resize(len, 7);
        let mut request = OsdRequest::new(locator, object, vec![Op::write(0, Bytes::from(data))]);
        let tries = self.rng.one_in(8);
        request.flags.set(OpFlags::FULL_TRY, tries);
        let pending = Pending::Write { id };
        // What does not wait for space is not in order with what does.
        if self.submit(client, request, pending, deadline) {
            self.clients[client].writes.push((name, id, Fate::Open));
            if tries {
                self.clients[client].writes.last_mut().unwrap().0.0 += 1000;
            }
        }
    }

    /// How many writes of an object were done when the last one that was acknowledged was.
    fn floor(&self, object: &ObjectName) -> usize {
        let Some(stored) = self.store.objects.get(object) else { return 0 };
        let acknowledged = |id: &u64| {
            let mut all = self.clients.iter().flat_map(|client| &client.writes);
            all.any(|(_, other, fate)| other == id && *fate == Fate::Acknowledged)
        };
        stored.log.iter().rposition(acknowledged).map_or(0, |at| at + 1)
    }

    pub(crate) fn submit_read(
        &mut self,
        client: usize,
        pool: i64,
        object: &str,
        deadline: Option<Instant>,
    ) {
        let locator = ObjectLocator::new(pool, "");
        let name = Self::stored_name(&locator, object);
        let floor = self.floor(&name);
        let mut request = OsdRequest::new(locator, object, vec![Op::read(0, 8)]);
        match self.rng.below(4) {
            0 => request.flags |= OpFlags::BALANCE_READS,
            1 => request.flags |= OpFlags::LOCALIZE_READS,
            _ => {}
        }
        self.submit(client, request, Pending::Read { object: name, floor }, deadline);
    }

    fn give_up(&mut self, client: usize) {
        let now = self.instant();
        let sim = &mut self.clients[client];
        let Some((&tid, pending)) = sim.pending.iter().next() else { return };
        let pending = pending.clone();
        if matches!(pending, Pending::Unwatch) {
            return;
        }
        assert!(sim.machine.objecter_mut().cancel(now, tid).is_some());
        assert!(sim.machine.objecter_mut().cancel(now, tid).is_none());
        sim.pending.remove(&tid);
        sim.count("cancelled");
        if let Pending::Write { id } = pending {
            let write = sim.writes.iter_mut().find(|(_, other, _)| *other == id).unwrap();
            write.2 = Fate::Unknown;
        }
    }

    pub(crate) fn submit_watch(
        &mut self,
        client: usize,
        pool: i64,
        object: &str,
        flags: OpFlags,
        deadline: Option<Instant>,
    ) {
        let now = self.instant();
        let locator = ObjectLocator::new(pool, "");
        let machine = self.clients[client].machine.objecter_mut();
        let name = (pool, object.to_owned());
        let share = ShareId::default();
        let object = Addressed { locator: &locator, object: object.as_bytes(), flags, share };
        let watch = machine.watch(now, &object, None, deadline).unwrap();
        self.clients[client].watches.insert(watch, (name, false));
    }

    pub(crate) fn submit_notify(
        &mut self,
        client: usize,
        pool: i64,
        object: &str,
        deadline: Option<Instant>,
    ) {
        let now = self.instant();
        let locator = ObjectLocator::new(pool, "");
        let machine = self.clients[client].machine.objecter_mut();
        let timeout = Duration::from_secs(5);
        let flags = OpFlags::empty();
        let share = ShareId::default();
        let object = Addressed { locator: &locator, object: object.as_bytes(), flags, share };
        if let Ok(tid) = machine.notify(now, &object, b"news", timeout, deadline) {
            self.clients[client].pending.insert(tid, Pending::Notify);
        }
    }

    pub(crate) fn end_a_watch(&mut self, client: usize) {
        let now = self.instant();
        let sim = &mut self.clients[client];
        let Some((&watch, _)) = sim.watches.iter().next() else { return };
        let tid = sim.machine.objecter_mut().unwatch(now, watch, None).unwrap();
        assert!(sim.machine.objecter_mut().unwatch(now, watch, None).is_none());
        sim.watches.remove(&watch);
        sim.pending.insert(tid, Pending::Unwatch);
    }
}

/// A chaos that a seed makes up.
pub(crate) fn chaos(seed: u64) -> Chaos {
    let mut rng = Rng::new(seed ^ 0x5eed);
    Chaos {
        active: true,
        until: Duration::from_secs(20),
        reset_one_in: [40, 150, 1000][rng.index(3)],
        delay_micros: [200, 5 * MILLI, 200 * MILLI][rng.index(3)],
        publish_micros: [MILLI, 100 * MILLI, 2000 * MILLI][rng.index(3)],
        work_micros: [500, 50 * MILLI, 1000 * MILLI][rng.index(3)],
        backoff_one_in: [10, 50, 1000][rng.index(3)],
        nonsense_one_in: [20, 200, 5000][rng.index(3)],
        kept_changes: [2, 5, 1000][rng.index(3)],
        pause_micros: [50 * MILLI, 200 * MILLI, 1000 * MILLI][rng.index(3)],
        deletes_a_pool: rng.one_in(2),
        slow_one_in: [3, 1000][rng.index(2)],
        large_one_in: rng.one_in(4).then_some(20),
    }
}
