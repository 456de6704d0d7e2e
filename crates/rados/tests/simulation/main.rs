//! Clients against a cluster of state machines: monitors that publish maps, OSDs that serve groups, and a network that
//! loses connections, cuts streams at any byte, and delays. All bytes are those of the real protocol.
//!
//! `BLOCKYARD_SEED` replays a run, and `BLOCKYARD_SEEDS` says how many there are to be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test, which fails by panicking")]

mod chaos;
mod clients;
mod fencing;
mod maps;
mod osds;
mod placing;
mod rng;
mod sessions;
mod store;
mod watching;
mod wire;
mod world;

use clients::Fate;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use world::{CLIENTS, World};

/// How long everything may take once nothing goes wrong any more.
const QUIET: Duration = Duration::from_secs(400);
const STEPS: u64 = 3_000_000;
fn first_seed() -> u64 {
    let text = std::env::var("BLOCKYARD_SEED").ok();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    text.map_or_else(clock, |text| text.parse().unwrap())
}

fn seeds() -> u64 {
    let many = std::env::var("BLOCKYARD_SEEDS").ok().map(|text| text.parse().unwrap());
    let one = std::env::var_os("BLOCKYARD_SEED").map(|_| 1);
    many.or(one).unwrap_or(100)
}

/// The seeds of worlds in which one thing happens: the same ones each time, or the one to be replayed.
fn few_seeds() -> Vec<u64> {
    let text = std::env::var("BLOCKYARD_SEED").ok();
    text.map_or_else(|| (1..=20).collect(), |text| vec![text.parse().unwrap()])
}

/// Runs a test for each of [`few_seeds`], and says with which one it fails.
fn for_few_seeds(test: impl Fn(u64)) {
    for seed in few_seeds() {
        let ran = catch_unwind(AssertUnwindSafe(|| test(seed)));
        assert!(ran.is_ok(), "run it again with BLOCKYARD_SEED={seed}");
    }
}

/// A world in which nothing goes wrong, and clients do nothing by themselves.
fn calm(seed: u64) -> World {
    let mut chaos = clients::chaos(seed);
    (chaos.active, chaos.until, chaos.large_one_in) = (false, Duration::ZERO, None);
    let mut world = World::new(seed, chaos);
    for client in &mut world.clients {
        client.work_left = 0;
    }
    pass(&mut world, Duration::from_secs(10));
    world
}

/// Lets time pass.
fn pass(world: &mut World, time: Duration) {
    let until = world.now + time;
    while world.step(until) {}
}

/// Runs until `done`, at most for some time.
fn run(world: &mut World, limit: Duration, done: impl Fn(&World) -> bool) {
    let until = world.now + limit;
    let mut steps = 0;
    while !done(world) {
        assert!(world.step(until), "it does not come to an end: {}", state(world));
        steps += 1;
        assert!(steps < STEPS, "it goes round in circles: {}", state(world));
    }
}

fn state(world: &World) -> String {
    let pending: Vec<_> = world.clients.iter().map(|client| &client.pending).collect();
    let machines: Vec<_> = world.clients.iter().map(|client| client.machine.objecter()).collect();
    let epochs: Vec<_> = machines.iter().map(|objecter| objecter.map().epoch()).collect();
    let waits: Vec<_> = machines.iter().map(|objecter| objecter.waiting()).collect();
    let (now, epoch) = (world.now, world.model.epoch);
    format!("at {now:?}, epoch {epoch}, clients have {epochs:?}, {waits:#?}, pending {pending:?}")
}

fn check_writes(world: &World) {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for id in world.store.objects.values().flat_map(|object| &object.log) {
        *times.entry(*id).or_default() += 1;
    }
    for client in &world.clients {
        let mut last: BTreeMap<_, usize> = BTreeMap::new();
        for (object, id, fate) in &client.writes {
            let done = times.get(id).copied().unwrap_or(0);
            match fate {
                Fate::Acknowledged => {
                    assert_eq!(done, 1, "write {id:x} to {object:?} was acknowledged");
                }
                Fate::Unknown => {
                    assert!(done <= 1, "write {id:x} to {object:?} was done {done} times");
                }
                Fate::Refused => assert_eq!(done, 0, "write {id:x} to {object:?} was refused"),
                Fate::Open => panic!("write {id:x} to {object:?} did not end"),
            }
            // One that does not wait for space may be refused, and done when it is sent again because the refusal was
            // lost: after others that came later.
            if object.0 >= 1000 {
                continue;
            }
            let name = object.clone();
            let log = &world.store.objects.get(&name).map_or(&[][..], |stored| &stored.log);
            if let Some(at) = log.iter().position(|other| other == id) {
                let before = last.insert(object.clone(), at);
                assert!(
                    before.is_none_or(|before| before < at),
                    "writes to {object:?} changed places"
                );
            }
        }
    }
}

fn simulate(seed: u64) -> BTreeMap<&'static str, u64> {
    let mut world = World::new(seed, clients::chaos(seed));
    run(&mut world, QUIET, |world| {
        let idle = |client: &clients::ClientSim| client.work_left == 0 && client.pending.is_empty();
        !world.chaos.active && world.clients.iter().all(idle)
    });
    check_writes(&world);
    // Watches that are there are there on both sides; then they go.
    let settled = world.now + Duration::from_secs(60);
    run(&mut world, QUIET, |world| {
        world.now >= settled || world.clients.iter().all(|it| it.watches.is_empty())
    });
    for client in 0..CLIENTS {
        for (&watch, ((pool, object), set)) in &world.clients[client].watches {
            assert!(set, "watch {watch} of {object} was neither set nor lost");
            let stored = world.store.objects.get(&(*pool, object.clone())).unwrap();
            assert!(stored.watchers[&(client, watch)].conn.is_some());
            world.check_news(client, watch);
        }
        while !world.clients[client].watches.is_empty() {
            world.end_a_watch(client);
        }
        world.pump(client);
    }
    run(&mut world, QUIET, |world| world.clients.iter().all(|it| it.pending.is_empty()));
    // Nothing is left behind.
    let end = world.now + Duration::from_secs(200);
    while world.step(end) {}
    let mut counts = BTreeMap::new();
    for client in &world.clients {
        let objecter = client.machine.objecter();
        assert_eq!(objecter.in_flight(), (0, 0));
        assert_eq!((objecter.sessions(), objecter.watches()), (0, 0));
        assert!(client.streams.len() <= 1, "streams stay open: {:?}", client.streams);
        for (what, count) in &client.counts {
            *counts.entry(*what).or_default() += count;
        }
    }
    // An OSD may only have a watch that its client never got to know was set; it forgets that in time.
    let there = |((pool, _), _): &(&store::ObjectName, _)| world.model.pools.contains_key(pool);
    let objects = world.store.objects.iter().filter(there);
    for (client, watch) in objects.flat_map(|(_, object)| object.watchers.keys()) {
        assert!(world.clients[*client].lost.contains(watch), "watch {watch} stays");
    }
    counts
}

#[test]
fn operations_are_done_once_and_in_order_whatever_happens() {
    let (first, count) = (first_seed(), seeds());
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + count {
        let ran = catch_unwind(AssertUnwindSafe(|| simulate(seed)));
        let Ok(ran) = ran else { panic!("run it again with BLOCKYARD_SEED={seed}") };
        ran.into_iter().for_each(|(what, count)| *counts.entry(what).or_default() += count);
    }
    println!("BLOCKYARD_SEED={first}, {count} seeds: {counts:?}");
    if count >= 100 {
        let expected = [
            "writes",
            "reads",
            "busy",
            "cancelled",
            "timed out",
            "no pool",
            "full",
            "sessions lost",
            "watches",
            "missed",
            "watches lost",
            "notified",
            "notifies",
            "unwatches",
        ];
        for what in expected {
            assert!(counts.contains_key(what), "no run had {what}");
        }
    }
}
