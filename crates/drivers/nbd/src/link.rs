//! A connection in its transmission phase, without the socket: requests in and bytes out, bytes in and ended
//! requests out.

use std::time::Duration;

use blockyard_blkmq::{Op, Status};
use blockyard_buf::{Pool, Segment, Segments, total_len};
use blockyard_nbd::Error;
use blockyard_nbd::client::{Chunk, Expected, InFlight, Parsed, ReplyParser};
use blockyard_nbd::wire::{AllocationFlags, Command, CommandFlags, ErrorCode, RequestHead};

use crate::commands::{self, Dialect};
use crate::extents::Extents;
use crate::held::{Held, Past};
use crate::inbox::Inbox;
use crate::job::{Ask, Job};
use crate::outbox::{Heard, Messages, Outbox, Sent};
use crate::slots::{Entry, Slots};
use crate::sources::Read;
use crate::span::Span;
use crate::unflushed::FlushOut;

/// The longest payload that is handed on as a part of the buffer it came in, which it keeps from being used
/// again.
const SHARED_PAYLOAD_LEN: u64 = 16 << 10;

/// A connection that was negotiated.
pub(crate) struct Link<J> {
    dialect: Dialect,
    parser: ReplyParser,
    pub(crate) slots: Slots<J>,
    outbox: Outbox,
    inbox: Inbox,
    /// The request whose payload comes, and whether nothing follows that.
    payload_of: Option<(u64, bool)>,
    /// When bytes came last, or were first waited for.
    heard: Duration,
    /// Without TLS: files can be sent.
    is_plain: bool,
    /// Whether the server waits for us: what it is to get is being read.
    source: Source,
    /// The server said that it is going down.
    pub(crate) shutting_down: bool,
    /// The most bytes that the server answers for at a time, as far as it has said: of a read, and of a block status query.
    longest_read: u64,
    longest_status: u64,
}

/// Whether the file that a write is in is waited for, and since when, once that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Idle,
    Awaited(Option<Duration>),
    Came(Option<Duration>),
}

/// A request whose reply is complete.
pub(crate) struct Done<J> {
    /// `None` if it was given up before.
    pub(crate) job: Option<J>,
    pub(crate) past: Past,
    pub(crate) cookie: u64,
    pub(crate) op: Op,
    pub(crate) result: Result<(), ErrorCode>,
    pub(crate) changed: Option<Span>,
    /// What it changed outlives a loss of the server's cache.
    pub(crate) durable: bool,
    /// What a flush covers.
    pub(crate) flush: FlushOut,
    /// What the server has got is not what it was to get: the request fails, whatever the server says.
    pub(crate) spoiled: bool,
}

impl<J> Done<J> {
    /// It was not carried out, and may be sent to another server.
    pub(crate) fn is_refused(&self) -> bool {
        self.result == Err(ErrorCode::ESHUTDOWN)
    }

    pub(crate) fn status(&self) -> Status {
        let is_ours = self.spoiled.then_some(Status::Io);
        self.result.map_or_else(commands::status, |()| is_ours.unwrap_or(Status::Ok))
    }
}

/// A request that is not sent.
pub(crate) type Refused<J> = (J, Status);

impl<J: Job> Link<J> {
    pub(crate) fn new(dialect: Dialect, pool: Pool, direct: bool) -> Self {
        Self {
            dialect,
            parser: ReplyParser::new(dialect.style),
            slots: Slots::default(),
            outbox: Outbox::default(),
            inbox: Inbox::new(pool, direct),
            is_plain: direct,
            source: Source::Idle,
            payload_of: None,
            heard: Duration::ZERO,
            shutting_down: false,
            longest_read: u64::MAX,
            longest_status: u64::MAX,
        }
    }

    /// Bytes of the disk that the server knows of on this connection.
    pub(crate) fn size(&self) -> u64 {
        self.dialect.size
    }

    /// Puts a request in line to be sent.
    pub(crate) fn submit(
        &mut self,
        job: J,
        ask: &Ask,
        past: Past,
        flush: FlushOut,
        now: Duration,
    ) -> Result<(), Refused<J>> {
        let range = job.range();
        if range.is_some() && !self.is_plain {
            return Err((job, Status::NotSupported));
        }
        let cookie = self.slots.next_cookie();
        let first = Ask { len: ask.len.min(self.longest(ask.op)), ..*ask };
        let (expected, head) = match self.message(&first, cookie) {
            Ok(message) => message,
            Err(status) => return Err((job, status)),
        };
        if self.slots.is_empty() {
            self.heard = now;
        }
        let held = Held::new(job, ask, past);
        match range {
            Some(range) => self.outbox.push_range(cookie, head, range),
            None => self.outbox.push(cookie, head, total_len(held.payload())),
        }
        let (held, changes) = (Some(held), ask.changes());
        self.slots.insert(Entry { expected, held, changes, flush, since: now });
        Ok(())
    }

    /// Puts a flush in line that nobody has asked for. Says under which cookie it is answered.
    pub(crate) fn flush(&mut self, flush: FlushOut, now: Duration) -> Option<u64> {
        let cookie = self.slots.next_cookie();
        let (expected, head) = self.message(&Ask::FLUSH, cookie).ok()?;
        self.heard = if self.slots.is_empty() { now } else { self.heard };
        self.outbox.push(cookie, head, 0);
        let (held, changes) = (None, None);
        self.slots.insert(Entry { expected, held, changes, flush, since: now });
        Some(cookie)
    }

    fn longest(&self, op: Op) -> u64 {
        match op {
            Op::Read => self.longest_read,
            Op::BlockStatus => self.longest_status,
            _ => u64::MAX,
        }
    }

    /// What is to be asked next, of something that was answered in part, or would have had too long an answer.
    fn next_piece(&mut self, entry: &mut Entry<J>) -> Option<Ask> {
        let held = entry.held.as_mut()?;
        let request = *entry.expected.request();
        let longest = match request.command {
            Command::Read => &mut self.longest_read,
            Command::BlockStatus => &mut self.longest_status,
            _ => return None,
        };
        let block = self.dialect.block;
        match entry.expected.result() {
            Err(ErrorCode::EOVERFLOW) if request.length > block => {
                let half = (request.length / 2 / block * block).max(block);
                *longest = (*longest).min(half);
                held.forget();
                let ask = held.ask();
                Some(Ask { len: ask.len.min(half), ..ask })
            }
            Ok(()) if request.command == Command::Read => {
                let ask = held.ask();
                let done = request.offset + request.length - ask.offset;
                let len = (ask.len - done).min(*longest);
                (len > 0).then_some(Ask { offset: ask.offset + done, len, ..ask })
            }
            _ => None,
        }
    }

    fn message(&self, ask: &Ask, cookie: u64) -> Result<(Expected, RequestHead), Status> {
        let expected = self.dialect.request(ask, cookie)?;
        let head = expected.request().encode(self.dialect.style);
        head.map(|head| (expected, head)).map_err(|_| Status::Invalid)
    }

    /// Takes a request back, and its memory with it. Says whether the server may have got any of it.
    pub(crate) fn take_back(&mut self, cookie: u64) -> Option<(J, Past, Sent)> {
        let sent = self.outbox.take_back(cookie, self.slots.payload(cookie));
        let entry = self.slots.get(cookie)?;
        let past = entry.past();
        let job = entry.take_back();
        if sent == Sent::Nothing {
            self.slots.remove(cookie);
        }
        job.map(|job| (job, past, sent))
    }

    /// The requests of which nothing was sent.
    pub(crate) fn withdraw_unsent(&mut self, mut to: impl FnMut(u64, Option<J>, Past)) {
        for cookie in self.outbox.withdraw_all() {
            if let Some(mut entry) = self.slots.remove(cookie) {
                let past = entry.past();
                to(cookie, entry.take_back(), past);
            }
        }
    }

    /// Sends nothing more.
    pub(crate) fn fall_silent(&mut self) {
        self.outbox.abandon();
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty()
    }

    pub(crate) fn outbox(&mut self) -> (&Outbox, &Slots<J>) {
        (&self.outbox, &self.slots)
    }

    /// Whether the range that is to be sent next is being read.
    pub(crate) fn awaits_source(&mut self, awaits: bool) {
        self.source = match self.source {
            Source::Idle if awaits => Source::Awaited(None),
            Source::Came(since) if awaits => Source::Awaited(since),
            Source::Awaited(since) if !awaits => Source::Came(since),
            source => source,
        };
    }

    /// Whether one that was waited for has come since this was asked last. The server could not answer meanwhile, and that time
    /// is no request's.
    pub(crate) fn has_source_come(&mut self, now: impl FnOnce() -> Duration) -> bool {
        match self.source {
            Source::Awaited(None) => self.source = Source::Awaited(Some(now())),
            Source::Came(since) => {
                let now = now();
                (self.source, self.heard) = (Source::Idle, now);
                let begun = since.unwrap_or(now);
                for (_, entry) in self.slots.entries() {
                    entry.since += now.saturating_sub(begun.max(entry.since));
                }
                return true;
            }
            Source::Idle | Source::Awaited(Some(_)) => {}
        }
        false
    }

    /// What is left of the range that is to be sent next was read. If that is not what the file has, the write fails once it is
    /// answered.
    pub(crate) fn source_was_read(&mut self, Read { bytes, error }: Read) {
        let cookie = self.outbox.replace_range(bytes);
        let Some(error) = error else { return };
        tracing::debug!(%error, "a write failed: cannot read the file that its data are in");
        let entry = cookie.and_then(|cookie| self.slots.get(cookie));
        if let Some(held) = entry.and_then(|entry| entry.held.as_mut()) {
            held.spoil();
        }
    }

    /// So many bytes were sent.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.outbox.advance(bytes);
    }

    pub(crate) fn messages(&mut self) -> Messages<'_, J> {
        Messages { outbox: &mut self.outbox, slots: &self.slots }
    }

    /// Where what comes is received to: the memory of a request, then a buffer.
    pub(crate) fn room(&mut self) -> (&[Segment], &mut [u8]) {
        self.inbox.make_room();
        let place = filling(&mut self.slots, self.payload_of);
        self.inbox.room(place.map(|place| &*place))
    }

    /// What comes is not looked at any more.
    pub(crate) fn discard(&mut self) {
        self.payload_of = None;
        self.inbox.discard();
    }

    /// Says goodbye, which nothing may follow, behind what was begun.
    pub(crate) fn say_goodbye(&mut self) {
        if self.outbox.is_whole()
            && let Some(head) = commands::goodbye(self.dialect.style)
        {
            self.outbox.push(0, head, 0);
        }
    }

    /// When the connection is dead if nothing comes: silent for `timeout`, or for `patience` without an answer to
    /// one request. A flush may take all of that, as it is as long as what it has to write. `None`: nothing is
    /// waited for, but perhaps by the server.
    pub(crate) fn dead_at(&mut self, timeout: Duration, patience: Duration) -> Option<Duration> {
        if matches!(self.source, Source::Awaited(_)) {
            return None;
        }
        let (mut oldest, mut oldest_quick) = (None, None);
        let earlier = |one: Option<Duration>, since| Some(one.map_or(since, |one| one.min(since)));
        for (_, entry) in self.slots.entries() {
            oldest = earlier(oldest, entry.since);
            if entry.expected.request().command != Command::Flush {
                oldest_quick = earlier(oldest_quick, entry.since);
            }
        }
        let impatient = oldest?.saturating_add(patience);
        // Silence counts from when there was something to say, which no flush is.
        let silent = oldest_quick.map(|since| self.heard.max(since).saturating_add(timeout));
        Some(silent.map_or(impatient, |silent| silent.min(impatient)))
    }

    /// Whether a flush is to be answered.
    pub(crate) fn awaits_flush(&mut self) -> bool {
        let mut requests = self.slots.entries().map(|(_, entry)| entry.expected.request());
        requests.any(|request| request.command == Command::Flush)
    }

    /// Whether a request is to be answered that changes something, or a flush.
    pub(crate) fn awaits_change(&mut self) -> bool {
        self.awaits_flush() || self.slots.entries().any(|(_, entry)| entry.changes.is_some())
    }

    /// Whether nothing of what was sent is still to be answered, as far as anybody cares.
    pub(crate) fn is_over(&mut self) -> bool {
        self.slots.entries().all(|(_, entry)| entry.held.is_none() && entry.changes.is_none())
    }

    /// Notes bytes that came into the inbox.
    pub(crate) fn came(&mut self, bytes: usize, now: Duration) {
        self.heard = now;
        self.inbox.came(bytes, filling(&mut self.slots, self.payload_of));
    }

    /// Understands what came, as far as it goes.
    ///
    /// # Errors
    /// The server broke the protocol: the stream cannot be followed any further.
    pub(crate) fn read(&mut self, done: &mut Vec<Done<J>>) -> Result<(), Error> {
        loop {
            if !self.inbox.place(filling(&mut self.slots, self.payload_of)) {
                return Ok(());
            }
            if let Some((cookie, last)) = self.payload_of.take() {
                if last {
                    self.finish(cookie, done)?;
                }
                continue;
            }
            if self.inbox.bytes().is_empty() {
                return Ok(());
            }
            let Some((cookie, last, data)) = self.read_head()? else { return Ok(()) };
            match data {
                Some((offset, length)) => {
                    self.start_payload(cookie, offset, length);
                    self.payload_of = Some((cookie, last));
                }
                None if last => self.finish(cookie, done)?,
                None => {}
            }
        }
    }

    /// Takes a chunk off, and what it says: the request, whether nothing follows, and the data that does.
    #[expect(clippy::type_complexity, reason = "taken apart at once by the only caller")]
    fn read_head(&mut self) -> Result<Option<(u64, bool, Option<(u64, u64)>)>, Error> {
        let mut out = Answerable { slots: &mut self.slots, outbox: &self.outbox };
        let (reply, consumed) = match self.parser.parse(self.inbox.bytes(), &mut out)? {
            Parsed::NeedMore(len) => {
                self.inbox.need(len);
                return Ok(None);
            }
            Parsed::Reply { reply, consumed } => (reply, consumed),
        };
        let (cookie, last) = (reply.cookie, reply.done);
        let mut data = None;
        if let Some(entry) = self.slots.get(cookie) {
            match reply.chunk {
                Chunk::Data { offset, length } => data = Some((offset, length)),
                Chunk::Hole { offset, length } => hole(entry, self.inbox.pool(), offset, length),
                Chunk::Status { extents, .. } => status(entry, self.dialect.block, extents),
                Chunk::Error { .. } | Chunk::None => {}
            }
        }
        self.inbox.take(consumed);
        Ok(Some((cookie, last, data)))
    }

    /// Finds the place for data that begins now: `length` bytes from `offset` of the disk on.
    fn start_payload(&mut self, cookie: u64, offset: u64, length: u64) {
        let Some(Entry { held: Some(held), .. }) = self.slots.get(cookie) else {
            return self.inbox.expect(length);
        };
        let (ask, here) = (held.ask(), self.inbox.bytes().len() as u64);
        if length == ask.len
            && length <= SHARED_PAYLOAD_LEN.min(here)
            && held.take_whole(|| {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                [self.inbox.take_shared(length)].into_iter().collect()
            })
        {
            return self.inbox.expect(0);
        }
        held.expect(self.inbox.pool(), offset - ask.offset, length);
        self.inbox.expect(length);
    }

    fn finish(&mut self, cookie: u64, done: &mut Vec<Done<J>>) -> Result<(), Error> {
        if self.outbox.heard(cookie) != Heard::All {
            self.answered_early(cookie)?;
        }
        let Some(mut entry) = self.slots.remove(cookie) else { return Ok(()) };
        if let Some(next) = self.next_piece(&mut entry) {
            let cookie = self.slots.next_cookie();
            if let Ok((expected, head)) = self.message(&next, cookie) {
                self.outbox.push(cookie, head, 0);
                self.slots.insert(Entry { expected, ..entry });
                return Ok(());
            }
        }
        let Entry { expected, held, changes, flush, .. } = entry;
        let spoiled = held.as_ref().is_some_and(Held::is_spoiled);
        let result = expected.result();
        let past = held.as_ref().map(Held::past).unwrap_or_default();
        let job = held.map(|held| if result.is_ok() { held.deliver() } else { held.into_job() });
        let request = expected.request();
        let done_one = Done {
            job,
            past,
            cookie,
            op: commands::op(request.command),
            result,
            changed: changes,
            durable: request.flags.contains(CommandFlags::FUA),
            flush,
            spoiled,
        };
        self.shutting_down |= done_one.is_refused();
        done.push(done_one);
        Ok(())
    }

    /// A write was answered before all of it was sent. A server may refuse one that early. The rest is still owed to it, or it
    /// would take what follows for that; but its memory is about to be given back.
    #[cold]
    fn answered_early(&mut self, cookie: u64) -> Result<(), Error> {
        let result = self.slots.get(cookie).map(|entry| entry.expected.result());
        if result.is_none_or(|result| result.is_ok()) {
            let rule = "a write succeeds only once all of it has arrived";
            return Err(Error::violation("reading a reply", rule, cookie));
        }
        self.outbox.take_back(cookie, self.slots.payload(cookie));
        Ok(())
    }
}

/// The requests that a server can answer: it has heard what they ask.
struct Answerable<'a, J> {
    slots: &'a mut Slots<J>,
    outbox: &'a Outbox,
}

impl<J> InFlight for Answerable<'_, J> {
    fn expected(&mut self, cookie: u64) -> Option<&mut Expected> {
        let is_heard = self.outbox.heard(cookie) != Heard::Nothing;
        if is_heard { self.slots.expected(cookie) } else { None }
    }
}

/// The memory that a payload is received into: of a request that is still out.
fn filling<J: Job>(
    slots: &mut Slots<J>,
    payload_of: Option<(u64, bool)>,
) -> Option<&mut crate::place::Filling> {
    let (cookie, _) = payload_of?;
    Some(slots.get(cookie)?.held.as_mut()?.filling())
}

fn hole<J: Job>(entry: &mut Entry<J>, pool: &Pool, offset: u64, length: u64) {
    let Some(held) = &mut entry.held else { return };
    let ask = held.ask();
    let zeroes = || {
        let mut list = Segments::new();
        Segment::zeroes(&mut list, usize::try_from(length).unwrap_or(usize::MAX));
        list
    };
    if length != ask.len || !held.take_whole(zeroes) {
        held.fill_zero(pool, offset - ask.offset, length);
    }
}

fn status<J: Job>(entry: &mut Entry<J>, block: u64, extents: impl Iterator<Item = (u64, u64)>) {
    let Some(held) = &mut entry.held else { return };
    let mut whole = Extents::new(block, entry.expected.request().length);
    for (len, flags) in extents {
        let flags = AllocationFlags::from_bits_retain(u32::try_from(flags).unwrap_or(0));
        let (hole, zero) =
            (flags.contains(AllocationFlags::HOLE), flags.contains(AllocationFlags::ZERO));
        whole.push(len, hole, zero, |extent| held.push_extent(extent));
    }
    whole.finish(|extent| held.push_extent(extent));
}

#[cfg(test)]
mod tests;
