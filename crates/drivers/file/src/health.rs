//! What went wrong with the file for good, and is said once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use blockyard_blkmq::Status;

/// Troubles of one file, which all of its queues share.
pub(crate) struct Health {
    path: PathBuf,
    /// A flush has failed: see the crate's documentation.
    flush_failed: AtomicBool,
    shrunk: AtomicBool,
    refused: AtomicBool,
}

impl Health {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            flush_failed: AtomicBool::new(false),
            shrunk: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing can be promised to be durable any more.
    pub(crate) fn has_failed_flush(&self) -> bool {
        self.flush_failed.load(Ordering::Acquire)
    }

    pub(crate) fn flush_failed(&self, err: &std::io::Error) {
        if !self.flush_failed.swap(true, Ordering::AcqRel) {
            let file = self.path.display();
            tracing::error!(
                %file,
                %err,
                "a flush failed: what was written since the last good one may be lost; \
                 flushes fail until it is opened anew"
            );
        }
    }

    /// A read or write that came to the end of the file before it was through.
    pub(crate) fn ended_early(&self, offset: u64) -> Status {
        if !self.shrunk.swap(true, Ordering::AcqRel) {
            let file = self.path.display();
            tracing::error!(%file, offset, "the file has become shorter: what lies past its end gives I/O errors");
        }
        Status::Io
    }

    pub(crate) fn kernel_refused(&self, err: &std::io::Error) {
        if !self.refused.swap(true, Ordering::AcqRel) {
            tracing::warn!(file = %self.path.display(), %err, "the kernel takes no more I/O for now; trying again");
        }
    }
}
