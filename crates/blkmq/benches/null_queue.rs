//! What the block layer itself costs: bios through a queue to a driver that ends them at once, and back.
//!
//! `cargo bench -p blockyard-blkmq --bench null_queue [-- --json]`
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::vec_box, reason = "a benchmark")]

use std::cell::RefCell;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Bio, Busy, Disk, DiskConfig, Driver, EndIo, FaultKind, FaultOps, FaultSpec, HctxHandle,
    Limits, MonotonicClock, NoOps, Op, OpenMode, Request, Result, Sector, Status, TagSet,
    TagSetConfig,
};
use blockyard_buf::Segment;

/// Answers every read with the same memory, which each queue has its own of, and ends everything at once.
struct Null;

impl Driver for Null {
    type Disk = ();
    type Hctx = Segment;
    type Cmd = ();

    fn init_hctx(&self, _disk: &(), _queue: HctxHandle<Self>) -> Result<Segment> {
        Ok(Segment::from_vec(vec![0; BYTES]))
    }

    fn queue_rq(
        &self,
        memory: &mut Segment,
        mut rq: Request<Self>,
        _last: bool,
    ) -> std::result::Result<(), Busy<Self>> {
        rq.deliver(memory.clone());
        rq.end(Status::Ok);
        Ok(())
    }
}

thread_local! {
    /// Bios of this thread that have ended, to be used again.
    static ENDED: RefCell<Vec<Box<Bio>>> = const { RefCell::new(Vec::new()) };
}

/// Gives a bio back to its thread: with this driver it ends on the one that it came from.
struct GiveBack;

impl EndIo for GiveBack {
    fn end_io(&self, bio: Box<Bio>) {
        ENDED.with_borrow_mut(|ended| ended.push(bio));
    }
}

const BATCH: usize = 32;
/// Bytes that each bio reads.
const BYTES: usize = 4096;
/// How long one measurement takes, and how often it is repeated: the best counts, as what else the machine does
/// only adds.
const TIME: Duration = Duration::from_millis(20);
const REPEATS: usize = 60;

fn open(queues: usize) -> Bdev {
    let config =
        TagSetConfig { cpus: queues, hw_queues: [queues, 0, 0], ..TagSetConfig::default() };
    let set = TagSet::new(Arc::new(Null), config).unwrap();
    let config = DiskConfig::new("null0", Sector(1 << 30), Limits::default());
    let clock = Arc::new(MonotonicClock::new());
    Disk::alloc(&set, (), config, Arc::new(NoOps), clock)
        .unwrap()
        .open(None, OpenMode::ReadWrite)
        .unwrap()
}

fn fill() {
    ENDED.with_borrow_mut(|ended| {
        // Each thread has an owner of its own: the count of its references is not shared.
        let owner: Arc<dyn EndIo> = Arc::new(GiveBack);
        *ended = (0..BATCH)
            .map(|_| Bio::new(Op::Read, Sector(0), BYTES as u64).on_end(Arc::clone(&owner)))
            .collect();
    });
}

fn next_bio(sector: &mut u64) -> Box<Bio> {
    let mut bio = ENDED.with_borrow_mut(Vec::pop).unwrap();
    *sector = sector.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    bio.reset(Op::Read, Sector((*sector >> 40) * 8), BYTES as u64);
    bio
}

/// Bios per second.
#[derive(Clone, Copy, Default)]
struct Rate {
    /// Of the clock on the wall.
    wall: f64,
    /// Of the time that the machine has given to the thread: the same on an idle machine, unless a thread
    /// sleeps.
    cpu: f64,
}

impl Rate {
    fn of(bios: u32, wall: Duration, cpu: Duration) -> Self {
        let rate = |time: Duration| f64::from(bios) / time.as_secs_f64();
        Self { wall: rate(wall), cpu: rate(cpu) }
    }
}

fn cpu_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

/// The rate of one thread that submits one at a time.
fn singles(bdev: &Bdev, cpu: usize) -> Rate {
    let (start, used, mut bios, mut sector) = (Instant::now(), cpu_time(), 0u32, 1);
    loop {
        for _ in 0..1000 {
            bdev.submit(cpu, next_bio(&mut sector));
        }
        bios += 1000;
        let elapsed = start.elapsed();
        if elapsed > TIME {
            return Rate::of(bios, elapsed, cpu_time() - used);
        }
    }
}

/// The same with batches of [`BATCH`].
fn batches(bdev: &Bdev) -> Rate {
    let (start, used, mut bios, mut sector) = (Instant::now(), cpu_time(), 0u32, 1);
    let mut plug = Vec::with_capacity(BATCH);
    loop {
        for _ in 0..100 {
            plug.extend((0..BATCH).map(|_| next_bio(&mut sector)));
            bdev.submit_all(0, &mut plug);
            bios += 32;
        }
        let elapsed = start.elapsed();
        if elapsed > TIME {
            return Rate::of(bios, elapsed, cpu_time() - used);
        }
    }
}

/// The rate of `queues` threads together, each on a CPU and a hardware queue of its own.
fn threads(queues: usize) -> Rate {
    let (bdev, together) = (open(queues), Barrier::new(queues));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..queues)
            .map(|cpu| {
                let (bdev, together) = (&bdev, &together);
                scope.spawn(move || {
                    pin(cpu);
                    fill();
                    together.wait();
                    singles(bdev, cpu)
                })
            })
            .collect();
        let sum = |sum: Rate, one: Rate| Rate { wall: sum.wall + one.wall, cpu: sum.cpu + one.cpu };
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Rate::default(), sum)
    })
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    // On a machine without that CPU the figure is what it is.
    let _unpinned = rustix::thread::sched_setaffinity(None, &set);
}

fn best(measure: impl Fn() -> Rate) -> Rate {
    (0..REPEATS).map(|_| measure()).fold(Rate::default(), |best, rate| Rate {
        wall: best.wall.max(rate.wall),
        cpu: best.cpu.max(rate.cpu),
    })
}

fn main() {
    fill();
    let bdev = open(1);
    let batch = best(|| batches(&bdev)).wall;
    let (one, two) = (best(|| threads(1)), best(|| threads(2)));
    let (single_ns, batch_ns) = (1e9 / one.wall, 1e9 / batch);
    let cpu_ratio = two.cpu / one.cpu;
    let idle = open(1);
    let error = FaultSpec::new(FaultKind::Error(Status::Io));
    idle.disk().add_fault(FaultSpec { ops: FaultOps::FLUSH, ..error }).unwrap();
    // In turns, so that whatever else the machine does concerns both.
    let (mut with, mut without) = (Rate::default(), Rate::default());
    for _ in 0..REPEATS {
        with.cpu = with.cpu.max(batches(&idle).cpu);
        without.cpu = without.cpu.max(batches(&bdev).cpu);
    }
    let idle_ratio = with.cpu / without.cpu;
    if std::env::args().any(|arg| arg == "--json") {
        print!("{{\"ns_per_bio_1q\": {single_ns:.1}, \"ns_per_bio_batch32\": {batch_ns:.1}, ");
        print!("\"bios_per_s_1q\": {:.0}, \"bios_per_s_2q\": {:.0}, ", one.wall, two.wall);
        println!("\"cpu_ratio_2q\": {cpu_ratio:.2}, \"idle_fault_to_none\": {idle_ratio:.3}}}");
    } else {
        println!("one at a time   {single_ns:8.1} ns per bio   {:12.0} bios/s", one.wall);
        println!("batches of {BATCH}   {batch_ns:8.1} ns per bio   {batch:12.0} bios/s");
        println!(
            "two queues      {:8.2} times one       {:12.0} bios/s",
            two.wall / one.wall,
            two.wall
        );
        println!(
            "                {cpu_ratio:8.2} times one by the time that the threads were given"
        );
        println!("an idle fault   {idle_ratio:8.3} times none, in batches of {BATCH}");
    }
}
