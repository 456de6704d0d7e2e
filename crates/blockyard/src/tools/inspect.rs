//! What there is to know of a disk on this machine.

use blockyard_blkmq::partition::PartitionKind;
use blockyard_blkmq::{Disk, Features, OpenMode, Status};
use blockyard_sys::block_device;
use rustix::fs::Access;
use serde::Serialize;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;

use crate::disks::{Abilities, DiskPlan, abilities, ability_names};
use crate::error::{Error, Result};
use crate::tools::extents::Extents;

/// A disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskInfo {
    /// As the user wrote it.
    pub uri: String,
    /// Its driver.
    pub driver: &'static str,
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Bytes that can be written without reading first.
    pub physical_block_size: u32,
    /// The preferred size of long transfers, 0 if there is none.
    pub optimal_io_size: u32,
    /// Nobody may change it.
    pub read_only: bool,
    /// Seeking costs time.
    pub rotational: bool,
    /// What it can do.
    pub can: Vec<&'static str>,
    /// How its bytes are allocated, if it can tell.
    pub map: Option<MapSummary>,
    /// Its partitions.
    pub partitions: Vec<PartitionInfo>,
}

/// How bytes are allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MapSummary {
    /// Bytes that are allocated and may be anything.
    pub data: u64,
    /// Bytes that are allocated and read as zeroes.
    pub zero: u64,
    /// Bytes that are not allocated.
    pub hole: u64,
    /// Runs of bytes of the same kind.
    pub extents: u64,
}

/// A partition.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionInfo {
    /// Its number.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What the table says it is.
    pub r#type: String,
    /// Its identity.
    pub uuid: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Whether it is marked as one to boot from.
    pub bootable: bool,
}

impl DiskInfo {
    /// Finds out. Never on a queue thread: it waits.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn of(disk: &Arc<Disk>, plan: &DiskPlan) -> Result<Self> {
        let limits = disk.limits();
        let (read_only, can) = match Device::of(plan) {
            Some(device) => {
                let read_only = plan.options.read_only || device.read_only;
                let block_status = limits.features.contains(Features::BLOCK_STATUS);
                (read_only, device.abilities(read_only, block_status))
            }
            None => (disk.is_read_only(), abilities(disk)),
        };
        Ok(Self {
            uri: plan.uri.clone(),
            driver: plan.kind.name,
            size: disk.size_bytes(),
            block_size: limits.logical_block_size.bytes(),
            physical_block_size: limits.physical_block_size.bytes(),
            optimal_io_size: limits.io_opt,
            read_only,
            rotational: limits.features.contains(Features::ROTATIONAL),
            can,
            map: map(disk)?,
            partitions: partitions(disk),
        })
    }
}

/// A block device, of which more is known than what somebody can do who may only read.
struct Device {
    read_only: bool,
    trim: bool,
    fast_zero: bool,
}

impl Device {
    fn of(plan: &DiskPlan) -> Option<Self> {
        let path = plan.source.file()?;
        let device = std::fs::File::open(path).ok()?;
        device.metadata().ok()?.file_type().is_block_device().then_some(())?;
        let attribute = |name| block_device::queue_attribute(device.as_fd(), name).unwrap_or(0) > 0;
        Some(Self {
            read_only: block_device::is_read_only(device.as_fd()).unwrap_or(false)
                || rustix::fs::access(path, Access::WRITE_OK).is_err(),
            trim: attribute("discard_max_bytes"),
            fast_zero: attribute("write_zeroes_max_bytes"),
        })
    }

    fn abilities(&self, read_only: bool, block_status: bool) -> Vec<&'static str> {
        let &Self { trim, fast_zero, .. } = self;
        ability_names(Abilities { writable: !read_only, trim, fast_zero, block_status })
    }
}

fn partitions(disk: &Disk) -> Vec<PartitionInfo> {
    let describe = |info: &blockyard_blkmq::partition::PartitionInfo| PartitionInfo {
        number: info.number,
        start: info.start.bytes(),
        size: info.len.bytes(),
        r#type: match info.kind {
            PartitionKind::Mbr(kind) => format!("{kind:#04x}"),
            PartitionKind::Gpt(guid) => guid.to_string(),
        },
        uuid: info.uuid.clone(),
        name: info.name.clone(),
        bootable: info.bootable,
    };
    disk.partitions().iter().map(|part| describe(part.info())).collect()
}

/// Sums the block map up.
fn map(disk: &Arc<Disk>) -> Result<Option<MapSummary>> {
    if !disk.limits().features.contains(Features::BLOCK_STATUS) {
        return Ok(None);
    }
    let failed = |status: Status| {
        Error::failed(format!("cannot read the block map of {}", disk.name())).caused_by(status)
    };
    let bdev = disk
        .open(None, OpenMode::ReadOnly)
        .map_err(|err| Error::failed("cannot open the disk").caused_by(err))?;
    let mut summary = MapSummary::default();
    for run in Extents::of(&bdev) {
        let run = run.map_err(failed)?;
        match (run.hole, run.zero) {
            (true, _) => summary.hole += run.len,
            (false, true) => summary.zero += run.len,
            (false, false) => summary.data += run.len,
        }
        summary.extents += 1;
    }
    Ok(Some(summary))
}
