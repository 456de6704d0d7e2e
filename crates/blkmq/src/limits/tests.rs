use super::*;
use crate::op::Op;
use crate::units::Sector;
use proptest::prelude::*;

const KIB: u64 = 1024;

fn block(bytes: u32) -> BlockSize {
    BlockSize::new(bytes).unwrap()
}

#[test]
fn the_default_is_valid_and_validating_it_changes_nothing() {
    assert_eq!(Limits::default().validate(), Ok(Limits::default()));
}

#[test]
fn validate_raises_what_cannot_be_smaller_and_rounds_to_blocks() {
    let limits = Limits {
        logical_block_size: BlockSize::B4096,
        io_opt: 10_000,
        max_hw_sectors: 1001,
        features: Features::FUA,
        ..Limits::default()
    };
    let limits = limits.validate().unwrap();
    assert_eq!(limits.physical_block_size, BlockSize::B4096);
    assert_eq!((limits.io_min, limits.io_opt, limits.discard_granularity), (4096, 8192, 4096));
    assert_eq!((limits.max_hw_sectors, limits.max_sectors), (1000, 1000));
    assert_eq!(limits.features, Features::empty(), "FUA means nothing without a write cache");
}

#[test]
fn max_sectors_is_capped_unless_the_user_or_the_disk_wants_more() {
    let all = Limits { max_hw_sectors: u32::MAX, ..Limits::default() };
    let max = |limits: Limits| limits.validate().unwrap().max_sectors;
    assert_eq!(max(all.clone()), MAX_SECTORS_CAP);
    assert_eq!(max(Limits { max_user_sectors: Some(100_000), ..all.clone() }), 100_000);
    assert_eq!(max(Limits { io_opt: 8 << 20, ..all.clone() }), 16384);
    assert_eq!(max(Limits { max_user_sectors: Some(64), ..all }), 64);
}

#[test]
fn limits_that_no_disk_can_have_are_refused_each_with_its_reason() {
    let base = Limits::default;
    let err = |limits: Limits| limits.validate().unwrap_err();
    assert_eq!(
        err(Limits { max_hw_sectors: 7, ..base() }),
        LimitsError::MaxSectors { max: 7, need: 8 }
    );
    assert_eq!(
        err(Limits { max_hw_sectors: 64, logical_block_size: BlockSize::MAX, ..base() }),
        LimitsError::MaxSectors { max: 64, need: 128 }
    );
    assert_eq!(
        err(Limits { max_user_sectors: Some(4), ..base() }),
        LimitsError::UserSectors { max: 4, need: 8 }
    );
    assert_eq!(err(Limits { max_segment_size: 512, ..base() }), LimitsError::SegmentSize(512));
    assert_eq!(err(Limits { seg_boundary_mask: 511, ..base() }), LimitsError::SegBoundary(511));
    assert_eq!(err(Limits { virt_boundary_mask: 4096, ..base() }), LimitsError::NotAMask(4096));
    assert_eq!(err(Limits { dma_alignment: 8191, ..base() }), LimitsError::DmaAlignment(8191));
    let chunk = Limits { chunk_sectors: 9, logical_block_size: BlockSize::B4096, ..base() };
    assert_eq!(err(chunk), LimitsError::Chunk(9));
}

#[test]
fn stacking_takes_the_larger_blocks_and_the_smaller_maxima() {
    let mut top = Limits { features: Features::NOWAIT | Features::POLL, ..Limits::stacking() };
    let a = Limits {
        io_opt: 12288,
        max_hw_sectors: 512,
        max_hw_discard_sectors: 800,
        features: Features::WRITE_CACHE | Features::NOWAIT,
        ..Limits::default()
    };
    let b = Limits {
        logical_block_size: BlockSize::B4096,
        io_opt: 8192,
        max_hw_sectors: 1024,
        max_segments: 32,
        max_hw_discard_sectors: 400,
        features: Features::NOWAIT | Features::ROTATIONAL,
        ..Limits::default()
    };
    assert_eq!(top.stack(&a.validate().unwrap(), Sector(0)), Stacked::Aligned);
    assert_eq!(top.stack(&b.validate().unwrap(), Sector(2048)), Stacked::Aligned);
    assert_eq!((top.logical_block_size, top.io_opt), (BlockSize::B4096, 24576));
    assert_eq!((top.max_hw_sectors, top.max_segments, top.max_discard_sectors), (512, 32, 400));
    assert_eq!(top.features, Features::WRITE_CACHE | Features::NOWAIT | Features::ROTATIONAL);
}

#[test]
fn one_offset_within_a_physical_block_is_kept_and_two_are_misaligned() {
    let below = Limits { physical_block_size: BlockSize::B4096, ..Limits::default() };
    let below = below.validate().unwrap();
    let mut top = Limits::stacking();
    assert_eq!(top.stack(&below, Sector(63)), Stacked::Aligned);
    assert_eq!((top.alignment_offset, top.misaligned), (512, false));
    assert_eq!(top.stack(&below, Sector(2048)), Stacked::Misaligned);
    assert!(top.misaligned);
    assert_eq!(below.alignment_offset_at(Sector(63)), 512);
    assert_eq!(below.alignment_offset_at(Sector(2048)), 0);
}

#[test]
fn a_read_that_fits_is_not_cut() {
    let limits = Limits::default();
    assert_eq!(limits.split_at(Op::Read, Sector(8), 4096, [(0x1000, 4096)]), None);
    assert_eq!(limits.split_at(Op::Write, Sector(0), 255 * 512, [(0, 65536), (0, 64000)]), None);
    assert_eq!(limits.split_at(Op::Flush, Sector(0), 0, []), None);
}

#[test]
fn a_long_write_is_cut_at_a_physical_block() {
    let limits = Limits { physical_block_size: BlockSize::B4096, ..Limits::default() };
    let limits = limits.validate().unwrap();
    // 255 sectors from sector 3 would end at 258: the last physical block before ends at 256.
    assert_eq!(limits.split_at(Op::Write, Sector(3), 1024 * KIB, []), Some(253 * 512));
}

#[test]
fn chunks_segments_and_boundaries_cut() {
    let base = || Limits { max_hw_sectors: 4096, ..Limits::default() };
    let chunked = Limits { chunk_sectors: 24, ..base() }.validate().unwrap();
    assert_eq!(chunked.split_at(Op::Read, Sector(20), 8 * 512, [(0, 4096)]), Some(4 * 512));
    assert_eq!(chunked.max_bytes(Op::Write, Sector(20)), 4 * 512);

    let few = Limits { max_segments: 2, ..base() }.validate().unwrap();
    let pages = [(0x1000, 4096), (0x9000, 4096), (0x5000, 4096)];
    assert_eq!(few.split_at(Op::Read, Sector(0), 12 * KIB, pages), Some(8192));
    assert_eq!(few.count_segments(pages), 3);

    let bounded = Limits { seg_boundary_mask: 0xfff, max_segments: 1, ..base() };
    let bounded = bounded.validate().unwrap();
    assert_eq!(bounded.split_at(Op::Read, Sector(0), 4096, [(0x1800, 4096)]), Some(2048));
    assert_eq!(bounded.count_segments([(0x1800, 4096)]), 2);

    let gaps = Limits { virt_boundary_mask: 0xfff, ..base() }.validate().unwrap();
    assert_eq!(
        gaps.split_at(Op::Read, Sector(0), 4096, [(0x1000, 2048), (0x3000, 2048)]),
        Some(2048)
    );
    assert_eq!(gaps.split_at(Op::Read, Sector(0), 4096, [(0x1800, 2048), (0x3000, 2048)]), None);
}

#[test]
fn segments_shorter_than_a_block_are_cut_at_whole_blocks_and_never_to_nothing() {
    let limits = Limits { max_segments: 7, ..Limits::default() }.validate().unwrap();
    let bytes = |n: usize| (0..n).map(|i| (i * 0x1000, 100));
    assert_eq!(limits.split_at(Op::Write, Sector(0), 2048, bytes(21)), Some(512));
    let one = Limits { max_segments: 1, ..Limits::default() }.validate().unwrap();
    assert_eq!(one.split_at(Op::Write, Sector(0), 2048, bytes(21)), Some(512));
}

#[test]
fn a_discard_is_cut_where_the_next_granule_starts() {
    let limits = Limits {
        max_hw_discard_sectors: 100,
        discard_granularity: 16 * 512,
        discard_alignment: 3 * 512,
        ..Limits::default()
    };
    let limits = limits.validate().unwrap();
    assert_eq!(limits.split_at(Op::Discard, Sector(0), 96 * 512, []), None);
    // 96 sectors from 5 on would end at 101; granules start at 3, 19, .. 99.
    assert_eq!(limits.split_at(Op::Discard, Sector(5), 200 * 512, []), Some(94 * 512));
    assert_eq!(limits.split_at(Op::SecureErase, Sector(5), 200 * 512, []), None);
}

#[test]
fn write_zeroes_has_a_maximum_of_its_own() {
    let limits = Limits { max_write_zeroes_sectors: 64, ..Limits::default() };
    assert_eq!(limits.split_at(Op::WriteZeroes, Sector(0), 100 * 512, []), Some(64 * 512));
    assert_eq!(limits.max_bytes(Op::WriteZeroes, Sector(0)), 64 * 512);
    assert_eq!(Limits::default().split_at(Op::WriteZeroes, Sector(0), 100 * 512, []), None);
}

fn any_limits() -> impl Strategy<Value = Limits> {
    let sizes = (0u32..4, 0u32..4, 8u32..600, 1u16..20, 4096u32..70_000);
    let bounds = (0usize..3, 0usize..2, 0u32..5, 0u32..300, 0u32..9, 0u32..9);
    (sizes, bounds).prop_map(|(sizes, bounds)| {
        let (logical, physical, max_hw_sectors, max_segments, max_segment_size) = sizes;
        let (seg, virt, chunk, discard, granule, shift) = bounds;
        let logical_block_size = block(512 << logical);
        let limits = Limits {
            logical_block_size,
            physical_block_size: block(512 << (logical + physical)),
            max_hw_sectors,
            max_segments,
            max_segment_size,
            seg_boundary_mask: [NO_BOUNDARY, 0xfff, 0x3fff][seg],
            virt_boundary_mask: [0, 0xfff][virt],
            chunk_sectors: chunk * 24 * (logical_block_size.bytes() >> 9),
            max_hw_discard_sectors: discard * 8,
            max_write_zeroes_sectors: discard,
            discard_granularity: 4096 * granule,
            discard_alignment: 512 * shift,
            ..Limits::default()
        };
        limits.validate().unwrap()
    })
}

/// Memory whose parts are whole logical blocks, so that a cut can always be made.
fn any_memory() -> impl Strategy<Value = Memory> {
    let part = (0usize..64, 0usize..8, 1usize..12);
    prop::collection::vec(part, 1..24).prop_map(|parts| {
        parts.into_iter().map(|(page, at, len)| ((page << 12) + at * 512, len * 4096)).collect()
    })
}

type Memory = Vec<(usize, usize)>;

/// The first `bytes` bytes of `memory`, and the rest.
fn cut(memory: &[(usize, usize)], bytes: u64) -> (Memory, Memory) {
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    let mut left = usize::try_from(bytes).unwrap();
    for &(addr, len) in memory {
        let take = left.min(len);
        left -= take;
        first.extend((take > 0).then_some((addr, take)));
        rest.extend((take < len).then_some((addr + take, len - take)));
    }
    (first, rest)
}

proptest! {
    #[test]
    fn cutting_until_nothing_is_left_keeps_every_limit(
        limits in any_limits(), memory in any_memory(), at in 0u64..1000
    ) {
        let block = u64::from(limits.logical_block_size.bytes());
        let (mut memory, mut at) = (memory, at * limits.logical_block_size.sectors());
        let mut left: u64 = memory.iter().map(|&(_, len)| len as u64).sum();
        while left > 0 {
            let first = limits.split_at(Op::Write, Sector(at), left, memory.iter().copied());
            let bytes = first.unwrap_or(left);
            prop_assert!(bytes > 0 && bytes <= left && bytes % block == 0);
            let (part, rest) = cut(&memory, bytes);
            prop_assert!(bytes <= limits.max_bytes(Op::Write, Sector(at)));
            let segments = limits.count_segments(part.iter().copied());
            prop_assert!(segments <= usize::from(limits.max_segments) || bytes == block);
            let gaps = part.windows(2).any(|w| limits.gap_to_previous(w[0].0 + w[0].1, w[1].0));
            prop_assert!(!gaps || bytes == block);
            at += bytes >> 9;
            left -= bytes;
            memory = rest;
        }
    }

    #[test]
    fn cutting_a_discard_or_write_zeroes_ends_and_keeps_its_maximum(
        limits in any_limits(), at in 0u64..10_000, blocks in 1u64..3000, zeroes: bool
    ) {
        let op = if zeroes { Op::WriteZeroes } else { Op::Discard };
        let block = u64::from(limits.logical_block_size.bytes());
        let (mut at, mut left) = (at * limits.logical_block_size.sectors(), blocks * block);
        while let Some(bytes) = limits.split_at(op, Sector(at), left, []) {
            prop_assert!(bytes > 0 && bytes < left && bytes % block == 0);
            prop_assert!(bytes <= limits.max_bytes(op, Sector(at)));
            at += bytes >> 9;
            left -= bytes;
        }
    }
}
