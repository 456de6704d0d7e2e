//! Which parts of the disk were written, and not yet flushed.
//!
//! A server that loses its cache loses what is marked here. NBD does not tell a server that did from one that did
//! not (`docs/nbd-fencing.md`), so that whoever loses a connection takes its marks, and if there are any the next
//! flush is an error.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::span::Span;

/// Words of 64 marks each.
const WORDS: usize = 16;
/// Parts that a disk is divided into.
const PARTS: u64 = 64 * WORDS as u64;
/// The smallest part is of so many bytes, as a power of two.
const MIN_SHIFT: u32 = 12;

/// The marks of one hardware queue. Only its own thread sets them.
#[derive(Default)]
struct Marks {
    /// Written before the flush that is out was sent, or with none out.
    now: [AtomicU64; WORDS],
    /// Written since.
    later: [AtomicU64; WORDS],
}

/// The marks of a disk.
pub(crate) struct Unflushed {
    /// A part has two to this power bytes.
    shift: u32,
    queues: Box<[Marks]>,
    /// A flush is out whose success takes marks away.
    window: AtomicBool,
}

impl Unflushed {
    /// For a disk of `size` bytes. What it grows by later shares the last mark.
    pub(crate) fn new(size: u64, queues: usize) -> Arc<Self> {
        let shift = size.div_ceil(PARTS).max(1).next_power_of_two().trailing_zeros();
        let queues = (0..queues).map(|_| Marks::default()).collect();
        Arc::new(Self { shift: shift.max(MIN_SHIFT), queues, window: AtomicBool::new(false) })
    }

    /// A write to the range was answered on a queue's connection.
    pub(crate) fn mark(&self, queue: usize, span: Span) {
        let Some(marks) = self.queues.get(queue) else { return };
        // A flush that another thread sends just now is sent after the server has answered this write.
        let later = self.window.load(Ordering::Acquire);
        let words = if later { &marks.later } else { &marks.now };
        let part = |at: u64| (at >> self.shift).min(PARTS - 1);
        for part in part(span.start)..=part(span.end.saturating_sub(1).max(span.start)) {
            let (word, bit) = (usize::try_from(part / 64).unwrap_or(0), 1 << (part % 64));
            if words[word].load(Ordering::Relaxed) & bit == 0 {
                words[word].fetch_or(bit, Ordering::AcqRel);
            }
        }
    }

    /// A flush is about to be sent. `None`: another one is out, and this one takes no marks away.
    pub(crate) fn open_window(self: &Arc<Self>) -> Option<Window> {
        let free = !self.window.swap(true, Ordering::AcqRel);
        free.then(|| Window { unflushed: Arc::clone(self), succeeded: false })
    }

    /// Takes the marks of a queue, whose connection is lost or left.
    pub(crate) fn take(&self, queue: usize) -> Option<Parts> {
        let marks = self.queues.get(queue)?;
        let mut parts = Parts { shift: self.shift, words: [0; WORDS] };
        for (word, (now, later)) in parts.words.iter_mut().zip(marks.now.iter().zip(&marks.later)) {
            *word = now.swap(0, Ordering::AcqRel) | later.swap(0, Ordering::AcqRel);
        }
        parts.words.iter().any(|word| *word != 0).then_some(parts)
    }
}

/// A flush that is out. What was written before it was sent is durable once it has succeeded.
pub(crate) struct Window {
    unflushed: Arc<Unflushed>,
    succeeded: bool,
}

impl Window {
    pub(crate) fn succeeded(mut self) {
        self.succeeded = true;
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        for marks in &self.unflushed.queues {
            for (now, later) in marks.now.iter().zip(&marks.later) {
                if self.succeeded {
                    now.store(0, Ordering::Release);
                }
                now.fetch_or(later.swap(0, Ordering::AcqRel), Ordering::AcqRel);
            }
        }
        self.unflushed.window.store(false, Ordering::Release);
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

    fn taken(unflushed: &Unflushed, queue: usize) -> String {
        unflushed.take(queue).map(|parts| parts.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_flush_covers_what_was_written_before_it() {
        let marks = Unflushed::new(1 << 30, 2);
        marks.mark(0, Span::new(0, 512));
        marks.mark(1, Span::new((5 << 20) - 1, 2));
        let flush = marks.open_window().unwrap();
        assert!(marks.open_window().is_none(), "one at a time");
        marks.mark(0, Span::new(64 << 20, 1 << 20));
        flush.succeeded();
        assert_eq!(taken(&marks, 1), "");
        assert_eq!(taken(&marks, 0), "67108864-68157440");
        assert_eq!(taken(&marks, 0), "");
        // One that fails, or is lost, covers nothing.
        marks.mark(1, Span::new((5 << 20) - 1, 2));
        drop(marks.open_window().unwrap());
        assert_eq!(taken(&marks, 1), "4194304-6291456");
    }

    #[test]
    fn marks_that_were_taken_are_not_covered_by_a_flush_that_is_out() {
        let marks = Unflushed::new(100, 1);
        marks.mark(0, Span::new(0, 100));
        let flush = marks.open_window().unwrap();
        assert_eq!(taken(&marks, 0), "0-4096");
        flush.succeeded();
        // Growth shares the last mark.
        marks.mark(0, Span::new(1 << 40, 1));
        assert_eq!(taken(&marks, 0), format!("{}-{}", 1023 * 4096, 1024 * 4096));
    }
}
