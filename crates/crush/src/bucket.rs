//! Drawing an item from a bucket: `bucket_*_choose` of Ceph's `src/crush/mapper.c`.

use pulp::{Arch, Simd, WithSimd};

use crate::check::index_of;
use crate::data::{Algorithm, Bucket};
use crate::ln::Negated;
use crate::overrides::ChooseArgs;
use crate::{lanes, list, straw, straw2, tree, uniform};

/// A bucket with what its draws need, laid out for them.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) id: i32,
    pub(crate) kind: i32,
    pub(crate) items: Box<[i32]>,
    pub(crate) method: Method,
}

/// How a bucket draws; ids are as they are hashed.
#[derive(Debug)]
pub(crate) enum Method {
    Uniform,
    List {
        ids: Box<[u32]>,
        weights: list::Weights,
    },
    /// Weights below each node.
    Tree(Box<[u32]>),
    Straw {
        ids: Box<[u32]>,
        straws: straw::Straws,
    },
    Straw2 {
        ids: Box<[u32]>,
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
    pub(crate) arch: Arch,
}

impl Ready {
    pub(crate) fn new(bucket: &Bucket) -> Self {
        let ids = || lanes::ids(&bucket.items);
        let method = match &bucket.algorithm {
            Algorithm::Uniform { .. } => Method::Uniform,
            Algorithm::List { weights, sums } => {
                Method::List { ids: ids(), weights: list::Weights::new(weights, sums) }
            }
            Algorithm::Tree { node_weights } => Method::Tree(node_weights.clone().into()),
            Algorithm::Straw { straws, .. } => {
                Method::Straw { ids: ids(), straws: straw::Straws::new(straws) }
            }
            Algorithm::Straw2 { weights } => {
                Method::Straw2 { ids: ids(), weights: straw2::Weights::new(weights) }
            }
        };
        let items = bucket.items.clone().into();
        Self { id: bucket.id, kind: i32::from(bucket.kind), items, method }
    }

    /// An item; `None` if there is none to draw.
    #[inline]
    pub(crate) fn choose(&self, draw: Draw<'_>) -> Option<i32> {
        if let [only] = *self.items {
            return Some(only);
        }
        let index = draw.arch.dispatch(Choice { bucket: self, draw });
        self.items.get(index).copied()
    }

    /// Item number `r` of a random permutation of the bucket, whatever its algorithm is.
    pub(crate) fn permuted(&self, x: u32, r: u32) -> Option<i32> {
        let index = uniform::choose(self.items.len(), self.id.cast_unsigned(), x, r);
        self.items.get(index).copied()
    }
}

/// The index of the item that is drawn, to be computed with the best instructions that there are.
struct Choice<'a> {
    bucket: &'a Ready,
    draw: Draw<'a>,
}

impl WithSimd for Choice<'_> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        let Self { bucket, draw } = self;
        let (id, Draw { x, r, .. }) = (bucket.id.cast_unsigned(), draw);
        match &bucket.method {
            Method::Straw2 { ids, weights } => {
                let (mut ids, mut weights) = (&**ids, weights);
                if let Some(args) = draw.choose_args {
                    let index = index_of(bucket.id).unwrap_or(usize::MAX);
                    let (other_ids, other_weights) = args.of(index, draw.position);
                    ids = other_ids.unwrap_or(ids);
                    weights = other_weights.unwrap_or(weights);
                }
                straw2::choose(draw.logarithms, ids, weights, x, r)
            }
            Method::Straw { ids, straws } => straw::choose(ids, straws, x, r),
            Method::Uniform => uniform::choose(bucket.items.len(), id, x, r),
            Method::List { ids, weights } => list::choose(ids, weights, id, x, r),
            Method::Tree(weights) => tree::choose(weights, id, x, r),
        }
    }
}
