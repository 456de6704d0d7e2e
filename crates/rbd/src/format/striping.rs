//! Where an image's bytes are (ceph: `src/osdc/Striper.cc`, `doc/dev/file-striping.rst`).

use crate::error::{Error, Result};
use std::ops::Range;

/// The smallest and the largest order of an image (ceph: `src/librbd/internal.cc`).
pub const MIN_ORDER: u8 = 12;
/// See [`MIN_ORDER`].
pub const MAX_ORDER: u8 = 25;

/// How an image is cut: into units, which go round over some objects until these are full; then to the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    order: u8,
    /// Bytes of a unit: divides an object.
    unit: u64,
    /// Objects of a set.
    count: u64,
}

/// A range of one object, and which bytes of the image it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectExtent {
    /// The object's number.
    pub object: u64,
    /// From here on in it.
    pub offset: u64,
    /// So many bytes.
    pub length: u64,
    /// The first of them in the image.
    pub image_offset: u64,
}

impl Layout {
    /// A layout of objects of 2^`order` bytes, one after the other.
    ///
    /// # Errors
    /// The order is not from 12 to 25.
    pub fn new(order: u8) -> Result<Self> {
        if !(MIN_ORDER..=MAX_ORDER).contains(&order) {
            return Err(Error::bad(format!(
                "the order of an image is {MIN_ORDER} to {MAX_ORDER} (objects of 4 KiB to 32 MiB), not {order}"
            )));
        }
        Ok(Self { order, unit: 1 << order, count: 1 })
    }

    /// A layout with stripes.
    ///
    /// # Errors
    /// As [`new`](Self::new); or the unit does not divide an object, or there are no objects in a set, or too many.
    pub fn striped(order: u8, unit: u64, count: u64) -> Result<Self> {
        let layout = Self::new(order)?;
        let object = layout.object_bytes();
        if unit == 0 || unit > object || object % unit != 0 {
            return Err(Error::bad(format!(
                "the stripe unit divides the object size of {object} bytes; {unit} does not"
            )));
        }
        if count == 0 || count > u64::from(u32::MAX) {
            return Err(Error::bad(format!("the stripe count is 1 to 2^32 - 1, not {count}")));
        }
        Ok(Self { unit, count, ..layout })
    }

    /// The order.
    #[must_use]
    pub const fn order(&self) -> u8 {
        self.order
    }

    /// Bytes of an object.
    #[must_use]
    pub const fn object_bytes(&self) -> u64 {
        1 << self.order
    }

    /// Bytes of a unit, and objects of a set.
    #[must_use]
    pub const fn stripes(&self) -> (u64, u64) {
        (self.unit, self.count)
    }

    /// Objects of an image of so many bytes: more than the number of the last one that has some of them.
    #[must_use]
    pub fn objects(&self, size: u64) -> u64 {
        // As wide as a set of the largest objects can be.
        let set = u128::from(self.object_bytes()) * u128::from(self.count);
        let (size, count) = (u128::from(size), u128::from(self.count));
        let rest = size % set;
        let unused = match rest {
            0 => 0,
            rest => count.saturating_sub(rest.div_ceil(u128::from(self.unit))),
        };
        u64::try_from(size.div_ceil(set) * count - unused).unwrap_or(u64::MAX)
    }

    fn place(&self, image_offset: u64) -> (u64, u64) {
        let (block, in_unit) = (image_offset / self.unit, image_offset % self.unit);
        let (stripe, position) = (block / self.count, block % self.count);
        let per_object = self.object_bytes() / self.unit;
        let object = stripe / per_object * self.count + position;
        (object, stripe % per_object * self.unit + in_unit)
    }

    /// The image's byte that an object has at an offset. `None` if that is behind the largest image.
    #[must_use]
    pub fn image_offset(&self, object: u64, offset: u64) -> Option<u64> {
        let (set, position) = (object / self.count, object % self.count);
        let per_object = self.object_bytes() / self.unit;
        let stripe = set.checked_mul(per_object)?.checked_add(offset / self.unit)?;
        let block = stripe.checked_mul(self.count)?.checked_add(position)?;
        block.checked_mul(self.unit)?.checked_add(offset % self.unit)
    }

    /// The objects' ranges that a range of the image is in, in its order. Neighbours in one object are one.
    pub fn extents(&self, range: Range<u64>) -> impl Iterator<Item = ObjectExtent> + use<> {
        let layout = *self;
        // Without stripes a piece ends with its object only.
        let piece = if layout.count == 1 { layout.object_bytes() } else { layout.unit };
        let mut at = range.start;
        std::iter::from_fn(move || {
            let left = range.end.checked_sub(at).filter(|left| *left > 0)?;
            let (object, offset) = layout.place(at);
            let length = left.min(piece - at % piece);
            let extent = ObjectExtent { object, offset, length, image_offset: at };
            at += length;
            Some(extent)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extents(layout: &Layout, range: Range<u64>) -> Vec<(u64, u64, u64)> {
        layout.extents(range).map(|extent| (extent.object, extent.offset, extent.length)).collect()
    }

    #[test]
    fn without_stripes_objects_follow_each_other() {
        let layout = Layout::new(22).unwrap();
        assert_eq!(extents(&layout, 0..4096), [(0, 0, 4096)]);
        let last = 4 << 20;
        assert_eq!(extents(&layout, last - 1..last + 2), [(0, last - 1, 1), (1, 0, 2)]);
        let units = Layout::striped(22, 65536, 1).unwrap();
        assert_eq!(extents(&units, 0..1 << 20), [(0, 0, 1 << 20)]);
        assert_eq!((layout.objects(0), layout.objects(1), layout.objects(last)), (0, 1, 1));
    }

    /// The example of doc/man/8/rbd.rst: units of 64 KiB over 16 objects of 4 MiB.
    #[test]
    fn stripes_go_round() {
        let layout = Layout::striped(22, 65536, 16).unwrap();
        assert_eq!(extents(&layout, 65535..65537), [(0, 65535, 1), (1, 0, 1)]);
        assert_eq!(extents(&layout, 16 * 65536..16 * 65536 + 1), [(0, 65536, 1)]);
        assert_eq!(extents(&layout, 64 << 20..(64 << 20) + 1), [(16, 0, 1)]);
        assert_eq!((layout.objects(1), layout.objects(65537), layout.objects(1 << 20)), (1, 2, 16));
        assert_eq!(layout.objects((64 << 20) + 1), 17);
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        assert!(Layout::new(11).is_err() && Layout::new(26).is_err());
        for (unit, count) in [(0, 1), (4097, 1), (8192, 1), (512, 0), (512, 1 << 32)] {
            assert!(Layout::striped(12, unit, count).is_err(), "{unit} {count}");
        }
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        (12_u8..=25, 0_u8..8, 1_u64..40).prop_map(|(order, smaller, count)| {
            Layout::striped(order, 1 << (order - smaller), count).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_range_is_cut_without_gaps_and_each_byte_has_its_place(
            layout in layouts(), start in 0_u64..1 << 50, length in 0_u64..1 << 26,
        ) {
            let mut at = start;
            for extent in layout.extents(start..start + length).take(4096) {
                prop_assert_eq!(extent.image_offset, at);
                prop_assert!(extent.length > 0 && extent.offset + extent.length <= layout.object_bytes());
                for byte in [0, extent.length - 1] {
                    let back = layout.image_offset(extent.object, extent.offset + byte);
                    prop_assert_eq!(back, Some(at + byte));
                }
                prop_assert!(extent.object < layout.objects(at + extent.length));
                at += extent.length;
            }
        }

        #[test]
        fn the_last_object_has_a_byte_of_the_image(layout in layouts(), size in 1_u64..1 << 50) {
            let last = layout.objects(size) - 1;
            prop_assert!(layout.image_offset(last, 0).unwrap() < size);
        }

        #[test]
        fn nothing_overflows(layout in layouts(), object: u64, offset: u64) {
            let offset = offset % layout.object_bytes();
            if let Some(at) = layout.image_offset(object, offset).filter(|at| *at < u64::MAX) {
                let found: Vec<_> = layout.extents(at..at + 1).collect();
                let expected = ObjectExtent { object, offset, length: 1, image_offset: at };
                prop_assert_eq!(found, vec![expected]);
            }
            prop_assert!(layout.objects(u64::MAX) > 0);
        }
    }
}
