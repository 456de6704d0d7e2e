//! From received bytes to requests.

use blockyard_buf::{Buffer, Segment};
use blockyard_nbd::wire::{Command, CommandFlags, HeaderStyle, Request};

use super::close::Close;
use super::transmission::Transmission;
use super::wire::Received;
use crate::catalogue;
use crate::thread::{RECEIVE_LEN, Workspace};
use blockyard_nbd::server::{Rejection, Then};

/// The shortest payload that gets memory of its own when it is not complete yet. A shorter one waits with its
/// header: it is copied once more, which costs less than receiving it alone.
const IN_PLACE_MIN: usize = 16 << 10;
/// Bytes of unsent headers from which on nothing more is received: only error replies and block status come to
/// as much.
const MAX_UNSENT_HEADS: usize = 64 << 10;
/// What a block status query counts for: the extents of a long answer.
const STATUS_CHARGE: usize = 1 << 20;

/// What has arrived and is no request yet.
#[derive(Default)]
pub(super) struct Input {
    /// The beginning of a request; or requests for which there was no room.
    carry: Vec<u8>,
    /// A WRITE whose payload is received into its place.
    payload: Option<Payload>,
    /// Bytes to be thrown away: the payload of a request that was refused.
    skip: u64,
    /// The carry holds a request that found no room, of this many bytes.
    blocked: Option<usize>,
    /// Buffers that writes are still using.
    pinned: Vec<Buffer>,
}

struct Payload {
    request: Request,
    buffer: Buffer,
    len: usize,
    got: usize,
    charge: usize,
}

impl Input {
    /// What was received behind the handshake.
    pub(super) fn new(carry: Vec<u8>) -> Self {
        let blocked = (!carry.is_empty()).then_some(0);
        Self { carry, blocked, ..Self::default() }
    }

    /// Whether a message has begun and the rest of it is the client's to send.
    pub(super) fn is_half_way(&self) -> bool {
        self.payload.is_some()
            || self.skip > 0
            || (self.blocked.is_none() && !self.carry.is_empty())
    }

    /// Bytes of receive buffers that writes of this connection keep from others.
    fn pinned_bytes(&mut self) -> usize {
        if !self.pinned.is_empty() {
            self.pinned.retain_mut(|buffer| buffer.get_mut().is_none());
        }
        self.pinned.len() * RECEIVE_LEN
    }
}

impl Transmission<'_> {
    /// Whether there is a use for more input.
    pub(super) fn may_receive(&mut self) -> bool {
        self.ending.is_none()
            && (self.input.payload.is_some()
                || self.input.skip > 0
                || (self.input.blocked.is_none() && self.has_room(0)))
    }

    /// Whether a request of `charge` bytes can begin.
    fn has_room(&mut self, charge: usize) -> bool {
        let pinned = self.input.pinned_bytes();
        self.out.heads_len() <= MAX_UNSENT_HEADS && self.requests.admits(charge, pinned)
    }

    /// Goes on with what was received when there was no room for it, if there is now. Says whether it did.
    pub(super) fn resume(&mut self, ws: &mut Workspace) -> Result<bool, Close> {
        let Some(charge) = self.input.blocked else { return Ok(false) };
        if self.ending.is_some() || !self.has_room(charge) {
            return Ok(false);
        }
        self.input.blocked = None;
        self.take_carry(ws)?;
        Ok(true)
    }

    /// Receives once, and does what can be done with it. Says whether anything came.
    pub(super) fn receive(&mut self, ws: &mut Workspace) -> Result<bool, Close> {
        if let Some(payload) = self.input.payload.take() {
            return self.receive_payload(ws, payload);
        }
        let carried = self.input.carry.len();
        let Some(bytes) = ws.buffer.get_mut() else { unreachable!("pinned buffers are replaced") };
        match self.wire.receive(&mut bytes[carried..])? {
            Received::Nothing => Ok(false),
            Received::End if self.input.is_half_way() => Err(Close::Truncated),
            Received::End => {
                self.ending = Some(Close::Left);
                Ok(true)
            }
            Received::Bytes(len) => {
                bytes[..carried].copy_from_slice(&self.input.carry);
                self.input.carry.clear();
                self.drain(ws, carried + len)?;
                Ok(true)
            }
        }
    }

    /// Receives more of a payload, and the header behind it, but no more: the payload of that belongs into its
    /// own place.
    fn receive_payload(&mut self, ws: &mut Workspace, mut payload: Payload) -> Result<bool, Close> {
        let mut head = [0; HeaderStyle::Extended.request_len()];
        let head = &mut head[..self.style.request_len()];
        let Some(bytes) = payload.buffer.get_mut() else { unreachable!("nobody has it yet") };
        let rest = &mut bytes[payload.got..payload.len];
        let missing = rest.len();
        let received = if self.wire.has_tls() {
            self.wire.receive(rest)?
        } else {
            self.wire.receive_two(rest, head)?
        };
        match received {
            Received::End => return Err(Close::Truncated),
            Received::Nothing => {
                self.input.payload = Some(payload);
                return Ok(false);
            }
            Received::Bytes(len) if len < missing => {
                payload.got += len;
                self.input.payload = Some(payload);
            }
            Received::Bytes(len) => {
                let Payload { request, buffer, len: whole, charge, .. } = payload;
                self.requests.begin(
                    &request,
                    request.length,
                    charge,
                    Some(buffer.segment(0, whole)),
                );
                self.input.carry.extend_from_slice(&head[..len - missing]);
                self.take_carry(ws)?;
            }
        }
        Ok(true)
    }

    /// Works on the carry as if it had just been received.
    fn take_carry(&mut self, ws: &mut Workspace) -> Result<(), Close> {
        let carried = self.input.carry.len();
        let Some(bytes) = ws.buffer.get_mut() else { unreachable!("pinned buffers are replaced") };
        bytes[..carried].copy_from_slice(&self.input.carry);
        self.input.carry.clear();
        self.drain(ws, carried)
    }

    /// Takes all requests out of the first `len` bytes of the buffer, has them carried out, and sends the
    /// replies of those that end at once. What is left waits in the carry.
    fn drain(&mut self, ws: &mut Workspace, len: usize) -> Result<(), Close> {
        self.rules.size = catalogue::size(&self.bdev, self.block);
        let mut at = 0;
        loop {
            at = self.parse(ws, at, len)?;
            self.submit();
            self.answer(ws)?;
            let blocked = self.input.blocked;
            if !blocked.is_some_and(|charge| self.has_room(charge)) {
                break;
            }
            self.input.blocked = None;
        }
        if at < len && self.ending.is_none() {
            self.input.carry.extend_from_slice(&ws.buffer[at..len]);
        } else if self.input.carry.capacity() > 2 * IN_PLACE_MIN {
            self.input.carry = Vec::new();
        }
        if ws.buffer.get_mut().is_none() {
            let fresh = ws.pool.get(RECEIVE_LEN);
            self.input.pinned.push(std::mem::replace(&mut ws.buffer, fresh));
        }
        Ok(())
    }

    /// Makes requests of the bytes from `at` to `len`, until more bytes or more room is needed. Says how far it
    /// came.
    fn parse(&mut self, ws: &Workspace, mut at: usize, len: usize) -> Result<usize, Close> {
        while at < len && self.ending.is_none() {
            if self.input.skip > 0 {
                let here = usize::try_from(self.input.skip).unwrap_or(usize::MAX).min(len - at);
                self.input.skip -= here as u64;
                at += here;
                continue;
            }
            let Some(request) = Request::parse(self.style, &ws.buffer[at..len])? else { break };
            let body = at + self.style.request_len();
            match self.take(ws, &request, body, len)? {
                Some(next) => at = next,
                None => break,
            }
        }
        Ok(at)
    }

    /// Begins a request whose header ends at `body`. `None` if it has to wait, for more input or for room.
    fn take(
        &mut self,
        ws: &Workspace,
        request: &Request,
        body: usize,
        len: usize,
    ) -> Result<Option<usize>, Close> {
        if let Err(rejection) = self.rules.check(request) {
            return self.reject(request, rejection, body);
        }
        let charge = match request.command {
            Command::Disc => {
                self.ending = Some(Close::Left);
                return Ok(Some(len));
            }
            Command::Write => return Ok(self.take_write(ws, request, body, len)),
            Command::BlockStatus if request.flags.contains(CommandFlags::PAYLOAD_LEN) => {
                return self.take_query(ws, request, body, len);
            }
            Command::BlockStatus => STATUS_CHARGE,
            Command::Read => usize::try_from(request.length).unwrap_or(usize::MAX),
            _ => 0,
        };
        Ok(self.begin(request, request.length, charge, None).then_some(body))
    }

    /// Begins a request, if there is room.
    fn begin(
        &mut self,
        request: &Request,
        length: u64,
        charge: usize,
        data: Option<Segment>,
    ) -> bool {
        if !self.has_room(charge) {
            self.input.blocked = Some(charge);
            return false;
        }
        self.requests.reserve(charge);
        self.requests.begin(request, length, charge, data);
        true
    }

    fn take_write(
        &mut self,
        ws: &Workspace,
        request: &Request,
        body: usize,
        len: usize,
    ) -> Option<usize> {
        let whole = usize::try_from(request.length).unwrap_or(usize::MAX);
        let have = (len - body).min(whole);
        let address = ws.buffer.as_ptr().addr() + body;
        if have == whole && address & self.dma_alignment == 0 {
            let data = ws.buffer.segment(body, whole);
            return self.begin(request, request.length, 0, Some(data)).then_some(body + whole);
        }
        if have < whole && whole < IN_PLACE_MIN {
            return None;
        }
        let charge = whole.next_power_of_two();
        if !self.has_room(charge) {
            self.input.blocked = Some(charge);
            return None;
        }
        let mut buffer = ws.pool.get(whole);
        if let Some(bytes) = buffer.get_mut() {
            bytes[..have].copy_from_slice(&ws.buffer[body..body + have]);
        }
        self.requests.reserve(charge);
        if have == whole {
            self.requests.begin(request, request.length, charge, Some(buffer.segment(0, whole)));
        } else {
            let request = *request;
            self.input.payload = Some(Payload { request, buffer, len: whole, got: have, charge });
        }
        Some(body + have)
    }

    /// A BLOCK_STATUS that names its contexts: there is but one, so that it matters only for the length.
    fn take_query(
        &mut self,
        ws: &Workspace,
        request: &Request,
        body: usize,
        len: usize,
    ) -> Result<Option<usize>, Close> {
        let end = body + usize::try_from(request.length).unwrap_or(usize::MAX);
        if end > len {
            return Ok(None);
        }
        match self.rules.status_query(request, &ws.buffer[body..end], &self.contexts) {
            Err(rejection) => self.reject(request, rejection, end),
            Ok(query) => Ok(self.begin(request, query.length, STATUS_CHARGE, None).then_some(end)),
        }
    }

    fn reject(
        &mut self,
        request: &Request,
        rejection: Rejection,
        body: usize,
    ) -> Result<Option<usize>, Close> {
        let Rejection { error, reason, then } = rejection;
        let Then::Skip(skip) = then else { return Err(Close::Refused(reason)) };
        if !self.has_room(0) {
            self.input.blocked = Some(0);
            return Ok(None);
        }
        self.input.skip = skip;
        let encoder = self.replies.encoder;
        self.out.head_with(|heads| encoder.error_message(heads, request.into(), error, reason));
        Ok(Some(body))
    }
}
