//! `choose_args`: what a pool hashes and weighs in the place of a bucket's own ids and weights.

use std::collections::BTreeMap;

use crate::data::ChooseArg;
use crate::{lanes, straw2};

/// The overrides of one pool, prepared; from [`CrushMap::choose_args`](crate::CrushMap::choose_args).
#[derive(Debug)]
pub struct ChooseArgs {
    /// By the bucket's index, in order.
    buckets: Vec<(usize, Override)>,
}

#[derive(Debug)]
struct Override {
    ids: Option<Box<[u32]>>,
    weights: Vec<straw2::Weights>,
}

impl ChooseArgs {
    pub(crate) fn new(args: &BTreeMap<u32, ChooseArg>) -> Self {
        let prepare = |(&index, arg): (&u32, &ChooseArg)| {
            let ids = (!arg.ids.is_empty()).then(|| lanes::ids(&arg.ids));
            let weights = arg.weight_sets.iter().map(|set| straw2::Weights::new(set)).collect();
            (index as usize, Override { ids, weights })
        };
        Self { buckets: args.iter().map(prepare).collect() }
    }

    /// The ids to hash in a bucket, and the weights to draw with at a position of the result, where they are
    /// overridden.
    #[inline]
    pub(crate) fn of(
        &self,
        index: usize,
        position: usize,
    ) -> (Option<&[u32]>, Option<&straw2::Weights>) {
        match self.buckets.binary_search_by_key(&index, |&(index, _)| index) {
            Ok(found) => {
                let Override { ids, weights } = &self.buckets[found].1;
                (ids.as_deref(), weights.get(position).or(weights.last()))
            }
            Err(_) => (None, None),
        }
    }
}
