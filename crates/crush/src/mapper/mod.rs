//! Running a rule: `crush_do_rule` of Ceph's `src/crush/mapper.c`.

mod firstn;
mod indep;
mod msr;
mod scratch;

pub use scratch::Scratch;

use std::mem;

use crate::bucket::{Draw, Ready};
use crate::hash::hash32_2;
use crate::limits;
use crate::map::CrushMap;
use crate::overrides::ChooseArgs;
use crate::rule::{Op, Step};
use crate::tunables::Tunables;
use firstn::Firstn;
use indep::Indep;

/// A place of the result for which there is no device.
pub const NONE: i32 = 0x7fff_ffff;
/// A place that is not decided yet.
const UNDECIDED: i32 = 0x7fff_fffe;
/// A weight of 1.0, 16.16.
const ONE: u32 = 0x1_0000;

impl CrushMap {
    /// Maps an input to devices by a rule; they are written to `result`, whose length is how many are wanted.
    ///
    /// - `x`: the input, for a placement group the hash of its seed and pool;
    /// - `weights`: per device, which part of the inputs it takes, 16.16: 0x10000 all, 0 or none given: nothing;
    /// - `choose_args`: the pool's, from [`CrushMap::choose_args`] of this map.
    ///
    /// Returns how many places of `result` are filled. A place for which there was no device is [`NONE`] in rules
    /// that keep positions, and left out in others. No rule of this number gives 0.
    ///
    /// Nothing is allocated once `scratch` has grown to what the rule needs. The work is bounded by [`limits::WORK`].
    pub fn do_rule(
        &self,
        rule: u32,
        x: u32,
        weights: &[u32],
        choose_args: Option<&ChooseArgs>,
        result: &mut [i32],
        scratch: &mut Scratch,
    ) -> usize {
        let Some(rule) = self.rule(rule) else { return 0 };
        // Beyond this, C's `int` would overflow.
        let wanted = result.len().min(limits::RESULTS);
        let result = &mut result[..wanted];
        if result.is_empty() {
            return 0;
        }
        let mapper = Mapper { map: self, x, weights, choose_args, work_left: limits::WORK };
        if rule.kind.is_msr() {
            return msr::run(mapper, rule, result, scratch);
        }
        mapper.run(&rule.steps, result, scratch)
    }
}

/// One input on its way through a rule.
struct Mapper<'a> {
    map: &'a CrushMap,
    x: u32,
    weights: &'a [u32],
    choose_args: Option<&'a ChooseArgs>,
    work_left: u32,
}

/// What drawing from a bucket came to.
#[derive(Clone, Copy)]
enum Drawn<'a> {
    Device(i32),
    Bucket(&'a Ready),
    /// An item that cannot be: the map is wrong about it, or the work is used up.
    Nothing,
}

/// The tries that a rule's steps have set so far.
struct Tries {
    total: u32,
    leaf: Option<u32>,
    local: u32,
    local_fallback: u32,
    vary_r: u32,
    stable: bool,
}

impl Tries {
    fn new(tunables: &Tunables) -> Self {
        Self {
            // The tunable counts retries.
            total: tunables.choose_total_tries.wrapping_add(1),
            leaf: None,
            local: tunables.choose_local_tries,
            local_fallback: tunables.choose_local_fallback_tries,
            vary_r: u32::from(tunables.chooseleaf_vary_r),
            stable: tunables.chooseleaf_stable != 0,
        }
    }

    /// Obeys a step that sets something. Numbers that are too low are ignored.
    fn set(&mut self, step: &Step) {
        let Ok(value) = u32::try_from(step.arg1) else { return };
        match step.op {
            Op::SetChooseTries if value > 0 => self.total = value,
            Op::SetChooseleafTries if value > 0 => self.leaf = Some(value),
            Op::SetChooseLocalTries => self.local = value,
            Op::SetChooseLocalFallbackTries => self.local_fallback = value,
            Op::SetChooseleafVaryR => self.vary_r = value,
            Op::SetChooseleafStable => self.stable = value != 0,
            _ => {}
        }
    }
}

impl<'a> Mapper<'a> {
    fn run(mut self, steps: &[Step], result: &mut [i32], scratch: &mut Scratch) -> usize {
        let [mut taken, mut chosen, leaves] = scratch.three(result.len());
        let mut tries = Tries::new(&self.map.data.tunables);
        let (mut sources, mut emitted) = (0, 0);
        for step in steps {
            match step.op {
                Op::Take if self.is_there(step.arg1) => {
                    taken[0] = step.arg1;
                    sources = 1;
                }
                Op::ChooseFirstn | Op::ChooseleafFirstn | Op::ChooseIndep | Op::ChooseleafIndep => {
                    if sources == 0 {
                        continue;
                    }
                    sources = self.choose_step(step, &tries, &taken[..sources], chosen, leaves);
                    mem::swap(&mut taken, &mut chosen);
                }
                Op::Emit => {
                    let len = sources.min(result.len() - emitted);
                    result[emitted..emitted + len].copy_from_slice(&taken[..len]);
                    emitted += len;
                    sources = 0;
                }
                _ => tries.set(step),
            }
        }
        emitted
    }

    /// Whether a rule may start from an item.
    fn is_there(&self, item: i32) -> bool {
        if item >= 0 { item < self.map.data.max_devices } else { self.map.ready(item).is_some() }
    }

    /// Chooses below each source. Returns how many were chosen.
    fn choose_step(
        &mut self,
        step: &Step,
        tries: &Tries,
        sources: &[i32],
        chosen: &mut [i32],
        leaves: &mut [i32],
    ) -> usize {
        let to_leaf = matches!(step.op, Op::ChooseleafFirstn | Op::ChooseleafIndep);
        let firstn = matches!(step.op, Op::ChooseFirstn | Op::ChooseleafFirstn);
        let wanted = if step.arg1 > 0 {
            step.arg1
        } else {
            // Counted from the length of the result, which limits::RESULTS bounds.
            step.arg1.saturating_add(i32::try_from(chosen.len()).unwrap_or(i32::MAX))
        };
        let Ok(wanted @ 1..) = u32::try_from(wanted) else { return 0 };
        let mut len = 0;
        for &source in sources {
            // A source that is no bucket is a gap, or a device.
            let Some(bucket) = self.map.ready(source) else { continue };
            let (out, leaves) = (&mut chosen[len..], &mut leaves[len..]);
            let leaves = to_leaf.then_some(leaves);
            len += if firstn {
                self.firstn(&Firstn::step(step, tries, wanted, self.map), bucket, out, leaves)
            } else {
                self.indep(&Indep::step(step, tries, wanted), bucket, out, leaves)
            };
        }
        if to_leaf {
            chosen[..len].copy_from_slice(&leaves[..len]);
        }
        len
    }

    /// Draws an item from a bucket that is not empty.
    #[inline]
    fn draw(&mut self, bucket: &Ready, r: u32, position: usize) -> Drawn<'a> {
        if !self.spend(bucket.items.len()) {
            return Drawn::Nothing;
        }
        let (x, choose_args) = (self.x, self.choose_args);
        let CrushMap { logarithms, arch, .. } = *self.map;
        let item = bucket.choose(Draw { x, r, position, choose_args, logarithms, arch });
        self.look_up(item)
    }

    /// Draws an item by permutation, whatever the bucket's algorithm is.
    fn draw_permuted(&mut self, bucket: &Ready, r: u32) -> Drawn<'a> {
        if !self.spend(bucket.items.len()) {
            return Drawn::Nothing;
        }
        self.look_up(bucket.permuted(self.x, r))
    }

    #[inline]
    fn look_up(&self, item: Option<i32>) -> Drawn<'a> {
        match item {
            Some(device @ 0..) if device < self.map.data.max_devices => Drawn::Device(device),
            Some(id @ ..0) => self.map.ready(id).map_or(Drawn::Nothing, Drawn::Bucket),
            _ => Drawn::Nothing,
        }
    }

    /// Whether a device turns this input down (`is_out`).
    #[inline]
    fn is_out(&self, device: i32) -> bool {
        let weight = usize::try_from(device).ok().and_then(|index| self.weights.get(index));
        match weight.copied() {
            Some(ONE..) => false,
            None | Some(0) => true,
            Some(weight) => hash32_2(self.x, device.cast_unsigned()) & 0xffff >= weight,
        }
    }

    /// Takes the work of an attempt that looks at so many items from what is left.
    #[inline]
    fn spend(&mut self, items: usize) -> bool {
        let work = u32::try_from(items).unwrap_or(u32::MAX).saturating_add(limits::ATTEMPT);
        let left = self.work_left.checked_sub(work);
        self.work_left = left.unwrap_or(0);
        left.is_some()
    }
}
