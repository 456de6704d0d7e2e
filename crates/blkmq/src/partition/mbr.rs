//! The master boot record, and the chain of logical partitions (kernel: `block/partitions/msdos.c`).

use super::{
    Disk, MAX_PARTITIONS, PartitionInfo, PartitionKind, ReadFault, Table, TableKind, Warning,
};
use crate::units::Sector;

/// Where the four entries are in a boot sector.
const ENTRIES: usize = 0x1be;
/// Bytes of an entry.
const ENTRY: usize = 16;
/// Links of the chain that are followed. Each is good for a partition, of which no more have numbers. (The
/// kernel has no such bound, but follows 100 links at most that have no partition.)
const MAX_LINKS: usize = MAX_PARTITIONS as usize;
/// The type that protects a GPT (UEFI 2.10, section 5.2.3).
const PROTECTIVE: u8 = 0xee;

/// One of the four entries. Positions and lengths are in logical blocks.
#[derive(Clone, Copy)]
struct Entry {
    boot: u8,
    kind: u8,
    start: u32,
    len: u32,
}

impl Entry {
    /// Of the types that mean an extended partition: DOS, Windows 98, Linux.
    const fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    const fn is_valid_boot(&self) -> bool {
        matches!(self.boot, 0 | 0x80)
    }
}

/// What the last bytes of a boot sector say.
pub(super) struct BootSector {
    signature: u32,
    entries: [Entry; 4],
    /// Whether the fields of a FAT's parameter block make sense (kernel: `fat_valid_media`).
    is_fat: bool,
}

impl BootSector {
    /// The boot sector in a block, if the block ends in 55 AA where one does.
    pub(super) fn parse(block: &[u8]) -> Option<Self> {
        let sector: &[u8; 512] = block.first_chunk()?;
        if sector[510..] != [0x55, 0xaa] {
            return None;
        }
        let mut entries = [Entry { boot: 0, kind: 0, start: 0, len: 0 }; 4];
        let (raw, _) = sector[ENTRIES..510].as_chunks::<ENTRY>();
        for (entry, raw) in entries.iter_mut().zip(raw) {
            let &[boot, _, _, _, kind, _, _, _, a, b, c, d, e, f, g, h] = raw;
            let (start, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
            *entry = Entry { boot, kind, start, len };
        }
        let [reserved_lo, reserved_hi, fats] = [sector[14], sector[15], sector[16]];
        let media = sector[21];
        let is_fat =
            (reserved_lo | reserved_hi) != 0 && fats != 0 && (media >= 0xf8 || media == 0xf0);
        let signature =
            u32::from_le_bytes([sector[0x1b8], sector[0x1b9], sector[0x1ba], sector[0x1bb]]);
        Some(Self { signature, entries, is_fat })
    }

    /// Whether it stands before a GPT, alone or beside partitions of its own (kernel: `is_pmbr_valid`).
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE && entry.start == 1)
    }

    /// Whether the entries are those of a partition table: code and text of a file system's boot sector have
    /// other bytes where boot indicators are. A FAT formatted on the whole disk may have zeroes there, and then
    /// no lengths either.
    fn is_table(&self) -> bool {
        self.entries.iter().all(Entry::is_valid_boot)
    }
}

/// Adds the partitions of a master boot record.
pub(super) fn scan(disk: &mut Disk<'_, '_>, boot: &BootSector, table: &mut Table) {
    if !boot.is_table() {
        return;
    }
    if boot.entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        table.warnings.push(Warning::NotProtective);
        return;
    }
    if boot.is_fat && boot.entries.iter().all(|entry| entry.len == 0) {
        return;
    }
    table.kind = Some(TableKind::Mbr { signature: boot.signature });
    let unit = disk.logical.sectors();
    let mut next = 5;
    for (number, entry) in (1..).zip(&boot.entries) {
        let (start, len) = (u64::from(entry.start) * unit, u64::from(entry.len) * unit);
        if len == 0 {
            continue;
        }
        if !entry.is_extended() {
            disk.add(table, partition(boot.signature, number, start, len, entry));
            continue;
        }
        // Room for a boot loader, and not for a file system (kernel: `msdos_partition`).
        let shown = len.min(unit.max(2));
        let extended = partition(boot.signature, number, start, shown, entry);
        disk.add(table, PartitionInfo { uuid: None, ..extended });
        Chain { disk, first: start, len, signature: boot.signature }.scan(&mut next, table);
    }
}

fn partition(signature: u32, number: u32, start: u64, len: u64, entry: &Entry) -> PartitionInfo {
    PartitionInfo {
        number,
        start: Sector(start),
        len: Sector(len),
        kind: PartitionKind::Mbr(entry.kind),
        uuid: Some(format!("{signature:08x}-{number:02x}")),
        name: None,
        bootable: entry.boot == 0x80,
    }
}

/// The chain of boot records in an extended partition. In sectors.
struct Chain<'c, 'a, 'b> {
    disk: &'c mut Disk<'a, 'b>,
    first: u64,
    len: u64,
    signature: u32,
}

impl Chain<'_, '_, '_> {
    /// Adds the logical partitions, numbered from `next` on.
    fn scan(&mut self, next: &mut u32, table: &mut Table) {
        let unit = self.disk.logical.sectors();
        let mut block = vec![0; self.disk.logical.bytes() as usize];
        let (mut at, mut len) = (self.first, self.len);
        let mut seen = Vec::new();
        while seen.len() < MAX_LINKS {
            if seen.contains(&at) {
                table.warnings.push(Warning::ExtendedLoop(Sector(at)));
                return;
            }
            seen.push(at);
            match self.disk.read_lba(at / unit, &mut block) {
                Ok(()) => {}
                Err(ReadFault::BeyondEnd) => {
                    table.warnings.push(Warning::ExtendedBeyondEnd(Sector(at)));
                    return;
                }
                Err(ReadFault::Status(status)) => {
                    table.warnings.push(Warning::Unreadable { sector: Sector(at), status });
                    return;
                }
            }
            let Some(boot) = BootSector::parse(&block) else { return };
            for (index, entry) in boot.entries.iter().enumerate() {
                let Some((start, len)) = self.logical(index, entry, at, len) else { continue };
                if *next >= MAX_PARTITIONS {
                    table.warnings.push(Warning::TooMany);
                    return;
                }
                let found = partition(self.signature, *next, start, len, entry);
                self.disk.add(table, found);
                *next += 1;
            }
            let link = boot.entries.iter().find(|entry| entry.len != 0 && entry.is_extended());
            let Some(link) = link else { return };
            // Relative to the whole extended partition, while partitions are relative to their own record.
            at = self.first + u64::from(link.start) * unit;
            len = u64::from(link.len) * unit;
        }
        table.warnings.push(Warning::TooMany);
    }

    /// Where the partition of an entry starts and how long it is, if it is one. The third and fourth entry
    /// often hold garbage, and are taken only if they lie within both the link and the extended partition.
    fn logical(&self, index: usize, entry: &Entry, at: u64, link_len: u64) -> Option<(u64, u64)> {
        if entry.len == 0 || entry.is_extended() {
            return None;
        }
        let unit = self.disk.logical.sectors();
        let (offset, len) = (u64::from(entry.start) * unit, u64::from(entry.len) * unit);
        let start = at + offset;
        let within = offset + len <= link_len && start + len <= self.first + self.len;
        (index < 2 || within).then_some((start, len))
    }
}
