//! What must hold of a map before it can place anything.

use crate::data::{Algorithm, Bucket, MapData};
use crate::error::{Error, Result};
use crate::{limits, tree};

/// The index of a bucket's id: -1 - id. `None` for a device.
#[inline]
pub(crate) fn index_of(item: i32) -> Option<usize> {
    // For a negative number, !item is -1 - item.
    if item < 0 { usize::try_from(!item).ok() } else { None }
}

impl MapData {
    /// The bucket with an id, if there is one.
    #[must_use]
    pub fn bucket(&self, id: i32) -> Option<&Bucket> {
        self.buckets.get(index_of(id)?)?.as_ref()
    }

    /// Raises the number of devices as `CrushWrapper::finalize` does, and drops or fits overrides that do not match
    /// their bucket, as `CrushWrapper::update_choose_args` does.
    pub(crate) fn finalize(&mut self) -> Result<()> {
        let items = self.buckets.iter().flatten().flat_map(|bucket| &bucket.items);
        let highest = items.chain(self.names.keys()).copied().max().unwrap_or(-1);
        self.max_devices = highest.max(-1).saturating_add(1);
        let mut missing = 0_usize;
        for args in self.choose_args.values_mut() {
            args.retain(|&index, arg| {
                let bucket = self.buckets.get(index as usize).and_then(Option::as_ref);
                let Some(Bucket { items, algorithm: Algorithm::Straw2 { .. }, .. }) = bucket else {
                    return false;
                };
                for weights in &mut arg.weight_sets {
                    missing += items.len().saturating_sub(weights.len());
                    if missing <= limits::MISSING_WEIGHTS {
                        weights.resize(items.len(), 0);
                    }
                }
                !arg.ids.is_empty() || !arg.weight_sets.is_empty()
            });
        }
        if missing <= limits::MISSING_WEIGHTS {
            return Ok(());
        }
        Err(Error::inconsistent(format!(
            "weight sets lack {missing} weights of their buckets' items"
        )))
    }

    /// Checks that ids, items and lists fit together and that no bucket is inside of itself.
    pub(crate) fn check(&self) -> Result<()> {
        for (index, bucket) in self.buckets.iter().enumerate() {
            let Some(bucket) = bucket else { continue };
            if index_of(bucket.id) != Some(index) {
                return Err(Error::inconsistent(format!("bucket {} is number {index}", bucket.id)));
            }
            self.check_bucket(bucket)?;
        }
        for args in self.choose_args.values() {
            for (&index, arg) in args {
                let bucket = self.buckets.get(index as usize).and_then(Option::as_ref);
                let size = bucket.map_or(0, |bucket| bucket.items.len());
                if !arg.ids.is_empty() && arg.ids.len() != size {
                    let ids = arg.ids.len();
                    let subject = format!("{ids} ids override {size} items of bucket {index}");
                    return Err(Error::inconsistent(subject));
                }
            }
        }
        self.check_cycles()
    }

    fn check_bucket(&self, bucket: &Bucket) -> Result<()> {
        let Bucket { id, items, .. } = bucket;
        if bucket.kind == 0 {
            return Err(Error::inconsistent(format!("bucket {id} has the type of devices")));
        }
        if let Some(item) = items.iter().find(|&&item| item < 0 && self.bucket(item).is_none()) {
            return Err(Error::inconsistent(format!(
                "bucket {id} holds {item}, which is not there"
            )));
        }
        let fits = match &bucket.algorithm {
            Algorithm::Uniform { .. } => true,
            Algorithm::List { weights, sums: second }
            | Algorithm::Straw { weights, straws: second } => {
                weights.len() == items.len() && second.len() == items.len()
            }
            Algorithm::Straw2 { weights } => weights.len() == items.len(),
            Algorithm::Tree { node_weights } => {
                let nodes = node_weights.len();
                let is_tree = nodes.is_power_of_two() && nodes >= 2 * items.len();
                items.is_empty() || (is_tree && nodes <= tree::MAX_NODES)
            }
        };
        if fits {
            return Ok(());
        }
        let subject = format!("the weights of bucket {id} do not match its {} items", items.len());
        Err(Error::inconsistent(subject))
    }

    /// Takes away buckets that nothing holds until none is left; what stays holds itself.
    fn check_cycles(&self) -> Result<()> {
        let mut holders = vec![0_u32; self.buckets.len()];
        let children = |bucket: &Bucket| -> Vec<usize> {
            bucket.items.iter().filter_map(|&item| index_of(item)).collect()
        };
        for bucket in self.buckets.iter().flatten() {
            children(bucket).into_iter().for_each(|child| holders[child] += 1);
        }
        let there = |index: &usize| self.buckets[*index].is_some();
        let mut free: Vec<usize> =
            (0..holders.len()).filter(there).filter(|&i| holders[i] == 0).collect();
        let mut left = self.buckets.iter().flatten().count();
        while let Some(index) = free.pop() {
            left -= 1;
            for child in self.buckets[index].as_ref().map(children).unwrap_or_default() {
                holders[child] -= 1;
                if holders[child] == 0 {
                    free.push(child);
                }
            }
        }
        if left == 0 {
            return Ok(());
        }
        Err(Error::inconsistent(format!("{left} buckets are inside of one another in a circle")))
    }
}
