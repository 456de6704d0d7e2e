//! Where an operation that is too large is cut (kernel: `block/blk-merge.c`).

use super::{Limits, NO_BOUNDARY};
use crate::op::Op;
use crate::units::{SECTOR_SHIFT, Sector};

impl Limits {
    /// Where to cut an operation on `bytes` bytes from `sector` on whose memory is `segments`: the bytes of the
    /// first part, or `None` if it can be done as a whole.
    ///
    /// The first part is never empty, shorter than `bytes`, and a multiple of the logical block size.
    /// `segments` (address and length of each, in bytes) matters for reads and writes only, and may be empty
    /// where there is no memory yet; an upper bound in its size hint (every slice has it) saves walking it.
    /// Offsets and lengths are whole blocks: the caller has checked.
    ///
    /// - reads and writes: `max_sectors`, `chunk_sectors`, `max_segments`, `max_segment_size` and both
    ///   boundaries; a cut falls on a physical block if one fits (kernel: `bio_split_rw_at`,
    ///   `get_max_io_size`). Where `max_segments` segments hold not one block, one block is let through: less
    ///   cannot be done.
    /// - write-zeroes: `max_write_zeroes_sectors`, `chunk_sectors` (kernel: `bio_split_write_zeroes`);
    /// - discard, secure erase: their maximum in whole granules, cut where the rest starts at a granule
    ///   (kernel: `bio_split_discard`);
    /// - whatever else, and what has a maximum of 0: never cut.
    #[must_use]
    pub fn split_at(
        &self,
        op: Op,
        sector: Sector,
        bytes: u64,
        segments: impl IntoIterator<Item = (usize, usize)>,
    ) -> Option<u64> {
        match op {
            Op::Read | Op::Write => {
                let segments = segments.into_iter();
                if self.is_one_request(bytes, segments.size_hint().1) {
                    return None;
                }
                self.split_data(sector, bytes, segments)
            }
            Op::WriteZeroes => {
                let max = self.max_io_bytes(self.max_write_zeroes_sectors, sector);
                (max != 0 && max < bytes).then_some(max)
            }
            Op::Discard => self.split_discard(self.max_discard_sectors, sector, bytes),
            Op::SecureErase => self.split_discard(self.max_secure_erase_sectors, sector, bytes),
            Op::Flush | Op::BlockStatus | Op::Prefetch => None,
        }
    }

    /// The most bytes that a request for `op` that starts at `sector` may grow to by merging, 0 for operations
    /// that never merge (kernel: `blk_rq_get_max_sectors`).
    #[must_use]
    pub fn max_bytes(&self, op: Op, sector: Sector) -> u64 {
        let sectors = match op {
            Op::Read | Op::Write => self.within_chunk(self.max_sectors, sector),
            Op::WriteZeroes => self.within_chunk(self.max_write_zeroes_sectors, sector),
            Op::Discard => self.max_discard_sectors.into(),
            Op::SecureErase => self.max_secure_erase_sectors.into(),
            Op::Flush | Op::BlockStatus | Op::Prefetch => 0,
        };
        sectors << SECTOR_SHIFT
    }

    /// Whether a segment at `start` may not follow one that ends at `prev_end` in one request, since the
    /// virtual boundary leaves no room for a gap between them (kernel: `bvec_gap_to_prev`).
    #[must_use]
    pub fn gap_to_previous(&self, prev_end: usize, start: usize) -> bool {
        (prev_end | start) & self.virt_boundary_mask != 0
    }

    /// How many segments the memory makes for the driver: one that is too long, or crosses a boundary, counts
    /// as several (kernel: `blk_recalc_rq_segments`).
    #[must_use]
    pub fn count_segments(&self, segments: impl IntoIterator<Item = (usize, usize)>) -> usize {
        let mut count = 0;
        for (addr, len) in segments {
            let mut done = 0;
            while done < len {
                done += self.segment_at(addr.wrapping_add(done), len - done);
                count += 1;
            }
        }
        count
    }

    /// The usual case, told by a few comparisons: short enough to cross no limit whatever its place and memory.
    fn is_one_request(&self, bytes: u64, segments: Option<usize>) -> bool {
        let slack = u64::from(self.physical_block_size.bytes());
        bytes <= u64::from(self.max_segment_size)
            && bytes + slack <= u64::from(self.max_sectors) << SECTOR_SHIFT
            && segments.is_some_and(|count| count <= usize::from(self.max_segments))
            && self.chunk_sectors == 0
            && self.virt_boundary_mask == 0
            && self.seg_boundary_mask == NO_BOUNDARY
    }

    fn split_data(
        &self,
        sector: Sector,
        bytes: u64,
        segments: impl Iterator<Item = (usize, usize)>,
    ) -> Option<u64> {
        let block = u64::from(self.logical_block_size.bytes());
        let max = self.max_io_bytes(self.max_sectors, sector);
        let fits = self.fitting(max.min(bytes), segments);
        let cut = (fits - fits % block).max(block);
        (cut < bytes).then_some(cut)
    }

    /// How many of the first `max` bytes `max_segments` segments can hold.
    fn fitting(&self, max: u64, segments: impl Iterator<Item = (usize, usize)>) -> u64 {
        let (mut count, mut total) = (0, 0);
        let mut prev_end = None;
        for (addr, len) in segments {
            if prev_end.is_some_and(|end| self.gap_to_previous(end, addr)) {
                return total;
            }
            let len = usize::try_from(max - total).unwrap_or(usize::MAX).min(len);
            let mut done = 0;
            while done < len {
                if count == usize::from(self.max_segments) {
                    return total;
                }
                let step = self.segment_at(addr.wrapping_add(done), len - done);
                count += 1;
                done += step;
                total += step as u64;
                if done < len && addr.wrapping_add(done) & self.virt_boundary_mask != 0 {
                    return total;
                }
            }
            prev_end = Some(addr.wrapping_add(done));
            if total == max {
                return total;
            }
        }
        max
    }

    /// How many of `len` bytes at `addr` make one segment (kernel: `get_max_segment_size`).
    fn segment_at(&self, addr: usize, len: usize) -> usize {
        let to_boundary = self.seg_boundary_mask - (self.seg_boundary_mask & addr);
        // Without the `+ 1` until the end: the mask may be all ones.
        let room = to_boundary.min(self.max_segment_size as usize - 1);
        len.min(room.saturating_add(1))
    }

    /// The longest operation at `sector`, in bytes: at most `max_sectors`, within a chunk, ending at a physical
    /// block if it gets that far, else at a logical block (kernel: `get_max_io_size`).
    fn max_io_bytes(&self, max_sectors: u32, sector: Sector) -> u64 {
        let max = self.within_chunk(max_sectors, sector);
        let physical = self.physical_block_size.sectors();
        let start = sector.0 & (physical - 1);
        let end = (start + max) & !(physical - 1);
        let sectors =
            if end > start { end - start } else { max & !(self.logical_block_size.sectors() - 1) };
        sectors << SECTOR_SHIFT
    }

    /// `max_sectors`, or what is left of the chunk that `sector` is in.
    fn within_chunk(&self, max_sectors: u32, sector: Sector) -> u64 {
        let max = u64::from(max_sectors);
        if self.chunk_sectors == 0 {
            return max;
        }
        let chunk = u64::from(self.chunk_sectors);
        max.min(chunk - sector.0 % chunk)
    }

    fn split_discard(&self, max_sectors: u32, sector: Sector, bytes: u64) -> Option<u64> {
        let granule = u64::from(self.discard_granularity >> SECTOR_SHIFT).max(1);
        let max = u64::from(max_sectors);
        let max = max - max % granule;
        if max == 0 || bytes >> SECTOR_SHIFT <= max {
            return None;
        }
        let shift = u64::from(self.discard_alignment >> SECTOR_SHIFT) % granule;
        // Past the last granule that starts within the first part. `granule` more, so that it cannot go below
        // 0.
        let tail = (sector.0 + max + granule - shift) % granule;
        let cut = if max > tail { max - tail } else { max };
        // Granules need not be whole blocks, and then a cut between two of them would not be one between
        // blocks.
        let block = self.logical_block_size.sectors();
        let cut = (cut - cut % block).max(block) << SECTOR_SHIFT;
        (cut < bytes).then_some(cut)
    }
}
