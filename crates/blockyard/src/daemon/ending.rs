//! What is lost in the end: a last flush that fails is a failure of the whole, which says what may be lost.

use std::fmt;

use blockyard_blkmq::{Disk, Status};

use crate::error::{Error, Result};

/// The last flush of a disk has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
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
            "final flush of {disk} failed ({why}); writes since the last successful flush may be lost"
        )
    }
}

/// What is lost in the end.
#[derive(Clone, Debug, Default)]
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

    /// Whether the loss of a disk is noted.
    pub(crate) fn names(&self, disk: &Disk) -> bool {
        self.0.iter().any(|lost| lost.disk == disk.name())
    }

    /// A failure that names all of them; success if there are none.
    pub(crate) fn into_result(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let disks: Vec<String> =
            self.0.iter().map(|lost| format!("{} ({})", lost.disk, lost.why)).collect();
        let what = format!("final flush failed: {}", disks.join(", "));
        Err(Error::failed(what).help("writes since the last successful flush may be lost"))
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
        assert_eq!(error.to_string(), "final flush failed: vol1 (I/O error), vol2 (timed out)");
        assert!(error.remedy().unwrap().contains("may be lost"));
    }
}
