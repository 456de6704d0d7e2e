//! Memory that mappings share, so that none allocates.

/// What [`CrushMap::do_rule`](crate::CrushMap::do_rule) works in: one per thread. It grows to what the longest result
/// needs, and keeps that.
#[derive(Debug, Default)]
pub struct Scratch {
    items: Vec<i32>,
}

impl Scratch {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Three lists of a length: what a step starts from, what it chose, and the devices below that.
    pub(super) fn three(&mut self, len: usize) -> [&mut [i32]; 3] {
        let (first, rest) = self.lists(3, len).split_at_mut(len);
        let (second, third) = rest.split_at_mut(len);
        [first, second, third]
    }

    /// So many lists of a length, one after the other, with anything in them.
    pub(super) fn lists(&mut self, lists: usize, len: usize) -> &mut [i32] {
        let total = lists * len;
        if self.items.len() < total {
            self.items.resize(total, 0);
        }
        &mut self.items[..total]
    }
}
