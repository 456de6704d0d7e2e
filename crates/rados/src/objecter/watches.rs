//! Watches, which outlive sessions and maps, and notifications (ceph: `Objecter::LingerOp`).

use super::admission::ShareId;
use super::event::{Event, Notification};
use super::machine::Objecter;
use super::operation::{Operation, Purpose};
use super::routes::{Sensitivity, Verdict};
use crate::encoding::ObjectLocator;
use crate::error::{Error, ErrorKind, Result};
use crate::osd::{Op, OpFlags, OsdRequest, WatchEvent, WatchNotify, WatchOp, whole_seconds};
use std::time::{Duration, Instant};

/// What an OSD does with silent watchers if they do not say (ceph: option `osd_client_watch_timeout`).
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// A watcher shows itself so often in the time after which it is dropped.
const PINGS: u32 = 3;
/// After this time an acknowledgement is of no use: whoever told has given up waiting.
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// An OSD is told that a watch is over for so long, also if nobody waits for that; by then it has missed its pings.
const UNWATCH_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first operation is on its way.
    Setting,
    /// It is set.
    Set,
    /// It was set, and is being carried over.
    Reconnecting,
}

/// A watch.
#[derive(Debug)]
pub(super) struct Watch {
    /// An operation that is never sent: what it is aimed at is where the watch is.
    aimed: Operation,
    timeout: Duration,
    state: State,
    /// Counts the reconnects.
    generation: u32,
    /// The operation that sets it or carries it over.
    pending: Option<u64>,
    ping: Option<u64>,
    next_ping: Instant,
    /// When the OSD last knew of it for certain.
    confirmed: Instant,
}

impl Watch {
    /// The OSD that it is on.
    pub(super) fn osd(&self) -> Option<i32> {
        self.aimed.aim.osd
    }

    fn interval(&self) -> Duration {
        self.timeout / PINGS
    }

    /// A request about it, with the flags that it was given.
    fn request(&self, op: Op) -> OsdRequest {
        OsdRequest { ops: vec![op], ..self.aimed.request.clone() }
    }
}

/// An object, and the flags of requests about it.
#[derive(Clone, Copy, Debug)]
pub struct Addressed<'a> {
    /// Where it is.
    pub locator: &'a ObjectLocator,
    /// Its name.
    pub object: &'a [u8],
    /// Flags, such as [`OpFlags::FULL_TRY`].
    pub flags: OpFlags,
    /// Whose operations about it are.
    pub share: ShareId,
}

impl Addressed<'_> {
    fn request(&self, op: Op) -> OsdRequest {
        let mut request = OsdRequest::new(self.locator.clone(), self.object, vec![op]);
        request.flags |= self.flags;
        request
    }
}

/// A time as OSDs have it: in whole seconds, and not 0, which stands for a default.
fn rounded(time: Duration) -> Duration {
    Duration::from_secs(whole_seconds(time).max(1).into())
}

impl Objecter {
    /// Watches an object: the watch's number, which notifications carry. [`Event::Watching`] says that it is set,
    /// [`Event::WatchLost`] that it is not, or no more. The OSD drops a watcher that it does not hear of for `timeout`, which
    /// is rounded up to whole seconds. All requests about the watch have the object's flags.
    ///
    /// # Errors
    /// If there are as many watches as may be.
    pub fn watch(
        &mut self,
        now: Instant,
        object: &Addressed<'_>,
        timeout: Option<Duration>,
        deadline: Option<Instant>,
    ) -> Result<u64> {
        if self.watches.len() >= self.config.max_watches {
            let limit = self.config.max_watches as u64;
            return Err(Error::too_big("watching an object", "watches", limit + 1, limit));
        }
        let cookie = self.next_tid();
        let timeout = timeout.map(rounded);
        let op = Op::watch(cookie, WatchOp::Watch, 0, timeout.unwrap_or(Duration::ZERO));
        let request = object.request(op);
        let watch = Watch {
            aimed: Operation::new(request.clone(), Purpose::Watch(cookie), None),
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            state: State::Setting,
            generation: 0,
            pending: Some(cookie),
            ping: None,
            next_ping: now,
            confirmed: now,
        };
        self.watches.insert(cookie, watch);
        self.submit_own(now, request, deadline, Purpose::Watch(cookie));
        Ok(cookie)
    }

    /// Ends a watch: an operation that the OSD is told by; none if there is no such watch. Whoever gives up waiting for its end,
    /// by [`cancel`](Self::cancel) or its deadline, hears no more of it, and the OSD is told all the same.
    pub fn unwatch(&mut self, now: Instant, watch: u64, deadline: Option<Instant>) -> Option<u64> {
        let gone = self.drop_watch(now, watch)?;
        let request = gone.request(Op::watch(watch, WatchOp::Unwatch, 0, Duration::ZERO));
        Some(self.submit_own(now, request, deadline, Purpose::Unwatch))
    }

    /// Nobody waits any more for the end of a watch, of which its OSD is still to hear.
    pub(super) fn unwatch_alone(&mut self, now: Instant, tid: u64) -> Option<OsdRequest> {
        let until = now + UNWATCH_TIMEOUT;
        let op = self.ops.get_mut(&tid).filter(|op| op.purpose == Purpose::Unwatch)?;
        (op.purpose, op.deadline) = (Purpose::UnwatchAlone, Some(until));
        let request = op.request.clone();
        self.ops_wake_at(until);
        Some(request)
    }

    /// How many OSDs have not yet heard of the end of a watch.
    #[must_use]
    pub fn unwatching(&self) -> usize {
        let ends = |op: &Operation| matches!(op.purpose, Purpose::Unwatch | Purpose::UnwatchAlone);
        self.ops.values().filter(|op| ends(op)).count()
    }

    /// For how long the OSD may not have known of a watch: longer than its timeout, and it may have dropped it.
    #[must_use]
    pub fn watch_age(&self, now: Instant, watch: u64) -> Option<Duration> {
        self.watches.get(&watch).map(|watch| now.saturating_duration_since(watch.confirmed))
    }

    /// Answers a notification.
    pub fn acknowledge(&mut self, now: Instant, told: &Notification, payload: &[u8]) {
        let Some(watch) = self.watches.get(&told.watch) else { return };
        let request = watch.request(Op::notify_ack(told.notify_id, told.watch, payload));
        let deadline = Some(now + ACKNOWLEDGE_TIMEOUT);
        self.submit_own(now, request, deadline, Purpose::Acknowledge);
    }

    /// Tells all watchers of an object, and waits for their answers at most for `timeout`, rounded up to whole seconds. It
    /// ends as any operation; the data of the one result is what `notify` of Ceph gives: the answers, then those who did
    /// not answer.
    ///
    /// # Errors
    /// If as much is in flight as may be.
    pub fn notify(
        &mut self,
        now: Instant,
        object: &Addressed<'_>,
        payload: &[u8],
        timeout: Duration,
        deadline: Option<Instant>,
    ) -> std::result::Result<u64, Box<OsdRequest>> {
        let op = Op::notify(self.next_tid(), payload, rounded(timeout));
        let request = object.request(op);
        self.submit_as(now, object.share, request, deadline, Purpose::Notify(None))
    }

    /// Takes a watch out, with what is on its way for it.
    fn drop_watch(&mut self, now: Instant, cookie: u64) -> Option<Watch> {
        let watch = self.watches.remove(&cookie)?;
        for tid in [watch.pending, watch.ping].into_iter().flatten() {
            self.remove(now, tid);
        }
        Some(watch)
    }

    fn lose_watch(&mut self, now: Instant, cookie: u64, error: Error) {
        let Some(watch) = self.drop_watch(now, cookie) else { return };
        let error = match *error.kind() {
            ErrorKind::Osd { errno } if watch.state != State::Setting => {
                let kind = ErrorKind::WatchLost { errno };
                Error::new("watching an object", kind).at(self.place(&watch.aimed.request))
            }
            _ if error.place().is_some() => error,
            _ => error.at(self.place(&watch.aimed.request)),
        };
        self.events.push_back(Event::WatchLost(cookie, error));
    }

    /// All watches are gone, as the cluster refuses them.
    pub(super) fn lose_watches(&mut self, now: Instant, errno: i32) {
        let cookies: Vec<_> = self.watches.keys().copied().collect();
        for cookie in cookies {
            let Some(watch) = self.watches.get(&cookie) else { continue };
            let error = self.refusal(&watch.aimed.request, errno);
            self.lose_watch(now, cookie, error);
        }
    }

    /// An operation of this side's own ended.
    pub(super) fn own_ended(&mut self, now: Instant, purpose: Purpose, result: Result<()>) {
        match (purpose, result) {
            (Purpose::Watch(cookie) | Purpose::Reconnect(cookie), Ok(())) => {
                let Some(watch) = self.watches.get_mut(&cookie) else { return };
                watch.pending = None;
                watch.confirmed = now;
                watch.next_ping = now + watch.interval();
                let next_ping = watch.next_ping;
                let before = std::mem::replace(&mut watch.state, State::Set);
                self.routes.aim(&mut watch.aimed, Sensitivity::Interval);
                self.wake_at(next_ping);
                self.events.push_back(if before == State::Setting {
                    Event::Watching(cookie)
                } else {
                    Event::WatchMissed(cookie)
                });
            }
            (Purpose::Ping(cookie, asked), Ok(())) => {
                if let Some(watch) = self.watches.get_mut(&cookie) {
                    watch.ping = None;
                    watch.confirmed = watch.confirmed.max(asked);
                }
            }
            (
                Purpose::Watch(cookie) | Purpose::Reconnect(cookie) | Purpose::Ping(cookie, _),
                Err(error),
            ) => self.lose_watch(now, cookie, error),
            (
                Purpose::Acknowledge
                | Purpose::Unwatch
                | Purpose::UnwatchAlone
                | Purpose::Caller
                | Purpose::Notify(_),
                _,
            ) => {}
        }
    }

    /// The watches on an OSD lost their session.
    pub(super) fn carry_watches_over(&mut self, now: Instant, osd: i32) {
        let on = |(_, watch): &(&u64, &Watch)| watch.osd() == Some(osd);
        let cookies: Vec<_> = self.watches.iter().filter(on).map(|(&cookie, _)| cookie).collect();
        for cookie in cookies {
            self.reconnect(now, cookie);
        }
    }

    /// Carries a watch over. One that is on its way is sent again as any operation.
    fn reconnect(&mut self, now: Instant, cookie: u64) {
        let tid = self.next_tid();
        let Some(watch) = self.watches.get_mut(&cookie) else { return };
        if watch.pending.is_some() {
            return;
        }
        watch.state = State::Reconnecting;
        self.events.push_back(Event::WatchMissed(cookie));
        watch.generation = watch.generation.wrapping_add(1);
        let op = Op::watch(cookie, WatchOp::Reconnect, watch.generation, watch.timeout);
        let request = watch.request(op);
        watch.pending = Some(tid);
        let ping = watch.ping.take();
        self.submit_own(now, request, None, Purpose::Reconnect(cookie));
        if let Some(ping) = ping {
            self.remove(now, ping);
        }
    }

    /// The operation that sets a watch or carries it over has another number.
    pub(super) fn renumbered(&mut self, cookie: u64, tid: u64) {
        if let Some(watch) = self.watches.get_mut(&cookie) {
            watch.pending = Some(tid);
        }
    }

    /// Looks where watches are by a new map.
    pub(super) fn aim_watches(&mut self, now: Instant, again: bool) {
        let cookies: Vec<_> = self.watches.keys().copied().collect();
        for cookie in cookies {
            let Some(watch) = self.watches.get_mut(&cookie) else { continue };
            match self.routes.aim(&mut watch.aimed, Sensitivity::Interval) {
                Verdict::Send => self.reconnect(now, cookie),
                Verdict::Keep if again => self.reconnect(now, cookie),
                // One that is on its way waits for the pool as any operation.
                Verdict::NoPool if watch.pending.is_none() => {
                    let error = Error::new("watching an object", ErrorKind::NoPool);
                    self.lose_watch(now, cookie, error);
                }
                Verdict::Keep | Verdict::NoPool => {}
            }
        }
    }

    /// Shows OSDs that the watchers live.
    pub(super) fn expire_watches(&mut self, now: Instant) {
        let due = |(_, watch): &(&u64, &Watch)| watch.state == State::Set && watch.next_ping <= now;
        let cookies: Vec<_> = self.watches.iter().filter(due).map(|(&cookie, _)| cookie).collect();
        for cookie in cookies {
            let tid = self.next_tid();
            let Some(watch) = self.watches.get_mut(&cookie) else { continue };
            watch.next_ping = now + watch.interval();
            if watch.ping.is_some() {
                continue;
            }
            watch.ping = Some(tid);
            let op = Op::watch(cookie, WatchOp::Ping, watch.generation, Duration::ZERO);
            let request = watch.request(op);
            self.submit_own(now, request, None, Purpose::Ping(cookie, now));
        }
        let set = self.watches.values().filter(|watch| watch.state == State::Set);
        if let Some(next) = set.map(|watch| watch.next_ping).min() {
            self.wake_at(next);
        }
    }

    pub(super) fn take_watch_event(&mut self, now: Instant, osd: i32, told: WatchNotify) {
        let watch = told.cookie;
        let Some(known) = self.watches.get(&watch).filter(|known| known.osd() == Some(osd)) else {
            return;
        };
        if told.event == WatchEvent::Disconnect {
            const ENOTCONN: i32 = 107;
            let error = self.refusal(&known.aimed.request, ENOTCONN);
            self.lose_watch(now, watch, error);
            return;
        }
        let WatchNotify { notify_id, notifier, payload, .. } = told;
        let told = Notification { watch, notify_id, notifier, payload };
        self.events.push_back(Event::Notified(told));
    }
}
