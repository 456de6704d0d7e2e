//! Where items are in the tree.

use std::collections::BTreeSet;

use crate::data::MapData;
use crate::map::CrushMap;

/// Every item with each bucket that holds it, in order.
#[derive(Debug)]
pub(crate) struct Parents {
    /// (item, index of the holder).
    held: Vec<(i32, usize)>,
}

impl Parents {
    pub(crate) fn new(data: &MapData) -> Self {
        let buckets = data.buckets.iter().enumerate();
        let mut held: Vec<(i32, usize)> = buckets
            .filter_map(|(index, slot)| Some((index, slot.as_ref()?)))
            .flat_map(|(index, bucket)| bucket.items.iter().map(move |&item| (item, index)))
            .collect();
        held.sort_unstable();
        held.dedup();
        Self { held }
    }

    fn of(&self, item: i32) -> impl Iterator<Item = usize> {
        let from = self.held.partition_point(|&(held, _)| held < item);
        self.held[from..]
            .iter()
            .take_while(move |&&(held, _)| held == item)
            .map(|&(_, index)| index)
    }
}

impl CrushMap {
    /// The buckets that hold an item, those of shadow trees too.
    pub fn parents(&self, item: i32) -> impl Iterator<Item = i32> {
        self.parents.of(item).filter_map(|index| Some(self.buckets.get(index)?.as_ref()?.id))
    }

    /// The bucket that holds an item, shadow trees aside; the one with the lowest index, should there be several.
    #[must_use]
    pub fn parent(&self, item: i32) -> Option<i32> {
        self.parents(item).find(|&parent| !self.is_shadow(parent))
    }

    /// The buckets around an item, from the innermost out; shadow trees aside.
    pub fn ancestors(&self, item: i32) -> impl Iterator<Item = i32> {
        std::iter::successors(self.parent(item), |&bucket| self.parent(bucket))
    }

    /// The bucket of a type around an item.
    #[must_use]
    pub fn ancestor(&self, item: i32, kind: i32) -> Option<i32> {
        self.ancestors(item).find(|&bucket| self.kind(bucket) == Some(kind))
    }

    /// Type and name of each bucket around an item, from the innermost out: `host` `a`, `root` `default`
    /// (`CrushWrapper::get_full_location_ordered`). Those without a name are left out.
    pub fn location(&self, item: i32) -> impl Iterator<Item = (&str, &str)> {
        self.ancestors(item)
            .filter_map(|bucket| Some((self.kind_name(self.kind(bucket)?)?, self.name(bucket)?)))
    }

    /// The items in a bucket.
    #[must_use]
    pub fn children(&self, bucket: i32) -> &[i32] {
        self.ready(bucket).map_or(&[], |bucket| &bucket.items)
    }

    /// An item and all items below it.
    #[must_use]
    pub fn subtree(&self, item: i32) -> BTreeSet<i32> {
        let mut found = BTreeSet::from([item]);
        let mut open = vec![item];
        while let Some(item) = open.pop() {
            let new = self.children(item).iter().filter(|&&child| found.insert(child));
            open.extend(new);
        }
        found
    }

    /// Whether an item is another, or somewhere below it.
    #[must_use]
    pub fn contains(&self, item: i32, other: i32) -> bool {
        self.subtree(item).contains(&other)
    }

    /// The devices below an item, in order.
    #[must_use]
    pub fn devices(&self, item: i32) -> Vec<i32> {
        self.subtree(item).range(0..).copied().collect()
    }

    /// The buckets that nothing holds, shadow trees aside.
    pub fn roots(&self) -> impl Iterator<Item = i32> {
        let buckets = self.buckets.iter().flatten().map(|bucket| bucket.id);
        buckets.filter(|&id| self.parents.of(id).next().is_none() && !self.is_shadow(id))
    }
}
