//! Before a stream to an OSD carries anything, the monitors say which map is the newest, and that is used.
//!
//! A client that was away may have been kept out meanwhile, and have been forgotten since: its OSDs would do what it sends. The
//! maps of that time tell (`fence.rs`), and have to be here first. The monitors are asked while the stream is opened, so that
//! it mostly costs no time.

use super::machine::{Objecter, earlier};
use super::session::{CONNECT_TIMEOUT, KEEPALIVE};
use std::time::{Duration, Instant};

/// Without an answer for so long it goes on by the map that there is: without a quorum nobody is kept out, and OSDs work on. In
/// this time a monitor is found by one who was away.
const LIMIT: Duration = Duration::from_secs(60);
/// The first stream has waited for a minute; when it was opened, somewhat later than it was asked for, the time began anew.
const WAITED: Duration = LIMIT.saturating_sub(CONNECT_TIMEOUT);
/// Whoever has heard nothing of OSDs for this time may have been away.
const AWAY: Duration = KEEPALIVE.interval.saturating_mul(3);
/// Whoever had the newest map in this time is not forgotten yet if he was kept out since: OSDs do nothing of what he sends.
const REMEMBERED: Duration = Duration::from_secs(1800);

/// What is known of the map since a stream was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmation {
    /// The monitors are to be asked: a question that is out may be older than the stream.
    Due(Instant),
    /// They were asked.
    Asked(Instant),
    /// There is a newer map, of this epoch or a later one: there is a quorum, and nothing is sent without that map.
    Newer(u32),
    /// The newest one is in use, or nobody says which it is.
    Done,
}

impl Confirmation {
    /// When it is taken as given.
    pub(super) const fn until(self) -> Option<Instant> {
        match self {
            Self::Due(until) | Self::Asked(until) => Some(until),
            Self::Newer(_) | Self::Done => None,
        }
    }
}

impl Objecter {
    /// A stream to an OSD was asked for.
    pub(super) fn confirm(&mut self, now: Instant, osd: i32) {
        let has_waited = self.has_waited(now);
        if let Some(session) = self.sessions.get_mut(&osd) {
            // What is in flight may be old where an OSD could not be reached.
            if has_waited && session.trouble.is_none() {
                session.confirmation = Confirmation::Done;
                return;
            }
            session.confirmation = Confirmation::Due(now + LIMIT);
            earlier(&mut self.wake, now + LIMIT);
        }
        self.ask_for_newest(now);
    }

    /// Whether the monitors have not answered for so long already, and this client was there all the time, as far as it can
    /// know: an outage of the monitors is waited for once, and not for each stream.
    fn has_waited(&self, now: Instant) -> bool {
        let age = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        age(self.unanswered).is_some_and(|age| age >= WAITED)
            && age(self.heard_of_osds).is_some_and(|age| age < AWAY)
            && age(self.known.last()).is_some_and(|age| age < REMEMBERED)
            && self.known.missing(self.looked_at).is_none()
    }

    /// The client may have been away: monitors have the whole time for an answer from now on.
    pub(super) const fn wait_anew(&mut self, now: Instant) {
        if self.unanswered.is_some() {
            self.unanswered = Some(now);
        }
    }

    /// Something has come of an OSD.
    pub(super) fn heard_of_osd(&mut self, now: Instant) {
        let before = self.heard_of_osds.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) >= AWAY) {
            self.wait_anew(now);
        }
    }

    /// Asks which epoch is the newest, unless that was asked, and not answered.
    pub(super) fn ask_for_newest(&mut self, now: Instant) {
        if self.unanswered.is_some() {
            return;
        }
        self.unanswered = Some(now);
        self.events.push_back(super::Event::WantNewest);
        for session in self.sessions.values_mut() {
            if let Confirmation::Due(until) = session.confirmation {
                session.confirmation = Confirmation::Asked(until);
            }
        }
    }

    /// The monitors have said which epoch is the newest: whether some stream waits for it.
    pub(super) fn newest_is(&mut self, now: Instant, epoch: u32) -> bool {
        let mut waits = false;
        let mut is_due = false;
        for session in self.sessions.values_mut() {
            match session.confirmation {
                Confirmation::Asked(_) => {
                    session.confirmation = Confirmation::Newer(epoch);
                    waits = true;
                }
                Confirmation::Due(_) => is_due = true,
                Confirmation::Newer(_) | Confirmation::Done => {}
            }
        }
        if is_due {
            self.ask_for_newest(now);
        }
        waits
    }

    /// Sends what waited for the map that is in use now, and in which the client was looked for.
    pub(super) fn go_on_by_map(&mut self) {
        let known = self.looked_at;
        let osds: Vec<_> = self.sessions.keys().copied().collect();
        for osd in osds {
            let Some(session) = self.sessions.get_mut(&osd) else { continue };
            if matches!(session.confirmation, Confirmation::Newer(epoch) if epoch <= known) {
                session.confirmation = Confirmation::Done;
                self.send_unsent(osd);
            }
        }
    }

    /// Goes on without an answer, if it is time.
    pub(super) fn expire_confirmation(&mut self, now: Instant, osd: i32) {
        let missing = self.known.missing(self.looked_at);
        let Some(session) = self.sessions.get_mut(&osd) else { return };
        if session.confirmation.until().is_some_and(|until| until <= now) {
            // An answer may be late as it comes behind the maps that an earlier one has named.
            session.confirmation = missing.map_or(Confirmation::Done, Confirmation::Newer);
            self.send_unsent(osd);
        }
    }
}
