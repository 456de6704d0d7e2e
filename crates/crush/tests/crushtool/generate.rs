//! Random maps: every kind of bucket, weight, tunable, class, override and rule.

use std::collections::BTreeMap;

use blockyard_crush::{Algorithm, Bucket, ChooseArg, MapData, Op, Rule, RuleKind, Step, Tunables};

use crate::random::Random;

const ONE: u32 = 0x1_0000;

/// A map in the making.
struct Maker<'r> {
    random: &'r mut Random,
    map: MapData,
    devices: Vec<i32>,
    /// Ids that no bucket has yet.
    ids: Vec<i32>,
    /// One algorithm for all buckets, or any.
    algorithm: Option<u8>,
    weigh: Weigh,
    style: Style,
}

/// What maps are asked to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Steps that choose; trees may have holes.
    Classic,
    /// Rules of multi-step retry; trees without holes, since Ceph asserts that there are none.
    Msr,
}

/// What devices weigh.
#[derive(Clone, Copy)]
enum Weigh {
    Same,
    Whole,
    Any,
    SomeNothing,
    Heavy,
}

/// A random map.
pub(crate) fn map(random: &mut Random, style: Style) -> MapData {
    let depth = random.i32(1..if style == Style::Msr { 4 } else { 5 });
    let mut ids: Vec<i32> = (-2000..0).collect();
    if random.once_in(2) {
        ids.drain(..1000);
        random.shuffle(&mut ids);
    }
    let (algorithm, weigh) = (kind_of_buckets(random), kind_of_weights(random));
    let map = MapData { tunables: tunables(random), ..MapData::default() };
    let most = if style == Style::Msr { 1000 } else { 400 };
    let mut devices: Vec<i32> = (0..random.i32(most - 100..most)).collect();
    if random.once_in(2) {
        random.shuffle(&mut devices);
    } else {
        devices.reverse();
    }
    let mut maker = Maker { random, map, devices, ids, algorithm, weigh, style };
    let roots = 1 + i32::from(maker.random.once_in(4));
    let roots: Vec<i32> = (0..roots).map(|_| maker.tree(depth).0).collect();
    maker.names(depth);
    let takes = maker.classes(&roots);
    maker.rules(&takes, depth);
    maker.choose_args();
    maker.map
}

fn kind_of_buckets(random: &mut Random) -> Option<u8> {
    match random.of(0..10) {
        0..4 => None,
        kind @ 4..9 => Some(kind as u8 - 3),
        _ => Some(5),
    }
}

fn kind_of_weights(random: &mut Random) -> Weigh {
    random.pick(&[Weigh::Same, Weigh::Whole, Weigh::Any, Weigh::SomeNothing, Weigh::Heavy])
}

fn tunables(random: &mut Random) -> Tunables {
    use Tunables as T;
    let profiles = [T::ARGONAUT, T::BOBTAIL, T::FIREFLY, T::HAMMER, T::JEWEL];
    if !random.once_in(4) {
        return random.pick(&profiles);
    }
    Tunables {
        choose_local_tries: random.u32(0..4),
        choose_local_fallback_tries: random.u32(0..6),
        choose_total_tries: random.u32(0..60),
        chooseleaf_descend_once: random.u32(0..2),
        chooseleaf_vary_r: random.u32(0..6) as u8,
        chooseleaf_stable: random.u32(0..2) as u8,
        ..Tunables::JEWEL
    }
}

impl Maker<'_> {
    fn device_weight(&mut self) -> u32 {
        match self.weigh {
            Weigh::Same => ONE,
            Weigh::Whole => self.random.u32(1..8) * ONE,
            Weigh::Any => self.random.u32(1..4 * ONE),
            Weigh::SomeNothing => self.random.u32(0..3) * ONE,
            Weigh::Heavy => self.random.u32(ONE..100 * ONE),
        }
    }

    /// A bucket of a type with all that is below it, and its weight.
    fn tree(&mut self, kind: i32) -> (i32, u32) {
        let holes = self.style == Style::Classic;
        let most = if kind == 1 { 12 } else { 7 };
        let size = if holes && self.random.once_in(25) { 0 } else { self.random.of(1..most) };
        let mut items = Vec::new();
        for _ in 0..size {
            if kind > 1 && !(holes && kind == 2 && self.random.once_in(40)) {
                // Sometimes a level is left out.
                let skip = holes && kind > 2 && self.random.once_in(20);
                items.push(self.tree(if skip { kind - 2 } else { kind - 1 }));
            } else if let Some(device) = self.devices.pop() {
                items.push((device, self.device_weight()));
            }
        }
        self.bucket(kind, &items)
    }

    fn bucket(&mut self, kind: i32, items: &[(i32, u32)]) -> (i32, u32) {
        let id = self.ids.pop().unwrap();
        let weights: Vec<u32> = items.iter().map(|item| item.1).collect();
        let weight: u32 = weights.iter().sum();
        let code = self.algorithm.unwrap_or_else(|| self.random.u32(1..6) as u8);
        let algorithm = algorithm(self.random, code, weights);
        let items: Vec<i32> = items.iter().map(|item| item.0).collect();
        let bucket = Bucket { id, kind: kind as u16, weight, items, algorithm };
        let index = usize::try_from(-1 - id).unwrap();
        if self.map.buckets.len() <= index {
            self.map.buckets.resize(index + 1, None);
        }
        self.map.buckets[index] = Some(bucket);
        (id, weight)
    }

    fn names(&mut self, depth: i32) {
        self.map.types = (0..=depth).map(|kind| (kind, format!("type{kind}"))).collect();
        let mut names = BTreeMap::new();
        for bucket in self.map.buckets.iter().flatten() {
            names.insert(bucket.id, format!("bucket{}", -bucket.id));
            let devices = bucket.items.iter().filter(|&&item| item >= 0);
            names.extend(devices.map(|&device| (device, format!("osd.{device}"))));
        }
        self.map.names = names;
    }

    /// Gives devices classes and buckets shadows, sometimes. Returns what rules may start from.
    fn classes(&mut self, roots: &[i32]) -> Vec<i32> {
        let mut takes = roots.to_vec();
        if self.style == Style::Msr || !self.random.once_in(3) {
            return takes;
        }
        self.map.class_names = BTreeMap::from([(0, "ssd".to_owned()), (3, "hdd".to_owned())]);
        let devices: Vec<i32> = self.map.names.range(0..).map(|(&device, _)| device).collect();
        for device in devices {
            let class = self.random.pick(&[0, 3, 3]);
            self.map.item_classes.insert(device, class);
        }
        for &root in roots {
            takes.extend([self.shadow(root, 0).0, self.shadow(root, 3).0]);
        }
        takes
    }

    fn shadow(&mut self, original: i32, class: i32) -> (i32, u32) {
        let Bucket { kind, items, .. } = self.map.bucket(original).unwrap().clone();
        let mut kept = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            if item < 0 {
                kept.push(self.shadow(item, class));
            } else if self.map.item_classes[&item] == class {
                let weight = self.map.bucket(original).unwrap().item_weight(index).unwrap();
                kept.push((item, weight));
            }
        }
        let (id, weight) = self.bucket(i32::from(kind), &kept);
        let class_name = &self.map.class_names[&class];
        let name = format!("{}~{class_name}", self.map.names[&original]);
        self.map.names.insert(id, name);
        self.map.item_classes.insert(id, class);
        self.map.shadows.entry(original).or_default().insert(class, id);
        (id, weight)
    }

    fn choose_args(&mut self) {
        if !self.random.once_in(3) {
            return;
        }
        let positions = self.random.of(1..5);
        let mut args = BTreeMap::new();
        for (index, bucket) in self.map.buckets.iter().enumerate() {
            let Some(Bucket { items, algorithm: Algorithm::Straw2 { .. }, .. }) = bucket else {
                continue;
            };
            if items.is_empty() || self.random.once_in(5) {
                continue;
            }
            let random = &mut *self.random;
            let mut arg = ChooseArg::default();
            if random.once_in(2) {
                arg.ids = items.iter().map(|_| random.i32(-5000..5000)).collect();
            }
            if arg.ids.is_empty() || random.once_in(2) {
                let set = |_| items.iter().map(|_| random.u32(0..3 * ONE)).collect();
                arg.weight_sets = (0..positions).map(set).collect();
            }
            args.insert(index as u32, arg);
        }
        // crushtool maps for pool 0, which falls back to -1; what is for pool 7 is not used.
        let pool = self.random.pick(&[0, 0, -1, -1, 7]);
        self.map.choose_args.insert(pool, args);
    }

    fn rules(&mut self, takes: &[i32], depth: i32) {
        for number in 0..self.random.i32(2..5) {
            let mut steps = Vec::new();
            let erasure = self.random.once_in(2);
            let blocks = self.random.pick(&[1, 1, 1, 2]);
            let kind = if self.style == Style::Msr {
                self.msr_settings(&mut steps);
                (0..blocks).for_each(|_| self.msr_block(&mut steps, takes, depth));
                if erasure { RuleKind::MsrIndep } else { RuleKind::MsrFirstn }
            } else {
                for _ in 0..self.random.pick(&[0, 0, 0, 1, 3]) {
                    steps.push(setting(self.random));
                }
                (0..blocks).for_each(|block| self.block(&mut steps, takes, depth, erasure, block));
                if erasure { RuleKind::Erasure } else { RuleKind::Replicated }
            };
            let ruleset = number as u8;
            self.map.rules.push(Some(Rule { ruleset, kind, min_size: 1, max_size: 10, steps }));
            self.map.rule_names.insert(number, format!("rule{number}"));
        }
    }

    fn msr_settings(&mut self, steps: &mut Vec<Step>) {
        for op in [Op::SetMsrDescents, Op::SetMsrCollisionTries] {
            if self.random.once_in(4) {
                steps.push(Step::new(op, self.random.pick(&[0, 1, 2, 10, 100]), 0));
            }
        }
    }

    /// Take, choosemsr for some types from the root down to the device, emit.
    fn msr_block(&mut self, steps: &mut Vec<Step>, takes: &[i32], depth: i32) {
        let random = &mut *self.random;
        steps.push(Step::new(Op::Take, random.pick(takes), 0));
        for kind in (1..depth).rev() {
            if random.once_in(2) {
                steps.push(Step::new(Op::ChooseMsr, random.pick(&[0, 1, 2, 3, 4]), kind));
            }
        }
        steps.push(Step::new(Op::ChooseMsr, random.pick(&[0, 1, 1, 2, 3, 4]), 0));
        steps.push(Step::new(Op::Emit, 0, 0));
    }

    /// Take, choose, emit.
    fn block(
        &mut self,
        steps: &mut Vec<Step>,
        takes: &[i32],
        depth: i32,
        erasure: bool,
        block: i32,
    ) {
        let random = &mut *self.random;
        if random.once_in(30) {
            let device = self.map.names.keys().copied().rfind(|&item| item >= 0).unwrap_or(0);
            steps.extend([Step::new(Op::Take, device, 0), Step::new(Op::Emit, 0, 0)]);
            return;
        }
        steps.push(Step::new(Op::Take, random.pick(takes), 0));
        let (mut choose, mut leaf) = (Op::ChooseFirstn, Op::ChooseleafFirstn);
        if erasure ^ random.once_in(8) {
            (choose, leaf) = (Op::ChooseIndep, Op::ChooseleafIndep);
        }
        // Types from the root's down, or types that are not below it, once in a while.
        let mut kind = if random.once_in(15) { depth + 1 } else { depth };
        let last = |random: &mut Random| match block {
            0 => random.pick(&[0, 0, 0, 0, 1, 2, 3]),
            _ => random.pick(&[0, -1, -1, -2, 1]),
        };
        while kind > 1 && random.once_in(2) {
            kind -= random.i32(1..3).min(kind - 1);
            steps.push(Step::new(choose, random.pick(&[0, 1, 2, 3, 4]), kind));
        }
        if kind > 0 && random.once_in(2) {
            let kind = random.i32(0..kind.max(1));
            let count = last(random);
            steps.push(Step::new(leaf, count, kind));
        } else {
            let count = last(random);
            steps.push(Step::new(choose, count, 0));
        }
        steps.push(Step::new(Op::Emit, 0, 0));
    }
}

fn setting(random: &mut Random) -> Step {
    let op = random.pick(&[
        Op::SetChooseTries,
        Op::SetChooseleafTries,
        Op::SetChooseLocalTries,
        Op::SetChooseLocalFallbackTries,
        Op::SetChooseleafVaryR,
        Op::SetChooseleafStable,
        Op::Noop,
    ]);
    let high = if matches!(op, Op::SetChooseTries | Op::SetChooseleafTries) { 100 } else { 5 };
    Step::new(op, random.i32(0..high), 0)
}

/// A bucket's numbers, as Ceph computes them but for the lengths of straws, which may be any.
fn algorithm(random: &mut Random, code: u8, weights: Vec<u32>) -> Algorithm {
    let total: u32 = weights.iter().sum();
    match code {
        1 => Algorithm::Uniform { item_weight: weights.first().copied().unwrap_or(0) },
        2 => {
            let running = |sum: &mut u32, weight: &u32| {
                *sum += weight;
                Some(*sum)
            };
            let sums = weights.iter().scan(0, running).collect();
            Algorithm::List { weights, sums }
        }
        // Ceph's trees choose items that are not there when nothing weighs anything.
        3 if total > 0 => Algorithm::Tree { node_weights: tree(&weights) },
        4 => {
            let straws = weights.iter().map(|&weight| straw(random, weight)).collect();
            Algorithm::Straw { weights, straws }
        }
        _ => Algorithm::Straw2 { weights },
    }
}

fn straw(random: &mut Random, weight: u32) -> u32 {
    if weight == 0 { 0 } else { weight / 2 + random.u32(0..ONE) }
}

/// Node weights: leaves are the odd nodes, and a node's weight is that of the two below.
fn tree(weights: &[u32]) -> Vec<u32> {
    let nodes = 2 * weights.len().next_power_of_two();
    let mut node_weights = vec![0; nodes];
    for (item, &weight) in weights.iter().enumerate() {
        let mut node = 2 * item + 1;
        node_weights[node] += weight;
        let mut half = 1;
        while node != nodes / 2 {
            // A node ends in a 1 and zeroes, one more per level; the bit before says on which side of its parent it
            // is.
            node = if node & (2 * half) == 0 { node + half } else { node - half };
            half *= 2;
            node_weights[node] += weight;
        }
    }
    node_weights
}
