//! The GUID partition table (UEFI 2.10, section 5.3; kernel: `block/partitions/efi.c`).

use super::{
    Disk, Guid, MAX_PARTITIONS, PartitionInfo, PartitionKind, ReadFault, Table, TableKind, Warning,
};
use crate::op::Status;
use crate::units::Sector;

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header that have a meaning.
const HEADER: u32 = 92;
/// Bytes of an entry. UEFI allows larger ones; no one makes them, and the kernel refuses them.
const ENTRY: u32 = 128;
/// Longest array of entries that is read (kernel: `KMALLOC_MAX_SIZE`). Usual are 16 KiB.
const MAX_ARRAY: u64 = 4 << 20;
/// How much of the array is read at a time.
const CHUNK: u64 = 64 << 10;
/// Block sizes that disks with a table have.
const MADE_FOR: [u32; 4] = [512, 1024, 2048, 4096];
/// The attribute that marks a partition as one to boot from (UEFI 2.10, table 5-8, bit 2).
const LEGACY_BOOT: u64 = 1 << 2;

/// Why a GPT cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptFault {
    /// It would be past the end of the disk.
    #[error("past the end of the disk")]
    BeyondEnd,
    /// The disk failed to read it.
    #[error("unreadable: {0}")]
    Unreadable(Status),
    /// It does not start with `EFI PART`.
    #[error("no signature")]
    Signature,
    /// The header is shorter than a header or longer than a block.
    #[error("a header of {0} bytes")]
    HeaderSize(u32),
    /// The checksum of the header is wrong.
    #[error("wrong checksum of the header")]
    HeaderCrc,
    /// The header says that it is elsewhere.
    #[error("header names block {0} as its own")]
    MyLba(u64),
    /// The usable blocks are not on the disk, or none.
    #[error("usable blocks {first} to {last} are not on the disk")]
    Usable {
        /// The first one.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Entries have a size that is not supported.
    #[error("entries of {0} bytes")]
    EntrySize(u32),
    /// There are no entries, or too many to be true.
    #[error("{0} entries")]
    EntryCount(u32),
    /// The checksum of the entries is wrong.
    #[error("wrong checksum of the entries")]
    EntriesCrc,
}

impl From<ReadFault> for GptFault {
    fn from(fault: ReadFault) -> Self {
        match fault {
            ReadFault::BeyondEnd => Self::BeyondEnd,
            ReadFault::Status(status) => Self::Unreadable(status),
        }
    }
}

/// A header that passed all checks, and the entries that have numbers.
struct Gpt {
    my_lba: u64,
    alternate_lba: u64,
    first_usable: u64,
    last_usable: u64,
    guid: Guid,
    entry_count: u32,
    entries_crc: u32,
    entries: Vec<[u8; ENTRY as usize]>,
    /// Whether an entry that is in use has no number any more.
    more: bool,
}

/// Adds the partitions of the first GPT that can be used. The caller has seen the protective MBR.
pub(super) fn scan(disk: &mut Disk<'_, '_>, table: &mut Table) {
    let Some(last) = disk.last_lba() else { return };
    let gpt = match Gpt::read(disk, 1) {
        Ok(primary) => {
            check_backup(disk, &primary, last, table);
            primary
        }
        Err(fault) => {
            if fault == GptFault::Signature
                && let Some(made_for) = other_block_size(disk)
            {
                let blocks = disk.logical.bytes();
                table.warnings.push(Warning::OtherBlockSize { made_for, blocks });
                return;
            }
            table.warnings.push(Warning::PrimaryGpt(fault));
            match Gpt::read(disk, last) {
                Ok(backup) => backup,
                Err(fault) => {
                    table.warnings.push(Warning::BackupGpt(fault));
                    return;
                }
            }
        }
    };
    table.kind = Some(TableKind::Gpt { guid: gpt.guid });
    gpt.add_partitions(disk, last, table);
}

/// The block size that the table was made for, if that is not the disk's: a header is in block 1, and says so.
fn other_block_size(disk: &mut Disk<'_, '_>) -> Option<u32> {
    let own = u64::from(disk.logical.bytes());
    MADE_FOR.into_iter().filter(|size| u64::from(*size) != own).find(|size| {
        let at = u64::from(*size);
        let mut block = vec![0; disk.logical.bytes() as usize];
        let within = usize::try_from(at % own).unwrap_or(usize::MAX);
        disk.read_lba(at / own, &mut block).is_ok()
            && block.get(within..).and_then(<[u8]>::first_chunk).is_some_and(
                |header: &[u8; HEADER as usize]| {
                    header.starts_with(SIGNATURE) && Fields(header).u64(24) == 1
                },
            )
    })
}

/// Warns of a backup that is not as the primary (kernel: `compare_gpts`).
fn check_backup(disk: &mut Disk<'_, '_>, primary: &Gpt, last: u64, table: &mut Table) {
    match Gpt::read(disk, primary.alternate_lba) {
        Err(fault) => table.warnings.push(Warning::BackupGpt(fault)),
        Ok(backup) => {
            let same = |gpt: &Gpt| {
                let usable = (gpt.first_usable, gpt.last_usable);
                (usable, gpt.guid, gpt.entry_count, gpt.entries_crc)
            };
            if same(primary) != same(&backup) || backup.alternate_lba != primary.my_lba {
                table.warnings.push(Warning::GptsDiffer);
            }
            if backup.my_lba != last {
                table.warnings.push(Warning::BackupNotAtEnd);
            }
        }
    }
}

impl Gpt {
    /// Reads and checks the header at block `lba` and its entries (kernel: `is_gpt_valid`).
    fn read(disk: &mut Disk<'_, '_>, lba: u64) -> Result<Self, GptFault> {
        let last = disk.last_lba().ok_or(GptFault::BeyondEnd)?;
        let mut block = vec![0; disk.logical.bytes() as usize];
        disk.read_lba(lba, &mut block)?;
        let header: &[u8; HEADER as usize] = block.first_chunk().ok_or(GptFault::Signature)?;
        let field = Fields(header);
        if !header.starts_with(SIGNATURE) {
            return Err(GptFault::Signature);
        }
        let size = field.u32(12);
        if size < HEADER || size > disk.logical.bytes() {
            return Err(GptFault::HeaderSize(size));
        }
        if header_crc(&block[..size as usize]) != field.u32(16) {
            return Err(GptFault::HeaderCrc);
        }
        let mut gpt = Self {
            my_lba: field.u64(24),
            alternate_lba: field.u64(32),
            first_usable: field.u64(40),
            last_usable: field.u64(48),
            guid: field.guid(56),
            entry_count: field.u32(80),
            entries_crc: field.u32(88),
            entries: Vec::new(),
            more: false,
        };
        if gpt.my_lba != lba {
            return Err(GptFault::MyLba(gpt.my_lba));
        }
        let (first, usable) = (gpt.first_usable, gpt.last_usable);
        if first > last || usable > last || usable < first {
            return Err(GptFault::Usable { first, last: usable });
        }
        if field.u32(84) != ENTRY {
            return Err(GptFault::EntrySize(field.u32(84)));
        }
        gpt.read_entries(disk, field.u64(72))?;
        Ok(gpt)
    }

    /// Reads all entries from block `lba` on for their checksum, and keeps those that have numbers.
    fn read_entries(&mut self, disk: &mut Disk<'_, '_>, lba: u64) -> Result<(), GptFault> {
        let array = u64::from(self.entry_count) * u64::from(ENTRY);
        if array == 0 || array > MAX_ARRAY {
            return Err(GptFault::EntryCount(self.entry_count));
        }
        let block = u64::from(disk.logical.bytes());
        let (mut crc, mut done) = (Crc32::new(), 0);
        while done < array {
            let want = (array - done).min(CHUNK);
            let mut chunk = vec![0; usize::try_from(want.next_multiple_of(block)).unwrap_or(0)];
            let at = lba.checked_add(done / block).ok_or(GptFault::BeyondEnd)?;
            disk.read_lba(at, &mut chunk)?;
            chunk.truncate(usize::try_from(want).unwrap_or(0));
            crc.update(&chunk);
            for entry in chunk.as_chunks().0 {
                if self.entries.len() < MAX_PARTITIONS as usize - 1 {
                    self.entries.push(*entry);
                } else {
                    self.more |= is_used(entry);
                }
            }
            done += want;
        }
        if crc.finish() != self.entries_crc {
            return Err(GptFault::EntriesCrc);
        }
        Ok(())
    }

    fn add_partitions(&self, disk: &Disk<'_, '_>, last: u64, table: &mut Table) {
        let unit = disk.logical.sectors();
        for (number, entry) in (1..).zip(&self.entries) {
            if !is_used(entry) {
                continue;
            }
            let field = Fields(entry);
            let (kind, start, end) = (field.guid(0), field.u64(32), field.u64(40));
            if start > last || end > last {
                let start = Sector(start.saturating_mul(unit));
                table.warnings.push(Warning::BeyondEnd { number, start });
                continue;
            }
            if end < start {
                table.warnings.push(Warning::Reversed(number));
                continue;
            }
            let partition = PartitionInfo {
                number,
                start: Sector(start * unit),
                len: Sector((end - start + 1) * unit),
                kind: PartitionKind::Gpt(kind),
                uuid: Some(field.guid(16).to_string()),
                name: name(&entry[56..]),
                bootable: field.u64(48) & LEGACY_BOOT != 0,
            };
            disk.add(table, partition);
        }
        if self.more {
            table.warnings.push(Warning::TooMany);
        }
    }
}

/// Whether an entry is one: its type is not all zeroes.
fn is_used(entry: &[u8; ENTRY as usize]) -> bool {
    Fields(entry).guid(0).0 != [0; 16]
}

/// The name of an entry: UTF-16 up to a zero.
fn name(raw: &[u8]) -> Option<String> {
    let (units, _) = raw.as_chunks::<2>();
    let units = units.iter().map(|&unit| u16::from_le_bytes(unit)).take_while(|&unit| unit != 0);
    let name: String =
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    (!name.is_empty()).then_some(name)
}

/// Little-endian fields of a structure whose length is known when it is compiled.
struct Fields<'a, const N: usize>(&'a [u8; N]);

impl<const N: usize> Fields<'_, N> {
    fn bytes<const LEN: usize>(&self, at: usize) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&self.0[at..at + LEN]);
        bytes
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    fn guid(&self, at: usize) -> Guid {
        Guid(self.bytes(at))
    }
}

/// The checksum of a header, in which its own field counts as 0.
fn header_crc(header: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    crc.update(&header[..16]);
    crc.update(&[0; 4]);
    crc.update(&header[20..]);
    crc.finish()
}

/// CRC-32 of IEEE 802.3, as UEFI asks for.
struct Crc32(u32);

impl Crc32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0u32;
        while byte < 256 {
            let (mut crc, mut bit) = (byte, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1));
                bit += 1;
            }
            table[byte as usize] = crc;
            byte += 1;
        }
        table
    };

    const fn new() -> Self {
        Self(u32::MAX)
    }

    fn update(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = Self::TABLE[usize::from(self.0.to_le_bytes()[0] ^ byte)] ^ (self.0 >> 8);
        }
    }

    const fn finish(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = Crc32::new();
    crc.update(bytes);
    crc.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_ethernet() {
        let mut crc = Crc32::new();
        crc.update(b"1234");
        crc.update(b"56789");
        assert_eq!(crc.finish(), 0xcbf4_3926);
    }
}
