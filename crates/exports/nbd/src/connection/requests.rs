//! The requests of a connection that are not answered yet, and the bios that carry them, which are used again
//! and again.

use std::sync::Arc;

use blockyard_blkmq::{Bdev, Bio, Flags, Op, Outbox, Sector};
use blockyard_buf::Segment;
use blockyard_nbd::server::ReplyTo;
use blockyard_nbd::wire::{Command, CommandFlags, Request};

use super::Bios;
use super::reply::Replies;
use super::transmit::Transmit;
use crate::client::Client;
use crate::config::ServerLimits;

/// More room for segments or extents than a bio keeps for its next use: what 256 KiB of scattered pages need.
const KEPT_ENTRIES: usize = 64;

/// What is remembered of a request until its reply was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) to: ReplyTo,
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    /// Bytes of the export that it concerns.
    pub(super) length: u64,
    /// Bytes of memory that were reserved for it.
    charge: usize,
}

pub(super) struct Requests {
    outbox: Arc<Outbox>,
    /// A slot for each bio, whose `private` is its place.
    slots: Vec<Slot>,
    /// Bios that carry nothing.
    free: Bios,
    /// Those that wait to be submitted together.
    batch: Bios,
    /// Those that have ended: empty but for a moment.
    ended: Bios,
    /// Bytes of memory that are reserved.
    held: usize,
    max_in_flight: usize,
    max_memory: usize,
}

impl Requests {
    pub(super) fn new(outbox: Arc<Outbox>, limits: &ServerLimits) -> Self {
        Self {
            outbox,
            slots: Vec::new(),
            free: Vec::new(),
            batch: Vec::new(),
            ended: Vec::new(),
            held: 0,
            max_in_flight: limits.in_flight_per_client,
            max_memory: limits.memory_per_client,
        }
    }

    /// Requests that were begun and whose replies are not sent.
    pub(super) fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether one more may begin that takes `charge` bytes, with `pinned` bytes taken by other means. One
    /// always may.
    pub(super) fn admits(&self, charge: usize, pinned: usize) -> bool {
        let held = self.held + pinned;
        self.outstanding() < self.max_in_flight && (held == 0 || held + charge <= self.max_memory)
    }

    /// Sets memory aside for a request that will begin.
    pub(super) fn reserve(&mut self, charge: usize) {
        self.held += charge;
    }

    /// Makes a bio of a request on `length` bytes, which joins the batch. Its `charge` was reserved.
    pub(super) fn begin(
        &mut self,
        request: &Request,
        length: u64,
        charge: usize,
        data: Option<Segment>,
    ) {
        let slot = Slot {
            to: request.into(),
            command: request.command,
            flags: request.flags,
            length,
            charge,
        };
        let mut bio = match self.free.pop() {
            Some(bio) => bio,
            None => self.new_bio(slot),
        };
        if let Some(place) = usize::try_from(bio.private).ok().and_then(|at| self.slots.get_mut(at))
        {
            *place = slot;
        }
        let (op, flags) = operation(request);
        let start = Sector::from_bytes_floor(request.offset);
        match data {
            Some(data) => {
                bio.reset(op, start, 0);
                bio.add_segment(data);
            }
            None if op == Op::Flush => bio.reset(op, Sector::ZERO, 0),
            None => bio.reset(op, start, length),
        }
        bio.flags |= flags;
        self.batch.push(bio);
    }

    #[cold]
    fn new_bio(&mut self, slot: Slot) -> Box<Bio> {
        let mut bio = Bio::flush().on_end(Arc::<Outbox>::clone(&self.outbox));
        bio.private = self.slots.len() as u64;
        self.slots.push(slot);
        bio
    }

    /// Requests that wait to be submitted.
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
        if !self.batch.is_empty() {
            bdev.submit_all(cpu, &mut self.batch);
        }
    }

    /// Appends the replies of those that have ended; says whether there were any.
    pub(super) fn collect(&mut self, replies: &Replies, out: &mut Transmit) -> bool {
        self.outbox.take(&mut self.ended);
        let any = !self.ended.is_empty();
        for bio in self.ended.drain(..) {
            let slot = usize::try_from(bio.private).ok().and_then(|at| self.slots.get(at));
            let Some(slot) = slot else { unreachable!("a bio keeps its private mark") };
            replies.reply(out, slot, bio);
        }
        any
    }

    /// Their replies were sent.
    pub(super) fn sent(&mut self, bios: impl Iterator<Item = Box<Bio>>) {
        for mut bio in bios {
            let slot = usize::try_from(bio.private).ok().and_then(|at| self.slots.get(at));
            self.held -= slot.map_or(0, |slot| slot.charge);
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
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// What a request asks of a disk. Flags that mean nothing to the command were refused before, but for FUA,
/// which goes with all.
fn operation(request: &Request) -> (Op, Flags) {
    let fua = if request.flags.contains(CommandFlags::FUA) { Flags::FUA } else { Flags::empty() };
    match request.command {
        Command::Read => (Op::Read, Flags::empty()),
        Command::Write => (Op::Write, fua),
        Command::Trim => (Op::Discard, fua),
        Command::WriteZeroes => {
            let mut flags = fua;
            flags.set(Flags::NOUNMAP, request.flags.contains(CommandFlags::NO_HOLE));
            flags.set(Flags::NOFALLBACK, request.flags.contains(CommandFlags::FAST_ZERO));
            (Op::WriteZeroes, flags)
        }
        Command::Cache => (Op::Prefetch, Flags::empty()),
        Command::BlockStatus => {
            let one = request.flags.contains(CommandFlags::REQ_ONE);
            (Op::BlockStatus, if one { Flags::FIRST_EXTENT } else { Flags::empty() })
        }
        Command::Flush | Command::Disc | Command::Resize | Command::Unknown(_) => {
            (Op::Flush, Flags::empty())
        }
    }
}
