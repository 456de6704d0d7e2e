//! The state machine.

use super::messages::{self, Answer, OsdMaps, Request};
use super::monmap::MonMap;
use crate::auth::MonitorAuth;
use crate::encoding::{EntityAddr, EntityType, Fsid};
use crate::error::{Error, ErrorKind, Result};
use crate::msgr::{self, Connection, Keepalive, Message, Session};
use bytes::Bytes;
use core::net::SocketAddr;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Most requests that wait for their answers.
pub const MAX_PENDING: usize = 1024;
/// How long a monitor is tried; each round through all of them takes twice as long as the one before, up to a limit
/// (ceph: options `mon_client_hunt_interval`, `mon_client_hunt_interval_max_multiple`).
const HUNT: Duration = Duration::from_secs(3);
const HUNT_MAX: Duration = Duration::from_secs(30);
/// Between a monitor that failed and the next one, this part of the time that it would have had.
const PAUSE_PART: u32 = 30;
/// After a session that broke sooner than this, the pause is twice as long as the one before, up to a limit.
const STEADY: Duration = Duration::from_secs(30);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How a monitor that is gone is found out (ceph: options `mon_client_ping_interval`, `mon_client_ping_timeout`).
const KEEPALIVE: Keepalive =
    Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) };

/// What a client starts from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where monitors may be. Not empty.
    pub monitors: Vec<SocketAddr>,
    /// Any number: it says in which order they are tried, so that not all clients go to the first.
    pub seed: u64,
    /// The number that tells this client from others at the same address; not 0.
    pub nonce: u32,
    /// Features of messages that the client supports.
    pub supported: u64,
}

/// What happened, or has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a stream to this address, and say [`connected`](MonClient::connected) or [`failed`](MonClient::failed).
    /// A stream of before is to be closed.
    Connect(SocketAddr),
    /// A session is open: the client is known to the cluster.
    Open(Session),
    /// The monitors changed.
    MonMap(MonMap),
    /// Maps of the OSDs came.
    OsdMaps(OsdMaps),
    /// The answer to a request.
    Answer(u64, Answer),
    /// Tickets are new.
    Renewed,
    /// A monitor failed, and why; another one is tried.
    Failed(SocketAddr, Error),
}

#[derive(Debug)]
enum Link {
    /// No stream, and none to be opened before this time.
    Waiting(MonitorAuth, Instant),
    /// A stream was asked for.
    Opening(MonitorAuth, Instant),
    /// A stream is there.
    Up(Box<Connection<MonitorAuth>>),
    /// The client may not in, and trying again would not help.
    Refused,
}

/// Brings monitors into an order that is another one for each seed (Fisher and Yates; the numbers are SplitMix64's).
fn shuffle(monitors: &mut [SocketAddr], mut seed: u64) {
    for left in (2..=monitors.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let chosen = usize::try_from(mixed % left as u64).unwrap_or(0);
        monitors.swap(left - 1, chosen);
    }
}

/// A client of the monitors.
#[derive(Debug)]
pub struct MonClient {
    config: Config,
    link: Link,
    /// Which monitor is tried, and for how long.
    current: usize,
    hunt: Duration,
    /// How many sessions in a row broke soon after they were open, and since when there is one.
    short_sessions: u32,
    opened_at: Option<Instant>,
    /// The cluster has let this client in: it will again, whatever it says now.
    was_in: bool,
    connections: u64,
    fsid: Fsid,
    own: Option<EntityAddr>,
    wanted: BTreeMap<String, (u64, bool)>,
    pending: BTreeMap<u64, Request>,
    last_tid: u64,
    renewing: bool,
    events: VecDeque<Event>,
}

impl MonClient {
    const DOING: &'static str = "talking to the monitors";

    /// A client that looks for a monitor at once: [`poll_event`](Self::poll_event) says where.
    ///
    /// # Errors
    /// If there is no monitor to try.
    pub fn new(config: Config, auth: MonitorAuth, now: Instant) -> Result<Self> {
        if config.monitors.is_empty() {
            let problem = "no monitors configured; set mon host";
            let kind = ErrorKind::BadParameter { problem, text: String::new() };
            return Err(Error::new(Self::DOING, kind));
        }
        let mut config = config;
        shuffle(&mut config.monitors, config.seed);
        let mut client = Self {
            config,
            link: Link::Waiting(auth, now),
            current: 0,
            hunt: HUNT,
            short_sessions: 0,
            opened_at: None,
            was_in: false,
            connections: 0,
            fsid: Fsid::default(),
            own: None,
            wanted: BTreeMap::from([("monmap".to_owned(), (0, false))]),
            pending: BTreeMap::new(),
            last_tid: 0,
            renewing: false,
            events: VecDeque::new(),
        };
        client.expire(now)?;
        Ok(client)
    }

    fn address(&self) -> SocketAddr {
        self.config.monitors[self.current % self.config.monitors.len()]
    }

    /// The stream that [`Event::Connect`] asked for is open.
    pub fn connected(&mut self, now: Instant) {
        let Link::Opening(auth, _) = std::mem::replace(&mut self.link, Link::Refused) else {
            return;
        };
        self.connections += 1;
        let global_id = Some(auth.global_id()).filter(|&id| id != 0);
        let config = msgr::Config {
            peer_kind: EntityType::MON,
            peer: EntityAddr::msgr2(self.address(), 0),
            own: self.own,
            nonce: self.config.nonce,
            global_id,
            global_seq: self.connections,
            supported: self.config.supported,
            handshake_timeout: self.hunt,
            keepalive: Some(KEEPALIVE),
        };
        self.link = Link::Up(Box::new(Connection::new(config, auth, now)));
    }

    /// The stream could not be opened, or broke: why, if the system says.
    pub fn failed(&mut self, now: Instant, why: Option<String>) {
        let kind = why.map_or(ErrorKind::Reset, |reason| ErrorKind::Broken { reason });
        self.next_monitor(now, Error::new(Self::DOING, kind));
    }

    /// The monitor took bytes that had waited for it: it lives.
    pub fn progressed(&mut self, now: Instant) {
        if let Link::Up(connection) = &mut self.link {
            connection.progressed(now);
        }
    }

    /// Turns to the next monitor.
    fn next_monitor(&mut self, now: Instant, error: Error) {
        let auth = match std::mem::replace(&mut self.link, Link::Refused) {
            Link::Up(connection) => connection.into_auth(),
            Link::Waiting(auth, _) | Link::Opening(auth, _) => auth,
            Link::Refused => return,
        };
        self.events.push_back(Event::Failed(self.address(), error));
        self.current += 1;
        if self.current.is_multiple_of(self.config.monitors.len()) {
            self.hunt = (self.hunt * 2).min(HUNT_MAX);
        }
        self.renewing = false;
        let mut pause = self.hunt / PAUSE_PART;
        if let Some(opened_at) = self.opened_at.take() {
            let steady = now.saturating_duration_since(opened_at) >= STEADY;
            self.short_sessions = if steady { 0 } else { self.short_sessions.saturating_add(1) };
        }
        let doubled = 1 << self.short_sessions.saturating_sub(1).min(10);
        pause = pause.max(pause.saturating_mul(doubled).min(PAUSE_MAX));
        self.link = Link::Waiting(auth, now + pause);
    }

    /// Takes bytes of the stream. A monitor that fails is replaced by another one.
    ///
    /// # Errors
    /// What no other monitor would see differently: the client's key is wrong, or the cluster refuses it, and it was never in.
    pub fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<()> {
        let Link::Up(connection) = &mut self.link else { return Ok(()) };
        let mut result = connection.receive(now, bytes);
        while let Link::Up(connection) = &mut self.link {
            let Some(event) = connection.poll_event() else { break };
            let taken = match event {
                msgr::Event::Open(session) => self.opened(now, session),
                msgr::Event::Message(message) => self.take(now, &message),
                msgr::Event::TooBig(_, got) => {
                    let limit = msgr::MAX_MESSAGE;
                    Err(Error::too_big(Self::DOING, "bytes of a message", got, limit))
                }
            };
            result = result.and(taken);
        }
        self.settle(now, result)
    }

    /// Passes on what is final, and turns to another monitor for what is not. To one who was in, nothing is final: keys are
    /// changed and changed back, and whoever waits has a deadline (ceph: `MonClient` keeps hunting once it is initialized).
    fn settle(&mut self, now: Instant, result: Result<()>) -> Result<()> {
        let Err(error) = result else { return Ok(()) };
        let is_final = match *error.kind() {
            ErrorKind::WrongKey { .. } | ErrorKind::BadParameter { .. } => true,
            ErrorKind::Refused { errno, .. } => !crate::auth::is_transient(errno),
            _ => false,
        };
        if is_final && !self.was_in {
            self.link = Link::Refused;
            return Err(error);
        }
        self.next_monitor(now, error);
        Ok(())
    }

    /// Tells a new monitor what the one of before knew.
    fn opened(&mut self, now: Instant, session: Session) -> Result<()> {
        self.hunt = HUNT;
        (self.was_in, self.opened_at) = (true, Some(now));
        self.own = Some(session.own);
        self.send(messages::subscribe(&self.wanted));
        let pending: Vec<_> =
            self.pending.iter().map(|(&tid, request)| (tid, request.clone())).collect();
        for (tid, request) in pending {
            self.send(request.message(tid, self.fsid));
        }
        self.events.push_back(Event::Open(session));
        Ok(())
    }

    /// Sends a message if a session is open; if not, it is not lost, as all is sent again when one is.
    fn send(&mut self, message: Message) {
        if let Link::Up(connection) = &mut self.link {
            let _kept_for_the_next_session = connection.send(message);
        }
    }

    fn take(&mut self, now: Instant, message: &Message) -> Result<()> {
        match message.kind {
            messages::MON_MAP => {
                let map = messages::mon_map(message)?;
                self.take_mon_map(map);
            }
            messages::OSD_MAP => {
                let maps = OsdMaps::parse(message)?;
                self.got("osdmap", maps.last().into());
                self.events.push_back(Event::OsdMaps(maps));
            }
            messages::AUTH_REPLY => self.take_auth_reply(now, message)?,
            messages::VERSION | messages::COMMAND_ACK | messages::POOL_OP_REPLY => {
                let (tid, answer) = Answer::parse(message)?;
                // An answer that came twice, after a change of monitors, is for nobody.
                if self.pending.remove(&tid).is_some() {
                    self.events.push_back(Event::Answer(tid, answer));
                }
            }
            // Configuration, logs, and what is new to this side.
            _ => {}
        }
        Ok(())
    }

    fn take_mon_map(&mut self, map: MonMap) {
        self.fsid = map.fsid;
        self.got("monmap", map.epoch.into());
        let current = self.address();
        let mut sockets: Vec<_> =
            map.monitors.iter().filter_map(|monitor| monitor.addrs.msgr2()?.socket).collect();
        shuffle(&mut sockets, self.config.seed);
        if let Some(at) = sockets.iter().position(|&socket| socket == current) {
            self.current = at;
        }
        if !sockets.is_empty() {
            self.config.monitors = sockets;
        }
        self.events.push_back(Event::MonMap(map));
    }

    fn take_auth_reply(&mut self, now: Instant, message: &Message) -> Result<()> {
        let (result, payload) = messages::auth_reply(message)?;
        self.renewing = false;
        let Link::Up(connection) = &mut self.link else { return Ok(()) };
        if result != 0 {
            return Err(crate::auth::refusal(Self::DOING, "the monitor renews no tickets", result));
        }
        connection.auth_mut().renewed(now, &payload)?;
        self.events.push_back(Event::Renewed);
        Ok(())
    }

    /// What came up to an epoch is not asked for again.
    fn got(&mut self, what: &str, epoch: u64) {
        if let Some((start, once)) = self.wanted.get_mut(what) {
            if *once {
                self.wanted.remove(what);
            } else {
                *start = (*start).max(epoch + 1);
            }
        }
    }

    /// Asks for a map, such as "osdmap", from an epoch on (0: the newest, whole), once or whenever it changes.
    pub fn subscribe(&mut self, what: &str, start: u64, once: bool) {
        self.wanted.insert(what.to_owned(), (start, once));
        let one = BTreeMap::from([(what.to_owned(), (start, once))]);
        self.send(messages::subscribe(&one));
    }

    /// Asks something; the number comes back with the answer. It is asked again of another monitor if need be.
    ///
    /// # Errors
    /// The request, if [`MAX_PENDING`] wait already.
    pub fn ask(&mut self, request: Request) -> std::result::Result<u64, Request> {
        if self.pending.len() >= MAX_PENDING {
            return Err(request);
        }
        self.last_tid += 1;
        let tid = self.last_tid;
        let message = request.message(tid, self.fsid);
        // A command names the cluster, which is known from the first map on; before, it waits for the session.
        self.send(message);
        self.pending.insert(tid, request);
        Ok(tid)
    }

    /// Gives up waiting for an answer.
    pub fn cancel(&mut self, tid: u64) {
        self.pending.remove(&tid);
    }

    /// The client's standing, with its tickets. None while the client is refused.
    #[must_use]
    pub fn auth(&self) -> Option<&MonitorAuth> {
        match &self.link {
            Link::Waiting(auth, _) | Link::Opening(auth, _) => Some(auth),
            Link::Up(connection) => Some(connection.auth()),
            Link::Refused => None,
        }
    }

    /// A service does not take its ticket: another one is asked for.
    pub fn doubt_ticket(&mut self, now: Instant, service: EntityType) {
        match &mut self.link {
            Link::Waiting(auth, _) | Link::Opening(auth, _) => auth.doubt(service, now),
            Link::Up(connection) => connection.auth_mut().doubt(service, now),
            Link::Refused => {}
        }
    }

    /// Whether there are bytes to be sent.
    #[must_use]
    pub fn has_output(&self) -> bool {
        matches!(&self.link, Link::Up(connection) if connection.has_output())
    }

    /// Moves the bytes that are to be sent to the end of `out`; whether there were any.
    pub fn poll_transmit(&mut self, out: &mut Vec<Bytes>) -> bool {
        match &mut self.link {
            Link::Up(connection) => connection.poll_transmit(out),
            _ => false,
        }
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`expire`](Self::expire) is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.link {
            Link::Waiting(_, until) | Link::Opening(_, until) => Some(*until),
            Link::Up(connection) => {
                let renew = connection.auth().renew_after();
                let renew = renew.filter(|_| connection.is_open() && !self.renewing);
                [connection.deadline(), renew].into_iter().flatten().min()
            }
            Link::Refused => None,
        }
    }

    /// Does what is due: opens a stream, gives up on a monitor, renews tickets.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn expire(&mut self, now: Instant) -> Result<()> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        match std::mem::replace(&mut self.link, Link::Refused) {
            Link::Waiting(auth, _) => {
                self.link = Link::Opening(auth, now + self.hunt);
                self.events.push_back(Event::Connect(self.address()));
                Ok(())
            }
            Link::Opening(auth, until) => {
                self.link = Link::Opening(auth, until);
                self.next_monitor(now, Error::new(Self::DOING, ErrorKind::TimedOut));
                Ok(())
            }
            Link::Up(mut connection) => {
                let result = connection.expire(now);
                self.renew(now, &mut connection);
                self.link = Link::Up(connection);
                self.settle(now, result)
            }
            Link::Refused => Ok(()),
        }
    }

    fn renew(&mut self, now: Instant, connection: &mut Connection<MonitorAuth>) {
        let due = connection.auth().renew_after().is_some_and(|renew| now >= renew);
        if !due || self.renewing || !connection.is_open() {
            return;
        }
        let method = connection.auth().method().0;
        if let Some(payload) = connection.auth_mut().renewal(now) {
            self.renewing = connection.send(messages::auth(method, &payload)).is_ok();
        }
    }
}
