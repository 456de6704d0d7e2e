//! What there is to know of a disk on this machine.

use blockyard_blkmq::partition::PartitionKind;
use blockyard_blkmq::{Disk, Features, OpenMode, Status};
use serde::Serialize;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tools::extents::Extents;
use crate::uri::DiskPlan;

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
        Ok(Self {
            uri: plan.uri.clone(),
            driver: plan.scheme().name(),
            size: disk.capacity().bytes(),
            block_size: limits.logical_block_size.bytes(),
            physical_block_size: limits.physical_block_size.bytes(),
            optimal_io_size: limits.io_opt,
            read_only: disk.is_read_only(),
            rotational: limits.features.contains(Features::ROTATIONAL),
            can: crate::disks::abilities(disk),
            map: map(disk)?,
            partitions: partitions(disk),
        })
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
