//! A copy that is killed, and its target's server with it, at any time: what the journal says is done must be there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "the disk is small")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockyard::tools::copy::Copy;
use blockyard::tools::interrupt::Interrupt;
use blockyard::yard::queue_threads::QueueThreads;
use blockyard_blkmq::{
    Busy, Disk, DiskConfig, Driver, Error, Features, HctxHandle, Limits, MonotonicClock, NoOps, Op,
    OpenMode, Request, Sector, Status, TagSet, TagSetConfig,
};
use blockyard_buf::Segment;
use blockyard_export_nbd::{Address, Config, Export, Server, bind};
use common::{noise, unix};
use tempfile::TempDir;

/// Some times what a copy has out.
const SIZE: usize = 36 << 20;

/// Memory with a volatile cache: only a flush makes durable what was written.
struct Volatile {
    state: Mutex<State>,
    journal: PathBuf,
}

struct State {
    /// What is read.
    now: Vec<u8>,
    /// What is left when the power fails.
    durable: Vec<u8>,
    /// Writes that have not ended: the next flush does not cover them, and lets them go on.
    held: Vec<Request<Volatile>>,
    /// What was durable with each journal: as a crash would have found both.
    crashes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl State {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { now: bytes.clone(), durable: bytes, held: Vec::new(), crashes: Vec::new() }
    }

    fn write(&mut self, rq: &Request<Volatile>) {
        let mut at = rq.offset() as usize;
        for segment in rq.segments() {
            segment.copy_to(&mut self.now[at..at + segment.len()]);
            at += segment.len();
        }
    }

    /// What the journal says now must hold if the power fails now.
    fn look(&mut self, journal: &Path) {
        let Ok(journal) = std::fs::read(journal) else { return };
        if self.crashes.last().is_none_or(|(before, _)| *before != journal) {
            self.crashes.push((journal, self.durable.clone()));
        }
    }
}

impl Driver for Volatile {
    type Disk = ();
    type Hctx = ();
    type Cmd = ();

    fn init_hctx(&self, (): &(), _: HctxHandle<Self>) -> Result<(), Error> {
        Ok(())
    }

    fn queue_rq(&self, (): &mut (), mut rq: Request<Self>, _: bool) -> Result<(), Busy<Self>> {
        let mut state = self.state.lock().unwrap();
        let (mut at, len) = (rq.offset() as usize, rq.len() as usize);
        match rq.op() {
            Op::Read if rq.wants_supply() => {
                rq.deliver(Segment::from_vec(state.now[at..at + len].to_vec()));
            }
            Op::Read => rq.segments().for_each(|segment| {
                segment.copy_from(&state.now[at..at + segment.len()]);
                at += segment.len();
            }),
            Op::Write => {
                state.held.push(rq);
                return Ok(());
            }
            Op::WriteZeroes | Op::Discard => state.now[at..at + len].fill(0),
            Op::Flush => {
                // Before anything more is durable.
                state.look(&self.journal);
                state.durable = state.now.clone();
            }
            _ => {
                drop(state);
                rq.end(Status::NotSupported);
                return Ok(());
            }
        }
        let held = if rq.op() == Op::Flush { std::mem::take(&mut state.held) } else { Vec::new() };
        held.iter().for_each(|write| state.write(write));
        drop(state);
        rq.end(Status::Ok);
        held.into_iter().for_each(|write| write.end(Status::Ok));
        Ok(())
    }
}

/// A server whose disk holds that, as after a start.
fn serve(threads: &QueueThreads, socket: &Path, holds: Vec<u8>) -> (Arc<Volatile>, Arc<Server>) {
    let journal = socket.with_file_name("journal");
    let driver = Arc::new(Volatile { state: Mutex::new(State::holding(holds)), journal });
    let set = TagSet::new(Arc::clone(&driver), TagSetConfig::default()).unwrap();
    let limits = Limits {
        features: Features::WRITE_CACHE,
        max_write_zeroes_sectors: u32::MAX,
        ..Limits::default()
    };
    let config = DiskConfig::new("x", Sector::from_bytes_floor(SIZE as u64), limits);
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), config, Arc::new(NoOps), clock).unwrap();
    let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
    let config = Config { exports: vec![Export::new("", bdev)], ..Config::default() };
    let server = Server::new(config, threads.handles().to_vec()).unwrap();
    server.listen(bind(&Address::Unix(socket.to_owned()), None).unwrap());
    (driver, server)
}

fn copy(source: &Path, socket: &Path) {
    let copy = Copy {
        source: source.to_str().unwrap().parse().unwrap(),
        target: unix("", socket).parse().unwrap(),
        detect_zeroes: true,
        shares_blocks: true,
        threads: 1,
        journal: Some(socket.with_file_name("journal")),
        // As often as can be.
        checkpoint: Duration::ZERO,
    };
    copy.run(&Interrupt::default()).unwrap();
}

/// The ranges that a journal says are done.
fn done(journal: &[u8]) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut words = line.strip_prefix("done ")?.split(' ').map(|word| word.parse().ok());
        Some((words.next()??, words.next()??))
    };
    String::from_utf8_lossy(journal).lines().filter_map(range).collect()
}

#[test]
fn whenever_it_is_killed_a_copy_that_goes_on_is_whole() {
    let dir = TempDir::new().unwrap();
    let (socket, source) = (dir.path().join("s"), dir.path().join("source"));
    let mut bytes = noise(SIZE, 9);
    bytes[SIZE / 3..SIZE / 2].fill(0);
    std::fs::write(&source, &bytes).unwrap();
    let threads = QueueThreads::start(1).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let end = |server: Arc<Server>| runtime.block_on(server.shutdown(Duration::from_secs(60)));

    // Something else was there.
    let (driver, server) = serve(&threads, &socket, noise(SIZE, 10));
    copy(&source, &socket);
    end(server);
    let state = std::mem::replace(&mut *driver.state.lock().unwrap(), State::holding(Vec::new()));
    assert!(state.durable == bytes, "not all of it is durable");
    assert!(!driver.journal.exists());
    let midway =
        |(journal, durable): &&(Vec<u8>, Vec<u8>)| !done(journal).is_empty() && *durable != bytes;
    assert!(state.crashes.iter().filter(midway).count() > 1, "nothing was written down midway");
    for (journal, durable) in state.crashes {
        for (start, end) in done(&journal) {
            let holds = durable[start..end] == bytes[start..end];
            assert!(holds, "the journal says that {start}..{end} is done, and it is not durable");
        }
        // What goes on with it comes to the same end.
        std::fs::write(&driver.journal, journal).unwrap();
        let (driver, server) = serve(&threads, &socket, durable);
        copy(&source, &socket);
        end(server);
        assert!(driver.state.lock().unwrap().durable == bytes, "the copy that went on differs");
    }
    threads.shutdown();
}
