//! What a read may return, given all that was written.
//!
//! A block is a register. A write takes effect at some point between its submission and its end, and one that
//! failed may have taken effect in that time or not at all: but never after its end. So a read may not return a
//! value that another write, submitted after the end of the first, has replaced for certain before the read was
//! submitted.

use std::time::Duration;

/// A write of one block.
#[derive(Clone, Copy, Debug)]
struct Written {
    value: u64,
    start: Duration,
    /// `None` while it is out.
    end: Option<Duration>,
    acked: bool,
    durable: bool,
}

#[derive(Default)]
pub(super) struct History {
    blocks: Vec<Vec<Written>>,
    /// Acknowledged flushes.
    flushes: Vec<(Duration, Duration)>,
    /// When the server lost what it had not made durable.
    power_cuts: Vec<Duration>,
    /// Flushes are believed to cover what such a loss was before (`trust_server`).
    trusting: bool,
}

impl History {
    pub(super) fn new(blocks: usize, trusting: bool) -> Self {
        let zero = Written {
            value: 0,
            start: Duration::ZERO,
            end: Some(Duration::ZERO),
            acked: true,
            durable: true,
        };
        Self { blocks: vec![vec![zero]; blocks], trusting, ..Self::default() }
    }

    pub(super) fn started(&mut self, block: usize, value: u64, now: Duration) {
        let write = Written { value, start: now, end: None, acked: false, durable: false };
        self.blocks[block].push(write);
    }

    /// The write of `value` that was started at `start` has ended.
    pub(super) fn ended(
        &mut self,
        block: usize,
        value: u64,
        start: Duration,
        now: Duration,
        acked: bool,
        durable: bool,
    ) {
        for write in &mut self.blocks[block] {
            if (write.value, write.start, write.end) == (value, start, None) {
                *write = Written { end: Some(now), acked, durable, ..*write };
            }
        }
    }

    pub(super) fn flushed(&mut self, start: Duration, now: Duration) {
        self.flushes.push((start, now));
    }

    pub(super) fn power_cut(&mut self, now: Duration) {
        self.power_cuts.push(now);
    }

    /// Whether the write is there for certain at `now`, if nothing replaced it.
    fn is_certain(&self, write: &Written, now: Duration) -> bool {
        let Some(end) = write.end else { return false };
        let survives = |cut: &Duration| {
            // A flush that ends well after a loss has told that nothing was lost, unless told not to look.
            let covers = |&(start, done): &(Duration, Duration)| {
                start >= end && (done <= *cut || !self.trusting)
            };
            write.durable || self.flushes.iter().any(covers)
        };
        let mut cuts = self.power_cuts.iter().filter(|cut| **cut >= write.start && **cut <= now);
        write.acked && cuts.all(survives)
    }

    /// Checks what a read of `block` has returned.
    pub(super) fn check(
        &self,
        block: usize,
        value: u64,
        start: Duration,
        now: Duration,
    ) -> Result<(), String> {
        let writes = &self.blocks[block];
        let replaced = |write: &Written| {
            let Some(end) = write.end else { return false };
            writes.iter().any(|newer| {
                // At the same moment, they may have overlapped.
                newer.start > end
                    && newer.end.is_some_and(|done| done < start)
                    && self.is_certain(newer, now)
            })
        };
        let mut origin =
            writes.iter().filter(|write| write.value == value && write.start <= now).peekable();
        if origin.peek().is_none() {
            return Err(format!("block {block} has {value:#x}, which nobody wrote"));
        }
        if origin.all(replaced) {
            return Err(format!(
                "block {block} has the stale value {value:#x}, read from {start:?} to {now:?}: {writes:?}"
            ));
        }
        Ok(())
    }
}
