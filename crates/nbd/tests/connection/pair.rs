//! A connection, and the client's end of it.

use std::ops::Deref;
use std::task::Waker;
use std::time::{Duration, Instant};

use blockyard_nbd::server::{
    Connection, ConnectionLimits, Expired, Export, Memory, MemoryBudget, MemoryShare, Negotiated,
    Piece, Submission, Work,
};
use blockyard_nbd::wire::{
    Command, CommandFlags, ErrorCode, HeaderStyle, Request, TransmissionFlags,
};
use blockyard_nbd::{BlockSizes, ExportInfo, MetaContext};

pub const MIB: usize = 1 << 20;
pub const STALL: Duration = Duration::from_secs(60);
pub const NONE: CommandFlags = CommandFlags::empty();

#[derive(Debug, Default)]
pub struct Answer {
    pub token: usize,
    pub error: Option<ErrorCode>,
    pub data: Vec<Vec<u8>>,
    pub extents: Vec<(u64, u64)>,
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
pub struct Bytes(pub Vec<u8>);

impl Memory for Bytes {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

pub fn memory(len: usize) -> Bytes {
    Bytes(vec![0xee; len])
}

pub fn negotiated(style: HeaderStyle, minimum: u32) -> Negotiated {
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
        hears_shutdown: false,
        no_zeroes: true,
    }
}

/// The memory of all, and the share of the one export.
pub struct Budget(MemoryBudget, MemoryShare);

impl Budget {
    pub fn new(bytes: usize, connections: usize) -> Self {
        let budget = MemoryBudget::new(bytes, connections, 32 * MIB);
        let share = budget.share(64 * MIB);
        Self(budget, share)
    }

    /// The same memory, and the share of another export.
    pub fn another(&self) -> Self {
        Self(self.0.clone(), self.0.share(64 * MIB))
    }
}

impl Deref for Budget {
    type Target = MemoryBudget;
    fn deref(&self) -> &MemoryBudget {
        &self.0
    }
}

/// A connection, and the client's end of it.
pub struct Pair {
    pub connection: Connection<Answer, Bytes>,
    pub now: Instant,
}

impl Pair {
    pub fn new(budget: &Budget) -> Self {
        Self::with(budget, HeaderStyle::Simple, 512)
    }

    pub fn with(budget: &Budget, style: HeaderStyle, minimum: u32) -> Self {
        Self::limited(budget, style, minimum, |_| {})
    }

    pub fn limited(
        budget: &Budget,
        style: HeaderStyle,
        minimum: u32,
        limit: impl FnOnce(&mut ConnectionLimits),
    ) -> Self {
        let mut limits = ConnectionLimits {
            in_flight: 16,
            memory: 64 * MIB,
            window: 256 << 10,
            alignment: 0,
            stall_timeout: STALL,
            idle_timeout: None,
        };
        limit(&mut limits);
        let lease = budget.1.lease(Waker::noop().clone());
        let connection = Connection::new(&negotiated(style, minimum), limits, lease);
        Self { connection, now: Instant::now() }
    }

    /// Gives it bytes as a socket would: all that find room.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        self.connection.receive(bytes, &mut memory)
    }

    /// What the disk is asked for.
    pub fn asked(&mut self) -> Option<Submission<Bytes>> {
        self.connection.poll_request()
    }

    pub fn end(&mut self, answer: Answer) {
        self.connection.complete(answer);
    }

    /// What the client receives, when it receives all.
    pub fn replies(&mut self) -> Vec<u8> {
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

    /// The client receives all, and looks at none of it.
    pub fn take_replies(&mut self) -> usize {
        let pieces = self.connection.poll_transmit().map(|piece| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Data { work, segment, skip } => work.data[segment].len() - skip,
        });
        let len = pieces.sum();
        self.connection.sent(len);
        while self.connection.poll_free().is_some() {}
        len
    }

    /// Lets time pass as a sleeping owner does: waking at every deadline.
    pub fn pass(&mut self, time: Duration) -> Option<Expired> {
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

pub fn budget() -> Budget {
    Budget::new(256 * MIB, 1024)
}

pub fn head(command: Command, offset: u64, length: u64) -> Vec<u8> {
    let request = Request { command, flags: NONE, cookie: offset, offset, length };
    request.encode(HeaderStyle::Simple).unwrap().to_vec()
}

/// A simple reply to a request at `offset`.
pub fn reply(error: u32, offset: u64) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &offset.to_be_bytes()].concat()
}
