//! Clients against a cluster of state machines: monitors that publish maps, OSDs that serve groups, and a network that
//! loses connections, cuts streams at any byte, and delays. All bytes are those of the real protocol.
//!
//! `BLOCKYARD_SEED` replays a run, and `BLOCKYARD_SEEDS` says how many there are to be.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test, which fails by panicking")]

mod chaos;
mod clients;
mod maps;
mod osds;
mod rng;
mod store;
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
    for (client, watch) in world.store.objects.values().flat_map(|object| object.watchers.keys()) {
        assert!(world.clients[*client].lost.contains(watch), "watch {watch} stays");
    }
    counts
}

/// A world in which all is well, and client 0 watches one object.
fn with_a_watch(seed: u64) -> World {
    let mut world = World::new(seed, clients::chaos(seed));
    run(&mut world, QUIET, |world| {
        let idle = |it: &clients::ClientSim| it.work_left == 0 && it.pending.is_empty();
        !world.chaos.active && world.clients.iter().all(idle)
    });
    while !world.clients[0].watches.is_empty() {
        world.end_a_watch(0);
    }
    // What chaos has left to do is done.
    let quiet = world.now + Duration::from_secs(10);
    while world.step(quiet) {}
    world.submit_watch(0, 1, "watched");
    world.pump(0);
    let later = world.now + Duration::from_secs(60);
    run(&mut world, QUIET, |world| is_set(world) || world.now > later);
    assert!(is_set(&world), "BLOCKYARD_SEED={seed}");
    world
}

/// The watch of [`with_a_watch`] is there, as far as its client knows.
fn is_set(world: &World) -> bool {
    world.clients[0].watches.values().any(|(_, set)| *set)
}

/// An OSD that stays the primary forgets in a new interval who watches, and who was told; nobody else tells the clients.
#[test]
fn notifications_end_also_where_the_primary_stays() {
    let seed = first_seed();
    let mut world = with_a_watch(seed);
    for round in 0..6 {
        world.submit_notify(0, 1, "watched");
        world.pump(0);
        let ended = |world: &World| world.clients[0].pending.is_empty();
        run(&mut world, QUIET, |world| !world.store.notifies.is_empty() || ended(world));
        let size = if round % 2 == 0 { 2 } else { 3 };
        world.change_map(|model| model.pools.get_mut(&1).unwrap().size = size);
        run(&mut world, QUIET, ended);
        let later = world.now + Duration::from_secs(10);
        while world.step(later) {}
        let watchers = &world.store.objects[&(1, "watched".to_owned())].watchers;
        assert!(
            watchers.values().any(|watcher| watcher.conn.is_some()),
            "the watch is not carried over, BLOCKYARD_SEED={seed}"
        );
    }
}

/// What an OSD has forgotten while a watch, or its reconnection, was out is not taken as set: also where it cannot be sent
/// again at once.
#[test]
fn an_interval_that_begins_while_a_watch_is_being_set_is_no_loss() {
    let seed = first_seed();
    let mut world = with_a_watch(seed);
    // The answer and the map come in either order.
    (world.chaos.delay_micros, world.chaos.publish_micros) = (200 * world::MILLI, world::MILLI);
    for round in 0..32 {
        let (reconnects, full) = (round % 2 == 0, round % 4 < 2);
        let what = format!("reconnects {reconnects}, full {full}, BLOCKYARD_SEED={seed}");
        if reconnects {
            for osd in 0..world::OSDS {
                world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
            }
        } else {
            world.end_a_watch(0);
            world.pump(0);
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
            world.submit_watch(0, 1, "watched");
            world.pump(0);
        }
        let before = times_missed(&world);
        // The OSD has it, and its client does not know that.
        run(&mut world, QUIET, has_watcher);
        world.change_map(|model| {
            let pool = model.pools.get_mut(&1).unwrap();
            pool.size = 5 - pool.size;
            pool.flags = if full { 2 } else { 0 };
        });
        assert!(!has_watcher(&world));
        let later = world.now + Duration::from_secs(15);
        while world.step(later) {}
        let told = times_missed(&world) > before;
        assert!(
            reconnects || !is_set(&world) || has_watcher(&world) || told,
            "it is called set, and lost without a word: {what}"
        );
        world.change_map(|model| model.pools.get_mut(&1).unwrap().flags = 0);
        let later = world.now + Duration::from_secs(15);
        while world.step(later) {}
        if world.clients[0].watches.is_empty() {
            // Its time was up while the pool was full.
            world.submit_watch(0, 1, "watched");
            world.pump(0);
            let later = world.now + Duration::from_secs(15);
            while world.step(later) {}
        }
        assert!(is_set(&world), "{what}");
        assert!(has_watcher(&world), "it is called set, and the OSD knows of none: {what}");
    }
}

/// The OSD has the watch of [`with_a_watch`] on a connection.
fn has_watcher(world: &World) -> bool {
    let watchers = &world.store.objects[&(1, "watched".to_owned())].watchers;
    watchers.values().any(|watcher| watcher.conn.is_some())
}

fn times_missed(world: &World) -> u64 {
    world.clients[0].counts.get("missed").copied().unwrap_or(0)
}

/// Whoever holds a lock by a watch has to know at once that it may hear nothing, and again when it hears.
#[test]
fn a_watch_says_that_it_may_have_missed_something_when_its_session_is_lost_and_when_it_is_back() {
    let seed = first_seed();
    let mut world = with_a_watch(seed);
    let before = times_missed(&world);
    for osd in 0..world::OSDS {
        world.osds[osd].frozen_until = world.now + Duration::from_secs(3);
        world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
    }
    let later = world.now + Duration::from_secs(2);
    while world.step(later) {}
    assert_eq!(times_missed(&world), before + 1, "its session is lost, BLOCKYARD_SEED={seed}");
    let later = world.now + Duration::from_secs(10);
    while world.step(later) {}
    assert_eq!(times_missed(&world), before + 2, "it is back, BLOCKYARD_SEED={seed}");
    assert!(has_watcher(&world));
}

/// What a daemon sends again and again, and this side cannot use, costs little; and when it can be used, all goes on.
#[test]
fn maps_and_answers_that_cannot_be_used_make_no_hot_loop() {
    type Spoil = fn(&mut World, bool);
    let spoils: [(&str, Spoil); 2] = [
        ("maps", |world, spoils| world.spoils_maps = spoils),
        ("answers", |world, spoils| world.spoils_replies = spoils),
    ];
    for (what, spoil) in spoils {
        let seed = first_seed();
        let mut world = with_a_watch(seed);
        spoil(&mut world, true);
        world.change_map(|model| model.pools.get_mut(&1).unwrap().last_force_resend = u32::MAX);
        world.submit_notify(0, 1, "watched");
        world.submit_notify(0, 1, "elsewhere");
        world.pump(0);
        let (sessions, steps) = (world.last_conn, world.last_event);
        let minute = world.now + Duration::from_secs(60);
        while world.step(minute) {}
        let (sessions, steps) = (world.last_conn - sessions, world.last_event - steps);
        assert!(
            sessions < 100 && steps < 10_000,
            "{what}: {sessions} sessions and {steps} events in a minute, BLOCKYARD_SEED={seed}"
        );
        spoil(&mut world, false);
        let minute = world.now + Duration::from_secs(60);
        while world.step(minute) {}
        let objecter = world.clients[0].machine.objecter();
        assert_eq!(objecter.map().epoch(), world.model.epoch, "{what}, BLOCKYARD_SEED={seed}");
        assert!(world.clients[0].pending.is_empty(), "{what}, BLOCKYARD_SEED={seed}");
        // Its OSD may have dropped it meanwhile, and it was told so.
        assert!(has_watcher(&world) || !is_set(&world), "{what}, BLOCKYARD_SEED={seed}");
    }
}

/// Formally a ping writes; it must go on where nothing may be written, or the OSD drops the watch.
#[test]
fn a_watch_lives_while_nothing_may_be_written() {
    type Change = fn(&mut maps::MapModel);
    let changes: [(&str, Change); 3] = [
        ("a full cluster", |model| model.flags |= maps::FULL),
        ("a cluster that takes no writes", |model| model.flags |= maps::PAUSEWR),
        ("a full pool", |model| model.pools.get_mut(&1).unwrap().flags = 2),
    ];
    for (name, change) in changes {
        let seed = first_seed();
        let mut world = with_a_watch(seed);
        world.change_map(change);
        let end = world.now + 4 * store::WATCH_TIMEOUT;
        while world.step(end) {}
        world.store.expire_watchers(world.now);
        let kept = world.store.objects[&(1, "watched".to_owned())].watchers.len();
        assert_eq!(kept, 1, "{name}: the OSD has dropped it, BLOCKYARD_SEED={seed}");
        assert!(is_set(&world), "{name}: BLOCKYARD_SEED={seed}");
    }
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
