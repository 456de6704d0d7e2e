//! The server's side of the transmission phase, without I/O.
//!
//! The owner of a [`Connection`] receives bytes and gives them to [`receive`](Connection::receive), or receives
//! straight into [`place`](Connection::place); has the disk do what [`poll_request`](Connection::poll_request)
//! says; returns what has ended by [`complete`](Connection::complete); sends what
//! [`poll_transmit`](Connection::poll_transmit) gives, from wherever that lies, and says by
//! [`sent`](Connection::sent) how much of it went. Before it waits, it asks [what for](Connection::waits_for), and
//! for the [`deadline`](Connection::deadline): time comes in there, so that no clock is read for each message.

mod budget;
mod input;
mod output;
mod patience;
mod queue;
mod reply;
mod slots;
mod waits;

use std::collections::VecDeque;
use std::ops::Range;

use super::handshake::Negotiated;
use super::reply::ReplyEncoder;
use super::rules::RequestRules;
use crate::error::Error;
use crate::export::MetaContext;
use crate::wire::{Command, CommandFlags, ErrorCode, HeaderStyle};
pub use budget::{Lease, MemoryBudget, MemoryShare};
pub use input::Place;
use input::{Input, Payload};
use output::Output;
pub use output::Piece;
use patience::Patience;
pub use patience::{Direction, Expired, HalfWay, PRESSED_TIMEOUT};
use slots::Slots;
pub use waits::Waits;

/// Bytes of unsent headers from which on nothing more is received: only error replies and block status come to
/// as much.
const MAX_UNSENT_HEADS: usize = 64 << 10;
/// More room for bytes that wait than a connection keeps.
const KEPT_BACKLOG: usize = 4 << 10;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Requests that were begun and whose replies are not sent.
    pub in_flight: usize,
    /// Bytes that these may occupy, and bytes that those may change or prefetch which occupy none. One request always may
    /// begin.
    pub memory: usize,
    /// The longest slice that is given to [`Connection::receive`]: what a payload keeps that is left in there.
    pub window: usize,
    /// Bits that the address of a payload must not have for it to be left where it was received.
    pub alignment: usize,
    /// How long a message may be half-way, in either direction, without a byte moving.
    pub stall_timeout: std::time::Duration,
    /// How long a client may ask for nothing.
    pub idle_timeout: Option<std::time::Duration>,
}

/// Memory for a payload.
pub trait Memory {
    /// The bytes, at least as many as were asked for.
    fn bytes(&mut self) -> &mut [u8];
}

/// What carries a request to the disk, and the answer back.
pub trait Work {
    /// The token of its [`Submission`].
    fn token(&self) -> usize;
    /// How it failed, if it did.
    fn error(&self) -> Option<ErrorCode>;
    /// Segments of the data that a READ has brought.
    fn segments(&self) -> usize;
    /// Bytes of one of them.
    fn segment_len(&self, segment: usize) -> usize;
    /// Whether one of them is known to be zeroes.
    fn is_zero(&self, segment: usize) -> bool;
    /// What a BLOCK_STATUS has found: lengths, and flags of `base:allocation`.
    fn extents(&self) -> impl Iterator<Item = (u64, u64)>;
}

/// A request for the disk.
#[derive(Debug)]
pub struct Submission<M> {
    /// To be told by [`Work::token`].
    pub token: usize,
    /// What to do: never DISC or anything unknown.
    pub command: Command,
    /// Those that are valid for the command.
    pub flags: CommandFlags,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How much of it, in bytes.
    pub length: u64,
    /// What a WRITE writes.
    pub data: Data<M>,
}

/// Where the payload of a WRITE is.
#[derive(Debug)]
pub enum Data<M> {
    /// There is none.
    None,
    /// A range of what was given to the call of [`Connection::receive`] before.
    Here(Range<usize>),
    /// In memory of its own.
    Chunks(Vec<Chunk<M>>),
}

/// Memory that is filled with a payload.
#[derive(Debug)]
pub struct Chunk<M> {
    /// The memory.
    pub memory: M,
    /// Bytes of it that belong to the payload.
    pub len: usize,
    got: usize,
}

/// Why no more requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The client has said goodbye: "The server MUST handle all outstanding requests" (`NBD_CMD_DISC`).
    Goodbye,
    /// Nothing more will come from the client.
    Left,
    /// Nothing more will come from the client, and it was in the middle of a message.
    Truncated,
    /// The client has broken the protocol in a way that no reply can repair: see [`Connection::violation`].
    Broken,
    /// The server ends.
    Shutdown,
}

/// One connection in its transmission phase.
///
/// `W` carries requests to the disk and answers back, `M` is memory for payloads: the connection looks at both,
/// and never copies data but into an `M`.
#[derive(Debug)]
pub struct Connection<W, M> {
    style: HeaderStyle,
    rules: RequestRules,
    contexts: Vec<MetaContext>,
    encoder: ReplyEncoder,
    /// Extents are told in multiples of it, in bytes.
    block: u64,
    max_payload: u32,
    limits: ConnectionLimits,
    input: Input<M>,
    /// Received, and not to be taken before there is room.
    backlog: Vec<u8>,
    slots: Slots,
    ready: VecDeque<Submission<M>>,
    out: Output<W>,
    lease: Lease,
    /// Bytes of memory that requests hold.
    held: usize,
    /// Bytes of receive buffers that writes keep from others.
    pinned: usize,
    /// A payload was left where it was received, and its buffer is not counted there yet.
    is_left_here: bool,
    /// Requests that the disk has.
    at_disk: usize,
    /// Bytes that these change or prefetch without holding memory.
    working: u64,
    /// Why nothing more is received.
    left: Option<Ending>,
    violation: Option<Error>,
    shutting_down: bool,
    /// Nothing is begun any more but flushes.
    refuses: bool,
    /// The client was told so.
    has_refused: bool,
    /// The end waits for a flush.
    awaits_flush: bool,
    /// The client takes no replies any more.
    is_deserted: bool,
    patience: Patience,
}

impl<W: Work, M: Memory> Connection<W, M> {
    /// After its handshake. `lease` is its part of the memory of all connections.
    #[must_use]
    pub fn new(negotiated: &Negotiated, mut limits: ConnectionLimits, lease: Lease) -> Self {
        let sizes = negotiated.export.block_sizes();
        // More is never to be had.
        limits.memory = limits.memory.min(lease.most());
        Self {
            style: negotiated.style,
            rules: RequestRules::new(negotiated),
            contexts: negotiated.contexts.clone(),
            encoder: ReplyEncoder::new(negotiated.style),
            block: sizes.minimum().into(),
            max_payload: sizes.max_payload(),
            limits,
            input: Input::default(),
            backlog: Vec::new(),
            slots: Slots::default(),
            ready: VecDeque::new(),
            out: Output::default(),
            lease,
            held: 0,
            pinned: 0,
            is_left_here: false,
            at_disk: 0,
            working: 0,
            left: None,
            violation: None,
            shutting_down: false,
            refuses: false,
            has_refused: false,
            awaits_flush: false,
            is_deserted: false,
            patience: Patience::default(),
        }
    }

    /// The size of the export is this many bytes now.
    pub fn set_size(&mut self, size: u64) {
        self.rules.size = size;
    }

    /// Writes keep this many bytes of receive buffers from others. Until this is called, the buffer of a
    /// [payload that was left there](Data::Here) counts as one that is kept.
    pub fn set_pinned(&mut self, bytes: usize) {
        self.pinned = bytes;
        self.is_left_here = false;
    }

    /// The server ends, and the connection does as soon as it is quiet. What is asked for until then is carried out: an error
    /// would be the client's last word, where one that only sees the connection end may ask for the same again by another.
    pub fn shut_down(&mut self) {
        if !self.shutting_down {
            self.patience.restart();
        }
        self.shutting_down = true;
    }

    /// From now on every request but a flush is answered with ESHUTDOWN; those at the disk are answered as they end.
    pub fn refuse_requests(&mut self) {
        self.refuses = true;
    }

    /// Whether a request was answered so: the client knows of the end.
    #[must_use]
    pub fn has_refused(&self) -> bool {
        self.has_refused
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    /// Whether the end waits for the client to flush what it has written: until then being quiet is not the end.
    pub fn set_awaits_flush(&mut self, awaits_flush: bool) {
        self.awaits_flush = awaits_flush;
    }

    /// Whether the end waits for a flush of the client's.
    #[must_use]
    pub fn awaits_flush(&self) -> bool {
        self.awaits_flush
    }

    /// The client takes no replies any more, so that none are made, and what only asks for one is not begun. What it wants
    /// changed is: it may have said goodbye behind that, and what was asked for before is to be handled ("`NBD_CMD_DISC`").
    pub fn desert(&mut self) {
        self.is_deserted = true;
        self.out.clear();
        self.held -= self.slots.give_up_answers();
        let claimed = self.claimed();
        self.lease.shrink_to(claimed);
    }

    /// Bytes have moved that are of no use yet: those of a record of TLS, say.
    pub fn moved(&mut self, direction: Direction) {
        self.patience.moved(direction);
    }

    /// What the disk has to do next.
    pub fn poll_request(&mut self) -> Option<Submission<M>> {
        let request = self.ready.pop_front()?;
        self.at_disk += 1;
        Some(request)
    }

    /// What is to be sent, in this order.
    pub fn poll_transmit(&self) -> impl Iterator<Item = Piece<'_, W>> {
        self.out.pieces()
    }

    /// Whether anything is to be sent.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        !self.out.is_empty()
    }

    /// `bytes` of what [`poll_transmit`](Self::poll_transmit) gives were sent.
    ///
    /// # Panics
    ///
    /// If it gave fewer.
    pub fn sent(&mut self, bytes: usize) {
        if bytes > 0 {
            self.patience.moved(Direction::Out);
            self.out.advance(bytes);
        }
    }

    /// One that carries nothing any more, as its reply was sent.
    pub fn poll_free(&mut self) -> Option<W> {
        let work = self.out.pop_sent()?;
        let slot = self.slots.remove(work.token());
        self.release(slot.charge);
        Some(work)
    }

    /// A part of the memory is not needed any more. What nobody waits for is kept for the next request.
    fn release(&mut self, bytes: usize) {
        self.held -= bytes;
        if self.lease.is_wanted() {
            let claimed = self.claimed();
            self.lease.shrink_to(claimed);
        }
    }

    /// The connection is over: what is not at the disk is given up, and so are the replies to what was. Payloads at the
    /// disk go on to count, answers that nobody will read do not; call this again when some of that
    /// [has ended](Self::complete).
    pub fn hang_up(&mut self) {
        self.left = self.left.or(Some(Ending::Left));
        self.backlog = Vec::new();
        self.lease.stash(0);
        if let Input::Payload(payload) = std::mem::take(&mut self.input) {
            self.held -= payload.charge;
            self.give_up_piece(payload.whole);
        }
        while let Some(request) = self.ready.pop_front() {
            let slot = self.slots.remove(request.token);
            self.held -= slot.charge;
            self.working -= slot.work;
            self.give_up_piece(slot.whole);
        }
        self.out.clear();
        while self.poll_free().is_some() {}
        self.held -= self.slots.give_up_answers();
        self.lease.leave_queue();
        self.lease.shrink_to(self.held_now());
    }

    /// One piece less of a write will end.
    fn give_up_piece(&mut self, whole: Option<usize>) {
        let Some(whole) = whole else { return };
        let slot = self.slots.get(whole);
        slot.pieces -= 1;
        if slot.pieces == 0 {
            self.slots.remove(whole);
        }
    }

    /// Requests that were begun and whose replies are not sent.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing is at the disk or to be sent.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        // A write of which pieces are done and others are the client's to send.
        let half = match &self.input {
            Input::Payload(Payload { whole: Some(whole), .. }) => {
                usize::from(self.slots.is_waiting_for_more(*whole))
            }
            _ => 0,
        };
        self.slots.len() == half && self.out.is_empty()
    }

    /// Whether nothing is under way in any direction: the client's next request is all that there is to wait for.
    #[must_use]
    pub fn is_between_requests(&self) -> bool {
        self.is_quiet() && !self.is_half_way() && !self.has_backlog()
    }

    /// Why the connection ends once it [is quiet](Self::is_quiet), if it does.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        // A flush that waits for its turn.
        let is_blocked = matches!(self.input, Input::Blocked { .. });
        let shuts_down = self.shutting_down && !is_blocked && !self.awaits_flush;
        self.left.or(shuts_down.then_some(Ending::Shutdown))
    }

    /// The rule that the client has broken, if it has.
    pub fn violation(&mut self) -> Option<Error> {
        self.violation.take()
    }
}
