//! A flush that has failed: what was promised to be durable may be lost, also for the daemon that goes on when this one has died.

use blockyard_blkmq::Disk;

use super::record::Record;
use super::store::FailedFlush;
use crate::text::term;

/// Whoever goes on with the device knows of each flush that has failed.
pub(super) fn note_failed_flushes(disk: &Disk, failed: FailedFlush) {
    disk.on_failed_flush(Box::new(move || {
        if let Err(err) = failed.note() {
            tracing::error!(%err, "the next daemon will not know that a flush has failed");
        }
    }));
}

/// A flush that has failed while the daemon before lived has failed for good: the kernel, and whoever uses its disk, may still
/// count on what is lost.
pub(super) fn inherit_failed_flushes(disk: &Disk, failed: FailedFlush, record: &Record) {
    if failed.is_noted() {
        disk.fail_flushes();
        term::tell(format_args!(
            "a flush of {0} has failed before, and all of them fail until it is attached anew: what was written last may be \
             lost; check what is on it, then run: blockyard detach --force {0}",
            record.path()
        ));
    }
    note_failed_flushes(disk, failed);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, OpenMode, Status};

    use super::super::record::tests::record;
    use super::super::store::Store;
    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// Until then its user may count on what is lost.
    #[test]
    fn a_flush_that_has_failed_fails_for_the_next_daemon_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        std::fs::create_dir(dir.path().join("attached")).unwrap();
        let file = dir.path().join("disk.img");
        std::fs::write(&file, [0; 4096]).unwrap();
        let record = record(0, 7, file.to_str().unwrap());
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let flushed = |is_noted| {
            if is_noted {
                store.failed_flush_of(7).note().unwrap();
            }
            let mut maker = DiskMaker::new(&layer, threads.handles(), Arc::clone(&clock));
            let open = maker.open(&record.wish.uri.parse().unwrap()).unwrap();
            let disk = open.disk();
            inherit_failed_flushes(disk, store.failed_flush_of(7), &record);
            let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
            let status = bdev.submit_and_wait(0, Bio::flush()).status();
            drop(bdev);
            layer.del_disk(disk);
            status
        };
        assert_eq!(flushed(false), Status::Ok);
        assert_eq!(flushed(true), Status::Io);
        assert_eq!(flushed(false), Status::Io, "it is known for good");
        threads.shutdown();
    }
}
