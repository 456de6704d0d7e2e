//! What a disk's server has answered and not flushed, for the daemon that goes on when this one has died.
//!
//! The driver tells twice per flush, not once per write, and a byte in a file is written when that changes what is not
//! flushed: before the first such write is answered, before a flush is sent, and after the answer to the last. The
//! page cache keeps the byte, whatever becomes of the process.

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

/// What is not flushed: a byte of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Left {
    Nothing = b'0',
    Writes = b'1',
    /// There are, and a flush of them was sent whose answer has not come: the only one, maybe, that tells of an error.
    FlushedWrites = b'2',
    /// A later flush has covered all of them, and that answer has not come yet.
    Flush = b'3',
}

/// Stands for a flush that another daemon has sent: before the first epoch.
const ANOTHER_S: u64 = 0;

impl Left {
    fn is_unflushed(self) -> bool {
        matches!(self, Self::Writes | Self::FlushedWrites)
    }

    fn has_flush(self) -> bool {
        matches!(self, Self::FlushedWrites | Self::Flush)
    }

    /// Where it is unknown, there may be something.
    fn read(path: &Path) -> Self {
        let text = std::fs::read(path).unwrap_or_default();
        let is = |left: &Self| text == [*left as u8];
        [Self::Nothing, Self::FlushedWrites, Self::Flush]
            .into_iter()
            .find(is)
            .unwrap_or(Self::Writes)
    }
}

/// The byte, and why it is what it is.
struct Unflushed {
    file: File,
    state: Mutex<State>,
}

/// Epochs of the driver.
struct State {
    written: u64,
    /// Of flushes that were sent, as something was not flushed, and are not answered: as many as may be out at most.
    out: Vec<u64>,
    flushed: u64,
    left: Left,
}

impl State {
    /// What another daemon has left is from before the first epoch.
    fn new(left: Left) -> Self {
        let written = u64::from(left.is_unflushed());
        let out = if left.has_flush() { vec![ANOTHER_S] } else { Vec::new() };
        Self { written, out, flushed: 0, left }
    }

    fn left(&self) -> Left {
        match (self.written > self.flushed, !self.out.is_empty()) {
            (false, false) => Left::Nothing,
            (false, true) => Left::Flush,
            (true, false) => Left::Writes,
            (true, true) => Left::FlushedWrites,
        }
    }
}

impl Unflushed {
    fn new(path: &Path, left: Left) -> io::Result<Arc<Self>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.write_all_at(&[left as u8], 0)?;
        Ok(Arc::new(Self { file, state: Mutex::new(State::new(left)) }))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        let left = state.left();
        let before = std::mem::replace(&mut state.left, left);
        if before != left
            && let Err(err) = self.file.write_all_at(&[left as u8], 0)
        {
            // It is tried again at the next change.
            state.left = before;
            tracing::error!(error = %err, "cannot record that writes are unflushed");
        }
    }
}

impl Ledger for Unflushed {
    fn written(&self, epoch: u64) {
        self.change(|state| state.written = state.written.max(epoch));
    }

    fn flushing(&self, epoch: u64) {
        self.change(|state| {
            if state.written > state.flushed {
                state.out.push(epoch);
            }
        });
    }

    fn flush_ended(&self, epoch: u64, durable: bool) {
        self.change(|state| {
            // Another daemon's will not be answered; that there was one was told.
            state.out.retain(|&out| out != epoch && !(durable && out == ANOTHER_S));
            if durable {
                state.flushed = state.flushed.max(epoch);
            }
        });
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
    keep(open, path, Left::Nothing)
}

fn keep(open: &OpenDisk, path: &Path, left: Left) -> Result<()> {
    if !open.tracks_unflushed() {
        return Ok(());
    }
    let ledger = Unflushed::new(path, left).map_err(|err| failed(path, err))?;
    open.keep_ledger(ledger);
    Ok(())
}

/// The daemon before has died, and its connections with it: its server may have lost what that had been told and had not
/// flushed. Flushes fail then, as they do when a connection is lost while a daemon lives, unless the server is trusted.
///
/// # Errors
/// That cannot be written down.
pub(super) fn inherit_unflushed(open: &OpenDisk, path: &Path, record: &Record) -> Result<()> {
    if !open.tracks_unflushed() {
        return Ok(());
    }
    let left = Left::read(path);
    let may_be_lost = left.is_unflushed() && open.inherit_unflushed();
    if let Some(what) = warning(left, may_be_lost, &record.path()) {
        term::tell(what);
    }
    keep(open, path, left)
}

/// What the user of a device is told of what its last daemon has left.
fn warning(left: Left, may_be_lost: bool, device: &str) -> Option<String> {
    if may_be_lost {
        return Some(format!(
            "{device} had unflushed writes when its daemon died, and the server may have lost them: all flushes fail until it \
             is attached again; check its data, then run: blockyard detach --force {device} (if restarts of the server lose \
             nothing: trust_server=1 in the URI)"
        ));
    }
    left.has_flush().then(|| {
        format!(
            "a flush of {device} was in flight when its daemon died; the next one succeeds even if that one failed: check the \
             storage of the server for I/O errors"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use blockyard_blkmq::{
        Bio, BlockLayer, Clock, Disk, FaultKind, FaultOps, FaultSpec, MonotonicClock, Op, OpenMode,
        Sector, Status,
    };
    use blockyard_buf::Segment;
    use blockyard_export_nbd::{Config, Export, Server, ServerLimits};

    use super::super::flushes::note_failed_flushes;
    use super::super::leaving::{HandingOver, hand_over};
    use super::super::opening::{hold_writes, note_handed_over};
    use super::super::record::tests::record;
    use super::super::store::Store;
    use super::*;
    use crate::daemon::MoreTime;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    const DEVICE: &str = "/dev/nbd7";
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
        layer: Arc<BlockLayer>,
        maker: DiskMaker,
        server: Arc<Server>,
        accepting: Option<JoinHandle<()>>,
        /// What the server serves. While it is frozen, nothing is answered.
        below: Arc<Disk>,
        /// The last to go, also when a test fails: disks that are dropped wait for what is out.
        threads: QueueThreads,
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
            let below = Arc::clone(below.disk());
            let (server, accepting) = serve(&below, &threads, &dir.path().join("s"), connections);
            Self { dir, layer, maker, server, accepting: Some(accepting), below, threads }
        }

        /// Nobody is there any more. No flush is waited for, as by one that is killed.
        fn end_server(&mut self) {
            self.accepting.take().unwrap().join().unwrap();
            runtime().block_on(self.server.shutdown(PATIENCE));
            std::fs::remove_file(self.dir.path().join("s")).unwrap();
        }

        fn start_server(&mut self, connections: usize) {
            let socket = self.dir.path().join("s");
            let (server, accepting) = serve(&self.below, &self.threads, &socket, connections);
            (self.server, self.accepting) = (server, Some(accepting));
        }

        fn uri(&self, options: &str) -> String {
            let socket = self.dir.path().join("s");
            let socket = socket.display();
            format!("nbd+unix:///x?socket={socket}&connections=1&flush_after=0{options}")
        }

        fn open(&mut self, options: &str) -> OpenDisk {
            let mut plan: crate::disks::DiskPlan = self.uri(options).parse().unwrap();
            plan.options.name = Some(format!("disk{}", self.layer.disks().len()));
            self.maker.open(&plan).unwrap()
        }

        fn end(mut self) {
            self.accepting.take().unwrap().join().unwrap();
            runtime().block_on(self.server.shutdown(PATIENCE));
            drop(self.server);
            self.layer.disks().iter().for_each(|disk| _ = self.layer.del_disk(disk));
            self.threads.shutdown();
        }
    }

    fn serve(
        below: &Arc<Disk>,
        threads: &QueueThreads,
        socket: &Path,
        connections: usize,
    ) -> (Arc<Server>, JoinHandle<()>) {
        let served = Arc::new(below.open(None, OpenMode::ReadWrite).unwrap());
        let limits = ServerLimits { flush_grace: Duration::ZERO, ..ServerLimits::default() };
        let config =
            Config { exports: vec![Export::new("x", served)], limits, ..Config::default() };
        let server = Server::new(config, threads.handles().to_vec()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let accepted = Arc::clone(&server);
        let accepting = std::thread::spawn(move || {
            for _ in 0..connections {
                accepted.serve(listener.accept().unwrap().0.into());
            }
        });
        (server, accepting)
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
                assert!(runtime.block_on(hand_over(&first, DEVICE, PATIENCE)));
            }
        }
        let is_dirty = |path| Left::read(path) != Left::Nothing;
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

    /// Somebody else removed the device, and nobody had written to it since, nor flushed it.
    #[test]
    fn what_a_dead_daemon_has_not_flushed_is_flushed_when_the_next_one_ends() {
        for (options, is_lost) in [("&trust_server=1", false), ("", true)] {
            let mut yard = Yard::new(2);
            let path = yard.dir.path().join("7.unflushed");
            let first = yard.open(options);
            note_unflushed(&first, &path).unwrap();
            assert_eq!(status(&first, Bio::new(Op::WriteZeroes, Sector(0), 4096)), Status::Ok);
            let record = record(0, 7, &yard.uri(options));
            let second = yard.open(options);
            inherit_unflushed(&second, &path, &record).unwrap();
            let ended = second.close_now(&yard.layer, PATIENCE).into_result();
            assert_eq!(ended.is_err(), is_lost, "{options}");
            assert_eq!(Left::read(&path) != Left::Nothing, is_lost, "{options}");
            let _ = first.close_now(&yard.layer, Duration::ZERO);
            yard.end();
        }
    }

    /// Faults keep nothing that was answered, and end with the daemon.
    #[test]
    fn what_faults_hold_is_handed_over() {
        let runtime = runtime();
        for kind in [FaultKind::FlushLies, FaultKind::Error(Status::Io), FaultKind::Stall] {
            let mut yard = Yard::new(1);
            let first = yard.open("");
            let volatile = FaultKind::Volatile { max_bytes: 1 << 20 };
            for kind in [volatile, kind] {
                let ops = if kind == volatile { FaultOps::empty() } else { FaultOps::FLUSH };
                first.disk().add_fault(FaultSpec { ops, ..FaultSpec::new(kind) }).unwrap();
            }
            let data = Segment::from_vec(vec![7; 4096]);
            let bio = Bio::with_data(Op::Write, Sector(0), [data].into_iter().collect());
            assert_eq!(status(&first, bio), Status::Ok);
            let bdev = first.disk().open(None, OpenMode::ReadWrite).unwrap();
            if kind == FaultKind::Stall {
                bdev.submit(0, Bio::flush().on_end(Arc::new(|_: Box<Bio>| {})));
                assert_eq!(first.disk().stalled(), 1);
            }
            let handed_over = runtime.block_on(async {
                let mut handing_over = HandingOver::default();
                handing_over.begin(first.disk(), MoreTime::from_now(), PATIENCE, Duration::ZERO);
                tokio::time::timeout(PATIENCE, handing_over.is_due()).await.unwrap();
                hand_over(&first, DEVICE, PATIENCE).await
            });
            assert!(handed_over, "{kind:?}");
            assert_eq!(std::fs::read(yard.dir.path().join("disk.img")).unwrap(), [7; 4096]);
            assert_eq!(first.disk().faults(), []);
            first.disk().unfreeze();
            drop(bdev);
            let _ = first.close_now(&yard.layer, PATIENCE);
            yard.end();
        }
    }

    #[test]
    fn a_daemon_that_hands_over_has_flushed() {
        assert_eq!(after(Before::HandsOver, ""), (false, Status::Ok));
    }

    /// An upgrade stops nobody for as long as a server may be silent, if nothing is out. But what is out may come late.
    #[test]
    fn writes_go_on_at_once_behind_a_daemon_that_has_handed_over() {
        for is_out in [false, true] {
            let mut yard = Yard::new(2);
            let store = Store::at(yard.dir.path());
            let record = record(0, 7, &yard.uri(""));
            drop(store.save(&record).unwrap());
            let [first, second] = [(); 2].map(|()| yard.open("&fence_timeout=10m"));
            let write = |open: &OpenDisk| {
                let (tell, told) = std::sync::mpsc::channel();
                let bdev = open.disk().open(None, OpenMode::ReadWrite).unwrap();
                let bio = Bio::new(Op::WriteZeroes, Sector(0), 4096);
                let ended = move |bio: Box<Bio>| _ = tell.send(bio.status());
                bdev.submit(0, bio.on_end(Arc::new(ended)));
                (bdev, told)
            };
            let done = write(&first);
            assert_eq!(done.1.recv_timeout(PATIENCE), Ok(Status::Ok));
            let frozen = is_out.then(|| Frozen::new(&yard.below));
            let late = is_out.then(|| write(&first));
            let begun = std::time::Instant::now();
            while is_out && !first.may_change_late() {
                assert!(begun.elapsed() < PATIENCE, "the write is not out");
                blockyard_conformance::pause();
            }
            note_handed_over(&first, &store, &record);
            drop(frozen);
            hold_writes(&second, &store, &record);
            let next = write(&second);
            if let Some(late) = late {
                assert_eq!(late.1.recv_timeout(PATIENCE), Ok(Status::Ok));
                // What is not held back is done before that, or nearly always.
                assert_eq!(status(&second, Bio::new(Op::Read, Sector(0), 4096)), Status::Ok);
                assert!(next.1.try_recv().is_err(), "it is held back for ten minutes");
                second.abandon();
            }
            let expected = if is_out { Status::Io } else { Status::Ok };
            assert_eq!(next.1.recv_timeout(PATIENCE), Ok(expected));
            drop((done, next));
            for open in [first, second] {
                let _ = open.close_now(&yard.layer, Duration::ZERO);
            }
            yard.end();
        }
    }

    /// The only one that tells of an error may be any of those that are out.
    #[test]
    fn a_flush_is_out_until_its_own_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.unflushed");
        let ledger = Unflushed::new(&path, Left::Nothing).unwrap();
        let left = || Left::read(&path);
        ledger.flushing(1);
        assert_eq!(left(), Left::Nothing, "it has nothing to flush");
        ledger.flush_ended(1, true);
        ledger.written(2);
        ledger.flushing(2);
        ledger.flushing(3);
        assert_eq!(left(), Left::FlushedWrites);
        ledger.flush_ended(3, true);
        assert_eq!(left(), Left::Flush, "the later one was answered first");
        ledger.flush_ended(2, true);
        assert_eq!(left(), Left::Nothing);
        ledger.written(4);
        ledger.flushing(4);
        ledger.flush_ended(4, false);
        assert_eq!(left(), Left::Writes, "an error that was told of");
        // What another has left is over with the first flush that covers all.
        for before in [Left::FlushedWrites, Left::Flush] {
            let ledger = Unflushed::new(&path, before).unwrap();
            ledger.flushing(1);
            assert_eq!(left(), before);
            ledger.flush_ended(1, true);
            assert_eq!(left(), Left::Nothing);
        }
    }

    #[track_caller]
    fn becomes(path: &Path, left: Left) {
        let begun = std::time::Instant::now();
        while Left::read(path) != left {
            assert!(begun.elapsed() < PATIENCE, "{:?}, not {left:?}", Left::read(path));
            blockyard_conformance::pause();
        }
    }

    /// Nothing is answered as long as this lives.
    struct Frozen(Arc<Disk>);

    impl Frozen {
        fn new(disk: &Arc<Disk>) -> Self {
            disk.freeze();
            Self(Arc::clone(disk))
        }
    }

    impl Drop for Frozen {
        fn drop(&mut self) {
            self.0.unfreeze();
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// As one whose server has more to write back than it can in that time.
    #[test]
    fn a_disk_that_is_not_flushed_in_time_stays_and_is_served() {
        let mut yard = Yard::new(1);
        let path = yard.dir.path().join("7.unflushed");
        let first = yard.open("");
        note_unflushed(&first, &path).unwrap();
        let write = || status(&first, Bio::new(Op::WriteZeroes, Sector(0), 4096));
        assert_eq!(write(), Status::Ok);
        let frozen = Frozen::new(&yard.below);
        let runtime = runtime();
        let handed_over = runtime.block_on(hand_over(&first, DEVICE, Duration::from_millis(10)));
        if handed_over {
            first.disk().unfreeze();
        }
        assert!(!handed_over);
        // What was begun goes on.
        becomes(&path, Left::FlushedWrites);
        drop(frozen);
        assert_eq!(write(), Status::Ok);
        assert!(runtime.block_on(hand_over(&first, DEVICE, PATIENCE)));
        assert_eq!(Left::read(&path), Left::Nothing);
        first.disk().unfreeze();
        let _ = first.close_now(&yard.layer, Duration::ZERO);
        yard.end();
    }

    /// What was not carried out has lost nothing: the next daemon knows from the byte that it is still to be done.
    #[test]
    fn a_hand_over_while_the_server_is_away_is_tried_again_and_fails_no_flush_of_the_next_daemon() {
        let mut yard = Yard::new(1);
        std::fs::create_dir(yard.dir.path().join("attached")).unwrap();
        let (path, failed) =
            (yard.dir.path().join("7.unflushed"), Store::at(yard.dir.path()).failed_flush_of(7));
        let first = yard.open("&trust_server=1&dead_conn_timeout=200ms");
        note_unflushed(&first, &path).unwrap();
        note_failed_flushes(first.disk(), failed.clone());
        assert_eq!(status(&first, Bio::new(Op::WriteZeroes, Sector(0), 4096)), Status::Ok);
        yard.end_server();
        let handed_over = runtime().block_on(async {
            let mut handing_over = HandingOver::default();
            handing_over.begin(first.disk(), MoreTime::from_now(), PATIENCE, Duration::ZERO);
            tokio::time::timeout(PATIENCE, handing_over.is_due()).await.unwrap();
            hand_over(&first, DEVICE, PATIENCE).await
        });
        if handed_over {
            first.disk().unfreeze();
        }
        assert!(!handed_over && !failed.is_noted());
        assert!(Left::read(&path).is_unflushed());
        yard.start_server(1);
        let begun = std::time::Instant::now();
        while !runtime().block_on(hand_over(&first, DEVICE, PATIENCE)) {
            assert!(begun.elapsed() < PATIENCE, "it stays");
        }
        assert_eq!((Left::read(&path), failed.is_noted()), (Left::Nothing, false));
        first.disk().unfreeze();
        let _ = first.close_now(&yard.layer, Duration::ZERO);
        yard.end();
    }

    #[test]
    fn a_disk_is_flushed_while_it_is_used_before_it_is_handed_over() {
        let mut yard = Yard::new(1);
        let path = yard.dir.path().join("7.unflushed");
        let first = yard.open("");
        note_unflushed(&first, &path).unwrap();
        assert_eq!(status(&first, Bio::new(Op::WriteZeroes, Sector(0), 4096)), Status::Ok);
        let frozen = Frozen::new(&yard.below);
        runtime().block_on(async {
            let mut handing_over = HandingOver::default();
            handing_over.begin(first.disk(), MoreTime::from_now(), PATIENCE, Duration::ZERO);
            let begun = std::time::Instant::now();
            let sent = async {
                while Left::read(&path) != Left::FlushedWrites {
                    assert!(begun.elapsed() < PATIENCE, "no flush is out");
                    blockyard_conformance::pause();
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                () = handing_over.is_due() => panic!("it is not flushed"),
                () = sent => {}
            }
            assert!(!first.disk().show().contains("frozen 1"), "{}", first.disk().show());
            drop(frozen);
            tokio::time::timeout(PATIENCE, handing_over.is_due()).await.unwrap();
        });
        assert_eq!(Left::read(&path), Left::Nothing);
        let _ = first.close_now(&yard.layer, Duration::ZERO);
        yard.end();
    }

    /// The answer that the first daemon has not heard may have been an error, which its server tells of once.
    #[test]
    fn a_flush_that_was_out_when_a_daemon_died_is_told_of() {
        let mut yard = Yard::new(2);
        let path = yard.dir.path().join("7.unflushed");
        let (first, second) = (yard.open("&trust_server=1"), yard.open("&trust_server=1"));
        note_unflushed(&first, &path).unwrap();
        let bdev = first.disk().open(None, OpenMode::ReadWrite).unwrap();
        let write = bdev.submit_and_wait(0, Bio::new(Op::WriteZeroes, Sector(0), 4096));
        assert_eq!((write.status(), Left::read(&path)), (Status::Ok, Left::Writes));
        let frozen = Frozen::new(&yard.below);
        let (tell, told) = std::sync::mpsc::channel();
        let ended = move |bio: Box<Bio>| {
            // Nobody waits if the test has failed.
            let _ = tell.send(bio.status());
        };
        bdev.submit(0, Bio::flush().on_end(Arc::new(ended)));
        becomes(&path, Left::FlushedWrites);
        inherit_unflushed(&second, &path, &record(0, 7, &yard.uri(""))).unwrap();
        assert_eq!(Left::read(&path), Left::FlushedWrites, "a third one is told of it, too");
        drop(frozen);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Status::Ok);
        assert_eq!(status(&second, Bio::flush()), Status::Ok, "it is trusted");
        assert_eq!(Left::read(&path), Left::Nothing);
        drop(bdev);
        for open in [first, second] {
            let _ = open.close_now(&yard.layer, Duration::ZERO);
        }
        yard.end();
    }

    #[test]
    fn what_is_told_is_what_the_next_flush_does_not_tell() {
        let said = |left, may_be_lost| warning(left, may_be_lost, "/dev/nbd0").unwrap_or_default();
        assert_eq!(said(Left::Nothing, false) + &said(Left::Writes, false), "");
        assert!(said(Left::FlushedWrites, false).contains("flush of /dev/nbd0 was in flight"));
        for left in [Left::Writes, Left::FlushedWrites] {
            assert!(said(left, true).contains("all flushes fail"));
        }
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
