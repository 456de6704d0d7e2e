//! Choosing where later results move up into gaps: `crush_choose_firstn`.

use super::{Drawn, Mapper, Tries};
use crate::bucket::Ready;
use crate::map::CrushMap;
use crate::rule::Step;

/// What to choose, and how hard to try.
pub(super) struct Firstn {
    wanted: u32,
    kind: i32,
    tries: u32,
    local_tries: u32,
    local_fallback: u32,
    /// For the device below each item.
    leaf_tries: u32,
    vary_r: u32,
    stable: bool,
}

impl Firstn {
    pub(super) fn step(step: &Step, tries: &Tries, wanted: u32, map: &CrushMap) -> Self {
        let once = map.data.tunables.chooseleaf_descend_once != 0;
        Self {
            wanted,
            kind: step.arg2,
            tries: tries.total,
            local_tries: tries.local,
            local_fallback: tries.local_fallback,
            leaf_tries: tries.leaf.unwrap_or(if once { 1 } else { tries.total }),
            vary_r: tries.vary_r,
            stable: tries.stable,
        }
    }

    /// How to find the device below an item that is to be at a position.
    fn leaf(&self, position: usize) -> Self {
        // Positions are below limits::RESULTS.
        let next = u32::try_from(position).unwrap_or(u32::MAX).saturating_add(1);
        Self {
            wanted: if self.stable { 1 } else { next },
            kind: 0,
            tries: self.leaf_tries,
            leaf_tries: 0,
            ..*self
        }
    }

    /// What the attempt for an item adds to the attempts for the device below.
    fn leaf_r(&self, r: u32) -> u32 {
        match self.vary_r {
            0 => 0,
            // C shifts an `int`, by the count modulo 32.
            shift => (r.cast_signed().wrapping_shr(shift - 1)).cast_unsigned(),
        }
    }
}

/// How one draw ended.
enum Outcome {
    Chosen(i32),
    Collision,
    Rejected,
    /// The map has no such item here, and trying again would not help.
    Impossible,
}

/// The places that are decided so far.
struct Places<'o> {
    out: &'o mut [i32],
    leaves: Option<&'o mut [i32]>,
    len: usize,
    /// Added to each attempt, by the choice of the item above.
    parent_r: u32,
}

impl Mapper<'_> {
    /// Fills `out` from its start, and `leaves` with the devices below. Returns how many were found.
    pub(super) fn firstn(
        &mut self,
        want: &Firstn,
        bucket: &Ready,
        out: &mut [i32],
        leaves: Option<&mut [i32]>,
    ) -> usize {
        self.firstn_from(want, bucket, Places { out, leaves, len: 0, parent_r: 0 })
    }

    /// Continues after the places that are decided. Returns how many are decided then.
    fn firstn_from(&mut self, want: &Firstn, bucket: &Ready, mut places: Places<'_>) -> usize {
        // As many as there is room for, counted from here on.
        let room = places.out.len();
        let first = if want.stable { 0 } else { u32::try_from(places.len).unwrap_or(u32::MAX) };
        for replica in first..want.wanted {
            if places.len >= room || !self.spend(0) {
                break;
            }
            let r = replica.wrapping_add(places.parent_r);
            if let Some(item) = self.firstn_one(want, bucket, r, &mut places) {
                places.out[places.len] = item;
                places.len += 1;
            }
        }
        places.len
    }

    /// Finds one item: descends, retries in the bucket where it failed while local tries last, and else from the top.
    fn firstn_one(
        &mut self,
        want: &Firstn,
        top: &Ready,
        first_r: u32,
        places: &mut Places<'_>,
    ) -> Option<i32> {
        let mut failures = 0_u32;
        let mut bucket = top;
        let mut local_failures = 0_u32;
        loop {
            let r = first_r.wrapping_add(failures);
            let collision = loop {
                let drawn = if bucket.items.is_empty() {
                    self.spend(0).then_some(())?;
                    break false;
                } else if want.falls_back(bucket, local_failures) {
                    self.draw_permuted(bucket, r)
                } else {
                    self.draw(bucket, r, places.len)
                };
                if let Drawn::Bucket(inner) = drawn
                    && inner.kind != want.kind
                {
                    bucket = inner;
                    continue;
                }
                match self.firstn_accept(want, drawn, r, places) {
                    Outcome::Chosen(item) => return Some(item),
                    Outcome::Impossible => return None,
                    Outcome::Collision => break true,
                    Outcome::Rejected => break false,
                }
            };
            failures = failures.wrapping_add(1);
            local_failures = local_failures.wrapping_add(1);
            if want.retries_here(bucket, local_failures, collision) {
                continue;
            }
            if failures >= want.tries {
                return None;
            }
            bucket = top;
            local_failures = 0;
        }
    }

    /// Whether an item of the right type will do, with a device below it if one is wanted.
    fn firstn_accept(
        &mut self,
        want: &Firstn,
        drawn: Drawn<'_>,
        r: u32,
        places: &mut Places<'_>,
    ) -> Outcome {
        let position = places.len;
        let item = match drawn {
            Drawn::Device(device) if want.kind == 0 => device,
            Drawn::Bucket(bucket) => bucket.id,
            _ => return Outcome::Impossible,
        };
        if places.out[..position].contains(&item) {
            return Outcome::Collision;
        }
        if let Some(leaves) = places.leaves.as_deref_mut() {
            if let Drawn::Bucket(bucket) = drawn {
                let parent_r = want.leaf_r(r);
                let places = Places { out: leaves, leaves: None, len: position, parent_r };
                if self.firstn_from(&want.leaf(position), bucket, places) <= position {
                    return Outcome::Rejected;
                }
            } else {
                leaves[position] = item;
            }
        }
        if want.kind == 0 && self.is_out(item) { Outcome::Rejected } else { Outcome::Chosen(item) }
    }
}

impl Firstn {
    /// Whether, after so many failures in a bucket, its items are gone through by permutation.
    fn falls_back(&self, bucket: &Ready, failures: u32) -> bool {
        self.local_fallback > 0
            && failures as usize >= bucket.items.len() >> 1
            && failures > self.local_fallback
    }

    /// Whether to stay in the bucket after so many failures there.
    fn retries_here(&self, bucket: &Ready, failures: u32, collision: bool) -> bool {
        let size = u32::try_from(bucket.items.len()).unwrap_or(u32::MAX);
        (collision && failures <= self.local_tries)
            || (self.local_fallback > 0 && failures <= size.wrapping_add(self.local_fallback))
    }
}
