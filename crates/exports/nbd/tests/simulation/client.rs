//! A client with a fate, and with a model of what it must be answered.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use blockyard_nbd::client::{
    Chunk, Config, Event, Expected, Handshake, Parsed, ReplyParser, TlsMode,
};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};

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

/// How a client behaves once it has its export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It does what it should, at its own pace.
    Good,
    /// It hangs up in the middle of something.
    Dies,
    /// It stops receiving.
    Deaf,
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
    is_late: bool,
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
    /// Requests after which its fate comes true.
    until: u64,
    /// Since when nothing of it moves.
    halted: Option<Instant>,
    is_closed: bool,
    outcome: Result<(), String>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked: Vec<_> = self.asked.values().map(|asked| asked.request).collect();
        f.debug_struct("Client")
            .field("fate", &self.fate)
            .field("style", &self.style)
            .field("is_late", &self.is_late)
            .field("left", &self.left)
            .field("asked", &asked)
            .field("unsent", &self.output.len())
            .field("is_closed", &self.is_closed)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub fn new(stream: UnixStream, base: u64, len: u64, is_late: bool, mut rng: Rng) -> Self {
        stream.set_nonblocking(true).unwrap();
        let styles = [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];
        let style = rng.pick(&styles);
        let fate = match rng.below(12) {
            0 => Fate::Dies,
            1 => Fate::Deaf,
            2 => Fate::Halts,
            3 => Fate::Babbles,
            _ => Fate::Good,
        };
        let export = if is_late { "late" } else { "ram" };
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
            bytes: vec![0; len as usize],
            is_late,
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
            until: rng.below(REQUESTS),
            halted: None,
            is_closed: false,
            outcome: Ok(()),
            rng,
        }
    }

    pub fn fate(&self) -> Fate {
        self.fate
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
        if !(self.fate == Fate::Deaf && self.halted.is_some()) {
            moved |= self.receive(now);
        } else if self.halted.is_some_and(|since| now - since > 10 * STALL) {
            return self.end(Ok(()));
        }
        moved || self.check_end(now)
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
                for _ in 0..8 {
                    let length = 1 << 20;
                    let request = self.request(Command::Read, 0, length);
                    self.enqueue(request, Vec::new(), Ok(()));
                }
            }
            // When it has nothing else under way.
            Fate::Halts | Fate::Babbles if !self.asked.is_empty() || !self.output.is_empty() => {
                return false;
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
        let length = self.rng.pick(&sizes);
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
        if self.is_late && self.rng.one_in(10) && command != C::Flush {
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
        let len = self.output.len().min(most as usize);
        match self.stream.write(&self.output[..len]) {
            Ok(len) => {
                self.output.drain(..len);
                if self.fate == Fate::Halts && self.halted.is_some() {
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
            0 if self.handshake.is_none() && in_message => 30 + self.rng.below(20),
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
        let mut bytes = std::mem::take(&mut self.gulp);
        bytes.resize(GULP, 0);
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
            (Fate::Deaf | Fate::Babbles, Some(_)) => Ok(()),
            (Fate::Halts, Some(after)) if after >= STALL && after <= self.patience() => Ok(()),
            (_, after) => Err(format!("{how} after {after:?}")),
        };
        self.end(outcome)
    }

    /// How long one that halts may live: a piece of its message may be at the disk meanwhile.
    fn patience(&self) -> Duration {
        STALL + LATE + if self.is_late { late::LONGEST } else { Duration::ZERO }
    }

    /// A good client leaves when it has all; one that halts has to be hung up on.
    fn check_end(&mut self, now: Instant) -> bool {
        if let Some(since) = self.halted {
            return now - since > 20 * STALL && self.end(Err("nobody hangs up".into()));
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
