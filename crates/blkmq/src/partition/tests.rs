use super::*;
use gptman::{GPT, GPTPartitionEntry};
use mbrman::{CHS, MBR, MBRPartitionEntry};
use std::io::Cursor;

pub(super) const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Scans an image in memory. Reading outside of it, or not by whole blocks, is a failure of the test.
pub(super) fn scan_image(image: &[u8], logical: BlockSize) -> Table {
    let mut read = |at: Sector, buf: &mut [u8]| {
        assert!(logical.divides(at.bytes()) && logical.divides(buf.len() as u64));
        let from = usize::try_from(at.bytes()).unwrap();
        buf.copy_from_slice(image.get(from..from + buf.len()).expect("a read within the disk"));
        Ok(())
    };
    scan(&mut read, logical, Sector::from_bytes_floor(image.len() as u64)).unwrap()
}

fn summary(table: &Table) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|part| (part.number, part.start.0, part.len.0)).collect()
}

fn entry(kind: u8, start: u32, len: u32) -> MBRPartitionEntry {
    MBRPartitionEntry {
        boot: mbrman::BOOT_INACTIVE,
        first_chs: CHS::empty(),
        sys: kind,
        last_chs: CHS::empty(),
        starting_lba: start,
        sectors: len,
    }
}

/// An image of 256 blocks with one primary partition and an extended one with two logical ones.
pub(super) fn mbr_image(block: u32) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 256 * block as usize]);
    let mut mbr = MBR::new_from(&mut image, block, [0x78, 0x56, 0x34, 0x12]).unwrap();
    mbr.align = 1;
    mbr[1] = MBRPartitionEntry { boot: mbrman::BOOT_ACTIVE, ..entry(0x0c, 2, 30) };
    mbr[3] = entry(0x05, 40, 100);
    mbr.push(0x83, 40, 20).unwrap();
    mbr.push(0x82, 70, 30).unwrap();
    mbr.write_into(&mut image).unwrap();
    image.into_inner()
}

/// An image of `blocks` blocks with two partitions, numbers 1 and 3, behind a protective MBR.
pub(super) fn gpt_image(block: u32, blocks: usize) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; blocks * block as usize]);
    let mut gpt = GPT::new_from(&mut image, block.into(), [7; 16]).unwrap();
    let first = gpt.header.first_usable_lba;
    gpt[1] = GPTPartitionEntry {
        partition_type_guid: LINUX,
        unique_partition_guid: [0x11; 16],
        starting_lba: first,
        ending_lba: first + 9,
        attribute_bits: 1 << 2,
        partition_name: "Wurzel äöü".into(),
    };
    gpt[3] = GPTPartitionEntry {
        unique_partition_guid: [0x33; 16],
        starting_lba: first + 10,
        ending_lba: gpt.header.last_usable_lba,
        attribute_bits: 0,
        partition_name: "".into(),
        ..gpt[1].clone()
    };
    gpt.write_into(&mut image).unwrap();
    GPT::write_protective_mbr_into(&mut image, block.into()).unwrap();
    image.into_inner()
}

#[test]
fn the_partitions_of_an_mbr_are_those_that_mbrman_wrote() {
    for block in [512, 4096] {
        let table = scan_image(&mbr_image(block), BlockSize::new(block).unwrap());
        let unit = u64::from(block) / 512;
        assert_eq!(table.kind, Some(TableKind::Mbr { signature: 0x1234_5678 }));
        assert_eq!(table.warnings, []);
        let expected = [(1, 2, 30), (3, 40, 0), (5, 41, 19), (6, 71, 29)]
            .map(|(number, start, len)| (number, start * unit, len * unit));
        let mut found = summary(&table);
        assert_eq!(found[1].2, unit.max(2), "of an extended one, the room for a boot loader");
        found[1].2 = 0;
        assert_eq!(found, expected);
        let uuids: Vec<Option<&str>> =
            table.partitions.iter().map(|part| part.uuid.as_deref()).collect();
        assert_eq!(uuids, [Some("12345678-01"), None, Some("12345678-05"), Some("12345678-06")]);
        assert_eq!(table.partitions[0].kind, PartitionKind::Mbr(0x0c));
        assert!(table.partitions[0].bootable && !table.partitions[2].bootable);
    }
}

#[test]
fn the_partitions_of_a_gpt_are_those_that_gptman_wrote() {
    for (block, first) in [(512, 34), (4096, 6)] {
        let table = scan_image(&gpt_image(block, 128), BlockSize::new(block).unwrap());
        let unit = u64::from(block) / 512;
        assert_eq!(table.kind, Some(TableKind::Gpt { guid: Guid([7; 16]) }));
        assert_eq!(table.warnings, []);
        let [one, three] = table.partitions.as_slice() else { panic!("two partitions") };
        assert_eq!((one.number, one.start.0, one.len.0), (1, first * unit, 10 * unit));
        assert_eq!((three.number, three.start.0), (3, (first + 10) * unit));
        assert_eq!(one.name.as_deref(), Some("Wurzel äöü"));
        assert_eq!(three.name, None);
        assert_eq!(one.uuid.as_deref(), Some("11111111-1111-1111-1111-111111111111"));
        assert_eq!(one.kind, PartitionKind::Gpt(Guid(LINUX)));
        assert!(one.bootable && !three.bootable);
    }
}

#[test]
fn a_gpt_that_was_made_for_another_block_size_says_so() {
    for (made_for, blocks) in [(4096, BlockSize::B512), (512, BlockSize::B4096)] {
        let table = scan_image(&gpt_image(made_for, 1024), blocks);
        assert_eq!((table.kind, table.partitions.len()), (None, 0));
        let blocks = blocks.bytes();
        assert_eq!(table.warnings, [Warning::OtherBlockSize { made_for, blocks }]);
        let said = table.warnings[0].to_string();
        assert!(said.contains(&format!("set block={made_for}")), "{said}");
    }
    // Without a header anywhere, it is damaged.
    let mut image = gpt_image(512, 128);
    image[512..520].fill(0);
    let table = scan_image(&image, BlockSize::B512);
    assert_eq!(table.warnings, [Warning::PrimaryGpt(GptFault::Signature)]);
}

#[test]
fn a_guid_is_shown_as_the_specification_spells_it() {
    assert_eq!(Guid(LINUX).to_string(), "0fc63daf-8483-4772-8e79-3d69d8477de4");
}

#[test]
fn a_damaged_primary_gpt_is_replaced_by_the_backup_with_a_warning() {
    let good = gpt_image(512, 128);
    let expected = scan_image(&good, BlockSize::B512);
    // The header's checksum, and one entry.
    for (at, fault) in [(512 + 16, GptFault::HeaderCrc), (1024 + 200, GptFault::EntriesCrc)] {
        let mut image = good.clone();
        image[at] ^= 1;
        let table = scan_image(&image, BlockSize::B512);
        assert_eq!(table.warnings, [Warning::PrimaryGpt(fault)]);
        assert_eq!(table.partitions, expected.partitions);
        let last = image.len() - 512;
        image[last] = 0;
        let table = scan_image(&image, BlockSize::B512);
        let both = [Warning::PrimaryGpt(fault), Warning::BackupGpt(GptFault::Signature)];
        assert_eq!((table.kind, table.warnings.as_slice()), (None, both.as_slice()));
        assert_eq!(table.partitions, []);
    }
}

#[test]
fn a_disk_that_has_grown_or_lost_its_backup_is_used_with_a_warning() {
    let mut grown = gpt_image(512, 128);
    grown.resize(200 * 512, 0);
    assert_eq!(scan_image(&grown, BlockSize::B512).warnings, [Warning::BackupNotAtEnd]);
    let mut image = gpt_image(512, 128);
    image.truncate(127 * 512);
    // The usable blocks still are on the disk.
    let table = scan_image(&image, BlockSize::B512);
    assert_eq!(table.warnings, [Warning::BackupGpt(GptFault::BeyondEnd)]);
    assert_eq!(table.partitions.len(), 2);
}

#[test]
fn without_a_protective_mbr_there_is_no_gpt() {
    let mut image = gpt_image(512, 128);
    image[510] = 0;
    assert_eq!(scan_image(&image, BlockSize::B512), Table::default());
    let mut image = gpt_image(512, 128);
    image[0x1be + 8] = 2;
    let table = scan_image(&image, BlockSize::B512);
    assert_eq!((table.kind, table.warnings), (None, vec![Warning::NotProtective]));
}

/// A boot sector with these entries: boot indicator, type, start, length.
fn boot_sector(entries: &[(u8, u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (at, &(boot, kind, start, len)) in entries.iter().enumerate() {
        let raw = &mut sector[0x1be + at * 16..][..16];
        (raw[0], raw[4]) = (boot, kind);
        raw[8..12].copy_from_slice(&start.to_le_bytes());
        raw[12..].copy_from_slice(&len.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[test]
fn partitions_past_the_end_are_ignored_and_those_across_it_truncated() {
    let mut image = boot_sector(&[(0, 0x83, 1, 50), (0, 0x83, 90, 50), (0, 0x83, 100, 1)]);
    image.resize(100 * 512, 0);
    let table = scan_image(&image, BlockSize::B512);
    assert_eq!(summary(&table), [(1, 1, 50), (2, 90, 10)]);
    let expected = [
        Warning::Truncated { number: 2, len: Sector(50) },
        Warning::BeyondEnd { number: 3, start: Sector(100) },
    ];
    assert_eq!(table.warnings, expected);
}

#[test]
fn overlapping_partitions_are_kept_as_the_kernel_keeps_them() {
    let mut image = boot_sector(&[(0, 0x83, 1, 50), (0x80, 0x07, 10, 5)]);
    image.resize(100 * 512, 0);
    assert_eq!(summary(&scan_image(&image, BlockSize::B512)), [(1, 1, 50), (2, 10, 5)]);
}

#[test]
fn a_file_system_on_the_whole_disk_has_no_partitions() {
    // FAT: what a parameter block has, and zeroes where the entries would be.
    let mut fat = boot_sector(&[]);
    fat[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    (fat[13], fat[14], fat[16], fat[21]) = (4, 1, 2, 0xf8);
    assert_eq!(scan_image(&fat, BlockSize::B512), Table::default());
    // The same with boot code where the entries would be, and any other boot sector of that kind.
    fat[0x1be..510].fill(b'N');
    assert_eq!(scan_image(&fat, BlockSize::B512), Table::default());
    let text = boot_sector(&[(0, 0x83, 1, 1), (b'x', 0, 0, 0)]);
    assert_eq!(scan_image(&text, BlockSize::B512), Table::default());
}

#[test]
fn an_empty_disk_and_a_disk_of_no_block_have_no_table() {
    assert_eq!(scan_image(&[0; 4096], BlockSize::B4096), Table::default());
    assert_eq!(scan_image(&[0; 3584], BlockSize::B4096), Table::default());
    assert_eq!(scan_image(&[], BlockSize::B512), Table::default());
}

#[test]
fn a_chain_that_comes_back_to_itself_ends() {
    let mut image = boot_sector(&[(0, 0x05, 10, 80)]);
    image.resize(100 * 512, 0);
    // The record at 10 has a partition and a link to 20; the one at 20 has one and a link back to 10.
    let records = [(10, 10), (20, 0)];
    for (at, link) in records {
        let record = boot_sector(&[(0, 0x83, 1, 5), (0, 0x05, link, 10)]);
        image[at * 512..][..512].copy_from_slice(&record);
    }
    let table = scan_image(&image, BlockSize::B512);
    assert_eq!(summary(&table), [(1, 10, 2), (5, 11, 5), (6, 21, 5)]);
    assert_eq!(table.warnings, [Warning::ExtendedLoop(Sector(10))]);
}

#[test]
fn what_cannot_be_read_is_an_error_first_and_a_warning_later() {
    let image = mbr_image(512);
    let failing = |bad: u64| {
        let mut read = |at: Sector, buf: &mut [u8]| {
            if at.0 == bad {
                return Err(Status::Medium);
            }
            let from = usize::try_from(at.bytes()).unwrap();
            buf.copy_from_slice(&image[from..from + buf.len()]);
            Ok(())
        };
        scan(&mut read, BlockSize::B512, Sector(256))
    };
    assert_eq!(failing(0), Err(ScanError(Status::Medium)));
    let table = failing(70).unwrap();
    assert_eq!(summary(&table).len(), 3);
    let warning = Warning::Unreadable { sector: Sector(70), status: Status::Medium };
    assert_eq!(table.warnings, [warning]);
}

#[test]
fn a_device_name_ends_in_the_number() {
    assert_eq!((device_name("sda", 2), device_name("ram0", 2)), ("sda2".into(), "ram0p2".into()));
}
