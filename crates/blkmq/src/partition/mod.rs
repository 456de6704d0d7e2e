//! Partition tables: MBR with logical partitions, and GPT (kernel: `block/partitions/`).
//!
//! [`scan`] reads blocks through a function and returns values. The disk is not trusted: whatever it holds,
//! reads stay within its capacity, and their number and the memory for them have bounds.

mod gpt;
mod mbr;

use std::fmt;

use crate::op::Status;
use crate::units::{BlockSize, SECTOR_SHIFT, Sector};

pub use gpt::GptFault;

/// Partitions have numbers below this; what a table has beyond is ignored (kernel: `DISK_MAX_PARTS`).
pub const MAX_PARTITIONS: u32 = crate::major::DISK_MAX_PARTS;

/// What was found on a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The kind of table, `None` if there is none: an empty disk, a file system on the whole of it, or a table
    /// that cannot be trusted, which [`Table::warnings`] then says.
    pub kind: Option<TableKind>,
    /// The partitions, by number. They lie within the disk; they may overlap each other, as the kernel lets
    /// them.
    pub partitions: Vec<PartitionInfo>,
    /// What was not as it should be.
    pub warnings: Vec<Warning>,
}

impl Table {
    /// Whether a partition is, in part at least, past the end of the disk.
    pub(crate) fn reaches_past_end(&self) -> bool {
        let past_end = |warning: &Warning| {
            matches!(
                warning,
                Warning::BeyondEnd { .. }
                    | Warning::Truncated { .. }
                    | Warning::ExtendedBeyondEnd(_)
            )
        };
        self.warnings.iter().any(past_end)
    }
}

/// A kind of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// A master boot record.
    Mbr {
        /// The disk's signature.
        signature: u32,
    },
    /// A GUID partition table (UEFI 2.10, section 5.3).
    Gpt {
        /// The disk's identity.
        guid: Guid,
    },
}

/// One partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Its number, from 1 on. Logical partitions of an MBR are numbered from 5.
    pub number: u32,
    /// Its first sector.
    pub start: Sector,
    /// How many sectors, at least one.
    pub len: Sector,
    /// What the table says that it is.
    pub kind: PartitionKind,
    /// Its identity as udev and the kernel's `PARTUUID=` spell it; none for an extended partition.
    pub uuid: Option<String>,
    /// Its name, if the table has names and it has one.
    pub name: Option<String>,
    /// Whether it is marked as one to boot from.
    pub bootable: bool,
}

/// What a table says that a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionKind {
    /// The type byte of an MBR, such as 0x83.
    Mbr(u8),
    /// The type of a GPT.
    Gpt(Guid),
}

/// A GUID in the byte order of the disk: the first three fields little-endian (UEFI 2.10, appendix A). Shown in
/// lower case, as the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        write!(f, "{:08x}-", u32::from_le_bytes([a, b, c, d]))?;
        write!(f, "{:04x}-{:04x}-", u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]))?;
        for (at, byte) in rest.into_iter().enumerate() {
            f.write_str(if at == 2 { "-" } else { "" })?;
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Something on the disk that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// A partition starts past the end of the disk; it is ignored.
    #[error("partition {number} starts at sector {start}, past the end of the disk: ignored")]
    BeyondEnd {
        /// Which one.
        number: u32,
        /// Where it starts.
        start: Sector,
    },
    /// A partition is longer than the disk; it ends where the disk does.
    #[error("partition {number} of {len} sectors goes past the end of the disk: truncated")]
    Truncated {
        /// Which one.
        number: u32,
        /// How long it says that it is.
        len: Sector,
    },
    /// A partition ends before it starts; it is ignored. (The kernel takes the length for a huge one and
    /// truncates it.)
    #[error("partition {0} ends before it starts: ignored")]
    Reversed(u32),
    /// There are more partitions than [`MAX_PARTITIONS`]; the rest is ignored.
    #[error("more partitions than have numbers: the rest is ignored")]
    TooMany,
    /// The chain of logical partitions leads to this sector a second time; it ends there.
    #[error("the chain of logical partitions comes back to sector {0}: ends there")]
    ExtendedLoop(Sector),
    /// The chain of logical partitions leads past the end of the disk; it ends there.
    #[error("the chain of logical partitions goes on at sector {0}, past the end of the disk")]
    ExtendedBeyondEnd(Sector),
    /// A part of the table cannot be read; the chain of logical partitions ends there.
    #[error("cannot read the partition table at sector {sector}: {status}")]
    Unreadable {
        /// Where.
        sector: Sector,
        /// Why.
        status: Status,
    },
    /// There is a GPT in the MBR's eyes, but not one to be used: there are no partitions.
    #[error("the protective MBR does not start at block 1, the GPT is not used")]
    NotProtective,
    /// The GPT was made for another block size: there are no partitions.
    #[error(
        "the GPT was made for blocks of {made_for} bytes, but the disk has blocks of {blocks}: to use its partitions, \
         set block={made_for}"
    )]
    OtherBlockSize {
        /// Bytes of a block that the table counts in.
        made_for: u32,
        /// Bytes of a block of the disk.
        blocks: u32,
    },
    /// The first GPT cannot be used. If the second can, it is; otherwise there are no partitions.
    #[error("the primary GPT is invalid: {0}")]
    PrimaryGpt(GptFault),
    /// The second GPT cannot be used. If the first can, it is.
    #[error("the backup GPT is invalid: {0}")]
    BackupGpt(GptFault),
    /// The GPTs are both valid but do not say the same; the first one is used.
    #[error("the primary and the backup GPT differ")]
    GptsDiffer,
    /// The second GPT is valid but not at the end of the disk, which has grown, it seems.
    #[error("the backup GPT is not at the end of the disk")]
    BackupNotAtEnd,
}

/// The disk's first block could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the first block of the disk")]
pub struct ScanError(#[from] pub Status);

/// A function that reads whole logical blocks from a sector on.
pub type ReadBlocks<'a> = dyn FnMut(Sector, &mut [u8]) -> Result<(), Status> + 'a;

/// Reads the partition table of a disk of `capacity`.
///
/// As the kernel: a GPT is used if there is a protective or hybrid MBR, an MBR if its boot indicators are what
/// they should be and it is not the boot sector of a FAT file system. Unlike the kernel without its `gpt`
/// parameter, the backup GPT is used if the primary one is damaged.
///
/// `read` is called with offsets and lengths of whole logical blocks within the capacity only, at most a few
/// hundred times and for some MiB at most.
///
/// # Errors
///
/// [`ScanError`] if not even the first block can be read. What cannot be read later is a [`Warning`].
pub fn scan(
    read: &mut ReadBlocks<'_>,
    logical: BlockSize,
    capacity: Sector,
) -> Result<Table, ScanError> {
    let mut disk = Disk { read, logical, capacity };
    let mut table = Table::default();
    if disk.last_lba().is_none() {
        return Ok(table);
    }
    let mut block = vec![0; logical.bytes() as usize];
    disk.read_lba(0, &mut block).map_err(|fault| match fault {
        ReadFault::Status(status) => ScanError(status),
        ReadFault::BeyondEnd => ScanError(Status::OutOfRange),
    })?;
    let Some(boot) = mbr::BootSector::parse(&block) else { return Ok(table) };
    if boot.is_protective() {
        gpt::scan(&mut disk, &mut table);
    } else {
        mbr::scan(&mut disk, &boot, &mut table);
    }
    table.partitions.sort_by_key(|partition| partition.number);
    Ok(table)
}

/// The name of a partition's device: its disk's with the number, and a `p` between if that ends in a digit
/// (kernel: `add_partition`).
#[must_use]
pub fn device_name(disk: &str, number: u32) -> String {
    let p = if disk.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{p}{number}")
}

/// Why a block was not read.
enum ReadFault {
    BeyondEnd,
    Status(Status),
}

/// A disk that is read by logical block and never past its end.
struct Disk<'a, 'b> {
    read: &'a mut ReadBlocks<'b>,
    logical: BlockSize,
    capacity: Sector,
}

impl Disk<'_, '_> {
    /// The last whole logical block, `None` if there is none.
    fn last_lba(&self) -> Option<u64> {
        (self.capacity.0 / self.logical.sectors()).checked_sub(1)
    }

    /// Reads whole blocks from block `lba` on.
    fn read_lba(&mut self, lba: u64, buf: &mut [u8]) -> Result<(), ReadFault> {
        let blocks = (buf.len() >> SECTOR_SHIFT) as u64 / self.logical.sectors();
        let end = lba.checked_add(blocks).ok_or(ReadFault::BeyondEnd)?;
        match self.last_lba() {
            Some(last) if end <= last + 1 => {}
            _ => return Err(ReadFault::BeyondEnd),
        }
        (self.read)(Sector(lba * self.logical.sectors()), buf).map_err(ReadFault::Status)
    }

    /// Adds a partition as far as it is on the disk (kernel: `blk_add_partition`).
    fn add(&self, table: &mut Table, partition: PartitionInfo) {
        let PartitionInfo { number, start, len, .. } = partition;
        if start >= self.capacity {
            table.warnings.push(Warning::BeyondEnd { number, start });
            return;
        }
        let room = self.capacity - start;
        if len > room {
            table.warnings.push(Warning::Truncated { number, len });
        }
        table.partitions.push(PartitionInfo { len: len.min(room), ..partition });
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
