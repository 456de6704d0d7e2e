//! Whether what a journal says is done is on the target still. A server may have been started anew with other bytes, or
//! somebody may have written there.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::work::{Shared, unknown_map};
use crate::error::Result;
use crate::tools::cut::{cut, pieces};
use crate::tools::extents::Zeroes;
use crate::tools::interrupt::Interrupt;
use crate::tools::lanes::{self, Ended, Lane, Pieces, Work};
use crate::tools::session::Session;
use crate::tools::sums::{self, Sums};
use crate::tools::{io_error, read};

/// Of each so many bytes that are done, one sample of the source is compared with the target.
const SAMPLED: u64 = 16 << 20;
/// Bytes of a sample.
const SAMPLE: u64 = 4096;

/// A range that a journal has, and its sum.
struct Recorded {
    range: Range<u64>,
    sum: u32,
    /// The target has nothing but zeroes there, and says so.
    zero: bool,
}

/// What of `earlier` is on the target. All of that is read, but for what the target says is zeroes; of the source, samples are.
/// None: an end was wanted before that was found out.
pub(super) fn verified(
    session: &Session,
    shared: &Arc<Shared>,
    (size, block): (u64, u64),
    earlier: Sums,
    interrupt: &Interrupt,
) -> Result<Option<Sums>> {
    if earlier.is_empty() {
        return Ok(Some(earlier));
    }
    let kept = Arc::new(Mutex::new((Sums::new(size), 0)));
    let (lanes, keep) = (Arc::clone(shared), Arc::clone(&kept));
    let work: Arc<Work<Recorded>> = Arc::new(move |lane, recorded| {
        let (shared, keep) = (Arc::clone(&lanes), Arc::clone(&keep));
        Box::pin(async move {
            let range = recorded.range.clone();
            let Some(is_there) = shared.is_there(&lane, recorded).await? else { return Ok(()) };
            let (sums, looked_at) = &mut *keep.lock();
            *looked_at += range.end - range.start;
            match is_there {
                Some(sum) => sums.insert(range, sum),
                None => {
                    let (target, start, end) = (&shared.uris.1, range.start, range.end);
                    tracing::warn!(%target, start, end, "target differs from what was copied; copying again");
                }
            }
            Ok(())
        })
    });
    let mut progress = session.progress("verifying", earlier.ranges().bytes());
    let look = || {
        progress.set(kept.lock().1);
        Ok(())
    };
    let plan = |to: &Pieces<Recorded>| {
        let mut zeroes = Zeroes::of(&shared.target);
        for (range, sum) in earlier.iter() {
            let (zero, end) =
                zeroes.blocks_at(range.start, range.end, block).map_err(unknown_map)?;
            let zero = zero && end == range.end;
            if !to.put(Recorded { range, sum, zero }) {
                break;
            }
        }
        Ok(())
    };
    let ended = lanes::run((session, &shared.disks()), interrupt, &work, plan, look)?;
    let sums = kept.lock().0.clone();
    Ok(matches!(ended, Ended::Whole).then_some(sums))
}

impl Shared {
    /// The sum of a range if that is what the journal says, and the source has the same in samples. None: no more is to be
    /// looked at.
    async fn is_there(&self, lane: &Lane, recorded: Recorded) -> Result<Option<Option<u32>>> {
        let Recorded { range, sum, zero } = recorded;
        if zero {
            if sum != sums::of_zeroes(range.end - range.start) {
                return Ok(Some(None));
            }
        } else {
            let mut found = 0;
            for (start, len) in pieces(range.start, range.end) {
                if lane.stops() {
                    return Ok(None);
                }
                found = sums::append(found, &self.read_target(lane.cpu, start, len).await?);
            }
            if found != sum {
                return Ok(Some(None));
            }
        }
        for (start, len) in cut(range.start, range.end, SAMPLED) {
            if lane.stops() {
                return Ok(None);
            }
            let len = len.min(SAMPLE);
            let data = read(&self.source, lane.cpu, start, len).await;
            let mut bio =
                data.map_err(|status| io_error("read", &self.uris.0, start, len, status))?;
            let there = self.read_target(lane.cpu, start, len).await?;
            if sums::append(0, &bio.take_data()) != sums::append(0, &there) {
                return Ok(Some(None));
            }
        }
        Ok(Some(Some(sum)))
    }
}
