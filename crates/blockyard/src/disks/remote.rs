//! Disks whose bytes are at a server, which is to be told when they end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use blockyard_blkmq::{Bio, Disk, Features, OpenMode, StatGroup, Status};
use blockyard_driver_nbd::Ledger;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, timeout_at};

use crate::daemon::FlushFailed;

/// The end of a connection that somebody waits for.
pub type Goodbye<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A driver that has a server.
pub trait RemoteDriver: Send + Sync {
    /// Fails all that waits for the server, or is out.
    fn clear_queue(&self);
    /// Nothing is written until what others have sent before can no more be carried out.
    fn hold_writes(&self) {}
    /// Whether its server may still carry out something, now that nothing more is submitted.
    fn may_change_late(&self) -> bool {
        true
    }
    /// Whether its server may have something that was written and not flushed.
    fn tracks_unflushed(&self) -> bool {
        false
    }
    /// Has that kept where it outlives this process.
    fn keep_ledger(&self, _ledger: Arc<dyn Ledger>) {}
    /// There was another process, and its server has something of it that was not flushed. Says whether that may be lost:
    /// all flushes fail then.
    fn inherit_unflushed(&self) -> bool {
        false
    }
    /// Says goodbye once nothing is out any more.
    fn disconnect(&self) -> Goodbye<'_>;
    /// As [`RemoteDriver::disconnect`], once its server has had its time. It is soon over, whatever the server does.
    fn give_up(&self) -> Goodbye<'_> {
        self.disconnect()
    }
    /// Whether its driver has an end of its own, which changes only while nothing is out: whoever tells a size may wait for that.
    fn changes_size_frozen(&self) -> bool {
        false
    }
    /// Tells each size in bytes that the server has for the disk from now on, until that says that nobody listens any more.
    fn follow_size(&self, _thread: &Handle, _tell: Box<dyn FnMut(u64) -> bool + Send>) {}
}

/// A disk whose server is to be told when it ends.
pub struct Remote {
    disk: Arc<Disk>,
    driver: Arc<dyn RemoteDriver>,
    /// Nobody waits for the server any more.
    abandoned: AtomicBool,
    /// Its server has something of another process that was not flushed.
    has_inherited: AtomicBool,
}

impl Remote {
    pub(super) fn new(disk: Arc<Disk>, driver: Arc<dyn RemoteDriver>) -> Self {
        let [abandoned, has_inherited] = [(); 2].map(|()| AtomicBool::new(false));
        Self { disk, driver, abandoned, has_inherited }
    }

    /// Fails all that waits for the server, or is out, and with that the last flush. What is asked for after
    /// that may wait again.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.driver.clear_queue();
    }

    /// What another process has sent before it died may still be carried out: nothing is written until that is over.
    pub(crate) fn hold_writes(&self) {
        self.driver.hold_writes();
    }

    /// Another process has died whose writes the server has not flushed: a last flush is for them, too. Says whether they may be
    /// lost.
    pub(super) fn inherit_unflushed(&self) -> bool {
        self.has_inherited.store(true, Ordering::Release);
        self.driver.inherit_unflushed()
    }

    /// Whether a last flush is good for anything.
    pub(super) fn has_to_be_flushed(&self) -> bool {
        self.has_inherited.load(Ordering::Acquire) || has_to_be_flushed(&self.disk)
    }

    pub(super) fn driver(&self) -> &dyn RemoteDriver {
        &*self.driver
    }

    /// What does that, for whoever learns later that there was another process.
    pub(crate) fn holder(&self) -> Arc<dyn Fn() + Send + Sync> {
        let driver = Arc::clone(&self.driver);
        Arc::new(move || driver.hold_writes())
    }

    /// Makes the disk as large as its server finds it to be, whenever that changes.
    pub(super) fn follow_size(&self, thread: &Handle) {
        let disk = Arc::downgrade(&self.disk);
        let frozen = self.driver.changes_size_frozen();
        self.driver.follow_size(thread, Box::new(move |size| follow(&disk, size, frozen)));
    }

    /// Flushes, ends what is out and says goodbye. What of all that is not done within `limit` fails: a server that is gone
    /// keeps nobody from ending.
    ///
    /// # Errors
    /// The flush failed: what was written since the last good one may be lost.
    pub(crate) async fn leave(&self, limit: Duration) -> Result<(), FlushFailed> {
        let end = Instant::now() + limit;
        let flushing = async {
            if self.disk.has_volatile() {
                // What comes until it is gone is not to be held by a fault any more; the flush tells whether that went wrong.
                let disk = Arc::clone(&self.disk);
                let _ = tokio::task::spawn_blocking(move || disk.write_back()).await;
            }
            self.flush().await
        };
        let flushed = match timeout_at(end, flushing).await {
            Ok(status) if status.is_ok() => Ok(()),
            Ok(status) => Err(FlushFailed::new(self.disk.name(), &status)),
            Err(_) => {
                self.driver.clear_queue();
                let why = format!("the server did not answer within {limit:?}");
                Err(FlushFailed::new(self.disk.name(), &why))
            }
        };
        let abandoned = self.abandoned.load(Ordering::Acquire);
        if abandoned || timeout_at(end, self.driver.disconnect()).await.is_err() {
            self.driver.clear_queue();
            self.driver.give_up().await;
        }
        // What was to be flushed is flushed, or nobody takes it any more: removing the disk need not try.
        let mut limits = self.disk.limits();
        limits.features.remove(Features::WRITE_CACHE);
        let disk = Arc::clone(&self.disk);
        // It waits for what is out, and this may be the thread that ticks the disk.
        let set = tokio::task::spawn_blocking(move || disk.set_limits(limits)).await;
        if let Err(err) = set.map_err(io::Error::from).and_then(|set| set.map_err(io::Error::other))
        {
            tracing::warn!(disk = self.disk.name(), error = %err, "cannot disable the write cache before removal");
        }
        flushed
    }

    /// As [`Remote::leave`], where there is no runtime.
    pub(super) fn leave_now(&self, limit: Duration) -> Result<(), FlushFailed> {
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.leave(limit)),
            Err(err) => Err(FlushFailed::new(self.disk.name(), &err)),
        }
    }

    async fn flush(&self) -> Status {
        if !self.has_to_be_flushed() {
            return Status::Ok;
        }
        if self.abandoned.load(Ordering::Acquire) {
            return Status::Io;
        }
        let Ok(bdev) = self.disk.open(None, OpenMode::ReadOnly) else { return Status::Offline };
        let (tell, mut told) = tokio::sync::mpsc::channel(1);
        let ended = move |bio: Box<Bio>| {
            // Nobody waits any more after the limit.
            let _ = tell.try_send(bio.status());
        };
        bdev.submit(0, Bio::flush().on_end(Arc::new(ended)));
        // A bio always ends.
        told.recv().await.unwrap_or(Status::Io)
    }
}

/// Whether a last flush is good for anything: nothing can be lost of a disk that was never written to, and one that cannot flush
/// promises nothing.
pub(super) fn has_to_be_flushed(disk: &Disk) -> bool {
    let can_flush = !disk.limits().features.contains(Features::NO_FLUSH);
    let (stats, _) = disk.stats();
    let [_, writes_out] = stats.in_flight();
    // One is answered a moment before it is counted, and is under way until then.
    can_flush
        && (writes_out > 0
            || [StatGroup::Write, StatGroup::Discard]
                .iter()
                .any(|&group| stats.counters(group).ios > 0))
}

/// Says whether the disk is still there. Its blocks may be larger than the export's.
fn follow(disk: &Weak<Disk>, bytes: u64, frozen: bool) -> bool {
    let Some(disk) = disk.upgrade() else { return false };
    let before = disk.size_bytes();
    let followed = if frozen {
        disk.follow_size(bytes)
    } else {
        let (capacity, tail_padding) = disk.limits().logical_block_size.padded(bytes);
        disk.set_size(capacity, tail_padding)
    };
    if let Err(err) = followed {
        tracing::warn!(disk = disk.name(), error = %err, "cannot follow the size of the export");
        return false;
    }
    tracing::info!(
        disk = disk.name(),
        before,
        bytes = disk.size_bytes(),
        "size of the disk changed"
    );
    true
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;

    use blockyard_blkmq::{BlockLayer, Clock, MonotonicClock};
    use blockyard_export_nbd::{Config, Export, Server, ServerLimits};

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// Its host is off, say: connecting takes as long as it may.
    fn ends_while_nobody_answers(abandoned: bool, limit: Duration) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let below = maker.open(&"ram:1M".parse().unwrap()).unwrap();
        let served = Arc::new(below.disk().open(None, OpenMode::ReadWrite).unwrap());
        let limits = ServerLimits { flush_grace: Duration::ZERO, ..ServerLimits::default() };
        let config =
            Config { exports: vec![Export::new("x", served)], limits, ..Config::default() };
        let server = Server::new(config, threads.handles().to_vec()).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let (first, (tell, told)) = (Arc::clone(&server), mpsc::channel());
        let accepting = std::thread::spawn(move || {
            first.serve(listener.accept().unwrap().0.into());
            tell.send(listener.accept().unwrap()).unwrap();
        });
        let uri = format!("nbd+unix:///x?socket={}&connections=1&timeout=10m", socket.display());
        let disk = maker.open(&uri.parse().unwrap()).unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.shutdown(PATIENCE));
        let silent = told.recv_timeout(PATIENCE).expect("it connects again");
        if abandoned {
            disk.abandon();
        }
        let (tell, told) = mpsc::channel();
        let closed_in = Arc::clone(&layer);
        std::thread::spawn(move || tell.send(disk.close_now(&closed_in, limit).into_result()));
        told.recv_timeout(PATIENCE).expect("it does not end").unwrap();
        drop((silent, server));
        accepting.join().unwrap();
        layer.disks().iter().for_each(|disk| _ = layer.del_disk(disk));
        threads.shutdown();
    }

    #[test]
    fn a_server_that_does_not_answer_keeps_nobody_from_ending() {
        ends_while_nobody_answers(false, Duration::from_millis(100));
    }

    /// There is nothing to wait for within its time, either.
    #[test]
    fn a_server_that_was_given_up_has_no_time_to_answer() {
        ends_while_nobody_answers(true, Duration::from_secs(600));
    }
}
