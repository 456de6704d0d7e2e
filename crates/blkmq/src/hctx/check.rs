//! Whether a disk can do what a bio asks.
//!
//! Asked each time that a bio might get in: whatever it waited for, the disk, its reservation or its partition may be
//! another by then. Nothing is changed in the bio, so that the answer is as good the second time.

use super::{Hctx, State};
use crate::bio::Bio;
use crate::driver::Driver;
use crate::limits::Features;
use crate::op::{Flags, Op, Status};
use crate::reservation::Registrant;
use crate::units::{SECTOR_SIZE, Sector};

/// What becomes of a bio that was checked.
pub(super) enum Verdict {
    /// It goes to the driver.
    Go,
    /// There is nothing to do for it.
    Done,
    /// It is on bytes that are no whole blocks.
    Unaligned,
}

impl<D: Driver> Hctx<D> {
    /// Whether the disk can do what the bio asks, as it is now. Asked again whenever the bio had to wait.
    pub(super) fn check(
        &self,
        st: &State<D>,
        from: Registrant,
        bio: &Bio,
    ) -> Result<Verdict, Status> {
        if self.shared.fence.is_reserved() && !self.shared.fence.allows(from, bio.op) {
            return Err(Status::ReservationConflict);
        }
        if bio.part.as_ref().is_some_and(|part| part.is_gone()) {
            return Err(Status::Offline);
        }
        let features = st.limits.features;
        if bio.op == Op::Flush || bio.flags.intersects(Flags::FUA | Flags::PREFLUSH) {
            can_be_durable(bio, features)?;
            let is_cached = features.contains(Features::WRITE_CACHE);
            if is_cached && self.shared.fails_flushes() && wants_flush(bio, features) {
                return Err(Status::Io);
            }
            if bio.op == Op::Flush {
                return Ok(if is_cached { Verdict::Go } else { Verdict::Done });
            }
        }
        let end = bio.sector().checked_add(Sector(bio.len().div_ceil(SECTOR_SIZE)));
        if end.is_none_or(|end| end > self.shared.capacity()) {
            return Err(Status::OutOfRange);
        }
        let block = st.limits.logical_block_size;
        if !block.divides(bio.len() | u64::from(bio.skew))
            || !bio.sector().0.is_multiple_of(block.sectors())
        {
            return self.check_bytes(st, bio);
        }
        if bio.op.is_write() && self.shared.is_read_only() {
            return Err(Status::NotPermitted);
        }
        if bio.is_empty() {
            let flushes =
                bio.flags.contains(Flags::PREFLUSH) && features.contains(Features::WRITE_CACHE);
            return Ok(if flushes { Verdict::Go } else { Verdict::Done });
        }
        can_do(st, bio)
    }

    /// As [`Hctx::check`], for a bio that is unaligned.
    #[cold]
    fn check_bytes(&self, st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
        if !bio.by_bytes {
            return Err(Status::Invalid);
        }
        if bio.offset().checked_add(bio.len()).is_none_or(|end| end > self.shared.size_bytes()) {
            return Err(Status::OutOfRange);
        }
        if bio.op.is_write() && self.shared.is_read_only() {
            return Err(Status::NotPermitted);
        }
        if bio.is_empty() {
            return Ok(Verdict::Done);
        }
        match bio.op {
            // Its edges are changed in memory.
            Op::Write if bio.range.is_some() => Err(Status::NotSupported),
            // Less than all of it would be left.
            Op::SecureErase => Err(Status::Invalid),
            // It waits for a read, and its parts might end differently.
            Op::Write | Op::WriteZeroes if bio.flags.contains(Flags::NOWAIT) => Err(Status::Again),
            _ => match can_do(st, bio)? {
                Verdict::Go => Ok(Verdict::Unaligned),
                done => Ok(done),
            },
        }
    }
}

/// Whether the disk can make durable what is to be.
fn can_be_durable(bio: &Bio, features: Features) -> Result<(), Status> {
    let cannot = features.contains(Features::NO_FLUSH) && wants_flush(bio, features);
    if cannot { Err(Status::NotSupported) } else { Ok(()) }
}

/// Whether the disk is to be flushed for it, if it has a cache.
fn wants_flush(bio: &Bio, features: Features) -> bool {
    let flushes = bio.op == Op::Flush || bio.flags.contains(Flags::PREFLUSH);
    flushes || bio.flags.contains(Flags::FUA) && !features.contains(Features::FUA)
}

/// Whether the disk has the operation, on a range that is not empty.
fn can_do<D: Driver>(st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
    let features = st.limits.features;
    match bio.op {
        Op::Discard if st.limits.max_discard_sectors == 0 => Err(Status::NotSupported),
        Op::SecureErase if st.limits.max_secure_erase_sectors == 0 => Err(Status::NotSupported),
        Op::WriteZeroes
            if st.limits.max_write_zeroes_sectors == 0 && bio.flags.contains(Flags::NOFALLBACK) =>
        {
            Err(Status::NotSupported)
        }
        Op::BlockStatus if !features.contains(Features::BLOCK_STATUS) => Ok(Verdict::Done),
        Op::Prefetch if !features.contains(Features::PREFETCH) => Ok(Verdict::Done),
        Op::Write if bio.range.is_some() => can_write_range(st, bio),
        Op::Write if bio.data.is_empty() => Err(Status::Invalid),
        // Its memory is either its own or the driver's.
        Op::Read if bio.data.is_empty() != bio.wants_supply() => Err(Status::Invalid),
        _ => Ok(Verdict::Go),
    }
}

/// Whether the driver takes the range of a file that the bio writes, all of it at once.
#[cold]
fn can_write_range<D: Driver>(st: &State<D>, bio: &Bio) -> Result<Verdict, Status> {
    let is_whole = st.limits.split_at(bio.op, bio.sector(), bio.len(), []).is_none();
    let can = is_whole && st.limits.features.contains(Features::FILE_RANGES);
    if can && bio.data.is_empty() { Ok(Verdict::Go) } else { Err(Status::NotSupported) }
}

/// The flags that mean something on the disk: where nothing is lost, nothing has to be flushed.
pub(super) fn flags_of(bio: &Bio, features: Features) -> Flags {
    if features.intersects(Features::WRITE_CACHE | Features::NO_FLUSH) {
        bio.flags
    } else {
        bio.flags - (Flags::FUA | Flags::PREFLUSH)
    }
}
