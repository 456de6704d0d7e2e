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

/// An export that could not be ended: it is still mounted, say.
#[derive(Clone, Debug)]
struct NotEnded {
    what: String,
    remedies: Vec<String>,
}

/// What is lost in the end, or left behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Losses {
    flushes: Vec<FlushFailed>,
    exports: Vec<NotEnded>,
}

impl Losses {
    /// What came of the last flush of a disk.
    pub(crate) fn note(&mut self, flushed: Result<(), FlushFailed>) {
        self.flushes.extend(flushed.err());
    }

    /// Nobody knows what came of the last flush of a disk.
    pub(crate) fn note_failure(&mut self, disk: &Disk, why: &impl ToString) {
        self.flushes.push(FlushFailed::new(disk.name(), why));
    }

    /// An export could not be ended.
    pub(crate) fn note_export(&mut self, label: &str, err: &Error) {
        let (causes, mut remedies) = err.told();
        let what = [vec![format!("cannot end {label}"), err.to_string()], causes].concat();
        remedies.dedup();
        self.exports.push(NotEnded { what: what.join(": "), remedies });
    }

    /// Those of other disks.
    pub(crate) fn extend(&mut self, others: Self) {
        self.flushes.extend(others.flushes);
        self.exports.extend(others.exports);
    }

    /// How the last flush of a disk has ended.
    pub(crate) fn note_status(&mut self, disk: &Disk, flushed: Status) {
        if !flushed.is_ok() {
            self.flushes.push(FlushFailed::new(disk.name(), &flushed));
        }
    }

    /// Whether the loss of a disk is noted.
    pub(crate) fn names(&self, disk: &Disk) -> bool {
        self.flushes.iter().any(|lost| lost.disk == disk.name())
    }

    /// A failure that names all of them; success if there are none.
    pub(crate) fn into_result(self) -> Result<()> {
        let (mut what, mut remedies) = (Vec::new(), Vec::new());
        if !self.flushes.is_empty() {
            let disks: Vec<String> =
                self.flushes.iter().map(|lost| format!("{} ({})", lost.disk, lost.why)).collect();
            what.push(format!("final flush failed: {}", disks.join(", ")));
            remedies.push("writes since the last successful flush may be lost".to_owned());
        }
        for left in self.exports {
            what.push(left.what);
            remedies.extend(left.remedies);
        }
        if what.is_empty() {
            return Ok(());
        }
        let failed = Error::failed(what.join("; "));
        Err(if remedies.is_empty() { failed } else { failed.help(remedies.join("; ")) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

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

    #[test]
    fn what_is_left_behind_is_named_and_fails_the_whole() {
        let covered = Error::failed("cannot unmount /x: covered").help("run: umount /x");
        let mut losses = Losses::default();
        let left = Error::new(ErrorKind::Busy, "/x is still mounted").caused_by(covered);
        losses.note_export("fuse:disk", &left);
        let error = losses.clone().into_result().unwrap_err();
        assert_eq!(error.kind().exit_code(), 1);
        let what = "cannot end fuse:disk: /x is still mounted: cannot unmount /x: covered";
        assert_eq!((error.to_string(), error.remedy()), (what.to_owned(), Some("run: umount /x")));
        losses.note(Err(FlushFailed::new("vol1", &Status::Io)));
        let both = losses.into_result().unwrap_err();
        assert!(both.to_string().contains("vol1 (I/O error); cannot end fuse:disk"), "{both}");
    }
}
