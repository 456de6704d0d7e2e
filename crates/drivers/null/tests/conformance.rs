//! The suite that every driver runs, on null disks: statuses only, as they keep nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use blockyard_blkmq::{
    Disk, DiskConfig, MonotonicClock, NoOps, OpenMode, Sector, TagSet, TagSetConfig,
};
use blockyard_conformance::{Capabilities, MIN_BYTES, Subject};
use blockyard_driver_null::{Null, NullConfig};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

const CAN: Capabilities =
    Capabilities { stores: false, discard_zeroes: true, holes: true, can_grow: true };

/// A queue thread, which keeps the time.
struct QueueThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().unwrap().join();
    }
}

fn null(latency: Option<Duration>, set: TagSetConfig) -> Subject {
    let thread = QueueThread::start();
    let config = NullConfig { capacity: Sector(MIN_BYTES / 512), latency };
    let null = Null::new(config, std::slice::from_ref(&thread.handle)).unwrap();
    let set = TagSet::new(null, set).unwrap();
    let config = DiskConfig::new("null0", Sector(MIN_BYTES / 512), Null::limits());
    let disk =
        Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap();
    Subject::new(disk.open(None, OpenMode::ReadWrite).unwrap(), thread).with(CAN)
}

blockyard_conformance::suite!(at_once, || null(None, TagSetConfig::default()));

blockyard_conformance::suite!(after_a_while, || null(
    Some(Duration::from_micros(100)),
    TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 4, ..TagSetConfig::default() }
));
