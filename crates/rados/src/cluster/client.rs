//! The machine.

use crate::auth::{MonitorAuth, Random, ServiceAuth};
use crate::encoding::EntityType;
use crate::error::{Error, ErrorKind, Result};
use crate::mon::{self, Answer, MonClient, MonMap, Request};
use crate::msgr::{ConnectionMode, Rest, Session};
use crate::objecter::{self, Completion, ConnectionId, Notification, Objecter};
use bytes::Bytes;
use core::net::SocketAddr;
use std::collections::VecDeque;
use std::time::Instant;

const TO_OSD: &str = "talking to an OSD";

/// What a client is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The monitors' client.
    pub mon: mon::Config,
    /// The objecter. Its nonce and features are those of `mon`.
    pub objecter: objecter::Config,
    /// How connections to OSDs may be protected, the preferred way first.
    pub osd_modes: Vec<ConnectionMode>,
    /// Fills bytes with random ones, of a quality that fits keys.
    pub random: fn(&mut [u8]),
}

/// Whom a stream leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A monitor.
    Monitor(SocketAddr),
    /// An OSD.
    Osd(i32),
}

/// What happened, or has to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Open a stream, and say [`connected`](Client::connected) or [`failed`](Client::failed).
    Connect {
        /// What to call it.
        connection: ConnectionId,
        /// Whom it leads to.
        peer: Peer,
        /// Where that is.
        addr: SocketAddr,
    },
    /// Close a stream, or give up opening it. Nothing more is taken from it.
    Close(ConnectionId),
    /// A monitor knows this client.
    Open(Session),
    /// The client may not in, and was never in; trying again would not help.
    Refused(Error),
    /// A session broke, and why; it is opened again if it is needed.
    Lost(Peer, Error),
    /// The monitors changed.
    MonMap(MonMap),
    /// The monitors' answer to a request.
    Answer(u64, Answer),
    /// An operation ended.
    Completed(Box<Completion>),
    /// The map of this epoch is in use.
    Map(u32),
    /// A map cannot be used, and why; a whole one is asked for.
    MapUnusable(Error),
    /// A watch is set.
    Watching(u64),
    /// A watch may have missed something: see [`objecter::Event::WatchMissed`].
    WatchMissed(u64),
    /// A watch is gone. To watch on, watch again.
    WatchLost(u64, Error),
    /// A watched object has something to say.
    Notified(Notification),
}

/// A client of a cluster. See the [module](super).
#[derive(Debug)]
pub struct Client {
    mon: MonClient,
    objecter: Objecter,
    osd_modes: Vec<ConnectionMode>,
    random: fn(&mut [u8]),
    /// The stream to a monitor, and where that is.
    monitor: Option<(ConnectionId, SocketAddr)>,
    session: Option<Session>,
    /// The objecter wants to know the newest epoch; the question, once it is asked.
    newest_wanted: bool,
    newest_asked: Option<u64>,
    events: VecDeque<Event>,
}

impl Client {
    /// A client that looks for a monitor at once.
    ///
    /// # Errors
    /// If there is no monitor to try.
    pub fn new(config: Config, auth: MonitorAuth, now: Instant) -> Result<Self> {
        let (nonce, supported) = (config.mon.nonce, config.mon.supported);
        let objecter = objecter::Config { nonce, supported, ..config.objecter };
        let mut mon = MonClient::new(config.mon, auth, now)?;
        mon.subscribe("osdmap", 0, false);
        let mut client = Self {
            mon,
            objecter: Objecter::new(objecter),
            osd_modes: config.osd_modes,
            random: config.random,
            monitor: None,
            session: None,
            newest_wanted: false,
            newest_asked: None,
            events: VecDeque::new(),
        };
        client.advance(now);
        Ok(client)
    }

    /// The part that operations are given to.
    #[must_use]
    pub const fn objecter(&self) -> &Objecter {
        &self.objecter
    }

    /// The part that operations are given to.
    pub const fn objecter_mut(&mut self) -> &mut Objecter {
        &mut self.objecter
    }

    /// The last session with a monitor: the client's number and its address.
    #[must_use]
    pub const fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Asks the monitors something; the number comes back in [`Event::Answer`].
    ///
    /// # Errors
    /// The request, if [`mon::MAX_PENDING`] wait already.
    pub fn ask(&mut self, request: Request) -> std::result::Result<u64, Request> {
        self.mon.ask(request)
    }

    /// Gives up waiting for an answer.
    pub fn cancel_ask(&mut self, tid: u64) {
        self.mon.cancel(tid);
    }

    /// The stream that [`Event::Connect`] asked for is open.
    pub fn connected(&mut self, now: Instant, connection: ConnectionId) {
        if self.is_monitor(connection) {
            self.mon.connected(now);
            return;
        }
        let auth = self.mon.auth().map(|auth| {
            let random = Random::new(self.random);
            ServiceAuth::new(auth, EntityType::OSD, self.osd_modes.clone(), random, now)
        });
        match (auth, &self.session) {
            (Some(Ok(auth)), Some(session)) => {
                self.objecter.connected(now, connection, auth, session);
            }
            // Without a ticket there is no session; there will be one when the monitors give a ticket.
            (auth, _) => {
                self.events.push_back(Event::Close(connection));
                let why = match auth {
                    Some(Err(why)) => why,
                    _ => Error::new(TO_OSD, ErrorKind::NoTicket(EntityType::OSD.name())),
                };
                self.objecter.failed(now, connection, why);
            }
        }
    }

    /// The stream could not be opened, or broke: why, if the system says.
    pub fn failed(&mut self, now: Instant, connection: ConnectionId, why: Option<String>) {
        if self.is_monitor(connection) {
            self.monitor = None;
            self.mon.failed(now, why);
        } else {
            let kind = why.map_or(ErrorKind::Reset, |reason| ErrorKind::Broken { reason });
            self.objecter.failed(now, connection, Error::new(TO_OSD, kind));
        }
    }

    /// A peer took bytes that had waited until it did: it lives, however slow it is.
    pub fn progressed(&mut self, now: Instant, connection: ConnectionId) {
        if self.is_monitor(connection) {
            self.mon.progressed(now);
        } else {
            self.objecter.progressed(now, connection);
        }
    }

    /// A stream has not taken all that [`poll_transmit`](Self::poll_transmit) gave: see [`Objecter::hold`].
    pub fn hold(&mut self, connection: ConnectionId) {
        self.objecter.hold(connection);
    }

    /// A stream has taken all of it.
    pub fn resume(&mut self, now: Instant, connection: ConnectionId) {
        self.progressed(now, connection);
        self.objecter.resume(now, connection);
    }

    /// Takes bytes of a stream.
    pub fn receive(&mut self, now: Instant, connection: ConnectionId, bytes: &[u8]) {
        if self.is_monitor(connection) {
            self.objecter.heard_of_monitor(now);
            let result = self.mon.receive(now, bytes);
            self.settle(result);
            self.advance(now);
        } else {
            self.objecter.receive(now, connection, bytes);
        }
    }

    /// Lends the body of a large message that comes on a stream, so that it is received where it will stay. It is to be
    /// [given back](Self::give_back) before anything else of that stream is.
    pub fn lend(&mut self, connection: ConnectionId) -> Option<Rest> {
        self.objecter.lend(connection)
    }

    /// Takes a body back, with what came of it.
    pub fn give_back(&mut self, now: Instant, connection: ConnectionId, rest: Rest) {
        self.objecter.give_back(now, connection, rest);
    }

    fn is_monitor(&self, connection: ConnectionId) -> bool {
        self.monitor.is_some_and(|(monitor, _)| monitor == connection)
    }

    fn settle(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.close_monitor();
            self.events.push_back(Event::Refused(error));
        }
    }

    fn close_monitor(&mut self) {
        if let Some((connection, _)) = self.monitor.take() {
            self.events.push_back(Event::Close(connection));
        }
    }

    /// Whether there may be bytes to be sent.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.mon.has_output() || self.objecter.has_output()
    }

    /// Moves the bytes that are to be sent on one of the streams to the end of `out`: which one.
    pub fn poll_transmit(&mut self, out: &mut Vec<Bytes>) -> Option<ConnectionId> {
        if let Some((connection, _)) = self.monitor
            && self.mon.poll_transmit(out)
        {
            return Some(connection);
        }
        self.objecter.poll_transmit(out)
    }

    /// What happened next.
    pub fn poll_event(&mut self, now: Instant) -> Option<Event> {
        if self.events.is_empty() {
            self.advance(now);
        }
        self.events.pop_front()
    }

    /// When [`expire`](Self::expire) is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.mon.deadline().into_iter().chain(self.objecter.deadline()).min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Instant) {
        let result = self.mon.expire(now);
        self.settle(result);
        self.objecter.expire(now);
        self.advance(now);
    }

    /// Carries what one part has to say to the other, and to the owner.
    fn advance(&mut self, now: Instant) {
        loop {
            if let Some(event) = self.mon.poll_event() {
                self.take_mon(now, event);
            } else if let Some(event) = self.objecter.poll_event() {
                self.take_objecter(now, event);
            } else {
                break;
            }
        }
        // One question at a time: what the objecter wants to know next is to be asked after that was answered.
        if self.newest_wanted
            && self.newest_asked.is_none()
            && let Ok(tid) = self.mon.ask(Request::GetVersion("osdmap".to_owned()))
        {
            self.newest_asked = Some(tid);
            self.newest_wanted = false;
        }
    }

    fn take_mon(&mut self, now: Instant, event: mon::Event) {
        match event {
            mon::Event::Connect(addr) => {
                self.close_monitor();
                let connection = self.objecter.new_connection();
                self.monitor = Some((connection, addr));
                let peer = Peer::Monitor(addr);
                self.events.push_back(Event::Connect { connection, peer, addr });
            }
            mon::Event::Open(session) => {
                self.objecter.set_own(now, session.own);
                self.session = Some(session.clone());
                self.events.push_back(Event::Open(session));
            }
            mon::Event::MonMap(map) => self.events.push_back(Event::MonMap(map)),
            mon::Event::OsdMaps(maps) => {
                let _an_event_says_why = self.objecter.take_maps(now, &maps);
            }
            mon::Event::Answer(tid, Answer::Version { newest, .. })
                if self.newest_asked == Some(tid) =>
            {
                self.newest_asked = None;
                self.objecter.newest(now, u32::try_from(newest).unwrap_or(u32::MAX));
            }
            mon::Event::Answer(tid, answer) => self.events.push_back(Event::Answer(tid, answer)),
            mon::Event::Renewed => {}
            mon::Event::Failed(addr, error) => {
                self.close_monitor();
                self.objecter.session_with_monitor_ended();
                self.events.push_back(Event::Lost(Peer::Monitor(addr), error));
            }
        }
    }

    fn take_objecter(&mut self, now: Instant, event: objecter::Event) {
        let event = match event {
            objecter::Event::Connect { connection, osd, addr } => {
                Event::Connect { connection, peer: Peer::Osd(osd), addr }
            }
            objecter::Event::Close(connection) => Event::Close(connection),
            objecter::Event::Completed(completion) => Event::Completed(completion),
            objecter::Event::WantMap(from) => {
                self.mon.subscribe("osdmap", from.into(), false);
                return;
            }
            objecter::Event::WantNewest => {
                self.newest_wanted = true;
                return;
            }
            objecter::Event::Map(epoch) => Event::Map(epoch),
            objecter::Event::MapUnusable(error) => Event::MapUnusable(error),
            objecter::Event::Watching(watch) => Event::Watching(watch),
            objecter::Event::WatchMissed(watch) => Event::WatchMissed(watch),
            objecter::Event::WatchLost(watch, error) => Event::WatchLost(watch, error),
            objecter::Event::Notified(told) => Event::Notified(told),
            objecter::Event::SessionLost(osd, error) => {
                if error.is_about_tickets() {
                    self.mon.doubt_ticket(now, EntityType::OSD);
                }
                Event::Lost(Peer::Osd(osd), error)
            }
        };
        self.events.push_back(event);
    }
}
