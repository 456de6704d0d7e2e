//! Sets of bytes of a disk.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// From where each begins to where it ends.
    ends: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        if let Some((&before, &until)) = self.ends.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.ends.range(start..=end).next() {
            self.ends.remove(&next);
            end = end.max(until);
        }
        self.ends.insert(start, end);
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(&start, &end)| start..end)
    }

    /// How many ranges there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether the byte at `start` is in it, and until where that is so; `end` at most.
    #[must_use]
    pub fn at(&self, start: u64, end: u64) -> (bool, u64) {
        match self.ends.range(..=start).next_back() {
            Some((_, &until)) if until > start => (true, until.min(end)),
            _ => {
                let next = self.ends.range(start..end).next();
                (false, next.map_or(end, |(&next, _)| next))
            }
        }
    }
}

impl FromIterator<Range<u64>> for Ranges {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut all = Self::default();
        ranges.into_iter().for_each(|range| all.insert(range));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_touches_becomes_one() {
        let set: Ranges = [0..4, 8..12, 4..8, 20..21, 5..6, 7..7].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<_>>(), [0..12, 20..21]);
        assert_eq!((set.bytes(), set.len()), (13, 2));
        assert_eq!(set.at(3, 100), (true, 12));
        assert_eq!(set.at(12, 100), (false, 20));
        assert_eq!(set.at(12, 15), (false, 15));
    }

    proptest! {
        #[test]
        fn it_holds_the_bytes_that_were_put_in(list in prop::collection::vec((0_u64..64, 0_u64..16), 0..20)) {
            let mut model = std::collections::BTreeSet::new();
            let mut set = Ranges::default();
            for (start, len) in list {
                set.insert(start..start + len);
                model.extend(start..start + len);
            }
            for byte in 0..80 {
                prop_assert_eq!(set.at(byte, byte + 1).0, model.contains(&byte));
            }
            let starts = model.iter().filter(|&&byte| byte == 0 || !model.contains(&(byte - 1)));
            prop_assert_eq!(set.len(), starts.count());
            prop_assert_eq!(set.bytes(), model.len() as u64);
        }
    }
}
