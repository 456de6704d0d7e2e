//! A driver whose behaviour a seeded script decides: a disk in memory with a volatile cache, which is busy,
//! slow, or wrong as its chances have it.
//!
//! It also watches the block layer: limits, tags, budgets, the gathering of requests, and the balance of set-up
//! and tear-down are asserted here.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use blockyard_blkmq::{
    Budget, Busy, Driver, EndBatch, Error, ErrorKind, Extent, Features, Flags, HctxHandle,
    InFlight, Limits, Op, QueueMaps, Request, Result, Status, Timeout,
};
use blockyard_buf::Segment;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub const SECTOR: usize = 512;

/// What the driver does to a request, each in so many of a thousand cases.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chances {
    /// Ends it within `queue_rq`.
    pub inline: u32,
    /// Hands it back as short of a resource.
    pub resource: u32,
    /// Hands it back as full, and runs the queue later.
    pub device: u32,
    /// Ends a part of it first.
    pub partial: u32,
    /// Gives it back after a while, to be issued again.
    pub requeue: u32,
    /// Forgets it.
    pub dropped: u32,
    /// Fails it.
    pub error: u32,
    /// Says that it is done, having done nothing.
    pub forgotten: u32,
    /// Ends all that its disk has out with it.
    pub together: u32,
}

/// How a scripted driver is made.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub limits: Limits,
    pub chances: Chances,
    pub budget: Option<i64>,
    /// All hardware queues draw from one set of tags.
    pub one_pool: bool,
    pub timeout: Option<Timeout>,
}

/// The bytes of a disk, and which of them a power cut leaves.
#[derive(Clone, Default)]
struct Image {
    now: Vec<u8>,
    /// Counts the writes of each sector.
    version: Vec<u64>,
    durable: Vec<u8>,
    durable_version: Vec<u64>,
}

impl Image {
    fn new(sectors: usize) -> Self {
        let (bytes, versions) = (vec![0; sectors * SECTOR], vec![0; sectors]);
        Self {
            now: bytes.clone(),
            version: versions.clone(),
            durable: bytes,
            durable_version: versions,
        }
    }

    fn write(&mut self, at: usize, bytes: &[u8], durable: bool) {
        self.now[at..at + bytes.len()].copy_from_slice(bytes);
        for sector in at / SECTOR..(at + bytes.len()) / SECTOR {
            self.version[sector] += 1;
            if durable {
                self.durable_version[sector] = self.version[sector];
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                self.durable[range.clone()].copy_from_slice(&self.now[range]);
            }
        }
    }

    /// Makes what `seen` had durable, and no more.
    fn flush(&mut self, seen: &Self) {
        for sector in 0..seen.version.len() {
            if seen.version[sector] > self.durable_version[sector] {
                self.durable_version[sector] = seen.version[sector];
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                self.durable[range.clone()].copy_from_slice(&seen.now[range]);
            }
        }
    }
}

/// Which disk of the driver.
pub type DiskId = usize;

/// A request that the driver holds, and whose.
pub struct Taken {
    rq: Request<Script>,
    disk: DiskId,
    hctx: usize,
    /// For a flush: the disk as it was when the flush came.
    seen: Option<Box<Image>>,
}

/// What is set up and must be taken down again; what was asked for.
#[derive(Debug, Default)]
pub struct Counts {
    pub hctxs: AtomicI64,
    pub requests: AtomicI64,
    pub queued: AtomicU64,
    pub flushes: AtomicU64,
    pub commits: AtomicU64,
    pub timeouts: AtomicU64,
    pub shown: AtomicU64,
    pub cleaned: AtomicU64,
    pub polled: AtomicU64,
}

/// The driver's part of a request: it knows whether it was set up.
#[derive(Default)]
pub struct Cmd {
    ready: bool,
    counts: Option<Arc<Counts>>,
    /// Whether the request was begun with and handed back.
    begun: bool,
}

/// The driver's part of a hardware queue.
pub struct Part {
    disk: DiskId,
    index: usize,
    gathered: Vec<Taken>,
}

struct Inner {
    rng: StdRng,
    images: HashMap<DiskId, Image>,
    out: Vec<Taken>,
    tags: HashSet<(usize, u32)>,
    /// Queues that were told "full" and wait to be run.
    full: Vec<(DiskId, usize)>,
    handles: HashMap<(DiskId, usize), HctxHandle<Script>>,
}

pub struct Script {
    pub config: Mutex<Config>,
    pub counts: Arc<Counts>,
    inner: Mutex<Inner>,
    units: Option<Units>,
    /// Nothing is busy, partial or late any more: what comes is done.
    calm: AtomicBool,
    one_pool: bool,
    timeouts_later: AtomicBool,
    /// Requests that can still be set up.
    pub init_left: AtomicI64,
    /// What was taken, in order: which hardware queue, what, where.
    pub log: Mutex<Vec<(usize, Op, u64)>>,
    /// What was failed, in order: what, from which sector to which.
    pub failures: Mutex<Vec<(Op, u64, u64)>>,
}

/// What is left of the budget. A refusal is remembered, as whoever was refused is to be run.
struct Units {
    left: AtomicI64,
    refused: AtomicBool,
}

impl Units {
    fn get(&self) -> bool {
        let got = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then(|| left - 1))
            .is_ok();
        if !got {
            self.refused.store(true, Ordering::SeqCst);
        }
        // One may have been given back before the refusal was seen.
        got || (self.left.load(Ordering::SeqCst) > 0 && self.get())
    }

    fn give(&self) {
        self.left.fetch_add(1, Ordering::SeqCst);
    }
}

impl Budget for Script {
    fn get(&self) -> bool {
        self.units.as_ref().is_none_or(Units::get)
    }

    fn put(&self) {
        self.units.iter().for_each(Units::give);
        self.gave_back();
    }
}

impl Script {
    pub fn new(seed: u64, config: Config) -> Arc<Self> {
        let inner = Inner {
            rng: StdRng::seed_from_u64(seed),
            images: HashMap::new(),
            out: Vec::new(),
            tags: HashSet::new(),
            full: Vec::new(),
            handles: HashMap::new(),
        };
        Arc::new(Self {
            units: config
                .budget
                .map(|left| Units { left: AtomicI64::new(left), refused: AtomicBool::new(false) }),
            one_pool: config.one_pool,
            timeouts_later: AtomicBool::new(false),
            init_left: AtomicI64::new(i64::MAX),
            log: Mutex::default(),
            failures: Mutex::default(),
            config: Mutex::new(config),
            counts: Arc::default(),
            inner: Mutex::new(inner),
            calm: AtomicBool::new(false),
        })
    }

    /// Gives the driver the memory of a disk.
    pub fn add_image(&self, disk: DiskId, sectors: usize) {
        self.inner.lock().images.insert(disk, Image::new(sectors));
    }

    /// Puts bytes on a disk.
    pub fn load(&self, disk: DiskId, bytes: &[u8]) {
        if let Some(image) = self.inner.lock().images.get_mut(&disk) {
            image.write(0, bytes, true);
        }
    }

    /// A timeout that it sees to does not end the request at once.
    pub fn see_to_timeouts_later(&self) {
        self.timeouts_later.store(true, Ordering::SeqCst);
    }

    /// Somebody found no budget, on another thread: whoever gives some back next runs the queues.
    pub fn refuse_budget(&self) {
        self.units.iter().for_each(|units| units.refused.store(true, Ordering::SeqCst));
    }

    /// From now on it takes everything and ends it at once.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    /// How many requests it holds.
    pub fn out(&self) -> usize {
        self.inner.lock().out.len()
    }

    /// What is on the disk.
    pub fn bytes(&self, disk: DiskId) -> Vec<u8> {
        self.inner.lock().images[&disk].now.clone()
    }

    /// What a power cut would leave: of each sector what is durable, or what is in the cache.
    pub fn power_cut(&self, disk: DiskId) -> Vec<u8> {
        let mut inner = self.inner.lock();
        let Inner { rng, images, .. } = &mut *inner;
        let image = &images[&disk];
        let mut left = image.durable.clone();
        for sector in 0..image.version.len() {
            if rng.random_bool(0.3) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                left[range.clone()].copy_from_slice(&image.now[range]);
            }
        }
        left
    }

    /// Moves something on: a request that is out, or a queue that was told "full". Says whether there was
    /// anything.
    pub fn step(&self) -> bool {
        let (taken, fate) = {
            let mut inner = self.inner.lock();
            if !inner.full.is_empty() && (inner.out.is_empty() || inner.rng.random_bool(0.3)) {
                let count = inner.full.len();
                let at = inner.rng.random_range(0..count);
                let which = inner.full.swap_remove(at);
                let handle = inner.handles[&which].clone();
                drop(inner);
                handle.run();
                return true;
            }
            if inner.out.is_empty() {
                return false;
            }
            let count = inner.out.len();
            let at = inner.rng.random_range(0..count);
            let taken = inner.out.swap_remove(at);
            let fate = self.fate(&mut inner.rng);
            (taken, fate)
        };
        self.meet(taken, fate);
        true
    }

    /// Ends what is out, in the order of the script, until nothing is.
    pub fn finish_all(&self) {
        while self.step() {}
    }

    fn fate(&self, rng: &mut StdRng) -> Fate {
        let chances = self.chances();
        let mut roll = rng.random_range(0..1000);
        for (chance, fate) in [
            (chances.partial, Fate::Partial),
            (chances.requeue, Fate::Requeue),
            (chances.dropped, Fate::Drop),
            (chances.error, Fate::Fail),
            (chances.forgotten, Fate::Forget),
            (chances.together, Fate::Together),
        ] {
            if roll < chance {
                return fate;
            }
            roll -= chance;
        }
        Fate::Done
    }

    fn chances(&self) -> Chances {
        if self.calm.load(Ordering::SeqCst) {
            Chances { inline: 1000, ..Chances::default() }
        } else {
            self.config.lock().chances
        }
    }

    fn meet(&self, mut taken: Taken, fate: Fate) {
        if matches!(fate, Fate::Drop | Fate::Fail) {
            let (rq, start) = (&taken.rq, taken.rq.sector().0);
            self.failures.lock().push((rq.op(), start, start + rq.len() / SECTOR as u64));
        }
        let block = self.config.lock().limits.logical_block_size.bytes().into();
        match fate {
            Fate::Partial
                if taken.rq.len() > block
                    && matches!(
                        taken.rq.op(),
                        Op::Read | Op::Write | Op::WriteZeroes | Op::Discard
                    ) =>
            {
                let blocks = taken.rq.len() / block;
                let part = self.inner.lock().rng.random_range(1..blocks) * block;
                let status = self.carry_out(&mut taken, part);
                let Taken { rq, disk, hctx, seen } = taken;
                if let Some(rq) = rq.update(status, part) {
                    self.inner.lock().out.push(Taken { rq, disk, hctx, seen });
                }
            }
            Fate::Requeue => {
                if taken.rq.op() == Op::Read {
                    // Some of the answer came, and is of no use any more.
                    taken.rq.deliver(Segment::from_vec(vec![0xee; block as usize]));
                }
                self.forget(&taken);
                taken.rq.cmd_mut().begun = true;
                taken.rq.requeue();
                self.gave_back();
            }
            Fate::Drop => {
                self.forget(&taken);
                taken.rq.cmd_mut().begun = false;
                drop(taken.rq);
                self.gave_back();
            }
            Fate::Fail => {
                if self.inner.lock().rng.random_bool(0.5) {
                    let half = taken.rq.len() / block / 2 * block;
                    let op = taken.rq.op();
                    if op.is_write() {
                        let _failed_anyway = self.carry_out(&mut taken, half);
                    }
                }
                self.forget(&taken);
                taken.rq.cmd_mut().begun = false;
                taken.rq.end(Status::Medium);
                self.gave_back();
            }
            Fate::Forget => {
                self.forget(&taken);
                taken.rq.complete(Status::Ok);
                self.gave_back();
            }
            Fate::Together => {
                let mut batch = EndBatch::default();
                for mut taken in self.neighbours(taken) {
                    let len = taken.rq.len();
                    let status = self.carry_out(&mut taken, len);
                    self.forget(&taken);
                    taken.rq.cmd_mut().begun = false;
                    batch.add(taken.rq, status);
                }
                batch.end();
                self.gave_back();
            }
            Fate::Done | Fate::Partial => {
                let len = taken.rq.len();
                let status = self.carry_out(&mut taken, len);
                self.forget(&taken);
                taken.rq.cmd_mut().begun = false;
                taken.rq.complete(status);
                self.gave_back();
            }
        }
    }

    /// A request, and all others that its disk has out.
    fn neighbours(&self, taken: Taken) -> Vec<Taken> {
        let is_near = |other: &mut Taken| other.disk == taken.disk;
        let mut all: Vec<_> = self.inner.lock().out.extract_if(.., is_near).collect();
        all.insert(0, taken);
        all
    }

    /// Does the first `len` bytes of a request.
    fn carry_out(&self, taken: &mut Taken, len: u64) -> Status {
        let mut inner = self.inner.lock();
        let Inner { images, .. } = &mut *inner;
        let image = images.get_mut(&taken.disk).expect("the disk has an image");
        let rq = &mut taken.rq;
        let (at, len) = (rq.offset() as usize, len as usize);
        // What has no flush may have a cache.
        let volatile = Features::WRITE_CACHE | Features::NO_FLUSH;
        let cached = self.config.lock().limits.features.intersects(volatile);
        let durable = !cached || rq.flags().contains(Flags::FUA);
        match rq.op() {
            Op::Read => rq.deliver(Segment::from_vec(image.now[at..at + len].to_vec())),
            Op::Write => {
                let bytes: Vec<u8> =
                    rq.segments().flat_map(|segment| segment.to_vec()).take(len).collect();
                assert_eq!(bytes.len(), len, "a write brings all of its bytes");
                image.write(at, &bytes, durable);
            }
            Op::WriteZeroes | Op::Discard | Op::SecureErase => {
                image.write(at, &vec![0; len], durable);
            }
            Op::Flush => {
                let seen = taken.seen.take().expect("a flush has seen the disk");
                image.flush(&seen);
            }
            Op::BlockStatus => {
                for chunk in image.now[at..at + len].chunks(SECTOR) {
                    let zero = chunk.iter().all(|&byte| byte == 0);
                    rq.push_extent(if zero {
                        Extent::hole(SECTOR as u64)
                    } else {
                        Extent::data(SECTOR as u64)
                    });
                }
            }
            Op::Prefetch => {}
        }
        Status::Ok
    }

    /// The request is not out any more.
    fn forget(&self, taken: &Taken) {
        let pool = if self.one_pool { 0 } else { taken.hctx };
        assert!(self.inner.lock().tags.remove(&(pool, taken.rq.tag())), "its tag was out");
        self.units.iter().for_each(Units::give);
    }

    /// After a request has gone: whoever found no budget is run.
    fn gave_back(&self) {
        if self.units.as_ref().is_some_and(|units| units.refused.swap(false, Ordering::SeqCst)) {
            let handles: Vec<_> = self.inner.lock().handles.values().cloned().collect();
            handles.iter().for_each(HctxHandle::run);
        }
    }

    fn take_in(&self, part: &mut Part) {
        let mut gathered = std::mem::take(&mut part.gathered);
        let mut inner = self.inner.lock();
        for taken in &mut gathered {
            if taken.rq.op() == Op::Flush {
                taken.seen = Some(Box::new(inner.images[&taken.disk].clone()));
            }
        }
        inner.out.append(&mut gathered);
    }

    fn check(&self, rq: &Request<Self>) {
        let limits = self.config.lock().limits.clone();
        let block = limits.logical_block_size;
        assert!(block.divides(rq.offset()) && block.divides(rq.len()), "unaligned: {rq:?}");
        assert_eq!(rq.is_empty(), rq.op() == Op::Flush, "{rq:?}");
        let features = limits.features;
        if rq.flags().intersects(Flags::FUA | Flags::PREFLUSH) || rq.op() == Op::Flush {
            let needed = features.intersects(Features::WRITE_CACHE | Features::NO_FLUSH);
            assert!(needed, "nothing to flush: {rq:?}");
        }
        assert!(
            !rq.flags().contains(Flags::PREFLUSH),
            "the block layer sends preflushes itself: {rq:?}"
        );
        assert!(!rq.flags().contains(Flags::FUA) || features.contains(Features::FUA), "{rq:?}");
        if !matches!(rq.op(), Op::Flush | Op::BlockStatus | Op::Prefetch) {
            assert!(rq.len() <= limits.max_bytes(rq.op(), rq.sector()), "too long: {rq:?}");
        }
        let spans = rq.segments().map(|segment| (segment.as_ptr().addr(), segment.len()));
        let segments = limits.count_segments(spans);
        assert!(segments <= usize::from(limits.max_segments), "{segments} segments: {rq:?}");
        if rq.op() == Op::Write {
            assert_eq!(rq.segments().map(|segment| segment.len() as u64).sum::<u64>(), rq.len());
        }
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Done,
    Partial,
    Requeue,
    Drop,
    Fail,
    Forget,
    Together,
}

impl Driver for Script {
    type Disk = DiskId;
    type Hctx = Part;
    type Cmd = Cmd;

    fn init_hctx(&self, &disk: &DiskId, queue: HctxHandle<Self>) -> Result<Part> {
        self.counts.hctxs.fetch_add(1, Ordering::SeqCst);
        let index = queue.index();
        self.inner.lock().handles.insert((disk, index), queue);
        Ok(Part { disk, index, gathered: Vec::new() })
    }

    fn exit_hctx(&self, &disk: &DiskId, part: Part) {
        assert!(part.gathered.is_empty(), "requests were gathered for ever");
        self.counts.hctxs.fetch_sub(1, Ordering::SeqCst);
        let mut inner = self.inner.lock();
        inner.handles.remove(&(disk, part.index));
        inner.full.retain(|full| *full != (disk, part.index));
    }

    fn init_request(&self, _disk: &DiskId, cmd: &mut Cmd, _hctx: usize) -> Result<()> {
        assert!(!cmd.ready, "set up twice");
        if self.init_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(Error::new(ErrorKind::Resource, "no more requests"));
        }
        cmd.ready = true;
        cmd.counts = Some(Arc::clone(&self.counts));
        self.counts.requests.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn exit_request(&self, _disk: &DiskId, cmd: &mut Cmd, _hctx: usize) {
        assert!(std::mem::take(&mut cmd.ready), "taken down without being set up");
        self.counts.requests.fetch_sub(1, Ordering::SeqCst);
    }

    fn queue_rq(
        &self,
        part: &mut Part,
        mut rq: Request<Self>,
        last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        assert!(rq.cmd().ready, "used before it was set up");
        self.check(&rq);
        let chances = self.chances();
        let roll = {
            let mut inner = self.inner.lock();
            let roll = inner.rng.random_range(0..1000);
            if roll < chances.device {
                inner.full.push((part.disk, part.index));
            }
            roll
        };
        if roll < chances.device {
            rq.cmd_mut().begun = true;
            return Err(Busy::Device(rq));
        }
        if roll < chances.device + chances.resource {
            rq.cmd_mut().begun = true;
            return Err(Busy::Resource(rq));
        }
        self.counts.queued.fetch_add(1, Ordering::SeqCst);
        if rq.op() == Op::Flush {
            self.counts.flushes.fetch_add(1, Ordering::SeqCst);
        }
        let pool = if self.one_pool { 0 } else { part.index };
        let hctx = part.index;
        assert_eq!(rq.hctx_index(), hctx);
        self.log.lock().push((hctx, rq.op(), rq.sector().0));
        assert!(self.inner.lock().tags.insert((pool, rq.tag())), "tag {} is out already", rq.tag());
        let mut taken = Taken { rq, disk: part.disk, hctx, seen: None };
        if roll < chances.device + chances.resource + chances.inline {
            if taken.rq.op() == Op::Flush {
                taken.seen = Some(Box::new(self.inner.lock().images[&part.disk].clone()));
            }
            let fate = self.fate(&mut self.inner.lock().rng);
            self.meet(taken, fate);
        } else {
            part.gathered.push(taken);
        }
        if last {
            self.take_in(part);
        }
        Ok(())
    }

    fn commit_rqs(&self, part: &mut Part) {
        self.counts.commits.fetch_add(1, Ordering::SeqCst);
        self.take_in(part);
    }

    fn budget(&self) -> Option<&dyn Budget> {
        self.units.as_ref().map(|_| self as &dyn Budget)
    }

    fn timeout(&self, _part: &mut Part, rq: &InFlight) -> Timeout {
        self.counts.timeouts.fetch_add(1, Ordering::SeqCst);
        let answer = self.config.lock().timeout.unwrap_or(Timeout::ResetTimer);
        if answer == Timeout::Done && !self.timeouts_later.load(Ordering::SeqCst) {
            let found = {
                let mut inner = self.inner.lock();
                let at = inner.out.iter().position(|taken| taken.rq.cookie() == rq.cookie);
                at.map(|at| inner.out.swap_remove(at))
            };
            if let Some(taken) = found {
                self.forget(&taken);
                taken.rq.end(Status::Timeout);
                self.gave_back();
            }
        }
        answer
    }

    fn poll(&self, _part: &mut Part) -> usize {
        self.counts.polled.fetch_add(1, Ordering::SeqCst);
        usize::from(self.step())
    }

    fn cleanup_rq(&self, cmd: &mut Cmd) {
        cmd.begun = false;
        self.counts.cleaned.fetch_add(1, Ordering::SeqCst);
    }

    fn map_queues(&self, maps: &mut QueueMaps) {
        maps.spread();
    }

    fn show_rq(&self, cmd: &Cmd, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts.shown.fetch_add(1, Ordering::SeqCst);
        write!(out, "begun={}", cmd.begun)
    }
}
