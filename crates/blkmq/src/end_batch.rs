//! Requests that end together (kernel: `struct io_comp_batch`).

use std::fmt;
use std::sync::Arc;

use crate::driver::Driver;
use crate::op::Status;
use crate::request::{Request, Rq};

/// Requests that have ended, until their bios and their queue are told, of all at once: that takes one look
/// at the clock, and one lock, however many they are. A driver that finds several completions at a time keeps one of these with
/// its hardware queue.
///
/// Dropped, it ends what it has.
pub struct EndBatch<D: Driver>(Vec<Box<Rq<D>>>);

impl<D: Driver> Default for EndBatch<D> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<D: Driver> EndBatch<D> {
    /// Adds a request, which ends with `status` as by [`Request::end`]. One that has more to do than to end goes on now.
    pub fn add(&mut self, rq: Request<D>, status: Status) {
        if !rq.only_ends() {
            return rq.end(status);
        }
        let (mut rq, status) = rq.into_ended(status);
        rq.status = status;
        self.0.push(rq);
    }

    /// Ends all of them. There are none then.
    pub fn end(&mut self) {
        let Some(hctx) = self.0.first().and_then(|rq| rq.hctx.clone()) else { return };
        let is_own = |rq: &Rq<D>| rq.hctx.as_ref().is_some_and(|own| Arc::ptr_eq(own, &hctx));
        if !self.0.iter().all(|rq| is_own(rq)) {
            // Seldom: a driver may carry out what came by another queue.
            for mut rq in self.0.extract_if(.., |rq| !is_own(rq)) {
                let status = rq.status;
                if let Some(hctx) = rq.hctx.take() {
                    hctx.ended(rq, status);
                }
            }
        }
        hctx.finish_all(&mut self.0);
    }
}

impl<D: Driver> Drop for EndBatch<D> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<D: Driver> fmt::Debug for EndBatch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests that have ended", self.0.len())
    }
}
