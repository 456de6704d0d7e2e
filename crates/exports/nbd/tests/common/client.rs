//! A client: one request after the other, or as many at a time as the test likes.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use blockyard_nbd::client::{
    Chunk, Config, Event, Expected, Handshake, Negotiated, Parsed, ReplyParser, TlsMode,
    status_payload,
};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};

pub const STYLES: [HeaderStyle; 3] =
    [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended];

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

pub struct Client {
    pub stream: Box<dyn Stream>,
    pub negotiated: Negotiated,
    in_flight: HashMap<u64, Expected>,
    outcomes: HashMap<u64, Outcome>,
    input: Vec<u8>,
    next: u64,
}

/// What came of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub error: Option<ErrorCode>,
    pub data: Vec<u8>,
    /// Bytes that came as holes.
    pub holes: u64,
    pub extents: Vec<(u64, u64)>,
    /// Where the data begins.
    offset: u64,
}

impl Outcome {
    pub fn ok(self) -> Self {
        assert_eq!(self.error, None);
        self
    }
}

pub fn request(command: Command, flags: CommandFlags, offset: u64, length: u64) -> Request {
    Request { command, flags, cookie: 0, offset, length }
}

/// Runs the client's side until all it asked for has been answered by `Done`.
pub fn negotiate(
    stream: &mut dyn Stream,
    handshake: &mut Handshake,
    input: &mut Vec<u8>,
) -> io::Result<Event> {
    loop {
        let taken = handshake.receive(input).map_err(io::Error::other)?;
        input.drain(..taken);
        let mut out = Vec::new();
        if handshake.poll_transmit(&mut out) {
            stream.write_all(&out)?;
            continue;
        }
        if let Some(event) = handshake.poll_event() {
            return Ok(event);
        }
        let mut bytes = [0; 4096];
        let len = stream.read(&mut bytes)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&bytes[..len]);
    }
}

impl Client {
    pub fn open(stream: Box<dyn Stream>, export: &str, style: HeaderStyle) -> io::Result<Self> {
        let handshake = Handshake::new(Config { tls: TlsMode::Off, best_style: style });
        Self::go(stream, handshake, export, style)
    }

    /// One of the default export that wants to be told of the end, as the driver for disks at NBD servers does.
    pub fn open_hearing(stream: Box<dyn Stream>) -> io::Result<Self> {
        let style = HeaderStyle::Extended;
        let handshake = Handshake::new(Config { tls: TlsMode::Off, best_style: style });
        Self::go_with(stream, handshake, "", &["base:allocation", "x-blockyard:shutdown"])
    }

    /// From a handshake that may have begun.
    pub fn go(
        stream: Box<dyn Stream>,
        handshake: Handshake,
        export: &str,
        style: HeaderStyle,
    ) -> io::Result<Self> {
        let contexts = if style.has_chunks() { &["base:allocation"][..] } else { &[] };
        Self::go_with(stream, handshake, export, contexts)
    }

    fn go_with(
        mut stream: Box<dyn Stream>,
        mut handshake: Handshake,
        export: &str,
        contexts: &[&str],
    ) -> io::Result<Self> {
        if !contexts.is_empty() {
            handshake.set_contexts(export, contexts).map_err(io::Error::other)?;
        }
        handshake.go(export).map_err(io::Error::other)?;
        let mut input = Vec::new();
        loop {
            match negotiate(&mut *stream, &mut handshake, &mut input)? {
                Event::Done(negotiated) => {
                    let (in_flight, outcomes) = (HashMap::new(), HashMap::new());
                    let negotiated = *negotiated;
                    return Ok(Self { stream, negotiated, in_flight, outcomes, input, next: 1 });
                }
                Event::ContextsSet(_) => {}
                other => return Err(io::Error::other(format!("{other:?}"))),
            }
        }
    }

    pub fn style(&self) -> HeaderStyle {
        self.negotiated.style
    }

    /// The bytes of a request, which is expected to be answered.
    pub fn encode(&mut self, mut request: Request, payload: &[u8]) -> (u64, Vec<u8>) {
        request.cookie = self.next;
        self.next += 1;
        let mut bytes = request.encode(self.style()).unwrap().to_vec();
        bytes.extend_from_slice(payload);
        let expected = if request.command == Command::BlockStatus {
            Expected::block_status(request, &[0])
        } else {
            Expected::new(request)
        };
        self.in_flight.insert(request.cookie, expected);
        let outcome = Outcome { offset: request.offset, ..Outcome::default() };
        self.outcomes.insert(request.cookie, outcome);
        (request.cookie, bytes)
    }

    pub fn send(&mut self, request: Request, payload: &[u8]) -> u64 {
        let (cookie, bytes) = self.encode(request, payload);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Sends a query for a part of the contexts.
    pub fn send_query(&mut self, offset: u64, length: u64) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let mut payload = Vec::new();
        status_payload(&mut payload, length, &[0]);
        let flags = CommandFlags::PAYLOAD_LEN;
        let sent = payload.len() as u64;
        let request =
            Request { command: Command::BlockStatus, flags, cookie, offset, length: sent };
        self.stream.write_all(&request.encode(self.style()).unwrap()).unwrap();
        self.stream.write_all(&payload).unwrap();
        self.in_flight.insert(cookie, Expected::block_status(Request { length, ..request }, &[0]));
        self.outcomes.insert(cookie, Outcome { offset, ..Outcome::default() });
        cookie
    }

    /// Waits for the reply of one of the requests.
    pub fn next_reply(&mut self) -> io::Result<(u64, Outcome)> {
        let parser = ReplyParser::new(self.style());
        loop {
            let parsed =
                parser.parse(&self.input, &mut self.in_flight).map_err(io::Error::other)?;
            let (reply, consumed) = match parsed {
                Parsed::NeedMore(_) => {
                    self.read_some()?;
                    continue;
                }
                Parsed::Reply { reply, consumed } => (reply, consumed),
            };
            let (cookie, done) = (reply.cookie, reply.done);
            let outcome = self.outcomes.get_mut(&cookie).unwrap();
            let mut data = None;
            match reply.chunk {
                Chunk::None => {}
                Chunk::Data { offset, length } => data = Some((offset, length as usize)),
                Chunk::Hole { offset, length } => {
                    outcome.holes += length;
                    place(outcome, offset, &vec![0; length as usize]);
                }
                Chunk::Status { extents, .. } => outcome.extents.extend(extents),
                Chunk::Error { error, .. } => outcome.error = Some(error),
            }
            self.input.drain(..consumed);
            if let Some((offset, length)) = data {
                while self.input.len() < length {
                    self.read_some()?;
                }
                let bytes: Vec<u8> = self.input.drain(..length).collect();
                place(self.outcomes.get_mut(&cookie).unwrap(), offset, &bytes);
            }
            if done {
                self.in_flight.remove(&cookie);
                return Ok((cookie, self.outcomes.remove(&cookie).unwrap()));
            }
        }
    }

    fn read_some(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; 256 << 10];
        let len = self.stream.read(&mut bytes)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.input.extend_from_slice(&bytes[..len]);
        Ok(())
    }

    /// Sends a request, and waits for its reply, which is the only one.
    pub fn ask(&mut self, request: Request, payload: &[u8]) -> Outcome {
        let cookie = self.send(request, payload);
        let (got, outcome) = self.next_reply().unwrap();
        assert_eq!(got, cookie);
        outcome
    }

    pub fn command(&mut self, command: Command, offset: u64, length: u64) -> Outcome {
        self.ask(request(command, CommandFlags::empty(), offset, length), &[])
    }

    pub fn read(&mut self, offset: u64, length: u64) -> Vec<u8> {
        self.command(Command::Read, offset, length).ok().data
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.try_write(offset, data).ok();
    }

    pub fn try_write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        let length = data.len() as u64;
        self.ask(request(Command::Write, CommandFlags::empty(), offset, length), data)
    }

    /// Says goodbye; the server has nothing more to say.
    pub fn disconnect(mut self) {
        let goodbye = request(Command::Disc, CommandFlags::empty(), 0, 0);
        self.stream.write_all(&goodbye.encode(self.style()).unwrap()).unwrap();
        assert!(self.is_closed());
    }

    /// Whether the server hangs up before it says anything more.
    pub fn is_closed(&mut self) -> bool {
        is_closed(&mut *self.stream)
    }
}

pub fn is_closed(stream: &mut dyn Stream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(len) => len == 0,
        Err(err) => {
            matches!(err.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
        }
    }
}

fn place(outcome: &mut Outcome, offset: u64, bytes: &[u8]) {
    let at = (offset - outcome.offset) as usize;
    if outcome.data.len() < at + bytes.len() {
        outcome.data.resize(at + bytes.len(), 0xee);
    }
    outcome.data[at..at + bytes.len()].copy_from_slice(bytes);
}
