//! What the kernel is told of a disk.

use blockyard_blkmq::{Bdev, Features, Limits, SECTOR_SHIFT};
use blockyard_sys::ublk::{Attributes, BasicParams, DiscardParams};

use crate::error::{Error, ErrorKind};

/// A kernel's disk has blocks of a page at most.
const MAX_BLOCK: u32 = 4096;

/// Says how the kernel is to see a disk whose requests are at most `max_io_bytes` long.
pub(crate) fn params(
    bdev: &Bdev,
    max_io_bytes: u32,
) -> Result<(BasicParams, DiscardParams), Error> {
    let limits = bdev.limits();
    let block = limits.logical_block_size.bytes();
    if block > MAX_BLOCK {
        let what = format!(
            "{} has blocks of {block} bytes; the kernel supports at most {MAX_BLOCK}: use block={MAX_BLOCK}",
            bdev.name()
        );
        return Err(Error::new(ErrorKind::Unsuitable, what));
    }
    let sectors = size(bdev);
    if sectors == 0 {
        let what = format!("{} is empty: the kernel needs at least one block", bdev.name());
        return Err(Error::new(ErrorKind::Unsuitable, what));
    }
    Ok((basic(&limits, bdev.is_read_only(), sectors, max_io_bytes), discard(&limits)))
}

/// How large it is, in whole blocks.
pub(crate) fn size(bdev: &Bdev) -> u64 {
    let sectors = bdev.capacity().0;
    sectors - sectors % bdev.limits().logical_block_size.sectors()
}

fn basic(limits: &Limits, read_only: bool, sectors: u64, max_io_bytes: u32) -> BasicParams {
    let mut attributes = Attributes::empty();
    attributes.set(Attributes::READ_ONLY, read_only);
    let has = |feature| limits.features.contains(feature);
    attributes.set(Attributes::ROTATIONAL, has(Features::ROTATIONAL));
    attributes.set(Attributes::VOLATILE_CACHE, has(Features::WRITE_CACHE));
    attributes.set(Attributes::FUA, has(Features::WRITE_CACHE) && has(Features::FUA));
    let mut max_sectors = limits.max_sectors.min(max_io_bytes >> SECTOR_SHIFT);
    max_sectors -= max_sectors % (limits.logical_block_size.bytes() >> SECTOR_SHIFT);
    // No chunk: the block layer cuts what crosses a boundary, and the kernel refuses sizes that are no power of
    // two.
    let mut basic = BasicParams::default().with_attributes(attributes);
    basic.logical_block_shift = shift(limits.logical_block_size.bytes());
    basic.physical_block_shift = shift(limits.physical_block_size.bytes());
    basic.io_opt_shift = shift(limits.io_opt);
    basic.io_min_shift = shift(limits.io_min);
    basic.max_sectors = max_sectors;
    basic.dev_sectors = sectors;
    basic
}

fn discard(limits: &Limits) -> DiscardParams {
    let mut discard = DiscardParams::default();
    discard.alignment = limits.discard_alignment;
    discard.granularity = limits.discard_granularity;
    discard.max_discard_sectors = limits.max_discard_sectors;
    discard.max_write_zeroes_sectors = limits.max_write_zeroes_sectors;
    discard.max_segments = u16::from(limits.max_discard_sectors > 0);
    discard
}

/// The power of two that is not above `bytes`; 0 for none at all.
fn shift(bytes: u32) -> u8 {
    u8::try_from(bytes.checked_ilog2().unwrap_or(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::BlockSize;

    use super::*;

    #[test]
    fn what_a_disk_can_do_reaches_the_kernel() {
        let limits = Limits {
            logical_block_size: BlockSize::B4096,
            physical_block_size: BlockSize::B4096,
            io_min: 4096,
            io_opt: 1 << 20,
            max_hw_sectors: 1 << 20,
            max_hw_discard_sectors: 1 << 16,
            max_write_zeroes_sectors: 1 << 16,
            features: Features::WRITE_CACHE | Features::FUA | Features::ROTATIONAL,
            ..Limits::default()
        };
        let limits = limits.validate().unwrap();
        let params = basic(&limits, true, 800, 512 << 10);
        assert_eq!((params.logical_block_shift, params.physical_block_shift), (12, 12));
        assert_eq!((params.io_min_shift, params.io_opt_shift), (12, 20));
        assert_eq!((params.max_sectors, params.dev_sectors), (1024, 800));
        assert_eq!(params.attributes(), Attributes::all());
        let discard = discard(&limits);
        assert_eq!((discard.max_discard_sectors, discard.max_segments), (1 << 16, 1));
        assert_eq!(discard.granularity, 4096);
    }

    #[test]
    fn what_it_cannot_do_is_not_promised() {
        let limits = Limits { features: Features::FUA, ..Limits::default() };
        let params = basic(&limits.clone(), false, 8, 512 << 10);
        assert_eq!(params.attributes(), Attributes::empty());
        assert_eq!(params.io_opt_shift, 0);
        let discard = discard(&limits);
        assert_eq!((discard.max_discard_sectors, discard.max_segments), (0, 0));
        assert_eq!(discard.max_write_zeroes_sectors, 0);
    }
}
