//! The requests that are out on a connection, by cookie.

use std::time::Duration;

use blockyard_nbd::client::{Expected, InFlight};

use blockyard_buf::Segment;

use crate::held::{Held, Past};
use crate::job::Job;
use crate::span::Span;
use crate::unflushed::FlushOut;

/// A request that is out.
pub(crate) struct Entry<J> {
    /// What the server may say.
    pub(crate) expected: Expected,
    /// The request and its memory. `None` once it was taken back: the reply is still understood, and goes nowhere.
    pub(crate) held: Option<Held<J>>,
    /// What it changes.
    pub(crate) changes: Option<Span>,
    /// What a flush covers.
    pub(crate) flush: FlushOut,
    /// When it was put in line.
    pub(crate) since: Duration,
}

impl<J: Job> Entry<J> {
    pub(crate) fn past(&self) -> Past {
        self.held.as_ref().map(Held::past).unwrap_or_default()
    }

    /// Takes the request back, with its memory.
    pub(crate) fn take_back(&mut self) -> Option<J> {
        self.held.take().map(Held::into_job)
    }
}

struct Slot<J> {
    generation: u32,
    entry: Option<Entry<J>>,
}

/// Requests by cookie: the low half is the slot, the high half counts the slot's uses, so that an answer to an
/// earlier use is told from one to this (as the kernel's `nbd_cmd_handle`).
pub(crate) struct Slots<J> {
    slots: Vec<Slot<J>>,
    free: Vec<u32>,
}

impl<J> Default for Slots<J> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<J> Slots<J> {
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cookie of the next entry that is put in.
    pub(crate) fn next_cookie(&self) -> u64 {
        let free = self.free.last().and_then(|&at| Some((at, self.slots.get(at as usize)?)));
        match free {
            Some((at, slot)) => cookie(slot.generation.wrapping_add(1), at),
            None => cookie(1, u32::try_from(self.slots.len()).unwrap_or(u32::MAX)),
        }
    }

    /// Puts one in, under the cookie that [`Slots::next_cookie`] told.
    pub(crate) fn insert(&mut self, entry: Entry<J>) {
        if let Some(at) = self.free.pop() {
            let slot = &mut self.slots[at as usize];
            slot.generation = slot.generation.wrapping_add(1);
            slot.entry = Some(entry);
        } else {
            self.slots.push(Slot { generation: 1, entry: Some(entry) });
        }
    }

    pub(crate) fn get(&mut self, cookie: u64) -> Option<&mut Entry<J>> {
        let (generation, at) = split(cookie);
        let slot = self.slots.get_mut(at as usize)?;
        slot.entry.as_mut().filter(|_| slot.generation == generation)
    }

    /// The memory of a write that is out.
    pub(crate) fn payload(&self, cookie: u64) -> &[Segment]
    where
        J: Job,
    {
        let (generation, at) = split(cookie);
        let slot = self.slots.get(at as usize).filter(|slot| slot.generation == generation);
        let held = slot.and_then(|slot| slot.entry.as_ref()?.held.as_ref());
        held.map_or(&[], Held::payload)
    }

    pub(crate) fn remove(&mut self, cookie: u64) -> Option<Entry<J>> {
        let (generation, at) = split(cookie);
        let slot = self.slots.get_mut(at as usize)?;
        if slot.generation != generation {
            return None;
        }
        let entry = slot.entry.take()?;
        self.free.push(at);
        Some(entry)
    }

    pub(crate) fn entries(&mut self) -> impl Iterator<Item = (u64, &mut Entry<J>)> {
        (0..).zip(&mut self.slots).filter_map(|(at, slot)| {
            let cookie = cookie(slot.generation, at);
            slot.entry.as_mut().map(|entry| (cookie, entry))
        })
    }

    /// Takes all out.
    pub(crate) fn drain(&mut self) -> Vec<Entry<J>> {
        let cookies: Vec<u64> = self.entries().map(|(cookie, _)| cookie).collect();
        cookies.into_iter().filter_map(|cookie| self.remove(cookie)).collect()
    }
}

impl<J> InFlight for Slots<J> {
    fn expected(&mut self, cookie: u64) -> Option<&mut Expected> {
        self.get(cookie).map(|entry| &mut entry.expected)
    }
}

fn cookie(generation: u32, at: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(at)
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of a cookie")]
fn split(cookie: u64) -> (u32, u32) {
    ((cookie >> 32) as u32, cookie as u32)
}

#[cfg(test)]
mod tests {
    use blockyard_nbd::wire::{Command, CommandFlags, Request};

    use super::*;

    fn put(slots: &mut Slots<()>) -> u64 {
        let cookie = slots.next_cookie();
        let flags = CommandFlags::empty();
        let request = Request { command: Command::Flush, flags, cookie, offset: 0, length: 0 };
        slots.insert(Entry {
            expected: Expected::new(request),
            held: None,
            changes: None,
            flush: FlushOut::default(),
            since: Duration::ZERO,
        });
        cookie
    }

    #[test]
    fn a_slot_that_is_used_again_has_another_cookie() {
        let mut slots = Slots::default();
        let first = put(&mut slots);
        let other = put(&mut slots);
        assert!(slots.remove(first).is_some());
        assert!(slots.remove(first).is_none(), "gone");
        let second = put(&mut slots);
        assert_eq!(first & 0xffff_ffff, second & 0xffff_ffff, "the same slot");
        assert!(slots.expected(first).is_none(), "a late reply to the first use");
        assert!(slots.expected(second).is_some() && slots.expected(other).is_some());
        assert_eq!(slots.len(), 2);
        assert_eq!(slots.drain().len(), 2);
        assert!(slots.is_empty() && slots.expected(second).is_none());
    }

    #[test]
    fn cookies_that_were_never_given_out_find_nothing() {
        let mut slots = Slots::<()>::default();
        put(&mut slots);
        for cookie in [0, 1, u64::MAX, 2 << 32, 1 << 32 | 1] {
            assert!(slots.expected(cookie).is_none(), "{cookie:#x}");
            assert!(slots.remove(cookie).is_none());
        }
    }
}
