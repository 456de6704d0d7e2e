//! Limits of a disk that stands on other disks (kernel: `blk_stack_limits`).

use super::{Features, Limits, NO_BOUNDARY, PAGE_SECTORS};
use crate::units::{BlockSize, SECTOR_SHIFT, Sector};

/// Whether a disk's alignment could be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Stacked {
    /// The blocks of the disk above fall on blocks of the one below.
    Aligned,
    /// They do not; [`Limits::misaligned`] is set. It works, but slower than it could.
    Misaligned,
}

impl Limits {
    /// No limits yet: what a disk starts with before [`Limits::stack`] is called for every disk below (kernel:
    /// `blk_set_stacking_limits`).
    #[must_use]
    pub fn stacking() -> Self {
        Self {
            max_hw_sectors: u32::MAX,
            max_sectors: u32::MAX,
            max_segments: u16::MAX,
            max_segment_size: u32::MAX,
            max_write_zeroes_sectors: u32::MAX,
            ..Self::default()
        }
    }

    /// Narrows the limits to what the disk `below` can take, of which sector `start` is the first that is used.
    ///
    /// The block sizes and `io_min` become the larger ones, `io_opt` and the alignments the least common
    /// multiple, `chunk_sectors` the greatest common divisor, the maxima the smaller ones. The features NOWAIT
    /// and POLL are kept only where all disks below have them; those of the data path (write cache, FUA,
    /// rotational, stable writes) are taken over. When all disks are stacked, [`Limits::validate`] rounds the
    /// rest to the blocks that came out.
    pub fn stack(&mut self, below: &Self, start: Sector) -> Stacked {
        self.stack_features(below);
        let mut aligned = self.stack_alignment(below, start);
        self.stack_maxima(below);
        aligned &= self.settle_blocks();
        let physical = self.physical_block_size.bytes();
        self.alignment_offset = lcm(self.alignment_offset, below.alignment_offset_at(start))
            % physical.max(self.io_min);
        aligned &= self.logical_block_size.divides(self.alignment_offset.into());
        self.stack_discard(below, start);
        if aligned {
            Stacked::Aligned
        } else {
            self.misaligned = true;
            Stacked::Misaligned
        }
    }

    /// How far sector `at` is from the next place that is aligned to the larger of the physical block and
    /// `io_min`, in bytes: the `alignment_offset` of a partition that starts there (kernel:
    /// `queue_limit_alignment_offset`).
    #[must_use]
    pub fn alignment_offset_at(&self, at: Sector) -> u32 {
        let unit = self.physical_block_size.bytes().max(self.io_min);
        offset_in(unit, self.alignment_offset, at)
    }

    /// The `discard_alignment` of a partition that starts at sector `at`, in bytes (kernel:
    /// `queue_limit_discard_alignment`).
    #[must_use]
    pub fn discard_alignment_at(&self, at: Sector) -> u32 {
        if self.max_discard_sectors == 0 || self.discard_granularity == 0 {
            return 0;
        }
        offset_in(self.discard_granularity, self.discard_alignment, at)
    }

    fn stack_features(&mut self, below: &Self) {
        self.features |= below.features & Features::INHERITED;
        let both = Features::NOWAIT | Features::POLL;
        self.features.remove(both.difference(below.features));
        self.misaligned |= below.misaligned;
    }

    /// Whether the alignment of the disk below fits the one so far.
    fn stack_alignment(&self, below: &Self, start: Sector) -> bool {
        let alignment = below.alignment_offset_at(start);
        if self.alignment_offset == alignment {
            return true;
        }
        let interval = |limits: &Self, offset: u32| {
            u64::from(limits.physical_block_size.bytes().max(limits.io_min)) + u64::from(offset)
        };
        let (top, bottom) = (interval(self, self.alignment_offset), interval(below, alignment));
        top.max(bottom) % top.min(bottom) == 0
    }

    fn stack_maxima(&mut self, below: &Self) {
        self.logical_block_size = self.logical_block_size.max(below.logical_block_size);
        self.physical_block_size = self.physical_block_size.max(below.physical_block_size);
        self.io_min = self.io_min.max(below.io_min);
        self.io_opt = lcm(self.io_opt, below.io_opt);
        self.dma_alignment = self.dma_alignment.max(below.dma_alignment);
        if below.chunk_sectors != 0 {
            self.chunk_sectors = gcd(self.chunk_sectors.into(), below.chunk_sectors.into());
        }
        let block = self.logical_block_size;
        let whole = |sectors: u32| (sectors - sectors % sectors_of(block)).max(PAGE_SECTORS);
        self.max_sectors = whole(min_not_zero(self.max_sectors, below.max_sectors));
        self.max_hw_sectors = whole(min_not_zero(self.max_hw_sectors, below.max_hw_sectors));
        self.max_user_sectors = min_some(self.max_user_sectors, below.max_user_sectors);
        self.max_write_zeroes_sectors =
            self.max_write_zeroes_sectors.min(below.max_write_zeroes_sectors);
        self.max_secure_erase_sectors =
            min_not_zero(self.max_secure_erase_sectors, below.max_secure_erase_sectors);
        self.max_segments = match (self.max_segments, below.max_segments) {
            (0, max) | (max, 0) => max,
            (above, below) => above.min(below),
        };
        self.max_segment_size = min_not_zero(self.max_segment_size, below.max_segment_size);
        self.seg_boundary_mask =
            min_mask(self.seg_boundary_mask, below.seg_boundary_mask).unwrap_or(NO_BOUNDARY);
        self.virt_boundary_mask =
            min_mask(self.virt_boundary_mask, below.virt_boundary_mask).unwrap_or(0);
    }

    /// Whether the larger sizes are still multiples of the smaller ones; what is not is reset.
    fn settle_blocks(&mut self) -> bool {
        let physical = self.physical_block_size;
        let mut aligned = true;
        if !physical.divides(self.io_min.into()) {
            self.io_min = physical.bytes();
            aligned = false;
        }
        if !physical.divides(self.io_opt.into()) {
            self.io_opt = 0;
            aligned = false;
        }
        if !physical.divides(u64::from(self.chunk_sectors) << SECTOR_SHIFT) {
            self.chunk_sectors = 0;
            aligned = false;
        }
        aligned
    }

    fn stack_discard(&mut self, below: &Self, start: Sector) {
        if below.discard_granularity == 0 {
            return;
        }
        self.max_discard_sectors =
            min_not_zero(self.max_discard_sectors, below.max_discard_sectors);
        self.max_hw_discard_sectors =
            min_not_zero(self.max_hw_discard_sectors, below.max_hw_discard_sectors);
        self.max_user_discard_sectors =
            min_some(self.max_user_discard_sectors, below.max_user_discard_sectors);
        self.discard_granularity = self.discard_granularity.max(below.discard_granularity);
        self.discard_alignment = lcm(self.discard_alignment, below.discard_alignment_at(start))
            % self.discard_granularity;
    }
}

fn sectors_of(block: BlockSize) -> u32 {
    block.bytes() >> SECTOR_SHIFT
}

/// Bytes from `at` to the next multiple of `unit` that is shifted by `shift`, modulo `unit`. In sectors, as the
/// kernel computes.
fn offset_in(unit: u32, shift: u32, at: Sector) -> u32 {
    let into = at.bytes() % u64::from(unit);
    let offset = (u64::from(unit) + u64::from(shift) - into) % u64::from(unit);
    u32::try_from(offset).unwrap_or(0)
}

fn gcd(a: u64, b: u64) -> u32 {
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    u32::try_from(a).unwrap_or(u32::MAX)
}

/// The least common multiple; the other one where one is 0; 0 where it is too large to mean anything.
fn lcm(a: u32, b: u32) -> u32 {
    if a == 0 || b == 0 {
        return a | b;
    }
    u32::try_from(u64::from(a / gcd(a.into(), b.into())) * u64::from(b)).unwrap_or(0)
}

fn min_not_zero(a: u32, b: u32) -> u32 {
    if a == 0 || b == 0 { a | b } else { a.min(b) }
}

fn min_some(a: Option<u32>, b: Option<u32>) -> Option<u32> {
    a.into_iter().chain(b).min()
}

fn min_mask(a: usize, b: usize) -> Option<usize> {
    [a, b].into_iter().filter(|&mask| mask != 0).min()
}
