//! Requests become bios, and what bios bring becomes answers. Bios are used again and again.

use std::sync::Arc;

use blockyard_blkmq::{Bdev, Bio, Flags, Op, Outbox, Sector, Status};
use blockyard_buf::{Buffer, Pages};
use blockyard_nbd::server::{Chunk, Data, Memory, Submission, Work};
use blockyard_nbd::wire::{AllocationFlags, Command, CommandFlags, ErrorCode};

use super::Bios;
use crate::client::Client;
use crate::flushes::{Flushes, Unflushed};
use crate::status::error_code;

/// More room for segments or extents than a bio keeps for its next use: what 256 KiB of scattered pages need.
const KEPT_ENTRIES: usize = 64;
/// Bytes that a client may have out of reads that are answered with pages of a file: what these occupy is few, and all clients',
/// and one that takes no replies is not to have it all. What is beyond it is copied.
const MAX_PAGES_OUT: u64 = 2 << 20;

/// A bio, as the protocol sees it.
#[derive(Debug)]
pub(super) struct Carrier(pub(super) Box<Bio>);

impl Work for Carrier {
    fn token(&self) -> usize {
        usize::try_from(self.0.private).unwrap_or(usize::MAX)
    }

    fn error(&self) -> Option<ErrorCode> {
        match self.0.status() {
            Status::Ok => None,
            status => Some(error_code(self.0.op, status)),
        }
    }

    fn segments(&self) -> usize {
        self.0.pages().map_or(self.0.data().len(), |_| 1)
    }

    fn segment_len(&self, segment: usize) -> usize {
        self.0.pages().map_or_else(|| self.0.data()[segment].len(), Pages::len)
    }

    fn is_zero(&self, segment: usize) -> bool {
        self.0.pages().is_none() && self.0.data()[segment].is_zero_run()
    }

    fn extents(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.extents.iter().map(|extent| {
            let mut flags = AllocationFlags::empty();
            flags.set(AllocationFlags::HOLE, extent.hole);
            flags.set(AllocationFlags::ZERO, extent.zero);
            (extent.len, flags.bits().into())
        })
    }
}

/// A buffer for a payload.
#[derive(Debug)]
pub(super) struct Room(pub(super) Buffer);

impl Memory for Room {
    fn bytes(&mut self) -> &mut [u8] {
        let Some(bytes) = self.0.get_mut() else {
            unreachable!("it is not shared before it is full")
        };
        bytes
    }
}

/// The bios of a connection.
pub(super) struct Carriers {
    outbox: Arc<Outbox>,
    /// Whether [pages](Flags::PAGES) of a file can be sent as they are.
    sends_pages: bool,
    /// Bytes of reads that may be answered with such.
    pages_out: u64,
    /// Those of each request, by its token.
    pages_of: Vec<u64>,
    /// Those that carry nothing.
    free: Bios,
    /// Those that wait to be submitted together.
    batch: Bios,
    /// Those that have ended: empty but for a moment.
    ended: Bios,
    /// How many the disk has.
    at_disk: usize,
    pub(super) unflushed: Unflushed,
}

impl Carriers {
    /// `sends_pages`: whether [pages](Flags::PAGES) can be sent to the client as they are.
    /// `flushes`: those of the export, where the client may flush.
    pub(super) fn new(
        outbox: Arc<Outbox>,
        flushes: Option<Arc<Flushes>>,
        sends_pages: bool,
    ) -> Self {
        let (free, batch, ended) = (Vec::new(), Vec::new(), Vec::new());
        let (pages_out, pages_of, at_disk) = (0, Vec::new(), 0);
        let unflushed = Unflushed::new(flushes);
        Self { outbox, sends_pages, pages_out, pages_of, free, batch, ended, at_disk, unflushed }
    }

    /// A request joins the batch. A payload that was left where it was received is in `received`.
    pub(super) fn add(&mut self, request: Submission<Room>, received: &Buffer, base: usize) {
        let mut bio = match self.free.pop() {
            Some(bio) => bio,
            None => Bio::flush().on_end(Arc::<Outbox>::clone(&self.outbox)),
        };
        bio.private = request.token as u64;
        let (op, flags) = operation(request.command, request.flags);
        let start = request.offset;
        match request.data {
            Data::None if op == Op::Flush => bio.reset(op, Sector::ZERO, 0),
            Data::None => bio.reset_bytes(op, start, request.length),
            Data::Here(range) => {
                bio.reset_bytes(op, start, 0);
                bio.add_segment(received.segment(base + range.start, range.len()));
            }
            Data::Chunks(chunks) => {
                bio.reset_bytes(op, start, 0);
                for Chunk { memory, len, .. } in chunks {
                    bio.add_segment(memory.0.segment(0, len));
                }
            }
        }
        bio.flags |= flags;
        if op == Op::Read && self.takes_pages(request.token, request.length) {
            bio.flags |= Flags::PAGES;
        }
        self.unflushed.begin(&bio);
        self.batch.push(bio);
    }

    /// Whether a read may be answered with pages, which are counted then.
    fn takes_pages(&mut self, token: usize, len: u64) -> bool {
        let takes = self.sends_pages && self.pages_out.saturating_add(len) <= MAX_PAGES_OUT;
        if takes {
            self.pages_out += len;
            self.pages_of.resize(self.pages_of.len().max(token + 1), 0);
            self.pages_of[token] = len;
        }
        takes
    }

    /// How many wait to be submitted.
    pub(super) fn batch_len(&self) -> usize {
        self.batch.len()
    }

    /// Counts the batch.
    pub(super) fn count(&self, client: &Client) {
        let (mut read, mut written) = (0, 0);
        for bio in &self.batch {
            match bio.op {
                Op::Read => read += bio.len(),
                Op::Write => written += bio.len(),
                _ => {}
            }
        }
        client.count(self.batch.len() as u64, read, written);
    }

    pub(super) fn submit(&mut self, bdev: &Bdev, cpu: usize) {
        self.at_disk += self.batch.len();
        bdev.submit_all(cpu, &mut self.batch);
    }

    /// How many the disk has.
    pub(super) fn at_disk(&self) -> usize {
        self.at_disk
    }

    /// Nobody waits for answers any more: what has not begun need not.
    pub(super) fn abandon(&self) {
        self.outbox.abandon();
    }

    /// Those that have ended, in a list that is to be [kept](Self::keep_list).
    pub(super) fn take_ended(&mut self) -> Bios {
        self.outbox.take(&mut self.ended);
        self.at_disk -= self.ended.len();
        std::mem::take(&mut self.ended)
    }

    pub(super) fn keep_list(&mut self, list: Bios) {
        debug_assert!(list.is_empty(), "unread bios");
        self.ended = list;
    }

    /// It carries nothing any more.
    pub(super) fn give_back(&mut self, mut bio: Box<Bio>) {
        if let Some(len) =
            usize::try_from(bio.private).ok().and_then(|at| self.pages_of.get_mut(at))
        {
            self.pages_out -= std::mem::take(len);
        }
        if bio.data().len() > KEPT_ENTRIES {
            drop(bio.take_data());
        }
        if bio.extents.len() > KEPT_ENTRIES {
            bio.extents = Vec::new();
        }
        // Gives the disk's memory back, and keeps that of the lists.
        bio.reset(Op::Flush, Sector::ZERO, 0);
        self.free.push(bio);
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// What a request asks of a disk. Flags that mean nothing to the command were refused before, but for FUA,
/// which goes with all.
fn operation(command: Command, flags: CommandFlags) -> (Op, Flags) {
    let fua = if flags.contains(CommandFlags::FUA) { Flags::FUA } else { Flags::empty() };
    match command {
        Command::Read => (Op::Read, Flags::empty()),
        Command::Write => (Op::Write, fua),
        Command::Trim => (Op::Discard, fua),
        Command::WriteZeroes => {
            let mut how = fua;
            how.set(Flags::NOUNMAP, flags.contains(CommandFlags::NO_HOLE));
            how.set(Flags::NOFALLBACK, flags.contains(CommandFlags::FAST_ZERO));
            (Op::WriteZeroes, how)
        }
        Command::Cache => (Op::Prefetch, Flags::empty()),
        Command::BlockStatus => {
            let one = flags.contains(CommandFlags::REQ_ONE);
            (Op::BlockStatus, if one { Flags::FIRST_EXTENT } else { Flags::empty() })
        }
        Command::Flush | Command::Disc | Command::Resize | Command::Unknown(_) => {
            (Op::Flush, Flags::empty())
        }
    }
}
