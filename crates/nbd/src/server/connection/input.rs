//! From received bytes to requests.

use super::patience::Direction;
use super::slots::{Slot, work_of};
use super::{
    Chunk, Connection, Data, Ending, KEPT_BACKLOG, MAX_UNSENT_HEADS, Memory, Submission, Work,
};
use crate::error::Error;
use crate::server::{Rejection, ReplyTo, Then};
use crate::wire::{Command, CommandFlags, ErrorCode, HeaderStyle, Request};

/// The shortest rest of a payload that is received into its place. A shorter one is copied there, which costs
/// less than receiving it alone.
const IN_PLACE_MIN: usize = 16 << 10;
/// The memory that a long payload gets first. It gets more as it comes: at most as much again as has come.
const FIRST_CHUNK: usize = 256 << 10;
/// The least that a payload gets at a time.
const MIN_CHUNK: usize = 4 << 10;
/// The longest header of a request.
const MAX_HEADER_LEN: usize = HeaderStyle::Extended.request_len();
/// What a block status query counts for: the extents of a long answer.
const STATUS_CHARGE: usize = 1 << 20;

/// Where in a message the client is. There is no other state of receiving.
#[derive(Debug)]
pub(super) enum Input<M> {
    /// A header, as far as it has come.
    Header { bytes: [u8; MAX_HEADER_LEN], have: usize },
    /// A request that waits for room, or was told of some. Nothing is received meanwhile.
    Blocked { request: Request, has_room: bool },
    /// The payload of a WRITE.
    Payload(Payload<M>),
    /// The payload of a BLOCK_STATUS, as far as it has come.
    Query { request: Request, bytes: Vec<u8> },
    /// Bytes to be thrown away: the payload of a request that is refused.
    Discard { left: u64, to: ReplyTo, error: ErrorCode, reason: &'static str },
}

impl<M> Default for Input<M> {
    fn default() -> Self {
        Self::Header { bytes: [0; MAX_HEADER_LEN], have: 0 }
    }
}

/// Where the next bytes of a payload belong.
#[derive(Debug)]
pub struct Place<'a> {
    /// The memory.
    pub bytes: &'a mut [u8],
    /// Whether a header comes behind.
    pub is_last: bool,
}

/// A WRITE whose payload is copied or received into memory of its own.
#[derive(Debug)]
pub(super) struct Payload<M> {
    request: Request,
    /// Where in the export the first chunk belongs.
    offset: u64,
    /// All but the last are full.
    chunks: Vec<Chunk<M>>,
    /// Bytes that have not come.
    pub(super) left: usize,
    /// Bytes of memory that the chunks hold.
    pub(super) charge: usize,
    /// The slot of the whole, once a piece is on its way.
    pub(super) whole: Option<usize>,
    /// There was no memory for what comes next.
    pub(super) starved: bool,
}

impl<M: Memory> Payload<M> {
    /// Bytes that are there for what comes next.
    fn room(&mut self) -> Option<&mut [u8]> {
        let Chunk { memory, len, got } = self.chunks.last_mut()?;
        let (len, got) = (*len, *got);
        if got < len { memory.bytes().get_mut(got..len) } else { None }
    }

    fn filled(&mut self, bytes: usize) {
        if let Some(last) = self.chunks.last_mut() {
            last.got += bytes;
            self.left -= bytes;
        }
    }
}

impl<W: Work, M: Memory> Connection<W, M> {
    /// Whether there is a use for more input.
    pub fn may_receive(&mut self) -> bool {
        if self.left.is_some() || self.out.heads_len() > MAX_UNSENT_HEADS {
            return false;
        }
        match &self.input {
            Input::Blocked { has_room: true, .. } => true,
            Input::Blocked { request, .. } => {
                let request = *request;
                if self.check(&request).is_err() {
                    return true;
                }
                let has_room = self.has_room_for(&request);
                self.input = Input::Blocked { request, has_room };
                has_room
            }
            Input::Payload(payload) => !payload.starved || self.next_chunk_len().is_some(),
            Input::Header { .. } | Input::Query { .. } | Input::Discard { .. } => true,
        }
    }

    /// Takes requests off the front of `bytes`, and says how many bytes those were. The rest, if there is any,
    /// finds no room now: give it to [`stash`](Self::stash). `memory` makes memory for payloads.
    ///
    /// Behind a message that breaks the protocol in a way that no reply can repair, nothing is taken for a request:
    /// what came before it is answered, and [that is the end](Ending::Broken).
    pub fn receive(&mut self, bytes: &[u8], memory: &mut dyn FnMut(usize) -> M) -> usize {
        if !bytes.is_empty() {
            self.patience.moved(Direction::In);
        }
        match self.take_requests(bytes, memory) {
            Ok(taken) => taken,
            Err(violation) => {
                self.violation = Some(violation);
                self.left = Some(Ending::Broken);
                self.input = Input::default();
                bytes.len()
            }
        }
    }

    fn take_requests(
        &mut self,
        bytes: &[u8],
        memory: &mut dyn FnMut(usize) -> M,
    ) -> Result<usize, Error> {
        let mut at = 0;
        while self.left.is_none() {
            let went_on = match &mut self.input {
                Input::Header { .. } => match self.next_header(bytes, &mut at)? {
                    Some(request) => self.begin(&request, false, bytes, &mut at)?,
                    None => false,
                },
                Input::Blocked { request, has_room } => {
                    let (request, has_room) = (*request, *has_room);
                    self.input = Input::default();
                    self.begin(&request, has_room, bytes, &mut at)?
                }
                Input::Payload(_) => self.fill_payload(bytes, &mut at, memory),
                Input::Query { .. } => self.fill_query(bytes, &mut at),
                Input::Discard { .. } => self.discard(bytes, &mut at),
            };
            if !went_on {
                return Ok(at);
            }
        }
        // Behind a goodbye there is nothing.
        Ok(bytes.len())
    }

    /// Nothing will come any more.
    pub fn end_of_input(&mut self) {
        let ending = if self.is_half_way() { Ending::Truncated } else { Ending::Left };
        self.left = self.left.or(Some(ending));
    }

    /// Whether a message has begun and the rest of it is the client's to send.
    pub(super) fn is_half_way(&self) -> bool {
        match &self.input {
            Input::Header { have, .. } => *have > 0,
            Input::Blocked { .. } => false,
            Input::Payload(_) | Input::Query { .. } | Input::Discard { .. } => true,
        }
    }

    /// Keeps what [`receive`](Self::receive) has left.
    pub fn stash(&mut self, bytes: &[u8]) {
        self.backlog.extend_from_slice(bytes);
        self.lease.stash(self.backlog.len());
    }

    /// How many bytes may be received at a time, `most` at most: what finds no room has to wait in the
    /// [`stash`](Self::stash), and that of all connections is bounded, too.
    #[must_use]
    pub fn window(&self, most: usize) -> usize {
        self.lease.window(most)
    }

    /// Whether there is anything in the [`stash`](Self::stash), or a request that waits for room.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || matches!(self.input, Input::Blocked { .. })
    }

    /// Moves the stash to the front of `into`, which is as long as what it came from, and says how long it is.
    ///
    /// # Panics
    ///
    /// If it is longer.
    pub fn take_backlog(&mut self, into: &mut [u8]) -> usize {
        let len = self.backlog.len();
        into[..len].copy_from_slice(&self.backlog);
        self.backlog.clear();
        if self.backlog.capacity() > KEPT_BACKLOG {
            self.backlog = Vec::new();
        }
        len
    }

    /// Where the next bytes belong, if that is memory of a payload's own and worth a call.
    pub fn place(&mut self, memory: &mut dyn FnMut(usize) -> M) -> Option<Place<'_>> {
        let Input::Payload(payload) = &mut self.input else { return None };
        if payload.left < IN_PLACE_MIN || !self.backlog.is_empty() {
            return None;
        }
        if payload.room().is_none() {
            self.grow(memory);
        }
        let Input::Payload(payload) = &mut self.input else { return None };
        let left = payload.left;
        let bytes = payload.room()?;
        Some(Place { is_last: bytes.len() == left, bytes })
    }

    /// The first `bytes` of [`place`](Self::place) have been received.
    pub fn placed(&mut self, bytes: usize) {
        let Input::Payload(payload) = &mut self.input else { return };
        payload.filled(bytes);
        let is_whole = payload.left == 0;
        if bytes > 0 {
            self.patience.moved(Direction::In);
        }
        if is_whole {
            self.finish_payload();
        }
    }

    fn next_header(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<Request>, Error> {
        let len = self.style.request_len();
        let Input::Header { bytes: header, have } = &mut self.input else { return Ok(None) };
        let rest = &bytes[*at..];
        if *have == 0 && rest.len() >= len {
            *at += len;
            return Request::parse(self.style, rest);
        }
        let more = (len - *have).min(rest.len());
        header[*have..*have + more].copy_from_slice(&rest[..more]);
        *at += more;
        *have += more;
        let request = Request::parse(self.style, &header[..*have])?;
        if request.is_some() {
            *have = 0;
        }
        Ok(request)
    }

    /// Begins a request whose header ends at `at`, and that may have been told of room. Says whether to go on.
    fn begin(
        &mut self,
        request: &Request,
        has_room: bool,
        bytes: &[u8],
        at: &mut usize,
    ) -> Result<bool, Error> {
        if request.command == Command::Disc {
            // Whatever flags are with it: there is nobody who would read a refusal.
            self.left = Some(Ending::Goodbye);
            return Ok(true);
        }
        // Whatever comes of it, it may add to these.
        let may_answer = self.out.heads_len() <= MAX_UNSENT_HEADS;
        if may_answer && let Err(rejection) = self.check(request) {
            self.has_refused |= rejection.error == ErrorCode::ESHUTDOWN;
            return self.reject(request, rejection);
        }
        if !may_answer || !(has_room || self.has_room_for(request)) {
            self.input = Input::Blocked { request: *request, has_room };
            return Ok(false);
        }
        let is_query = request.command == Command::BlockStatus
            && request.flags.contains(CommandFlags::PAYLOAD_LEN);
        if request.command == Command::Write {
            self.begin_write(request, bytes, at);
        } else if is_query {
            self.input = Input::Query { request: *request, bytes: Vec::new() };
        } else {
            self.push(request, request.length, charge_of(request), Data::None);
        }
        Ok(true)
    }

    fn check(&self, request: &Request) -> Result<(), Rejection> {
        self.rules.check(request)?;
        if self.is_deserted && !changes(request.command) {
            return Err(Rejection {
                error: ErrorCode::EIO,
                reason: "the client reads no replies any more",
                then: Then::Skip(request.payload_len(self.style)),
            });
        }
        // Whoever leaves wants what was written to be durable first, and takes a refusal for a loss.
        if self.refuses && request.command != Command::Flush {
            return Err(Rejection {
                error: ErrorCode::ESHUTDOWN,
                reason: "the server is shutting down",
                then: Then::Skip(request.payload_len(self.style)),
            });
        }
        Ok(())
    }

    fn begin_write(&mut self, request: &Request, bytes: &[u8], at: &mut usize) {
        let whole = usize::try_from(request.length).unwrap_or(usize::MAX);
        if let Some(data) = bytes[*at..].get(..whole)
            && data.as_ptr().addr() & self.limits.alignment == 0
            && self.lease.covers(self.held_with_buffer())
        {
            let here = *at..*at + whole;
            *at = here.end;
            self.is_left_here = true;
            self.push(request, request.length, 0, Data::Here(here));
            return;
        }
        self.input = Input::Payload(Payload {
            request: *request,
            offset: request.offset,
            chunks: Vec::new(),
            left: whole,
            charge: 0,
            whole: None,
            starved: false,
        });
    }

    fn fill_payload(
        &mut self,
        bytes: &[u8],
        at: &mut usize,
        memory: &mut dyn FnMut(usize) -> M,
    ) -> bool {
        while let Input::Payload(payload) = &mut self.input {
            if payload.left == 0 {
                self.finish_payload();
                return true;
            }
            let rest = &bytes[*at..];
            if rest.is_empty() {
                return false;
            }
            match payload.room() {
                Some(room) => {
                    let len = room.len().min(rest.len());
                    room[..len].copy_from_slice(&rest[..len]);
                    payload.filled(len);
                    *at += len;
                }
                None => {
                    if !self.grow(memory) {
                        return false;
                    }
                }
            }
        }
        false
    }

    /// Gives a payload the next memory. Says whether there was any to be had.
    fn grow(&mut self, memory: &mut dyn FnMut(usize) -> M) -> bool {
        let len = self.next_chunk_len().or_else(|| {
            self.shed();
            self.next_chunk_len()
        });
        let Input::Payload(payload) = &mut self.input else { return false };
        payload.starved = len.is_none();
        let Some(len) = len else { return false };
        let charge = chunk_charge(len);
        self.held += charge;
        payload.charge += charge;
        payload.chunks.push(Chunk { memory: memory(len), len, got: 0 });
        true
    }

    /// How much memory a payload whose chunks are full may have next.
    ///
    /// Usually that is plenty. When memory is short, it is what the connection has for itself: little, but nobody
    /// has to be waited for. So a payload that is half here never keeps what another one needs to become whole.
    fn next_chunk_len(&mut self) -> Option<usize> {
        let Input::Payload(payload) = &self.input else { return None };
        let came = payload.chunks.iter().map(|chunk| chunk.len).sum();
        let (left, plenty) = (payload.left, FIRST_CHUNK.max(came).min(payload.left));
        let held = self.held_now();
        if self.lease.covers(held + chunk_charge(plenty)) {
            return Some(plenty);
        }
        let granule = usize::try_from(self.block).unwrap_or(usize::MAX).max(MIN_CHUNK);
        let own = self.lease.own().max(granule);
        // Who has nothing at the disk always has this.
        let spare = own.saturating_sub(held);
        if spare < granule {
            return None;
        }
        // A power of two, as memory comes in these.
        Some((1 << spare.ilog2()).min(left))
    }

    /// Sends the part of a payload that is here to the disk, so that its memory becomes free.
    fn shed(&mut self) {
        let Input::Payload(payload) = &mut self.input else { return };
        if payload.chunks.is_empty() {
            return;
        }
        let whole = *payload.whole.get_or_insert_with(|| {
            let mut slot = Slot::new(&payload.request, payload.request.length, 0);
            slot.pieces = 1;
            self.slots.insert(slot)
        });
        self.push_piece(whole);
    }

    /// The payload is complete.
    fn finish_payload(&mut self) {
        let Input::Payload(payload) = &mut self.input else { return };
        match payload.whole {
            Some(whole) => {
                self.push_piece(whole);
                // No more pieces are to come.
                self.slots.get(whole).pieces -= 1;
            }
            None => {
                let (request, charge) = (payload.request, payload.charge);
                let chunks = std::mem::take(&mut payload.chunks);
                // It was counted as it came.
                self.held -= charge;
                self.push(&request, request.length, charge, Data::Chunks(chunks));
            }
        }
        self.input = Input::default();
    }

    fn push_piece(&mut self, whole: usize) {
        let Input::Payload(payload) = &mut self.input else { return };
        let chunks = std::mem::take(&mut payload.chunks);
        let length: usize = chunks.iter().map(|chunk| chunk.len).sum();
        let length = length as u64;
        let request = Request { offset: payload.offset, length, ..payload.request };
        payload.offset += length;
        let charge = std::mem::take(&mut payload.charge);
        let mut slot = Slot::new(&request, length, charge);
        slot.whole = Some(whole);
        self.slots.get(whole).pieces += 1;
        let token = self.slots.insert(slot);
        self.ready.push_back(Submission {
            token,
            command: Command::Write,
            flags: request.flags,
            offset: request.offset,
            length,
            data: Data::Chunks(chunks),
        });
    }

    /// A BLOCK_STATUS that names its contexts: there is but one, so that it matters only for the length.
    fn fill_query(&mut self, input: &[u8], at: &mut usize) -> bool {
        let Input::Query { request, bytes } = &mut self.input else { return false };
        let whole = usize::try_from(request.length).unwrap_or(usize::MAX);
        let more = (whole - bytes.len()).min(input.len() - *at);
        bytes.extend_from_slice(&input[*at..*at + more]);
        *at += more;
        if bytes.len() < whole {
            return false;
        }
        let (request, bytes) = (*request, std::mem::take(bytes));
        self.input = Input::default();
        match self.rules.status_query(&request, &bytes, &self.contexts) {
            Err(Rejection { error, reason, .. }) => self.refuse((&request).into(), error, reason),
            Ok(query) => self.push(&request, query.length, STATUS_CHARGE, Data::None),
        }
        true
    }

    fn reject(&mut self, request: &Request, rejection: Rejection) -> Result<bool, Error> {
        let Rejection { error, reason, then } = rejection;
        let Then::Skip(left) = then else {
            let doing = "refusing a request whose payload is too long to skip";
            return Err(Error::violation(doing, reason, request.length));
        };
        self.input = Input::Discard { left, to: request.into(), error, reason };
        Ok(true)
    }

    fn discard(&mut self, bytes: &[u8], at: &mut usize) -> bool {
        let Input::Discard { left, to, error, reason } = &mut self.input else { return false };
        let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - *at);
        *left -= here as u64;
        *at += here;
        if *left > 0 {
            return false;
        }
        let (to, error, reason) = (*to, *error, *reason);
        self.input = Input::default();
        self.refuse(to, error, reason);
        true
    }

    fn refuse(&mut self, to: ReplyTo, error: ErrorCode, reason: &str) {
        if self.is_deserted {
            return;
        }
        let encoder = self.encoder;
        self.out.head_with(|heads| encoder.error_message(heads, to, error, reason));
    }

    /// Begins a request that there is room for.
    fn push(&mut self, request: &Request, length: u64, charge: usize, data: Data<M>) {
        self.held += charge;
        let slot = Slot::new(request, length, charge);
        self.working += slot.work;
        let token = self.slots.insert(slot);
        self.ready.push_back(Submission {
            token,
            command: request.command,
            flags: request.flags,
            offset: request.offset,
            length,
            data,
        });
    }

    /// Bytes of memory that it holds in any way.
    pub(super) fn held_now(&self) -> usize {
        if self.is_left_here { self.held_with_buffer() } else { self.held + self.pinned }
    }

    /// As many, if one more receive buffer is kept.
    fn held_with_buffer(&self) -> usize {
        self.held + self.pinned + self.limits.window
    }

    /// Bytes of memory that it keeps from others.
    pub(super) fn claimed(&self) -> usize {
        match &self.input {
            Input::Blocked { request, has_room: true } => {
                (self.held_now() + charge_of(request)).min(self.lease.most())
            }
            _ => self.held_now(),
        }
    }

    /// Whether a request can begin. For a WRITE, memory is looked for as its payload comes.
    fn has_room_for(&mut self, request: &Request) -> bool {
        let (charge, work) = (charge_of(request), work_of(request.command, request.length));
        let held = self.held_now();
        let most = self.limits.memory;
        if self.slots.len() >= self.limits.in_flight
            || (held > 0 && held + charge > most)
            || (self.working > 0 && self.working.saturating_add(work) > most as u64)
        {
            return false;
        }
        // One that can never have as much begins when it has all there is.
        let needed = (held + charge).min(self.lease.most());
        request.command == Command::Write || self.lease.covers_soon(needed)
    }
}

/// Whether a command does more than to bring an answer.
const fn changes(command: Command) -> bool {
    !matches!(command, Command::Read | Command::BlockStatus | Command::Cache)
}

/// Bytes of memory that a request may take at once.
fn charge_of(request: &Request) -> usize {
    match request.command {
        Command::Read | Command::Write => usize::try_from(request.length).unwrap_or(usize::MAX),
        Command::BlockStatus => STATUS_CHARGE,
        _ => 0,
    }
}

/// Bytes that a chunk occupies: memory comes in powers of two from a page on.
fn chunk_charge(len: usize) -> usize {
    len.max(MIN_CHUNK).next_power_of_two()
}
