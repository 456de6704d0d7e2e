//! Which writes of an export's clients are durable, as far as flushes have told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Flags, Op};

/// The reply to a write may cross a flush on its way: then the server counts the write as flushed, and the client does not,
/// which flushes again when nothing has come for a while. The connection is not ended before: that is longer than clients of
/// ours wait (`flush_after`, 1 s).
pub(crate) const CROSSING: Duration = Duration::from_millis(1500);

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
    /// `None`: the client cannot flush.
    flushes: Option<Arc<Flushes>>,
    /// The last flush that was begun before its last write had ended.
    written: Option<u64>,
    /// When its last write, and its last flush, had ended, or later.
    ended_at: Option<Instant>,
    /// Flushes at the disk, by their token, each with its number.
    out: Vec<(u64, u64)>,
}

impl Unflushed {
    pub(crate) fn new(flushes: Option<Arc<Flushes>>) -> Self {
        Self { flushes, written: None, ended_at: None, out: Vec::new() }
    }

    /// A bio goes to the disk.
    pub(crate) fn begin(&mut self, bio: &Bio) {
        if bio.op == Op::Flush
            && let Some(flushes) = &self.flushes
        {
            let number = flushes.begun.fetch_add(1, Ordering::SeqCst) + 1;
            self.out.push((bio.private, number));
        }
    }

    /// Bios have ended. Says whether a flush has succeeded.
    pub(crate) fn end(&mut self, ended: &[Box<Bio>]) -> bool {
        let Some(flushes) = &self.flushes else { return false };
        let (mut wrote, mut changed, mut flushed) = (false, false, false);
        for bio in ended {
            if bio.op == Op::Flush {
                let at = self.out.iter().position(|(token, _)| *token == bio.private);
                let number = at.map_or(0, |at| self.out.swap_remove(at).1);
                if bio.status().is_ok() {
                    flushes.durable.fetch_max(number, Ordering::SeqCst);
                    flushed = true;
                }
            }
            changed |= bio.op.is_write();
            wrote |= bio.op.is_write() && bio.status().is_ok() && !bio.flags.contains(Flags::FUA);
        }
        if wrote {
            self.written = Some(flushes.begun.load(Ordering::SeqCst));
        }
        // The client flushes when nothing that changes anything is under way.
        if changed || flushed {
            self.ended_at = None;
        }
        flushed
    }

    /// It is this time now: no clock is read for each write.
    pub(crate) fn note(&mut self, now: Instant) {
        self.ended_at.get_or_insert(now);
    }

    /// Whether something is not durable that the client was told of.
    pub(crate) fn is_any(&self) -> bool {
        let written = self.written.zip(self.flushes.as_ref());
        written.is_some_and(|(written, flushes)| flushes.durable.load(Ordering::SeqCst) <= written)
    }

    /// Whether the disk has a flush.
    pub(crate) fn is_flush_out(&self) -> bool {
        !self.out.is_empty()
    }

    /// Until when the client may flush once more what is durable. `None`: it has written nothing.
    pub(crate) fn may_have_crossed_until(&self) -> Option<Instant> {
        self.written.and(self.ended_at).map(|at| at + CROSSING)
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{Sector, Status};

    use super::*;

    fn bio(op: Op, token: u64) -> Box<Bio> {
        let mut bio = if op == Op::Flush { Bio::flush() } else { Bio::new(op, Sector(0), 512) };
        bio.private = token;
        bio
    }

    fn unflushed(flushes: &Arc<Flushes>) -> Unflushed {
        Unflushed::new(Some(Arc::clone(flushes)))
    }

    /// Its client has flushed, and the flush has ended well.
    fn flush(unflushed: &mut Unflushed) {
        unflushed.begin(&bio(Op::Flush, 9));
        assert!(unflushed.end(&[bio(Op::Flush, 9)]));
    }

    #[test]
    fn a_flush_covers_what_had_ended_when_it_began() {
        let flushes = Arc::default();
        let mut one = unflushed(&flushes);
        assert!(!one.is_any());
        one.begin(&bio(Op::Flush, 1));
        assert!(!one.end(&[bio(Op::Write, 2)]) && one.is_any());
        assert!(one.end(&[bio(Op::Flush, 1)]) && one.is_any(), "it was begun before");
        flush(&mut one);
        assert!(!one.is_any());
        one.end(&[bio(Op::Write, 3)]);
        flush(&mut unflushed(&flushes));
        assert!(!one.is_any(), "by another connection");
    }

    #[test]
    fn flushes_end_in_any_order_and_one_that_fails_covers_nothing() {
        let flushes = Arc::default();
        let mut one = unflushed(&flushes);
        one.end(&[bio(Op::Write, 1)]);
        one.begin(&bio(Op::Flush, 2));
        let (tell, told) = std::sync::mpsc::channel();
        let failed = bio(Op::Flush, 2).on_end(Arc::new(move |bio| tell.send(bio).unwrap()));
        failed.end(Status::Io);
        assert!(!one.end(&[told.recv().unwrap()]) && one.is_any());
        one.begin(&bio(Op::Flush, 3));
        one.begin(&bio(Op::Flush, 4));
        one.end(&[bio(Op::Flush, 4)]);
        one.end(&[bio(Op::Flush, 3)]);
        assert!(!one.is_any());
    }

    #[test]
    fn who_has_written_may_flush_again_for_a_while_after_the_last_answer() {
        let flushes = Arc::default();
        let (mut one, start) = (unflushed(&flushes), Instant::now());
        let second = Duration::from_secs(1);
        one.note(start);
        assert_eq!(one.may_have_crossed_until(), None, "it has written nothing");
        one.end(&[bio(Op::Write, 1)]);
        one.note(start + second);
        one.note(start + 5 * second);
        assert_eq!(one.may_have_crossed_until(), Some(start + second + CROSSING));
        flush(&mut one);
        one.note(start + 9 * second);
        assert_eq!(one.may_have_crossed_until(), Some(start + 9 * second + CROSSING));
        one.end(&[bio(Op::Read, 2)]);
        one.note(start + 20 * second);
        assert_eq!(one.may_have_crossed_until(), Some(start + 9 * second + CROSSING));
    }

    #[test]
    fn who_cannot_flush_is_waited_for_no_flush() {
        let mut one = Unflushed::new(None);
        one.end(&[bio(Op::Write, 1)]);
        one.note(Instant::now());
        assert!(!one.is_any() && one.may_have_crossed_until().is_none());
    }
}
