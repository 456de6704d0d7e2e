//! What a disk in an image can take.

use blockyard_blkmq::{BlockSize, Features, Limits};
use blockyard_rbd::format::Layout;

/// Objects of one discard: some tens of milliseconds where each is a commit.
const OBJECTS_A_DISCARD: u64 = 16;
/// The longest transfer: that of the largest objects.
const MAX_TRANSFER: u64 = 32 << 20;
/// What a store keeps of an object is in pages of a file system, or of an OSD.
const PAGE: u32 = 4096;

/// Limits of images of a layout.
#[must_use]
pub fn limits(layout: &Layout, read_only: bool) -> Limits {
    // Without stripes an object is one piece of the image; with them, a unit is.
    let piece = match layout.stripes() {
        (_, 1) => layout.object_bytes(),
        (unit, _) => unit,
    };
    let sectors = |bytes: u64| u32::try_from(bytes >> 9).unwrap_or(u32::MAX);
    // Units may be as short as one likes: no request is shorter than a page.
    let is_chunk = piece.is_power_of_two() && piece >= u64::from(PAGE);
    let longest = if is_chunk { piece } else { MAX_TRANSFER };
    let mut limits = Limits {
        physical_block_size: BlockSize::B4096,
        io_min: PAGE,
        io_opt: u32::try_from(layout.object_bytes()).unwrap_or(PAGE),
        max_hw_sectors: sectors(longest),
        chunk_sectors: if is_chunk { sectors(piece) } else { 0 },
        max_segments: u16::MAX,
        max_segment_size: u32::MAX,
        features: Features::BLOCK_STATUS | Features::OWN_MEMORY,
        ..Limits::default()
    };
    if !read_only {
        limits.features |= Features::WRITE_CACHE;
        limits.discard_granularity = PAGE;
        limits.max_hw_discard_sectors = sectors(layout.object_bytes() * OBJECTS_A_DISCARD);
        limits.max_write_zeroes_sectors = sectors(longest);
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_valid_and_requests_end_with_objects() {
        for layout in [
            Layout::new(12).unwrap(),
            Layout::new(22).unwrap(),
            Layout::new(25).unwrap(),
            Layout::striped(22, 65536, 16).unwrap(),
            Layout::striped(22, 512, 3).unwrap(),
        ] {
            for read_only in [false, true] {
                let limits = limits(&layout, read_only).validate().unwrap();
                assert_eq!(limits.max_discard_sectors == 0, read_only);
                if layout.stripes().1 == 1 {
                    assert_eq!(u64::from(limits.chunk_sectors) << 9, layout.object_bytes());
                }
            }
        }
    }
}
