//! A flush that has failed: what was promised to be durable may be lost, also for the daemon that goes on when this one has died.

use blockyard_blkmq::Disk;

use super::record::Record;
use super::store::FailedFlush;
use crate::text::term;

/// Whoever goes on with the device knows of each flush that has failed.
pub(super) fn note_failed_flushes(disk: &Disk, failed: FailedFlush) {
    disk.on_failed_flush(Box::new(move || {
        if let Err(err) = failed.note() {
            tracing::error!(error = %err, "cannot record that a flush has failed");
        }
    }));
}

/// A flush that has failed while the daemon before lived has failed for good: the kernel, and whoever uses its disk, may still
/// count on what is lost.
pub(super) fn inherit_failed_flushes(disk: &Disk, failed: FailedFlush, record: &Record) {
    if failed.is_noted() {
        disk.fail_flushes();
        term::tell(format_args!(
            "an earlier flush of {0} failed: recent writes may be lost, and all flushes fail until it is attached \
             again; check its data, then run: blockyard detach --force {0}",
            record.path()
        ));
    }
    note_failed_flushes(disk, failed);
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, Op, OpenMode, Sector, Status};
    use blockyard_export_nbd::{Config, Export, Server, ServerLimits};

    use super::super::record::tests::record;
    use super::super::store::Store;
    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

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

    /// Whoever goes on may have a server that has lost what was written, and knows nothing of that.
    #[test]
    fn what_a_server_may_have_lost_is_known_before_anybody_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        std::fs::create_dir(dir.path().join("attached")).unwrap();
        let (file, socket) = (dir.path().join("disk.img"), dir.path().join("s"));
        std::fs::write(&file, [0; 4096]).unwrap();
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let below = maker.open(&file.to_str().unwrap().parse().unwrap()).unwrap();
        let served = Arc::new(below.disk().open(None, OpenMode::ReadWrite).unwrap());
        // One that does not wait for a last flush, as one that is killed.
        let limits = ServerLimits { flush_grace: Duration::ZERO, ..ServerLimits::default() };
        let config =
            Config { exports: vec![Export::new("x", served)], limits, ..Config::default() };
        let server = Server::new(config, threads.handles().to_vec()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let accepting = {
            let server = Arc::clone(&server);
            std::thread::spawn(move || server.serve(listener.accept().unwrap().0.into()))
        };
        let uri = format!("nbd+unix:///x?socket={}&connections=1&flush_after=0", socket.display());
        let open = maker.open(&uri.parse().unwrap()).unwrap();
        accepting.join().unwrap();
        let failed = store.failed_flush_of(7);
        note_failed_flushes(open.disk(), failed.clone());
        let bdev = open.disk().open(None, OpenMode::ReadWrite).unwrap();
        let written = bdev.submit_and_wait(0, Bio::new(Op::WriteZeroes, Sector(0), 4096));
        assert_eq!(written.status(), Status::Ok);
        assert!(!failed.is_noted());

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.shutdown(PATIENCE));
        let end = Instant::now() + PATIENCE;
        while !failed.is_noted() {
            assert!(Instant::now() < end, "nobody knows of it");
            blockyard_conformance::pause();
        }
        drop(bdev);
        let _ = open.close_now(&layer, Duration::ZERO);
        drop(server);
        layer.del_disk(below.disk());
        threads.shutdown();
    }
}
