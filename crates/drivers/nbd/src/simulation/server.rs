//! Model servers of one disk, each with a volatile cache of its own.

use std::time::Duration;

use blockyard_nbd::ExportInfo;
use blockyard_nbd::server::{Config, Event, Export, Handshake, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{
    BASE_ALLOCATION, Command, CommandFlags, ErrorCode, HeaderStyle, Request, TransmissionFlags,
};

use super::dice::Dice;
use super::net::Wire;

pub(super) const BLOCK: u64 = 512;
pub(super) const BLOCKS: usize = 12;
/// A value with this bit is what the owner of memory put there after he had it back.
pub(super) const REUSED: u64 = 1 << 62;

/// One in so many writes that come in parts is refused before all of it is there, where requests fail.
const EARLY: usize = 20;

/// How many servers there are.
pub(super) const SERVERS: usize = 2;

/// The disk that the servers share. What one of them was told to write is durable once that one is flushed. All see what any of
/// them has written, unless each has a cache of its own: then one sees of the other's what is durable, and writes back what
/// it has, whenever that is, over what the other has written.
pub(super) struct Storage {
    /// The values of the blocks as they survive a power cut.
    durable: [u64; BLOCKS],
    /// What each server has in its cache alone.
    cached: [[Option<u64>; BLOCKS]; SERVERS],
    volatile: bool,
    incoherent: bool,
    /// When the last flush came that has succeeded at each server.
    flushed: [Duration; SERVERS],
    /// Writes that were carried out for connections that their client had given up.
    pub(super) late: u64,
    pub(super) problem: Option<String>,
}

impl Storage {
    pub(super) fn new(volatile: bool, incoherent: bool) -> Self {
        let (durable, cached) = ([0; BLOCKS], [[None; BLOCKS]; SERVERS]);
        let flushed = [Duration::ZERO; SERVERS];
        Self { durable, cached, volatile, incoherent, flushed, late: 0, problem: None }
    }

    /// A server's power fails, or its process is killed: says of which blocks anything is lost.
    pub(super) fn restart(&mut self, server: usize) -> Vec<usize> {
        if !self.volatile {
            return Vec::new();
        }
        let cached = std::mem::replace(&mut self.cached[server], [None; BLOCKS]);
        (0..BLOCKS).filter(|block| cached[*block].is_some()).collect()
    }

    fn read(&self, server: usize, block: usize) -> u64 {
        let own = self.cached[server][block];
        let any = self.cached.iter().find_map(|cache| cache[block]);
        own.or(any.filter(|_| !self.incoherent)).unwrap_or(self.durable[block])
    }

    fn set(&mut self, server: usize, block: usize, value: u64) {
        let others = if self.incoherent { 0 } else { SERVERS };
        for other in (0..others).filter(|other| *other != server) {
            // It has to let go of it, and writes it back.
            self.write_through(other, block);
        }
        self.cached[server][block] = Some(value);
    }

    pub(super) fn flush(&mut self, server: usize) {
        (0..BLOCKS).for_each(|block| self.write_through(server, block));
    }

    fn write_through(&mut self, server: usize, block: usize) {
        if let Some(value) = self.cached[server][block].take() {
            self.durable[block] = value;
        }
    }

    /// Servers write back what they have when they have nothing better to do.
    pub(super) fn write_back(&mut self, dice: &mut Dice) {
        if self.incoherent && dice.one_in(4) {
            self.write_through(dice.below(SERVERS), dice.below(BLOCKS));
        }
    }

    fn write(&mut self, server: usize, first: usize, payload: &[u8]) {
        for (block, bytes) in (first..).zip(payload.chunks(usize::try_from(BLOCK).unwrap())) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            if value & REUSED != 0 || bytes.chunks(8).any(|word| word != value.to_le_bytes()) {
                let what = format!("block {block} is written from memory that its owner has back");
                self.problem.get_or_insert(what);
            }
            self.set(server, block, value);
        }
    }
}

/// A server process.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) style: HeaderStyle,
    pub(super) flags: TransmissionFlags,
    pub(super) size: u64,
    /// It closes a connection as soon as the client sends no more, and goes on with what it has (QEMU).
    pub(super) hasty: bool,
    /// It does nothing until then.
    pub(super) frozen_until: Duration,
    pub(super) end: End,
    /// Some of its requests fail.
    pub(super) fails: bool,
    /// It has much to write back.
    pub(super) slow_to_flush: bool,
    /// It hangs up on who writes this value.
    pub(super) poison: Option<u64>,
}

/// How far the orderly end of a server has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It has not begun.
    None,
    /// Nobody is let in any more.
    Draining,
    /// It is started anew then.
    DownUntil(Duration),
}

/// How long a server that ends serves a client that has not flushed what it has written.
const FLUSH_GRACE: Duration = Duration::from_millis(2500);
/// Then it cuts off whoever has no flush at the disk.
const CUT: Duration = Duration::from_secs(5);
/// How long a flush takes where there is much to write back: at least, and up to so much more.
const SLOW_FLUSH_MS: (usize, usize) = (2000, 3000);
/// The reply to a write and a flush may cross on their way: the client counts the write as not flushed then, and is given so long
/// to flush again. So it is where it was refused something.
const CROSSING: Duration = Duration::from_millis(1500);

/// A server's side of a connection.
pub(super) struct Session {
    pub(super) wire: Wire,
    pub(super) server: usize,
    shake: Option<Box<Handshake>>,
    style: HeaderStyle,
    input: Vec<u8>,
    /// Requests that are carried out later, each with its payload, and when it came.
    pending: Vec<(Duration, Request, Vec<u8>, Duration)>,
    /// The client sends nothing more.
    ended: bool,
    pub(super) open: bool,
    /// When something was written last.
    wrote_at: Option<Duration>,
    /// When a write or a flush was answered last, and when anything was.
    told_at: Duration,
    worked_at: Duration,
    /// When the server began to end.
    draining: Option<Duration>,
    /// The client has asked for something since.
    has_asked: bool,
    /// It was cut off while it may have had something to flush.
    pub(super) cut_short: bool,
    /// Whether the write that is coming was refused, once that is decided.
    refused_early: Option<bool>,
}

/// How quick things are.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// Most requests take up to so long.
    pub(super) usual_ms: usize,
    /// Some take up to so long.
    pub(super) slowest_ms: usize,
    /// A packet takes up to so long.
    pub(super) packet_ms: usize,
}

impl Session {
    pub(super) fn new(wire: Wire, server: usize, style: HeaderStyle) -> Self {
        let config = Config { best_style: style, ..Config::default() };
        let shake = Some(Box::new(Handshake::new(config)));
        let (input, pending) = (Vec::new(), Vec::new());
        let (told_at, worked_at) = (Duration::ZERO, Duration::ZERO);
        Self {
            wire,
            server,
            shake,
            style,
            input,
            pending,
            ended: false,
            open: true,
            wrote_at: None,
            told_at,
            worked_at,
            draining: None,
            has_asked: false,
            cut_short: false,
            refused_early: None,
        }
    }

    /// The server ends in order.
    pub(super) fn drain(&mut self, now: Duration) {
        self.draining = Some(now);
    }

    /// Whether something is not flushed, by whichever connection.
    fn is_unflushed(&self, storage: &Storage) -> bool {
        self.wrote_at.is_some_and(|at| at >= storage.flushed[self.server])
    }

    /// Whether the client may have something to flush.
    fn may_flush(&self, storage: &Storage, now: Duration) -> bool {
        let has_crossed = self.wrote_at.is_some() && now < self.told_at + CROSSING;
        has_crossed || self.is_unflushed(storage)
    }

    /// Whether the client has had its time to flush.
    fn is_late(&self, now: Duration) -> bool {
        self.draining.is_some_and(|since| now >= since + FLUSH_GRACE)
    }

    /// Whether the client is let go: nothing is to be done for it, and what it has written is flushed, or it had its time.
    fn is_let_go(&self, storage: &Storage, now: Duration) -> bool {
        let Some(since) = self.draining else { return false };
        // Of a message that has come in part, the rest may never be taken.
        let is_deaf = self.is_late(now) && !self.may_flush(storage, now);
        let is_quiet = self.pending.is_empty() && (is_deaf || self.input.is_empty());
        // Who has not heard of it will not flush because of it.
        let more = if self.has_asked { CROSSING } else { Duration::ZERO };
        let had_time = now >= self.worked_at.max(since + FLUSH_GRACE) + more
            && (self.has_asked || now >= self.told_at + CROSSING);
        is_quiet && (had_time || !self.may_flush(storage, now))
    }

    /// Whether nobody waits for the client any more, but for the answer to its flush.
    fn is_cut_off(&self, now: Duration) -> bool {
        let flushes = |(_, request, ..): &(_, Request, _, _)| request.command == Command::Flush;
        self.draining.is_some_and(|since| now >= since + CUT) && !self.pending.iter().any(flushes)
    }

    /// The server closes it: what was not carried out will not be.
    pub(super) fn close(&mut self, at: Duration) {
        self.open = false;
        self.pending.clear();
        self.wire.close(at);
    }

    /// The server sends what is no reply.
    pub(super) fn babble(&mut self, now: Duration, dice: &mut Dice) {
        if self.shake.is_none() {
            let bytes = (0..1 + dice.below(60)).map(|_| dice.next().to_le_bytes()[0]);
            let bytes: Vec<u8> = bytes.collect();
            self.wire.reply(now, &bytes, 20, dice);
        }
    }

    /// Takes what has arrived, and carries out what is due.
    pub(super) fn turn(
        &mut self,
        server: &Server,
        storage: &mut Storage,
        now: Duration,
        pace: Pace,
        dice: &mut Dice,
    ) {
        let packet_ms = if self.shake.is_some() { 1 } else { pace.packet_ms };
        self.wire.collect(now, packet_ms, dice);
        if now >= server.frozen_until {
            if self.wire.hung_up {
                // Threads go on with what they have.
                self.open = false;
            }
            // What comes now may be asked for elsewhere.
            let is_deaf = self.is_late(now) && !self.may_flush(storage, now);
            while self.open
                && !is_deaf
                && let Some(arrived) = self.wire.arrive(now)
            {
                match arrived {
                    Some(bytes) => self.input.extend(bytes),
                    None => self.ended = true,
                }
            }
            if self.open {
                self.shake(server, now, dice);
                self.take_requests(server, storage, now, pace, dice);
            }
            self.work(server, storage, now, pace, dice);
            if self.open && self.is_let_go(storage, now) {
                self.close(now);
            }
            if self.open && self.is_cut_off(now) {
                self.cut_short = self.may_flush(storage, now) || !self.pending.is_empty();
                self.close(now);
            }
            if self.open && self.ended && (server.hasty || self.pending.is_empty()) {
                self.open = false;
                self.wire.close(now);
            }
        }
        self.wire.deliver(now);
    }

    fn shake(&mut self, server: &Server, now: Duration, dice: &mut Dice) {
        let info = ExportInfo {
            name: "x".into(),
            description: String::new(),
            size: server.size,
            flags: server.flags,
            block_sizes: None,
        };
        let contexts = vec![BASE_ALLOCATION.to_owned()];
        let (tls_only, block_sizes_required) = (false, false);
        let exports = [Export { id: 0, info, contexts, tls_only, block_sizes_required }];
        let mut output = Vec::new();
        while let Some(shake) = &mut self.shake {
            let mut moved = shake.poll_transmit(&mut output);
            match shake.receive(&exports[..], &self.input) {
                Ok(taken) => {
                    moved |= taken > 0;
                    self.input.drain(..taken);
                }
                Err(_) => return self.close(now),
            }
            moved |= shake.poll_transmit(&mut output);
            match shake.poll_event() {
                Some(Event::Done(negotiated)) => {
                    self.style = negotiated.style;
                    let hears = negotiated.hears_shutdown;
                    assert_eq!(
                        hears,
                        self.style.has_chunks(),
                        "it flushes when it hears of an end"
                    );
                    self.shake = None;
                }
                Some(_) => return self.close(now),
                None if moved => {}
                None => break,
            }
        }
        self.wire.reply(now, &output, 1, dice);
    }

    fn take_requests(
        &mut self,
        server: &Server,
        storage: &Storage,
        now: Duration,
        pace: Pace,
        dice: &mut Dice,
    ) {
        while self.shake.is_none()
            && let Ok(Some(request)) = Request::parse(self.style, &self.input)
        {
            let payload = usize::try_from(request.payload_len(self.style)).unwrap();
            let len = self.style.request_len() + payload;
            if self.input.len() < len {
                self.may_refuse_early(server.fails, &request, now, pace, dice);
                break;
            }
            let message: Vec<u8> = self.input.drain(..len).collect();
            if self.refused_early.take() == Some(true) {
                continue;
            }
            if request.command == Command::Disc {
                self.ended = true;
                break;
            }
            self.worked_at = now;
            self.has_asked |= self.draining.is_some();
            let refuses = self.is_late(now) && self.may_flush(storage, now);
            if refuses && request.command != Command::Flush {
                let to = ReplyTo { cookie: request.cookie, offset: request.offset };
                let refusal = ReplyEncoder::new(self.style).error(to, ErrorCode::ESHUTDOWN);
                self.wire.reply(now, &refusal, pace.packet_ms, dice);
                continue;
            }
            let payload = message[self.style.request_len()..].to_vec();
            if server.poison.is_some_and(|value| payload.starts_with(&value.to_le_bytes())) {
                return self.close(now);
            }
            let longest = if dice.one_in(12) { pace.slowest_ms } else { pace.usual_ms };
            let is_slow = server.slow_to_flush && pace.slowest_ms > pace.usual_ms;
            let (least, longest) = if is_slow && request.command == Command::Flush {
                SLOW_FLUSH_MS
            } else {
                (0, longest)
            };
            let at = now + Duration::from_millis((least + dice.below(longest)) as u64);
            self.pending.push((at, request, payload, now));
        }
    }

    /// A server may refuse a write before it has all of it, and takes the rest all the same.
    fn may_refuse_early(
        &mut self,
        fails: bool,
        request: &Request,
        now: Duration,
        pace: Pace,
        dice: &mut Dice,
    ) {
        let syncs = request.flags.contains(CommandFlags::FUA);
        if self.refused_early.is_some() || !fails || syncs {
            return;
        }
        let refuses = dice.one_in(EARLY);
        self.refused_early = Some(refuses);
        if refuses {
            let to = ReplyTo { cookie: request.cookie, offset: request.offset };
            let refusal = ReplyEncoder::new(self.style).error(to, ErrorCode::EIO);
            self.wire.reply(now, &refusal, pace.packet_ms, dice);
        }
    }

    fn work(
        &mut self,
        server: &Server,
        storage: &mut Storage,
        now: Duration,
        pace: Pace,
        dice: &mut Dice,
    ) {
        let mut at = 0;
        while at < self.pending.len() {
            if self.pending[at].0 > now {
                at += 1;
                continue;
            }
            let (_, request, payload, came) = self.pending.swap_remove(at);
            storage.late += u64::from(!self.open && request.command == Command::Write);
            self.worked_at = now;
            match request.command {
                Command::Flush => {
                    storage.flushed[self.server] = storage.flushed[self.server].max(came);
                    self.told_at = now;
                }
                Command::Write | Command::WriteZeroes | Command::Trim => {
                    self.told_at = now;
                    if !request.flags.contains(CommandFlags::FUA) {
                        self.wrote_at = Some(now);
                    }
                }
                _ => {}
            }
            let reply = self.carry_out(server.fails, storage, &request, &payload, dice);
            self.wire.reply(now, &reply, pace.packet_ms, dice);
        }
    }

    fn carry_out(
        &self,
        fails: bool,
        storage: &mut Storage,
        request: &Request,
        payload: &[u8],
        dice: &mut Dice,
    ) -> Vec<u8> {
        let to = ReplyTo { cookie: request.cookie, offset: request.offset };
        let encoder = ReplyEncoder::new(self.style);
        // One that syncs and fails makes all flushes fail from then on.
        let syncs = request.command == Command::Flush || request.flags.contains(CommandFlags::FUA);
        if fails && dice.one_in(if syncs { 2000 } else { 60 }) {
            return encoder.error(to, ErrorCode::EIO).to_vec();
        }
        let first = usize::try_from(request.offset / BLOCK).unwrap();
        let count = usize::try_from(request.length / BLOCK).unwrap();
        match request.command {
            Command::Read => return self.read_reply(storage, to, first, count, dice),
            Command::Write => storage.write(self.server, first, payload),
            Command::WriteZeroes | Command::Trim => {
                (first..first + count).for_each(|block| storage.set(self.server, block, 0));
            }
            Command::Flush => storage.flush(self.server),
            _ => {}
        }
        if request.flags.contains(CommandFlags::FUA) {
            (first..first + count).for_each(|block| storage.write_through(self.server, block));
        }
        encoder.ok(to).to_vec()
    }

    /// In chunks of a block each, in any order, where the style has chunks.
    fn read_reply(
        &self,
        storage: &Storage,
        to: ReplyTo,
        first: usize,
        count: usize,
        dice: &mut Dice,
    ) -> Vec<u8> {
        let encoder = ReplyEncoder::new(self.style);
        let words = usize::try_from(BLOCK / 8).unwrap();
        let value = |block: usize| storage.read(self.server, block);
        let bytes = |block: usize| value(block).to_le_bytes().repeat(words);
        let mut reply = Vec::new();
        if !self.style.has_chunks() || dice.one_in(2) {
            let length = u32::try_from(count as u64 * BLOCK).unwrap();
            reply.extend_from_slice(&encoder.data(to, to.offset, length, true));
            (first..first + count).for_each(|block| reply.extend(bytes(block)));
            return reply;
        }
        let mut order: Vec<usize> = (first..first + count).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        for block in order {
            let offset = block as u64 * BLOCK;
            if value(block) == 0 {
                reply.extend_from_slice(&encoder.hole(to, offset, 512, false));
            } else {
                reply.extend_from_slice(&encoder.data(to, offset, 512, false));
                reply.extend(bytes(block));
            }
        }
        reply.extend_from_slice(&encoder.ok(to));
        reply
    }
}
