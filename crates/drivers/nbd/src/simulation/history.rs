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
    /// When a server lost what it had not made durable, and of which block.
    power_cuts: Vec<(Duration, usize)>,
    trust: Trust,
}

/// What a flush that succeeds tells of the losses of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Trust {
    /// That there were none before it, either.
    #[default]
    None,
    /// Servers are trusted to lose nothing in a restart (`trust_server`), and lose nothing before the flush.
    Kept,
    /// The same, and they do lose: nothing.
    Betrayed,
}

impl History {
    pub(super) fn new(blocks: usize, trust: Trust) -> Self {
        let zero = Written {
            value: 0,
            start: Duration::ZERO,
            end: Some(Duration::ZERO),
            acked: true,
            durable: true,
        };
        Self { blocks: vec![vec![zero]; blocks], trust, ..Self::default() }
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

    pub(super) fn power_cut(&mut self, now: Duration, lost: &[usize]) {
        self.power_cuts.extend(lost.iter().map(|block| (now, *block)));
    }

    /// Whether the write to `block` is there for certain at `now`, if nothing replaced it.
    fn is_certain(&self, block: usize, write: &Written, now: Duration) -> bool {
        let Some(end) = write.end else { return false };
        let survives = |(cut, _): &(Duration, usize)| {
            // A flush that ends well after a loss has told that nothing was lost, unless told not to look.
            let covers = |&(start, done): &(Duration, Duration)| {
                let tells = match self.trust {
                    Trust::None => true,
                    Trust::Kept => done <= *cut,
                    Trust::Betrayed => false,
                };
                start >= end && tells
            };
            write.durable || self.flushes.iter().any(covers)
        };
        let concerns =
            |&&(cut, of): &&(Duration, usize)| of == block && cut >= write.start && cut <= now;
        let mut cuts = self.power_cuts.iter().filter(concerns);
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
                    && self.is_certain(block, newer, now)
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
