//! The connections of queues, with a server's bytes and a clock that tests make up.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Extent, Flags, Op};
use blockyard_buf::{FileRange, Pool, Segment, Segments};
use blockyard_nbd::server::{ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{Command, HeaderStyle, Request, TransmissionFlags};

use super::*;
use crate::commands::Dialect;
use crate::job::Ask;
use crate::outbox::Unsent;
use crate::sources::Read;
use crate::span::Span;
use crate::unflushed::Unflushed;

const STYLE: HeaderStyle = HeaderStyle::Structured;
const SEC: Duration = Duration::from_secs(1);
const POLICY: Policy = Policy {
    timeout: SEC,
    patience: 8,
    dead_conn_timeout: Duration::from_secs(2),
    fence_timeout: Duration::from_secs(10),
    flush_after: None,
};

struct Stub(Ask, Option<FileRange>);

impl Job for Stub {
    fn ask(&self) -> Ask {
        self.0
    }
    fn memory(&self) -> Segments {
        let memory = || Segment::from_vec(vec![1; usize::try_from(self.0.len).unwrap()]);
        self.1.is_none().then(memory).into_iter().collect()
    }
    fn range(&self) -> Option<FileRange> {
        self.1.clone()
    }
    fn deliver(&mut self, _segment: Segment) {}
    fn extent(&mut self, _extent: Extent) {}
}

fn job(op: Op) -> Stub {
    Stub(Ask { op, flags: Flags::empty(), offset: 0, len: 512 }, None)
}

struct Rig {
    queue: Queue<Stub, ()>,
    ended: Ended<Stub>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Common::default(), POLICY)
    }

    fn with(common: Common<Stub>, policy: Policy) -> Self {
        Self { queue: Queue::new(Arc::new(common), policy, 8), ended: Vec::new() }
    }

    fn attach(&mut self) -> LinkId {
        self.attach_link(false)
    }

    fn attach_link(&mut self, plain: bool) -> LinkId {
        let flags = TransmissionFlags::all();
        let dialect = Dialect { style: STYLE, flags, allocation: None, size: 1 << 20, block: 512 };
        let moves = self.queue.common.moves();
        self.queue.attach(Link::new(dialect, Pool::default(), plain), (), Made::AtTheStart, moves)
    }

    /// The requests that are sent on a connection now.
    fn sent(&mut self, id: LinkId) -> Vec<Request> {
        let mut buf = vec![0; 1 << 16];
        let mut messages = self.queue.conn(id).unwrap().link.messages();
        let len = messages.copy_to(&mut buf);
        messages.advance(len);
        let (mut rest, mut requests) = (&buf[..len], Vec::new());
        while let Some(request) = Request::parse(STYLE, rest).unwrap() {
            let payload = usize::try_from(request.payload_len(STYLE)).unwrap();
            rest = &rest[STYLE.request_len() + payload..];
            requests.push(request);
        }
        requests
    }

    fn hears(&mut self, id: LinkId, bytes: &[u8], now: Duration) -> Todo {
        let link = &mut self.queue.conn(id).unwrap().link;
        link.room().1[..bytes.len()].copy_from_slice(bytes);
        link.came(bytes.len(), now);
        self.queue.read(id, now, &mut self.ended)
    }
}

#[test]
fn what_another_process_left_behind_is_no_waiting_on_any_connection() {
    let mut rig = Rig::new();
    rig.queue.common.inherit(10 * SEC);
    let id = rig.attach();
    rig.queue.submit(job(Op::Write), SEC, &mut rig.ended);
    assert_eq!(rig.sent(id), []);
    assert!(rig.queue.expire(10 * SEC, &mut rig.ended).outlived);
    assert!(rig.queue.adopt(10 * SEC, &mut rig.ended));
    assert_eq!(rig.sent(id).len(), 1);
    // The server says nothing: what it has is waited for from when it was sent.
    rig.queue.lose(id, Loss::Silent, 11 * SEC);
    assert_eq!(rig.queue.expire(11 * SEC, &mut rig.ended).failed, 0);
    assert_eq!(rig.queue.deadline(), Some(12 * SEC));
    assert_eq!(rig.queue.expire(12 * SEC, &mut rig.ended).failed, 1);
    assert_eq!(rig.ended.len(), 1);
}

/// What the file of a write has, nobody knows. The server has lost nothing.
#[test]
fn a_source_that_cannot_be_read_is_its_writes_own_trouble() {
    for (flags, refused) in [(Flags::FUA, false), (Flags::empty(), false), (Flags::FUA, true)] {
        let common = Common::new(Some(Unflushed::new(1 << 20)), false);
        let mut rig = Rig::with(common, POLICY);
        let id = rig.attach_link(true);
        let file = Arc::new(tempfile::tempfile().unwrap().into());
        let ask = Ask { flags, ..job(Op::Write).0 };
        let write = Stub(ask, Some(FileRange::new(&file, 0, 512)));
        rig.queue.submit(write, SEC, &mut rig.ended);
        let bytes = Segment::from_vec(vec![0; 512]);
        let error = Some(std::io::ErrorKind::UnexpectedEof.into());
        let link = &mut rig.queue.conn(id).unwrap().link;
        let (cookie, _) = link.slots.entries().next().unwrap();
        link.sent(STYLE.request_len());
        link.source_was_read(Read { bytes, error });
        link.sent(512);
        let to = ReplyTo { cookie, offset: 0 };
        let encoder = ReplyEncoder::new(STYLE);
        let reply = if refused { encoder.error(to, ErrorCode::EIO) } else { encoder.ok(to) };
        rig.hears(id, &reply, SEC);
        let statuses: Vec<_> = rig.ended.iter().map(|(_, status)| *status).collect();
        assert_eq!(statuses, [Status::Io], "{flags:?}");
        // A server that fails to make something durable may have lost more than that.
        assert_eq!(rig.queue.common.has_flush_failed(), refused, "{flags:?}");
        // What it has got in place of the data is written, and may be lost.
        let is_dirty = rig.queue.conn(id).unwrap().is_dirty();
        assert_eq!(is_dirty, flags.is_empty(), "{flags:?}");
    }
}

#[test]
fn what_was_written_is_flushed_once_the_connection_is_idle() {
    let ms = Duration::from_millis;
    let policy = Policy { flush_after: Some(SEC), ..POLICY };
    let mut rig = Rig::with(Common::new(Some(Unflushed::new(1 << 20)), false), policy);
    let id = rig.attach();
    let ask = |rig: &mut Rig, op, now| {
        rig.queue.submit(job(op), now, &mut rig.ended);
        rig.sent(id)[0]
    };
    let answer = |rig: &mut Rig, request: Request, now| {
        let to = ReplyTo { cookie: request.cookie, offset: 0 };
        rig.hears(id, &ReplyEncoder::new(STYLE).ok(to), now);
    };
    let first = ask(&mut rig, Op::Write, ms(900));
    answer(&mut rig, first, ms(1000));
    assert!(rig.queue.take_released(), "whoever keeps the time is told");
    assert_eq!(rig.queue.deadline(), Some(ms(2000)));
    let second = ask(&mut rig, Op::Write, ms(1400));
    answer(&mut rig, second, ms(1500));
    assert!(!rig.queue.take_released() && !rig.queue.flush_if_idle(ms(2000)));
    assert_eq!(rig.queue.deadline(), Some(ms(2500)), "it was used meanwhile");
    let slow = ask(&mut rig, Op::Write, ms(2400));
    assert!(!rig.queue.flush_if_idle(ms(2500)), "it is used");
    answer(&mut rig, slow, ms(2500));
    assert!(rig.queue.flush_if_idle(ms(3500)));
    let flush = rig.sent(id)[0];
    assert_eq!(flush.command, Command::Flush);
    answer(&mut rig, flush, ms(3600));
    assert!(!rig.queue.flush_if_idle(ms(4500)), "all is flushed");
    assert_eq!(rig.queue.deadline(), None);
    // Whoever only reads on leaves nothing unflushed behind.
    let mixed = ask(&mut rig, Op::Write, ms(5000));
    answer(&mut rig, mixed, ms(5000));
    let read = ask(&mut rig, Op::Read, ms(5900));
    assert!(rig.queue.flush_if_idle(ms(6000)));
    let flush = rig.sent(id)[0];
    assert_eq!(flush.command, Command::Flush);
    answer(&mut rig, flush, ms(6100));
    let to = ReplyTo { cookie: read.cookie, offset: 0 };
    let reply = [&ReplyEncoder::new(STYLE).data(to, 0, 512, true)[..], &[0; 512]].concat();
    rig.hears(id, &reply, ms(6100));
    assert!(!rig.queue.flush_if_idle(ms(7000)));
    let last = ask(&mut rig, Op::Write, ms(9000));
    answer(&mut rig, last, ms(9000));
    assert_eq!(rig.queue.deadline(), Some(ms(10_000)));
    // It costs nothing to lose the connection then, and something before.
    rig.queue.lose(id, Loss::Closed, ms(9500));
    assert!(rig.queue.common.has_flush_failed() && !rig.queue.flush_if_idle(ms(10_000)));
    assert_eq!(rig.ended.len(), 6);
}

#[test]
fn a_lie_is_told_of_also_if_nothing_is_out_that_matters() {
    for (op, over) in [(Op::Read, true), (Op::Write, false)] {
        let mut rig = Rig::new();
        let id = rig.attach();
        rig.queue.submit(job(op), SEC, &mut rig.ended);
        let request = rig.sent(id)[0];
        let to = ReplyTo { cookie: request.cookie ^ 1, offset: 0 };
        let todo = rig.hears(id, &ReplyEncoder::new(STYLE).ok(to), SEC);
        assert!(matches!(todo, Todo::Lied { is_over, .. } if is_over == over), "{todo:?}");
    }
}

#[test]
fn a_goodbye_goes_behind_what_was_begun_or_not_at_all() {
    for torn in [false, true] {
        let mut rig = Rig::new();
        let id = rig.attach();
        rig.queue.submit(job(Op::Write), SEC, &mut rig.ended);
        rig.queue.submit(job(Op::Write), SEC, &mut rig.ended);
        let link = &mut rig.queue.conn(id).unwrap().link;
        let mut got = vec![0; 100];
        assert_eq!(link.messages().copy_to(&mut got), got.len());
        link.messages().advance(got.len());
        rig.queue.clear(Status::Offline, &mut rig.ended);
        let link = &mut rig.queue.conn(id).unwrap().link;
        if torn {
            link.fall_silent();
        }
        link.say_goodbye();
        let mut rest = vec![0; 4096];
        let len = link.messages().copy_to(&mut rest);
        got.extend(&rest[..len]);
        if torn {
            assert_eq!(len, 0);
            continue;
        }
        let first = Request::parse(STYLE, &got).unwrap().unwrap();
        assert_eq!(first.command, Command::Write);
        let behind = &got[STYLE.request_len() + 512..];
        assert_eq!(Request::parse(STYLE, behind).unwrap().unwrap().command, Command::Disc);
        assert_eq!(behind.len(), STYLE.request_len());
    }
}

/// Whoever keeps the time was stopped meanwhile: what the kernel still sends of the old connection comes first.
#[test]
fn a_fence_looked_at_late_falls_half_its_time_after_the_abort() {
    let ms = Duration::from_millis;
    let mut rig = Rig::new();
    let id = rig.attach();
    rig.queue.submit(job(Op::Write), SEC, &mut rig.ended);
    assert_eq!(rig.sent(id).len(), 1);
    rig.queue.lose(id, Loss::Silent, SEC);
    let expired = rig.queue.expire(60 * SEC, &mut rig.ended);
    assert_eq!((expired.abort, expired.given_up), (vec![id], 0));
    assert!(rig.queue.common.is_fenced());
    assert_eq!(rig.queue.deadline(), Some(65 * SEC));
    let expired = rig.queue.expire(ms(64_900), &mut rig.ended);
    assert_eq!((expired.abort, expired.given_up), (vec![], 0));
    assert!(rig.queue.common.is_fenced());
    let expired = rig.queue.expire(65 * SEC, &mut rig.ended);
    assert_eq!((expired.abort, expired.given_up), (vec![], 1));
    assert!(!rig.queue.common.is_fenced());
}

fn with_a_cache(trusting: bool) -> Rig {
    Rig::with(Common::new(Some(Unflushed::new(1 << 20)), trusting), POLICY)
}

/// One thread looks whether a connection is still wanted, another one moves the disk, and then the first one attaches it.
#[test]
fn a_connection_that_was_wanted_before_a_move_keeps_the_disk_from_moving() {
    let common = with_a_cache(false).queue.common;
    let moves = common.moves();
    common.moved();
    let (_, marks) = common.attach(Made::Later, moves);
    assert!(!common.has_to_move(), "it has nothing yet");
    marks.unwrap().mark(Span::new(0, 512));
    assert!(common.has_to_move());
}

/// The next server is not to be used before that.
#[test]
fn what_a_trusted_server_has_of_a_lost_connection_is_flushed_before_the_disk_moves() {
    let written = |common: &Common<Stub>| {
        let (id, marks) = common.attach(Made::AtTheStart, common.moves());
        marks.as_ref().unwrap().mark(Span::new(0, 512));
        (id, marks.unwrap())
    };
    let lost = |common: &Common<Stub>, (id, marks): (LinkId, Arc<Marks>)| {
        common.retire(id);
        assert_eq!(common.default_on(id, &marks), None);
        common.settle(id);
    };
    // It is made again, or another one is there all the time.
    for is_there in [false, true] {
        let common = with_a_cache(true).queue.common;
        let first = written(&common);
        let other = is_there.then(|| common.attach(Made::AtTheStart, common.moves()));
        lost(&common, first);
        let other = other.unwrap_or_else(|| common.attach(Made::Later, common.moves()));
        let (id, marks) = (other.0, other.1.unwrap());
        common.moved();
        assert!(common.has_to_move(), "{is_there}");
        let mut flush = common.begin_flush();
        common.flushed(id, &mut flush);
        assert!(!common.has_to_move() && !marks.is_dirty() && !common.has_flush_failed());
        drop(flush);
    }
    // No connection to it is made any more.
    let common = with_a_cache(true).queue.common;
    lost(&common, written(&common));
    assert!(!common.has_flush_failed());
    common.moved();
    assert!(common.has_flush_failed());
}
