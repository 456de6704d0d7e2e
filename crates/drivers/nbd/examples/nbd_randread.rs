//! A closed loop of random reads through the block layer, as `fio --rw=randread` does it: requests per second,
//! and the CPU time of this process for each.
//!
//! `cargo run --release -p blockyard-driver-nbd --example nbd_randread -- URI [DEPTH [SECONDS [BLOCK_BYTES]]]`
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Bio, Disk, DiskConfig, EndIo, MonotonicClock, Op, OpenMode, Sector, TagSet,
};
use blockyard_driver_nbd::{Nbd, NbdConfig};

/// Submits the next read when one ends.
struct Loop {
    bdev: OnceLock<Bdev>,
    blocks: u64,
    block: u64,
    state: AtomicU64,
    done: AtomicU64,
    until: Instant,
}

impl Loop {
    fn next(&self, bio: &mut Bio) {
        // xorshift; all of it runs on the queue thread.
        let mut x = self.state.load(Ordering::Relaxed);
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.state.store(x, Ordering::Relaxed);
        bio.reset(Op::Read, Sector(x % self.blocks * (self.block / 512)), self.block);
    }
}

impl EndIo for Loop {
    fn end_io(&self, mut bio: Box<Bio>) {
        assert!(bio.status().is_ok(), "a read failed: {}", bio.status());
        let done = self.done.load(Ordering::Relaxed) + 1;
        self.done.store(done, Ordering::Relaxed);
        if done.is_multiple_of(64) && Instant::now() >= self.until {
            return;
        }
        self.next(&mut bio);
        if let Some(bdev) = self.bdev.get() {
            bdev.submit(0, bio);
        }
    }
}

fn cpu() -> Duration {
    // Nanoseconds on a CPU, of each thread (proc_pid_schedstat).
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let own = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(own.sum())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let uri = arguments.first().ok_or("usage: randread URI [DEPTH [SECONDS [BLOCK_BYTES]]]")?;
    let (depth, seconds, block) = (number(1, 32)?, number(2, 5)?, number(3, 4096)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let config = NbdConfig::new(uri.parse()?);
    let (nbd, export) = runtime.block_on(Nbd::connect(config, &[runtime.handle().clone()]))?;
    let set = TagSet::new(Arc::clone(&nbd), nbd.tag_set_config(1))?;
    let disk = DiskConfig::new("nbd0", export.capacity, export.limits.clone());
    let disk = Disk::alloc(&set, (), disk, nbd.clone(), Arc::new(MonotonicClock::default()))?;
    let duration = Duration::from_secs(seconds);
    let load = Arc::new(Loop {
        bdev: OnceLock::new(),
        blocks: export.capacity.bytes() / block,
        block,
        state: AtomicU64::new(0x1234_5678_9abc_def1),
        done: AtomicU64::new(0),
        until: Instant::now() + duration,
    });
    load.bdev.set(disk.open(None, OpenMode::ReadOnly)?).map_err(|_| "opened twice")?;
    let (before, start) = (cpu(), Instant::now());
    runtime.block_on(async {
        for _ in 0..depth {
            let mut bio = Bio::new(Op::Read, Sector(0), block).on_end(load.clone());
            load.next(&mut bio);
            if let Some(bdev) = load.bdev.get() {
                bdev.submit(0, bio);
            }
        }
        tokio::time::sleep(duration).await;
    });
    let (done, elapsed) = (load.done.load(Ordering::Relaxed), start.elapsed());
    let used = cpu().saturating_sub(before);
    let per_request = used.as_secs_f64() * 1e6 / done as f64;
    println!(
        "{:.0} requests/s, {per_request:.2} us of CPU each",
        done as f64 / elapsed.as_secs_f64()
    );
    std::process::exit(0);
}
