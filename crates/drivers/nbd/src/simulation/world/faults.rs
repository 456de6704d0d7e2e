//! What happens to servers, the network and the process.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::advance;

use super::super::dice::Dice;
use super::super::server::End;
use super::{FAULTY, Trouble, World};

/// Steps of a rest, at most: longer than a server that ends waits for a flush.
const REST: usize = 1000;

impl World {
    /// A server dies, which is heard of late, or the disk moves.
    pub(super) fn fault_of_servers(&mut self) {
        let now = self.now();
        let server = self.dice.below(self.servers.len());
        let open = self.sessions.iter_mut().filter(|session| session.open);
        if self.trouble == Trouble::Order {
            return self.fault_in_order(server);
        }
        // Whose restarts are trusted have none: all that was flushed is there, however often the disk moved, and whatever
        // connection has ended.
        match self.dice.below(12) {
            0 if !self.trusting => self.restart(server),
            1..4 => self.move_to(server),
            4 => self.servers[server].frozen_until = now + Duration::from_millis(300),
            5 => open
                .for_each(|session| session.wire.parted_until = now + Duration::from_millis(400)),
            _ => {
                let open: Vec<_> = open.collect();
                let at = self.dice.below(open.len());
                if let Some(session) = open.into_iter().nth(at) {
                    match self.dice.below(4) {
                        0 => session.close(now),
                        _ => {
                            session.wire.parted_until =
                                now + Duration::from_millis(self.dice.below(1500) as u64);
                        }
                    }
                }
            }
        }
    }

    /// A server ends in order, or stands still for a moment, or the disk moves.
    fn fault_in_order(&mut self, server: usize) {
        let now = self.now();
        let is_up = self.servers[server].end == End::None;
        match self.dice.below(6) {
            0 | 1 => self.move_to(server),
            2 => self.servers[server].frozen_until = now + Duration::from_millis(300),
            3 | 4 if is_up => {
                self.outcome.ends += 1;
                self.servers[server].end = End::Draining;
                // It gives them a grace, in which the network lets them hear of it.
                for session in self.sessions.iter_mut().filter(|it| it.server == server) {
                    session.wire.parted_until = now;
                    session.drain(now);
                }
            }
            _ => {
                let up = |session: &&mut super::Session| {
                    session.open && self.servers[session.server].end == End::None
                };
                let mut open: Vec<_> = self.sessions.iter_mut().filter(up).collect();
                let at = self.dice.below(open.len());
                if let Some(session) = open.get_mut(at) {
                    // A server gives its clients longer.
                    let pause = Duration::from_millis(self.dice.below(700) as u64);
                    session.wire.parted_until = now + pause;
                }
            }
        }
    }

    /// Nobody asks for anything, mostly while a server ends.
    pub(super) async fn rest(&mut self) -> Result<(), String> {
        (0..4).for_each(|_| self.fault_of_servers());
        for _ in 0..self.dice.below(REST) {
            self.step(FAULTY).await?;
        }
        Ok(())
    }

    pub(super) async fn fault(&mut self) {
        let now = self.now();
        let at = now + Duration::from_millis(self.dice.below(40) as u64);
        let later = |dice: &mut Dice, most_ms: usize| {
            now + Duration::from_millis(dice.below(most_ms) as u64)
        };
        let server = self.dice.below(self.servers.len());
        let open: Vec<usize> =
            (0..self.sessions.len()).filter(|at| self.sessions[*at].open).collect();
        let Some(&one) = open.get(self.dice.below(open.len())) else { return };
        let until = later(&mut self.dice, 3000);
        match self.dice.below(20) {
            // Replies are lost, and the client hears nothing any more; what it sent still gets there.
            0 | 1 | 15..18 => self.sessions[one].wire.deafen(),
            // Nothing gets through, either way, for a while.
            2 | 3 => self.sessions[one].wire.parted_until = later(&mut self.dice, 9000),
            4 => self.sessions[one].wire.stalled_until = until,
            5 => self.sessions[one].close(at),
            6 => self.sessions[one].babble(now, &mut self.dice),
            7 => self.restart(server),
            8 => self.servers[server].frozen_until = until,
            9 => self.refusing_until = until,
            10 => self.late_until = until,
            11 | 12 => self.move_to(server),
            13 | 18 | 19 => self.break_one(),
            _ => self.pause().await,
        }
    }

    /// A server is killed and started again. That its connections have ended is heard of at any time later.
    pub(super) fn restart(&mut self, server: usize) {
        let (now, longest) = (self.now(), [40, 2000][self.dice.below(2)]);
        for session in self.sessions.iter_mut().filter(|session| session.server == server) {
            session.close(now + Duration::from_millis(self.dice.below(longest) as u64));
        }
        let lost = self.storage.restart(server);
        self.outcome.lost += lost.len() as u64;
        self.history.power_cut(now, &lost);
    }

    pub(super) fn move_to(&mut self, server: usize) {
        self.outcome.moves += 1;
        let uri = format!("nbd+unix:///x?socket={}", self.servers[server].name);
        let nbd = Arc::clone(&self.nbd);
        tokio::spawn(async move {
            // Where that does not work, all stays as it was.
            let _ = nbd.reconfigure(uri.parse().unwrap()).await;
        });
    }

    /// The network gives a connection up.
    pub(super) fn break_one(&mut self) {
        let at = self.dice.below(self.queues);
        if let Some(handle) = self.nbd.inner.handles().nth(at) {
            handle.with(|hctx| {
                if let Some(id) = hctx.queue.live().map(|conn| conn.id) {
                    hctx.lost(id, Some(io::ErrorKind::TimedOut.into()));
                }
            });
        }
    }

    /// The network gives up what it has heard nothing on: all that are waited for, as others have answered by now.
    pub(super) fn give_up_the_deaf(&self) {
        for handle in self.nbd.inner.handles() {
            handle.with(|hctx| {
                let live = hctx.queue.live().map(|conn| conn.id);
                let ids: Vec<_> = hctx.queue.conns.iter().map(|conn| conn.id).collect();
                for id in ids.into_iter().filter(|id| Some(*id) != live) {
                    hctx.lost(id, Some(io::ErrorKind::TimedOut.into()));
                }
            });
        }
    }

    /// The process is stopped, or its machine is; the rest of the world goes on.
    pub(super) async fn pause(&mut self) {
        self.outcome.pauses += 1;
        let longest = [1_000, 10_000, 300_000][self.dice.below(3)];
        let pause = Duration::from_millis(self.dice.below(longest) as u64);
        let (before, mut gone) = (self.now(), Duration::ZERO);
        while gone < pause {
            gone += if gone < Duration::from_secs(12) {
                Duration::from_millis(50)
            } else {
                Duration::from_secs(5)
            };
            self.pump(before + gone.min(pause), FAULTY);
        }
        advance(pause).await;
    }
}
