//! Making what is copied durable, and writing that down, while the rest is copied.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Features, Status};

use super::work::Shared;
use crate::error::{Error, Result};
use crate::tools::interrupt::Interrupt;
use crate::tools::journal::Journal;
use crate::tools::lanes::{GRACE, LOOK};
use crate::tools::session::Session;
use crate::tools::sums::Sums;

/// What the target was asked to make durable.
struct Flush {
    covered: Option<Sums>,
    ended: Receiver<Status>,
}

/// What is known of all that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// It is durable.
    Durable,
    /// Nothing: a flush has failed, or nobody waits for it any more.
    Unknown,
    /// It is where the target cannot make it durable, as was said before.
    Never,
}

/// Whether the target is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Flushes,
    /// Not any more: a flush has failed, or was given up.
    Failed,
    /// It cannot be.
    HasNoFlush,
}

/// Flushes of the target, one after the other. After one that failed, or was given up, there are no more: what it should
/// have covered may be lost, and the next one would not say so (a server reports an error once).
pub(super) struct Checkpoints<'a> {
    shared: &'a Arc<Shared>,
    journal: Option<&'a mut Journal>,
    flush: Option<Flush>,
    last: Instant,
    interval: Duration,
    target: Target,
}

impl<'a> Checkpoints<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        journal: Option<&'a mut Journal>,
        interval: Duration,
    ) -> Self {
        let features = shared.target.limits().features;
        let has_none = features.contains(Features::NO_FLUSH);
        let target = if has_none { Target::HasNoFlush } else { Target::Flushes };
        if has_none {
            tracing::warn!(
                disk = shared.uris.1,
                "the target cannot flush; the copy may remain in the cache of its server"
            );
        }
        Self { shared, journal, flush: None, last: Instant::now(), interval, target }
    }

    /// Sees to it every now and then. It does not wait.
    pub(super) fn look(&mut self) -> Result<()> {
        let Some(flush) = &self.flush else {
            let flushes = self.target == Target::Flushes;
            if self.journal.is_some() && flushes && self.last.elapsed() >= self.interval {
                self.begin();
            }
            return Ok(());
        };
        match flush.ended.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            ended => self.ended(ended.unwrap_or(Status::Io)),
        }
    }

    /// Makes all that is done durable. If an end is wanted, that takes no longer than a while.
    pub(super) fn finish(&mut self, session: &Session, interrupt: &Interrupt) -> Result<Flushed> {
        self.wait(session, interrupt)?;
        if self.target == Target::Flushes {
            self.begin();
            self.wait(session, interrupt)?;
        }
        // What is not flushed any more has been told already.
        Ok(match self.target {
            Target::Flushes => Flushed::Durable,
            Target::Failed => Flushed::Unknown,
            Target::HasNoFlush => Flushed::Never,
        })
    }

    fn begin(&mut self) {
        // What ends after this is not known to be covered.
        let covered = self.shared.done.lock().sums.clone();
        let (tell, ended) = mpsc::sync_channel(1);
        let told = move |bio: Box<Bio>| {
            // Nobody listens once an end is wanted.
            let _ = tell.try_send(bio.status());
        };
        self.shared.target.submit(0, Bio::flush().on_end(Arc::new(told)));
        self.flush = Some(Flush { covered, ended });
    }

    fn ended(&mut self, status: Status) -> Result<()> {
        let Some(Flush { covered, .. }) = self.flush.take() else { return Ok(()) };
        if !status.is_ok() {
            self.target = Target::Failed;
            let target = &self.shared.uris.1;
            let what = format!("cannot flush {target}; the copy may be incomplete");
            let help = match self.journal {
                Some(_) => "run the same command again to resume",
                None => "run the same command again",
            };
            return Err(Error::failed(what).caused_by(status).help(help));
        }
        self.last = Instant::now();
        match (&mut self.journal, covered) {
            (Some(journal), Some(covered)) => journal.write(&covered),
            _ => Ok(()),
        }
    }

    fn wait(&mut self, session: &Session, interrupt: &Interrupt) -> Result<()> {
        let mut wanted: Option<Instant> = None;
        let mut given_up = false;
        while let Some(flush) = &self.flush {
            match flush.ended.recv_timeout(LOOK) {
                Err(RecvTimeoutError::Timeout) if interrupt.is_wanted() => {
                    let since = wanted.get_or_insert_with(Instant::now).elapsed();
                    if since >= 2 * GRACE {
                        // A file cannot be told to give up.
                        self.target = Target::Failed;
                        return Ok(());
                    }
                    if since >= GRACE {
                        given_up = true;
                        session.abandon();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // That is the end of waiting, not what the target has said.
                Ok(status) if given_up && !status.is_ok() => {
                    self.target = Target::Failed;
                    return Ok(());
                }
                ended => return self.ended(ended.unwrap_or(Status::Io)),
            }
        }
        Ok(())
    }
}
