use std::time::Instant;

use blockyard_blkmq::{
    Bdev, Bio, DiskConfig, Flags, MonotonicClock, NoOps, OpenMode, TagSet, TagSetConfig,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::*;

const LATENCY: Duration = Duration::from_micros(300);

/// A runtime with a thread of its own, and one to wait on.
struct Threads {
    queue: Handle,
    here: Runtime,
    _stop: oneshot::Sender<()>,
}

impl Threads {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.here.block_on(future)
    }
}

fn runtime() -> Threads {
    let queue = Builder::new_current_thread().enable_all().build().unwrap();
    let here = Builder::new_current_thread().build().unwrap();
    let handle = queue.handle().clone();
    let (stop, stopped) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = queue.block_on(stopped);
    });
    Threads { queue: handle, here, _stop: stop }
}

fn disk(
    latency: Option<Duration>,
    hw_queues: [usize; QueueType::COUNT],
    runtime: &Threads,
) -> (Arc<Null>, Bdev) {
    let config = NullConfig { capacity: Sector(1 << 31), latency };
    let null = Null::new(config, std::slice::from_ref(&runtime.queue)).unwrap();
    let set = TagSet::new(Arc::clone(&null), TagSetConfig { hw_queues, ..TagSetConfig::default() })
        .unwrap();
    let config = DiskConfig::new("nullb0", null.capacity(), Null::limits());
    let disk =
        Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap();
    (null, disk.open(None, OpenMode::ReadWrite).unwrap())
}

fn run(bdev: &Bdev, bio: Box<Bio>) -> Box<Bio> {
    bdev.submit_and_wait(0, bio)
}

#[test]
fn reads_are_zeroes_whoever_has_the_memory_and_all_else_does_nothing() {
    let runtime = runtime();
    for latency in [None, Some(LATENCY)] {
        let (_, bdev) = disk(latency, [1, 0, 0], &runtime);
        let supplied = run(&bdev, Bio::new(Op::Read, Sector(8), 3 << 20));
        assert_eq!((supplied.status(), supplied.data().len()), (Status::Ok, 3));
        assert!(supplied.data().iter().all(Segment::is_zero_run));
        let memory = std::iter::once(Segment::from_vec(vec![1; 4096])).collect();
        let given = run(&bdev, Bio::with_data(Op::Read, Sector(0), memory));
        assert_eq!((given.status(), given.data()[0].to_vec()), (Status::Ok, vec![0; 4096]));
        let memory = std::iter::once(Segment::from_vec(vec![1; 4096])).collect();
        let write = run(&bdev, Bio::with_data(Op::Write, Sector(0), memory));
        assert_eq!(write.status(), Status::Ok);
        for op in [Op::Flush, Op::Discard, Op::WriteZeroes, Op::Prefetch] {
            let len = if op == Op::Flush { 0 } else { 1 << 30 };
            assert_eq!(run(&bdev, Bio::new(op, Sector(0), len)).status(), Status::Ok, "{op:?}");
        }
        let map = run(&bdev, Bio::new(Op::BlockStatus, Sector(0), 1 << 40));
        assert_eq!(map.extents, [Extent::hole(1 << 40)]);
        let erase = run(&bdev, Bio::new(Op::SecureErase, Sector(0), 512));
        assert_eq!(erase.status(), Status::NotSupported);
    }
}

#[test]
fn latency_is_kept_by_each_and_shared_by_many() {
    let runtime = runtime();
    let (_, bdev) = disk(Some(LATENCY), [1, 0, 0], &runtime);
    let begin = Instant::now();
    for _ in 0..20 {
        let one = Instant::now();
        assert_eq!(run(&bdev, Bio::new(Op::Read, Sector(0), 512)).status(), Status::Ok);
        assert!(one.elapsed() >= LATENCY);
    }
    assert!(begin.elapsed() >= 20 * LATENCY);
    let ends: Vec<_> =
        (0..100).map(|i| bdev.submit_async(0, Bio::new(Op::Read, Sector(i * 8), 4096))).collect();
    let begin = Instant::now();
    for end in ends {
        assert_eq!(runtime.block_on(end).status(), Status::Ok);
    }
    assert!(begin.elapsed() < 50 * LATENCY, "100 wait together, not one after the other");
}

#[test]
fn polled_requests_end_when_somebody_polls_after_their_latency() {
    let runtime = runtime();
    let (_, bdev) = disk(Some(LATENCY), [1, 0, 1], &runtime);
    let begin = Instant::now();
    let bio = Bio::new(Op::Read, Sector(0), 512).with_flags(Flags::POLLED);
    let end = bdev.submit_async(0, bio);
    assert_eq!(bdev.poll(0), 0, "not yet");
    while bdev.poll(0) == 0 {
        std::hint::spin_loop();
    }
    assert!(begin.elapsed() >= LATENCY);
    assert_eq!(runtime.block_on(end).status(), Status::Ok);
}

#[test]
fn bad_blocks_fail_what_touches_them() {
    let (null, bdev) = disk(None, [1, 0, 0], &runtime());
    null.fail_bad_blocks_of(bdev.disk());
    bdev.disk().bad_blocks().set(Sector(100), Sector(2), true).unwrap();
    let read = |sector, sectors: u64| {
        run(&bdev, Bio::new(Op::Read, Sector(sector), sectors * 512)).status()
    };
    assert_eq!((read(92, 8), read(102, 8)), (Status::Ok, Status::Ok));
    assert_eq!((read(92, 9), read(101, 1)), (Status::Medium, Status::Medium));
    assert_eq!(run(&bdev, Bio::new(Op::Discard, Sector(0), 1 << 20)).status(), Status::Ok);
    bdev.disk().bad_blocks().clear(Sector(100), Sector(2)).unwrap();
    assert_eq!(read(92, 9), Status::Ok);
}

#[test]
fn a_disk_that_goes_away_lets_what_waits_end() {
    let runtime = runtime();
    let (null, bdev) = disk(Some(LATENCY), [1, 0, 0], &runtime);
    let end = bdev.submit_async(0, Bio::new(Op::Read, Sector(0), 512));
    drop(bdev);
    assert_eq!(runtime.block_on(end).status(), Status::Ok);
    drop(null);
    assert!(Null::new(NullConfig { capacity: Sector(8), latency: Some(LATENCY) }, &[]).is_err());
}
