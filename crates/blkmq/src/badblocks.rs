//! The list of a disk's bad sectors (kernel: `block/badblocks.c`).

use crate::units::Sector;

/// Most ranges that a list holds (kernel: `MAX_BADBLOCKS`, a page of 8-byte entries). Unlike there, a range has
/// any length.
pub const MAX_BAD_RANGES: usize = 512;

/// Neighbouring sectors that are bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRange {
    /// The first.
    pub start: Sector,
    /// How many, at least one.
    pub len: Sector,
    /// Whether it is recorded somewhere that lasts, so that a write may fail there and nobody is misled later.
    pub acked: bool,
}

impl BadRange {
    /// The sector after the last.
    #[must_use]
    pub const fn end(&self) -> Sector {
        Sector(self.start.0 + self.len.0)
    }
}

/// What is known about a range (kernel: `badblocks_check`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// No bad sector in it.
    Good,
    /// Some are.
    Bad {
        /// The first range that overlaps, whole.
        first: BadRange,
        /// Whether all that overlap are acknowledged.
        acked: bool,
    },
}

/// Why the list was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBlocksError {
    /// The change would need more than [`MAX_BAD_RANGES`] ranges (ENOSPC).
    #[error("the bad block list is full")]
    Full,
    /// No sectors, or past the end of all numbers (EINVAL).
    #[error("not a range of sectors")]
    Range,
}

/// Sorted ranges that neither overlap nor, where they are alike, touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadBlocks {
    ranges: Vec<BadRange>,
}

impl BadBlocks {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: Vec::new() }
    }

    /// Marks sectors as bad (kernel: `badblocks_set`). What was acknowledged before stays so.
    ///
    /// # Errors
    ///
    /// [`BadBlocksError`], and nothing has changed.
    pub fn set(&mut self, start: Sector, len: Sector, acked: bool) -> Result<(), BadBlocksError> {
        self.change(start, len, |was| Some(acked || was.unwrap_or(false)))
    }

    /// Marks sectors as good (kernel: `badblocks_clear`).
    ///
    /// # Errors
    ///
    /// [`BadBlocksError::Full`] if a range would fall in two and there is no room, and nothing has changed.
    pub fn clear(&mut self, start: Sector, len: Sector) -> Result<(), BadBlocksError> {
        self.change(start, len, |_| None)
    }

    /// What is known about `len` sectors from `start`.
    #[must_use]
    pub fn check(&self, start: Sector, len: Sector) -> Check {
        let end = Sector(start.0.saturating_add(len.0));
        let from = self.ranges.partition_point(|range| range.end() <= start);
        let mut overlaps = self.ranges[from..].iter().take_while(|range| range.start < end);
        match overlaps.next() {
            None => Check::Good,
            Some(&first) => {
                Check::Bad { first, acked: first.acked && overlaps.all(|range| range.acked) }
            }
        }
    }

    /// Acknowledges all (kernel: `ack_all_badblocks`).
    pub fn ack_all(&mut self) {
        let all = std::mem::take(&mut self.ranges);
        for range in all {
            push(&mut self.ranges, range.start.0, range.end().0, true);
        }
    }

    /// The ranges, lowest first; each is a line `start len` of sysfs' `badblocks`, and of
    /// `unacknowledged_bad_blocks` where it is not acknowledged.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &BadRange> {
        self.ranges.iter()
    }

    /// Whether no sector is bad.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Replaces what is known of each sector (`None` is good, else whether acknowledged) by what `to` makes of
    /// it.
    fn change(
        &mut self,
        start: Sector,
        len: Sector,
        to: impl Fn(Option<bool>) -> Option<bool>,
    ) -> Result<(), BadBlocksError> {
        let (from, end) = (start.0, start.checked_add(len).ok_or(BadBlocksError::Range)?.0);
        if from == end {
            return Err(BadBlocksError::Range);
        }
        let mut changed = Vec::with_capacity(self.ranges.len() + 2);
        let mut put = |from: u64, end: u64, state: Option<bool>| {
            if let Some(acked) = state {
                push(&mut changed, from, end, acked);
            }
        };
        let mut done = from;
        for range in &self.ranges {
            let (a, b, was) = (range.start.0, range.end().0, Some(range.acked));
            if a > done && done < end {
                put(done, a.min(end), to(None));
                done = a.min(end);
            }
            put(a, b.min(from), was);
            put(a.max(from), b.min(end), to(was));
            put(a.max(end), b, was);
            done = done.max(b.min(end));
        }
        put(done, end, to(None));
        if changed.len() > MAX_BAD_RANGES {
            return Err(BadBlocksError::Full);
        }
        self.ranges = changed;
        Ok(())
    }
}

/// Appends a range to sorted ones; joins it to the last if it can be; does nothing if it is empty.
fn push(ranges: &mut Vec<BadRange>, from: u64, end: u64, acked: bool) {
    if from >= end {
        return;
    }
    match ranges.last_mut() {
        Some(last) if last.end().0 == from && last.acked == acked => last.len.0 += end - from,
        _ => ranges.push(BadRange { start: Sector(from), len: Sector(end - from), acked }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use rand::RngExt;

    fn lines(list: &BadBlocks) -> Vec<(u64, u64, bool)> {
        list.iter().map(|range| (range.start.0, range.len.0, range.acked)).collect()
    }

    #[test]
    fn neighbours_join_and_clearing_the_middle_splits() {
        let mut list = BadBlocks::new();
        list.set(Sector(10), Sector(5), true).unwrap();
        list.set(Sector(15), Sector(5), true).unwrap();
        assert_eq!(lines(&list), [(10, 10, true)]);
        list.clear(Sector(12), Sector(2)).unwrap();
        assert_eq!(lines(&list), [(10, 2, true), (14, 6, true)]);
    }

    #[test]
    fn a_check_tells_the_first_range_and_whether_all_are_acknowledged() {
        let mut list = BadBlocks::new();
        list.set(Sector(10), Sector(5), true).unwrap();
        list.set(Sector(20), Sector(5), false).unwrap();
        let first = BadRange { start: Sector(10), len: Sector(5), acked: true };
        assert_eq!(list.check(Sector(0), Sector(10)), Check::Good);
        assert_eq!(list.check(Sector(14), Sector(6)), Check::Bad { first, acked: true });
        assert_eq!(list.check(Sector(0), Sector(u64::MAX)), Check::Bad { first, acked: false });
        list.ack_all();
        assert_eq!(list.check(Sector(0), Sector(30)), Check::Bad { first, acked: true });
    }

    #[test]
    fn a_full_list_and_an_empty_range_are_refused_and_change_nothing() {
        let mut list = BadBlocks::new();
        for i in 0..MAX_BAD_RANGES as u64 {
            list.set(Sector(i * 4), Sector(3), true).unwrap();
        }
        let before = list.clone();
        assert_eq!(list.set(Sector(1 << 20), Sector(1), true), Err(BadBlocksError::Full));
        assert_eq!(list.clear(Sector(1), Sector(1)), Err(BadBlocksError::Full));
        assert_eq!(list.set(Sector(5), Sector(0), true), Err(BadBlocksError::Range));
        assert_eq!(list.set(Sector(5), Sector(u64::MAX), true), Err(BadBlocksError::Range));
        assert_eq!(list, before);
        list.set(Sector(3), Sector(1), true).unwrap();
        assert_eq!(list.iter().len(), MAX_BAD_RANGES - 1);
    }

    #[test]
    fn it_behaves_as_one_state_per_sector() {
        const SECTORS: usize = 200;
        let mut rng = testing::rng("badblocks");
        let mut list = BadBlocks::new();
        let mut model = [None; SECTORS];
        for _ in 0..5000 {
            let start = rng.random_range(0..SECTORS);
            let len = rng.random_range(1..=(SECTORS - start).min(20));
            let span = start..start + len;
            let (at, len) = (Sector(start as u64), Sector(len as u64));
            match rng.random_range(0..5) {
                0 | 1 => {
                    let acked = rng.random_bool(0.5);
                    list.set(at, len, acked).unwrap();
                    model[span]
                        .iter_mut()
                        .for_each(|s: &mut Option<bool>| *s = (*s).max(Some(acked)));
                }
                2 | 3 => {
                    list.clear(at, len).unwrap();
                    model[span].fill(None);
                }
                _ => {
                    let bad: Vec<bool> = model[span].iter().flatten().copied().collect();
                    let expected = (!bad.is_empty()).then(|| bad.iter().all(|&acked| acked));
                    let got = match list.check(at, len) {
                        Check::Good => None,
                        Check::Bad { acked, .. } => Some(acked),
                    };
                    assert_eq!(got, expected);
                }
            }
            let mut flat = [None; SECTORS];
            for range in list.iter() {
                let from = usize::try_from(range.start.0).unwrap();
                flat[from..usize::try_from(range.end().0).unwrap()].fill(Some(range.acked));
            }
            assert_eq!(flat, model);
            let apart = |w: &[BadRange]| {
                w[0].end() < w[1].start || (w[0].end() == w[1].start && w[0].acked != w[1].acked)
            };
            assert!(list.ranges.windows(2).all(apart), "sorted, apart and as few as can be");
        }
    }
}
