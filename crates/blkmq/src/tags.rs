//! Tags: numbers for the requests that a driver holds, one to each.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

/// Somebody who waits for a tag.
pub(crate) trait Waiter: Send + Sync {
    /// A tag of that kind was freed: try again.
    fn tag_freed(self: Arc<Self>, reserved: bool);
}

/// A bitmap of free numbers, taken and given back without a lock (kernel: `sbitmap_queue`). The first
/// `reserved` are for what must not wait behind ordinary I/O.
pub(crate) struct Tags {
    depth: u32,
    reserved: u32,
    words: Box<[CachePadded<AtomicU64>]>,
    /// The word where the last free tag was found.
    hint: CachePadded<AtomicUsize>,
    /// Hardware queues that the tags are for: more than one where disks, or the queues of a disk, share them.
    sharers: AtomicU32,
    /// Those of them that hold tags now: each gets its share of the depth.
    users: AtomicU32,
    waiting: AtomicUsize,
    /// Those who wait for ordinary tags, and for reserved ones.
    waiters: Mutex<[VecDeque<Arc<dyn Waiter>>; 2]>,
}

/// Tags in a word. Few, so that neighbours on other CPUs seldom meet in one.
const WORD_BITS: u32 = 64;

impl Tags {
    pub(crate) fn new(depth: u32, reserved: u32) -> Self {
        let words = (0..depth.div_ceil(WORD_BITS))
            .map(|word| {
                let bits = (depth - word * WORD_BITS).min(WORD_BITS);
                CachePadded::new(AtomicU64::new(if bits == WORD_BITS {
                    u64::MAX
                } else {
                    (1 << bits) - 1
                }))
            })
            .collect();
        Self {
            depth,
            reserved,
            words,
            hint: CachePadded::default(),
            sharers: AtomicU32::new(0),
            users: AtomicU32::new(0),
            waiting: AtomicUsize::new(0),
            waiters: Mutex::default(),
        }
    }

    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Takes a free tag, if there is one; from the reserved ones if `reserved`.
    pub(crate) fn get(&self, reserved: bool) -> Option<u32> {
        let range = if reserved { 0..self.reserved } else { self.reserved..self.depth };
        let count = self.words.len();
        let first = if reserved { 0 } else { self.hint.load(Ordering::Relaxed) };
        let found = (0..count).find_map(|step| {
            let word = (first + step) % count;
            self.get_in(word, &range).map(|bit| (word, bit))
        });
        let (word, bit) = found?;
        if word != first && !reserved {
            self.hint.store(word, Ordering::Relaxed);
        }
        #[expect(clippy::cast_possible_truncation, reason = "there are at most 160 words")]
        Some(word as u32 * WORD_BITS + bit)
    }

    fn get_in(&self, word: usize, range: &Range<u32>) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "there are at most 160 words")]
        let base = word as u32 * WORD_BITS;
        let (from, to) =
            (range.start.saturating_sub(base), range.end.saturating_sub(base).min(WORD_BITS));
        if from >= to {
            return None;
        }
        let mask = (u64::MAX << from) & (u64::MAX >> (WORD_BITS - to));
        let bits = &self.words[word];
        let mut free = bits.load(Ordering::Relaxed) & mask;
        while free != 0 {
            let bit = free.trailing_zeros();
            if bits.fetch_and(!(1 << bit), Ordering::Acquire) & (1 << bit) != 0 {
                return Some(bit);
            }
            free = bits.load(Ordering::Relaxed) & mask;
        }
        None
    }

    /// Gives a tag back.
    pub(crate) fn put(&self, tag: u32) {
        let before = self.words[(tag / WORD_BITS) as usize]
            .fetch_or(1 << (tag % WORD_BITS), Ordering::SeqCst);
        assert!(before & (1 << (tag % WORD_BITS)) == 0, "tag {tag} was freed twice");
    }

    /// A hardware queue begins to use the tags.
    pub(crate) fn attach(&self) {
        self.sharers.fetch_add(1, Ordering::Relaxed);
    }

    /// A hardware queue uses them no more.
    pub(crate) fn detach(&self) {
        self.sharers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether more than one hardware queue uses them.
    pub(crate) fn is_shared(&self) -> bool {
        self.sharers.load(Ordering::Relaxed) > 1
    }

    /// A sharer begins (or ends) to hold tags.
    pub(crate) fn set_active(&self, active: bool) {
        if active {
            self.users.fetch_add(1, Ordering::Relaxed);
        } else {
            self.users.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many ordinary tags one of the users may hold: all, or its fair share, at least four (kernel:
    /// `hctx_may_queue`).
    pub(crate) fn share(&self) -> u32 {
        let (users, depth) = (self.users.load(Ordering::Relaxed), self.depth - self.reserved);
        if users <= 1 { depth } else { depth.div_ceil(users).max(4).min(depth) }
    }

    /// Queues up for a tag. The caller must try once more after this, as one may have been freed meanwhile.
    pub(crate) fn wait(&self, waiter: Arc<dyn Waiter>, reserved: bool) {
        let mut waiters = self.waiters.lock();
        waiters[usize::from(reserved)].push_back(waiter);
        self.waiting.store(waiters.iter().map(VecDeque::len).sum(), Ordering::SeqCst);
        drop(waiters);
        // The caller's look at the bitmap comes after it: either it sees the tag that is freed, or who frees it
        // sees the waiter.
        fence(Ordering::SeqCst);
    }

    /// Tells those in the queues, first come first, that a tag was freed, until none is free. Each is told once:
    /// one that has had its share queues up again, and must not keep the others from theirs. Call with no lock
    /// held.
    pub(crate) fn wake(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        for reserved in [true, false] {
            let mut left = self.waiters.lock()[usize::from(reserved)].len();
            while left > 0 && self.has_free(reserved) {
                let first = {
                    let mut waiters = self.waiters.lock();
                    let first = waiters[usize::from(reserved)].pop_front();
                    self.waiting.store(waiters.iter().map(VecDeque::len).sum(), Ordering::SeqCst);
                    first
                };
                let Some(first) = first else { break };
                first.tag_freed(reserved);
                left -= 1;
            }
        }
    }

    /// Whether a tag of that kind is free now.
    fn has_free(&self, reserved: bool) -> bool {
        (0..).zip(&self.words).any(|(word, bits)| {
            let base: u32 = word * WORD_BITS;
            let kept = self.reserved.saturating_sub(base).min(WORD_BITS);
            let ordinary = if kept == WORD_BITS { 0 } else { u64::MAX << kept };
            let kind = if reserved { !ordinary } else { ordinary };
            bits.load(Ordering::SeqCst) & kind != 0
        })
    }

    #[cfg(test)]
    fn free(&self) -> u32 {
        self.words.iter().map(|word| word.load(Ordering::Relaxed).count_ones()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_tag_is_given_once_and_in_its_range(depth in 2u32..300, reserved in 0u32..20) {
            let reserved = reserved.min(depth - 1);
            let tags = Tags::new(depth, reserved);
            let ordinary: HashSet<u32> = std::iter::from_fn(|| tags.get(false)).collect();
            prop_assert_eq!(ordinary, (reserved..depth).collect::<HashSet<_>>());
            let kept: HashSet<u32> = std::iter::from_fn(|| tags.get(true)).collect();
            prop_assert_eq!(kept, (0..reserved).collect::<HashSet<_>>());
            (0..depth).for_each(|tag| tags.put(tag));
            prop_assert_eq!(tags.free(), depth);
        }
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        Tags::new(4, 0).put(1);
    }

    #[test]
    fn two_threads_never_hold_the_same_tag() {
        let tags = Tags::new(3, 0);
        let held: Vec<AtomicU32> = (0..3).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Some(tag) = tags.get(false) {
                            assert_eq!(held[tag as usize].fetch_add(1, Ordering::SeqCst), 0);
                            held[tag as usize].fetch_sub(1, Ordering::SeqCst);
                            tags.put(tag);
                        }
                    }
                });
            }
        });
    }
}
