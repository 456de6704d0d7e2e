//! Many clients on one queue thread, in virtual time and under a seed: the server as it is, on real sockets, over a
//! RAM disk, one that answers late, and one that hangs for hours. Messages come cut anywhere, with silences of minutes in
//! between; peers die with replies due, take their replies slowly or not at all, move a byte now and then one way while the
//! other is stuck, break the protocol, and want more memory than there is. A model says what each must be answered, and
//! that who behaves and has a disk that answers is not kept waiting. One export comes and goes meanwhile: what its clients were
//! told of is there, and nothing is written for one whose connection has ended. Nor is anything lost of what stands before a
//! goodbye, whoever takes the answers. In some worlds the server ends in the midst of it: only clients that have asked for it
//! hear of that.
//!
//! `BLOCKYARD_SEED` is the first seed, `BLOCKYARD_RUNS` how many there are.
#![allow(unreachable_pub, reason = "its modules are its own")]
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::cast_possible_truncation, reason = "tests choose their numbers")]

#[path = "simulation/client.rs"]
mod client;
#[path = "simulation/late.rs"]
mod late;
#[path = "simulation/passing.rs"]
mod passing;
#[path = "simulation/rng.rs"]
mod rng;

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use blockyard_blkmq::{
    Bio, Disk, DiskConfig, Driver, Features, Limits, MonotonicClock, NoOps, Op, OpenMode, Sector,
    TagSet, TagSetConfig,
};
use blockyard_driver_ram::Ram;
use blockyard_export_nbd::{Config, Export, Server};
use client::{Client, On};
use late::Late;
use passing::Passing;
use rng::Rng;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const MIB: u64 = 1 << 20;
/// What a client may use of each disk: clients do not meet.
const REGION: u64 = 4 * MIB;
const CLIENTS: u64 = 12;
/// Seeds of a run without `BLOCKYARD_RUNS`.
const SEEDS: u64 = 16;
/// Turns in which nothing moved, after which nothing will.
const QUIET: u32 = 4;
/// More tasks than there are at a time.
const TASKS: u64 = 2 * CLIENTS;
/// The longest step of the clock.
const STEP: Duration = Duration::from_secs(5);
/// A run that has not ended by then hangs.
const END: Duration = Duration::from_secs(48 * 3600);
/// Nor does one take more turns, whatever moves in them.
const TURNS: u32 = 1_000_000;
/// Memory in MiB of which each of the disks has a reserve for its largest request.
const ROOMY: usize = 10;
/// Clients that an export gets that has come back.
const NEWCOMERS: usize = 2;

fn disk<D: Driver<Disk = ()>>(driver: Arc<D>, limits: Limits) -> Arc<Disk> {
    let tags = TagSetConfig { cpus: 1, hw_queues: [1, 0, 0], depth: 64, ..TagSetConfig::default() };
    let set = TagSet::new(driver, tags).unwrap();
    let size = Sector::from_bytes_floor(CLIENTS * REGION);
    let config = DiskConfig::new("disk0", size, limits);
    Disk::alloc(&set, (), config, Arc::new(NoOps), Arc::new(MonotonicClock::new())).unwrap()
}

fn export(name: &str, disk: &Arc<Disk>) -> Export {
    Export::new(name, Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap()))
}

/// Bytes of a disk that answers at once.
fn content_of(disk: &Arc<Disk>, range: Range<u64>) -> Vec<u8> {
    let bdev = disk.open(None, OpenMode::ReadOnly).unwrap();
    let sector = Sector::from_bytes_floor(range.start);
    let bio = bdev.submit_and_wait(0, Bio::new(Op::Read, sector, range.end - range.start));
    bio.data().iter().flat_map(|segment| segment.to_vec()).collect()
}

#[test]
fn every_client_gets_what_it_must_whatever_the_others_do() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (first, seeds) = (number("BLOCKYARD_SEED"), number("BLOCKYARD_RUNS").unwrap_or(SEEDS));
    // `cargo xtask soak` goes where nobody has been.
    let first: u64 = first.unwrap_or(1);
    println!("BLOCKYARD_SEED={first} BLOCKYARD_RUNS={seeds}");
    for seed in first..first + seeds {
        println!("to see it again: BLOCKYARD_SEED={seed} BLOCKYARD_RUNS=1");
        run(seed);
    }
}

fn run(seed: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        // Sockets are looked at with every turn, so that quiet is quiet.
        .event_interval(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        // As long as something blocks, the clock does not move by itself.
        let (still, stop) = mpsc::channel::<()>();
        let blocker = tokio::task::spawn_blocking(move || _ = stop.recv());
        simulate(seed).await;
        drop(still);
        blocker.await.unwrap();
    });
}

fn shut_down(server: &Arc<Server>, grace: Duration) -> JoinHandle<()> {
    let server = Arc::clone(server);
    tokio::spawn(async move { _ = server.shutdown(grace).await })
}

/// Lets a run that has failed end: whoever takes its disks down waits for their requests.
struct EndsAll([Arc<Late>; 3]);

impl Drop for EndsAll {
    fn drop(&mut self) {
        if std::thread::panicking() {
            while self
                .0
                .iter()
                .fold(false, |any, late| late.work(Instant::now().into_std() + END) | any)
            {
            }
        }
    }
}

async fn simulate(seed: u64) {
    let mut rng = Rng::new(seed);
    let start = Instant::now();
    let late = Late::new(rng.next(), start.into_std());
    let hung = Late::new(rng.next(), start.into_std() + late::HANG);
    let passes = Late::new(rng.next(), start.into_std());
    let mut limits = Ram::limits();
    limits.features |= Features::WRITE_CACHE | Features::NOMERGES;
    let disks = [
        disk(Ram::new(), limits.clone()),
        disk(Arc::clone(&late), limits.clone()),
        disk(Arc::clone(&hung), limits.clone()),
        disk(Arc::clone(&passes), limits),
    ];
    let exports = On::ALL.iter().zip(&disks).map(|(on, disk)| export(on.export(), disk));
    let mut config = Config { exports: exports.collect(), ..Config::default() };
    config.limits.max_payload = 1 << 20;
    config.limits.memory_per_client = 2 << 20;
    config.limits.in_flight_per_client = 2 + rng.below(23) as usize;
    // Sometimes plenty, sometimes what one client could use alone.
    let mib = 2 + rng.below(14) as usize;
    config.limits.max_memory = mib << 20;
    config.limits.max_clients = 64;
    config.limits.stall_timeout = client::STALL;
    config.limits.idle_timeout = rng.one_in(4).then_some(Duration::from_secs(7200));
    let server = Server::new(config, vec![tokio::runtime::Handle::current()]).unwrap();
    // In the midst of it, or when all is over.
    let ends_at = rng.one_in(3).then(|| start + Duration::from_secs(rng.below(1500)));
    let grace = Duration::from_secs(1 + rng.below(900));
    let (ends, mut ending) = (Arc::new(AtomicBool::new(false)), None);
    let mut passing = Passing::new(&server, &disks[3], Rng::new(rng.next()), start.into_std());
    let connect = |n: u64, on: On, passing: &Passing, rng: &mut Rng| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        server.serve(theirs.into());
        let leaves = if on == On::Passing { passing.leaves() } else { Arc::clone(&ends) };
        Client::new(ours, n * REGION, on, leaves, mib >= ROOMY, Rng::new(rng.next()))
    };
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| {
            let on = rng.pick(&On::ALL);
            connect(n, on, &passing, &mut rng)
        })
        .collect();
    let _ends_all = EndsAll([Arc::clone(&late), Arc::clone(&hung), Arc::clone(&passes)]);
    // Regions that nobody has of the disk whose export comes and goes.
    let mut unused: Vec<u64> =
        (0..).zip(&clients).filter(|(_, it)| it.on != On::Passing).map(|(n, _)| n).collect();
    let lates = [&late, &hung, &passes];
    let content = |on: On, range: Range<u64>| match on {
        On::Ram => content_of(&disks[0], range),
        On::Late => late.content(range),
        On::Hung => hung.content(range),
        On::Passing => passes.content(range),
    };
    let (mut quiet, mut last, mut turns) = (0, 0, 0);
    while clients.iter().any(|client| !client.is_done())
        || !passing.is_over()
        || !server.clients().is_empty()
    {
        let now = Instant::now();
        turns += 1;
        assert!(
            now - start < END && turns < TURNS,
            "seed {seed} hangs after {:?} and {turns} turns: {:?}, {} bytes of memory in use, {:?}",
            now - start,
            clients.iter().filter(|client| !client.is_done()).collect::<Vec<_>>(),
            server.memory_in_use(),
            server.clients(),
        );
        let mut moved = false;
        if ending.is_none() && ends_at.is_some_and(|at| now >= at) {
            ends.store(true, Ordering::Relaxed);
            passing.end();
            ending = Some(shut_down(&server, grace));
            moved = true;
        }
        // What is out then may be carried out later.
        let is_cut = ends_at.is_some_and(|at| now >= at + grace);
        for late in lates {
            moved |= late.work(now.into_std());
        }
        if passing.step(now.into_std()).await {
            moved = true;
            for n in unused.drain(unused.len().saturating_sub(NEWCOMERS)..) {
                clients.push(connect(n, On::Passing, &passing, &mut rng));
            }
        }
        for at in rng.shuffled(clients.len()) {
            moved |= clients[at].step(now.into_std());
            let on = clients[at].on;
            if !is_cut {
                clients[at].note(|range| content(on, range));
            }
        }
        // Each runs one task of the server's.
        for _ in 0..TASKS {
            tokio::task::yield_now().await;
        }
        let requests = server.clients().iter().map(|info| info.requests + info.bytes_written).sum();
        quiet = if moved || requests != last { 0 } else { quiet + 1 };
        last = requests;
        if quiet > QUIET {
            quiet = 0;
            let wakes = clients.iter().filter_map(Client::wakes).chain(passing.wakes());
            let wakes = wakes.chain(lates.iter().filter_map(|late| late.wakes()));
            let wakes = wakes.chain(ends_at.map(Instant::into_std));
            let next = wakes.filter(|&at| at > now.into_std()).min();
            let next = next.map_or(STEP, |at| at.saturating_duration_since(now.into_std()));
            tokio::time::advance(next.clamp(Duration::from_millis(1), STEP)).await;
        }
    }
    for client in &clients {
        client.verify(seed);
        client.verify_content(seed, |range| content(client.on, range));
    }
    // What nobody waits for any more ends, and nothing is left of anybody.
    let shutdown = ending.unwrap_or_else(|| shut_down(&server, Duration::from_secs(60)));
    drop(clients);
    while !shutdown.is_finished() {
        turns += 1;
        assert!(turns < TURNS, "seed {seed} does not end: {:?}", server.clients());
        for late in lates {
            late.work(Instant::now().into_std() + END);
        }
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    shutdown.await.unwrap();
    // What was cut off, disks have still.
    while lates.iter().any(|late| late.work(Instant::now().into_std() + END)) {}
    assert_eq!(server.clients(), [], "seed {seed}");
    assert_eq!(server.memory_in_use(), 0, "seed {seed}");
}
