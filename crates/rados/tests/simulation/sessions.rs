//! Sessions with OSDs that are slow, or away for a while.

use crate::clients::{Fate, MAX_WRITE, Pending};
use crate::world::{OSDS, World};
use crate::{QUIET, calm, for_few_seeds, pass, run};
use blockyard_rados::encoding::ObjectLocator;
use blockyard_rados::osd::{Op, OsdRequest};
use std::time::Duration;

/// One that the map says is up, and that reads nothing for a minute, is busy: to send everything again would not help it.
#[test]
fn an_osd_that_reads_nothing_for_a_minute_keeps_its_sessions() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        for round in 2..5 {
            world.submit_write(0, 1, "object1", None);
            world.pump(0);
            for osd in 0..OSDS {
                world.osds[osd].frozen_until = world.now + Duration::from_secs(60);
            }
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
            assert_eq!(world.clients[0].counts["writes"], round);
            assert_eq!(world.clients[0].counts.get("sessions lost"), None);
        }
    });
}

/// A write takes as long as it takes: what counts is that the OSD takes some of it.
#[test]
fn an_osd_that_reads_slowly_keeps_its_sessions() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        // Some thousand bytes take ten minutes and more.
        for conn in world.conns.values_mut() {
            conn.rate = Some(5);
        }
        for _ in 0..4 {
            world.submit_write(0, 1, "object1", None);
        }
        world.pump(0);
        run(&mut world, 30 * QUIET, |world| world.clients[0].pending.is_empty());
        assert_eq!(world.clients[0].counts["writes"], 5);
        assert_eq!(world.clients[0].counts.get("sessions lost"), None);
    });
}

/// A request that waits until an OSD takes it is not made before: given up, it is never sent, and holds no memory.
#[test]
fn what_is_given_up_before_a_slow_osd_takes_it_is_never_sent() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        for conn in world.conns.values_mut() {
            conn.rate = Some(100);
        }
        let soon = world.instant() + Duration::from_secs(1);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        for _ in 0..5 {
            world.submit_write(0, 1, "object1", Some(soon));
        }
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        let counts = &world.clients[0].counts;
        assert_eq!((counts["writes"], counts["timed out"]), (8, 5), "of all");
        assert_eq!(world.requests.len(), 3);
    });
}

/// What has to be sent again while an OSD takes nothing more is sent again as soon as it does.
#[test]
fn a_group_is_split_while_its_osd_takes_no_more() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        for conn in world.conns.values_mut() {
            conn.rate = Some(50_000);
        }
        for _ in 0..3 {
            world.submit_write_of(0, 1, "object1", MAX_WRITE, None);
        }
        world.pump(0);
        pass(&mut world, Duration::from_secs(1));
        world.change_map(|model| model.pools.get_mut(&1).unwrap().pg_num = 16);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        let counts = &world.clients[0].counts;
        assert_eq!((counts["writes"], counts.get("sessions lost")), (4, None));
    });
}

/// It is the same with what the OSD held back, and dropped.
#[test]
fn a_backoff_ends_while_its_osd_takes_no_more() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        world.backs_off_next = true;
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, |world| world.osds.iter().any(|osd| !osd.backoffs.is_empty()));
        run(&mut world, QUIET, |world| {
            let mut held = world.osds.iter().flat_map(|osd| &osd.backoffs);
            held.all(|held| held.acknowledged)
        });
        for conn in world.conns.values_mut() {
            conn.rate = Some(50_000);
        }
        // Some of them are the same OSD's.
        for object in 2..22 {
            world.submit_write_of(0, 1, &format!("object{object}"), 100 << 10, None);
        }
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        let counts = &world.clients[0].counts;
        assert_eq!((counts["writes"], counts.get("sessions lost")), (22, None));
    });
}

/// Everybody else's requests go on, and it is not asked again for what cannot be read.
#[test]
fn an_answer_that_cannot_be_read_ends_its_own_operation() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.spoils_replies = true;
        for _ in 0..3 {
            world.submit_write(0, 1, "object1", None);
        }
        world.pump(0);
        run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        let counts = &world.clients[0].counts;
        assert_eq!((counts.get("unreadable"), counts.get("sessions lost")), (Some(&3), None));
        assert_eq!(world.requests.len(), 3);
    });
}

/// Whoever waits for an OSD that does not let it in has to hear why.
#[test]
fn a_refusal_of_an_osd_is_in_the_error_of_who_waited() {
    let mut world = calm(1);
    world.osds_refuse = Some(-13);
    let deadline = Some(world.instant() + Duration::from_secs(20));
    world.submit_write(0, 1, "object1", deadline);
    world.pump(0);
    run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
    let said = &world.clients[0].last_error;
    assert!(said.contains("no answer in time") && said.contains("EACCES"), "{said}");
    world.osds_refuse = None;
    let deadline = Some(world.instant() + Duration::from_secs(20));
    world.submit_write(0, 1, "object1", deadline);
    world.pump(0);
    run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
    assert_eq!(world.clients[0].counts["timed out"], 1);
}

/// One whose placement group does not answer is not to stop all others.
#[test]
fn a_share_that_does_not_get_on_stops_no_other() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        let now = world.instant();
        let objecter = world.clients[0].machine.objecter_mut();
        let (blocked, free) = (objecter.open_share(), objecter.open_share());
        // It is written to a pool that takes no writes, as much as may wait too.
        world.change_map(|model| model.pools.get_mut(&1).unwrap().flags = 2);
        pass(&mut world, Duration::from_secs(5));
        let write = |world: &mut World, share, pool| {
            let locator = ObjectLocator::new(pool, "");
            let op = Op::write(0, vec![1; 8].into());
            let request = OsdRequest::new(locator, "object1", vec![op]);
            let objecter = world.clients[0].machine.objecter_mut();
            objecter.submit_shared(now, share, request, None).ok()
        };
        let mut given_up: Vec<_> = (0..30).filter_map(|_| write(&mut world, blocked, 1)).collect();
        assert!(world.clients[0].machine.objecter().in_flight().0 < crate::clients::MAX_OPS);
        for _ in 0..20 {
            let tid = write(&mut world, free, 2).unwrap();
            world.clients[0].pending.insert(tid, Pending::Write { id: 0 });
            world.clients[0].writes.push(((2, "object1".to_owned()), 0, Fate::Open));
            world.pump(0);
            run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
        }
        let objecter = world.clients[0].machine.objecter_mut();
        given_up.retain(|&tid| objecter.cancel(now, tid).is_none());
        assert!(given_up.is_empty());
        assert_eq!(objecter.in_flight(), (0, 0));
    });
}

/// Such as EBLOCKLISTED: whoever holds a lock has to know that it may write no more.
#[test]
fn a_refusal_of_a_whole_request_keeps_its_error_number() {
    let mut world = calm(1);
    world.refuses_requests = Some(-108);
    world.submit_write(0, 1, "object1", None);
    world.pump(0);
    run(&mut world, QUIET, |world| world.clients[0].pending.is_empty());
    let counts = &world.clients[0].counts;
    assert_eq!((counts["writes"], counts.get("unreadable")), (1, None));
}
