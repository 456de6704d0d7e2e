//! Locks on blocks of a disk: who has one is the only writer of it, on all hardware queues.
//!
//! Locks are had in the order in which they were asked for: who overlaps an earlier one waits for that, and holds
//! nothing meanwhile. Who has one needs requests and tags, which all others give back by themselves, and no other lock.
//! So nobody waits in a circle, and nobody for ever.
//!
//! There are two kinds of holders. An [`Edge`] wants the block for itself: it waits until all writes to it that are out
//! have ended ([`WritesOut`]), and later ones wait for it. A [`Held`] write is one that came while the block was locked:
//! once it has its turn it is a write like others.
//!
//! Who gives a lock back does not take the next one on by himself: that one may end at once, and give its own back. It
//! becomes ready, and whoever is at taking on what is ready takes it on as well, one after the other, on a stack that
//! does not grow. Others may make more ready for as long as he is at it: after some of them he leaves the rest to whoever
//! ticks the disk, if there is somebody, as a driver does with what takes long. Not while somebody waits for the disk to
//! drain: that may be whoever ticks it, and no more comes in then.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;

use super::{Edge, WritesOut};
use crate::bio::{Bio, EndIo};
use crate::driver::Driver;
use crate::hctx::{Arrival, Hctx};
use crate::queue::QueueShared;
use crate::units::Sector;

/// Ranges that edges have locked, or have a place for in the order of locks. Edges of more ranges wait in a queue of
/// their own, so that the list of locks which writes are compared with stays short.
const MAX_EDGE_RANGES: usize = 64;
/// Locks with which no write gets another one for a range that has none: it waits in the same queue. With it, the list has
/// less than this and [`MAX_EDGE_RANGES`] together.
const MAX_LOCKS: usize = 128;
/// Holders that somebody takes on in one go, whose thread has other things to do: an edge counts twice.
const MAX_TURNS: usize = 64;

/// The locks of a disk.
pub(crate) struct BlockLocks<D: Driver> {
    /// Whether every hardware queue has a list of its writes.
    watched: Mutex<bool>,
    /// What was let in, and has steps that are still to come.
    under_way: AtomicUsize,
    /// How many locks there are, for those who only want to know that there is none.
    count: AtomicUsize,
    table: Mutex<Table<D>>,
}

struct Table<D: Driver> {
    /// In the order in which they were asked for.
    locks: Vec<Lock<D>>,
    next: u64,
    /// Ranges that edges have locked, or wait for.
    edge_ranges: usize,
    /// Those of ranges that are too many, and those behind them. A write that is in here is not out yet, so that others to its
    /// blocks may go before it.
    queue: VecDeque<Holder<D>>,
    /// Whose turn it is.
    ready: VecDeque<Turn<D>>,
    /// Somebody is at taking on what is ready.
    taking_on: bool,
    /// How many wait until nothing is under way, who may be those that tick the disk: nothing is left to that.
    waited_for: usize,
}

struct Lock<D: Driver> {
    id: u64,
    start: Sector,
    end: Sector,
    /// No earlier one overlaps it.
    first: bool,
    /// Writes that are out and have to end before it is had.
    pending: usize,
    /// Who waits for it; taken away when it is had.
    holder: Option<Holder<D>>,
    /// When the disk was asked for what that one does.
    came_ns: u64,
    /// Who wants the same range next, with nobody between who overlaps it.
    behind: VecDeque<Holder<D>>,
    is_edge: bool,
    /// How many of the holder and of those behind it are edges.
    edges: usize,
}

enum Holder<D: Driver> {
    Edge(Edge<D>),
    Held(Held<D>),
}

impl<D: Driver> Holder<D> {
    fn range(&self) -> (Sector, Sector) {
        match self {
            Self::Edge(edge) => edge.range(),
            Self::Held(held) => (held.arrival.bio.sector(), held.arrival.bio.end_sector()),
        }
    }

    fn came_ns(&self) -> u64 {
        match self {
            Self::Edge(edge) => edge.came_ns(),
            Self::Held(held) => held.arrival.bio.came_ns,
        }
    }
}

/// A write that has to wait for locks.
pub(crate) struct Held<D: Driver> {
    pub(crate) hctx: Arc<Hctx<D>>,
    pub(crate) arrival: Arrival,
}

/// A holder whose turn it is.
enum Turn<D: Driver> {
    /// An edge, which waits now for the writes to a range that are out.
    Watch(u64, Sector, Sector),
    /// An edge, for which these have ended.
    Edge(u64, Edge<D>),
    Held(u64, Held<D>),
}

impl<D: Driver> Default for BlockLocks<D> {
    fn default() -> Self {
        Self {
            watched: Mutex::new(false),
            under_way: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            table: Mutex::new(Table {
                locks: Vec::new(),
                next: 0,
                edge_ranges: 0,
                queue: VecDeque::new(),
                ready: VecDeque::new(),
                taking_on: false,
                waited_for: 0,
            }),
        }
    }
}

impl<D: Driver> BlockLocks<D> {
    /// Something was let in that has several steps. It is counted until [`BlockLocks::end`]; a freeze waits for it.
    pub(crate) fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn end(&self, drained: &Event) {
        if self.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            drained.notify(usize::MAX);
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0
    }

    /// Locks the block of `edge`, and takes it on once that is done.
    pub(super) fn lock_block(&self, shared: &QueueShared<D>, edge: Edge<D>) {
        self.watch(shared);
        {
            let mut table = self.table.lock();
            table.queue.push_back(Holder::Edge(edge));
            table.admit();
            self.count.store(table.locks.len(), Ordering::SeqCst);
        }
        self.take_on(shared);
    }

    /// Whether there is no lock at all. Called as [`BlockLocks::hold`] is.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Keeps a write back if one of the blocks that it changes is locked. Called under the lock of the hardware queue
    /// that it comes by: either it sees the lock, or who locks sees the write in that queue's list.
    pub(crate) fn hold(&self, start: Sector, end: Sector, held: Held<D>) -> Result<(), Held<D>> {
        let mut table = self.table.lock();
        if !table.locks.iter().any(|lock| lock.overlaps(start, end)) {
            return Err(held);
        }
        self.begin();
        table.queue.push_back(Holder::Held(held));
        table.admit();
        self.count.store(table.locks.len(), Ordering::SeqCst);
        Ok(())
    }

    /// Whether one of the blocks in a range is locked.
    pub(crate) fn is_locked(&self, start: Sector, end: Sector) -> bool {
        self.table.lock().locks.iter().any(|lock| lock.overlaps(start, end))
    }

    /// When the disk was asked for the oldest of what has locks, or waits for them.
    pub(crate) fn oldest_ns(&self) -> Option<u64> {
        if self.is_idle() {
            return None;
        }
        let table = self.table.lock();
        let had = table.locks.iter().map(|lock| lock.came_ns);
        let behind = table.locks.iter().flat_map(|lock| &lock.behind);
        had.chain(behind.chain(&table.queue).map(Holder::came_ns)).min()
    }

    /// Gives a lock back.
    pub(super) fn unlock(&self, shared: &QueueShared<D>, id: u64) {
        {
            let mut table = self.table.lock();
            table.release(id);
            self.count.store(table.locks.len(), Ordering::SeqCst);
        }
        self.take_on(shared);
    }

    /// A write that some have waited for has ended.
    pub(crate) fn write_ended(&self, shared: &QueueShared<D>, waiters: &[u64]) {
        if waiters.is_empty() {
            return;
        }
        {
            let mut table = self.table.lock();
            waiters.iter().for_each(|&id| table.one_less(id));
        }
        self.take_on(shared);
    }

    /// Has every hardware queue keep a list of its writes from now on.
    fn watch(&self, shared: &QueueShared<D>) {
        let mut watched = self.watched.lock();
        if !std::mem::replace(&mut *watched, true) {
            for hctx in shared.queues() {
                let mut st = hctx.lock();
                st.writes = Some(Box::new(WritesOut::new(st.allocated)));
            }
        }
    }

    /// Somebody is about to wait until nothing is under way: whoever takes on what is ready goes on until nothing is, until
    /// [`BlockLocks::calm`].
    pub(crate) fn hurry(&self, shared: &QueueShared<D>) {
        self.table.lock().waited_for += 1;
        self.take_on(shared);
    }

    /// One less waits.
    pub(crate) fn calm(&self) {
        self.table.lock().waited_for -= 1;
    }

    /// Takes on what is ready, unless somebody is at it, who then takes it on: another thread, or a caller of this one. Says
    /// whether the rest is left to the next tick.
    pub(crate) fn take_on(&self, shared: &QueueShared<D>) -> bool {
        if std::mem::replace(&mut self.table.lock().taking_on, true) {
            return false;
        }
        for turn in 0.. {
            let may_leave = turn >= MAX_TURNS && shared.has_alarm();
            let turn = {
                let mut table = self.table.lock();
                if may_leave && table.waited_for == 0 && !table.ready.is_empty() {
                    table.taking_on = false;
                    break;
                }
                let turn = table.ready.pop_front();
                table.taking_on = turn.is_some();
                turn
            };
            match turn {
                None => return false,
                Some(Turn::Watch(id, start, end)) => self.wait_for_writes(shared, id, start, end),
                Some(Turn::Edge(id, edge)) => edge.go(id),
                Some(Turn::Held(id, held)) => resume(id, held),
            }
        }
        shared.ring_alarm();
        true
    }

    /// Has a lock wait for the writes to its range that are out.
    fn wait_for_writes(&self, shared: &QueueShared<D>, id: u64, start: Sector, end: Sector) {
        for hctx in shared.queues() {
            let mut st = hctx.lock();
            let count = st.writes.as_mut().map_or(0, |writes| writes.wait(start, end, id));
            // With the queue's lock held: what it waits for has not ended yet.
            self.table.lock().more(id, count);
        }
        self.table.lock().one_less(id);
    }
}

impl<D: Driver> Lock<D> {
    fn overlaps(&self, start: Sector, end: Sector) -> bool {
        self.start < end && start < self.end
    }

    fn is_of(&self, start: Sector, end: Sector) -> bool {
        (self.start, self.end) == (start, end)
    }

    /// Nobody is before it any more.
    fn turn(&mut self) -> Turn<D> {
        self.first = true;
        match self.holder.take() {
            Some(Holder::Held(held)) => Turn::Held(self.id, held),
            edge => {
                self.holder = edge;
                Turn::Watch(self.id, self.start, self.end)
            }
        }
    }
}

impl<D: Driver> Table<D> {
    fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Asks for a range.
    fn ask(&mut self, start: Sector, end: Sector, holder: Holder<D>) {
        let is_edge = matches!(holder, Holder::Edge(_));
        if is_edge && !self.has_edges(start, end) {
            self.edge_ranges += 1;
        }
        let before = self.locks.iter_mut().rfind(|lock| lock.overlaps(start, end));
        let first = before.is_none();
        if let Some(same) = before.filter(|lock| lock.is_of(start, end)) {
            same.edges += usize::from(is_edge);
            same.behind.push_back(holder);
            return;
        }
        let mut lock = Lock {
            id: self.new_id(),
            start,
            end,
            first,
            // The one is whoever looks for writes that are out.
            pending: 1,
            came_ns: holder.came_ns(),
            holder: Some(holder),
            behind: VecDeque::new(),
            is_edge,
            edges: usize::from(is_edge),
        };
        if first {
            self.ready.push_back(lock.turn());
        }
        self.locks.push(lock);
    }

    fn has_edges(&self, start: Sector, end: Sector) -> bool {
        self.locks.iter().any(|lock| lock.edges > 0 && lock.is_of(start, end))
    }

    /// Lets those of the queue ask for their locks, in order, as far as their ranges are not too many.
    fn admit(&mut self) {
        while let Some(holder) = self.queue.front() {
            let (start, end) = holder.range();
            let is_too_many = match holder {
                Holder::Edge(_) => {
                    self.edge_ranges >= MAX_EDGE_RANGES && !self.has_edges(start, end)
                }
                Holder::Held(_) => {
                    let before = || self.locks.iter().rfind(|lock| lock.overlaps(start, end));
                    self.locks.len() >= MAX_LOCKS
                        && !before().is_some_and(|lock| lock.is_of(start, end))
                }
            };
            if is_too_many {
                return;
            }
            if let Some(holder) = self.queue.pop_front() {
                self.ask(start, end, holder);
            }
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Lock<D>> {
        self.locks.iter_mut().find(|lock| lock.id == id)
    }

    fn more(&mut self, id: u64, count: usize) {
        if let Some(lock) = self.find(id) {
            lock.pending += count;
        }
    }

    /// One less to wait for. If that was the last, the edge is ready.
    fn one_less(&mut self, id: u64) {
        let Some(lock) = self.find(id) else { return };
        lock.pending -= 1;
        let ready = lock.pending == 0;
        let edge = lock.holder.take_if(|holder| ready && matches!(holder, Holder::Edge(_)));
        if let Some(Holder::Edge(edge)) = edge {
            self.ready.push_back(Turn::Edge(id, edge));
        }
    }

    fn release(&mut self, id: u64) {
        let Some(at) = self.locks.iter().position(|lock| lock.id == id) else { return };
        let new_id = self.new_id();
        let Some(lock) = self.locks.get_mut(at) else { return };
        let (start, end, was_edge) = (lock.start, lock.end, lock.is_edge);
        lock.edges -= usize::from(was_edge);
        if let Some(next) = lock.behind.pop_front() {
            (lock.is_edge, lock.came_ns) = (matches!(next, Holder::Edge(_)), next.came_ns());
            (lock.id, lock.pending, lock.holder) = (new_id, 1, Some(next));
            self.ready.push_back(lock.turn());
        } else {
            self.locks.remove(at);
            self.let_others_have(at, start, end);
        }
        if was_edge && !self.has_edges(start, end) {
            self.edge_ranges -= 1;
        }
        self.admit();
    }

    /// A lock of that range is gone from the place `at`: those after it that have waited for nobody else are had now.
    fn let_others_have(&mut self, at: usize, start: Sector, end: Sector) {
        for at in at..self.locks.len() {
            let (before, rest) = self.locks.split_at_mut(at);
            let Some(lock) = rest.first_mut() else { break };
            if !lock.first
                && lock.overlaps(start, end)
                && !before.iter().any(|other| other.overlaps(lock.start, lock.end))
            {
                self.ready.push_back(lock.turn());
            }
        }
    }
}

impl<D: Driver> fmt::Display for BlockLocks<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.lock();
        let under_way = self.under_way.load(Ordering::Relaxed);
        if under_way > 0 {
            let (queued, ready) = (table.queue.len(), table.ready.len());
            writeln!(f, "{under_way} with blocks of their own, {queued} more wait, {ready} ready")?;
        }
        for lock in &table.locks {
            let Lock { id, start, end, first, pending, .. } = lock;
            let (had, behind) = (lock.holder.is_none(), lock.behind.len());
            writeln!(
                f,
                "  lock {id}: sectors {start} to {end}, had {had} first {first} pending {pending} behind {behind}"
            )?;
        }
        Ok(())
    }
}

/// It is the turn of a write that had to wait.
fn resume<D: Driver>(lock: u64, held: Held<D>) {
    let Held { hctx, arrival: Arrival { ctx, from, bio } } = held;
    let mut child = bio.clone_rest();
    child.inside = true;
    let end = HeldEnd { hctx: Arc::clone(&hctx), lock, parent: Mutex::new(Some(bio)) };
    child.set_end(Arc::new(end));
    hctx.submit(ctx, from, std::iter::once(child));
}

struct HeldEnd<D: Driver> {
    hctx: Arc<Hctx<D>>,
    lock: u64,
    parent: Mutex<Option<Box<Bio>>>,
}

impl<D: Driver> EndIo for HeldEnd<D> {
    fn is_gone(&self) -> bool {
        self.parent.lock().as_ref().is_some_and(|parent| parent.is_abandoned())
    }

    fn end_io(&self, bio: Box<Bio>) {
        let Some(parent) = self.parent.lock().take() else { return };
        self.hctx.shared.locks.unlock(&self.hctx.shared, self.lock);
        parent.end(bio.status());
        self.hctx.shared.locks.end(&self.hctx.shared.drained);
    }
}
