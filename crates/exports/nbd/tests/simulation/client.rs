//! A client with a fate, and with a model of what it must be answered.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blockyard_nbd::client::{
    Chunk, Config, Event, Expected, Handshake, Parsed, ReplyParser, TlsMode,
};
use blockyard_nbd::server::PRESSED_TIMEOUT;
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};
use socket2::SockRef;

use super::late::{self, BAD};
use super::rng::Rng;
use super::{CLIENTS, REGION};

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
}

impl On {
    pub const ALL: [Self; 3] = [Self::Ram, Self::Late, Self::Hung];

    pub fn export(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Late => "late",
            Self::Hung => "hung",
        }
    }

    /// How long it may keep a request.
    fn longest(self) -> Duration {
        match self {
            Self::Ram => Duration::ZERO,
            Self::Late => late::LONGEST,
            Self::Hung => late::HANG + late::LONGEST,
        }
    }
}

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
    on: On,
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
            .field("asked", &asked)
            .field("unsent", &self.output.len())
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(stream: UnixStream, base: u64, on: On, is_roomy: bool, mut rng: Rng) -> Self {
        stream.set_nonblocking(true).unwrap();
        let styles = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];
        let style = rng.pick(&styles);
        let fate = match rng.below(14) {
            0 => Fate::Dies,
            1 => Fate::Deaf,
            2 => Fate::Halts,
            3 => Fate::Babbles,
            4 => Fate::Trickles,
            5 => Fate::Sips,
            _ => Fate::Good,
        };
        let export = on.export();
        let mut handshake = Handshake::new(Config { tls: TlsMode::Off, best_style: style });
        if style.has_chunks() {
            handshake.set_contexts(export, &["base:allocation"]).unwrap();
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
        assert_eq!(self.outcome, Ok(()), "seed {seed}: {:?} at {:#x}", self.fate, self.base);
        let all = self.left == 0 && self.asked.is_empty();
        assert!(self.fate != Fate::Good || all, "seed {seed}: {self:#?}");
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

    /// Whether the server's end of the socket is closed: seen without receiving.
    fn is_hung_up_on(&self) -> bool {
        SockRef::from(&self.stream)
            .send(&[])
            .is_err_and(|err| err.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whoever behaves, and has a disk that answers, is not kept waiting by those who do not.
    fn check_progress(&mut self, now: Instant, moved: bool) {
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
    fn come_true(&mut self, now: Instant) -> bool {
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
            Fate::Halts | Fate::Babbles | Fate::Trickles | Fate::Sips
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
            Fate::Babbles => self.output.extend_from_slice(&[0x5a; 3000]),
        }
        self.left = 0;
        self.send_at = None;
        self.halted = Some(now);
        true
    }

    fn request(&self, command: Command, offset: u64, length: u64) -> Request {
        let (flags, offset) = (CommandFlags::empty(), self.base + offset);
        Request { command, flags, cookie: 0, offset, length }
    }

    /// More than a socket takes, zeroes too.
    fn enqueue_long_read(&mut self) {
        let mut read = self.request(Command::Read, 0, 1 << 20);
        if self.style.has_chunks() {
            read.flags = CommandFlags::DF;
        }
        self.enqueue(read, Vec::new(), Ok(()));
    }

    fn enqueue(&mut self, mut request: Request, payload: Vec<u8>, answer: Result<(), ErrorCode>) {
        request.cookie = self.next_cookie;
        self.next_cookie += 1;
        self.output.extend_from_slice(&request.encode(self.style).unwrap());
        self.output.extend_from_slice(&payload);
        let expected = if request.command == Command::BlockStatus {
            Expected::block_status(request, &[0])
        } else {
            Expected::new(request)
        };
        self.in_flight.insert(request.cookie, expected);
        let data = Vec::new();
        self.asked.insert(request.cookie, Asked { request, payload, answer, data, error: None });
    }

    /// Thinks of a request, sometimes of several at a time.
    fn ask(&mut self) {
        while self.left > 0 && self.asked.len() < 12 && !self.rng.one_in(3) {
            let (request, answer) = self.think();
            let overlaps = self.asked.values().any(|other| {
                other.request.offset < request.offset + request.length
                    && request.offset < other.request.offset + other.request.length
            });
            if overlaps {
                return;
            }
            self.left -= 1;
            let payload = if request.command == Command::Write {
                (0..request.length / 8).flat_map(|_| self.rng.next().to_be_bytes()).collect()
            } else {
                Vec::new()
            };
            self.enqueue(request, payload, answer);
        }
    }

    /// A request, and what must be said to it.
    fn think(&mut self) -> (Request, Result<(), ErrorCode>) {
        use Command as C;
        let sizes = [512, 512, 4096, 4096, 4096, 20_480, 65_536, 300_032, 1 << 20];
        let mut length = self.rng.pick(&sizes);
        if self.on == On::Hung && self.rng.one_in(2) {
            // All that its disk will ever let it have.
            length = 1 << 20;
        }
        let offset = self.rng.below((BAD - length) / 512 + 1) * 512;
        if self.rng.one_in(12) {
            return self.mistake(length);
        }
        let (command, offset, length) = match self.rng.below(16) {
            0 => return (Request { offset: 0, ..self.request(C::Flush, 0, 0) }, Ok(())),
            1 => (C::Trim, offset / 4096 * 4096, length.next_multiple_of(4096)),
            2 => (C::WriteZeroes, offset, length),
            3 => (C::Cache, offset, length),
            4 if self.style.has_chunks() => (C::BlockStatus, offset, length),
            5..10 => (C::Write, offset, length),
            _ => (C::Read, offset, length),
        };
        let length = length.min(BAD - offset);
        if self.on != On::Ram && self.rng.one_in(10) && command != C::Flush {
            let request = self.request(command, BAD, 4096);
            let answer = if command == C::Cache { Ok(()) } else { Err(ErrorCode::EIO) };
            return (request, answer);
        }
        (self.request(command, offset, length), Ok(()))
    }

    fn mistake(&mut self, length: u64) -> (Request, Result<(), ErrorCode>) {
        use Command as C;
        let end = CLIENTS * REGION;
        let what = self.rng.below(4);
        let at = |command, offset, length| Request { offset, ..self.request(command, 0, length) };
        match what {
            0 => (at(C::Write, end, length), Err(ErrorCode::ENOSPC)),
            1 => (at(C::Read, end - 512, 1024), Err(ErrorCode::EINVAL)),
            2 => (at(C::Unknown(77), 0, length), Err(ErrorCode::EINVAL)),
            _ => {
                let error =
                    if self.style.has_chunks() { ErrorCode::EOVERFLOW } else { ErrorCode::EINVAL };
                (at(C::Read, 0, 2 << 20), Err(error))
            }
        }
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

    /// A byte, and another one much later.
    fn trickle(&mut self, now: Instant) -> bool {
        if self.send_at.is_some_and(|at| at > now) {
            return false;
        }
        self.send_at = Some(now + TRICKLE);
        if let Ok(1) = self.stream.write(&self.output[..self.output.len().min(1)]) {
            self.output.remove(0);
        }
        true
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

    /// The server has hung up.
    fn closed(&mut self, now: Instant, how: &str) -> bool {
        let after = self.halted.map(|since| now - since);
        let outcome = match (self.fate, after) {
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
    fn patience(&self) -> Duration {
        // Its request may wait for memory that a disk has which hangs.
        let longest = if self.is_roomy { self.on.longest() } else { On::Hung.longest() };
        STALL + LATE + TRICKLE + longest
    }

    /// A good client leaves when it has all; one that halts has to be hung up on.
    fn check_end(&mut self, now: Instant) -> bool {
        if let Some(since) = self.halted {
            let longest = self.patience() + STALL;
            return now - since > longest && self.end(Err(format!("nobody hangs up: {self:?}")));
        }
        let all = self.left == 0 && self.asked.is_empty() && self.output.is_empty();
        if !all || self.handshake.is_some() {
            return false;
        }
        if self.rng.one_in(2) {
            let goodbye = Request { offset: 0, ..self.request(Command::Disc, 0, 0) };
            let _ = self.stream.write(&goodbye.encode(self.style).unwrap());
        }
        self.end(Ok(()))
    }

    /// Takes what has come.
    fn take(&mut self) -> Result<(), String> {
        if let Some(handshake) = &mut self.handshake {
            let taken = handshake.receive(&self.input).map_err(|err| err.to_string())?;
            self.input.drain(..taken);
            match handshake.poll_event() {
                Some(Event::Done(negotiated)) => {
                    self.style = negotiated.style;
                    self.handshake = None;
                }
                Some(Event::ContextsSet(_)) => return self.take(),
                None if taken > 0 => return self.take(),
                None => return Ok(()),
                Some(other) => return Err(format!("{other:?}")),
            }
        }
        while self.take_reply()? {}
        Ok(())
    }

    /// Takes the next chunk of a reply; says whether there was one.
    fn take_reply(&mut self) -> Result<bool, String> {
        if let Some((cookie, done, offset, length)) = self.data {
            if self.input.len() < length {
                return Ok(false);
            }
            self.data = None;
            let bytes: Vec<u8> = self.input.drain(..length).collect();
            put(self.asked.get_mut(&cookie).ok_or("data for nothing")?, offset, &bytes);
            return self.took(cookie, done);
        }
        let parser = ReplyParser::new(self.style);
        let parsed =
            parser.parse(&self.input, &mut self.in_flight).map_err(|err| err.to_string())?;
        let Parsed::Reply { reply, consumed } = parsed else { return Ok(false) };
        let (cookie, done) = (reply.cookie, reply.done);
        let asked = self.asked.get_mut(&cookie).ok_or("a reply to nothing")?;
        match reply.chunk {
            Chunk::Data { offset, length } => {
                self.data = Some((cookie, done, offset, length as usize));
            }
            Chunk::Hole { offset, length } => put(asked, offset, &vec![0; length as usize]),
            Chunk::Error { error, .. } => asked.error = Some(error),
            Chunk::Status { .. } | Chunk::None => {}
        }
        self.input.drain(..consumed);
        if self.data.is_some() { Ok(true) } else { self.took(cookie, done) }
    }

    fn took(&mut self, cookie: u64, done: bool) -> Result<bool, String> {
        if done {
            self.in_flight.remove(&cookie);
            let asked = self.asked.remove(&cookie).ok_or("a reply to nothing")?;
            self.check(&asked)?;
        }
        Ok(true)
    }

    /// Compares an answer with the model, which learns from it.
    fn check(&mut self, asked: &Asked) -> Result<(), String> {
        let got = asked.error.map_or(Ok(()), Err);
        let Asked { request, answer, .. } = asked;
        if got != *answer {
            return Err(format!("{request:?}: {got:?} for {answer:?}"));
        }
        if got.is_err() || matches!(request.command, Command::Flush | Command::Cache) {
            return Ok(());
        }
        let start = (request.offset - self.base) as usize;
        let model = &mut self.bytes[start..start + request.length as usize];
        match request.command {
            Command::Write => model.copy_from_slice(&asked.payload),
            Command::Trim | Command::WriteZeroes => model.fill(0),
            Command::Read if asked.data != model => {
                return Err(format!("{request:?} has brought other bytes than were written"));
            }
            _ => {}
        }
        Ok(())
    }
}

fn put(asked: &mut Asked, offset: u64, bytes: &[u8]) {
    let at = (offset - asked.request.offset) as usize;
    if asked.data.len() < at + bytes.len() {
        asked.data.resize(at + bytes.len(), 0xee);
    }
    asked.data[at..at + bytes.len()].copy_from_slice(bytes);
}
