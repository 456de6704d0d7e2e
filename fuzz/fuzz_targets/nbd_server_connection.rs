//! A hostile client on a slow disk. First byte: the headers and the size of the pieces; second byte: what the disk, the
//! socket and the owner do in between; the rest is what the client sends.
#![no_main]

use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

use blockyard_nbd::server::{
    Connection, ConnectionLimits, Data, Ending, Export, Memory, MemoryBudget, Negotiated, Piece,
    Submission, Work,
};
use blockyard_nbd::wire::{Command, ErrorCode, HeaderStyle, TransmissionFlags};
use blockyard_nbd::{BlockSizes, ExportInfo, MetaContext};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 1 << 20;
const MAX_PAYLOAD: u32 = 64 << 10;
/// What it has in all: two requests of the largest payload, so that some have to wait.
const MEMORY: usize = 2 << 17;
const WINDOW: usize = 4 << 10;
const IN_FLIGHT: usize = 4;
/// Requests and pieces of one that are under way: memory that is short comes by 4 KiB.
const MOST_OUTSTANDING: usize = IN_FLIGHT + 1 + MEMORY / 4096;
/// The shortest request, and what is said to the longest.
const HEADER: usize = 28;
const LONGEST_REPLY: usize = MAX_PAYLOAD as usize + 8192;
/// Turns in which nothing moves, after which nothing will.
const QUIET: u32 = 4;

struct Bytes(Vec<u8>);

impl Memory for Bytes {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn memory(len: usize) -> Bytes {
    assert!(len <= MAX_PAYLOAD as usize, "a payload has {len} bytes");
    Bytes(vec![0xee; len])
}

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
        self.data[segment].first() == Some(&0)
    }
    fn extents(&self) -> impl Iterator<Item = (u64, u64)> {
        self.extents.iter().copied()
    }
}

fn negotiated(style: HeaderStyle) -> Negotiated {
    let flags = TransmissionFlags::all() - TransmissionFlags::READ_ONLY;
    let info = ExportInfo {
        name: String::new(),
        description: String::new(),
        size: SIZE,
        flags,
        block_sizes: BlockSizes::new(1, 4096, MAX_PAYLOAD).ok(),
    };
    let contexts = vec!["base:allocation".to_owned()];
    Negotiated {
        export: Export { id: 0, info, contexts, tls_only: false, block_sizes_required: false },
        flags,
        style,
        // proto.md, "NBD_OPT_SET_META_CONTEXT": only with structured replies.
        contexts: Vec::from_iter(
            style.has_chunks().then(|| MetaContext { id: 0, name: "base:allocation".into() }),
        ),
        tls: false,
        block_sizes_agreed: true,
        hears_shutdown: false,
        no_zeroes: true,
    }
}

/// A disk that answers in any order.
struct Disk {
    held: VecDeque<Answer>,
    requests: usize,
}

impl Disk {
    fn take(&mut self, request: Submission<Bytes>, window: &[u8]) {
        let Submission { token, command, offset, length, data, .. } = request;
        // What a FLUSH says of a place means nothing.
        assert!(command == Command::Flush || offset + length <= SIZE, "{command:?} past the end");
        assert!(!matches!(command, Command::Disc | Command::Unknown(_) | Command::Resize));
        let payload = match data {
            Data::None => 0,
            Data::Here(range) => window[range].len(),
            Data::Chunks(chunks) => chunks.iter().map(|chunk| chunk.len).sum(),
        };
        assert_eq!(payload as u64, if command == Command::Write { length } else { 0 });
        self.requests += 1;
        let error = (self.requests % 5 == 0).then_some(ErrorCode::EIO);
        let mut answer = Answer { token, error, data: Vec::new(), extents: Vec::new() };
        let half = length / 2;
        match command {
            // Data, then zeroes.
            Command::Read => {
                answer.data = vec![vec![7; half as usize], vec![0; (length - half) as usize]];
                answer.data.retain(|segment| !segment.is_empty());
            }
            Command::BlockStatus => answer.extents = vec![(half, 3), (length - half, 0)],
            _ => {}
        }
        self.held.push_back(answer);
    }

    fn pop(&mut self, first: bool) -> Option<Answer> {
        if first { self.held.pop_front() } else { self.held.pop_back() }
    }
}

struct Client<'a> {
    bytes: &'a [u8],
    /// Bytes that are sent at a time.
    step: usize,
    /// What happens in between: taken bit by bit, again and again.
    moods: u8,
}

impl Client<'_> {
    fn mood(&mut self) -> bool {
        self.moods = self.moods.rotate_left(1);
        self.moods & 1 == 1
    }
}

/// Sends some of what is to be sent, or all.
fn transmit(connection: &mut Connection<Answer, Bytes>, most: usize) -> usize {
    let len: usize = connection
        .poll_transmit()
        .map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Data { work, segment, skip } => work.data[segment].len() - skip,
        })
        .sum();
    let len = len.min(most);
    connection.sent(len);
    while connection.poll_free().is_some() {}
    len
}

/// Takes a piece as the owner of a socket does.
fn receive(
    connection: &mut Connection<Answer, Bytes>,
    disk: &mut Disk,
    client: &mut Client<'_>,
) -> bool {
    if !connection.may_receive() {
        return false;
    }
    let mut window = vec![0; WINDOW.max(client.step)];
    let mut len = 0;
    if connection.has_backlog() {
        len = connection.take_backlog(&mut window);
    } else if let Some(place) = connection.place(&mut memory) {
        let len = place.bytes.len().min(client.step).min(client.bytes.len());
        place.bytes[..len].copy_from_slice(&client.bytes[..len]);
        client.bytes = &client.bytes[len..];
        connection.placed(len);
    } else {
        len = client.step.min(client.bytes.len());
        window[..len].copy_from_slice(&client.bytes[..len]);
        client.bytes = &client.bytes[len..];
    }
    let taken = connection.receive(&window[..len], &mut memory);
    while let Some(request) = connection.poll_request() {
        disk.take(request, &window);
    }
    // The disk has a copy of what was left in the window.
    connection.set_pinned(0);
    connection.stash(&window[taken..len]);
    true
}

/// What it would sleep for is what can happen.
fn check_waits(connection: &mut Connection<Answer, Bytes>, disk: &Disk) {
    let Some(waits) = connection.waits_for() else { return };
    assert_eq!(waits.disk, !disk.held.is_empty(), "{waits:?}");
    assert_eq!(waits.room, connection.wants_transmit(), "{waits:?}");
    assert!(!waits.memory || waits.disk || waits.room, "{waits:?}: nobody else has any");
    let is_over = connection.ending().is_some() && connection.is_quiet();
    assert!(waits.is_any() || is_over, "a lost wake-up");
}

fuzz_target!(|data: &[u8]| {
    let &[how, moods, ref bytes @ ..] = data else { return };
    let style =
        [HeaderStyle::Simple, HeaderStyle::Structured, HeaderStyle::Extended][usize::from(how % 3)];
    let mut client = Client { bytes, step: 1 + usize::from(how / 3) * 37, moods };
    let budget = MemoryBudget::new(MEMORY, 1, MEMORY / 2);
    let limits = ConnectionLimits {
        in_flight: IN_FLIGHT,
        memory: MEMORY,
        window: WINDOW,
        alignment: 7,
        stall_timeout: Duration::from_secs(60),
        idle_timeout: None,
    };
    let mut now = Instant::now();
    let mut disk = Disk { held: VecDeque::new(), requests: 0 };
    let lease = budget.share(MEMORY).lease(Waker::noop().clone());
    let mut connection = Connection::new(&negotiated(style), limits, lease);
    let (mut sent, mut quiet) = (0, 0);
    loop {
        let before = client.bytes.len();
        let received = receive(&mut connection, &mut disk, &mut client);
        let mut moved = before != client.bytes.len();
        // The disk and the socket take their time, but not for ever.
        let lazy = received && moved && client.mood();
        if !lazy {
            if let Some(answer) = disk.pop(client.moods & 2 == 0) {
                connection.complete(answer);
                moved = true;
            }
            let most = if client.mood() { usize::MAX } else { 100 };
            let len = transmit(&mut connection, most);
            sent += len;
            moved |= len > 0;
        }
        let outstanding = connection.outstanding();
        assert!(outstanding <= MOST_OUTSTANDING, "{outstanding} under way");
        assert!(budget.taken() <= MEMORY);
        now += Duration::from_secs(1);
        check_waits(&mut connection, &disk);
        connection.deadline(now);
        quiet = if moved { 0 } else { quiet + 1 };
        if quiet == QUIET {
            let done = client.bytes.is_empty() || connection.ending().is_some();
            assert!(done, "{} bytes are never taken", client.bytes.len());
            break;
        }
    }
    assert!(sent <= (bytes.len() / HEADER + 1) * LONGEST_REPLY, "an answer out of proportion");
    assert!(disk.held.is_empty() && connection.is_quiet());
    assert_eq!(connection.ending() == Some(Ending::Broken), connection.violation().is_some());
    connection.hang_up();
    while let Some(answer) = disk.pop(true) {
        connection.complete(answer);
        connection.hang_up();
    }
    assert_eq!((connection.outstanding(), budget.taken()), (0, 0), "something is left");
});
