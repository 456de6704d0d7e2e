//! Watches and notifications, in worlds in which one thing happens.

use crate::clients::Pending;
use crate::world::{self, World};
use crate::{QUIET, calm, for_few_seeds, maps, pass, run, store};
use blockyard_rados::encoding::ObjectLocator;
use blockyard_rados::objecter::{Addressed, ShareId};
use blockyard_rados::osd::OpFlags;
use std::time::Duration;

/// A world in which all is well, and client 0 watches one object.
fn with_a_watch(seed: u64) -> World {
    let mut world = calm(seed);
    world.submit_watch(0, 1, "watched", OpFlags::empty(), None);
    world.pump(0);
    run(&mut world, QUIET, is_set);
    assert!(is_set(&world));
    world
}

/// The watch of [`with_a_watch`] is there, as far as its client knows.
fn is_set(world: &World) -> bool {
    world.clients[0].watches.values().any(|(_, set)| *set)
}

/// An OSD that stays the primary forgets in a new interval who watches, and who was told; nobody else tells the clients.
#[test]
fn notifications_end_also_where_the_primary_stays() {
    for_few_seeds(|seed| {
        let mut world = with_a_watch(seed);
        for round in 0..6 {
            world.submit_notify(0, 1, "watched", None);
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
                "the watch is not carried over"
            );
        }
    });
}

/// What an OSD has forgotten while a watch, or its reconnection, was out is not taken as set: also where it cannot be sent
/// again at once.
#[test]
fn an_interval_that_begins_while_a_watch_is_being_set_is_no_loss() {
    for_few_seeds(|seed| {
        let mut world = with_a_watch(seed);
        // The answer and the map come in either order.
        (world.chaos.delay_micros, world.chaos.publish_micros) = (200 * world::MILLI, world::MILLI);
        for round in 0..32 {
            let (reconnects, full) = (round % 2 == 0, round % 4 < 2);
            let what = format!("reconnects {reconnects}, full {full}");
            if reconnects {
                for osd in 0..world::OSDS {
                    world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
                }
            } else {
                world.end_a_watch(0);
                world.pump(0);
                run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
                world.submit_watch(0, 1, "watched", OpFlags::empty(), None);
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
                world.submit_watch(0, 1, "watched", OpFlags::empty(), None);
                world.pump(0);
                let later = world.now + Duration::from_secs(15);
                while world.step(later) {}
            }
            assert!(is_set(&world), "{what}");
            assert!(has_watcher(&world), "it is called set, and the OSD knows of none: {what}");
        }
    });
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
    for_few_seeds(|seed| {
        let mut world = with_a_watch(seed);
        let before = times_missed(&world);
        for osd in 0..world::OSDS {
            world.osds[osd].frozen_until = world.now + Duration::from_secs(3);
            world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
        }
        let later = world.now + Duration::from_secs(2);
        while world.step(later) {}
        assert_eq!(times_missed(&world), before + 1, "its session is lost");
        let later = world.now + Duration::from_secs(10);
        while world.step(later) {}
        assert_eq!(times_missed(&world), before + 2, "it is back");
        assert!(has_watcher(&world));
    });
}

/// What a daemon sends again and again, and this side cannot use, costs little; and when it can be used, all goes on.
#[test]
fn maps_and_answers_that_cannot_be_used_make_no_hot_loop() {
    for_few_seeds(|seed| {
        type Spoil = fn(&mut World, bool);
        let spoils: [(&str, Spoil); 2] = [
            ("maps", |world, spoils| world.spoils_maps = spoils),
            ("answers", |world, spoils| world.spoils_replies = spoils),
        ];
        for (what, spoil) in spoils {
            let mut world = with_a_watch(seed);
            spoil(&mut world, true);
            world.change_map(|model| model.pools.get_mut(&1).unwrap().last_force_resend = u32::MAX);
            world.submit_notify(0, 1, "watched", None);
            world.submit_notify(0, 1, "elsewhere", None);
            world.pump(0);
            let (sessions, steps) = (world.last_conn, world.last_event);
            let minute = world.now + Duration::from_secs(60);
            while world.step(minute) {}
            let (sessions, steps) = (world.last_conn - sessions, world.last_event - steps);
            assert!(
                sessions < 100 && steps < 10_000,
                "{what}: {sessions} sessions and {steps} events in a minute"
            );
            spoil(&mut world, false);
            let minute = world.now + Duration::from_secs(60);
            while world.step(minute) {}
            let objecter = world.clients[0].machine.objecter();
            assert_eq!(objecter.map().epoch(), world.model.epoch, "{what}");
            assert!(world.clients[0].pending.is_empty(), "{what}");
            // Its OSD may have dropped it meanwhile, and it was told so.
            assert!(has_watcher(&world) || !is_set(&world), "{what}");
        }
    });
}

/// Formally a ping writes; it must go on where nothing may be written, or the OSD drops the watch.
#[test]
fn a_watch_lives_while_nothing_may_be_written() {
    for_few_seeds(|seed| {
        type Change = fn(&mut maps::MapModel);
        let changes: [(&str, Change); 3] = [
            ("a full cluster", |model| model.flags |= maps::FULL),
            ("a cluster that takes no writes", |model| model.flags |= maps::PAUSEWR),
            ("a full pool", |model| model.pools.get_mut(&1).unwrap().flags = 2),
        ];
        for (name, change) in changes {
            let mut world = with_a_watch(seed);
            world.change_map(change);
            let end = world.now + 4 * store::WATCH_TIMEOUT;
            while world.step(end) {}
            world.store.expire_watchers(world.now);
            let kept = world.store.objects[&(1, "watched".to_owned())].watchers.len();
            assert_eq!(kept, 1, "{name}: the OSD has dropped it");
            assert!(is_set(&world), "{name}");
        }
    });
}

/// Whoever takes a lock over while the cluster is full needs a watch, and has to get rid of it.
#[test]
fn a_watch_keeps_the_flags_that_let_it_pass_a_full_cluster() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.change_map(|model| model.flags |= maps::FULL);
        world.submit_watch(0, 1, "watched", OpFlags::FULL_TRY, None);
        world.pump(0);
        run(&mut world, QUIET, is_set);
        for osd in 0..world::OSDS {
            world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
        }
        pass(&mut world, Duration::from_secs(10));
        assert!(has_watcher(&world) && times_missed(&world) > 0, "it is not carried over");
        world.end_a_watch(0);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        assert!(!has_watcher(&world));
    });
}

/// An OSD that does not know that a watch is over makes others wait for it.
#[test]
fn an_unwatch_that_nobody_waits_for_is_sent_all_the_same() {
    for cancelled in [true, false] {
        for_few_seeds(|seed| {
            let mut world = with_a_watch(seed);
            for osd in 0..world::OSDS {
                world.osds[osd].frozen_until = world.now + Duration::from_secs(5);
                world.break_all(world::Process::Osd(osd, world.osds[osd].incarnation));
            }
            pass(&mut world, Duration::from_secs(1));
            let now = world.instant();
            let deadline = Some(now + Duration::from_secs(1)).filter(|_| !cancelled);
            let (&watch, _) = world.clients[0].watches.iter().next().unwrap();
            world.clients[0].watches.clear();
            let objecter = world.clients[0].machine.objecter_mut();
            let tid = objecter.unwatch(now, watch, deadline).unwrap();
            if cancelled {
                assert!(objecter.cancel(now, tid).is_some());
                assert!(objecter.cancel(now, tid).is_none());
            } else {
                world.clients[0].pending.insert(tid, Pending::Unwatch);
            }
            world.pump(0);
            pass(&mut world, Duration::from_secs(20));
            assert!(world.clients[0].pending.is_empty());
            let watchers = &world.store.objects[&(1, "watched".to_owned())].watchers;
            assert!(watchers.is_empty(), "cancelled {cancelled}: {watchers:?}");
            assert_eq!(world.clients[0].machine.objecter().unwatching(), 0);
        });
    }
}

/// An OSD that drops a watcher says so.
#[test]
fn a_watch_that_its_osd_drops_is_lost() {
    for_few_seeds(|seed| {
        let mut world = with_a_watch(seed);
        world.disconnect_a_watch();
        run(&mut world, QUIET, |world| world.clients[0].watches.is_empty());
        assert_eq!(world.clients[0].counts["watches lost"], 1);
    });
}

/// A time-out of less than a second is one, and not the default, nor asked for without end.
#[test]
fn a_watch_may_have_a_time_out_below_a_second() {
    let mut world = calm(1);
    for timeout in [Duration::ZERO, Duration::from_millis(1)] {
        let (now, locator) = (world.instant(), ObjectLocator::new(1, ""));
        let flags = OpFlags::empty();
        let share = ShareId::default();
        let object = Addressed { locator: &locator, object: b"watched", flags, share };
        let objecter = world.clients[0].machine.objecter_mut();
        let watch = objecter.watch(now, &object, Some(timeout), None).unwrap();
        world.clients[0].watches.insert(watch, ((1, "watched".to_owned()), false));
        world.pump(0);
        run(&mut world, QUIET, is_set);
        let events = world.last_event;
        pass(&mut world, Duration::from_secs(10));
        let events = world.last_event - events;
        assert!((30..3000).contains(&events), "{events} events in 10 s");
        world.end_a_watch(0);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
    }
}
