//! A client with a fate, and with a model of what it must be answered.

#[path = "client/fates.rs"]
mod fates;
#[path = "client/requests.rs"]
mod requests;

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blockyard_nbd::client::{Config, Expected, Handshake, TlsMode};
use blockyard_nbd::wire::{ErrorCode, HeaderStyle, Request};

use super::REGION;
use super::late;
use super::rng::Rng;
use fates::Fate;

/// Requests of a client.
const REQUESTS: u64 = 30;
/// Bytes that are received at a time.
const GULP: usize = 128 << 10;
/// The server's time for a message that stands still, and how late it may notice.
pub const STALL: Duration = Duration::from_secs(60);
const LATE: Duration = Duration::from_secs(20);

/// The longest that a client of the disk in memory may be kept waiting: others on its own export are in its way until they are
/// hung up on, one after the other, and nobody else is.
const PROGRESS: Duration = Duration::from_secs(300);
/// How often one that trickles sends a byte, and one that sips takes some.
const TRICKLE: Duration = Duration::from_secs(40);
/// Bytes that one takes at a time that sips.
const SIP: usize = 100;

/// Which disk a client has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// That in memory.
    Ram,
    /// The one that is late.
    Late,
    /// The one that hangs for hours.
    Hung,
    /// One that is late, and whose export comes and goes.
    Passing,
}

impl On {
    pub const ALL: [Self; 4] = [Self::Ram, Self::Late, Self::Hung, Self::Passing];

    pub fn export(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Late => "late",
            Self::Hung => "hung",
            Self::Passing => "passing",
        }
    }

    /// How long it may keep a request.
    fn longest(self) -> Duration {
        match self {
            Self::Ram => Duration::ZERO,
            Self::Late | Self::Passing => late::LONGEST,
            Self::Hung => late::HANG + late::LONGEST,
        }
    }
}

struct Asked {
    request: Request,
    payload: Vec<u8>,
    answer: Result<(), ErrorCode>,
    /// What a read has brought.
    data: Vec<u8>,
    error: Option<ErrorCode>,
}

pub struct Client {
    stream: UnixStream,
    fate: Fate,
    rng: Rng,
    style: HeaderStyle,
    handshake: Option<Handshake>,
    /// Where its region begins, and what is in there.
    base: u64,
    bytes: Vec<u8>,
    pub on: On,
    /// It has asked to be told of the end, and may be refused something then.
    hears_shutdown: bool,
    /// Its export is being taken away, or the server ends.
    leaves: Arc<AtomicBool>,
    /// What its region held when the server had ended its connection.
    left_behind: Option<Vec<u8>>,
    /// Whether there is memory enough for the clients of a disk that answers.
    is_roomy: bool,
    left: u64,
    next_cookie: u64,
    in_flight: HashMap<u64, Expected>,
    asked: HashMap<u64, Asked>,
    /// To be sent, and when to go on with that.
    output: Vec<u8>,
    send_at: Option<Instant>,
    /// Received, and when to receive more.
    input: Vec<u8>,
    receive_at: Option<Instant>,
    gulp: Vec<u8>,
    /// Data that comes behind a header: of which request, whether it is the last, where, and how much.
    data: Option<(u64, bool, u64, usize)>,
    /// Bytes that it sends before it trickles.
    halts_at: usize,
    /// Requests after which its fate comes true.
    until: u64,
    /// Since when nothing of it moves.
    halted: Option<Instant>,
    /// Since when it waits for the server and nothing else.
    waits_since: Option<Instant>,
    is_closed: bool,
    /// By the server, which takes its export away, or ends.
    is_removed: bool,
    outcome: Result<(), String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked: Vec<_> = self.asked.values().map(|asked| asked.request).collect();
        f.debug_struct("Client")
            .field("fate", &self.fate)
            .field("style", &self.style)
            .field("on", &self.on)
            .field("is_roomy", &self.is_roomy)
            .field("waits_since", &self.waits_since)
            .field("left", &self.left)
            .field("is_shaking", &self.handshake.is_some())
            .field("asked", &asked)
            .field("unsent", &self.output.len())
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(
        stream: UnixStream,
        base: u64,
        on: On,
        leaves: Arc<AtomicBool>,
        is_roomy: bool,
        mut rng: Rng,
    ) -> Self {
        stream.set_nonblocking(true).unwrap();
        let styles = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];
        let style = rng.pick(&styles);
        let fate = match rng.below(16) {
            0 => Fate::Dies,
            1 => Fate::Deaf,
            2 => Fate::Halts,
            3 => Fate::Babbles,
            4 => Fate::Trickles,
            5 => Fate::Sips,
            6 | 7 => Fate::Quits,
            _ => Fate::Good,
        };
        let export = on.export();
        let mut handshake = Handshake::new(Config { tls: TlsMode::Off, best_style: style });
        let hears_shutdown = style.has_chunks() && rng.one_in(2);
        if style.has_chunks() {
            let contexts = ["base:allocation", "x-blockyard:shutdown"];
            handshake.set_contexts(export, &contexts[..1 + usize::from(hears_shutdown)]).unwrap();
        }
        handshake.go(export).unwrap();
        Self {
            stream,
            fate,
            style,
            handshake: Some(handshake),
            base,
            bytes: vec![0; REGION as usize],
            on,
            hears_shutdown,
            leaves,
            left_behind: None,
            is_roomy,
            left: 1 + rng.below(REQUESTS),
            next_cookie: 1,
            in_flight: HashMap::new(),
            asked: HashMap::new(),
            output: Vec::new(),
            send_at: None,
            input: Vec::new(),
            data: None,
            receive_at: None,
            gulp: Vec::new(),
            halts_at: 0,
            until: rng.below(REQUESTS),
            halted: None,
            waits_since: None,
            is_closed: false,
            is_removed: false,
            outcome: Ok(()),
            rng,
        }
    }

    pub fn is_done(&self) -> bool {
        self.is_closed
    }

    /// When it goes on by itself.
    pub fn wakes(&self) -> Option<Instant> {
        let times = [self.send_at, self.receive_at];
        times.into_iter().flatten().min().filter(|_| !self.is_closed)
    }

    /// Whether it has got what it must.
    pub fn verify(&self, seed: u64) {
        assert_eq!(self.outcome, Ok(()), "seed {seed}: {self:?} at {:#x}", self.base);
        let all = self.left == 0 && self.asked.is_empty() || self.is_removed;
        assert!(self.fate != Fate::Good || all, "seed {seed}: {self:#?}");
    }

    /// Once everything is over: what it was told of, or has left behind a goodbye, is there. `content` gives bytes of its disk.
    pub fn verify_content(&self, seed: u64, content: impl Fn(Range<u64>) -> Vec<u8>) {
        let found = content(self.base..self.base + REGION);
        if let Some(left) = &self.left_behind {
            assert!(found == *left, "seed {seed}: it was written to after its end: {self:?}");
        }
        let is_known = match self.fate {
            Fate::Good => true,
            // The end of its export may have been sooner.
            Fate::Quits => self.on != On::Passing && !self.leaves(),
            _ => false,
        };
        if !is_known {
            return;
        }
        let unknown = |at: u64| {
            let mut asked = self.asked.values().map(|asked| asked.request);
            asked.any(|it| (it.offset..it.offset + it.length).contains(&(self.base + at)))
        };
        let wrong = (0..).zip(found.iter().zip(&self.bytes));
        let wrong = wrong.filter(|(_, (found, known))| found != known).map(|(at, _)| at);
        let wrong = wrong.take(1 << 16).find(|at| !unknown(*at));
        assert_eq!(wrong, None, "seed {seed}: {self:#?}");
    }

    /// The server has ended its connection in order, as its export was taken away: what is there then stays.
    pub fn note(&mut self, content: impl Fn(Range<u64>) -> Vec<u8>) {
        if self.is_removed && self.left_behind.is_none() {
            self.left_behind = Some(content(self.base..self.base + REGION));
        }
    }

    fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Relaxed)
    }

    fn end(&mut self, outcome: Result<(), String>) -> bool {
        self.is_closed = true;
        self.outcome = outcome;
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        true
    }

    /// Does what is due at `now`; says whether anything moved.
    pub fn step(&mut self, now: Instant) -> bool {
        if self.is_closed {
            return false;
        }
        let is_true = self.handshake.is_none() && self.next_cookie > self.until;
        if is_true && self.halted.is_none() && self.come_true(now) {
            return true;
        }
        if self.handshake.is_none() && self.halted.is_none() {
            self.ask();
        }
        let mut moved = self.send(now);
        // These would hear of it late, or never.
        let is_deaf = matches!(self.fate, Fate::Deaf | Fate::Trickles | Fate::Sips);
        if is_deaf && self.halted.is_some() && self.is_hung_up_on() {
            return self.closed(now, "hung up on");
        }
        let is_deaf = matches!(self.fate, Fate::Deaf | Fate::Trickles) && self.halted.is_some();
        if !is_deaf {
            moved |= self.receive(now);
        }
        self.check_progress(now, moved);
        moved || self.check_end(now)
    }

    /// Sends a piece, and thinks of the time for the next.
    fn send(&mut self, now: Instant) -> bool {
        if self.fate == Fate::Trickles && self.halted.is_some() && self.halts_at == 0 {
            return self.trickle(now);
        }
        if let Some(handshake) = &mut self.handshake {
            handshake.poll_transmit(&mut self.output);
        }
        if self.output.is_empty() || self.send_at.is_some_and(|at| at > now) {
            return false;
        }
        let most = match self.rng.below(6) {
            0 => 1 + self.rng.below(40),
            1 => 1 + self.rng.below(5000),
            _ => 1 << 20,
        };
        let mut len = self.output.len().min(most as usize);
        if self.halts_at > 0 {
            len = len.min(self.halts_at);
        }
        match self.stream.write(&self.output[..len]) {
            Ok(len) => {
                self.output.drain(..len);
                self.halts_at = self.halts_at.saturating_sub(len);
                if self.halted.is_some() {
                    self.halted = Some(now);
                }
                self.pace(now);
                true
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => false,
            Err(err) => self.closed(now, &err.to_string()),
        }
    }

    /// Silences: short ones within messages, long ones between them.
    fn pace(&mut self, now: Instant) {
        let in_message = !self.output.is_empty();
        let pause = match self.rng.below(24) {
            // Less than it has while others wait for its memory.
            0 if self.handshake.is_none() && in_message => 5 + self.rng.below(20),
            1 if self.handshake.is_none() && !in_message => 60 + self.rng.below(1200),
            2 | 3 => 1,
            _ => 0,
        };
        self.send_at = (pause > 0).then(|| now + Duration::from_secs(pause));
    }

    fn receive(&mut self, now: Instant) -> bool {
        if self.receive_at.is_some_and(|at| at > now) {
            return false;
        }
        self.receive_at = None;
        let sips = self.fate == Fate::Sips && self.halted.is_some() && self.output.is_empty();
        let mut bytes = std::mem::take(&mut self.gulp);
        bytes.resize(if sips { SIP } else { GULP }, 0);
        let received = self.stream.read(&mut bytes);
        self.gulp = bytes;
        match received {
            Ok(0) => self.closed(now, "hung up on"),
            Ok(len) => {
                if self.fate == Fate::Quits && self.halted.is_some() {
                    return true;
                }
                self.input.extend_from_slice(&self.gulp[..len]);
                if self.handshake.is_none() && self.rng.one_in(8) {
                    let pause = Duration::from_millis(self.rng.below(4000));
                    self.receive_at = Some(now + pause);
                }
                if sips {
                    self.receive_at = Some(now + TRICKLE / 2);
                }
                if let Err(problem) = self.take() {
                    self.end(Err(problem));
                }
                true
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => false,
            Err(err) => self.closed(now, &err.to_string()),
        }
    }
}
