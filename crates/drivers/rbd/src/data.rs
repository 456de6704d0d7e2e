//! What is done for a request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{Extent, Flags, Op, Request, Status};
use blockyard_buf::{Segment, Segments};
use blockyard_rbd::Result;
use blockyard_rbd::image::Image;
use blockyard_rbd::store::ObjectStore;
use bytes::Bytes;

use crate::driver::{Rbd, Shared};

/// Objects that are asked for one answer to a block status query: what is behind them has to be asked for again.
const ASKED_AT_A_TIME: usize = 256;

/// Serves a request to its end.
pub(crate) async fn serve<S: ObjectStore>(shared: Arc<Shared<S>>, mut rq: Request<Rbd<S>>) {
    let op = rq.op();
    let opened = if op.is_write() { shared.image.owned().await } else { shared.image.read().await };
    let image = match opened {
        Ok(image) => image,
        Err(error) => return rq.end(shared.status(&Err(error), op)),
    };
    // Padding behind the last byte is nobody's.
    let size = shared.size.load(Ordering::Acquire);
    let start = rq.offset().min(size);
    let end = rq.offset().saturating_add(rq.len()).min(size);
    let padded = size.checked_next_multiple_of(BLOCK).unwrap_or(size);
    if end > image.size() || rq.offset().saturating_add(rq.len()) > padded {
        // Somebody else has made it smaller, and the disk is to follow.
        drop(image);
        return rq.end(Status::OutOfRange);
    }
    let done = match op {
        Op::Read => read(&image, start..end, &mut rq).await,
        Op::Write => {
            let data = payload(&rq, end - start);
            shared.image.locks().write(&image, start, data).await
        }
        Op::Discard | Op::WriteZeroes => {
            shared.image.locks().zero(&image, start, end - start).await
        }
        Op::Flush => image.flush().await,
        Op::BlockStatus => block_status(&image, start..end, &mut rq).await,
        Op::Prefetch => Ok(()),
        Op::SecureErase => return rq.end(Status::NotSupported),
    };
    drop(image);
    rq.end(shared.status(&done, op));
}

async fn read<S: ObjectStore>(
    image: &Image<S>,
    range: std::ops::Range<u64>,
    rq: &mut Request<Rbd<S>>,
) -> Result<()> {
    let padding = rq.len() - (range.end - range.start);
    for extent in image.layout().extents(range) {
        let found = image.read_extent(&extent).await?;
        let missing = extent.length.saturating_sub(found.len() as u64);
        if !found.is_empty() {
            // Without a copy, as nobody else has these bytes.
            rq.deliver(Segment::from_vec(found.into()));
        }
        deliver_zeroes(rq, missing);
    }
    deliver_zeroes(rq, padding);
    Ok(())
}

fn deliver_zeroes<S: ObjectStore>(rq: &mut Request<Rbd<S>>, count: u64) {
    let mut zeroes = Segments::new();
    Segment::zeroes(&mut zeroes, usize::try_from(count).unwrap_or_default());
    zeroes.drain(..).for_each(|segment| rq.deliver(segment));
}

/// The first bytes of a write, copied: others may change its memory while the store reads it, which may read it twice.
fn payload<S: ObjectStore>(rq: &Request<Rbd<S>>, length: u64) -> Bytes {
    let length = usize::try_from(length).unwrap_or_default();
    let mut bytes = vec![0; length];
    let mut rest = &mut bytes[..];
    for segment in rq.segments() {
        let here = segment.len().min(rest.len());
        let (now, later) = rest.split_at_mut(here);
        segment.copy_to(now);
        rest = later;
    }
    bytes.into()
}

async fn block_status<S: ObjectStore>(
    image: &Image<S>,
    range: std::ops::Range<u64>,
    rq: &mut Request<Rbd<S>>,
) -> Result<()> {
    let first_only = rq.flags().contains(Flags::FIRST_EXTENT);
    let asked = if first_only { 1 } else { ASKED_AT_A_TIME };
    let (length, wanted) = (range.end - range.start, rq.len());
    let runs = if range.is_empty() { Vec::new() } else { image.allocation(range, asked).await? };
    // In whole blocks: one with any data in it is data.
    let (mut at, mut told) = (0, 0);
    for run in &runs {
        at += run.length;
        let end =
            if run.is_data { at.next_multiple_of(BLOCK).min(wanted) } else { at - at % BLOCK };
        // The padding is told with what is in front of it.
        let end = if at == length { wanted } else { end };
        if end > told {
            let run = if run.is_data { Extent::data(end - told) } else { Extent::hole(end - told) };
            rq.push_extent(run);
            told = end;
        }
    }
    if told == 0 {
        rq.push_extent(Extent::data(wanted.min(BLOCK)));
    }
    Ok(())
}

/// The largest block of a disk.
const BLOCK: u64 = 4096;
