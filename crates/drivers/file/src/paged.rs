//! Reads that are answered with what the file has, uncopied: with the pages of the page cache, where the reader can send them, or
//! with the range of the file itself, where the reader has its own way to get at it.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{Request, Status};
use blockyard_buf::FileRange;
use blockyard_sys::page_cache;

use crate::context::Context;
use crate::driver::File;

/// Shorter reads are copied: the system calls that pages take cost more.
const LEAST_BYTES: u64 = 64 << 10;

/// Answers the read, or gives the request back. What is not all there, for whatever reason, is read the long way, which finds out
/// and says so.
pub(crate) fn answer(mut rq: Request<File>, context: &Context) -> Result<(), Request<File>> {
    if rq.len() < LEAST_BYTES || !(rq.takes_pages() || rq.takes_range()) {
        return Err(rq);
    }
    if !deliver(&mut rq, context) {
        return Err(rq);
    }
    rq.end(Status::Ok);
    Ok(())
}

fn deliver(rq: &mut Request<File>, context: &Context) -> bool {
    let Some(file) = &context.file else { return false };
    let (start, len) = (rq.offset(), rq.len());
    // What is behind the end that is shown, or was cut off once, is not the disk's.
    let end = context.size.load(Ordering::Acquire).min(context.health.cut_at());
    if start.checked_add(len).is_none_or(|to| to > end) {
        return false;
    }
    if context.gives_ranges && rq.takes_range() {
        rq.deliver_range(FileRange::new(file, start, len));
        return true;
    }
    let Some(pool) = &context.pages else { return false };
    // Nothing is answered here but what is held already.
    rq.least_bio_len() >= LEAST_BYTES
        && page_cache::has(file.as_fd(), start, len)
        && rq.deliver_pages(|at, len| {
            usize::try_from(len).ok().and_then(|len| pool.take(file.as_fd(), at, len))
        })
}
