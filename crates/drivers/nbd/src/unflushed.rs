//! Which parts of the disk were written, and not yet flushed.
//!
//! A server that loses its cache loses what is marked here. NBD does not tell a server that did from one that did
//! not (`docs/nbd-fencing.md`), so that whoever loses a connection takes its marks, and if there are any the next
//! flush is an error.
//!
//! Time is counted in epochs: a flush that is sent ends one. A mark is the epoch in which a write was answered, and a
//! flush that succeeds makes durable what has marks of its epoch or an earlier one, however many are out.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::span::Span;

/// Words of 64 parts each.
const WORDS: usize = 16;
/// Parts that a disk is divided into.
const PARTS: u64 = 64 * WORDS as u64;
/// The smallest part is of so many bytes, as a power of two.
const MIN_SHIFT: u32 = 12;

/// Names a time between two flushes.
pub(crate) type Epoch = u64;

/// Where it is known beyond this process whether anything is not flushed. It is told of a flush twice, and of writes
/// once in an epoch by each connection, on its queue thread, and must not block.
pub trait Ledger: Send + Sync {
    /// A write of this epoch, or of an earlier one, is about to end, and is not flushed.
    fn written(&self, epoch: u64);

    /// A flush of what was written in this epoch, and before, is about to be sent.
    fn flushing(&self, epoch: u64);

    /// That flush was answered, or will not be any more. If so, all that was written in this epoch, and before, is durable.
    fn flush_ended(&self, epoch: u64, durable: bool);
}

/// A flush that is out: who keeps a ledger is told when it is not any more.
#[derive(Default)]
pub(crate) struct FlushOut {
    /// None of other requests, and where there is no cache.
    of: Option<Arc<Unflushed>>,
    /// That it has ended.
    pub(crate) epoch: Epoch,
    /// All of that epoch is durable by it, and all from before.
    pub(crate) is_durable: bool,
}

impl Drop for FlushOut {
    fn drop(&mut self) {
        if let Some(ledger) = self.of.as_ref().and_then(|of| of.ledger.get()) {
            ledger.flush_ended(self.epoch, self.is_durable);
        }
    }
}

/// How a disk is divided, and its time.
pub(crate) struct Unflushed {
    /// A part has two to this power bytes.
    shift: u32,
    epoch: AtomicU64,
    ledger: OnceLock<Arc<dyn Ledger>>,
}

impl Unflushed {
    /// For a disk of `size` bytes. What it grows by later shares the last mark.
    pub(crate) fn new(size: u64) -> Arc<Self> {
        let shift = size.div_ceil(PARTS).max(1).next_power_of_two().trailing_zeros();
        let (epoch, ledger) = (AtomicU64::new(1), OnceLock::new());
        Arc::new(Self { shift: shift.max(MIN_SHIFT), epoch, ledger })
    }

    pub(crate) fn keep_ledger(&self, ledger: Arc<dyn Ledger>) {
        // Whoever was first is told.
        let _ = self.ledger.set(ledger);
    }

    /// A connection has its first mark since a flush was sent. The epoch is read once that can be seen: a flush that does not
    /// see it has ended another epoch than this, which is the one that is told.
    #[cold]
    fn note_written(&self) -> Epoch {
        let epoch = self.epoch.load(Ordering::SeqCst);
        if let Some(ledger) = self.ledger.get() {
            ledger.written(epoch);
        }
        epoch
    }

    /// A flush is about to be sent: ends an epoch.
    pub(crate) fn begin_flush(self: &Arc<Self>) -> FlushOut {
        let epoch = self.end_epoch();
        if let Some(ledger) = self.ledger.get() {
            ledger.flushing(epoch);
        }
        FlushOut { of: Some(Arc::clone(self)), epoch, is_durable: false }
    }

    /// Ends an epoch, and says which one that was. What was answered by now has its mark or an earlier one.
    pub(crate) fn end_epoch(&self) -> Epoch {
        self.epoch.fetch_add(1, Ordering::SeqCst)
    }

    /// Those of a new connection.
    pub(crate) fn marks(self: &Arc<Self>) -> Arc<Marks> {
        let parts = (0..PARTS).map(|_| AtomicU64::new(0)).collect();
        let [latest, inherited, flushed, told] = [(); 4].map(|()| AtomicU64::new(0));
        Arc::new(Marks { of: Arc::clone(self), parts, latest, inherited, flushed, told })
    }
}

/// The marks of one connection: only its own thread sets them.
pub(crate) struct Marks {
    of: Arc<Unflushed>,
    /// When each part was last written.
    parts: Box<[AtomicU64]>,
    /// When any was.
    latest: AtomicU64,
    /// When it was given what another had left, anywhere on the disk: by any thread.
    inherited: AtomicU64,
    /// What was written up to then is durable.
    flushed: AtomicU64,
    /// The epoch that was told of it.
    told: AtomicU64,
}

impl Marks {
    /// A write to the range was answered.
    pub(crate) fn mark(&self, span: Span) {
        // A flush that another thread sends just now is sent after the server has answered this write.
        self.mark_in(self.of.epoch.load(Ordering::Acquire), span);
    }

    fn mark_in(&self, epoch: Epoch, span: Span) {
        let part = |at: u64| usize::try_from((at >> self.of.shift).min(PARTS - 1)).unwrap_or(0);
        let range = part(span.start)..=part(span.end.saturating_sub(1).max(span.start));
        for part in self.parts.get(range).unwrap_or_default() {
            if part.load(Ordering::Relaxed) != epoch {
                part.store(epoch, Ordering::Relaxed);
            }
        }
        if self.latest.load(Ordering::Relaxed) != epoch {
            self.latest.store(epoch, Ordering::SeqCst);
            self.told.store(self.of.note_written(), Ordering::Relaxed);
        }
    }

    /// The server has something of another connection, which this one is to flush.
    pub(crate) fn inherit(&self) {
        // A flush that is out was sent to the same server, but perhaps before it had all of that.
        self.inherited.fetch_max(self.of.epoch.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// What was answered in this epoch, or before, is durable.
    pub(crate) fn flushed(&self, epoch: Epoch) {
        self.flushed.fetch_max(epoch, Ordering::AcqRel);
    }

    pub(crate) fn is_dirty(&self) -> bool {
        let latest = self.latest.load(Ordering::SeqCst).max(self.inherited.load(Ordering::SeqCst));
        latest > self.flushed.load(Ordering::Acquire)
    }

    /// Whether a flush is good for something: another one that was sent just when a write was marked may have made that durable,
    /// and have been told of first.
    pub(crate) fn wants_flush(&self) -> bool {
        self.is_dirty() || self.told.load(Ordering::Relaxed) > self.flushed.load(Ordering::Acquire)
    }

    /// Whether nothing of that epoch, or from before, is left that is not flushed.
    pub(crate) fn are_durable_up_to(&self, epoch: Epoch) -> bool {
        self.flushed.load(Ordering::Acquire) >= epoch || !self.is_dirty()
    }

    /// Takes the marks of a connection that is over.
    pub(crate) fn take(&self) -> Option<Parts> {
        let flushed = self.flushed.fetch_max(self.of.end_epoch(), Ordering::AcqRel);
        let all = self.inherited.load(Ordering::SeqCst) > flushed;
        let words = if all { [u64::MAX; WORDS] } else { [0; WORDS] };
        let mut parts = Parts { shift: self.of.shift, words };
        for (word, marks) in parts.words.iter_mut().zip(self.parts.chunks(64)) {
            for (bit, mark) in marks.iter().enumerate() {
                *word |= u64::from(mark.load(Ordering::Relaxed) > flushed) << bit;
            }
        }
        parts.words.iter().any(|word| *word != 0).then_some(parts)
    }
}

/// Parts of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    shift: u32,
    words: [u64; WORDS],
}

impl fmt::Display for Parts {
    /// The ranges, in bytes, rounded to parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_set = |part: u64| {
            let word = usize::try_from(part / 64).ok().and_then(|at| self.words.get(at));
            word.is_some_and(|word| word >> (part % 64) & 1 == 1)
        };
        let (mut part, mut before) = (0, "");
        while part < PARTS {
            let len = (part..PARTS).take_while(|part| is_set(*part)).count() as u64;
            if len > 0 {
                write!(f, "{before}{}-{}", part << self.shift, (part + len) << self.shift)?;
                before = ", ";
            }
            part += len.max(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(marks: &Marks) -> String {
        marks.take().map(|parts| parts.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_flush_covers_what_was_written_before_it() {
        let unflushed = Unflushed::new(1 << 30);
        let marks = unflushed.marks();
        marks.mark(Span::new(0, 512));
        marks.mark(Span::new((5 << 20) - 1, 2));
        let first = unflushed.end_epoch();
        marks.mark(Span::new(64 << 20, 1 << 20));
        let second = unflushed.end_epoch();
        marks.mark(Span::new(0, 1));
        marks.flushed(first);
        assert!(marks.is_dirty());
        // The later one covers more, also if it is answered first.
        marks.flushed(second);
        marks.flushed(first);
        assert_eq!(taken(&marks), "0-1048576");
        assert!(!marks.is_dirty());
        assert_eq!(taken(&marks), "");
        // One that fails, or is lost, covers nothing.
        marks.mark(Span::new((5 << 20) - 1, 2));
        unflushed.end_epoch();
        assert_eq!(taken(&marks), "4194304-6291456");
    }

    /// Another queue flushes between the look at the epoch and the mark.
    #[test]
    fn what_was_told_after_it_was_flushed_is_flushed_again() {
        #[derive(Default)]
        struct Told(AtomicU64, AtomicU64);
        impl Ledger for Told {
            fn written(&self, epoch: u64) {
                self.0.fetch_max(epoch, Ordering::SeqCst);
            }
            fn flushing(&self, _epoch: u64) {}
            fn flush_ended(&self, epoch: u64, durable: bool) {
                if durable {
                    self.1.fetch_max(epoch, Ordering::SeqCst);
                }
            }
        }
        let (unflushed, told) = (Unflushed::new(1 << 20), Arc::new(Told::default()));
        unflushed.keep_ledger(Arc::<Told>::clone(&told));
        let is_told_dirty = || told.0.load(Ordering::SeqCst) > told.1.load(Ordering::SeqCst);
        let marks = unflushed.marks();
        let end = |mut flush: FlushOut| {
            marks.flushed(flush.epoch);
            assert!(marks.are_durable_up_to(flush.epoch));
            flush.is_durable = true;
        };
        let flush = unflushed.begin_flush();
        let epoch = flush.epoch;
        end(flush);
        marks.mark_in(epoch, Span::new(0, 512));
        assert!(!marks.is_dirty() && is_told_dirty() && marks.wants_flush());
        end(unflushed.begin_flush());
        assert!(!is_told_dirty() && !marks.wants_flush());
        // The usual way.
        marks.mark(Span::new(0, 512));
        assert!(is_told_dirty() && marks.wants_flush());
        end(unflushed.begin_flush());
        assert!(!is_told_dirty() && !marks.wants_flush());
    }

    #[test]
    fn what_another_connection_has_left_is_flushed_by_a_later_flush() {
        let unflushed = Unflushed::new(1024 << MIN_SHIFT);
        let marks = unflushed.marks();
        let before = unflushed.end_epoch();
        marks.inherit();
        marks.flushed(before);
        assert!(marks.is_dirty() && marks.wants_flush() && !marks.are_durable_up_to(before + 1));
        marks.flushed(unflushed.end_epoch());
        assert!(!marks.is_dirty());
        assert_eq!(taken(&marks), "");
        marks.inherit();
        assert_eq!(taken(&marks), format!("0-{}", 1024 << MIN_SHIFT));
    }

    #[test]
    fn growth_shares_the_last_mark() {
        let marks = Unflushed::new(100).marks();
        assert!(!marks.is_dirty());
        marks.mark(Span::new(0, 100));
        assert_eq!(taken(&marks), "0-4096");
        marks.mark(Span::new(1 << 40, 1));
        assert_eq!(taken(&marks), format!("{}-{}", 1023 * 4096, 1024 * 4096));
    }
}
