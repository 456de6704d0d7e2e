//! A request that is out on a connection, with its memory.
//!
//! Memory that is written from, or read into, is its owner's, and lent for as long as the request is out. It is in
//! here and nowhere else: what sends and what receives looks it up for each call to the kernel. Taking the request
//! back ([`Held::into_job`]) consumes this, so that nothing is left that could touch the memory afterwards.

use std::time::Duration;

use blockyard_blkmq::{Extent, Op};
use blockyard_buf::{Pool, Segment, Segments};

use crate::job::{Ask, Job};
use crate::place::{Filling, Place};

/// Losing so many connections with a request out makes it a suspect: it may be what ends them.
const SUSPICIOUS_LOSSES: u32 = 2;
/// A request that has lost so many connections fails.
const MAX_LOSSES: u32 = 5;

/// What a request has been through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// When it was first without a connection, or held back.
    pub(crate) since: Option<Duration>,
    /// Connections that were lost while it was out on them.
    pub(crate) losses: u32,
}

impl Past {
    /// A connection was lost with it.
    pub(crate) fn lost(self) -> Self {
        Self { losses: self.losses.saturating_add(1), ..self }
    }

    /// Whether it is sent with nothing beside it, so that what it does harms no other.
    pub(crate) fn is_suspect(self) -> bool {
        self.losses >= SUSPICIOUS_LOSSES
    }

    /// Whether it is not sent again.
    pub(crate) fn is_hopeless(self) -> bool {
        self.losses >= MAX_LOSSES
    }
}

/// A request that is out, and its memory.
pub(crate) struct Held<J> {
    job: J,
    past: Past,
    /// The data of a write, in order.
    payload: Segments,
    /// Something else was sent in place of its data: it fails, whatever the server says.
    spoiled: bool,
    /// Where the content of a read goes.
    place: Place,
    /// The answer to a block status query, until it is all there: one that is not is no answer.
    extents: Vec<Extent>,
}

impl<J: Job> Held<J> {
    pub(crate) fn new(job: J, ask: &Ask, past: Past) -> Self {
        let payload = if ask.op == Op::Write { job.memory() } else { Segments::new() };
        let (place, spoiled, extents) = (Place::default(), false, Vec::new());
        Self { job, past, payload, spoiled, place, extents }
    }

    /// What is asked, in however many pieces.
    pub(crate) fn ask(&self) -> Ask {
        self.job.ask()
    }

    /// Forgets what has come of an answer.
    pub(crate) fn forget(&mut self) {
        self.place = Place::default();
        self.extents.clear();
    }

    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }

    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    pub(crate) fn past(&self) -> Past {
        self.past
    }

    pub(crate) fn payload(&self) -> &[Segment] {
        &self.payload
    }

    pub(crate) fn filling(&mut self) -> &mut Filling {
        self.place.filling()
    }

    pub(crate) fn push_extent(&mut self, extent: Extent) {
        self.extents.push(extent);
    }

    /// Makes the next `len` bytes of content, `at` bytes from the start of the request, go to their place.
    pub(crate) fn expect(&mut self, pool: &Pool, at: u64, len: u64) {
        self.place.expect(&self.job, pool, at, len);
    }

    /// Hands `segments` on as all of the content, if the request leaves that to us.
    pub(crate) fn take_whole(&mut self, segments: impl FnOnce() -> Segments) -> bool {
        self.place.take_whole(&self.job, segments)
    }

    /// Zeroes `len` bytes of the content.
    pub(crate) fn fill_zero(&mut self, pool: &Pool, at: u64, len: u64) {
        self.place.fill_zero(&self.job, pool, at, len);
    }

    /// Gives the request back to be sent again, or to be ended.
    pub(crate) fn into_job(self) -> J {
        self.job
    }

    /// The request has succeeded: gives it back with its content.
    pub(crate) fn deliver(self) -> J {
        let Self { mut job, place, extents, .. } = self;
        place.deliver(&mut job);
        extents.into_iter().for_each(|extent| job.extent(extent));
        job
    }
}
