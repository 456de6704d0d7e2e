//! Random numbers that a seed repeats on every machine: SplitMix64.

use std::ops::Range;

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// A number of a range.
    pub(crate) fn of(&mut self, range: Range<i64>) -> i64 {
        range.start + (self.word() % (range.end - range.start) as u64) as i64
    }

    pub(crate) fn u32(&mut self, range: Range<u32>) -> u32 {
        self.of(i64::from(range.start)..i64::from(range.end)) as u32
    }

    pub(crate) fn i32(&mut self, range: Range<i32>) -> i32 {
        self.of(i64::from(range.start)..i64::from(range.end)) as i32
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.word().is_multiple_of(times)
    }

    pub(crate) fn pick<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.word() as usize % all.len()].clone()
    }

    pub(crate) fn shuffle<T>(&mut self, all: &mut [T]) {
        for end in (1..all.len()).rev() {
            all.swap(end, self.word() as usize % (end + 1));
        }
    }
}
