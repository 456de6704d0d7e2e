//! What a disk in a file can take.

use std::os::fd::{AsFd, BorrowedFd};

use blockyard_blkmq::{BlockSize, Features, Limits, Sector};
use blockyard_sys::{IoEngine, Operation, block_device, fallocate, holes};

use crate::config::FileConfig;
use crate::error::Error;
use crate::open::Opened;

/// The most that memory is said to be aligned to, a page; offsets may be aligned to more.
const MAX_DMA_ALIGNMENT: u32 = 4096;
/// The longest transfer: 32 MiB, the largest buffer that a pool keeps.
const MAX_SECTORS: u32 = (32 << 20) >> 9;

/// What a file is as a disk.
#[derive(Clone, Debug)]
pub struct Info {
    /// How large it is in bytes.
    pub size: u64,
    /// How large it is in whole blocks, the last of which may be padded.
    pub capacity: Sector,
    /// What it can take.
    pub limits: Limits,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether it is a block device.
    pub is_block_device: bool,
    /// Whether it goes past the page cache.
    pub direct: bool,
    /// What carries the I/O out.
    pub engine: IoEngine,
}

pub(crate) fn limits(config: &FileConfig, opened: &Opened) -> Result<Limits, Error> {
    let file = opened.files.data.as_fd();
    let mut limits = Limits {
        max_hw_sectors: MAX_SECTORS,
        #[expect(clippy::cast_possible_truncation, reason = "1024")]
        max_segments: Operation::MAX_SEGMENTS as u16,
        max_segment_size: u32::MAX,
        ..Limits::default()
    };
    if opened.is_block_device {
        device_limits(file, &mut limits);
    } else {
        file_limits(config, opened, &mut limits)?;
    }
    if let Some(alignment) = opened.alignment {
        limits.logical_block_size = limits.logical_block_size.max(block_size(alignment.offset));
        // Of addresses and of lengths: see `is_aligned`. What is not so goes through memory of ours, which those who know of it
        // can bound.
        limits.dma_alignment = alignment.memory.max(alignment.offset).min(MAX_DMA_ALIGNMENT) - 1;
    } else {
        limits.features |= Features::PREFETCH;
    }
    if config.read_only {
        limits.max_hw_discard_sectors = 0;
        limits.max_write_zeroes_sectors = 0;
    } else {
        limits.features |= Features::WRITE_CACHE;
        // RWF_DSYNC is in every kernel since 4.7. See the crate's documentation for why files do without.
        limits.features.set(Features::FUA, opened.is_block_device && config.direct);
    }
    Ok(limits)
}

fn file_limits(config: &FileConfig, opened: &Opened, limits: &mut Limits) -> Result<(), Error> {
    let file = opened.files.data.as_fd();
    // Less than a page is read before it is written: by the page cache, or by the file system.
    limits.physical_block_size = BlockSize::B4096;
    if holes::is_known(file) {
        limits.features |= Features::BLOCK_STATUS;
    }
    if config.read_only {
        return Ok(());
    }
    let can_punch = fallocate::can_punch_holes(file, opened.size)
        .map_err(|err| Error::io(format!("cannot inspect {}", config.path.display()), err))?;
    // Past the page cache nothing is to get into it.
    limits.features.set(Features::FILE_RANGES, !config.direct);
    if can_punch {
        let block = rustix::fs::fstatvfs(file).map_or(4096, |stat| stat.f_frsize);
        limits.discard_granularity = u32::try_from(block)
            .ok()
            .filter(|block| block.is_power_of_two())
            .map_or(4096, |block| block.max(512));
        limits.max_hw_discard_sectors = u32::MAX;
        limits.max_write_zeroes_sectors = u32::MAX;
    }
    Ok(())
}

/// What the kernel knows of a device; what it does not tell stays as it is for a disk of which nothing is
/// known.
fn device_limits(file: BorrowedFd<'_>, limits: &mut Limits) {
    limits.logical_block_size =
        block_device::logical_block_size(file).map_or(BlockSize::B512, block_size);
    limits.physical_block_size =
        block_device::physical_block_size(file).map_or(BlockSize::B512, block_size);
    limits.io_min = block_device::io_min(file).unwrap_or(0);
    limits.io_opt = block_device::io_opt(file).unwrap_or(0);
    if block_device::is_rotational(file).unwrap_or(false) {
        limits.features |= Features::ROTATIONAL;
    }
    let attribute = |name| block_device::queue_attribute(file, name).unwrap_or(0);
    if attribute("discard_max_bytes") > 0 {
        limits.max_hw_discard_sectors = u32::MAX;
        limits.discard_granularity =
            u32::try_from(attribute("discard_granularity")).unwrap_or(u32::MAX).max(512);
    }
    // Without this the kernel would write zeroes itself: the block layer does that as well, and can tell that
    // it is slow.
    if attribute("write_zeroes_max_bytes") > 0 {
        limits.max_write_zeroes_sectors = u32::MAX;
    }
}

fn block_size(bytes: u32) -> BlockSize {
    BlockSize::new(bytes.max(512)).unwrap_or(BlockSize::B4096)
}
