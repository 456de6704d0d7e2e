//! What went wrong with the file for good, and is said once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use blockyard_blkmq::FailedFlush;

/// Troubles of one file, which all of its queues share.
pub(crate) struct Health {
    path: PathBuf,
    /// A flush has failed: see the crate's documentation.
    flush_failed: AtomicBool,
    /// Told of that, at once.
    on_failed_flush: OnceLock<FailedFlush>,
    /// From where on the file was found to have lost what was in it; [`u64::MAX`] if it was not.
    cut_at: AtomicU64,
    /// The same of a device, which was said.
    device_ended: AtomicBool,
    refused: AtomicBool,
}

impl Health {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            flush_failed: AtomicBool::new(false),
            on_failed_flush: OnceLock::new(),
            cut_at: AtomicU64::new(u64::MAX),
            device_ended: AtomicBool::new(false),
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
                error = %err,
                "flush failed; writes since the last successful flush may be lost; \
                 flushes fail until the disk is reopened"
            );
            if let Some(told) = self.on_failed_flush.get() {
                told();
            }
        }
    }

    pub(crate) fn on_failed_flush(&self, told: FailedFlush) {
        // Whoever was first is told.
        let _ = self.on_failed_flush.set(told);
    }

    /// From where on everything fails, as the file became shorter: [`u64::MAX`] if it did not.
    pub(crate) fn cut_at(&self) -> u64 {
        self.cut_at.load(Ordering::Relaxed)
    }

    /// The file was found to end at `offset`. What was behind that is gone for good, also if it is made longer again: by
    /// whoever did this, or by a write, it comes back with zeroes. Only of a device, whose size is the kernel's business, it is
    /// not kept.
    pub(crate) fn was_cut(&self, offset: u64, is_block_device: bool) {
        let before = if is_block_device {
            if self.device_ended.swap(true, Ordering::AcqRel) { 0 } else { u64::MAX }
        } else {
            self.cut_at.fetch_min(offset, Ordering::AcqRel)
        };
        if before == u64::MAX {
            let file = self.path.display();
            tracing::error!(
                %file,
                offset,
                "backing file was truncated; I/O past its new end fails until the disk is reopened; \
                 flushes fail, too"
            );
        }
    }

    /// It has an end that is as good as what was promised.
    pub(crate) fn is_mended(&self, size: u64) {
        if size <= self.cut_at() {
            self.cut_at.store(u64::MAX, Ordering::Release);
        }
    }

    pub(crate) fn kernel_refused(&self, err: &std::io::Error) {
        if !self.refused.swap(true, Ordering::AcqRel) {
            tracing::warn!(file = %self.path.display(), error = %err, "io_uring submission failed, retrying");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_flush_that_fails_for_good_is_told_once_and_at_once() {
        let health = Health::new("x".into());
        let (tell, told) = mpsc::channel();
        health.on_failed_flush(Box::new(move || tell.send(()).unwrap()));
        assert!(told.try_recv().is_err());
        for _ in 0..2 {
            health.flush_failed(&std::io::ErrorKind::StorageFull.into());
        }
        assert_eq!(told.try_iter().count(), 1);
    }
}
