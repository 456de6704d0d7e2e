//! Checking a disk: all of it is read, and its partition table looked at.

use std::ops::Range;
use std::sync::Arc;

use blockyard_blkmq::partition::{self, PartitionInfo, PartitionKind, Table};
use blockyard_blkmq::{Bdev, Disk, DiskFlags, OpenMode, Sector, Status};
use parking_lot::Mutex;
use serde::Serialize;

use super::cut::{parts, pieces};
use super::extents::Extents;
use super::interrupt::Interrupt;
use super::lanes::{self, Ended, Lane, Pieces, Work};
use super::ranges::Ranges;
use super::{io_error, open, read};
use crate::disks::DiskPlan;
use crate::error::{Error, Result};
use crate::tools::session::Session;

/// Unreadable ranges that are told apart; a disk with more is not looked at any further.
const MAX_RANGES: usize = 1024;

/// What was found out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// The URI.
    pub disk: String,
    /// Bytes.
    pub size: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that are not stored, by the block map.
    pub zero: u64,
    /// What cannot be read.
    pub unreadable: Vec<Unreadable>,
    /// What is wrong with the partition table.
    pub partition_table: Vec<String>,
}

/// Bytes that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub length: u64,
}

impl Checked {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.unreadable.is_empty() && self.partition_table.is_empty()
    }
}

struct Shared {
    bdev: Arc<Bdev>,
    uri: String,
    block: u64,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    read: u64,
    zero: u64,
    unreadable: Ranges,
}

/// Checks, on so many queue threads. `interrupt` ends it early, with an error.
///
/// # Errors
/// The disk cannot be opened, or the way to it is broken: nothing is known of it then.
pub fn check(plan: DiskPlan, threads: usize, interrupt: &Interrupt) -> Result<Checked> {
    let mut session = Session::start(threads)?;
    let disk = session.look_at(&plan, DiskFlags::NO_PART_SCAN)?;
    check_disk(&session, &disk, plan.uri, interrupt)
}

/// The same with a disk that is open, which is called `uri`.
///
/// # Errors
/// Those of [`check`].
pub fn check_disk(
    session: &Session,
    disk: &Arc<Disk>,
    uri: String,
    interrupt: &Interrupt,
) -> Result<Checked> {
    let bdev = open(disk, OpenMode::ReadOnly)?;
    let size = bdev.size_bytes();
    let block = u64::from(bdev.limits().logical_block_size.bytes());
    let shared = Arc::new(Shared { bdev, uri: uri.clone(), block, found: Mutex::default() });
    let lanes = Arc::clone(&shared);
    let work: Arc<Work<(u64, u64)>> = Arc::new(move |lane, piece| {
        let shared = Arc::clone(&lanes);
        Box::pin(async move { shared.work(&lane, piece).await })
    });
    let mut progress = session.progress("checking", size);
    let look = || {
        let found = shared.found.lock();
        progress.set(found.read + found.zero);
        Ok(())
    };
    let mut found_in_table = Vec::new();
    let plan_pieces = |to: &Pieces<(u64, u64)>| {
        // Here, where an end that is wanted is heard.
        found_in_table = partition_table(&shared.bdev);
        shared.plan(size, to)
    };
    let _heeding = interrupt.heed();
    let on = (session, &[disk][..]);
    if let Ended::Early(cause) = lanes::run(on, interrupt, &work, plan_pieces, look)? {
        return Err(Error::failed("interrupted; the check is incomplete").perhaps_caused_by(cause));
    }
    let found = shared.found.lock();
    let unreadable = found.unreadable.iter();
    let unreadable =
        unreadable.map(|Range { start, end }| Unreadable { offset: start, length: end - start });
    Ok(Checked {
        disk: uri,
        size,
        read: found.read,
        zero: found.zero,
        unreadable: unreadable.collect(),
        partition_table: found_in_table,
    })
}

impl Shared {
    fn plan(&self, size: u64, pieces_to: &Pieces<(u64, u64)>) -> Result<()> {
        let unknown = |status: Status| {
            Error::failed("cannot read the block map of the disk").caused_by(status)
        };
        parts(Extents::of(&self.bdev), self.block, size, |part| {
            if part.zero {
                self.found.lock().zero += part.end - part.start;
                return Ok(true);
            }
            Ok(pieces(part.start, part.end).all(|piece| pieces_to.put(piece)))
        })
        .map_err(unknown)
    }

    /// Reads a piece; what fails is read again in halves, down to blocks.
    async fn work(&self, lane: &Lane, piece: (u64, u64)) -> Result<()> {
        let mut left = vec![piece];
        while let Some((start, len)) = left.pop() {
            let status = read(&self.bdev, lane.cpu, start, len).await.err();
            match status {
                None => self.found.lock().read += len,
                Some(status) if is_about_the_way(status) => {
                    return Err(io_error("read", &self.uri, start, len, status));
                }
                // What is given up fails like what is broken; it is not asked for again.
                Some(_) if lane.stops() => return Ok(()),
                Some(_) if len <= self.block => self.bad(start, len)?,
                Some(_) => {
                    let half = (len / 2).next_multiple_of(self.block);
                    left.push((start + half, len - half));
                    left.push((start, half));
                }
            }
        }
        Ok(())
    }

    fn bad(&self, start: u64, len: u64) -> Result<()> {
        let mut found = self.found.lock();
        found.unreadable.insert(start..start + len);
        if found.unreadable.len() <= MAX_RANGES {
            return Ok(());
        }
        let what =
            format!("{} has more than {MAX_RANGES} unreadable ranges; check stopped", self.uri);
        Err(Error::failed(what).help("replace the disk"))
    }
}

/// Whether it is not the disk that is at fault.
const fn is_about_the_way(status: Status) -> bool {
    matches!(
        status,
        Status::Transport
            | Status::Offline
            | Status::Timeout
            | Status::Resource
            | Status::NotPermitted
    )
}

/// What is wrong with the partition table, in words.
fn partition_table(bdev: &Bdev) -> Vec<String> {
    // One that cannot be read is among what is unreadable.
    read_table(bdev).map_or_else(Vec::new, |table| {
        let warnings = table.warnings.iter().map(ToString::to_string);
        warnings.chain(overlaps(&table.partitions)).collect()
    })
}

/// The partition table of a disk; none if it cannot be read. Never on a queue thread: it waits.
pub(crate) fn read_table(bdev: &Bdev) -> Option<Table> {
    let mut read_blocks = |at: Sector, buf: &mut [u8]| {
        let bio = blockyard_blkmq::Bio::new(blockyard_blkmq::Op::Read, at, buf.len() as u64);
        let bio = bdev.submit_and_wait(0, bio);
        if !bio.status().is_ok() {
            return Err(bio.status());
        }
        let mut filled = 0;
        for segment in bio.data() {
            segment.copy_to(&mut buf[filled..filled + segment.len()]);
            filled += segment.len();
        }
        Ok(())
    };
    let block = bdev.limits().logical_block_size;
    partition::scan(&mut read_blocks, block, bdev.capacity()).ok()
}

/// Types of MBR partitions that hold others.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

fn overlaps(partitions: &[PartitionInfo]) -> Vec<String> {
    let holds_others = |part: &PartitionInfo| matches!(part.kind, PartitionKind::Mbr(kind) if EXTENDED.contains(&kind));
    let mut sorted: Vec<_> = partitions.iter().filter(|part| !holds_others(part)).collect();
    sorted.sort_by_key(|part| part.start);
    let mut found = Vec::new();
    let mut last: Option<&PartitionInfo> = None;
    for part in sorted {
        let end = |part: &PartitionInfo| part.start + part.len;
        match last {
            Some(before) if end(before) > part.start => {
                found.push(format!("partitions {} and {} overlap", before.number, part.number));
                if end(part) > end(before) {
                    last = Some(part);
                }
            }
            _ => last = Some(part),
        }
    }
    found
}
