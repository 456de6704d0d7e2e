//! Names of items, types, rules and classes, both ways.

use crate::data::MapData;
use crate::map::CrushMap;

/// Items in the order of their names.
#[derive(Debug)]
pub(crate) struct Names {
    items: Vec<i32>,
}

impl Names {
    pub(crate) fn new(data: &MapData) -> Self {
        let mut items: Vec<i32> = data.names.keys().copied().collect();
        items.sort_by(|a, b| data.names.get(a).cmp(&data.names.get(b)));
        Self { items }
    }
}

impl CrushMap {
    /// The item of a name.
    #[must_use]
    pub fn item(&self, name: &str) -> Option<i32> {
        let items = &self.names.items;
        let name_of = |item: &i32| self.name(*item).unwrap_or_default();
        let found = items.binary_search_by(|item| name_of(item).cmp(name)).ok()?;
        items.get(found).copied()
    }

    /// The name of an item.
    #[must_use]
    pub fn name(&self, item: i32) -> Option<&str> {
        self.data.names.get(&item).map(String::as_str)
    }

    /// The type of an item: 0 for a device; `None` for a bucket that is not there.
    #[must_use]
    pub fn kind(&self, item: i32) -> Option<i32> {
        if item >= 0 { Some(0) } else { self.ready(item).map(|bucket| bucket.kind) }
    }

    /// The name of a type (`host`).
    #[must_use]
    pub fn kind_name(&self, kind: i32) -> Option<&str> {
        self.data.types.get(&kind).map(String::as_str)
    }

    /// The type of a name.
    #[must_use]
    pub fn kind_named(&self, name: &str) -> Option<i32> {
        let found = self.data.types.iter().find(|(_, known)| *known == name)?;
        Some(*found.0)
    }

    /// The rule of a name.
    #[must_use]
    pub fn rule_named(&self, name: &str) -> Option<u32> {
        let found = self.data.rule_names.iter().find(|(_, known)| *known == name)?;
        u32::try_from(*found.0).ok()
    }

    /// The name of a rule.
    #[must_use]
    pub fn rule_name(&self, rule: u32) -> Option<&str> {
        self.data.rule_names.get(&i32::try_from(rule).ok()?).map(String::as_str)
    }

    /// The device class of a name (`ssd`).
    #[must_use]
    pub fn class_named(&self, name: &str) -> Option<i32> {
        let found = self.data.class_names.iter().find(|(_, known)| *known == name)?;
        Some(*found.0)
    }

    /// The name of a device class.
    #[must_use]
    pub fn class_name(&self, class: i32) -> Option<&str> {
        self.data.class_names.get(&class).map(String::as_str)
    }

    /// The class of a device, or of a bucket of a shadow tree.
    #[must_use]
    pub fn class_of(&self, item: i32) -> Option<i32> {
        self.data.item_classes.get(&item).copied()
    }

    /// The devices of a class, in order.
    pub fn devices_of_class(&self, class: i32) -> impl Iterator<Item = i32> {
        let devices = self.data.item_classes.range(0..);
        devices.filter(move |(_, of)| **of == class).map(|(&device, _)| device)
    }

    /// The bucket of the shadow tree that holds a bucket's devices of one class.
    #[must_use]
    pub fn shadow(&self, bucket: i32, class: i32) -> Option<i32> {
        self.data.shadows.get(&bucket)?.get(&class).copied()
    }

    /// The bucket and the class that a bucket of a shadow tree stands for.
    #[must_use]
    pub fn shadow_of(&self, shadow: i32) -> Option<(i32, i32)> {
        self.data.shadows.iter().find_map(|(&bucket, shadows)| {
            let (&class, _) = shadows.iter().find(|(_, id)| **id == shadow)?;
            Some((bucket, class))
        })
    }

    /// Whether a bucket belongs to a shadow tree; their names have a `~` in them (`default~ssd`).
    #[must_use]
    pub fn is_shadow(&self, item: i32) -> bool {
        self.name(item).is_some_and(|name| name.contains('~'))
    }
}
