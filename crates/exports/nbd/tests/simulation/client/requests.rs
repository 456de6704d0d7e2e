//! What clients ask for, and what they must be answered.

use blockyard_nbd::client::{Chunk, Event, Expected, Parsed, ReplyParser};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, Request};

use super::super::late::BAD;
use super::super::{CLIENTS, REGION};
use super::{Asked, Client, On};

impl Client {
    pub(super) fn request(&self, command: Command, offset: u64, length: u64) -> Request {
        let (flags, offset) = (CommandFlags::empty(), self.base + offset);
        Request { command, flags, cookie: 0, offset, length }
    }

    pub(super) fn goodbye(&self) -> Request {
        Request { offset: 0, ..self.request(Command::Disc, 0, 0) }
    }

    /// More than a socket takes, zeroes too.
    pub(super) fn enqueue_long_read(&mut self) {
        let mut read = self.request(Command::Read, 0, 1 << 20);
        if self.style.has_chunks() {
            read.flags = CommandFlags::DF;
        }
        self.enqueue(read, Vec::new(), Ok(()));
    }

    pub(super) fn enqueue(
        &mut self,
        mut request: Request,
        payload: Vec<u8>,
        answer: Result<(), ErrorCode>,
    ) {
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
    pub(super) fn ask(&mut self) {
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
    pub(super) fn think(&mut self) -> (Request, Result<(), ErrorCode>) {
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

    pub(super) fn mistake(&mut self, length: u64) -> (Request, Result<(), ErrorCode>) {
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

    /// Takes what has come.
    pub(super) fn take(&mut self) -> Result<(), String> {
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
                Some(Event::Refused(_)) if self.leaves() => {
                    self.is_removed = true;
                    self.end(Ok(()));
                    return Ok(());
                }
                Some(other) => return Err(format!("{other:?}")),
            }
        }
        while self.take_reply()? {}
        Ok(())
    }

    /// Takes the next chunk of a reply; says whether there was one.
    pub(super) fn take_reply(&mut self) -> Result<bool, String> {
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

    pub(super) fn took(&mut self, cookie: u64, done: bool) -> Result<bool, String> {
        if done {
            self.in_flight.remove(&cookie);
            let asked = self.asked.remove(&cookie).ok_or("a reply to nothing")?;
            self.check(&asked)?;
        }
        Ok(true)
    }

    /// Compares an answer with the model, which learns from it.
    pub(super) fn check(&mut self, asked: &Asked) -> Result<(), String> {
        let got = asked.error.map_or(Ok(()), Err);
        let Asked { request, answer, .. } = asked;
        if got == Err(ErrorCode::ESHUTDOWN) && self.leaves() && self.hears_shutdown {
            return Ok(());
        }
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
