//! Which writes of an export's clients are durable, as far as flushes have told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use blockyard_blkmq::{Bio, Flags, Op};

/// Counts the flushes of an export: a write is durable once a flush has succeeded that was begun after the write had ended,
/// on whatever connection.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    begun: AtomicU64,
    /// The last of those that have succeeded.
    durable: AtomicU64,
}

/// What a connection has written and nobody has flushed.
#[derive(Debug)]
pub(crate) struct Unflushed {
    flushes: Arc<Flushes>,
    /// The last flush that was begun before its last write had ended.
    written: Option<u64>,
    /// Flushes at the disk, by their token, each with its number.
    out: Vec<(u64, u64)>,
}

impl Unflushed {
    pub(crate) fn new(flushes: Arc<Flushes>) -> Self {
        Self { flushes, written: None, out: Vec::new() }
    }

    /// A bio goes to the disk.
    pub(crate) fn begin(&mut self, bio: &Bio) {
        if bio.op == Op::Flush {
            let number = self.flushes.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.out.push((bio.private, number));
        }
    }

    /// Bios have ended. Says whether a flush has succeeded.
    pub(crate) fn end(&mut self, ended: &[Box<Bio>]) -> bool {
        let (mut wrote, mut flushed) = (false, false);
        for bio in ended {
            if bio.op == Op::Flush {
                let at = self.out.iter().position(|(token, _)| *token == bio.private);
                let number = at.map_or(0, |at| self.out.swap_remove(at).1);
                if bio.status().is_ok() {
                    self.flushes.durable.fetch_max(number, Ordering::SeqCst);
                    flushed = true;
                }
            }
            wrote |= bio.op.is_write() && bio.status().is_ok() && !bio.flags.contains(Flags::FUA);
        }
        if wrote {
            self.written = Some(self.flushes.begun.load(Ordering::SeqCst));
        }
        flushed
    }

    /// Whether something is not durable that the client was told of.
    pub(crate) fn is_any(&self) -> bool {
        self.written.is_some_and(|written| self.flushes.durable.load(Ordering::SeqCst) <= written)
    }
}
