//! Requests of one priority class and one direction, found by sector and by age.

use std::collections::BTreeMap;

use super::Item;
use crate::units::Sector;

/// A place in a [`Lane`]. Stays valid until what is there is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

/// What waits, and since when.
#[derive(Debug)]
pub(super) struct Waiting<R> {
    pub(super) rq: R,
    /// When it was inserted, in nanoseconds.
    pub(super) since: u64,
    /// When it is due, in nanoseconds.
    pub(super) due: u64,
    /// Where it is sorted in: its sector when that was last looked at, and its place in the order of insertion.
    key: (Sector, u64),
    older: Option<Slot>,
    newer: Option<Slot>,
}

impl<R> Waiting<R> {
    /// Its place in the order of insertion.
    pub(super) const fn seq(&self) -> u64 {
        self.key.1
    }
}

/// Requests sorted by sector (kernel: `sort_list`) and by age (kernel: `fifo_list`).
///
/// Invariants: an occupied slot is in `sorted` under its `key`, and on the list from `oldest` to `newest`, once
/// each; a free slot is in `free`, once.
#[derive(Debug)]
pub(super) struct Lane<R> {
    slots: Vec<Option<Waiting<R>>>,
    free: Vec<Slot>,
    sorted: BTreeMap<(Sector, u64), Slot>,
    oldest: Option<Slot>,
    newest: Option<Slot>,
}

impl<R: Item> Lane<R> {
    pub(super) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            sorted: BTreeMap::new(),
            oldest: None,
            newest: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Adds the newest. `seq` is larger than that of any before.
    pub(super) fn push(&mut self, rq: R, seq: u64, since: u64, due: u64) {
        let key = (rq.sector(), seq);
        let waiting = Waiting { rq, since, due, key, older: self.newest, newer: None };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot.0 as usize] = Some(waiting);
                slot
            }
            None => {
                // More than 2^32 requests at a time do not fit any tag set.
                let slot = Slot(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
                self.slots.push(Some(waiting));
                slot
            }
        };
        match self.newest.replace(slot).and_then(|newest| self.get_mut(newest)) {
            Some(newest) => newest.newer = Some(slot),
            None => self.oldest = Some(slot),
        }
        self.sorted.insert(key, slot);
    }

    /// Takes what is in a slot out of all orders.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Waiting<R>> {
        let waiting = self.slots.get_mut(slot.0 as usize)?.take()?;
        self.free.push(slot);
        self.sorted.remove(&waiting.key);
        match waiting.older.and_then(|older| self.get_mut(older)) {
            Some(older) => older.newer = waiting.newer,
            None => self.oldest = waiting.newer,
        }
        match waiting.newer.and_then(|newer| self.get_mut(newer)) {
            Some(newer) => newer.older = waiting.older,
            None => self.newest = waiting.older,
        }
        Some(waiting)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Waiting<R>> {
        self.slots.get(slot.0 as usize)?.as_ref()
    }

    /// Lets `change` change the request, and sorts it in again. Returns what `change` did.
    pub(super) fn update(&mut self, slot: Slot, change: impl FnOnce(&mut R) -> bool) -> bool {
        let Some(waiting) = self.get_mut(slot) else { return false };
        let changed = change(&mut waiting.rq);
        let (old, new) = (waiting.key, (waiting.rq.sector(), waiting.key.1));
        waiting.key = new;
        if old != new {
            self.sorted.remove(&old);
            self.sorted.insert(new, slot);
        }
        changed
    }

    /// The one that waits for longest of those that are wanted.
    pub(super) fn oldest(&self, want: &dyn Fn(&R) -> bool) -> Option<Slot> {
        let mut next = self.oldest;
        while let Some(slot) = next {
            let waiting = self.get(slot)?;
            if want(&waiting.rq) {
                break;
            }
            next = waiting.newer;
        }
        next
    }

    /// The one with the lowest sector that is not below `from`, of those that are wanted; of several, the oldest.
    pub(super) fn at_or_after(&self, from: Sector, want: &dyn Fn(&R) -> bool) -> Option<Slot> {
        let wanted = |slot: &Slot| self.get(*slot).is_some_and(|waiting| want(&waiting.rq));
        self.sorted.range((from, 0)..).map(|(_, &slot)| slot).find(wanted)
    }

    /// One that starts at `sector`, of those that are wanted; of several, the oldest.
    pub(super) fn starting_at(&self, sector: Sector, want: &dyn Fn(&R) -> bool) -> Option<Slot> {
        let mut there = self.sorted.range((sector, 0)..=(sector, u64::MAX)).map(|(_, &slot)| slot);
        there.find(|&slot| self.get(slot).is_some_and(|waiting| want(&waiting.rq)))
    }

    /// One that ends at `sector`, of those that are wanted. Looks at the nearest of them that starts below only:
    /// requests that overlap each other may hide one.
    pub(super) fn ending_at(&self, sector: Sector, want: &dyn Fn(&R) -> bool) -> Option<Slot> {
        let mut below = self.sorted.range(..(sector, 0)).rev().map(|(_, &slot)| slot);
        let nearest =
            below.find(|&slot| self.get(slot).is_some_and(|waiting| want(&waiting.rq)))?;
        self.get(nearest).filter(|waiting| waiting.rq.end() == sector).map(|_| nearest)
    }

    fn get_mut(&mut self, slot: Slot) -> Option<&mut Waiting<R>> {
        self.slots.get_mut(slot.0 as usize)?.as_mut()
    }
}
