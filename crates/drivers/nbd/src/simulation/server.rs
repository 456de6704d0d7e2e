//! A model server with a volatile cache, and the wires to it.

use std::collections::VecDeque;
use std::time::Duration;

use blockyard_nbd::server::{ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};

use super::dice::Dice;

pub(super) const BLOCK: u64 = 512;
pub(super) const BLOCKS: usize = 12;

/// What arrives at an end of a wire.
pub(super) enum Arrival {
    Bytes(Vec<u8>),
    End,
}

/// One direction: what is on its way, in order.
#[derive(Default)]
pub(super) struct Way {
    queue: VecDeque<(Duration, Arrival)>,
    /// Nothing more is put on it.
    closed: bool,
}

impl Way {
    pub(super) fn send(&mut self, at: Duration, what: Arrival) {
        if self.closed {
            return;
        }
        self.closed = matches!(what, Arrival::End);
        let at = self.queue.back().map_or(at, |(last, _)| at.max(*last));
        self.queue.push_back((at, what));
    }

    pub(super) fn receive(&mut self, now: Duration) -> Option<Arrival> {
        let due = self.queue.front().is_some_and(|(at, _)| *at <= now);
        self.queue.pop_front().filter(|_| due).map(|(_, what)| what)
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.queue.front().is_some_and(|(at, _)| *at <= now)
    }

    /// Loses what is on the way, and all that would come.
    pub(super) fn cut(&mut self) {
        self.queue.clear();
        self.closed = true;
    }

    /// Ends it at once, whatever is on the way.
    pub(super) fn reset(&mut self, at: Duration) {
        self.queue.clear();
        self.closed = false;
        self.send(at, Arrival::End);
    }
}

/// A connection, with the server's end of it.
#[derive(Default)]
pub(super) struct Wire {
    pub(super) to_server: Way,
    pub(super) to_client: Way,
    input: Vec<u8>,
    /// Requests that are carried out later, each with its payload.
    pending: Vec<(Duration, Request, Vec<u8>)>,
    /// The client sends nothing more.
    ended: bool,
    pub(super) open: bool,
}

impl Wire {
    pub(super) fn new() -> Self {
        Self { open: true, ..Self::default() }
    }

    /// The server closes it: what was not carried out will not be.
    pub(super) fn close(&mut self, at: Duration) {
        self.open = false;
        self.pending.clear();
        self.to_client.send(at, Arrival::End);
    }
}

pub(super) struct Server {
    pub(super) style: HeaderStyle,
    /// The values of the blocks, as they are read, and as they survive a power cut.
    blocks: [u64; BLOCKS],
    durable: [u64; BLOCKS],
    volatile: bool,
    /// Writes that were carried out for connections that their client had given up.
    pub(super) late: u64,
}

impl Server {
    pub(super) fn new(style: HeaderStyle, volatile: bool) -> Self {
        Self { style, blocks: [0; BLOCKS], durable: [0; BLOCKS], volatile, late: 0 }
    }

    /// Power fails, or the process is killed: says whether anything may be lost.
    pub(super) fn restart(&mut self) -> bool {
        if self.volatile {
            self.blocks = self.durable;
        }
        self.volatile
    }

    /// Takes what has arrived, and carries out what is due.
    pub(super) fn turn(
        &mut self,
        wire: &mut Wire,
        now: Duration,
        slowest: usize,
        gone: bool,
        dice: &mut Dice,
    ) {
        while wire.to_server.is_due(now) {
            match wire.to_server.receive(now) {
                Some(Arrival::Bytes(bytes)) => wire.input.extend(bytes),
                Some(Arrival::End) => wire.ended = true,
                None => {}
            }
        }
        if !wire.open {
            return;
        }
        while let Ok(Some(request)) = Request::parse(self.style, &wire.input) {
            let payload = usize::try_from(request.payload_len(self.style)).unwrap();
            let len = self.style.request_len() + payload;
            if wire.input.len() < len {
                break;
            }
            let message: Vec<u8> = wire.input.drain(..len).collect();
            if request.command == Command::Disc {
                wire.ended = true;
                break;
            }
            let delay = if dice.one_in(20) { dice.below(slowest) } else { dice.below(30) };
            let at = now + Duration::from_millis(delay as u64);
            wire.pending.push((at, request, message[self.style.request_len()..].to_vec()));
        }
        let mut at = 0;
        while at < wire.pending.len() {
            if wire.pending[at].0 > now {
                at += 1;
                continue;
            }
            let (_, request, payload) = wire.pending.swap_remove(at);
            self.late += u64::from(gone && request.command == Command::Write);
            let reply = self.carry_out(&request, &payload, dice);
            let arrival = now + Duration::from_millis(dice.below(40) as u64);
            wire.to_client.send(arrival, Arrival::Bytes(reply));
        }
        if wire.ended && wire.pending.is_empty() {
            wire.close(now + Duration::from_millis(dice.below(20) as u64));
        }
    }

    fn carry_out(&mut self, request: &Request, payload: &[u8], dice: &mut Dice) -> Vec<u8> {
        let to = ReplyTo { cookie: request.cookie, offset: request.offset };
        let encoder = ReplyEncoder::new(self.style);
        if dice.one_in(60) {
            return encoder.error(to, ErrorCode::EIO).to_vec();
        }
        let first = usize::try_from(request.offset / BLOCK).unwrap();
        let count = usize::try_from(request.length / BLOCK).unwrap();
        match request.command {
            Command::Read => return self.read_reply(encoder, to, first, count, dice),
            Command::Write => {
                for (block, bytes) in (first..).zip(payload.chunks(usize::try_from(BLOCK).unwrap()))
                {
                    self.blocks[block] = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                }
            }
            Command::WriteZeroes | Command::Trim => self.blocks[first..first + count].fill(0),
            Command::Flush => self.durable = self.blocks,
            _ => {}
        }
        if request.flags.contains(CommandFlags::FUA) {
            self.durable[first..first + count].copy_from_slice(&self.blocks[first..first + count]);
        }
        encoder.ok(to).to_vec()
    }

    /// In chunks of a block each, in any order, where the style has chunks.
    fn read_reply(
        &self,
        encoder: ReplyEncoder,
        to: ReplyTo,
        first: usize,
        count: usize,
        dice: &mut Dice,
    ) -> Vec<u8> {
        let bytes = |block: usize| {
            let mut bytes = vec![0; usize::try_from(BLOCK).unwrap()];
            bytes[..8].copy_from_slice(&self.blocks[block].to_le_bytes());
            bytes
        };
        let mut reply = Vec::new();
        if !self.style.has_chunks() || dice.one_in(2) {
            reply.extend_from_slice(&encoder.data(
                to,
                to.offset,
                u32::try_from(count as u64 * BLOCK).unwrap(),
                true,
            ));
            (first..first + count).for_each(|block| reply.extend(bytes(block)));
            return reply;
        }
        let mut order: Vec<usize> = (first..first + count).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        for block in order {
            let offset = block as u64 * BLOCK;
            if self.blocks[block] == 0 {
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
