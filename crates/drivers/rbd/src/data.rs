//! What is done for a request.

use std::ops::Range;
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
    let cleared = shared.cleared.notified();
    if shared.is_over.load(Ordering::Acquire) {
        return rq.end(Status::Io);
    }
    // It has nothing of the request's: it goes on where the request ends early.
    let mut work = Box::pin(work(Arc::clone(&shared), Asked::of(&rq, &shared)));
    let answer = tokio::select! {
        biased;
        answer = &mut work => answer,
        () = cleared => {
            tokio::spawn(work);
            return rq.end(Status::Io);
        }
    };
    let Answer { status, mut data, extents } = answer;
    data.drain(..).for_each(|segment| rq.deliver(segment));
    extents.into_iter().for_each(|extent| rq.push_extent(extent));
    rq.end(status);
}

/// What a request asks for.
struct Asked {
    op: Op,
    /// Of the bytes that the disk shows.
    range: Range<u64>,
    /// Bytes with the padding behind the last one, which is nobody's.
    length: u64,
    /// It ends behind that.
    is_outside: bool,
    first_only: bool,
    /// What is written.
    data: Bytes,
}

impl Asked {
    fn of<S: ObjectStore>(rq: &Request<Rbd<S>>, shared: &Shared<S>) -> Self {
        let (op, length) = (rq.op(), rq.len());
        let size = shared.size.load(Ordering::Acquire);
        let end = rq.offset().saturating_add(length);
        let range = rq.offset().min(size)..end.min(size);
        let padded = size.checked_next_multiple_of(BLOCK).unwrap_or(size);
        let data = match op {
            Op::Write => payload(rq, range.end - range.start),
            _ => Bytes::new(),
        };
        let first_only = rq.flags().contains(Flags::FIRST_EXTENT);
        Self { op, range, length, is_outside: end > padded, first_only, data }
    }
}

/// How a request ends.
struct Answer {
    status: Status,
    /// What was read.
    data: Segments,
    extents: Vec<Extent>,
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, data: Segments::new(), extents: Vec::new() }
    }
}

/// Does what a request asks for.
async fn work<S: ObjectStore>(shared: Arc<Shared<S>>, asked: Asked) -> Answer {
    let op = asked.op;
    let opened = if op.is_write() { shared.image.owned().await } else { shared.image.read().await };
    let image = match opened {
        Ok(image) => image,
        Err(error) => return shared.status(&Err(error), op).into(),
    };
    let range = asked.range.clone();
    if range.end > image.size() || asked.is_outside {
        // Somebody else has made it smaller, and the disk is to follow.
        return Status::OutOfRange.into();
    }
    let (start, length) = (range.start, range.end - range.start);
    let mut answer = Answer::from(Status::Ok);
    let done = match op {
        Op::Read => read(&image, &asked, &mut answer.data).await,
        Op::Write => shared.image.locks().write(&image, start, asked.data).await,
        Op::Discard | Op::WriteZeroes => shared.image.locks().zero(&image, start, length).await,
        Op::Flush => image.flush().await,
        Op::BlockStatus => block_status(&image, &asked, &mut answer.extents).await,
        Op::Prefetch => Ok(()),
        Op::SecureErase => return Status::NotSupported.into(),
    };
    answer.status = shared.status(&done, op);
    answer
}

async fn read<S: ObjectStore>(image: &Image<S>, asked: &Asked, data: &mut Segments) -> Result<()> {
    let padding = asked.length - (asked.range.end - asked.range.start);
    for extent in image.layout().extents(asked.range.clone()) {
        let found = image.read_extent(&extent).await?;
        let missing = extent.length.saturating_sub(found.len() as u64);
        if !found.is_empty() {
            // Without a copy, as nobody else has these bytes.
            data.push(Segment::from_vec(found.into()));
        }
        Segment::zeroes(data, usize::try_from(missing).unwrap_or_default());
    }
    Segment::zeroes(data, usize::try_from(padding).unwrap_or_default());
    Ok(())
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
    asked: &Asked,
    extents: &mut Vec<Extent>,
) -> Result<()> {
    let objects = if asked.first_only { 1 } else { ASKED_AT_A_TIME };
    let range = asked.range.clone();
    let (length, wanted) = (range.end - range.start, asked.length);
    let runs = if range.is_empty() { Vec::new() } else { image.allocation(range, objects).await? };
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
            extents.push(run);
            told = end;
        }
    }
    if told == 0 {
        extents.push(Extent::data(wanted.min(BLOCK)));
    }
    Ok(())
}

/// The largest block of a disk.
const BLOCK: u64 = 4096;
