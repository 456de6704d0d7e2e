//! Drawing an item from a bucket: `bucket_*_choose` of Ceph's `src/crush/mapper.c`.

use crate::check::index_of;
use crate::data::{Algorithm, Bucket};
use crate::hash::{LANES, hash3_each, hash4_each, hash32_3, hash32_4};
use crate::ln::Negated;
use crate::overrides::ChooseArgs;
use crate::straw2;

/// A bucket with what its draws need, laid out for them.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) id: i32,
    pub(crate) kind: i32,
    pub(crate) items: Box<[i32]>,
    pub(crate) method: Method,
}

#[derive(Debug)]
pub(crate) enum Method {
    Uniform,
    List {
        ids: straw2::Ids,
        /// Weights, and sums of weights up to each; 0 for what fills up the last lanes, so that it is never taken.
        weights: Box<[[(u32, u32); LANES]]>,
    },
    /// Weights below each node.
    Tree(Box<[u32]>),
    Straw {
        ids: straw2::Ids,
        straws: Box<[[u32; LANES]]>,
    },
    Straw2 {
        ids: straw2::Ids,
        weights: straw2::Weights,
    },
}

/// What is drawn for.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'a> {
    pub(crate) x: u32,
    /// The attempt: r of Ceph's source.
    pub(crate) r: u32,
    /// The position of the result, which chooses a weight set.
    pub(crate) position: usize,
    pub(crate) choose_args: Option<&'a ChooseArgs>,
    pub(crate) logarithms: &'a Negated,
}

impl Ready {
    pub(crate) fn new(bucket: &Bucket) -> Self {
        let method = match &bucket.algorithm {
            Algorithm::Uniform { .. } => Method::Uniform,
            Algorithm::List { weights, sums } => {
                let pairs: Vec<_> = weights.iter().copied().zip(sums.iter().copied()).collect();
                Method::List { ids: straw2::ids(&bucket.items), weights: in_lanes(&pairs) }
            }
            Algorithm::Tree { node_weights } => Method::Tree(node_weights.clone().into()),
            Algorithm::Straw { straws, .. } => {
                Method::Straw { ids: straw2::ids(&bucket.items), straws: in_lanes(straws) }
            }
            Algorithm::Straw2 { weights } => Method::Straw2 {
                ids: straw2::ids(&bucket.items),
                weights: straw2::weights(weights),
            },
        };
        let items = bucket.items.clone().into();
        Self { id: bucket.id, kind: i32::from(bucket.kind), items, method }
    }

    /// An item; `None` if there is none to draw.
    #[inline]
    pub(crate) fn choose(&self, draw: Draw<'_>) -> Option<i32> {
        let Draw { x, r, .. } = draw;
        let index = match &self.method {
            Method::Straw2 { ids, weights } => self.straw2(ids, weights, draw),
            Method::Straw { ids, straws } => straw(ids, straws, x, r),
            Method::Uniform => return self.permuted(x, r),
            Method::List { ids, weights } => self.list(ids, weights, x, r),
            Method::Tree(weights) => self.tree(weights, x, r),
        };
        self.items.get(index).copied()
    }

    #[inline]
    fn straw2(&self, ids: &straw2::Ids, weights: &straw2::Weights, draw: Draw<'_>) -> usize {
        let (mut ids, mut weights) = (ids, weights);
        if let Some(args) = draw.choose_args {
            let index = index_of(self.id).unwrap_or(usize::MAX);
            let (other_ids, other_weights) = args.of(index, draw.position);
            ids = other_ids.unwrap_or(ids);
            weights = other_weights.unwrap_or(weights);
        }
        straw2::choose(draw.logarithms, ids, weights, draw.x, draw.r)
    }

    /// From the newest item to the oldest: an item is taken with the probability of its weight among those left.
    fn list(&self, ids: &[[u32; LANES]], weights: &[[(u32, u32); LANES]], x: u32, r: u32) -> usize {
        let id = self.id.cast_unsigned();
        for (chunk, (ids, weights)) in ids.iter().zip(weights).enumerate().rev() {
            let hashes = hash4_each(x, ids, r, id);
            let taken = hashes.iter().zip(weights).rposition(|(hash, &(weight, sum))| {
                (u64::from(hash & 0xffff) * u64::from(sum)) >> 16 < u64::from(weight)
            });
            if let Some(lane) = taken {
                return chunk * LANES + lane;
            }
        }
        0
    }

    /// From the root, which is the middle node, down to a leaf, which is odd: half of the way to the left or right.
    fn tree(&self, weights: &[u32], x: u32, r: u32) -> usize {
        let weight = |node: usize| u64::from(weights.get(node).copied().unwrap_or(0));
        let mut node = weights.len() >> 1;
        while node & 1 == 0 && node != 0 {
            let half = 1 << (node.trailing_zeros() - 1);
            // At most MAX_TREE_NODES.
            #[allow(clippy::cast_possible_truncation)]
            let hash = hash32_4(x, node as u32, r, self.id.cast_unsigned());
            let point = (u64::from(hash) * weight(node)) >> 32;
            node = if point < weight(node - half) { node - half } else { node + half };
        }
        node >> 1
    }

    /// Item number `r` of a random permutation of the bucket.
    ///
    /// The permutation swaps each position p in turn with a later one, p + hash(p) % (size - p). Only one position is
    /// asked for, so nothing is stored: what ends up there is traced back through the swaps.
    pub(crate) fn permuted(&self, x: u32, r: u32) -> Option<i32> {
        let size = u32::try_from(self.items.len()).ok()?;
        let wanted = r.checked_rem(size)?;
        let swapped_with = |p: u32| p + hash32_3(x, self.id.cast_unsigned(), p) % (size - p);
        let mut from = swapped_with(wanted);
        for p in (0..wanted).rev() {
            if swapped_with(p) == from {
                from = p;
            }
        }
        self.items.get(from as usize).copied()
    }
}

/// The first of the longest straws.
fn straw(ids: &[[u32; LANES]], straws: &[[u32; LANES]], x: u32, r: u32) -> usize {
    let (mut winner, mut longest) = (0, 0);
    for (chunk, (ids, straws)) in ids.iter().zip(straws).enumerate() {
        let hashes = hash3_each(x, ids, r);
        for lane in 0..LANES {
            let length = u64::from(hashes[lane] & 0xffff) * u64::from(straws[lane]);
            if length > longest {
                longest = length;
                winner = chunk * LANES + lane;
            }
        }
    }
    winner
}

fn in_lanes<T: Copy + Default>(all: &[T]) -> Box<[[T; LANES]]> {
    let chunk = |chunk: &[T]| {
        let mut lanes = [T::default(); LANES];
        lanes[..chunk.len()].copy_from_slice(chunk);
        lanes
    };
    all.chunks(LANES).map(chunk).collect()
}
