//! Answers that come in pieces, that break off, and that would be too long.

use blockyard_blkmq::{Extent, Flags};
use blockyard_nbd::server::{ExtentList, ReplyEncoder, ReplyTo};
use blockyard_nbd::wire::{HeaderStyle, Request, TransmissionFlags};

use super::*;
use crate::outbox::Unsent;

const STYLE: HeaderStyle = HeaderStyle::Structured;
const NOW: Duration = Duration::ZERO;
const DIALECT: Dialect = Dialect {
    style: STYLE,
    flags: TransmissionFlags::all(),
    allocation: Some(3),
    size: 1 << 20,
    block: 512,
};

/// A request and what was answered.
struct Asked {
    ask: Ask,
    memory: Option<Segment>,
    data: Vec<u8>,
    extents: Vec<Extent>,
}

impl Job for Asked {
    fn ask(&self) -> Ask {
        self.ask
    }
    fn memory(&self) -> Segments {
        self.memory.iter().cloned().collect()
    }
    fn deliver(&mut self, segment: Segment) {
        self.data.extend(segment.to_vec());
    }
    fn extent(&mut self, extent: Extent) {
        self.extents.push(extent);
    }
}

fn asked(op: Op, len: u64) -> Asked {
    let ask = Ask { op, flags: Flags::empty(), offset: 4096, len };
    Asked { ask, memory: None, data: Vec::new(), extents: Vec::new() }
}

fn link() -> Link<Asked> {
    Link::new(DIALECT, Pool::default(), false)
}

fn submit(link: &mut Link<Asked>, job: Asked) {
    let ask = job.ask;
    assert!(link.submit(job, &ask, Past::default(), <_>::default(), NOW).is_ok());
}

/// The request that is sent now.
fn sent(link: &mut Link<Asked>) -> Request {
    let mut buf = [0; 64];
    let len = link.messages().copy_to(&mut buf);
    link.messages().advance(len);
    assert_eq!(len, STYLE.request_len(), "one request");
    Request::parse(STYLE, &buf[..len]).unwrap().unwrap()
}

fn hears(link: &mut Link<Asked>, bytes: &[u8]) -> Vec<Done<Asked>> {
    try_hear(link, bytes).unwrap()
}

fn try_hear(link: &mut Link<Asked>, bytes: &[u8]) -> Result<Vec<Done<Asked>>, Error> {
    let mut done = Vec::new();
    link.room().1[..bytes.len()].copy_from_slice(bytes);
    link.came(bytes.len(), NOW);
    link.read(&mut done).map(|()| done)
}

fn to(request: &Request) -> ReplyTo {
    ReplyTo { cookie: request.cookie, offset: request.offset }
}

/// The server says that all that is asked is one extent, and perhaps that there is more to come.
fn extents(request: &Request, done: bool) -> Vec<u8> {
    let (mut reply, mut list) = (Vec::new(), ExtentList::new(request.length, false, 1 << 20));
    list.push(request.length, 3);
    ReplyEncoder::new(STYLE).block_status(&mut reply, to(request), 3, &list, done);
    reply
}

#[test]
fn extents_of_an_answer_that_breaks_off_are_not_told() {
    let mut link = link();
    submit(&mut link, asked(Op::BlockStatus, 8192));
    let request = sent(&mut link);
    assert!(hears(&mut link, &extents(&request, false)).is_empty());
    let (job, ..) = link.take_back(request.cookie).unwrap();
    assert_eq!(job.extents, []);
    // It is asked again, and answered once.
    let mut other = self::link();
    submit(&mut other, job);
    let request = sent(&mut other);
    let done = hears(&mut other, &extents(&request, true)).pop().unwrap();
    assert_eq!(done.job.unwrap().extents, [Extent { len: 8192, hole: true, zero: true }]);
}

#[test]
fn a_block_map_that_would_be_too_long_is_asked_for_in_part() {
    let mut link = link();
    submit(&mut link, asked(Op::BlockStatus, 4096));
    for length in [4096, 2048] {
        let request = sent(&mut link);
        assert_eq!((request.offset, request.length), (4096, length));
        let error = ReplyEncoder::new(STYLE).error(to(&request), ErrorCode::EOVERFLOW);
        assert!(hears(&mut link, &error).is_empty());
    }
    let request = sent(&mut link);
    let done = hears(&mut link, &extents(&request, true)).pop().unwrap();
    assert_eq!((done.op, done.result), (Op::BlockStatus, Ok(())));
    assert_eq!(done.job.unwrap().extents, [Extent { len: 1024, hole: true, zero: true }]);
    // It is remembered.
    submit(&mut link, asked(Op::BlockStatus, 4096));
    assert_eq!(sent(&mut link).length, 1024);
}

/// What is at an offset.
fn content(at: u64) -> u8 {
    u8::try_from(at / 512).unwrap()
}

#[test]
fn a_read_that_would_be_too_long_is_asked_for_in_pieces() {
    for own_memory in [false, true] {
        let mut link = link();
        let mut job = asked(Op::Read, 4096);
        let memory = Segment::from_vec(vec![9; 4096]);
        job.memory = own_memory.then(|| memory.clone());
        submit(&mut link, job);
        // All of it came as zeroes, and then it was an error: nobody's zeroes are written to.
        let request = sent(&mut link);
        let encoder = ReplyEncoder::new(STYLE);
        let refusal = [
            &*encoder.hole(to(&request), 4096, 4096, false),
            &encoder.error(to(&request), ErrorCode::EOVERFLOW),
        ];
        assert!(hears(&mut link, &refusal.concat()).is_empty());
        let mut pieces = Vec::new();
        let done = loop {
            let request = sent(&mut link);
            pieces.push((request.offset, request.length));
            assert!(pieces.len() < 10);
            let len = u32::try_from(request.length).unwrap();
            if len > 1024 {
                let error = encoder.error(to(&request), ErrorCode::EOVERFLOW);
                assert!(hears(&mut link, &error).is_empty());
                continue;
            }
            let mut reply = encoder.data(to(&request), request.offset, len, true).to_vec();
            reply.extend((request.offset..request.offset + request.length).map(content));
            if let Some(done) = hears(&mut link, &reply).pop() {
                break done;
            }
        };
        assert_eq!(pieces, [(4096, 2048), (4096, 1024), (5120, 1024), (6144, 1024), (7168, 1024)]);
        assert_eq!(done.result, Ok(()));
        let data = done.job.unwrap().data;
        let data = if own_memory { memory.to_vec() } else { data };
        let expected: Vec<u8> = (4096..8192).map(content).collect();
        assert!(data == expected);
        assert!(link.slots.is_empty());
    }
}

#[test]
fn what_is_too_long_even_of_one_block_is_an_error() {
    let mut link = link();
    submit(&mut link, asked(Op::Read, 512));
    let request = sent(&mut link);
    let error = ReplyEncoder::new(STYLE).error(to(&request), ErrorCode::EOVERFLOW);
    let done = hears(&mut link, &error).pop().unwrap();
    assert_eq!((done.result, done.status()), (Err(ErrorCode::EOVERFLOW), Status::Invalid));
}

/// The memory of two writes, and all that is sent of them.
fn two_writes(link: &mut Link<Asked>) -> ([Segment; 2], Vec<u8>) {
    let memory = [1, 2].map(|byte| Segment::from_vec(vec![byte; 1024]));
    for memory in &memory {
        submit(link, Asked { memory: Some(memory.clone()), ..asked(Op::Write, 1024) });
    }
    let mut stream = vec![0; 2 * (STYLE.request_len() + 1024)];
    assert_eq!(link.messages().copy_to(&mut stream), stream.len());
    (memory, stream)
}

fn heads(stream: &[u8]) -> [Request; 2] {
    let second = STYLE.request_len() + 1024;
    [stream, &stream[second..]].map(|head| Request::parse(STYLE, head).unwrap().unwrap())
}

/// The memory is somebody else's then, and may hold anything.
#[test]
fn a_server_that_refuses_a_write_early_gets_the_rest_of_it() {
    let head = STYLE.request_len();
    for sent in [head, head + 1, head + 100, head + 1023] {
        for error in [ErrorCode::ENOSPC, ErrorCode::ESHUTDOWN] {
            let mut link = link();
            let (memory, stream) = two_writes(&mut link);
            let [first, second] = heads(&stream);
            link.messages().advance(sent);
            let refusal = ReplyEncoder::new(STYLE).error(to(&first), error);
            let done = hears(&mut link, &refusal).pop().unwrap();
            assert_eq!((done.cookie, done.result), (first.cookie, Err(error)));
            assert!(done.job.is_some());
            memory[0].fill_zero();
            let mut rest = vec![0; stream.len()];
            let len = link.messages().copy_to(&mut rest);
            assert!(rest[..len] == stream[sent..], "after {sent} bytes");
            link.messages().advance(len);
            assert!(!link.has_unsent());
            let done = hears(&mut link, &ReplyEncoder::new(STYLE).ok(to(&second))).pop().unwrap();
            assert_eq!((done.cookie, done.result), (second.cookie, Ok(())));
            assert!(link.slots.is_empty());
        }
    }
}

/// It cannot know of them, or not have what it says that it has written. They are sent to an honest one.
#[test]
fn an_answer_to_what_was_not_sent_is_a_lie() {
    let (encoder, head) = (ReplyEncoder::new(STYLE), STYLE.request_len());
    let error = |request: &Request| encoder.error(to(request), ErrorCode::EIO).to_vec();
    let lies = |sent: usize, answer: &dyn Fn(&[Request; 2]) -> Vec<u8>| {
        let mut link = link();
        let (_, stream) = two_writes(&mut link);
        let requests = heads(&stream);
        link.messages().advance(sent);
        let lied = try_hear(&mut link, &answer(&requests)).is_err();
        assert_eq!(link.slots.len(), 2, "nothing has ended");
        let kept = requests.map(|request| link.take_back(request.cookie).is_some());
        assert_eq!(kept, [true; 2]);
        lied
    };
    assert!(lies(0, &|[first, _]| error(first)));
    assert!(lies(head - 1, &|[first, _]| error(first)));
    assert!(lies(head + 100, &|[_, second]| error(second)));
    assert!(lies(head + 100, &|[first, _]| encoder.ok(to(first)).to_vec()));
    assert!(lies(head + 1023, &|[first, _]| encoder.ok(to(first)).to_vec()));
    assert!(lies(2 * head + 1023, &|[_, second]| error(second)));
}

/// The server can answer only what it was sent.
#[test]
fn a_server_that_waits_for_what_a_file_has_is_not_silent() {
    let second = Duration::from_secs(1);
    let mut link = link();
    submit(&mut link, asked(Op::Read, 512));
    let dead_at = |link: &mut Link<Asked>| link.dead_at(second, 9 * second);
    assert_eq!(dead_at(&mut link), Some(second));
    link.awaits_source(true);
    assert_eq!(dead_at(&mut link), None);
    assert!(!link.has_source_come(|| second / 2) && !link.has_source_come(|| unreachable!()));
    link.awaits_source(false);
    assert!(link.has_source_come(|| 20 * second) && !link.has_source_come(|| unreachable!()));
    assert_eq!(dead_at(&mut link), Some(21 * second), "it is heard of from then on");
}

/// Of what a request may take, however often others are answered, only the time counts in which the server had what it asks.
#[test]
fn the_time_in_which_a_source_was_waited_for_is_no_requests() {
    let second = Duration::from_secs(1);
    let mut link = link();
    submit(&mut link, asked(Op::Read, 512));
    let dead_at = |link: &mut Link<Asked>| link.dead_at(100 * second, 9 * second);
    assert_eq!(dead_at(&mut link), Some(9 * second));
    let awaited = |link: &mut Link<Asked>, from: u32, to: u32| {
        link.awaits_source(true);
        assert!(!link.has_source_come(|| from * second));
        // The next one is waited for at once.
        link.awaits_source(false);
        link.awaits_source(true);
        assert!(!link.has_source_come(|| unreachable!()));
        link.awaits_source(false);
        assert!(link.has_source_come(|| to * second));
    };
    awaited(&mut link, 3, 20);
    assert_eq!(dead_at(&mut link), Some(26 * second), "three of nine seconds have passed");
    awaited(&mut link, 24, 30);
    assert_eq!(dead_at(&mut link), Some(32 * second), "and four more");
    // One that was read between two looks.
    link.awaits_source(true);
    link.awaits_source(false);
    assert!(link.has_source_come(|| 31 * second));
    assert_eq!(dead_at(&mut link), Some(32 * second));
}
