//! 4 KiB random reads from a cached file: through the block layer with io_uring and with threads, and by plain
//! pread(2).
//!
//! `randread FILE [uring|threads|pread|all] [depth] [seconds] [direct]`; see what the kernel sees with `strace
//! -cf`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "an example"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use blockyard_blkmq::{
    Bdev, Bio, Disk, DiskConfig, EndIo, MonotonicClock, NoOps, Op, OpenMode, Sector, Status,
    TagSet, TagSetConfig,
};
use blockyard_driver_file::{Engine, File, FileConfig};
use tokio::runtime::Builder;
use tokio::sync::Notify;

const BLOCK: u64 = 4096;

/// Bios that have ended.
#[derive(Default)]
struct Ended {
    #[expect(clippy::vec_box, reason = "bios come and go boxed")]
    bios: Mutex<Vec<Box<Bio>>>,
    some: Notify,
}

impl EndIo for Ended {
    fn end_io(&self, bio: Box<Bio>) {
        assert_eq!(bio.status(), Status::Ok);
        let mut bios = self.bios.lock().unwrap();
        bios.push(bio);
        if bios.len() == 1 {
            self.some.notify_one();
        }
    }
}

/// A small generator: the measurement must not be of it.
struct Random(u64);

impl Random {
    fn block(&mut self, blocks: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % blocks
    }
}

async fn load(bdev: &Bdev, depth: u64, time: Duration) -> u64 {
    let blocks = bdev.capacity().bytes() / BLOCK;
    let ended = Arc::new(Ended::default());
    let mut random = Random(88_172_645_463_325_252);
    let mut next = |bio: &mut Bio| {
        let sector = Sector(random.block(blocks) * BLOCK / 512);
        bio.reset(Op::Read, sector, BLOCK);
    };
    let new = || Bio::new(Op::Read, Sector(0), BLOCK).on_end(Arc::<Ended>::clone(&ended));
    let mut bios: Vec<_> = (0..depth).map(|_| new()).collect();
    bios.iter_mut().for_each(|bio| next(bio));
    let begin = Instant::now();
    let mut count = 0;
    let mut out = bios.len();
    bdev.submit_all(0, &mut bios);
    while out > 0 {
        bios.append(&mut ended.bios.lock().unwrap());
        if bios.is_empty() {
            ended.some.notified().await;
            continue;
        }
        count += bios.len() as u64;
        out -= bios.len();
        if begin.elapsed() < time {
            bios.iter_mut().for_each(|bio| next(bio));
            out += bios.len();
            bdev.submit_all(0, &mut bios);
        } else {
            bios.clear();
        }
    }
    count
}

fn through_the_block_layer(config: &FileConfig, depth: u64, time: Duration) -> u64 {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (file, info) = File::open(config, &[runtime.handle().clone()]).unwrap();
    let set = TagSet::new(file, TagSetConfig::default()).unwrap();
    let disk = DiskConfig::new("file0", info.capacity, info.limits);
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), disk, Arc::new(NoOps), clock).unwrap();
    let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
    runtime.block_on(load(&bdev, depth, time))
}

fn plain(path: &Path, time: Duration) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    let blocks = file.metadata().unwrap().len() / BLOCK;
    let mut random = Random(88_172_645_463_325_252);
    let mut buffer = vec![0; BLOCK as usize];
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < time {
        file.read_exact_at(&mut buffer, random.block(blocks) * BLOCK).unwrap();
        count += 1;
    }
    count
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let path = Path::new(args.get(1).expect("a file"));
    let what = args.get(2).map_or("all", String::as_str);
    let depth = args.get(3).map_or(32, |depth| depth.parse().unwrap());
    let time = Duration::from_secs_f64(args.get(4).map_or(2.0, |secs| secs.parse().unwrap()));
    let direct = args.get(5).is_some();
    for (name, engine) in
        [("uring", Some(Engine::Uring)), ("threads", Some(Engine::Threads)), ("pread", None)]
    {
        if what != "all" && what != name {
            continue;
        }
        let count = match engine {
            Some(engine) => {
                let config = FileConfig { engine, direct, ..FileConfig::new(path) };
                through_the_block_layer(&config, depth, time)
            }
            None => plain(path, time),
        };
        println!("{name:8} {:>9.0} reads/s, {count} reads", count as f64 / time.as_secs_f64());
    }
}
