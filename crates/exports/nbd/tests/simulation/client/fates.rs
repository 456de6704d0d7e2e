//! What becomes of clients.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use blockyard_nbd::server::PRESSED_TIMEOUT;
use blockyard_nbd::wire::Command;
use socket2::SockRef;

use super::{Client, LATE, On, PROGRESS, STALL, TRICKLE};

/// Writes before the goodbye of one that quits.
const LAST_WRITES: u64 = 40;

/// How a client behaves once it has its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does what it should, at its own pace.
    Good,
    /// It hangs up in the middle of something.
    Dies,
    /// It stops receiving.
    Deaf,
    /// It stops receiving, and sends a byte of a request now and then.
    Trickles,
    /// It stops in the middle of a request, and takes a little of a reply now and then.
    Sips,
    /// It stops in the middle of a message.
    Halts,
    /// It sends what is no request.
    Babbles,
    /// It writes, says goodbye and hangs up, and takes no answer.
    Quits,
}

impl Client {
    /// Whether the server's end of the socket is closed: seen without receiving.
    pub(super) fn is_hung_up_on(&self) -> bool {
        SockRef::from(&self.stream)
            .send(&[])
            .is_err_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whoever behaves, and has a disk that answers, is not kept waiting by those who do not.
    pub(super) fn check_progress(&mut self, now: Instant, moved: bool) {
        let waits = !self.asked.is_empty() && self.send_at.is_none() && self.receive_at.is_none();
        if moved || !waits || self.fate != Fate::Good || self.on != On::Ram || !self.is_roomy {
            self.waits_since = None;
            return;
        }
        let since = *self.waits_since.get_or_insert(now);
        if now - since > PROGRESS {
            self.end(Err(format!("kept waiting for {:?}: {self:?}", now - since)));
        }
    }

    /// Its fate; says whether it begins now.
    pub(super) fn come_true(&mut self, now: Instant) -> bool {
        match self.fate {
            Fate::Good => return false,
            Fate::Dies => {
                // In the middle of whatever it is.
                return self.rng.one_in(8) && self.end(Ok(()));
            }
            Fate::Deaf => {
                (0..8).for_each(|_| self.enqueue_long_read());
            }
            // When it has nothing else under way.
            Fate::Halts | Fate::Babbles | Fate::Trickles | Fate::Sips | Fate::Quits
                if !self.asked.is_empty() || !self.output.is_empty() =>
            {
                return false;
            }
            Fate::Trickles => {
                (0..2).for_each(|_| self.enqueue_long_read());
                self.halts_at = self.output.len();
                let write = self.request(Command::Write, 0, 4096);
                self.output.extend_from_slice(&write.encode(self.style).unwrap());
                self.output.extend_from_slice(&[1; 4000]);
            }
            Fate::Sips => {
                self.enqueue_long_read();
                let write = self.request(Command::Write, 0, 4096);
                let bytes = [&write.encode(self.style).unwrap()[..], &[1; 4096]].concat();
                let cut = self.rng.pick(&[1, 27, 33, 4000]);
                self.output.extend_from_slice(&bytes[..cut]);
            }
            Fate::Halts => {
                let write = self.request(Command::Write, 0, 256 << 10);
                let bytes = [&write.encode(self.style).unwrap()[..], &[1; 256 << 10]].concat();
                let cut = self.rng.pick(&[1, 27, 31, 33, 5000, 100_000, 262_143]);
                self.output.extend_from_slice(&bytes[..cut]);
            }
            Fate::Quits => self.quit(),
            Fate::Babbles => self.output.extend_from_slice(&[0x5a; 3000]),
        }
        self.left = 0;
        self.send_at = None;
        self.halted = Some(now);
        true
    }

    /// More than there is room for at a time, and reads among it that nobody wants the answers of.
    fn quit(&mut self) {
        for at in 0..LAST_WRITES {
            let length = self.rng.pick(&[512, 4096, 65_536]);
            let write = self.request(Command::Write, at * 65_536, length);
            let payload: Vec<u8> =
                (0..length / 8).flat_map(|_| self.rng.next().to_be_bytes()).collect();
            let place = (at * 65_536) as usize..(at * 65_536 + length) as usize;
            self.bytes[place].copy_from_slice(&payload);
            let read = self.request(Command::Read, at * 65_536, 65_536);
            for (request, payload) in [(write, &payload[..]), (read, &[])] {
                self.output.extend_from_slice(&request.encode(self.style).unwrap());
                self.output.extend_from_slice(payload);
            }
        }
        let goodbye = self.goodbye();
        self.output.extend_from_slice(&goodbye.encode(self.style).unwrap());
    }

    /// A byte, and another one much later.
    pub(super) fn trickle(&mut self, now: Instant) -> bool {
        if self.send_at.is_some_and(|at| at > now) {
            return false;
        }
        self.send_at = Some(now + TRICKLE);
        if let Ok(1) = self.stream.write(&self.output[..self.output.len().min(1)]) {
            self.output.remove(0);
        }
        true
    }

    /// The server has hung up.
    pub(super) fn closed(&mut self, now: Instant, how: &str) -> bool {
        let after = self.halted.map(|since| now - since);
        self.is_removed = self.leaves();
        let outcome = match (self.fate, after) {
            _ if self.is_removed => Ok(()),
            // It had said goodbye.
            (Fate::Quits, Some(_)) if self.output.is_empty() => Ok(()),
            (Fate::Babbles, Some(_)) => Ok(()),
            // Sooner, where others wait for its memory.
            (Fate::Deaf | Fate::Trickles, Some(after)) if after <= self.patience() => Ok(()),
            (Fate::Halts | Fate::Sips, Some(after))
                if after >= STALL.min(PRESSED_TIMEOUT) && after <= self.patience() =>
            {
                Ok(())
            }
            (_, after) => Err(format!("{how} after {after:?}")),
        };
        self.end(outcome)
    }

    /// How long one that halts may live: a piece of its message may be at the disk meanwhile, or what it does not take the
    /// answer to.
    pub(super) fn patience(&self) -> Duration {
        // Its request may wait for memory that a disk has which hangs.
        let longest = if self.is_roomy { self.on.longest() } else { On::Hung.longest() };
        STALL + LATE + TRICKLE + longest
    }

    /// A good client leaves when it has all; one that halts has to be hung up on.
    pub(super) fn check_end(&mut self, now: Instant) -> bool {
        if self.fate == Fate::Quits && self.halted.is_some() {
            return self.output.is_empty() && self.end(Ok(()));
        }
        if let Some(since) = self.halted {
            let longest = self.patience() + STALL;
            return now - since > longest && self.end(Err(format!("nobody hangs up: {self:?}")));
        }
        let all = self.left == 0 && self.asked.is_empty() && self.output.is_empty();
        if !all || self.handshake.is_some() {
            return false;
        }
        if self.rng.one_in(2) {
            let goodbye = self.goodbye();
            let _ = self.stream.write(&goodbye.encode(self.style).unwrap());
        }
        self.end(Ok(()))
    }
}
