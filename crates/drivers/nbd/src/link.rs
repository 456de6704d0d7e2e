//! A connection in its transmission phase, without the socket: requests in and bytes out, bytes in and ended
//! requests out.

use std::time::Duration;

use blockyard_blkmq::{Extent, Op, Status};
use blockyard_buf::{Pool, Segment, Segments};
use blockyard_nbd::Error;
use blockyard_nbd::client::{Chunk, Parsed, ReplyParser};
use blockyard_nbd::wire::{AllocationFlags, Command, CommandFlags, ErrorCode, Request};

use crate::commands::{self, Dialect};
use crate::inbox::Inbox;
use crate::job::Job;
use crate::outbox::Outbox;
use crate::place::Place;
use crate::slots::{Entry, Slots};
use crate::span::Span;

/// The longest payload that is handed on as a part of the buffer it came in, which it keeps from being used
/// again.
const SHARED_PAYLOAD_LEN: u64 = 16 << 10;

/// A connection that was negotiated.
pub(crate) struct Link<J> {
    dialect: Dialect,
    parser: ReplyParser,
    pub(crate) slots: Slots<J>,
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
    /// The request whose payload comes, and whether nothing follows that.
    payload_of: Option<(u64, bool)>,
    /// When bytes came last, or were first waited for.
    heard: Duration,
    /// The server said that it is going down.
    pub(crate) shutting_down: bool,
}

/// A request whose reply is complete.
pub(crate) struct Done<J> {
    /// `None` if it was given up before.
    pub(crate) job: Option<J>,
    pub(crate) cookie: u64,
    pub(crate) status: Status,
    /// It was not carried out, and may be sent to another server.
    pub(crate) refused: bool,
    pub(crate) changed: Option<Span>,
}

impl<J: Job> Link<J> {
    pub(crate) fn new(dialect: Dialect, pool: Pool, direct: bool) -> Self {
        Self {
            dialect,
            parser: ReplyParser::new(dialect.style),
            slots: Slots::default(),
            outbox: Outbox::default(),
            inbox: Inbox::new(pool, direct),
            payload_of: None,
            heard: Duration::ZERO,
            shutting_down: false,
        }
    }

    /// Puts a request in line to be sent.
    pub(crate) fn submit(&mut self, job: J, now: Duration) -> Result<(), (J, Status)> {
        let ask = job.ask();
        let cookie = self.slots.next_cookie();
        let expected = match self.dialect.request(&ask, cookie) {
            Ok(expected) => expected,
            Err(status) => return Err((job, status)),
        };
        let Ok(head) = expected.request().encode(self.dialect.style) else {
            return Err((job, Status::Invalid));
        };
        if self.slots.is_empty() {
            self.heard = now;
        }
        let payload = if ask.op == Op::Write { job.memory() } else { Segments::new() };
        let sent_at = self.outbox.push(head, payload);
        let changes = ask.changes();
        let place = Place::default();
        self.slots.insert(Entry { expected, job: Some(job), place, changes, sent_at, since: now });
        Ok(())
    }

    /// Says goodbye, which nothing may follow. Only between messages, where this always is.
    pub(crate) fn say_goodbye(&mut self) {
        let flags = CommandFlags::empty();
        let request = Request { command: Command::Disc, flags, cookie: 0, offset: 0, length: 0 };
        if let Ok(head) = request.encode(self.dialect.style) {
            self.outbox.push(head, Segments::new());
        }
    }

    /// How long nothing has come that was waited for.
    pub(crate) fn silence(&self, now: Duration) -> Duration {
        if self.slots.is_empty() { Duration::ZERO } else { now.saturating_sub(self.heard) }
    }

    /// How long the request is out that was sent first.
    pub(crate) fn oldest(&mut self, now: Duration) -> Duration {
        let since = self.slots.entries().map(|(_, entry)| entry.since).min();
        since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    /// Notes bytes that came into the inbox.
    pub(crate) fn came(&mut self, bytes: usize, now: Duration) {
        self.heard = now;
        self.inbox.came(bytes);
    }

    /// Understands what came, as far as it goes.
    ///
    /// # Errors
    /// The server broke the protocol: the stream cannot be followed any further.
    pub(crate) fn read(&mut self, done: &mut Vec<Done<J>>) -> Result<(), Error> {
        loop {
            if !self.inbox.place() {
                return Ok(());
            }
            if let Some((cookie, last)) = self.payload_of.take() {
                if last {
                    self.finish(cookie, done);
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
                None if last => self.finish(cookie, done),
                None => {}
            }
        }
    }

    /// Takes a chunk off, and what it says: the request, whether nothing follows, and the data that does.
    #[expect(clippy::type_complexity, reason = "taken apart at once by the only caller")]
    fn read_head(&mut self) -> Result<Option<(u64, bool, Option<(u64, u64)>)>, Error> {
        let (reply, consumed) = match self.parser.parse(self.inbox.bytes(), &mut self.slots)? {
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
                Chunk::Status { extents, .. } => status(entry, extents),
                Chunk::Error { .. } | Chunk::None => {}
            }
        }
        self.inbox.take(consumed);
        Ok(Some((cookie, last, data)))
    }

    /// Finds the place for data that begins now: `length` bytes from `offset` of the disk on.
    fn start_payload(&mut self, cookie: u64, offset: u64, length: u64) {
        let Some(Entry { expected, job: Some(job), place, .. }) = self.slots.get(cookie) else {
            return self.inbox.expect(Segments::new(), length);
        };
        let request = *expected.request();
        let here = self.inbox.bytes().len() as u64;
        if length == request.length
            && length <= SHARED_PAYLOAD_LEN.min(here)
            && place.take_whole(job, || {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                [self.inbox.take_shared(length)].into_iter().collect()
            })
        {
            return self.inbox.expect(Segments::new(), 0);
        }
        let places = place.part(job, self.inbox.pool(), offset - request.offset, length);
        self.inbox.expect(places, length);
    }

    fn finish(&mut self, cookie: u64, done: &mut Vec<Done<J>>) {
        let Some(mut entry) = self.slots.remove(cookie) else { return };
        let result = entry.expected.result();
        if let (Ok(()), Some(job)) = (result, &mut entry.job) {
            entry.place.deliver(job);
        }
        let refused = result == Err(ErrorCode::ESHUTDOWN);
        self.shutting_down |= refused;
        done.push(Done {
            job: entry.job,
            cookie,
            status: result.map_or_else(commands::status, |()| Status::Ok),
            refused,
            changed: entry.changes,
        });
    }
}

fn hole<J: Job>(entry: &mut Entry<J>, pool: &Pool, offset: u64, length: u64) {
    let request = *entry.expected.request();
    let Some(job) = &entry.job else { return };
    let zeroes = || {
        let mut list = Segments::new();
        Segment::zeroes(&mut list, usize::try_from(length).unwrap_or(usize::MAX));
        list
    };
    if length != request.length || !entry.place.take_whole(job, zeroes) {
        let places = entry.place.part(job, pool, offset - request.offset, length);
        places.iter().for_each(Segment::fill_zero);
    }
}

fn status<J: Job>(entry: &mut Entry<J>, extents: impl Iterator<Item = (u64, u64)>) {
    let Some(job) = &mut entry.job else { return };
    let mut left = job.ask().len;
    for (len, flags) in extents {
        let flags = AllocationFlags::from_bits_retain(u32::try_from(flags).unwrap_or(0));
        let len = len.min(left);
        left -= len;
        job.extent(Extent {
            len,
            hole: flags.contains(AllocationFlags::HOLE),
            zero: flags.contains(AllocationFlags::ZERO),
        });
    }
}
