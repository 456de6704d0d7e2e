//! The end of a connection whose server ends, or whose export is taken away.
//!
//! A client that has written and not flushed is served on until it has, as most count what it has written as lost when the
//! connection ends before. It is told nothing meanwhile: an error would be its user's, where one that only sees the connection
//! end may ask for the same again by another. Only who has not flushed in time is refused what it asks for, so that it hears of
//! the end, and has a moment to flush.

use tokio::time::Instant;

use super::Transmission;
use crate::flushes::CROSSING;

/// How far the end of a connection has come.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// Until when the client is served whatever it asks for. Activity does not move it: who is always busy would never end.
    served_until: Option<Instant>,
    /// When a client that was refused is let go, once there is nothing else to wait for.
    let_go_at: Option<Instant>,
    /// Something was not flushed when this was looked at last.
    is_unflushed: bool,
    /// When to look again.
    pub(super) look_at: Option<Instant>,
}

impl Transmission<'_> {
    /// The server ends: sees whether the client is let go, or what it is given time for.
    pub(super) fn drain(&mut self) {
        let (now, grace) = (Instant::now(), self.registration.client.flush_grace());
        self.connection.shut_down();
        self.bios.unflushed.note(now.into_std());
        let may_flush = self.gone.is_none() && !grace.is_zero();
        let is_unflushed = may_flush && self.bios.unflushed.is_any();
        let crossed = self.bios.unflushed.may_have_crossed_until().filter(|_| may_flush);
        let crossed = crossed.map(Instant::from_std).filter(|until| now < *until);
        let served_until = *self.drain.served_until.get_or_insert(now + grace);
        let limit = if now < served_until {
            served_until
        } else if is_unflushed || crossed.is_some() {
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
}
