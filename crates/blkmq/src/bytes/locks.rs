//! Locks on blocks of a disk: who has one is the only writer of it, on all hardware queues.
//!
//! Locks are had in the order in which they were asked for: who overlaps an earlier one waits for that, and holds
//! nothing meanwhile. Who has one needs requests and tags, which all others give back by themselves, and no other lock.
//! So nobody waits in a circle, and nobody for ever.
//!
//! There are two kinds of holders. An [`Edge`] wants the block for itself: it waits until all writes to it that are out
//! have ended ([`WritesOut`]), and later ones wait for it. A [`Held`] write is one that came while the block was locked:
//! once it has its turn it is a write like others.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{Edge, WritesOut};
use crate::bio::{Bio, EndIo};
use crate::driver::Driver;
use crate::hctx::{Arrival, Hctx};
use crate::queue::QueueShared;
use crate::units::Sector;

/// Edges that have a lock, or a place in the order of locks. More wait in a queue of their own, so that the list of
/// locks which writes are compared with stays short.
const MAX_EDGES: usize = 64;

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
    edges: usize,
    /// Edges that are too many.
    queue: VecDeque<Edge<D>>,
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
    is_edge: bool,
}

enum Holder<D: Driver> {
    Edge(Edge<D>),
    Held(Held<D>),
}

/// A write that has to wait for locks.
pub(crate) struct Held<D: Driver> {
    pub(crate) hctx: Arc<Hctx<D>>,
    pub(crate) arrival: Arrival,
}

/// Holders whose turn it is.
type Turns<D> = SmallVec<[Turn<D>; 4]>;

enum Turn<D: Driver> {
    /// An edge, which waits now for the writes to a range that are out.
    Watch(u64, Sector, Sector),
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
                next: 1,
                edges: 0,
                queue: VecDeque::new(),
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
        let mut turns = Turns::new();
        {
            let mut table = self.table.lock();
            if table.edges < MAX_EDGES {
                table.ask_edge(edge, &mut turns);
            } else {
                table.queue.push_back(edge);
            }
            self.count.store(table.locks.len(), Ordering::SeqCst);
        }
        self.take_turns(shared, turns);
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
        table.ask(start, end, Holder::Held(held));
        self.count.store(table.locks.len(), Ordering::SeqCst);
        Ok(())
    }

    /// Whether one of the blocks in a range is locked.
    pub(crate) fn is_locked(&self, start: Sector, end: Sector) -> bool {
        self.table.lock().locks.iter().any(|lock| lock.overlaps(start, end))
    }

    /// Gives a lock back.
    pub(super) fn unlock(&self, shared: &QueueShared<D>, id: u64) {
        let mut turns = Turns::new();
        {
            let mut table = self.table.lock();
            table.release(id, &mut turns);
            self.count.store(table.locks.len(), Ordering::SeqCst);
        }
        self.take_turns(shared, turns);
    }

    /// A write that some have waited for has ended.
    pub(crate) fn write_ended(&self, waiters: impl IntoIterator<Item = u64>) {
        for id in waiters {
            self.one_less(id);
        }
    }

    fn one_less(&self, id: u64) {
        let edge = self.table.lock().one_less(id);
        if let Some(edge) = edge {
            edge.go(id);
        }
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

    fn take_turns(&self, shared: &QueueShared<D>, turns: Turns<D>) {
        for turn in turns {
            match turn {
                Turn::Watch(id, start, end) => {
                    for hctx in shared.queues() {
                        let mut st = hctx.lock();
                        let count =
                            st.writes.as_mut().map_or(0, |writes| writes.wait(start, end, id));
                        // With the queue's lock held: what it waits for has not ended yet.
                        self.table.lock().more(id, count);
                    }
                    self.one_less(id);
                }
                Turn::Held(id, held) => resume(id, held),
            }
        }
    }
}

impl<D: Driver> Lock<D> {
    fn overlaps(&self, start: Sector, end: Sector) -> bool {
        self.start < end && start < self.end
    }
}

impl<D: Driver> Table<D> {
    /// Adds a lock to the list; says whether no other is before it.
    fn ask(&mut self, start: Sector, end: Sector, holder: Holder<D>) -> (u64, bool) {
        let id = self.next;
        self.next += 1;
        let first = !self.locks.iter().any(|lock| lock.overlaps(start, end));
        let is_edge = matches!(holder, Holder::Edge(_));
        // The one is whoever looks for writes that are out.
        let lock = Lock { id, start, end, first, pending: 1, holder: Some(holder), is_edge };
        self.locks.push(lock);
        (id, first)
    }

    fn ask_edge(&mut self, edge: Edge<D>, turns: &mut Turns<D>) {
        let (start, end) = edge.range();
        self.edges += 1;
        if let (id, true) = self.ask(start, end, Holder::Edge(edge)) {
            turns.push(Turn::Watch(id, start, end));
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

    /// One less to wait for. The edge, if that was the last.
    fn one_less(&mut self, id: u64) -> Option<Edge<D>> {
        let lock = self.find(id)?;
        lock.pending -= 1;
        let ready = lock.pending == 0;
        match lock.holder.take_if(|holder| ready && matches!(holder, Holder::Edge(_)))? {
            Holder::Edge(edge) => Some(edge),
            Holder::Held(_) => None,
        }
    }

    fn release(&mut self, id: u64, turns: &mut Turns<D>) {
        let Some(at) = self.locks.iter().position(|lock| lock.id == id) else { return };
        let released = self.locks.remove(at);
        for at in at..self.locks.len() {
            let (before, rest) = self.locks.split_at_mut(at);
            let Some(lock) = rest.first_mut() else { break };
            if lock.first
                || !lock.overlaps(released.start, released.end)
                || before.iter().any(|other| other.overlaps(lock.start, lock.end))
            {
                continue;
            }
            lock.first = true;
            match lock.holder.take() {
                Some(Holder::Held(held)) => turns.push(Turn::Held(lock.id, held)),
                edge => {
                    lock.holder = edge;
                    turns.push(Turn::Watch(lock.id, lock.start, lock.end));
                }
            }
        }
        if released.is_edge {
            self.edges -= 1;
            if let Some(next) = self.queue.pop_front() {
                self.ask_edge(next, turns);
            }
        }
    }
}

impl<D: Driver> fmt::Display for BlockLocks<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.lock();
        let under_way = self.under_way.load(Ordering::Relaxed);
        if under_way > 0 {
            writeln!(f, "{under_way} with blocks of their own, {} more wait", table.queue.len())?;
        }
        for lock in &table.locks {
            let Lock { id, start, end, first, pending, .. } = lock;
            let had = lock.holder.is_none();
            writeln!(
                f,
                "  lock {id}: sectors {start} to {end}, had {had} first {first} pending {pending}"
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
