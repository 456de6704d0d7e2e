//! What works on whole disks: copying, comparing, checking, and the block map that they go by.
//!
//! Each has a *planner*, which walks the block map and cuts the disk into pieces, and *lanes*: tasks on the queue
//! threads that take the pieces, one after the other, and do what is to be done with them (`lanes`).

pub mod check;
pub mod compare;
pub mod copy;
mod cut;
pub mod extents;
pub mod inspect;
pub mod interrupt;
pub mod journal;
mod lanes;
pub(crate) mod progress;
pub mod ranges;
pub mod session;
pub mod sums;

use std::sync::Arc;

use blockyard_blkmq::{Bdev, Bio, Disk, Op, OpenMode, Status};

use crate::error::{Error, Result};

/// Bytes of a piece with data: what is read and written at a time.
pub const PIECE: u64 = 1 << 20;
/// Pieces that are worked on at a time, on each queue thread.
pub const DEPTH: usize = 8;

/// Opens a disk as a whole.
fn open(disk: &Arc<Disk>, mode: OpenMode) -> Result<Arc<Bdev>> {
    let opened = disk.open(None, mode);
    let failed = |err| Error::failed(format!("cannot open {}", disk.name())).caused_by(err);
    opened.map(Arc::new).map_err(failed)
}

/// Reads `len` bytes; the memory comes from the driver.
async fn read(bdev: &Bdev, cpu: usize, start: u64, len: u64) -> Result<Box<Bio>, Status> {
    let bio = Bio::at_bytes(Op::Read, start, len);
    let bio = bdev.submit_async(cpu, bio).await;
    if bio.status().is_ok() { Ok(bio) } else { Err(bio.status()) }
}

/// An error of a request, with its place.
fn io_error(doing: &str, uri: &str, start: u64, len: u64, status: Status) -> Error {
    Error::failed(format!("cannot {doing} {len} bytes at {start} of {uri}")).caused_by(status)
}
