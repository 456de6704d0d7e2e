//! Choosing where each result keeps its position: `crush_choose_indep`.

use std::ops::Range;

use super::{Drawn, Mapper, NONE, Tries, UNDECIDED};
use crate::bucket::{Method, Ready};
use crate::rule::Step;

/// What to choose, and how hard to try.
pub(super) struct Indep {
    wanted: u32,
    kind: i32,
    tries: u32,
    /// For the device below each item.
    leaf_tries: u32,
}

impl Indep {
    pub(super) fn step(step: &Step, tries: &Tries, wanted: u32) -> Self {
        let leaf_tries = tries.leaf.unwrap_or(1);
        Self { wanted, kind: step.arg2, tries: tries.total, leaf_tries }
    }

    /// How to find the device below an item.
    fn leaf(&self) -> Self {
        Self { wanted: self.wanted, kind: 0, tries: self.leaf_tries, leaf_tries: 0 }
    }

    /// What is drawn with for a place in a round. All places of a round draw differently, and so do all rounds; a
    /// uniform bucket with a multiple of the wanted number of items would repeat its permutation, but for the other
    /// stride.
    fn r(&self, bucket: &Ready, place: u32, round: u32) -> u32 {
        let is_uniform = matches!(bucket.method, Method::Uniform);
        let repeats = is_uniform && bucket.items.len().is_multiple_of(self.wanted as usize);
        let stride = if repeats { self.wanted.wrapping_add(1) } else { self.wanted };
        place.wrapping_add(stride.wrapping_mul(round))
    }
}

/// The places to decide.
struct Places<'o> {
    out: &'o mut [i32],
    leaves: Option<&'o mut [i32]>,
    range: Range<usize>,
    /// Added to each place, by the choice of the item above.
    parent_r: u32,
}

impl Places<'_> {
    fn set(&mut self, place: usize, item: i32) {
        self.out[place] = item;
        if let Some(leaves) = self.leaves.as_deref_mut() {
            leaves[place] = item;
        }
    }
}

impl Mapper<'_> {
    /// Decides as many places of `out` as are wanted and there, and of `leaves` the devices below. Returns how many.
    pub(super) fn indep(
        &mut self,
        want: &Indep,
        bucket: &Ready,
        out: &mut [i32],
        leaves: Option<&mut [i32]>,
    ) -> usize {
        let len = out.len().min(want.wanted as usize);
        self.indep_range(want, bucket, Places { out, leaves, range: 0..len, parent_r: 0 });
        len
    }

    fn indep_range(&mut self, want: &Indep, top: &Ready, mut places: Places<'_>) {
        let range = places.range.clone();
        range.clone().for_each(|place| places.set(place, UNDECIDED));
        let mut left = range.len();
        for round in 0..want.tries {
            if left == 0 || !self.spend(0) {
                break;
            }
            for place in range.clone() {
                if places.out[place] == UNDECIDED
                    && self.indep_one(want, top, place, round, &mut places)
                {
                    left -= 1;
                }
            }
        }
        for place in range {
            if places.out[place] == UNDECIDED {
                places.out[place] = NONE;
            }
            if let Some(leaves) = places.leaves.as_deref_mut()
                && leaves[place] == UNDECIDED
            {
                leaves[place] = NONE;
            }
        }
    }

    /// Tries once to decide a place. Returns whether it did, if only for a gap.
    fn indep_one(
        &mut self,
        want: &Indep,
        top: &Ready,
        place: usize,
        round: u32,
        places: &mut Places<'_>,
    ) -> bool {
        // Places are below limits::RESULTS.
        let base = u32::try_from(place).unwrap_or(u32::MAX).wrapping_add(places.parent_r);
        let mut bucket = top;
        loop {
            if bucket.items.is_empty() {
                return false;
            }
            let r = want.r(bucket, base, round);
            let drawn = self.draw(bucket, r, places.range.start);
            if let Drawn::Bucket(inner) = drawn
                && inner.kind != want.kind
            {
                bucket = inner;
                continue;
            }
            return self.indep_accept(want, drawn, r, place, places);
        }
    }

    fn indep_accept(
        &mut self,
        want: &Indep,
        drawn: Drawn<'_>,
        r: u32,
        place: usize,
        places: &mut Places<'_>,
    ) -> bool {
        let item = match drawn {
            Drawn::Device(device) if want.kind == 0 => device,
            Drawn::Bucket(bucket) => bucket.id,
            _ => {
                places.set(place, NONE);
                return true;
            }
        };
        if places.out[places.range.clone()].contains(&item) {
            return false;
        }
        if let Some(leaves) = places.leaves.as_deref_mut() {
            if let Drawn::Bucket(bucket) = drawn {
                let range = place..place + 1;
                let below = Places { out: leaves, leaves: None, range, parent_r: r };
                self.indep_range(&want.leaf(), bucket, below);
                if leaves[place] == NONE {
                    return false;
                }
            } else {
                leaves[place] = item;
            }
        }
        if want.kind == 0 && self.is_out(item) {
            return false;
        }
        places.out[place] = item;
        true
    }
}
