//! Tables made to do harm: whatever the bytes, a scan ends soon, reads within the disk, and finds what lies on
//! it.

use super::tests::{gpt_image, mbr_image, scan_image};
use super::*;
use proptest::prelude::*;

/// Most reads of one scan: a block and the chain, or a block and two GPTs with arrays of 64 parts.
const MAX_READS: usize = 1 + 256 + 2 * 65;

/// Scans, and checks what holds for every scan.
fn check(image: &[u8], logical: BlockSize) {
    let mut reads = 0;
    let mut read = |at: Sector, buf: &mut [u8]| {
        reads += 1;
        let from = usize::try_from(at.bytes()).unwrap();
        assert!(from + buf.len() <= image.len(), "a read past the end");
        assert!(logical.divides(at.bytes()) && logical.divides(buf.len() as u64));
        buf.copy_from_slice(&image[from..from + buf.len()]);
        Ok(())
    };
    let capacity = Sector::from_bytes_floor(image.len() as u64);
    let table = scan(&mut read, logical, capacity).unwrap();
    assert!(reads <= MAX_READS, "{reads} reads");
    assert!(table.partitions.len() < MAX_PARTITIONS as usize);
    assert!(table.warnings.len() <= 2 * MAX_PARTITIONS as usize);
    for part in &table.partitions {
        assert!(part.len > Sector::ZERO && part.number < MAX_PARTITIONS);
        assert!(part.start.checked_add(part.len).is_some_and(|end| end <= capacity), "{part:?}");
    }
    assert!(table.partitions.windows(2).all(|w| w[0].number < w[1].number));
}

fn any_block() -> impl Strategy<Value = u32> {
    prop_oneof![Just(512u32), Just(4096)]
}

/// Makes the checksums right again, so that changes get past them.
fn fix_checksums(image: &mut [u8], block: usize) {
    for at in [block, image.len() - block] {
        let entries = u64::from_le_bytes(image[at + 72..at + 80].try_into().unwrap());
        let count = u32::from_le_bytes(image[at + 80..at + 84].try_into().unwrap());
        let range = usize::try_from(entries.saturating_mul(block as u64)).unwrap_or(usize::MAX);
        let end = range.saturating_add(count as usize * 128);
        if let Some(bytes) = image.get(range..end) {
            let crc = gpt::crc32(bytes).to_le_bytes();
            image[at + 88..at + 92].copy_from_slice(&crc);
        }
        image[at + 16..at + 20].fill(0);
        let size = u32::from_le_bytes(image[at + 12..at + 16].try_into().unwrap()) as usize;
        let crc = gpt::crc32(&image[at..at + size.min(block)]).to_le_bytes();
        image[at + 16..at + 20].copy_from_slice(&crc);
    }
}

#[test]
fn the_images_that_are_mutated_are_valid_and_stay_so_when_checksums_are_fixed() {
    let image = gpt_image(512, 128);
    let mut fixed = image.clone();
    fix_checksums(&mut fixed, 512);
    assert!(fixed == image && scan_image(&image, BlockSize::B512).kind.is_some());
}

#[test]
fn the_corpus_of_the_fuzzer_reaches_every_kind_of_table() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/partition_scan/");
    let expected = [
        ("fat", 0),
        ("mbr-512", 5),
        ("mbr-4096", 5),
        ("gpt-512", 2),
        ("gpt-512-backup", 2),
        ("gpt-4096", 2),
    ];
    for (name, partitions) in expected {
        let input = std::fs::read(format!("{dir}{name}")).unwrap();
        let (choice, disk) = input.split_first().unwrap();
        let logical = if choice % 2 == 0 { BlockSize::B512 } else { BlockSize::B4096 };
        assert_eq!(scan_image(disk, logical).partitions.len(), partitions, "{name}");
    }
}

#[test]
fn a_chain_as_long_as_it_gets_ends() {
    let mut image = vec![0; 1024 * 512];
    for at in 0..1023 {
        let record = &mut image[at * 512..][..512];
        record[510..].copy_from_slice(&[0x55, 0xaa]);
        // Links only, each to the next sector: relative to the extended partition, which starts at 1.
        record[0x1be + 4] = 0x05;
        let to = u32::try_from(if at == 0 { 1 } else { at }).unwrap();
        record[0x1be + 8..][..4].copy_from_slice(&to.to_le_bytes());
        record[0x1be + 12..][..4].copy_from_slice(&1000u32.to_le_bytes());
    }
    check(&image, BlockSize::B512);
    assert_eq!(scan_image(&image, BlockSize::B512).warnings, [Warning::TooMany]);
}

#[test]
fn four_billion_entries_are_refused_before_any_is_read() {
    let mut image = gpt_image(512, 128);
    for at in [512, 127 * 512] {
        image[at + 80..at + 84].fill(0xff);
    }
    fix_checksums(&mut image, 512);
    let table = scan_image(&image, BlockSize::B512);
    let fault = GptFault::EntryCount(u32::MAX);
    assert_eq!(table.warnings, [Warning::PrimaryGpt(fault), Warning::BackupGpt(fault)]);
}

proptest! {
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..20_000), block in any_block(), magic: bool) {
        let mut image = bytes;
        if magic && image.len() >= 512 {
            image[510..512].copy_from_slice(&[0x55, 0xaa]);
            (0..4).for_each(|entry| image[0x1be + entry * 16] = 0);
        }
        check(&image, BlockSize::new(block).unwrap());
    }

    #[test]
    fn mutated_mbrs(
        block in any_block(),
        changes in prop::collection::vec((prop::sample::select(vec![0usize, 40, 70]), 0x1beusize..512, any::<u8>()), 0..12),
        len in 1usize..=256,
    ) {
        let mut image = mbr_image(block);
        for (record, at, value) in changes {
            image[record * block as usize + at] = value;
        }
        image.truncate(len * block as usize);
        check(&image, BlockSize::new(block).unwrap());
    }

    #[test]
    fn mutated_gpts(
        block in any_block(),
        header in prop::collection::vec((any::<bool>(), 0usize..96, any::<u8>()), 0..4),
        entries in prop::collection::vec((0usize..1024, any::<u8>()), 0..12),
        fix: bool,
    ) {
        let size = block as usize;
        let mut image = gpt_image(block, 128);
        let last = image.len() - size;
        for (backup, at, value) in header {
            image[if backup { last } else { size } + at] = value;
        }
        for (at, value) in entries {
            image[2 * size + at] = value;
        }
        if fix {
            fix_checksums(&mut image, size);
        }
        check(&image, BlockSize::new(block).unwrap());
    }
}
