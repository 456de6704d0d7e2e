//! The end of a daemon: what clients have asked for is answered, disks are flushed and closed. A last flush that fails is a
//! failure of the whole, which says what may be lost.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockyard_blkmq::{Disk, Status};
use tokio::task::JoinSet;

use super::Yard;
use crate::disks::OpenDisk;
use crate::error::{Error, Result};
use crate::yard::queue_threads::QueueThreads;

/// What a server has for the last flush when those before have used up the grace.
const LEAST: Duration = Duration::from_secs(1);

/// Ends all of it, within the grace of the plan and [`LEAST`]; only disks of this machine take as long as they take.
pub(super) async fn end(yard: Arc<Yard>, threads: QueueThreads, open: Vec<OpenDisk>) -> Result<()> {
    let grace = yard.plan.grace;
    let end = Instant::now() + grace;
    let left = || end.saturating_duration_since(Instant::now());
    // They end together.
    yard.back_ends().iter().for_each(|back_end| back_end.server.stop());
    yard.server.shutdown(grace).await;
    for back_end in yard.back_ends() {
        back_end.server.shutdown(left()).await;
    }
    let limit = left().max(LEAST);
    let mut closing = JoinSet::new();
    for open in open {
        closing.spawn(open.close(Arc::clone(&yard.layer), limit));
    }
    let mut losses = Losses::default();
    closing.join_all().await.into_iter().for_each(|lost| losses.extend(lost));
    let ended = tokio::task::spawn_blocking(move || threads.shutdown());
    ended.await.map_err(|err| Error::failed("cannot close the disks").caused_by(err))?;
    losses.into_result()
}

/// The last flush of a disk has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FlushFailed {
    disk: String,
    why: String,
}

impl FlushFailed {
    pub(crate) fn new(disk: &str, why: &impl ToString) -> Self {
        Self { disk: disk.to_owned(), why: why.to_string() }
    }
}

impl fmt::Display for FlushFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, why } = self;
        write!(
            f,
            "the last flush of {disk} failed ({why}): what was written since the last good one may be lost"
        )
    }
}

/// What is lost in the end.
#[derive(Debug, Default)]
pub(crate) struct Losses(Vec<FlushFailed>);

impl Losses {
    /// What came of the last flush of a disk.
    pub(crate) fn note(&mut self, flushed: Result<(), FlushFailed>) {
        self.0.extend(flushed.err());
    }

    /// Nobody knows what came of the last flush of a disk.
    pub(crate) fn note_failure(&mut self, disk: &Disk, why: &impl ToString) {
        self.0.push(FlushFailed::new(disk.name(), why));
    }

    /// Those of other disks.
    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// How the last flush of a disk has ended.
    pub(crate) fn note_status(&mut self, disk: &Disk, flushed: Status) {
        if !flushed.is_ok() {
            self.0.push(FlushFailed::new(disk.name(), &flushed));
        }
    }

    /// A failure that names all of them; success if there are none.
    pub(crate) fn into_result(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let disks: Vec<String> =
            self.0.iter().map(|lost| format!("{} ({})", lost.disk, lost.why)).collect();
        let what = format!("the last flush failed: {}", disks.join(", "));
        Err(Error::failed(what)
            .help("what was written there since the last good flush may be lost"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_named_and_fails_the_whole() {
        Losses::default().into_result().unwrap();
        let mut losses = Losses::default();
        losses.note(Err(FlushFailed::new("vol1", &Status::Io)));
        losses.note(Ok(()));
        losses.note(Err(FlushFailed::new("vol2", &Status::Timeout)));
        let error = losses.into_result().unwrap_err();
        assert_eq!(error.kind().exit_code(), 1);
        assert_eq!(error.to_string(), "the last flush failed: vol1 (I/O error), vol2 (timed out)");
        assert!(error.remedy().unwrap().contains("may be lost"));
    }
}
