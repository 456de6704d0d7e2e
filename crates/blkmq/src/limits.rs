//! What a disk can take: block sizes, the largest request of every kind, memory constraints, and features.
//!
//! The names and the rules are the kernel's `struct queue_limits` (`include/linux/blkdev.h`,
//! `block/blk-settings.c`). A driver fills in what it knows over [`Limits::default`], [`Limits::validate`]
//! completes and checks it, [`Limits::stack`] narrows a disk that stands on others, and [`Limits::split_at`]
//! says where an operation that is too large has to be cut.

mod split;
mod stack;

pub use stack::Stacked;

use crate::units::{BlockSize, SECTOR_SHIFT};

/// Bytes of a page: every disk takes at least one page in one request, and in one segment.
pub const PAGE_SIZE: u32 = 4096;
/// Sectors of a page.
pub const PAGE_SECTORS: u32 = PAGE_SIZE >> SECTOR_SHIFT;
/// `max_hw_sectors` of a driver that says nothing (kernel: `BLK_SAFE_MAX_SECTORS`).
pub const SAFE_MAX_SECTORS: u32 = 255;
/// What `max_sectors` is capped at unless a user or the disk's geometry asks for more: 4 MiB (kernel:
/// `BLK_DEF_MAX_SECTORS_CAP` as of Linux 6.16).
pub const MAX_SECTORS_CAP: u32 = (4 << 20) >> SECTOR_SHIFT;
/// `max_segments` of a driver that says nothing (kernel: `BLK_MAX_SEGMENTS`).
pub const MAX_SEGMENTS: u16 = 128;
/// `max_segment_size` of a driver that says nothing (kernel: `BLK_MAX_SEGMENT_SIZE`).
pub const MAX_SEGMENT_SIZE: u32 = 65536;
/// No boundary within memory that a segment may not cross.
pub const NO_BOUNDARY: usize = usize::MAX;

bitflags::bitflags! {
    /// What a disk can do (kernel: `BLK_FEAT_*`, and the queue flag `NOMERGES`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Features: u32 {
        /// A completed write may be lost until a flush.
        const WRITE_CACHE = 1 << 0;
        /// Writes can be durable one by one, with no flush. Means nothing without [`Features::WRITE_CACHE`] or
        /// [`Features::NO_FLUSH`].
        const FUA = 1 << 1;
        /// Seeking costs time.
        const ROTATIONAL = 1 << 2;
        /// The driver never waits where it was asked not to.
        const NOWAIT = 1 << 3;
        /// Completions can be polled for.
        const POLL = 1 << 4;
        /// Memory of a write must not change until it completes.
        const STABLE_WRITES = 1 << 5;
        /// Never merge, even where it were possible.
        const NOMERGES = 1 << 6;
        /// The driver answers [`crate::Op::BlockStatus`]; else all of the disk counts as data.
        const BLOCK_STATUS = 1 << 7;
        /// The driver does something about [`crate::Op::Prefetch`]; else it is nothing to do.
        const PREFETCH = 1 << 8;
        /// A read that leaves the memory to the driver is answered with memory that the disk has anyway: nothing is
        /// copied for it.
        const OWN_MEMORY = 1 << 9;
        /// Nothing can be made durable: what is below has no flush, or does not tell of it. A flush fails, and so does a
        /// write that is to be durable when it ends, unless the driver has [`Features::FUA`].
        const NO_FLUSH = 1 << 10;
        /// A write may have a range of a file in place of memory ([`crate::Bio::write_range`]), if it need not be cut.
        const FILE_RANGES = 1 << 11;
    }
}

impl Features {
    /// What a stacked disk has as soon as one of the disks below has it (kernel: `BLK_FEAT_INHERIT_MASK`).
    const INHERITED: Self = Self::WRITE_CACHE
        .union(Self::FUA)
        .union(Self::ROTATIONAL)
        .union(Self::STABLE_WRITES)
        .union(Self::NO_FLUSH);
}

/// Limits of a disk's queue.
///
/// Sectors are of 512 bytes, always; fields whose name does not say sectors are in bytes. Fields marked
/// *computed* are overwritten by [`Limits::validate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The smallest unit that can be addressed.
    pub logical_block_size: BlockSize,
    /// The smallest unit that can be written without reading first. Never below the logical block size.
    pub physical_block_size: BlockSize,
    /// The smallest preferred size of an operation. Never below the physical block size.
    pub io_min: u32,
    /// The preferred size of long transfers, 0 if there is none.
    pub io_opt: u32,
    /// How far sector 0 is from the natural alignment of the medium below.
    pub alignment_offset: u32,
    /// *Computed*: no alignment fits all disks below.
    pub misaligned: bool,
    /// The longest read or write that the driver takes; 0 for [`SAFE_MAX_SECTORS`].
    pub max_hw_sectors: u32,
    /// What a user set as the longest read or write (sysfs: `max_sectors_kb`).
    pub max_user_sectors: Option<u32>,
    /// *Computed*: the longest read or write that is made.
    pub max_sectors: u32,
    /// The most segments of one request; 0 for [`MAX_SEGMENTS`].
    pub max_segments: u16,
    /// The longest segment; 0 for [`MAX_SEGMENT_SIZE`].
    pub max_segment_size: u32,
    /// A segment may not cross an address that is a multiple of this plus 1; [`NO_BOUNDARY`] or 0 if there is
    /// none.
    pub seg_boundary_mask: usize,
    /// All segments but the first start, and all but the last end, at multiples of this plus 1; 0 if there is
    /// no such rule.
    pub virt_boundary_mask: usize,
    /// The address of memory has none of these bits set. 0, any address will do, is the default: unlike in the
    /// kernel (511) a driver's memory is user space's.
    pub dma_alignment: u32,
    /// No read, write or write-zeroes crosses a multiple of this many sectors; 0 if there is no such rule.
    pub chunk_sectors: u32,
    /// The longest discard that the driver takes; 0 if it takes none.
    pub max_hw_discard_sectors: u32,
    /// What a user set as the longest discard (sysfs: `discard_max_bytes`).
    pub max_user_discard_sectors: Option<u32>,
    /// *Computed*: the longest discard that is made.
    pub max_discard_sectors: u32,
    /// Discards are best made of whole units of this many bytes. Never below the physical block size.
    pub discard_granularity: u32,
    /// How far sector 0 is from the start of a unit of `discard_granularity`.
    pub discard_alignment: u32,
    /// The longest secure erase; 0 if there is none.
    pub max_secure_erase_sectors: u32,
    /// The longest write-zeroes; 0 if there is none.
    pub max_write_zeroes_sectors: u32,
    /// What the disk can do.
    pub features: Features,
}

impl Default for Limits {
    /// The limits of a driver that says nothing: valid as they are (kernel: `blk_set_default_limits`).
    fn default() -> Self {
        Self {
            logical_block_size: BlockSize::B512,
            physical_block_size: BlockSize::B512,
            io_min: 512,
            io_opt: 0,
            alignment_offset: 0,
            misaligned: false,
            max_hw_sectors: SAFE_MAX_SECTORS,
            max_user_sectors: None,
            max_sectors: SAFE_MAX_SECTORS,
            max_segments: MAX_SEGMENTS,
            max_segment_size: MAX_SEGMENT_SIZE,
            seg_boundary_mask: NO_BOUNDARY,
            virt_boundary_mask: 0,
            dma_alignment: 0,
            chunk_sectors: 0,
            max_hw_discard_sectors: 0,
            max_user_discard_sectors: None,
            max_discard_sectors: 0,
            discard_granularity: 512,
            discard_alignment: 0,
            max_secure_erase_sectors: 0,
            max_write_zeroes_sectors: 0,
            features: Features::empty(),
        }
    }
}

/// Limits that no disk can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A request has to hold a page and a logical block.
    #[error(
        "a request of at most {max} sectors holds no {need} of them, a page or a logical block"
    )]
    MaxSectors {
        /// What was asked for.
        max: u32,
        /// The least that is possible.
        need: u32,
    },
    /// A user's limit has to leave room for a page and a logical block.
    #[error("{max} sectors set by the user are less than {need}, a page or a logical block")]
    UserSectors {
        /// What was asked for.
        max: u32,
        /// The least that is possible.
        need: u32,
    },
    /// A segment has to hold a page.
    #[error("a segment of {0} bytes holds no page")]
    SegmentSize(u32),
    /// A boundary within a page would break all usual requests.
    #[error("the segment boundary mask {0:#x} is smaller than a page")]
    SegBoundary(usize),
    /// A mask has all of its low bits set.
    #[error("{0:#x} is not a mask: not a power of two minus one")]
    NotAMask(usize),
    /// Memory aligned to a page is aligned enough for every disk.
    #[error("DMA alignment mask {0:#x} is larger than a page")]
    DmaAlignment(u32),
    /// Requests that end at the end of a chunk end at the end of a block.
    #[error("chunks of {0} sectors are not whole logical blocks")]
    Chunk(u32),
}

impl Limits {
    /// Checks the limits, completes what was left at 0, and computes what depends on others (kernel:
    /// `blk_validate_limits`).
    ///
    /// Raised to what they cannot be below: `physical_block_size`, `io_min`, `discard_granularity`. Rounded
    /// down to whole blocks: `io_opt` and all maxima, so that a discard, a secure erase or a write-zeroes of
    /// less than a block is not supported at all. FUA goes where nothing needs it.
    ///
    /// # Errors
    ///
    /// [`LimitsError`], one kind for each rule that cannot be met by completing.
    pub fn validate(mut self) -> Result<Self, LimitsError> {
        let block = self.logical_block_size;
        self.physical_block_size = self.physical_block_size.max(block);
        let physical = self.physical_block_size.bytes();
        self.io_min = self.io_min.max(physical);
        self.io_opt -= self.io_opt % physical;
        self.validate_sectors()?;
        self.validate_segments()?;
        if !self.chunk_sectors.is_multiple_of(block.bytes() >> SECTOR_SHIFT) {
            return Err(LimitsError::Chunk(self.chunk_sectors));
        }
        let whole = |sectors: u32| sectors - sectors % (block.bytes() >> SECTOR_SHIFT);
        let user = self.max_user_discard_sectors.unwrap_or(u32::MAX);
        self.max_hw_discard_sectors = whole(self.max_hw_discard_sectors);
        self.max_discard_sectors = whole(self.max_hw_discard_sectors.min(user));
        self.max_secure_erase_sectors = whole(self.max_secure_erase_sectors);
        self.max_write_zeroes_sectors = whole(self.max_write_zeroes_sectors);
        self.discard_granularity = self.discard_granularity.max(physical);
        if self.alignment_offset != 0 {
            self.alignment_offset &= physical - 1;
            self.misaligned = false;
        }
        if !self.features.intersects(Features::WRITE_CACHE | Features::NO_FLUSH) {
            self.features.remove(Features::FUA);
        }
        Ok(self)
    }

    /// `max_hw_sectors` and what follows from it.
    fn validate_sectors(&mut self) -> Result<(), LimitsError> {
        let block_sectors = self.logical_block_size.bytes() >> SECTOR_SHIFT;
        let need = block_sectors.max(PAGE_SECTORS);
        if self.max_hw_sectors == 0 {
            self.max_hw_sectors = SAFE_MAX_SECTORS;
        }
        if self.max_hw_sectors < need {
            return Err(LimitsError::MaxSectors { max: self.max_hw_sectors, need });
        }
        self.max_hw_sectors -= self.max_hw_sectors % block_sectors;
        let wanted = match self.max_user_sectors {
            Some(max) if max < need => return Err(LimitsError::UserSectors { max, need }),
            Some(max) => max,
            None => {
                MAX_SECTORS_CAP.max(self.io_min >> SECTOR_SHIFT).max(self.io_opt >> SECTOR_SHIFT)
            }
        };
        let max = self.max_hw_sectors.min(wanted);
        self.max_sectors = max - max % block_sectors;
        Ok(())
    }

    /// Segments and the boundaries within memory.
    fn validate_segments(&mut self) -> Result<(), LimitsError> {
        if self.max_segments == 0 {
            self.max_segments = MAX_SEGMENTS;
        }
        if self.seg_boundary_mask == 0 {
            self.seg_boundary_mask = NO_BOUNDARY;
        }
        for mask in [self.seg_boundary_mask, self.virt_boundary_mask, self.dma_alignment as usize] {
            if mask & mask.wrapping_add(1) != 0 {
                return Err(LimitsError::NotAMask(mask));
            }
        }
        if self.seg_boundary_mask < PAGE_SIZE as usize - 1 {
            return Err(LimitsError::SegBoundary(self.seg_boundary_mask));
        }
        if self.max_segment_size == 0 {
            let unlimited = self.virt_boundary_mask != 0;
            self.max_segment_size = if unlimited { u32::MAX } else { MAX_SEGMENT_SIZE };
        }
        if self.max_segment_size < PAGE_SIZE {
            return Err(LimitsError::SegmentSize(self.max_segment_size));
        }
        if self.dma_alignment > PAGE_SIZE {
            return Err(LimitsError::DmaAlignment(self.dma_alignment));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
