//! The machine with its sockets: what everybody who has a part of a [`Cluster`](super::Cluster) shares.

use super::stream::{self, Stream};
use crate::cluster::{Client, Event, Peer};
use crate::error::{Error, ErrorKind, Result};
use crate::mon::{Answer, Request};
use crate::msgr::Rest;
use crate::objecter::{Completion, ConnectionId};
use crate::osd::OsdRequest;
use core::net::SocketAddr;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Sleep, sleep_until};

use super::watch::{Told, Watcher};

/// Monitors, and OSDs, whose trouble is kept.
const MAX_TROUBLES: usize = 64;
/// How long a client that nobody needs any more waits for OSDs to hear that its watches are over.
const PARTING: Duration = Duration::from_secs(5);
/// How long the timer sleeps if nothing is due.
const NOTHING_DUE: Duration = Duration::from_secs(3600);

/// What is behind the lock.
pub(super) struct State {
    pub client: Client,
    ops: HashMap<u64, oneshot::Sender<Box<Completion>>>,
    asked: HashMap<u64, oneshot::Sender<Answer>>,
    pub watchers: HashMap<u64, Watcher>,
    streams: HashMap<ConnectionId, (Option<Arc<Stream>>, AbortHandle)>,
    /// The client may not in.
    refused: Option<Error>,
    /// What was wrong with each monitor that was tried, for errors of those who wait; an OSD's trouble is its own.
    monitor_trouble: BTreeMap<SocketAddr, Error>,
    /// OSDs of which somebody was told that they do not let the client in.
    refusing_osds: BTreeSet<i32>,
    /// There was a map.
    connected: bool,
    /// Why the newest map cannot be used.
    map_trouble: Option<Error>,
    /// Nobody has a part of the cluster any more: OSDs are told of the end of watches, until this time at most.
    parting: Option<Instant>,
    /// Wakes the task that sends and keeps time, which looks at all of this under the lock.
    pump: Option<Waker>,
    /// When that task wakes by itself.
    due: Instant,
}

/// What came on a stream.
pub(super) enum Came<'a> {
    Bytes(&'a [u8]),
    /// A body that was lent, with what came of it.
    Rest(Rest),
}

/// The machine, shared.
pub(super) struct Engine {
    pub state: Mutex<State>,
    /// The epoch of the map in use, 0 before there is one.
    epoch: watch::Sender<u32>,
}

/// Waits for the end of an operation; gives it up when dropped.
struct Waiting<'a> {
    engine: &'a Engine,
    tid: u64,
    done: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.done {
            let mut state = self.engine.state.lock();
            state.ops.remove(&self.tid);
            state.client.objecter_mut().cancel(Instant::now(), self.tid);
            state.wake_pump();
        }
    }
}

/// Waits for an answer of the monitors.
struct Asking<'a> {
    engine: &'a Engine,
    tid: u64,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        if state.asked.remove(&self.tid).is_some() {
            state.client.cancel_ask(self.tid);
        }
    }
}

impl State {
    /// There is something to send, or another time to wake at.
    pub(super) fn wake_pump(&mut self) {
        if let Some(waker) = self.pump.take() {
            waker.wake();
        }
    }

    /// No OSD is to hear of the end of a watch.
    fn has_parted(&self) -> bool {
        self.client.objecter().unwatching() == 0
    }

    /// The error of everybody when the client is refused.
    fn check(&self) -> Result<()> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    fn refuse(&mut self, error: Error) {
        // Whoever waits finds its sender gone, and the reason here.
        self.ops.clear();
        self.asked.clear();
        for watcher in self.watchers.values_mut() {
            watcher.lose(error.clone());
        }
        self.refused = Some(error);
    }
}

impl Engine {
    pub(super) fn new(client: Client) -> Arc<Self> {
        let state = State {
            client,
            ops: HashMap::new(),
            asked: HashMap::new(),
            watchers: HashMap::new(),
            streams: HashMap::new(),
            refused: None,
            monitor_trouble: BTreeMap::new(),
            refusing_osds: BTreeSet::new(),
            connected: false,
            map_trouble: None,
            parting: None,
            pump: None,
            due: Instant::now() + NOTHING_DUE,
        };
        Arc::new(Self { state: Mutex::new(state), epoch: watch::Sender::new(0) })
    }

    /// Sends and keeps time, until it is aborted.
    pub(super) async fn pump(self: Arc<Self>) {
        let sleep = sleep_until(self.state.lock().due.into());
        tokio::pin!(sleep);
        poll_fn(|context| self.poll_pump(context, sleep.as_mut())).await;
    }

    fn poll_pump(
        self: &Arc<Self>,
        context: &mut Context<'_>,
        mut sleep: std::pin::Pin<&mut Sleep>,
    ) -> Poll<()> {
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if state.client.deadline().is_some_and(|deadline| deadline <= now) {
                state.client.expire(now);
            }
            self.obey(&mut state, now);
            self.transmit(&mut state);
            let due = state.client.deadline().unwrap_or(now + NOTHING_DUE);
            let due = state.parting.map_or(due, |until| due.min(until));
            if state.parting.is_some_and(|until| until <= now || state.has_parted()) {
                drop(state);
                self.shut_down();
                return Poll::Ready(());
            }
            // A timer that goes off early costs less than one that is set for each request.
            if due < state.due || sleep.is_elapsed() {
                state.due = due;
                sleep.as_mut().reset(due.into());
            }
            if sleep.as_mut().poll(context).is_pending() {
                break;
            }
        }
        let same = state.pump.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if !same {
            state.pump = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Hands what is to be sent to the streams.
    fn transmit(&self, state: &mut State) {
        let mut out = Vec::new();
        while let Some(connection) = state.client.poll_transmit(&mut out) {
            match state.streams.get(&connection) {
                Some((Some(stream), _)) if stream.send(&mut out) => {}
                Some((Some(_), _)) => state.client.hold(connection),
                _ => out.clear(),
            }
        }
    }

    /// Does what the machine says.
    pub(super) fn obey(self: &Arc<Self>, state: &mut State, now: Instant) {
        while let Some(event) = state.client.poll_event(now) {
            match event {
                Event::Connect { connection, addr, .. } => {
                    let task = tokio::spawn(stream::run(Arc::clone(self), connection, addr));
                    state.streams.insert(connection, (None, task.abort_handle()));
                }
                Event::Close(connection) => {
                    if let Some((_, task)) = state.streams.remove(&connection) {
                        task.abort();
                    }
                }
                Event::Completed(completion) => {
                    if let Some(waiting) = state.ops.remove(&completion.tid) {
                        let _nobody_waits = waiting.send(completion);
                    }
                }
                Event::Answer(tid, answer) => {
                    if let Some(waiting) = state.asked.remove(&tid) {
                        let _nobody_waits = waiting.send(answer);
                    }
                }
                Event::Map(epoch) => {
                    (state.connected, state.map_trouble) = (true, None);
                    self.epoch.send_replace(epoch);
                }
                Event::MapUnusable(error) => state.map_unusable(error),
                Event::Refused(error) => {
                    state.refuse(error);
                    // Those who wait for a map look again.
                    self.epoch.send_modify(|_| {});
                }
                Event::Lost(Peer::Monitor(addr), error) => state.lost_monitor(addr, error),
                Event::Lost(Peer::Osd(osd), error) => state.lost_osd(osd, &error),
                Event::Watching(watch) => state.watch_set(watch, Ok(())),
                Event::WatchMissed(watch) => state.tell(watch, Told::Missed),
                Event::WatchLost(watch, error) => state.watch_lost(watch, error),
                Event::Notified(told) => state.tell(told.watch, Told::Notified(told)),
                Event::Open(_) | Event::MonMap(_) => {}
            }
        }
    }

    /// A stream is open.
    pub(super) fn opened(self: &Arc<Self>, connection: ConnectionId, stream: Arc<Stream>) {
        let mut state = self.state.lock();
        if let Some((place, _)) = state.streams.get_mut(&connection) {
            *place = Some(stream);
            let now = Instant::now();
            state.client.connected(now, connection);
            self.obey(&mut state, now);
            state.wake_pump();
        }
    }

    /// Something came. Where the next bytes belong is given, if they are many of one message.
    pub(super) fn received(
        self: &Arc<Self>,
        connection: ConnectionId,
        came: Came<'_>,
    ) -> Option<Rest> {
        let now = Instant::now();
        let mut state = self.state.lock();
        match came {
            Came::Bytes(bytes) => state.client.receive(now, connection, bytes),
            Came::Rest(rest) => state.client.give_back(now, connection, rest),
        }
        self.obey(&mut state, now);
        let due = state.client.deadline().is_some_and(|due| due < state.due);
        if due || state.client.has_output() || state.parting.is_some() {
            state.wake_pump();
        }
        state.client.lend(connection)
    }

    /// A stream took some of what waited for it, or all.
    pub(super) fn sent(self: &Arc<Self>, connection: ConnectionId, all: bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if all {
            state.client.resume(now, connection);
            state.wake_pump();
        } else {
            state.client.progressed(now, connection);
        }
    }

    /// A stream broke, or could not be opened.
    pub(super) fn broke(self: &Arc<Self>, connection: ConnectionId, why: Option<String>) {
        let mut state = self.state.lock();
        if state.streams.remove(&connection).is_some() {
            let now = Instant::now();
            state.client.failed(now, connection, why);
            self.obey(&mut state, now);
            state.wake_pump();
        }
    }

    /// Nobody has a part of the cluster any more. Whether OSDs have to hear of the end of watches first: the pump then closes
    /// all streams when they have, or after a while.
    pub(super) fn part(&self) -> bool {
        let mut state = self.state.lock();
        if state.has_parted() {
            return false;
        }
        state.parting = Some(Instant::now() + PARTING);
        state.wake_pump();
        true
    }

    /// Closes all streams: nobody has a part of the cluster any more.
    pub(super) fn shut_down(&self) {
        for (_, (_, task)) in self.state.lock().streams.drain() {
            task.abort();
        }
    }

    /// The epochs of maps, until the machine is gone.
    pub(super) fn subscribe(&self) -> watch::Receiver<u32> {
        self.epoch.subscribe()
    }

    /// Waits for a map of at least this epoch.
    pub(super) async fn wait_for_map(&self, epoch: u32) -> Result<()> {
        let mut epochs = self.epoch.subscribe();
        loop {
            if *epochs.borrow_and_update() >= epoch {
                return Ok(());
            }
            self.state.lock().check()?;
            // The sender lives as long as this does.
            let _ = epochs.changed().await;
        }
    }

    /// What to say when no monitor answers.
    pub(super) fn unreachable(&self) -> Error {
        const DOING: &str = "connecting to the cluster";
        let state = self.state.lock();
        let troubles = state.monitor_trouble.iter();
        let troubles: Vec<_> =
            troubles.map(|(addr, error)| format!("monitor {addr}: {}", error.kind())).collect();
        let map = state.map_trouble.iter().map(|error| format!("cannot use the map: {error}"));
        let troubles: Vec<_> = troubles.into_iter().chain(map).collect();
        let reason = if troubles.is_empty() {
            "no answer from any monitor".to_owned()
        } else {
            troubles.join("; ")
        };
        Error::new(DOING, ErrorKind::Unreachable { reason })
    }

    /// The error of one whose time is up while it waits for a map.
    pub(super) fn late(&self, doing: &'static str) -> Error {
        let state = self.state.lock();
        let kind = state.map_trouble.as_ref().map_or(ErrorKind::TimedOut, |error| {
            ErrorKind::MapUnusable { reason: error.to_string() }
        });
        Error::new(doing, kind)
    }

    /// Does an operation, when it is its turn.
    pub(super) async fn perform(
        &self,
        submit: impl FnOnce(&mut Client, Instant) -> std::result::Result<u64, Box<OsdRequest>>,
    ) -> Result<Box<Completion>> {
        const DOING: &str = "submitting an operation";
        let done = self.perform_if(|client, now| submit(client, now).ok()).await?;
        done.ok_or_else(|| {
            let limit = self.state.lock().client.objecter().max_waiting() as u64;
            Error::too_big(DOING, "operations that wait", limit + 1, limit)
        })
    }

    /// Does an operation, if there is one to be done.
    pub(super) async fn perform_if(
        &self,
        submit: impl FnOnce(&mut Client, Instant) -> Option<u64>,
    ) -> Result<Option<Box<Completion>>> {
        let (tid, receiver) = {
            let mut state = self.state.lock();
            state.check()?;
            let Some(tid) = submit(&mut state.client, Instant::now()) else { return Ok(None) };
            let (sender, receiver) = oneshot::channel();
            state.ops.insert(tid, sender);
            state.wake_pump();
            (tid, receiver)
        };
        let mut waiting = Waiting { engine: self, tid, done: false };
        let completion = receiver.await;
        match completion {
            Ok(completion) => {
                waiting.done = true;
                Ok(Some(completion))
            }
            Err(_) => {
                drop(waiting);
                self.state.lock().check()?;
                Err(Error::new("waiting for an operation", ErrorKind::Cancelled))
            }
        }
    }

    /// Asks the monitors something.
    pub(super) async fn ask(&self, request: Request) -> Result<Answer> {
        const DOING: &str = "asking the monitors";
        let (asking, receiver) = {
            let mut state = self.state.lock();
            state.check()?;
            let tid = state.client.ask(request).map_err(|_| {
                let limit = crate::mon::MAX_PENDING as u64;
                Error::too_big(DOING, "questions to the monitors", limit + 1, limit)
            })?;
            let (sender, receiver) = oneshot::channel();
            state.asked.insert(tid, sender);
            state.wake_pump();
            (Asking { engine: self, tid }, receiver)
        };
        let answer = receiver.await;
        drop(asking);
        match answer {
            Ok(answer) => Ok(answer),
            Err(_) => {
                self.state.lock().check()?;
                Err(Error::new(DOING, ErrorKind::Cancelled))
            }
        }
    }
}

impl State {
    /// Of each monitor that cannot be used while there is no map yet, somebody hears once: the search goes on for long.
    fn lost_monitor(&mut self, addr: SocketAddr, error: Error) {
        let is_new = !self.monitor_trouble.contains_key(&addr);
        if is_new && self.monitor_trouble.len() >= MAX_TROUBLES {
            return;
        }
        if is_new && !self.connected {
            tracing::warn!(monitor = %addr, error = %error.kind(), "no connection to a monitor, retrying");
        }
        self.monitor_trouble.insert(addr, error);
    }

    /// Sessions come and go; that an OSD does not let the client in is said once of each, and to those who wait for it.
    fn lost_osd(&mut self, osd: i32, error: &Error) {
        let few = self.refusing_osds.len() < MAX_TROUBLES;
        if error.is_about_tickets() && few && self.refusing_osds.insert(osd) {
            tracing::warn!(osd, %error, "OSD refused this client, retrying");
        }
    }

    /// It is said again when something else is wrong with it.
    fn map_unusable(&mut self, error: Error) {
        if self.map_trouble.as_ref() != Some(&error) {
            tracing::warn!(%error, "invalid cluster map; requesting another one");
            self.map_trouble = Some(error);
        }
    }

    fn watch_set(&mut self, watch: u64, result: Result<()>) {
        let set = self.watchers.get_mut(&watch).and_then(|watcher| watcher.set.take());
        if let Some(set) = set {
            let _nobody_waits = set.send(result);
        }
    }

    fn watch_lost(&mut self, watch: u64, error: Error) {
        if let Some(watcher) = self.watchers.get_mut(&watch) {
            watcher.lose(error);
        }
    }

    /// Passes something on to who watches.
    fn tell(&mut self, watch: u64, told: Told) {
        if let Some(watcher) = self.watchers.get_mut(&watch) {
            watcher.tell(told);
        }
    }
}
