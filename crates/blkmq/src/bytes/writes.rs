//! The writes of a hardware queue that are out, for whoever wants a block for himself.
//!
//! Nobody keeps this list until the first unaligned write of a disk. What was out then is not in it, and is waited for
//! as if it overlapped everything.

use smallvec::SmallVec;

use crate::units::Sector;

/// Who waits: by the number of their lock.
pub(crate) type Waiters = SmallVec<[u64; 2]>;

/// A request that is in use: the range that it changes, if any, and who waits for its end.
#[derive(Default)]
struct Out {
    start: Sector,
    end: Sector,
    waiters: Waiters,
}

/// The requests of a hardware queue that are in use, by their internal tags.
pub(crate) struct WritesOut {
    out: Vec<Option<Out>>,
    /// Requests that were in use before this list was.
    unknown: usize,
    wait_for_unknown: Waiters,
}

impl WritesOut {
    /// So many requests are in use, of which nothing is known.
    pub(crate) fn new(unknown: usize) -> Self {
        Self { out: Vec::new(), unknown, wait_for_unknown: Waiters::new() }
    }

    /// A request comes into use, and changes a range: an empty one, if it is no write.
    pub(crate) fn begin(&mut self, internal_tag: u32, start: Sector, end: Sector) {
        let at = internal_tag as usize;
        if at >= self.out.len() {
            self.out.resize_with(at + 1, || None);
        }
        self.out[at] = Some(Out { start, end, waiters: Waiters::new() });
    }

    /// A request has grown by a merge.
    pub(crate) fn grow(&mut self, internal_tag: u32, start: Sector, end: Sector) {
        if let Some(Some(out)) = self.out.get_mut(internal_tag as usize)
            && out.start < out.end
        {
            (out.start, out.end) = (start, end);
        }
    }

    /// A request is not in use any more. Gives back who has waited for that.
    pub(crate) fn end(&mut self, internal_tag: u32) -> Waiters {
        if let Some(out) = self.out.get_mut(internal_tag as usize).and_then(Option::take) {
            return out.waiters;
        }
        self.unknown -= 1;
        if self.unknown == 0 { std::mem::take(&mut self.wait_for_unknown) } else { Waiters::new() }
    }

    /// Has `waiter` told of the end of all writes to a range that are out; says how often that will be.
    pub(crate) fn wait(&mut self, start: Sector, end: Sector, waiter: u64) -> usize {
        let mut count = 0;
        for out in self.out.iter_mut().flatten() {
            if out.start < end && start < out.end {
                out.waiters.push(waiter);
                count += 1;
            }
        }
        if self.unknown > 0 {
            self.wait_for_unknown.push(waiter);
            count += 1;
        }
        count
    }
}
