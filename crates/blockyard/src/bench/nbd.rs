//! Load on an NBD server: a connection for each queue, on a thread of its own.
//!
//! It costs as little as it can, since it is there to compare servers: requests are sent in batches with one
//! call, replies are received into one large buffer and looked at where they are, and the clock is read once a
//! batch.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use blockyard_nbd::client::{Chunk, Expected, InFlight, Parsed, ReplyParser};
use blockyard_nbd::uri::Uri;
use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request, TransmissionFlags};
use rustix::event::{PollFd, PollFlags, poll};

use super::Load;
use super::pattern::Pattern;
use super::report::{Report, Tally, cpu_time};
use crate::error::{Error, Result};
use crate::nbd_client::{Client, Connection, TlsOptions, Transport, say_goodbye};

/// Bytes that are received at a time.
const RECEIVE_LEN: usize = 512 << 10;
/// How long to look for a reply before going to sleep, with few requests out: waking up costs more than that.
const SPIN: Duration = Duration::from_micros(50);
/// The most requests out for which that is worth it.
const FEW: usize = 2;
/// How long a server may say nothing.
const PATIENCE_MS: i64 = 60_000;

pub(super) fn run(uri: &Uri, load: &Load, tls: &TlsOptions) -> Result<Report> {
    let first = Client::connect(uri, tls, HeaderStyle::Simple)?.open(false)?;
    let export = &first.negotiated.export;
    let flags = export.flags;
    if load.mix.writes() && flags.contains(TransmissionFlags::READ_ONLY) {
        return Err(Error::usage(format!("{uri} is read-only")).help("use --rw read or randread"));
    }
    if load.queues > 1 && load.mix.writes() && !flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        return Err(Error::usage(format!(
            "{uri} does not promise that several connections may write at a time"
        ))
        .help("use --queues 1"));
    }
    let sizes = export.block_sizes.unwrap_or_default();
    load.check_alignment(sizes.minimum())?;
    if load.block > sizes.max_payload() {
        return Err(Error::usage(format!(
            "{uri} takes {} bytes at a time at most",
            sizes.max_payload()
        ))
        .help("make --bs smaller"));
    }
    let range = load.range(export.size)?;
    let mut connections = vec![first];
    while connections.len() < load.queues {
        connections.push(Client::connect(uri, tls, HeaderStyle::Simple)?.open(false)?);
    }
    let (cpu, start) = (cpu_time(), Instant::now());
    let mut all = Tally::new()?;
    let tallies: Vec<Result<Tally>> = std::thread::scope(|scope| {
        let lanes = connections.into_iter().enumerate();
        let threads: Vec<_> = lanes
            .map(|(queue, connection)| {
                scope.spawn(move || Lane::new(connection, load, queue, range, start)?.run())
            })
            .collect();
        let gone = || Err(Error::failed("a thread of the load generator panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    for tally in tallies {
        let failed =
            |err: Error| Error::failed(format!("the connection to {uri} failed")).caused_by(err);
        all.add(&tally.map_err(failed)?);
    }
    Ok(Report::new(&all, load.block, start.elapsed(), cpu_time().saturating_sub(cpu)))
}

/// The requests that are out, by cookie: the place in the list.
struct Slots(Vec<Option<(Expected, Instant)>>);

impl InFlight for Slots {
    fn expected(&mut self, cookie: u64) -> Option<&mut Expected> {
        let slot = usize::try_from(cookie).ok().and_then(|index| self.0.get_mut(index))?;
        slot.as_mut().map(|(expected, _)| expected)
    }
}

/// A closed loop on one connection.
struct Lane {
    transport: Transport,
    style: HeaderStyle,
    parser: ReplyParser,
    slots: Slots,
    free: Vec<u64>,
    pattern: Pattern,
    block: u32,
    left: u64,
    until: Option<Instant>,
    /// Headers to send, and what follows them.
    out: Outbox,
    input: Box<[u8]>,
    /// What was received and not looked at: from, to.
    held: (usize, usize),
    /// Bytes of data that are still to come, and are thrown away.
    skip: u64,
    tally: Tally,
}

impl Lane {
    fn new(
        connection: Connection,
        load: &Load,
        queue: usize,
        range: (u64, u64),
        start: Instant,
    ) -> Result<Self> {
        let Connection { transport, negotiated, input: early } = connection;
        transport
            .socket()
            .set_nonblocking(true)
            .map_err(|err| Error::failed("the socket").caused_by(err))?;
        let (left, until) = load.quota(queue, start);
        let mut pattern = Pattern::new(load, queue, range);
        let mut data = vec![0; if load.mix.writes() { load.block as usize } else { 0 }];
        pattern.fill(&mut data);
        let mut input = vec![0; RECEIVE_LEN].into_boxed_slice();
        input[..early.len()].copy_from_slice(&early);
        Ok(Self {
            transport,
            style: negotiated.style,
            parser: ReplyParser::new(negotiated.style),
            slots: Slots((0..load.depth).map(|_| None).collect()),
            free: (0..load.depth as u64).rev().collect(),
            pattern,
            block: load.block,
            left,
            until,
            out: Outbox::new(data),
            input,
            held: (0, early.len()),
            skip: 0,
            tally: Tally::new()?,
        })
    }

    fn run(mut self) -> Result<Tally> {
        let io = |err: io::Error| Error::failed("sending or receiving").caused_by(err);
        loop {
            let now = Instant::now();
            if self.until.is_some_and(|until| now >= until) {
                self.left = 0;
            }
            self.fill(now)?;
            if self.free.len() == self.slots.0.len() {
                break;
            }
            let sent = self.out.send(&mut self.transport).map_err(io)?;
            let received = self.receive().map_err(io)?;
            if received {
                self.look(Instant::now())?;
            } else if !sent && !self.spin().map_err(io)? {
                self.sleep().map_err(io)?;
            }
        }
        say_goodbye(&mut self.transport, self.style);
        Ok(self.tally)
    }

    /// Puts as many requests into the outbox as may be out.
    fn fill(&mut self, now: Instant) -> Result<()> {
        while self.left > 0
            && let Some(cookie) = self.free.pop()
        {
            self.left -= 1;
            let step = self.pattern.step();
            let command = if step.write { Command::Write } else { Command::Read };
            let (flags, length) = (CommandFlags::empty(), u64::from(self.block));
            let request = Request { command, flags, cookie, offset: step.offset, length };
            let head = request
                .encode(self.style)
                .map_err(|err| Error::failed("a request cannot be sent").caused_by(err))?;
            self.out.push(&head, step.write);
            if let Some(slot) =
                usize::try_from(cookie).ok().and_then(|index| self.slots.0.get_mut(index))
            {
                *slot = Some((Expected::new(request), now));
            }
        }
        Ok(())
    }

    /// Receives what is there; says whether there was anything.
    fn receive(&mut self) -> io::Result<bool> {
        if self.held.1 == self.input.len() || self.held.0 == self.held.1 {
            self.input.copy_within(self.held.0..self.held.1, 0);
            self.held = (0, self.held.1 - self.held.0);
        }
        match self.transport.read(&mut self.input[self.held.1..]) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
            Ok(got) => {
                self.held.1 += got;
                Ok(true)
            }
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(err) => Err(err),
        }
    }

    /// Looks at what was received.
    fn look(&mut self, now: Instant) -> Result<()> {
        loop {
            let held = self.held.1 - self.held.0;
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(held);
            self.held.0 += skipped;
            self.skip -= skipped as u64;
            let parsed = self.parser.parse(&self.input[self.held.0..self.held.1], &mut self.slots);
            match parsed
                .map_err(|err| Error::failed("the server broke the protocol").caused_by(err))?
            {
                Parsed::NeedMore(_) => return Ok(()),
                Parsed::Reply { reply, consumed } => {
                    self.held.0 += consumed;
                    if let Chunk::Data { length, .. } = reply.chunk {
                        self.skip = length;
                    }
                    let (cookie, done) = (reply.cookie, reply.done);
                    if done {
                        self.ended(cookie, now);
                    }
                }
            }
        }
    }

    fn ended(&mut self, cookie: u64, now: Instant) {
        let slot = usize::try_from(cookie).ok().and_then(|index| self.slots.0.get_mut(index));
        let Some((expected, start)) = slot.and_then(Option::take) else { return };
        match expected.result() {
            Ok(()) => self.tally.record(now - start),
            Err(code) => self.tally.fail(&code),
        }
        self.free.push(cookie);
    }

    /// Looks for replies for a moment, if there are few requests out. Says whether it found any.
    fn spin(&mut self) -> io::Result<bool> {
        if self.slots.0.len() - self.free.len() > FEW {
            return Ok(false);
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            if self.receive()? {
                // What it is is seen to by the next turn, which receives nothing then.
                return self.look(Instant::now()).map(|()| true).map_err(io::Error::other);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// Waits until there is something to receive, or room to send.
    fn sleep(&self) -> io::Result<()> {
        let mut flags = PollFlags::IN;
        if !self.out.is_empty() || self.transport.wants_write() {
            flags |= PollFlags::OUT;
        }
        let socket = self.transport.socket().as_fd();
        let timeout = rustix::time::Timespec { tv_sec: PATIENCE_MS / 1000, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&socket, flags)], Some(&timeout)) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the server has said nothing for a minute",
            )),
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(err) => Err(err.into()),
        }
    }
}

/// Bytes to send: headers, some with the same data behind them.
struct Outbox {
    heads: Vec<u8>,
    /// Ends of headers that are followed by data.
    data_after: Vec<usize>,
    data: Vec<u8>,
    /// Bytes that are sent already, data included.
    sent: usize,
}

/// The most parts of one call: far below `IOV_MAX`.
const PARTS: usize = 128;

impl Outbox {
    fn new(data: Vec<u8>) -> Self {
        Self { heads: Vec::new(), data_after: Vec::new(), data, sent: 0 }
    }

    fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    fn push(&mut self, head: &[u8], with_data: bool) {
        self.heads.extend_from_slice(head);
        if with_data {
            self.data_after.push(self.heads.len());
        }
    }

    /// Sends as much as goes; says whether anything went.
    fn send(&mut self, to: &mut Transport) -> io::Result<bool> {
        let total = self.heads.len() + self.data_after.len() * self.data.len();
        let before = self.sent;
        while self.sent < total {
            let mut parts = [IoSlice::new(&[]); PARTS];
            let count = self.parts(&mut parts);
            match to.write_vectored(&parts[..count]) {
                Ok(sent) => self.sent += sent,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        let any = self.sent > before;
        if self.sent == total {
            self.heads.clear();
            self.data_after.clear();
            self.sent = 0;
        }
        match to.flush() {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(any),
            flushed => flushed.map(|()| any),
        }
    }

    /// Lists what is not sent yet; says how many parts that are.
    fn parts<'a>(&'a self, parts: &mut [IoSlice<'a>; PARTS]) -> usize {
        let (mut skip, mut at, mut count) = (self.sent, 0, 0);
        let mut add = |part: &'a [u8]| {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let part = &part[skipped..];
            if !part.is_empty() && count < PARTS {
                parts[count] = IoSlice::new(part);
                count += 1;
            }
            count < PARTS
        };
        for &end in &self.data_after {
            if !add(&self.heads[at..end]) || !add(&self.data) {
                return count;
            }
            at = end;
        }
        add(&self.heads[at..]);
        count
    }
}
