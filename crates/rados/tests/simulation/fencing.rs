//! Clients that were kept out of the cluster while they were away.

use crate::world::{Process, World};
use crate::{QUIET, calm, for_few_seeds, pass, run};
use blockyard_rados::encoding::EntityAddr;
use blockyard_rados::osd::OpFlags;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);

fn own(world: &World) -> EntityAddr {
    world.clients[0].machine.session().unwrap().own
}

/// How many writes were done.
fn done(world: &World) -> usize {
    world.store.objects.values().map(|object| object.log.len()).sum()
}

/// A client with a watch that writes, and loses its network before the write is sent.
fn cut_off(seed: u64) -> World {
    let mut world = calm(seed);
    world.submit_watch(0, 1, "object1", OpFlags::empty(), None);
    world.submit_write(0, 1, "object1", None);
    world.pump(0);
    run(&mut world, QUIET, |world| {
        world.clients[0].pending.is_empty() && world.clients[0].watches.values().any(|it| it.1)
    });
    assert_eq!(done(&world), 1);
    world.is_cut_off = true;
    for conn in world.conns.keys().copied().collect::<Vec<_>>() {
        world.break_later(conn);
    }
    pass(&mut world, Duration::from_secs(1));
    // More than may be in flight: some wait for their turn.
    for object in 0..crate::clients::MAX_OPS + 4 {
        world.submit_write(0, 1, &format!("object{}", 1 + object % 4), None);
    }
    world.pump(0);
    world
}

/// A client that was away for more than an hour has been let in again by the newest map; others have written since.
#[test]
fn what_a_client_had_in_flight_when_it_was_kept_out_is_not_done_later() {
    for (others, kept_changes) in [(0, 1000), (20, 1000), (20, 2)] {
        for_few_seeds(|seed| {
            let mut world = cut_off(seed);
            world.chaos.kept_changes = kept_changes;
            let own = own(&world);
            world.change_map(|model| model.blocklist.extend([own]));
            for number in 0..others {
                let affinity = 0x1_0000 - number % 2;
                world.change_map(|model| model.affinities[0] = affinity - 1);
            }
            pass(&mut world, HOUR + Duration::from_secs(1));
            world.change_map(|model| model.blocklist.clear());
            // Its sessions with OSDs may be there before the one with a monitor is.
            world.is_cut_off = false;
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
            assert_eq!(done(&world), 1);
            assert!(world.clients[0].counts["kept out"] > 20);
            assert!(world.clients[0].watches.is_empty());
            // It stays so.
            let before = world.clients[0].counts["kept out"];
            world.submit_write(0, 1, "object1", None);
            world.submit_watch(0, 1, "object1", OpFlags::empty(), None);
            world.pump(0);
            pass(&mut world, Duration::from_secs(60));
            assert_eq!(world.clients[0].counts["kept out"], before + 1);
            assert!(world.clients[0].watches.is_empty() && world.clients[0].pending.is_empty());
            assert_eq!((done(&world), world.clients[0].machine.objecter().sessions()), (1, 0));
            if kept_changes == 2 {
                // Whoever was away as long, and has missed maps, may have been kept out as well.
                assert!(world.clients[1].machine.objecter().is_fenced());
                return;
            }
            // Others are not concerned.
            world.submit_write(1, 1, "object1", None);
            world.pump(1);
            run(&mut world, QUIET, |world| world.clients[1].pending.is_empty());
            assert_eq!(done(&world), 2);
        });
    }
}

/// Monitors that have said that there is a newer map may take their time to send it.
#[test]
fn what_a_client_had_in_flight_waits_for_maps_that_it_knows_of() {
    for_few_seeds(|seed| {
        let mut world = cut_off(seed);
        let own = own(&world);
        world.change_map(|model| model.blocklist.extend([own]));
        world.change_map(|model| model.affinities[0] = 0xffff);
        pass(&mut world, HOUR + Duration::from_secs(1));
        world.change_map(|model| model.blocklist.clear());
        (world.is_cut_off, world.holds_maps) = (false, true);
        pass(&mut world, Duration::from_secs(300));
        assert_eq!(done(&world), 1);
        // Another stream, of which nobody says anything.
        world.monitors_are_silent = true;
        for osd in 0..crate::world::OSDS {
            world.break_all(Process::Osd(osd, 1));
        }
        pass(&mut world, Duration::from_secs(300));
        assert_eq!(done(&world), 1);
        world.holds_maps = false;
        world.change_map(|model| model.affinities[0] = 0xfffe);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        assert_eq!(done(&world), 1);
        assert!(world.clients[0].machine.objecter().is_fenced());
    });
}

/// Nobody is forgotten in a few minutes, however old the map was that was the newest until then, and however many were missed.
#[test]
fn a_client_of_a_quiet_cluster_that_was_away_for_minutes_goes_on() {
    for spoils in [false, true] {
        for_few_seeds(|seed| {
            // Hours are long.
            if seed % 8 != u64::from(spoils) {
                return;
            }
            let mut world = calm(seed);
            world.chaos.kept_changes = 2;
            world.submit_write(0, 1, "object1", None);
            world.pump(0);
            pass(&mut world, HOUR);
            assert_eq!(done(&world), 1);
            (world.is_cut_off, world.spoils_maps) = (!spoils, spoils);
            if !spoils {
                for conn in world.conns.keys().copied().collect::<Vec<_>>() {
                    world.break_later(conn);
                }
            }
            for number in 0..20 {
                world.change_map(|model| model.affinities[0] = 0x1_0000 - number % 2 - 1);
                pass(&mut world, Duration::from_secs(30));
            }
            (world.is_cut_off, world.spoils_maps) = (false, false);
            pass(&mut world, Duration::from_secs(60));
            world.submit_write(0, 1, "object1", None);
            world.pump(0);
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
            assert_eq!((done(&world), world.clients[0].machine.objecter().is_fenced()), (2, false));
        });
    }
}

/// Whoever has come back is not in the session that he was in, and has not seen what was missed.
#[test]
fn a_client_that_had_a_session_until_an_hour_ago_is_kept_out() {
    for spoils in [false, true] {
        for_few_seeds(|seed| {
            let mut world = cut_off(seed);
            world.chaos.kept_changes = 2;
            world.is_cut_off = !spoils;
            world.spoils_maps = spoils;
            if spoils {
                pass(&mut world, Duration::from_secs(120));
            }
            let before = done(&world);
            let own = own(&world);
            world.change_map(|model| model.blocklist.extend([own]));
            pass(&mut world, HOUR + Duration::from_secs(1));
            for number in 0..20 {
                world.change_map(|model| {
                    model.blocklist.clear();
                    model.affinities[0] = 0x1_0000 - number % 2 - 1;
                });
            }
            (world.is_cut_off, world.spoils_maps) = (false, false);
            run(&mut world, QUIET, |world| world.clients[0].machine.objecter().is_fenced());
            pass(&mut world, Duration::from_secs(120));
            assert_eq!(done(&world), before);
        });
    }
}

/// Whoever was away for a shorter time would still be on the list, and one who was not on it goes on.
#[test]
fn a_client_that_was_away_goes_on_where_it_was() {
    for (time, kept_changes) in [(HOUR / 2, 2), (2 * HOUR, 1000)] {
        for_few_seeds(|seed| {
            let mut world = cut_off(seed);
            world.chaos.kept_changes = kept_changes;
            pass(&mut world, time);
            for number in 0..20 {
                world.change_map(|model| model.affinities[0] = 0x1_0000 - number % 2 - 1);
            }
            world.is_cut_off = false;
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
            assert_eq!(done(&world), 1 + crate::clients::MAX_OPS + 4);
            assert_eq!(world.clients[0].counts.get("kept out"), None);
        });
    }
}

/// Monitors without a quorum do not say what the newest map is, and do not keep anybody out.
#[test]
fn a_session_that_is_opened_while_no_monitor_answers_is_used() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.monitors_are_silent = true;
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        assert_eq!(done(&world), 1);
    });
}

/// Each session that is opened meanwhile would wait as long as the first one did.
#[test]
fn an_outage_of_the_monitors_costs_the_first_session_a_minute_and_not_each() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.monitors_are_silent = true;
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        for object in 0..20 {
            world.submit_write(0, 1, &format!("object{object}"), None);
        }
        world.pump(0);
        run(&mut world, HALF_A_MINUTE, |world| world.clients[0].pending.is_empty());
        assert_eq!(done(&world), 21);
        assert!(world.clients[0].machine.objecter().sessions() > 2);
    });
}

/// The minute of an outage is no measure for a client that was away itself.
#[test]
fn what_a_client_had_in_flight_is_not_done_as_monitors_were_silent_before() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.monitors_are_silent = true;
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        let before = done(&world);
        world.is_cut_off = true;
        for conn in world.conns.keys().copied().collect::<Vec<_>>() {
            world.break_later(conn);
        }
        pass(&mut world, Duration::from_secs(1));
        for object in 0..20 {
            world.submit_write(0, 1, &format!("object{object}"), None);
        }
        world.pump(0);
        let own = own(&world);
        world.change_map(|model| model.blocklist.extend([own]));
        pass(&mut world, HOUR + Duration::from_secs(1));
        world.change_map(|model| model.blocklist.clear());
        (world.is_cut_off, world.monitors_are_silent) = (false, false);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        assert_eq!(done(&world), before);
    });
}
