//! Comparing two disks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockyard_blkmq::{Bdev, Bio, DiskFlags, OpenMode, Status};
use serde::Serialize;

use super::copy::is_zero;
use super::cut::{parts, pieces};
use super::extents::{Extents, Zeroes};
use super::interrupt::Interrupt;
use super::lanes::{self, Ended, Pieces, Work};
use super::{io_error, open, read};
use crate::disks::DiskPlan;
use crate::error::{Error, Result};
use crate::tools::session::Session;

/// What was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The URIs.
    pub disks: [String; 2],
    /// Their sizes in bytes.
    pub sizes: [u64; 2],
    /// Whether they hold the same bytes, and as many.
    pub same: bool,
    /// The first byte that differs; if one is just longer, where the other ends.
    pub first_difference: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    len: u64,
    /// Which of them read as zeroes there.
    zero: [bool; 2],
}

/// What the lanes share.
struct Shared {
    disks: [Arc<Bdev>; 2],
    uris: [String; 2],
    /// The lowest difference that was found.
    first: AtomicU64,
    done: AtomicU64,
}

/// Compares, on so many queue threads. `interrupt` ends it early, with an error.
///
/// # Errors
/// A disk cannot be opened or read.
pub fn compare(plans: [DiskPlan; 2], threads: usize, interrupt: &Interrupt) -> Result<Compared> {
    let mut session = Session::start(threads)?;
    let uris = [plans[0].uri.clone(), plans[1].uri.clone()];
    let [one, two] = plans;
    let disks = [
        open(&session.look_at(&one, DiskFlags::NO_PART_SCAN)?, OpenMode::ReadOnly)?,
        open(&session.look_at(&two, DiskFlags::NO_PART_SCAN)?, OpenMode::ReadOnly)?,
    ];
    let sizes = [disks[0].size_bytes(), disks[1].size_bytes()];
    let block = |disk: &Bdev| u64::from(disk.limits().logical_block_size.bytes());
    let block = block(&disks[0]).max(block(&disks[1]));
    let common = sizes[0].min(sizes[1]);
    let shared = Arc::new(Shared {
        disks,
        uris: uris.clone(),
        first: AtomicU64::new(u64::MAX),
        done: AtomicU64::new(0),
    });
    let lanes = Arc::clone(&shared);
    let work: Arc<Work<Piece>> = Arc::new(move |lane, piece| {
        let shared = Arc::clone(&lanes);
        Box::pin(async move { shared.work(lane.cpu, piece).await })
    });
    let mut progress = session.progress("comparing", common);
    let look = || {
        progress.set(shared.done.load(Ordering::Relaxed));
        Ok(())
    };
    let plan = |pieces: &Pieces<Piece>| shared.plan(common, block, pieces);
    let _heeding = interrupt.heed();
    let disks = shared.disks.each_ref().map(|disk| disk.disk());
    let on = (&session, &disks[..]);
    if let Ended::Early(cause) = lanes::run(on, interrupt, &work, plan, look)? {
        return Err(
            Error::failed("interrupted; the comparison is incomplete").perhaps_caused_by(cause)
        );
    }
    let first = Some(shared.first.load(Ordering::Acquire)).filter(|&first| first < u64::MAX);
    let first = first.or_else(|| (sizes[0] != sizes[1]).then_some(common));
    Ok(Compared { disks: uris, sizes, same: first.is_none(), first_difference: first })
}

impl Shared {
    /// Hands out what is not known to be zeroes on both sides, in order, until a difference is found.
    fn plan(&self, common: u64, block: u64, pieces_to: &Pieces<Piece>) -> Result<()> {
        let unknown = |status: Status| {
            Error::failed("cannot read the block map of the disks").caused_by(status)
        };
        let mut zeroes = Zeroes::of(&self.disks[1]);
        parts(Extents::of(&self.disks[0]), block, common, |part| {
            let mut at = part.start;
            while at < part.end {
                let (zero, end) = zeroes.blocks_at(at, part.end, block)?;
                if part.zero && zero {
                    self.done.fetch_add(end - at, Ordering::Relaxed);
                } else {
                    for (start, len) in pieces(at, end) {
                        let found = self.first.load(Ordering::Acquire) < u64::MAX;
                        if found || !pieces_to.put(Piece { start, len, zero: [part.zero, zero] }) {
                            return Ok(false);
                        }
                    }
                }
                at = end;
            }
            Ok(true)
        })
        .map_err(unknown)
    }

    async fn work(&self, cpu: usize, piece: Piece) -> Result<()> {
        let Piece { start, len, zero } = piece;
        let read = async |side: usize| {
            if zero[side] {
                return Ok(None);
            }
            let found = read(&self.disks[side], cpu, start, len).await;
            found.map(Some).map_err(|status| io_error("read", &self.uris[side], start, len, status))
        };
        // Both are on their way at the same time.
        let (one, two) = tokio::join!(read(0), read(1));
        if let Some(at) = difference(one?.as_deref(), two?.as_deref(), len) {
            self.first.fetch_min(start + at, Ordering::AcqRel);
        }
        self.done.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }
}

/// The first byte that differs. Nothing read stands for zeroes.
fn difference(one: Option<&Bio>, two: Option<&Bio>, len: u64) -> Option<u64> {
    let bytes = |bio: &Bio| {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut at = 0;
        for segment in bio.data() {
            segment.copy_to(&mut bytes[at..at + segment.len()]);
            at += segment.len();
        }
        bytes
    };
    let at = match (one.map(bytes), two.map(bytes)) {
        (None, None) => None,
        (Some(one), Some(two)) if one == two => None,
        (Some(one), Some(two)) => one.iter().zip(&two).position(|(one, two)| one != two),
        (Some(some), None) | (None, Some(some)) if is_zero(&some) => None,
        (Some(some), None) | (None, Some(some)) => some.iter().position(|&byte| byte != 0),
    };
    at.and_then(|at| u64::try_from(at).ok())
}
