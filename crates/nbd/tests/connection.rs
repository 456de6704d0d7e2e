//! A connection in its transmission phase, byte by byte and in time that is told to it.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

use std::task::Waker;
use std::time::{Duration, Instant};

use blockyard_nbd::server::{
    Connection, ConnectionLimits, Data, Ending, Expired, Export, Memory, MemoryBudget, Negotiated,
    PRESSED_TIMEOUT, Piece, Submission, Work,
};
use blockyard_nbd::wire::{
    Command, CommandFlags, ErrorCode, HeaderStyle, Request, TransmissionFlags,
};
use blockyard_nbd::{BlockSizes, ExportInfo, MetaContext};

const MIB: usize = 1 << 20;
const STALL: Duration = Duration::from_secs(60);
const NONE: CommandFlags = CommandFlags::empty();

#[derive(Debug, Default)]
struct Answer {
    token: usize,
    error: Option<ErrorCode>,
    data: Vec<Vec<u8>>,
    extents: Vec<(u64, u64)>,
}

impl Work for Answer {
    fn token(&self) -> usize {
        self.token
    }
    fn error(&self) -> Option<ErrorCode> {
        self.error
    }
    fn segments(&self) -> usize {
        self.data.len()
    }
    fn segment_len(&self, segment: usize) -> usize {
        self.data[segment].len()
    }
    fn is_zero(&self, segment: usize) -> bool {
        self.data[segment].iter().all(|&byte| byte == 0)
    }
    fn extents(&self) -> impl Iterator<Item = (u64, u64)> {
        self.extents.iter().copied()
    }
}

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn memory(len: usize) -> Bytes {
    Bytes(vec![0xee; len])
}

fn negotiated(style: HeaderStyle, minimum: u32) -> Negotiated {
    let flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    let info = ExportInfo {
        name: "disk".into(),
        description: String::new(),
        size: 1 << 30,
        flags,
        block_sizes: BlockSizes::new(minimum, 4096, 32 << 20).ok(),
    };
    Negotiated {
        export: Export {
            id: 0,
            info,
            contexts: vec!["base:allocation".into()],
            tls_only: false,
            block_sizes_required: false,
        },
        flags,
        style,
        contexts: vec![MetaContext { id: 0, name: "base:allocation".into() }],
        tls: false,
        block_sizes_agreed: true,
        no_zeroes: true,
    }
}

/// A connection, and the client's end of it.
struct Pair {
    connection: Connection<Answer, Bytes>,
    now: Instant,
}

impl Pair {
    fn new(budget: &MemoryBudget) -> Self {
        Self::with(budget, HeaderStyle::Simple, 512)
    }

    fn with(budget: &MemoryBudget, style: HeaderStyle, minimum: u32) -> Self {
        let limits = ConnectionLimits {
            in_flight: 16,
            memory: 64 * MIB,
            window: 256 << 10,
            alignment: 0,
            stall_timeout: STALL,
            idle_timeout: None,
        };
        let now = Instant::now();
        let lease = budget.lease(Waker::noop().clone());
        Self { connection: Connection::new(&negotiated(style, minimum), limits, lease, now), now }
    }

    /// Gives it bytes as a socket would: all that find room.
    fn send(&mut self, bytes: &[u8]) -> usize {
        self.connection.receive(bytes, &mut memory).unwrap()
    }

    /// What the disk is asked for.
    fn asked(&mut self) -> Option<Submission<Bytes>> {
        self.connection.poll_request()
    }

    fn end(&mut self, answer: Answer) {
        self.connection.complete(answer);
    }

    /// What the client receives, when it receives all.
    fn replies(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in self.connection.poll_transmit() {
            match piece {
                Piece::Bytes(more) => bytes.extend_from_slice(more),
                Piece::Data { work, segment, skip } => {
                    bytes.extend_from_slice(&work.data[segment][skip..]);
                }
            }
        }
        self.connection.sent(bytes.len());
        while self.connection.poll_free().is_some() {}
        bytes
    }

    /// Lets time pass as a sleeping owner does: waking at every deadline.
    fn pass(&mut self, time: Duration) -> Option<Expired> {
        let end = self.now + time;
        loop {
            match self.connection.deadline(self.now) {
                Some(deadline) if deadline <= end => self.now = self.now.max(deadline),
                _ => {
                    self.now = end;
                    return self.connection.expired(end);
                }
            }
            if let Some(expired) = self.connection.expired(self.now) {
                return Some(expired);
            }
        }
    }
}

fn budget() -> MemoryBudget {
    MemoryBudget::new(256 * MIB, 1024)
}

fn head(command: Command, offset: u64, length: u64) -> Vec<u8> {
    let request = Request { command, flags: NONE, cookie: offset, offset, length };
    request.encode(HeaderStyle::Simple).unwrap().to_vec()
}

/// A simple reply to a request at `offset`.
fn reply(error: u32, offset: u64) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &offset.to_be_bytes()].concat()
}

#[test]
fn an_idle_hour_before_a_message_does_not_shorten_it() {
    let mut pair = Pair::new(&budget());
    pair.send(&head(Command::Read, 0, 512));
    let token = pair.asked().unwrap().token;
    pair.end(Answer { token, data: vec![vec![7; 512]], ..Answer::default() });
    pair.replies();
    assert_eq!(pair.pass(Duration::from_secs(3600)), None);
    let write = [head(Command::Write, 0, 1 << 20), vec![1; MIB]].concat();
    assert_eq!(pair.send(&write[..65_536]), 65_536);
    assert_eq!(pair.pass(STALL - Duration::from_secs(1)), None, "its clock has just begun");
    assert_eq!(pair.send(&write[65_536..]), write.len() - 65_536);
    assert_eq!(pair.asked().unwrap().length, 1 << 20);
}

#[test]
fn a_peer_that_is_slow_and_steady_lives_and_one_that_stands_still_does_not() {
    let mut pair = Pair::new(&budget());
    let write = [head(Command::Write, 0, 65_536), vec![1; 65_536]].concat();
    // A byte in 50 seconds at first, then more: by receive and by place.
    for at in 0..40 {
        assert_eq!(pair.send(&write[at..=at]), 1);
        assert_eq!(pair.pass(Duration::from_secs(50)), None, "byte {at}");
    }
    for (at, &byte) in write.iter().enumerate().take(60).skip(40) {
        let place = pair.connection.place(&mut memory).unwrap();
        assert!(place.is_last);
        place.bytes[0] = byte;
        pair.connection.placed(1);
        assert_eq!(pair.pass(Duration::from_secs(50)), None, "byte {at}");
    }
    assert_eq!(pair.send(&write[60..]), write.len() - 60);
    let request = pair.asked().unwrap();
    let Data::Chunks(chunks) = request.data else { panic!("it came in pieces") };
    assert!(chunks[0].memory.0[..65_536] == write[28..]);
    // The disk may take its time, and so may the client with its reply, as long as it takes some.
    assert_eq!(pair.pass(Duration::from_secs(3600)), None);
    pair.end(Answer { token: request.token, ..Answer::default() });
    for _ in 0..15 {
        assert_eq!(pair.pass(Duration::from_secs(50)), None);
        pair.connection.sent(1);
    }
    assert_eq!(pair.pass(STALL), Some(Expired::Stalled(STALL)));
    for half in [1, 27, 28, 29, 1000] {
        let mut pair = Pair::new(&budget());
        pair.send(&write[..half]);
        assert_eq!(pair.pass(2 * STALL), Some(Expired::Stalled(STALL)), "{half}");
    }
}

#[test]
fn a_payload_takes_memory_as_it_comes() {
    let budget = budget();
    let mut pair = Pair::new(&budget);
    pair.send(&head(Command::Write, 0, 32 << 20));
    assert_eq!(budget.taken(), 0, "nothing has come");
    let mut came = 0;
    while let Some(place) = pair.connection.place(&mut memory) {
        let len = place.bytes.len();
        place.bytes.fill(3);
        came += len;
        pair.connection.placed(len);
        assert!(budget.taken() <= (2 * came).max(512 << 10), "{} for {came}", budget.taken());
    }
    let request = pair.asked().unwrap();
    assert_eq!((came, request.length), (32 * MIB, 32 << 20));
}

#[test]
fn a_write_that_finds_no_memory_goes_on_in_pieces_and_gets_one_answer() {
    for error in [None, Some(ErrorCode::ENOSPC)] {
        let budget = budget();
        let mut hog = Pair::new(&budget);
        let mut others: Vec<_> = (0..4).map(|_| Pair::new(&budget)).collect();
        for other in others.iter_mut().chain([&mut hog]) {
            other.send(&head(Command::Read, 0, 32 << 20));
            other.send(&head(Command::Read, 0, 32 << 20));
        }
        assert!(budget.is_pressed() && budget.taken() > 160 * MIB);
        let mut pair = Pair::new(&budget);
        let payload: Vec<u8> = (0..MIB).map(|at| (at / 512) as u8).collect();
        let bytes = [head(Command::Write, 4096, MIB as u64), payload.clone()].concat();
        let (mut at, mut written, mut pieces) = (0, Vec::new(), 0);
        while at < bytes.len() {
            at += pair.send(&bytes[at..]);
            while let Some(piece) = pair.asked() {
                assert_eq!((piece.offset, piece.offset % 4096), (4096 + written.len() as u64, 0));
                let Data::Chunks(chunks) = piece.data else { panic!("there is no window") };
                for chunk in chunks {
                    assert!(chunk.len <= budget.own());
                    written.extend_from_slice(&chunk.memory.0[..chunk.len]);
                }
                pieces += 1;
                assert_eq!(pair.replies(), []);
                let error = error.filter(|_| pieces == 3);
                pair.end(Answer { token: piece.token, error, ..Answer::default() });
            }
        }
        assert!(written == payload && pieces > 10);
        assert_eq!(pair.replies(), reply(error.map_or(0, |error| error.0), 4096));
        assert_eq!(pair.connection.outstanding(), 0);
    }
}

#[test]
fn small_requests_pass_when_memory_is_out_and_large_ones_wait_for_their_turn() {
    let budget = budget();
    let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
    for client in &mut crowd {
        client.send(&head(Command::Read, 0, 32 << 20));
        client.send(&head(Command::Read, 0, 32 << 20));
    }
    let mut pair = Pair::new(&budget);
    for _ in 0..100 {
        pair.send(&head(Command::Read, 0, 4096));
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, data: vec![vec![1; 4096]], ..Answer::default() });
        pair.replies();
        pair.send(&[head(Command::Write, 0, 4096), vec![1; 4096]].concat());
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, ..Answer::default() });
        assert_eq!(pair.replies(), reply(0, 0));
    }
    pair.send(&head(Command::Read, 0, 1 << 20));
    assert!(pair.asked().is_none() && !pair.connection.may_receive());
    drop(crowd);
    assert!(pair.connection.may_receive());
    pair.send(&[]);
    assert_eq!(pair.asked().unwrap().length, 1 << 20);
}

#[test]
fn who_keeps_memory_that_others_wait_for_has_less_time_to_take_its_replies() {
    let budget = budget();
    let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
    for client in &mut crowd {
        client.send(&head(Command::Read, 0, 32 << 20));
        if let Some(request) = client.asked() {
            let data = vec![vec![1; 32 << 20]];
            client.end(Answer { token: request.token, data, ..Answer::default() });
        }
    }
    assert!(budget.is_pressed());
    assert_eq!(crowd[0].pass(PRESSED_TIMEOUT - Duration::from_secs(1)), None);
    crowd[0].connection.sent(1);
    assert_eq!(crowd[0].pass(PRESSED_TIMEOUT - Duration::from_secs(1)), None, "it moves");
    let expired = Some(Expired::Pressed(PRESSED_TIMEOUT));
    assert_eq!(crowd[0].pass(2 * PRESSED_TIMEOUT), expired);
    crowd.truncate(2);
    assert!(!budget.is_pressed());
    assert_eq!(crowd[1].pass(STALL - Duration::from_secs(1)), None, "nobody waits");
    assert_eq!(crowd[1].pass(STALL), Some(Expired::Stalled(STALL)));
}

#[test]
fn a_server_that_ends_says_so_and_answers_what_it_has() {
    let mut pair = Pair::new(&budget());
    // As many as may be in flight, and two that wait.
    for n in 0..16 {
        pair.send(&head(Command::Read, n * 512, 512));
    }
    let tokens: Vec<_> = (0..16).map(|_| pair.asked().unwrap().token).collect();
    let waiting = [head(Command::Read, 0x8000, 512), head(Command::Flush, 0, 0)].concat();
    let taken = pair.send(&waiting);
    pair.connection.stash(&waiting[taken..]);
    assert!(pair.asked().is_none() && pair.connection.has_backlog());
    pair.connection.shut_down();
    assert!(pair.connection.may_receive());
    let mut stash = vec![0; 8192];
    let len = pair.connection.take_backlog(&mut stash);
    assert_eq!(pair.send(&stash[..len]), len);
    let write = [head(Command::Write, 0x4000, 4096), vec![1; 4096]].concat();
    let taken = pair.send(&write);
    pair.connection.stash(&write[taken..]);
    let refused = ErrorCode::ESHUTDOWN.0;
    // The flush waits for its turn, and whoever has written may still make it durable.
    assert_eq!(pair.replies(), reply(refused, 0x8000));
    assert!(pair.asked().is_none() && !pair.connection.is_quiet());
    for token in tokens {
        pair.end(Answer { token, data: vec![vec![1; 512]], ..Answer::default() });
    }
    assert_eq!(pair.replies().len(), 16 * (16 + 512));
    assert!(pair.connection.has_backlog() && pair.connection.ending().is_none());
    let len = pair.connection.take_backlog(&mut stash);
    assert_eq!(pair.send(&stash[..len]), len);
    let flush = pair.asked().unwrap();
    pair.end(Answer { token: flush.token, ..Answer::default() });
    assert_eq!(pair.replies(), [reply(refused, 0x4000), reply(0, 0)].concat());
    assert!(pair.asked().is_none() && pair.connection.is_quiet());
    assert_eq!(pair.connection.ending(), Some(Ending::Shutdown));
}

#[test]
fn a_goodbye_is_one_whatever_flags_it_has() {
    let mut pair = Pair::new(&budget());
    let flags = CommandFlags::FUA | CommandFlags::from_bits_retain(1 << 12);
    let goodbye = Request { command: Command::Disc, flags, cookie: 0, offset: 5, length: 7 };
    pair.send(&goodbye.encode(HeaderStyle::Simple).unwrap());
    assert_eq!(pair.connection.ending(), Some(Ending::Left));
    assert_eq!(pair.replies(), []);
}

#[test]
fn extents_are_told_in_whole_blocks() {
    let mut pair = Pair::with(&budget(), HeaderStyle::Structured, 4096);
    let request = Request {
        command: Command::BlockStatus,
        flags: NONE,
        cookie: 1,
        offset: 0,
        length: 32_768,
    };
    pair.send(&request.encode(HeaderStyle::Structured).unwrap());
    let token = pair.asked().unwrap().token;
    // A hole that ends inside a block, one that lies in one, and zeroes beside a hole.
    let extents = vec![(8704, 3), (3584, 0), (512, 3), (3584, 0), (6144, 3), (2048, 2), (8192, 0)];
    assert_eq!(extents.iter().map(|extent| extent.0).sum::<u64>(), 32_768);
    pair.end(Answer { token, extents, ..Answer::default() });
    let replies = pair.replies();
    let descriptors: Vec<(u32, u32)> = replies[24..]
        .chunks(8)
        .map(|it| {
            let number = |at: usize| u32::from_be_bytes(it[at..at + 4].try_into().unwrap());
            (number(0), number(4))
        })
        .collect();
    assert_eq!(descriptors, [(8192, 3), (8192, 0), (4096, 3), (4096, 2), (8192, 0)]);
}

#[test]
fn what_is_at_the_disk_counts_until_it_ends_after_the_connection_has() {
    let budget = budget();
    let mut pair = Pair::new(&budget);
    pair.send(&head(Command::Read, 0, 8 << 20));
    pair.send(&head(Command::Read, 4096, 1 << 20));
    let first = pair.asked().unwrap().token;
    // One has ended and is not sent, one is not asked for yet, one has come in part, and one waits.
    pair.end(Answer { token: first, data: vec![vec![1; 8 << 20]], ..Answer::default() });
    pair.send(&head(Command::Read, 8192, 1 << 20));
    let second = pair.asked().unwrap().token;
    pair.send(&[head(Command::Write, 0, 1 << 20), vec![1; 65_536]].concat());
    pair.connection.stash(&[0; 100]);
    assert!(pair.connection.outstanding() == 3 && budget.taken() > 10 * MIB);
    pair.connection.hang_up();
    assert_eq!(pair.connection.outstanding(), 1);
    assert!((MIB..MIB + (128 << 10)).contains(&(budget.taken() + budget.own())));
    assert!(!pair.connection.may_receive() && pair.asked().is_none());
    pair.end(Answer { token: second, data: vec![vec![1; MIB]], ..Answer::default() });
    pair.connection.hang_up();
    assert_eq!((pair.connection.outstanding(), budget.taken()), (0, 0));
    assert!(pair.replies().is_empty() && pair.connection.is_quiet());
}

#[test]
fn a_write_in_pieces_ends_with_its_connection() {
    for was_asked in [true, false] {
        let budget = budget();
        let mut crowd: Vec<_> = (0..8).map(|_| Pair::new(&budget)).collect();
        for client in &mut crowd {
            client.send(&head(Command::Read, 0, 32 << 20));
            client.send(&head(Command::Read, 0, 32 << 20));
        }
        let before = budget.taken();
        let mut pair = Pair::new(&budget);
        pair.send(&[head(Command::Write, 0, 1 << 20), vec![1; 200_000]].concat());
        let piece = if was_asked { pair.asked() } else { None };
        pair.connection.hang_up();
        if let Some(piece) = piece {
            assert_eq!(pair.connection.outstanding(), 2, "the piece, and the whole");
            pair.end(Answer { token: piece.token, ..Answer::default() });
            pair.connection.hang_up();
        }
        assert_eq!((pair.connection.outstanding(), budget.taken()), (0, before));
        assert!(pair.replies().is_empty());
    }
}

#[test]
fn what_counts_for_more_than_all_memory_has_its_turn() {
    let budget = MemoryBudget::new(128 << 10, 1);
    let mut pair = Pair::with(&budget, HeaderStyle::Structured, 512);
    let flags = CommandFlags::REQ_ONE;
    let status =
        Request { command: Command::BlockStatus, flags, cookie: 1, offset: 0, length: 512 };
    let status = status.encode(HeaderStyle::Structured).unwrap();
    // Nor does it matter what waits behind it.
    pair.connection.stash(&[0; 200_000]);
    for _ in 0..3 {
        assert_eq!(pair.send(&status), status.len());
        let token = pair.asked().unwrap().token;
        pair.end(Answer { token, extents: vec![(512, 0)], ..Answer::default() });
        assert!(!pair.replies().is_empty() && budget.taken() <= budget.largest_lease());
    }
}
