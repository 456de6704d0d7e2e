//! What a signal stops while the kernel is being given a disk.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::WaitLimit;
use parking_lot::Mutex;

use crate::disks::OpenDisk;

/// How often all that waits for the disk is failed.
const AGAIN: Duration = Duration::from_millis(100);

/// A disk that is given up: what the kernel asks of it is not waited for.
pub(super) struct GivenUp {
    open: Arc<OpenDisk>,
    /// From the first time on.
    no_waits: Mutex<Vec<WaitLimit>>,
}

impl GivenUp {
    pub(super) fn new(open: Arc<OpenDisk>) -> Self {
        Self { open, no_waits: Mutex::default() }
    }

    /// Fails what waits for its server; its limits keep nothing from now on.
    pub(super) fn abandon(&self) {
        self.open.abandon();
        let mut no_waits = self.no_waits.lock();
        if no_waits.is_empty() {
            let layers = self.open.layers();
            no_waits.extend(layers.map(|layer| layer.disk().limit_waits(Duration::ZERO)));
        }
    }
}

/// Waits for what needs the disk. Once it is `told` to stop, whatever is asked of the disk is failed by `abandon`, so that it
/// ends soon; says whether it was.
pub(super) async fn unless_told<T>(
    job: impl Future<Output = T>,
    told: impl Future<Output = ()>,
    abandon: impl Fn(),
) -> (T, bool) {
    let mut job = pin!(job);
    tokio::select! {
        biased;
        done = &mut job => return (done, false),
        () = told => {}
    }
    (while_abandoning(job, abandon).await, true)
}

/// Waits for what needs the disk, of which nothing is waited for.
pub(super) async fn while_abandoning<T>(job: impl Future<Output = T>, abandon: impl Fn()) -> T {
    let mut job = pin!(job);
    loop {
        abandon();
        if let Ok(done) = tokio::time::timeout(AGAIN, &mut job).await {
            return done;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use blockyard_blkmq::{Bio, BlockLayer, MonotonicClock, Op, OpenMode, Sector};
    use tokio::sync::Notify;

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The kernel's look for partitions would take an hour.
    #[tokio::test]
    async fn a_signal_does_not_wait_for_the_limits_of_the_disk() {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock = Arc::new(MonotonicClock::new());
        let plan = "null:1M?read_bps=1".parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let open = Arc::new(open);
        let bdev = open.disk().open(None, OpenMode::ReadOnly).unwrap();
        let (given_up, told) = (GivenUp::new(Arc::clone(&open)), Notify::new());
        let reads = async {
            for _ in 0..3 {
                let read = bdev.submit_async(0, Bio::new(Op::Read, Sector(0), 4096));
                told.notify_one();
                assert!(read.await.status().is_ok());
            }
        };
        let ended = unless_told(reads, told.notified(), || given_up.abandon());
        let ((), was_told) =
            tokio::time::timeout(PATIENCE, ended).await.expect("limits are waited for");
        assert!(was_told);
        drop(bdev);
        layer.del_disk(open.disk());
        threads.shutdown();
    }

    /// The kernel looks at several places of the disk, one after the other.
    #[tokio::test]
    async fn what_waits_for_the_disk_fails_as_often_as_it_takes() {
        let (failed, abandoned) = (Notify::new(), Cell::new(0));
        let reads = async || {
            for _ in 0..3 {
                failed.notified().await;
            }
            "attached"
        };
        let abandon = || {
            abandoned.set(abandoned.get() + 1);
            failed.notify_one();
        };
        let ended = unless_told(reads(), std::future::ready(()), abandon).await;
        assert_eq!(ended, ("attached", true));
        assert!(abandoned.get() >= 3);
        let never = || panic!("nobody has said so");
        let ended = unless_told(async { 7 }, std::future::ready(()), never).await;
        assert_eq!(ended, (7, false), "it was done before");
    }
}
