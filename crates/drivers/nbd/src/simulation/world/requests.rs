//! What is asked of the disk, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bio, Flags, Op, Sector, Status};
use blockyard_buf::{Segment, Segments};

use super::super::server::{BLOCK, BLOCKS, REUSED};
use super::{MOST_KEPT, World};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) op: Op,
    pub(super) fua: bool,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) start: Duration,
}

/// A request that has ended, and its memory, which its owner has used for something else at once.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) status: Status,
    pub(super) at: Duration,
    pub(super) read: Vec<u8>,
    pub(super) kept: Vec<(Segment, Vec<u8>)>,
}

impl World {
    pub(super) fn submit(&mut self) {
        let ops = [Op::Read, Op::Read, Op::Write, Op::Write, Op::Write, Op::WriteZeroes, Op::Flush];
        let op = ops[self.dice.below(ops.len())];
        self.submit_one(op);
    }

    pub(super) fn submit_one(&mut self, op: Op) {
        let first = self.dice.below(BLOCKS);
        let count = 1 + self.dice.below((BLOCKS - first).min(6));
        self.submit_range(op, first, count);
    }

    pub(super) fn submit_range(&mut self, op: Op, first: usize, count: usize) {
        let id = self.next_id;
        self.next_id += 1;
        let fua = op.is_write() && self.dice.one_in(4);
        let ask = Ask { op, fua, first, count, start: self.now() };
        let sector = Sector(first as u64);
        let mut bio = match op {
            Op::Flush => Bio::flush(),
            Op::Read if self.dice.one_in(2) => Bio::new(op, sector, count as u64 * BLOCK),
            Op::Read | Op::Write => Bio::with_data(op, sector, self.memory(id, count)),
            _ => Bio::new(op, sector, count as u64 * BLOCK),
        };
        if fua {
            bio = bio.with_flags(Flags::FUA);
        }
        if op.is_write() {
            for block in ask.blocks() {
                self.history.started(block, ask.leaves(id), ask.start);
            }
        }
        self.out.insert(id, ask);
        bio.private = id;
        let (ended, start) = (Arc::clone(&self.ended), self.start);
        let bio = bio.on_end(Arc::new(move |bio: Box<Bio>| {
            ended.lock().push(reuse(&bio, start.elapsed()));
        }));
        let any = self.dice.below(self.queues);
        let cpu = if self.one_writes && op.is_write() { self.queues - 1 } else { any };
        self.bdev.submit(cpu, bio);
    }

    /// Memory of a request, in pieces.
    pub(super) fn memory(&mut self, id: u64, count: usize) -> Segments {
        let words = usize::try_from(BLOCK / 8).unwrap() * count;
        let whole = Segment::from_vec(id.to_le_bytes().repeat(words));
        let cut = 8 * self.dice.below(words);
        let parts = [whole.slice(0, cut), whole.slice(cut, whole.len() - cut)];
        parts.into_iter().filter(|part| !part.is_empty()).collect()
    }

    /// Requests have ended: they were out, and have what they may.
    pub(super) fn take_ended(&mut self) {
        let ended = std::mem::take(&mut *self.ended.lock());
        for Ended { id, status, at, read, kept } in ended {
            let Some(ask) = self.out.remove(&id) else {
                self.problem = Some(format!("request {id} ended twice"));
                return;
            };
            if status.is_ok() {
                self.outcome.done += 1;
            } else {
                self.outcome.failed += 1;
                self.failed.push(id);
                self.last_failure = Some((ask, status));
            }
            self.kept.extend(kept.into_iter().map(|(segment, bytes)| (id, segment, bytes)));
            match ask.op {
                Op::Read if status.is_ok() => self.check_read(ask, &read, at),
                Op::Flush if status.is_ok() => {
                    self.outcome.flushed += 1;
                    self.history.flushed(ask.start, at);
                }
                op if op.is_write() => {
                    for block in ask.blocks() {
                        let value = ask.leaves(id);
                        let ok = status.is_ok();
                        self.history.ended(block, value, ask.start, at, ok, ask.fua);
                    }
                }
                _ => assert!(status != Status::Invalid, "{ask:?}"),
            }
        }
    }

    pub(super) fn check_read(&mut self, ask: Ask, bytes: &[u8], at: Duration) {
        if bytes.len() as u64 != ask.count as u64 * BLOCK {
            self.problem =
                Some(format!("a read of {} blocks has {} bytes", ask.count, bytes.len()));
            return;
        }
        for (block, bytes) in ask.blocks().zip(bytes.chunks(512)) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
            if bytes.chunks(8).any(|word| word != value.to_le_bytes()) {
                self.problem.get_or_insert(format!("block {block} was read in parts"));
            }
            if let Err(problem) = self.history.check(block, value, ask.start, at) {
                self.problem.get_or_insert(problem);
            }
        }
    }

    /// Whoever has memory back has it alone.
    pub(super) fn check_kept(&mut self) {
        let changed = self.kept.iter().find(|(_, segment, bytes)| segment.to_vec() != *bytes);
        if let Some((id, ..)) = changed {
            self.problem
                .get_or_insert(format!("memory of request {id} was written to after its end"));
        }
        let over = self.kept.len().saturating_sub(MOST_KEPT);
        self.kept.drain(..over);
    }
}

impl Ask {
    fn blocks(self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }

    /// The value that a write leaves in its blocks.
    fn leaves(self, id: u64) -> u64 {
        if self.op == Op::Write { id } else { 0 }
    }
}

/// What the owner of memory does as soon as it has it back.
fn reuse(bio: &Bio, at: Duration) -> Ended {
    let read: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
    let mut kept = Vec::new();
    for segment in bio.data() {
        if !bio.wants_supply() {
            let word = (REUSED | bio.private).to_le_bytes();
            segment.copy_from(&word.repeat(segment.len() / 8));
        }
        kept.push((segment.clone(), segment.to_vec()));
    }
    Ended { id: bio.private, status: bio.status(), at, read, kept }
}
