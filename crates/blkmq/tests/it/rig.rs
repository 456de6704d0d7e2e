//! A disk on a scripted driver, with a clock that is set by hand, and a list of the bios that have ended.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use blockyard_blkmq::{
    Bdev, Bio, BlockDeviceOps, BlockLayer, Clock, Disk, DiskConfig, DiskFlags, EndIo, Limits,
    NoOps, OpenMode, Result, Sector, TagSet, TagSetConfig,
};
use parking_lot::Mutex;

use crate::script::{self, Script};

/// A clock that goes on when it is told to.
#[derive(Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn advance_ms(&self, ms: u64) {
        self.0.fetch_add(ms * 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Collects bios that have ended.
#[derive(Default)]
pub struct Ends {
    bios: Mutex<Vec<Box<Bio>>>,
    ever: AtomicUsize,
}

impl EndIo for Ends {
    fn end_io(&self, bio: Box<Bio>) {
        self.ever.fetch_add(1, Ordering::SeqCst);
        self.bios.lock().push(bio);
    }
}

impl Ends {
    pub fn take(&self) -> Vec<Box<Bio>> {
        std::mem::take(&mut *self.bios.lock())
    }

    pub fn count(&self) -> usize {
        self.bios.lock().len()
    }

    /// How many have ended so far, taken or not: for a [`Watchdog`].
    pub fn counter(self: &Arc<Self>) -> impl Fn() -> usize + Send + 'static {
        let ends = Arc::clone(self);
        move || ends.ever.load(Ordering::SeqCst)
    }
}

/// Lets a test that has failed end: its requests end, so that its disk can be taken down.
pub struct EndsAll(Arc<Script>);

impl Drop for EndsAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.calm_down();
            self.0.finish_all();
        }
    }
}

pub struct Rig {
    /// Dropped first.
    ends_all: EndsAll,
    pub layer: BlockLayer,
    pub script: Arc<Script>,
    pub clock: Arc<ManualClock>,
    pub set: Arc<TagSet<Script>>,
    pub disk: Arc<Disk>,
    pub bdev: Bdev,
    pub ends: Arc<Ends>,
    sectors: u64,
}

impl Rig {
    /// One disk of `sectors`, which nobody has looked for partitions on.
    pub fn new(seed: u64, set: TagSetConfig, config: script::Config, sectors: u64) -> Self {
        let limits = config.limits.clone();
        let script = Script::new(seed, config);
        let set = TagSet::new(Arc::clone(&script), set).unwrap();
        let clock = Arc::<ManualClock>::default();
        let disk = alloc(&set, 0, sectors, &limits, Arc::<ManualClock>::clone(&clock)).unwrap();
        let layer = BlockLayer::new();
        layer.add_disk(&disk).unwrap();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let ends_all = EndsAll(Arc::clone(&script));
        Self { ends_all, layer, script, clock, set, disk, bdev, ends: Arc::default(), sectors }
    }

    /// Another disk on the same tags.
    pub fn another(&self, id: script::DiskId) -> Result<Arc<Disk>> {
        alloc(
            &self.set,
            id,
            self.sectors,
            &self.disk.limits(),
            Arc::<ManualClock>::clone(&self.clock),
        )
    }

    /// Submits, to be found among the ends.
    pub fn submit(&self, cpu: usize, bio: Box<Bio>) {
        self.bdev.submit(cpu, bio.on_end(Arc::<Ends>::clone(&self.ends)));
    }

    /// Takes everything down, and looks whether something is left.
    pub fn tear_down(self) {
        let Self { ends_all, layer, script, set, disk, bdev, .. } = self;
        script.calm_down();
        script.finish_all();
        layer.del_disk(&disk);
        drop((bdev, disk, layer, set, ends_all));
        let counts = &script.counts;
        assert_eq!(counts.hctxs.load(Ordering::SeqCst), 0, "hardware queues were not taken down");
        assert_eq!(counts.requests.load(Ordering::SeqCst), 0, "requests were not taken down");
        assert_eq!(Arc::strong_count(&script), 1, "something of the queue is left");
    }
}

/// A set for a driver that ends everything at once, and knows no trouble.
pub fn calm(seed: u64, set: TagSetConfig, limits: Limits) -> Arc<TagSet<Script>> {
    let script = Script::new(seed, script::Config { limits, ..script::Config::default() });
    script.calm_down();
    TagSet::new(script, set).unwrap()
}

/// A disk of `config` on the bytes of `image`.
pub fn disk_of(
    set: &Arc<TagSet<Script>>,
    id: script::DiskId,
    image: &[u8],
    config: DiskConfig,
    ops: Arc<dyn BlockDeviceOps>,
) -> Arc<Disk> {
    set.driver().add_image(id, image.len() / script::SECTOR);
    set.driver().load(id, image);
    Disk::alloc(set, id, config, ops, Arc::<ManualClock>::default()).unwrap()
}

fn alloc(
    set: &Arc<TagSet<Script>>,
    id: script::DiskId,
    sectors: u64,
    limits: &Limits,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Disk>> {
    set.driver().add_image(id, sectors as usize);
    let mut config = DiskConfig::new(format!("script{id}"), Sector(sectors), limits.clone());
    config.flags = DiskFlags::NO_PART_SCAN;
    Disk::alloc(set, id, config, Arc::new(NoOps), clock)
}

/// Without a bio that ends for so long, nothing goes on any more: also on a machine that does much else.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// Ends the test with what `state` says, if it is not dropped and no further bio has ended for a minute.
pub struct Watchdog(Option<(mpsc::Sender<()>, JoinHandle<()>)>);

impl Watchdog {
    /// `ended` says how many have ended so far; one that does not know says the same each time.
    pub fn new(
        what: &str,
        ended: impl Fn() -> usize + Send + 'static,
        state: impl Fn() -> String + Send + 'static,
    ) -> Self {
        let (alive, dropped) = mpsc::channel();
        let what = what.to_owned();
        let watching = std::thread::spawn(move || {
            let mut before = ended();
            while dropped.recv_timeout(STUCK_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = ended();
                if now == before {
                    // Not by `eprintln`, which is kept for the end of a test that this one does not see.
                    let _ = writeln!(std::io::stderr(), "{what} is stuck:\n{}", state());
                    std::process::abort();
                }
                before = now;
            }
        });
        Self(Some((alive, watching)))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some((alive, watching)) = self.0.take() {
            drop(alive);
            watching.join().expect("the watchdog only waits");
        }
    }
}

/// The seed of a run, printed so that the run can be repeated with `BLOCKYARD_SEED=<seed>`.
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("BLOCKYARD_SEED") {
        Ok(text) => text.parse().expect("BLOCKYARD_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("{test}: BLOCKYARD_SEED={seed}");
    seed
}
