//! Multi-step retry (Ceph 19): `crush_msr_do_rule`, drawn in Ceph's `doc/dev/crush-msr.rst`.
//!
//! A rule is settings and then blocks, each of a take, some choosemsr steps and an emit. The steps of a block
//! divide its range of the result into strides, and those of a stride into strides again: `choosemsr 4 host`,
//! `choosemsr 2 osd` are four strides of two devices. Choosing goes depth first; where a device is out, its place
//! stays open, and the whole block is gone through once more for the places that are open. Two strides of a step
//! never share an item.
//!
//! Where Ceph asserts, or reads what is not there, a rule is invalid here and maps to nothing.

use std::ops::Range;

use super::{Drawn, Mapper, NONE, Scratch, UNDECIDED};
use crate::bucket::Ready;
use crate::limits;
use crate::rule::{Op, Rule, RuleKind, Step};

/// Runs a rule. Returns how many places of `result` count.
pub(super) fn run(
    mapper: Mapper<'_>,
    rule: &Rule,
    result: &mut [i32],
    scratch: &mut Scratch,
) -> usize {
    result.fill(NONE);
    let tunables = &mapper.map.data.tunables;
    let (mut descents, mut collision_tries) = (tunables.msr_descents, tunables.msr_collision_tries);
    let mut steps = &rule.steps[..];
    while let [step, rest @ ..] = steps {
        match step.op {
            Op::SetMsrDescents => descents = step.arg1.cast_unsigned(),
            Op::SetMsrCollisionTries => collision_tries = step.arg1.cast_unsigned(),
            _ => break,
        }
        steps = rest;
    }
    let keeps_positions = rule.kind == RuleKind::MsrIndep;
    let output = Output { places: result, keeps_positions, filled: 0 };
    let mut msr = Msr { mapper, output, descents, collision_tries };
    match msr.blocks(steps, scratch) {
        None => 0,
        Some(()) if keeps_positions => msr.output.places.len(),
        Some(()) => msr.output.filled,
    }
}

/// A take, the choosemsr steps after it, and how many devices those ask for together.
struct Block<'a> {
    take: i32,
    steps: &'a [Step],
    width: usize,
}

/// How many items a step chooses: 0 means as many as there are places.
fn strides(step: &Step, places: usize) -> Option<usize> {
    match step.arg1 {
        0 => Some(places),
        count => usize::try_from(count).ok(),
    }
}

/// Splits the first block off. `None` for a rule that is not made of blocks.
fn split(steps: &[Step], places: usize) -> Option<(Block<'_>, &[Step])> {
    let (first, rest) = steps.split_first()?;
    let len = rest.iter().position(|step| step.op != Op::ChooseMsr)?;
    let (choose, rest) = rest.split_at(len);
    let (emit, rest) = rest.split_first()?;
    if first.op != Op::Take || emit.op != Op::Emit || len > limits::MSR_STEPS {
        return None;
    }
    let width = choose.iter().try_fold(1_u32, |width, step| {
        width.checked_mul(u32::try_from(strides(step, places)?).ok()?)
    })?;
    Some((Block { take: first.arg1, steps: choose, width: width as usize }, rest))
}

/// The result.
struct Output<'o> {
    places: &'o mut [i32],
    keeps_positions: bool,
    filled: usize,
}

impl Output<'_> {
    fn emit(&mut self, position: usize, device: i32) {
        let place = if self.keeps_positions { position } else { self.filled };
        if let Some(slot) = self.places.get_mut(place) {
            *slot = device;
            self.filled += 1;
        }
    }
}

struct Msr<'a, 'o> {
    mapper: Mapper<'a>,
    output: Output<'o>,
    descents: u32,
    collision_tries: u32,
}

/// What one step of a block has chosen: for each stride, the items that its places use, and at the stride's first
/// place the item to take back at the end of this descent.
struct Used<'s> {
    items: &'s mut [i32],
    undo: &'s mut [i32],
}

impl Used<'_> {
    /// Whether a stride may use an item: no other stride in the range does.
    fn allows(&self, range: &Range<usize>, stride: &Range<usize>, item: i32) -> bool {
        let mut places = range.clone();
        let found = places.find(|&place| self.items[place] == item);
        found.is_none_or(|place| stride.contains(&place))
    }

    /// Notes that a stride uses an item. Returns whether that is new.
    fn push(&mut self, stride: &Range<usize>, item: i32) -> bool {
        let places = &mut self.items[stride.clone()];
        match places.iter_mut().find(|used| **used == item || **used == UNDECIDED) {
            Some(free) if *free == UNDECIDED => {
                *free = item;
                true
            }
            _ => false,
        }
    }

    /// Forgets the item that a stride noted last.
    fn pop(&mut self, stride: &Range<usize>) {
        let places = &mut self.items[stride.clone()];
        if let Some(last) = places.iter_mut().rfind(|used| **used != UNDECIDED) {
            *last = UNDECIDED;
        }
    }
}

/// One call of [`Msr::choose`]: the steps that are left, the bucket to choose in, the places to fill, and how many
/// devices the steps ask for, which may be more than there are places.
struct Level<'l> {
    steps: &'l [Step],
    bucket: &'l Ready,
    range: Range<usize>,
    width: usize,
    descent: u32,
}

impl Level<'_> {
    /// The strides of a length, numbered.
    fn strides(&self, len: usize) -> impl Iterator<Item = (u32, Range<usize>)> + use<> {
        let end = self.range.end;
        let starts = self.range.clone().step_by(len);
        (0..).zip(starts).map(move |(index, start)| (index, start..(start + len).min(end)))
    }
}

impl<'a> Msr<'a, '_> {
    fn blocks(&mut self, mut steps: &[Step], scratch: &mut Scratch) -> Option<()> {
        let places = self.output.places.len();
        let mut start = 0_usize;
        while !steps.is_empty() {
            let (block, rest) = split(steps, places)?;
            let end = start.saturating_add(block.width).min(places);
            if block.take >= 0 {
                if !block.steps.is_empty() {
                    return None;
                }
                self.output.emit(start, block.take);
            } else {
                self.block(&block, start..end, scratch)?;
            }
            start = end;
            steps = rest;
        }
        Some(())
    }

    /// Descends again and again, until the block's range is full.
    fn block(
        &mut self,
        block: &Block<'_>,
        range: Range<usize>,
        scratch: &mut Scratch,
    ) -> Option<()> {
        let bucket = self.mapper.map.ready(block.take)?;
        let (count, places) = (block.steps.len(), self.output.places.len());
        if count == 0 {
            return None;
        }
        let lists = scratch.lists(2 * count, places);
        lists.fill(UNDECIDED);
        let (items, undo) = lists.split_at_mut(count * places);
        let full = self.output.filled + range.len();
        for descent in 0..self.descents {
            if self.output.filled >= full || !self.mapper.spend(0) {
                break;
            }
            let (steps, range, width) = (block.steps, range.clone(), block.width);
            let level = Level { steps, bucket, range, width, descent };
            self.choose(&level, Used { items: &mut *items, undo: &mut *undo });
        }
        Some(())
    }

    /// Fills open places of a level. `used` holds this step's lists, followed by those of the steps after it.
    /// Returns how many places were filled.
    fn choose(&mut self, level: &Level<'_>, used: Used<'_>) -> usize {
        let places = self.output.places.len();
        let Some((step, below)) = level.steps.split_first() else { return 0 };
        let count = strides(step, places).unwrap_or(1).max(1);
        let len = (level.width / count).max(1);
        // The last step's list tells which places are open, since a firstn result is not in order of places.
        let leaf = below.len() * places;
        let Used { items, undo } = used;
        let (items, items_below) = items.split_at_mut(places);
        let (undo, undo_below) = undo.split_at_mut(places);
        let mut mine = Used { items, undo };
        let mut filled = 0;
        for (index, stride) in level.strides(len) {
            let leaves = match leaf.checked_sub(places) {
                Some(last) => &items_below[last..],
                None => &*mine.items,
            };
            if !leaves[stride.clone()].contains(&UNDECIDED) {
                continue;
            }
            let Some(candidate) = self.find(level, step, index, &stride, &mine) else { continue };
            match candidate {
                Drawn::Device(device) => {
                    let fits = len == 1 && below.is_empty();
                    if fits && !self.mapper.is_out(device) {
                        mine.push(&stride, device);
                        self.output.emit(stride.start, device);
                        filled += 1;
                    }
                }
                Drawn::Bucket(bucket) if !below.is_empty() => {
                    let (range, descent) = (stride.clone(), level.descent);
                    let inner = Level { steps: below, bucket, range, width: len, descent };
                    let used = Used { items: &mut *items_below, undo: &mut *undo_below };
                    let inside = self.choose(&inner, used);
                    if mine.push(&stride, bucket.id) && inside == 0 {
                        mine.undo[stride.start] = bucket.id;
                    } else {
                        filled += inside;
                    }
                }
                _ => {}
            }
        }
        // Items without a device collide until here, so that one device that is out disturbs the others less.
        for (_, stride) in level.strides(len) {
            if mine.undo[stride.start] != UNDECIDED {
                mine.undo[stride.start] = UNDECIDED;
                mine.pop(&stride);
            }
        }
        filled
    }

    /// Draws until an item of the step's type does not collide.
    fn find(
        &mut self,
        level: &Level<'_>,
        step: &Step,
        index: u32,
        stride: &Range<usize>,
        used: &Used<'_>,
    ) -> Option<Drawn<'a>> {
        let places = u32::try_from(self.output.places.len()).unwrap_or(u32::MAX);
        let total = level.descent.wrapping_mul(places).wrapping_add(index);
        for collision in 0..self.collision_tries {
            if !self.mapper.spend(0) {
                return None;
            }
            let r = (total << 16).wrapping_add(collision);
            let drawn = self.descend(level.bucket, step.arg2, r, index as usize);
            let item = match drawn {
                Drawn::Device(device) if step.arg2 == 0 => device,
                Drawn::Bucket(bucket) => bucket.id,
                _ => continue,
            };
            if used.allows(&level.range, stride, item) {
                return Some(drawn);
            }
        }
        None
    }

    /// Goes down to an item of a type, or to a device.
    fn descend(&mut self, bucket: &Ready, kind: i32, r: u32, position: usize) -> Drawn<'a> {
        let mut drawn = self.mapper.draw(bucket, r, position);
        while let Drawn::Bucket(inner) = drawn
            && inner.kind != kind
        {
            drawn = self.mapper.draw(inner, r, position);
        }
        drawn
    }
}
