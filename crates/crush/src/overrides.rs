//! `choose_args`: what a pool hashes and weighs in the place of a bucket's own ids and weights.

use std::collections::BTreeMap;

use crate::data::ChooseArg;
use crate::straw2;

/// The overrides of one pool, prepared; from [`CrushMap::choose_args`](crate::CrushMap::choose_args).
#[derive(Debug)]
pub struct ChooseArgs {
    buckets: Vec<Option<Override>>,
}

#[derive(Debug)]
struct Override {
    ids: Option<straw2::Ids>,
    weights: Vec<straw2::Weights>,
}

impl ChooseArgs {
    pub(crate) fn new(args: &BTreeMap<u32, ChooseArg>, buckets: usize) -> Self {
        let mut prepared: Vec<Option<Override>> = (0..buckets).map(|_| None).collect();
        for (&index, arg) in args {
            if let Some(slot) = prepared.get_mut(index as usize) {
                *slot = Some(Override {
                    ids: (!arg.ids.is_empty()).then(|| straw2::ids(&arg.ids)),
                    weights: arg.weight_sets.iter().map(|set| straw2::weights(set)).collect(),
                });
            }
        }
        Self { buckets: prepared }
    }

    /// The ids to hash in a bucket, if they are overridden.
    #[inline]
    pub(crate) fn ids(&self, index: usize) -> Option<&straw2::Ids> {
        self.buckets.get(index)?.as_ref()?.ids.as_ref()
    }

    /// The weights of a bucket at a position of the result, if they are overridden.
    #[inline]
    pub(crate) fn weights(&self, index: usize, position: usize) -> Option<&straw2::Weights> {
        let sets = &self.buckets.get(index)?.as_ref()?.weights;
        sets.get(position).or(sets.last())
    }
}
