//! An export that comes and goes while its clients are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::Disk;
use blockyard_export_nbd::Server;
use tokio::task::JoinHandle;

use super::client::On;
use super::export;
use super::rng::Rng;

/// How often it comes back.
const RETURNS: u32 = 3;

/// The export that comes and goes.
pub struct Passing {
    server: Arc<Server>,
    disk: Arc<Disk>,
    state: State,
    /// Told to the clients that it has now.
    leaves: Arc<AtomicBool>,
    returns: u32,
    rng: Rng,
}

enum State {
    ThereUntil(Instant),
    Going(JoinHandle<Option<usize>>),
    GoneUntil(Instant),
    Over,
}

impl Passing {
    /// It is there at `now`.
    pub fn new(server: &Arc<Server>, disk: &Arc<Disk>, mut rng: Rng, now: Instant) -> Self {
        let (server, disk) = (Arc::clone(server), Arc::clone(disk));
        let state = State::ThereUntil(now + Duration::from_secs(1 + rng.below(1500)));
        Self { server, disk, state, leaves: Arc::default(), returns: RETURNS, rng }
    }

    /// The server ends: it does not come back.
    pub fn end(&mut self) {
        self.leaves.store(true, Ordering::Relaxed);
        self.returns = 0;
        if let State::ThereUntil(_) = self.state {
            self.state = State::Over;
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Set as soon as its clients are asked to leave.
    pub fn leaves(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.leaves)
    }

    pub fn wakes(&self) -> Option<Instant> {
        match self.state {
            State::ThereUntil(at) | State::GoneUntil(at) => Some(at),
            State::Going(_) | State::Over => None,
        }
    }

    /// Goes, or comes. Says whether it is there anew.
    pub async fn step(&mut self, now: Instant) -> bool {
        match &mut self.state {
            State::ThereUntil(at) if *at <= now => {
                self.leaves.store(true, Ordering::Relaxed);
                let server = Arc::clone(&self.server);
                let grace = Duration::from_secs(self.rng.below(900));
                let removal = async move {
                    let removed = server.remove_export(On::Passing.export(), grace).await;
                    removed.map(|removed| server.in_flight_of(removed))
                };
                self.state = State::Going(tokio::spawn(removal));
            }
            State::Going(removal) if removal.is_finished() => {
                let left = removal.await.unwrap();
                assert!(left.is_some(), "it was there");
                // Whoever has none of its requests at the disk has let go of that.
                assert!(left != Some(0) || self.disk.openers() == 0, "{:?}", self.server.clients());
                self.state = State::GoneUntil(now + Duration::from_secs(self.rng.below(900)));
            }
            State::GoneUntil(at) if *at <= now && self.returns == 0 => self.state = State::Over,
            State::GoneUntil(at) if *at <= now => {
                self.returns -= 1;
                self.leaves = Arc::default();
                self.server.add_export(export(On::Passing.export(), &self.disk)).unwrap();
                let stay = Duration::from_secs(1 + self.rng.below(1500));
                self.state = State::ThereUntil(now + stay);
                return true;
            }
            _ => {}
        }
        false
    }
}
