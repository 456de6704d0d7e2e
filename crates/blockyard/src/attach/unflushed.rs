//! What a disk's server has answered and not flushed, for the daemon that goes on when this one has died.
//!
//! The driver tells once per flush, not once per write, and a byte in a file is written when that changes whether anything is
//! not flushed: before the first such write is answered, and after the flush that covers the last. The page cache keeps the
//! byte, whatever becomes of the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use blockyard_driver_nbd::Ledger;
use parking_lot::Mutex;

use super::record::Record;
use crate::disks::OpenDisk;
use crate::error::{Error, Result};
use crate::text::term;

const CLEAN: u8 = b'0';
const DIRTY: u8 = b'1';

/// The byte, and why it is what it is.
struct Unflushed {
    file: File,
    state: Mutex<State>,
}

/// Epochs of the driver.
#[derive(Default)]
struct State {
    written: u64,
    flushed: u64,
    is_dirty: bool,
}

impl Unflushed {
    /// What another daemon has left not flushed is from before the first epoch.
    fn new(path: &Path, is_dirty: bool) -> io::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.write_all_at(&[if is_dirty { DIRTY } else { CLEAN }], 0)?;
        let state = State { written: u64::from(is_dirty), flushed: 0, is_dirty };
        Ok(Arc::new(Self { file, state: Mutex::new(state) }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let is_dirty = state.written > state.flushed;
        if std::mem::replace(&mut state.is_dirty, is_dirty) != is_dirty
            && let Err(err) = self.file.write_all_at(&[if is_dirty { DIRTY } else { CLEAN }], 0)
        {
            // It is tried again at the next change.
            state.is_dirty = !is_dirty;
            tracing::error!(%err, "cannot record that writes are unflushed");
        }
    }
}

impl Ledger for Unflushed {
    fn written(&self, epoch: u64) {
        self.change(|state| state.written = state.written.max(epoch));
    }

    fn flushed(&self, epoch: u64) {
        self.change(|state| state.flushed = state.flushed.max(epoch));
    }
}

fn failed(path: &Path, err: io::Error) -> Error {
    Error::failed(format!("cannot write {}", path.display())).caused_by(err)
}

/// Whoever goes on with the device knows whether something was not flushed.
///
/// # Errors
/// That cannot be written down.
pub(super) fn note_unflushed(open: &OpenDisk, path: &Path) -> Result<()> {
    keep(open, path, false)
}

fn keep(open: &OpenDisk, path: &Path, is_dirty: bool) -> Result<()> {
    if !open.tracks_unflushed() {
        return Ok(());
    }
    let ledger = Unflushed::new(path, is_dirty).map_err(|err| failed(path, err))?;
    open.keep_ledger(ledger);
    Ok(())
}

/// The daemon before has died, and its connections with it: its server may have lost what that had been told and had not
/// flushed. Flushes fail then, as they do when a connection is lost while a daemon lives, unless the server is trusted.
///
/// # Errors
/// That cannot be written down.
pub(super) fn inherit_unflushed(open: &OpenDisk, path: &Path, record: &Record) -> Result<()> {
    let is_dirty = open.tracks_unflushed() && is_dirty(path);
    if is_dirty && open.inherit_unflushed() {
        term::tell(format_args!(
            "{0} had unflushed writes when its daemon died, and the server may have lost them: all flushes fail until it is attached \
             again; check its data, then run: blockyard detach --force {0} (if restarts of the server lose nothing: \
             trust_server=1 in the URI)",
            record.path()
        ));
    }
    keep(open, path, is_dirty)
}

/// Where nobody can tell, there may be something.
fn is_dirty(path: &Path) -> bool {
    std::fs::read(path).map_or(true, |text| text != [CLEAN])
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    use blockyard_blkmq::{Bio, BlockLayer, Clock, MonotonicClock, Op, OpenMode, Sector, Status};
    use blockyard_export_nbd::{Config, Export, Server};

    use super::super::leaving::hand_over;
    use super::super::record::tests::record;
    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// What a daemon does before it dies.
    #[derive(Clone, Copy, PartialEq)]
    enum Before {
        Writes,
        Flushes,
        HandsOver,
        /// It was of a version that wrote nothing down.
        Unknown,
    }

    /// A server of a disk in a file, and daemons of it, of which only the last one is alive.
    struct Yard {
        dir: tempfile::TempDir,
        threads: QueueThreads,
        layer: Arc<BlockLayer>,
        maker: DiskMaker,
        server: Arc<Server>,
        accepting: Option<std::thread::JoinHandle<()>>,
    }

    impl Yard {
        fn new(connections: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("disk.img");
            std::fs::write(&file, [0; 4096]).unwrap();
            let threads = QueueThreads::start(1).unwrap();
            let layer = Arc::new(BlockLayer::new());
            let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
            let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
            let below = maker.open(&file.to_str().unwrap().parse().unwrap()).unwrap();
            let served = Arc::new(below.disk().open(None, OpenMode::ReadWrite).unwrap());
            let config = Config { exports: vec![Export::new("x", served)], ..Config::default() };
            let server = Server::new(config, threads.handles().to_vec()).unwrap();
            let listener = UnixListener::bind(dir.path().join("s")).unwrap();
            let accepted = Arc::clone(&server);
            let accepting = std::thread::spawn(move || {
                for _ in 0..connections {
                    accepted.serve(listener.accept().unwrap().0.into());
                }
            });
            Self { dir, threads, layer, maker, server, accepting: Some(accepting) }
        }

        fn uri(&self, options: &str) -> String {
            let socket = self.dir.path().join("s");
            format!("nbd+unix:///x?socket={}&connections=1{options}", socket.display())
        }

        fn open(&mut self, options: &str) -> OpenDisk {
            let mut plan: crate::disks::DiskPlan = self.uri(options).parse().unwrap();
            plan.options.name = Some(format!("disk{}", self.layer.disks().len()));
            self.maker.open(&plan).unwrap()
        }

        fn end(mut self) {
            self.accepting.take().unwrap().join().unwrap();
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(self.server.shutdown(PATIENCE));
            drop(self.server);
            self.layer.disks().iter().for_each(|disk| _ = self.layer.del_disk(disk));
            self.threads.shutdown();
        }
    }

    fn status(open: &OpenDisk, bio: Box<Bio>) -> Status {
        let bdev = open.disk().open(None, OpenMode::ReadWrite).unwrap();
        bdev.submit_and_wait(0, bio).status()
    }

    /// One daemon writes and dies, the next one is asked to flush: says what the first has left, and how the flush ends.
    fn after(before: Before, options: &str) -> (bool, Status) {
        let mut yard = Yard::new(2);
        let path = yard.dir.path().join("7.unflushed");
        let first = yard.open(options);
        if before != Before::Unknown {
            note_unflushed(&first, &path).unwrap();
        }
        assert_eq!(status(&first, Bio::new(Op::WriteZeroes, Sector(0), 4096)), Status::Ok);
        match before {
            Before::Writes | Before::Unknown => {}
            Before::Flushes => assert_eq!(status(&first, Bio::flush()), Status::Ok),
            Before::HandsOver => {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(hand_over(first.disk(), PATIENCE));
            }
        }
        let was_dirty = is_dirty(&path);
        let record = record(0, 7, &yard.uri(options));
        let second = yard.open(options);
        inherit_unflushed(&second, &path, &record).unwrap();
        assert_eq!(is_dirty(&path), was_dirty, "a third one knows no less");
        let status = status(&second, Bio::flush());
        assert_eq!(is_dirty(&path), was_dirty && status != Status::Ok);
        if before == Before::HandsOver {
            first.disk().unfreeze();
        }
        for open in [first, second] {
            let _ = open.close_now(&yard.layer, Duration::ZERO);
        }
        yard.end();
        (was_dirty, status)
    }

    /// Its server may have been started anew in between, which nobody can tell.
    #[test]
    fn what_a_dead_daemon_has_not_flushed_may_be_lost() {
        assert_eq!(after(Before::Writes, ""), (true, Status::Io));
        assert_eq!(after(Before::Unknown, ""), (true, Status::Io));
    }

    #[test]
    fn what_a_dead_daemon_has_flushed_is_there() {
        assert_eq!(after(Before::Flushes, ""), (false, Status::Ok));
    }

    #[test]
    fn a_trusted_server_has_what_a_dead_daemon_has_not_flushed() {
        assert_eq!(after(Before::Writes, "&trust_server=1"), (true, Status::Ok));
    }

    #[test]
    fn a_daemon_that_hands_over_has_flushed() {
        assert_eq!(after(Before::HandsOver, ""), (false, Status::Ok));
    }

    #[test]
    fn nothing_is_kept_of_a_disk_that_has_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let mut maker = DiskMaker::new(&layer, threads.handles(), clock);
        let open = maker.open(&"ram:1M".parse().unwrap()).unwrap();
        let path = dir.path().join("7.unflushed");
        note_unflushed(&open, &path).unwrap();
        inherit_unflushed(&open, &path, &record(0, 7, "ram:1M")).unwrap();
        assert!(!path.exists());
        assert_eq!(status(&open, Bio::flush()), Status::Ok);
        layer.del_disk(open.disk());
        threads.shutdown();
    }
}
