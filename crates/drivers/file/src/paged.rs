//! Long reads of what is in the page cache are answered with its pages, uncopied, where the reader can send them.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{Request, Status};
use blockyard_sys::page_cache;

use crate::driver::File;
use crate::job::Context;

/// Shorter reads are copied: the system calls that this takes cost more.
const LEAST_BYTES: u64 = 64 << 10;

/// Answers the read, or gives the request back. What is not all there, for whatever reason, is read the long way, which finds out
/// and says so: nothing is answered here but what is held already.
pub(crate) fn answer(mut rq: Request<File>, context: &Context) -> Result<(), Request<File>> {
    if rq.len() < LEAST_BYTES || !rq.takes_pages() || !deliver(&mut rq, context) {
        return Err(rq);
    }
    rq.end(Status::Ok);
    Ok(())
}

fn deliver(rq: &mut Request<File>, context: &Context) -> bool {
    let (Some(pool), Some(file)) = (&context.pages, &context.file) else { return false };
    let (start, len) = (rq.offset(), rq.len());
    // What is behind the end that is shown, or was cut off once, is not the disk's.
    let end = context.size.load(Ordering::Acquire).min(context.health.cut_at());
    start.checked_add(len).is_some_and(|to| to <= end)
        && rq.least_bio_len() >= LEAST_BYTES
        && page_cache::has(file.as_fd(), start, len)
        && rq.deliver_pages(|at, len| {
            usize::try_from(len).ok().and_then(|len| pool.take(file.as_fd(), at, len))
        })
}
