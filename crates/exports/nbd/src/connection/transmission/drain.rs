//! The end of a connection whose server ends, or whose export is taken away.
//!
//! A client that has written and not flushed is served on until it has. It is told nothing meanwhile: an error would be its
//! user's, where one that only sees the connection end may ask for the same again by another. So most clients do; they are let
//! go as soon as nothing of theirs is under way or to be flushed, and in the end whatever is to be flushed, which is done for
//! them. Who counts that as lost when the connection ends has [said so](blockyard_nbd::wire::HEARS_SHUTDOWN): only such a
//! client is refused what it asks for when it has not flushed in time, so that it hears of the end, and has a moment to flush.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Transmission;
use crate::connection::LINGER;
use crate::flushes::CROSSING;
use crate::server::Stage;

/// How long the answer to a last flush may take on its way, however little of it a client takes at a time.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How far the end of a connection has come.
#[derive(Debug)]
pub(super) struct Drain {
    /// That of the server, or of the client, when it was looked at last.
    pub(super) stage: Stage,
    /// Until when the client is served whatever it asks for. Activity does not move it: who is always busy would never end.
    served_until: Option<Instant>,
    /// Requests of the client so far when its end began.
    asked_before: u64,
    /// When a client that was refused is let go, once there is nothing else to wait for.
    let_go_at: Option<Instant>,
    /// Something was not flushed when this was looked at last.
    is_unflushed: bool,
    /// When to look again.
    pub(super) look_at: Option<Instant>,
    /// The answer to its last flush is on its way.
    answer: Option<LastAnswer>,
}

/// What the client has taken since its disk has done with its last flush.
#[derive(Debug)]
struct LastAnswer {
    /// Until when it is waited for, whatever it takes.
    limit: Instant,
    /// Bytes that were sent, and until when it is waited for if there will be no more.
    sent: u64,
    until: Instant,
}

impl LastAnswer {
    fn new(now: Instant, sent: u64) -> Self {
        Self { limit: now + ANSWER_LIMIT, sent, until: now + LINGER }
    }

    /// So many bytes were sent.
    fn note(&mut self, now: Instant, sent: u64) {
        if sent != self.sent {
            (self.sent, self.until) = (sent, (now + LINGER).min(self.limit));
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        let (served_until, let_go_at, look_at, answer) = (None, None, None, None);
        let (stage, asked_before, is_unflushed) = (Stage::Serving, 0, false);
        Self { stage, served_until, asked_before, let_go_at, is_unflushed, look_at, answer }
    }
}

impl Transmission<'_> {
    /// The server ends: sees whether the client is let go, or what it is given time for.
    pub(super) fn drain(&mut self) {
        let (now, grace) = (Instant::now(), self.registration.client.flush_grace());
        self.connection.shut_down();
        self.bios.unflushed.note(now.into_std());
        let may_flush = self.gone.is_none() && !grace.is_zero();
        let is_unflushed = may_flush && self.bios.unflushed.is_any();
        // Others do not flush by themselves.
        let crossed = self.bios.unflushed.may_have_crossed_until();
        let crossed = crossed.filter(|_| may_flush && self.hears_shutdown).map(Instant::from_std);
        let crossed = crossed.filter(|until| now < *until);
        let asked = self.registration.client.requests.load(Ordering::Relaxed);
        if self.drain.served_until.is_none() {
            self.drain.asked_before = asked;
        }
        let served_until = *self.drain.served_until.get_or_insert(now + grace);
        let has_asked = asked > self.drain.asked_before || self.connection.has_refused();
        let limit = if now < served_until {
            served_until
        } else if self.hears_shutdown && (is_unflushed && has_asked || crossed.is_some()) {
            self.refuse(now)
        } else {
            if !grace.is_zero() {
                // What it asks for now it may ask for elsewhere.
                self.farewell = 0;
            }
            now
        };
        let waits_until = if is_unflushed { Some(limit) } else { crossed.map(|at| at.min(limit)) };
        self.drain.is_unflushed = is_unflushed;
        self.drain.look_at = waits_until.filter(|until| now < *until);
        self.connection.set_awaits_flush(self.drain.look_at.is_some());
    }

    /// The client has had its time, and may have something to flush. Says until when it is waited for nevertheless.
    fn refuse(&mut self, now: Instant) -> Instant {
        self.connection.refuse_requests();
        if !self.connection.is_quiet() {
            // It counts from when there is nothing else to wait for.
            self.drain.let_go_at = None;
        }
        *self.drain.let_go_at.get_or_insert(now + CROSSING)
    }

    /// Whether the flush that the end waits for has come, by whatever connection.
    pub(super) fn has_been_flushed(&self) -> bool {
        self.drain.is_unflushed && !self.bios.unflushed.is_any()
    }

    /// Whether the disk has a flush of the client's, or its answer is on its way: then the client waits for that, and the disk
    /// is waited for in any case. Whoever cuts the others off knows of it then. A client that takes nothing of the answer keeps
    /// nobody from the disk.
    pub(super) fn awaits_last_flush(&mut self) -> bool {
        let is_last = self.registration.client.awaits_last_flush();
        let is_at_disk = self.bios.unflushed.is_flush_out();
        if is_at_disk {
            self.drain.answer = None;
        }
        let awaits = self.gone.is_none() && (is_at_disk || is_last && self.takes_last_answer());
        if awaits && !is_last {
            self.registration.client.set_awaits_last_flush();
            self.registration.server.tell_left();
        }
        awaits
    }

    /// Whether there is an answer for the client, and time for it.
    fn takes_last_answer(&mut self) -> bool {
        if !self.connection.wants_transmit() {
            return false;
        }
        let (now, sent) = (Instant::now(), self.wire.bytes_sent());
        let answer = self.drain.answer.get_or_insert_with(|| LastAnswer::new(now, sent));
        answer.note(now, sent);
        now < answer.until
    }

    /// Whether the answer to its last flush was waited for, and it has it.
    pub(super) fn has_last_answer(&self) -> bool {
        self.registration.client.awaits_last_flush()
            && !self.bios.unflushed.is_flush_out()
            && !self.connection.wants_transmit()
    }

    /// All others are cut off: nothing more is heard of the client, and it goes when it has its answer.
    pub(super) fn drain_last_flush(&mut self) {
        self.connection.shut_down();
        self.farewell = 0;
        self.drain.look_at = self.drain.answer.as_ref().map(|answer| answer.until);
        self.drain.is_unflushed = false;
        self.connection.set_awaits_flush(false);
    }
}
