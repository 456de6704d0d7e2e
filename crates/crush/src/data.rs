//! A map as plain data: what the bytes say, field by field.

use std::collections::BTreeMap;

use crate::rule::Rule;
use crate::tunables::Tunables;

/// The first word of an encoded map.
pub const MAGIC: u32 = 0x0001_0000;

/// Everything that an encoded map holds. [`CrushMap::new`](crate::CrushMap::new) checks it and makes it usable.
///
/// Items are devices (numbers from 0, the OSD's) or buckets (negative numbers). Weights are 16.16 fixed point:
/// 0x10000 is 1.0, by convention 1 TiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapData {
    /// The buckets; the one at index i has the id -1 - i.
    pub buckets: Vec<Option<Bucket>>,
    /// The rules, by their number.
    pub rules: Vec<Option<Rule>>,
    /// One more than the highest device. Checking raises it to what the items and names need, as Ceph does.
    pub max_devices: i32,
    /// How hard to try, and how.
    pub tunables: Tunables,
    /// Names of the types of buckets; type 0 is the device.
    pub types: BTreeMap<i32, String>,
    /// Names of devices and buckets.
    pub names: BTreeMap<i32, String>,
    /// Names of rules.
    pub rule_names: BTreeMap<i32, String>,
    /// The class of each device, and of each bucket of a shadow tree.
    pub item_classes: BTreeMap<i32, i32>,
    /// Names of device classes (`hdd`, `ssd`).
    pub class_names: BTreeMap<i32, String>,
    /// Per bucket and class, the shadow bucket that holds the bucket's devices of that class only.
    pub shadows: BTreeMap<i32, BTreeMap<i32, i32>>,
    /// Overrides of ids and weights, by pool (or -1 for all other pools) and by the bucket's index.
    pub choose_args: BTreeMap<i64, BTreeMap<u32, ChooseArg>>,
}

/// A bucket: items, and how one of them is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Negative; -1 - its index.
    pub id: i32,
    /// Its type (host, rack); never 0, which is the device.
    pub kind: u16,
    /// Its total weight, 16.16.
    pub weight: u32,
    /// What is in it.
    pub items: Vec<i32>,
    /// How it draws, and the numbers that it needs for that.
    pub algorithm: Algorithm,
}

/// How a bucket draws an item. Each list is as long as the bucket's items, but for the tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// A permutation of items that all weigh the same.
    Uniform {
        /// What each item weighs, 16.16.
        item_weight: u32,
    },
    /// A walk from the newest item to the oldest.
    List {
        /// What each item weighs, 16.16.
        weights: Vec<u32>,
        /// What it and all before it weigh together.
        sums: Vec<u32>,
    },
    /// A binary tree; item i is node 2i + 1.
    Tree {
        /// What lies below each node, 16.16; as many as the tree has nodes, a power of two of at most 128.
        node_weights: Vec<u32>,
    },
    /// The longest straw, whose length follows from all weights.
    Straw {
        /// What each item weighs, 16.16.
        weights: Vec<u32>,
        /// The factor of its draws, 16.16.
        straws: Vec<u32>,
    },
    /// The longest straw, where an item's length follows from its weight alone.
    Straw2 {
        /// What each item weighs, 16.16.
        weights: Vec<u32>,
    },
}

impl Algorithm {
    /// Its number in an encoded map, `CRUSH_BUCKET_*` of Ceph's `src/crush/crush.h`.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Uniform { .. } => 1,
            Self::List { .. } => 2,
            Self::Tree { .. } => 3,
            Self::Straw { .. } => 4,
            Self::Straw2 { .. } => 5,
        }
    }
}

impl Bucket {
    /// The weight of an item of this bucket, 16.16; `None` beyond its end.
    #[must_use]
    pub fn item_weight(&self, index: usize) -> Option<u32> {
        match &self.algorithm {
            Algorithm::Uniform { item_weight } => {
                self.items.get(index).is_some().then_some(*item_weight)
            }
            Algorithm::List { weights, .. }
            | Algorithm::Straw { weights, .. }
            | Algorithm::Straw2 { weights } => weights.get(index).copied(),
            Algorithm::Tree { node_weights } => node_weights.get(2 * index + 1).copied(),
        }
    }
}

/// What the balancer overrides in one straw2 bucket, for one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChooseArg {
    /// Ids to hash in the place of the items'; none, or one per item.
    pub ids: Vec<i32>,
    /// Weights to draw with per position of the result, 16.16; the last list serves all later positions.
    pub weight_sets: Vec<Vec<u32>>,
}
