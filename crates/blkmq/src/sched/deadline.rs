//! `mq-deadline` (kernel: `block/mq-deadline.c`, Documentation/block/deadline-iosched.rst).
//!
//! Requests go in the order of their sectors, in batches of one direction, reads preferred; but one that waits
//! past its deadline starts the next batch, and writes are passed over a few times at most. Each priority class
//! (real time, best effort, idle) has queues of its own; a class waits until those above have nothing left,
//! neither here nor at the driver, unless a request of it has waited for `prio_aging_expire`.
//!
//! One difference: where the kernel looks at a lower class for an aged request and finds none, that look has
//! already ended the running batch and counted as one more time that writes were passed over. Here a look
//! changes nothing.

use std::collections::VecDeque;

use super::lane::{Lane, Slot, Waiting};
use super::{Candidate, Item, Kind, MergeKind, Scheduler, Tunable, TuneError};
use crate::op::{IoPrio, Op};
use crate::units::Sector;

const NS_PER_MS: u64 = 1_000_000;
/// Priority classes.
const CLASSES: usize = 3;
/// The largest value of a tunable: the kernel keeps them in an `int`.
const INT_MAX: u64 = i32::MAX as u64;

const TUNABLES: [Tunable; 7] = [
    Tunable { name: "read_expire", min: 0, max: INT_MAX },
    Tunable { name: "write_expire", min: 0, max: INT_MAX },
    Tunable { name: "writes_starved", min: 0, max: INT_MAX },
    Tunable { name: "front_merges", min: 0, max: 1 },
    Tunable { name: "async_depth", min: 1, max: INT_MAX },
    Tunable { name: "fifo_batch", min: 0, max: INT_MAX },
    Tunable { name: "prio_aging_expire", min: 0, max: INT_MAX },
];

/// Which way data goes. What changes the disk is a write; the rest are reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dir {
    Read = 0,
    Write = 1,
}

impl Dir {
    const fn of(op: Op) -> Self {
        if op.is_write() { Self::Write } else { Self::Read }
    }
}

const fn class_of(prio: IoPrio) -> usize {
    match prio {
        IoPrio::RealTime(_) => 0,
        IoPrio::BestEffort(_) | IoPrio::None => 1,
        IoPrio::Idle => 2,
    }
}

/// One priority class (kernel: `struct dd_per_prio`).
#[derive(Debug)]
struct Class<R> {
    lanes: [Lane<R>; 2],
    /// Where the request that was dispatched last starts, by direction.
    latest_pos: [Sector; 2],
    /// Dispatched and not completed.
    at_driver: usize,
}

impl<R: Item> Class<R> {
    /// Whether requests wait or are at the driver (kernel: `dd_queued`).
    fn is_busy(&self) -> bool {
        self.at_driver > 0 || self.lanes.iter().any(|lane| !lane.is_empty())
    }
}

/// Which of the requests are asked for.
type Want<'a, R> = &'a dyn Fn(&R) -> bool;

/// What to dispatch, and what that makes of the batch.
struct Choice {
    class: usize,
    dir: Dir,
    slot: Slot,
    batching: u64,
    starved: u64,
}

/// The scheduler. Times are in nanoseconds of any clock that does not go back.
#[derive(Debug)]
pub struct Deadline<R> {
    classes: [Class<R>; CLASSES],
    /// Inserted at the head, latest first.
    heads: VecDeque<R>,
    /// How many were inserted, ever.
    inserted: u64,
    last_dir: Dir,
    /// Requests dispatched in this batch.
    batching: u64,
    /// How often writes were passed over.
    starved: u64,
    /// Nanoseconds, by direction.
    expire: [u64; 2],
    prio_aging_expire: u64,
    fifo_batch: u64,
    writes_starved: u64,
    front_merges: bool,
    async_depth: u32,
}

impl<R: Item> Deadline<R> {
    /// One with the kernel's defaults, for a queue of so many requests.
    #[must_use]
    pub fn new(nr_requests: u32) -> Self {
        Self {
            classes: std::array::from_fn(|_| Class {
                lanes: [Lane::new(), Lane::new()],
                latest_pos: [Sector::ZERO; 2],
                at_driver: 0,
            }),
            heads: VecDeque::new(),
            inserted: 0,
            last_dir: Dir::Write,
            batching: 0,
            starved: 0,
            expire: [500 * NS_PER_MS, 5_000 * NS_PER_MS],
            prio_aging_expire: 10_000 * NS_PER_MS,
            fifo_batch: 16,
            writes_starved: 2,
            front_merges: true,
            async_depth: nr_requests.max(1),
        }
    }

    /// The next of a class, if it has any (kernel: `__dd_dispatch_request`).
    fn choose(&self, class: usize, now_ns: u64, want: Want<'_, R>) -> Option<Choice> {
        let lanes = &self.classes[class].lanes;
        if let Some(slot) = self.next_in_order(class, self.last_dir, want)
            && self.batching < self.fifo_batch
        {
            let (batching, starved) = (self.batching + 1, self.starved);
            return Some(Choice { class, dir: self.last_dir, slot, batching, starved });
        }
        let [reads, writes] = lanes.each_ref().map(|lane| lane.oldest(want).is_some());
        let (dir, starved) = match (reads, writes) {
            (false, false) => return None,
            (true, false) => (Dir::Read, self.starved),
            (true, true) if self.starved < self.writes_starved => (Dir::Read, self.starved + 1),
            (_, true) => (Dir::Write, 0),
        };
        let lane = &lanes[dir as usize];
        let oldest = lane.oldest(want)?;
        let expired = lane.get(oldest)?.due <= now_ns;
        let slot = self.next_in_order(class, dir, want).filter(|_| !expired).unwrap_or(oldest);
        Some(Choice { class, dir, slot, batching: 1, starved })
    }

    fn next_in_order(&self, class: usize, dir: Dir, want: Want<'_, R>) -> Option<Slot> {
        let class = &self.classes[class];
        class.lanes[dir as usize].at_or_after(class.latest_pos[dir as usize], want)
    }

    /// A choice of a class below the first that waits since before the aging limit, where more than one class
    /// has requests (kernel: `dd_dispatch_prio_aged_requests`).
    fn choose_aged(&self, now_ns: u64, want: Want<'_, R>) -> Option<Choice> {
        if self.classes.iter().filter(|class| class.is_busy()).count() < 2 {
            return None;
        }
        let latest = now_ns.checked_sub(self.prio_aging_expire)?;
        (1..CLASSES).filter_map(|class| self.choose(class, now_ns, want)).find(|choice| {
            let lane = &self.classes[choice.class].lanes[choice.dir as usize];
            lane.get(choice.slot).is_some_and(|waiting| waiting.since <= latest)
        })
    }

    /// The choice of the first class that has requests here or at the driver.
    fn choose_by_class(&self, now_ns: u64, want: Want<'_, R>) -> Option<Choice> {
        let first = self.classes.iter().position(Class::is_busy)?;
        self.choose(first, now_ns, want)
    }

    fn choose_any(&self, now_ns: u64, want: Want<'_, R>) -> Option<Choice> {
        self.choose_aged(now_ns, want).or_else(|| self.choose_by_class(now_ns, want))
    }

    fn commit(&mut self, choice: &Choice) -> Option<R> {
        let class = &mut self.classes[choice.class];
        let waiting = class.lanes[choice.dir as usize].remove(choice.slot)?;
        class.at_driver += 1;
        class.latest_pos[choice.dir as usize] = waiting.rq.sector();
        self.last_dir = choice.dir;
        self.batching = choice.batching;
        self.starved = choice.starved;
        Some(waiting.rq)
    }

    fn unknown(name: &str) -> TuneError {
        let known: Vec<&str> = TUNABLES.iter().map(|tunable| tunable.name).collect();
        let (name, known) = (name.to_owned(), known.join(", "));
        TuneError::Unknown { scheduler: Kind::MqDeadline, name, known }
    }
}

impl<R: Item + Send> Scheduler<R> for Deadline<R> {
    fn kind(&self) -> Kind {
        Kind::MqDeadline
    }

    fn insert(&mut self, rq: R, at_head: bool, now_ns: u64) {
        if at_head {
            self.heads.push_front(rq);
            return;
        }
        self.inserted += 1;
        let class = &mut self.classes[class_of(rq.prio())];
        let dir = Dir::of(rq.op()) as usize;
        let due = now_ns.saturating_add(self.expire[dir]);
        class.lanes[dir].push(rq, self.inserted, now_ns, due);
    }

    fn dispatch(&mut self, now_ns: u64, want: Want<'_, R>) -> Option<R> {
        let head = self.heads.iter().position(want);
        if let Some(rq) = head.and_then(|at| self.heads.remove(at)) {
            let class = &mut self.classes[class_of(rq.prio())];
            class.at_driver += 1;
            class.latest_pos[Dir::of(rq.op()) as usize] = rq.sector();
            return Some(rq);
        }
        let choice = self.choose_any(now_ns, want)?;
        self.commit(&choice)
    }

    fn peek(&self, now_ns: u64) -> Option<&R> {
        if let Some(head) = self.heads.front() {
            return Some(head);
        }
        let Choice { class, dir, slot, .. } = self.choose_any(now_ns, &|_| true)?;
        self.classes[class].lanes[dir as usize].get(slot).map(|waiting| &waiting.rq)
    }

    fn try_merge(
        &mut self,
        bio: Candidate,
        want: Want<'_, R>,
        merge: &mut dyn FnMut(&mut R, MergeKind) -> bool,
    ) -> bool {
        let lane = &mut self.classes[class_of(bio.prio)].lanes[Dir::of(bio.op) as usize];
        let mut offer = |lane: &mut Lane<R>, slot: Option<Slot>, kind| {
            slot.is_some_and(|slot| lane.update(slot, |rq| rq.op() == bio.op && merge(rq, kind)))
        };
        let back = lane.ending_at(bio.start, want);
        if offer(lane, back, MergeKind::Back) {
            return true;
        }
        let front = lane.starting_at(bio.end, want);
        self.front_merges && offer(lane, front, MergeKind::Front)
    }

    fn completed(&mut self, prio: IoPrio) {
        let class = &mut self.classes[class_of(prio)];
        class.at_driver = class.at_driver.saturating_sub(1);
    }

    fn has_work(&self) -> bool {
        let waits = |class: &Class<R>| class.lanes.iter().any(|lane| !lane.is_empty());
        !self.heads.is_empty() || self.classes.iter().any(waits)
    }

    fn drain(&mut self) -> Vec<R> {
        let mut all: Vec<R> = self.heads.drain(..).collect();
        let mut waiting = Vec::new();
        for lane in self.classes.iter_mut().flat_map(|class| &mut class.lanes) {
            while let Some(oldest) = lane.oldest(&|_| true).and_then(|slot| lane.remove(slot)) {
                waiting.push(oldest);
            }
        }
        waiting.sort_by_key(Waiting::seq);
        all.extend(waiting.into_iter().map(|waiting| waiting.rq));
        all
    }

    fn depth_updated(&mut self, nr_requests: u32) {
        self.async_depth = nr_requests.max(1);
    }

    fn depth_limit(&self, op: Op) -> Option<u32> {
        (op != Op::Read).then_some(self.async_depth)
    }

    fn tunables(&self) -> &'static [Tunable] {
        &TUNABLES
    }

    fn get(&self, name: &str) -> Result<u64, TuneError> {
        Ok(match name {
            "read_expire" => self.expire[Dir::Read as usize] / NS_PER_MS,
            "write_expire" => self.expire[Dir::Write as usize] / NS_PER_MS,
            "writes_starved" => self.writes_starved,
            "front_merges" => self.front_merges.into(),
            "async_depth" => self.async_depth.into(),
            "fifo_batch" => self.fifo_batch,
            "prio_aging_expire" => self.prio_aging_expire / NS_PER_MS,
            _ => return Err(Self::unknown(name)),
        })
    }

    fn set(&mut self, name: &str, value: u64) -> Result<(), TuneError> {
        let known = TUNABLES.iter().find(|tunable| tunable.name == name);
        let &Tunable { name, min, max } = known.ok_or_else(|| Self::unknown(name))?;
        if value < min || value > max {
            return Err(TuneError::Range { name, min, max, value });
        }
        match name {
            "read_expire" => self.expire[Dir::Read as usize] = value * NS_PER_MS,
            "write_expire" => self.expire[Dir::Write as usize] = value * NS_PER_MS,
            "writes_starved" => self.writes_starved = value,
            "front_merges" => self.front_merges = value != 0,
            "async_depth" => self.async_depth = u32::try_from(value).unwrap_or(u32::MAX),
            "fifo_batch" => self.fifo_batch = value,
            _ => self.prio_aging_expire = value * NS_PER_MS,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
