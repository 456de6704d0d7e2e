//! What is remembered of requests until their replies were sent.

use crate::server::ReplyTo;
use crate::wire::{Command, CommandFlags, ErrorCode, Request};

/// A part of a request that is at the disk, or whose reply is not sent. Most requests have one part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) to: ReplyTo,
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    /// Bytes of the export that it concerns.
    pub(super) length: u64,
    /// Bytes of memory that are held for it.
    pub(super) charge: usize,
    /// Bytes that the disk changes or prefetches for it, if it holds no memory meanwhile.
    pub(super) work: u64,
    /// The write that this is a piece of.
    pub(super) whole: Option<usize>,
    /// Of a write in pieces: those that have not ended, and one more while there are some to come.
    pub(super) pieces: usize,
    /// Of a write in pieces: the first error.
    pub(super) error: Option<ErrorCode>,
}

impl Slot {
    pub(super) fn new(request: &Request, length: u64, charge: usize) -> Self {
        Self {
            to: request.into(),
            command: request.command,
            flags: request.flags,
            length,
            charge,
            work: work_of(request.command, length),
            whole: None,
            pieces: 0,
            error: None,
        }
    }
}

/// What a request without a payload costs the disk.
pub(super) const fn work_of(command: Command, length: u64) -> u64 {
    match command {
        Command::Trim | Command::WriteZeroes | Command::Cache => length,
        _ => 0,
    }
}

/// A table of slots, which are used again.
#[derive(Debug, Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    pub(super) fn insert(&mut self, slot: Slot) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }

    /// The slot is free again.
    pub(super) fn remove(&mut self, at: usize) -> Slot {
        self.free.push(at);
        let slot = self.slots[at];
        self.slots[at].charge = 0;
        slot
    }

    /// Nobody will read what the disk answers: gives the bytes that were held for that.
    pub(super) fn give_up_answers(&mut self) -> usize {
        let answers = |slot: &&mut Slot| !matches!(slot.command, Command::Write);
        self.slots.iter_mut().filter(answers).map(|slot| std::mem::take(&mut slot.charge)).sum()
    }

    /// Whether no piece of this write is at the disk.
    pub(super) fn is_waiting_for_more(&self, whole: usize) -> bool {
        self.slots[whole].pieces == 1
    }

    /// Slots in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
