//! Where requests go when one thing changes in the map.

use crate::clients::MAX_OPS;
use crate::maps::FSID;
use crate::world::{ERASURE, World};
use crate::{QUIET, calm, check_writes, clients, for_few_seeds, pass, run};
use blockyard_rados::encoding::{Fsid, ObjectLocator, PgId};
use blockyard_rados::mon::OsdMaps;
use blockyard_rados::objecter::{Config, Objecter};
use bytes::Bytes;
use std::time::{Duration, Instant};

fn is_idle(world: &World) -> bool {
    world.clients[0].pending.is_empty()
}

/// The group of an object.
fn group(world: &World, pool: i64, object: &str) -> PgId {
    world.map.object_group(&ObjectLocator::new(pool, ""), object).unwrap().1
}

/// An OSD that stays the primary, and serves another shard, is another group to its old requests (ceph:
/// `OSDMap::primary_changed_broken`).
#[test]
fn a_primary_at_another_position_is_sent_everything_again() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        for _ in 0..4 {
            world.submit_write(0, ERASURE, "object1", None);
            world.pump(0);
            let pg = group(&world, ERASURE, "object1");
            let served = world.served(pg);
            let primary = served.primary.unwrap();
            let mut temp: Vec<_> = served.acting.iter().copied().flatten().collect();
            temp.rotate_left(1);
            world.change_map(|model| {
                model.pg_temp.insert(pg, temp);
                model.primary_temp.insert(pg, primary);
            });
            assert_ne!(world.served(pg).shard, served.shard);
            run(&mut world, QUIET, is_idle);
        }
        assert_eq!(world.clients[0].counts["writes"], 4);
    });
}

/// Whoever fences another client has to be sure that nothing of its own is done before OSDs know of it.
#[test]
fn nothing_is_sent_before_the_map_has_the_epoch_of_the_barrier() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, is_idle);
        // It waits for the OSD, whose session is gone; then for the map.
        for osd in 0..crate::world::OSDS {
            world.osds[osd].frozen_until = world.now + Duration::from_secs(3);
            world.break_all(crate::world::Process::Osd(osd, world.osds[osd].incarnation));
        }
        pass(&mut world, Duration::from_secs(1));
        world.submit_write(0, 1, "object1", None);
        world.submit_read(0, 1, "object2", None);
        let barrier = world.model.epoch + 1;
        world.clients[0].machine.objecter_mut().set_barrier(barrier);
        world.pump(0);
        pass(&mut world, Duration::from_secs(10));
        let before = |it: &World| it.requests.iter().filter(|it| it.1 >= barrier).count();
        let (sent, early) = (world.requests.len(), before(&world));
        assert_eq!((sent, early), (1, 0), "what waits for the barrier was sent");
        world.change_map(|model| model.flags |= 1 << 20);
        run(&mut world, QUIET, is_idle);
        assert!(before(&world) >= 2);
        assert_eq!(world.clients[0].counts["writes"], 2);
        assert!(world.clients[0].writes.iter().all(|it| it.2 == clients::Fate::Acknowledged));
    });
}

/// A map in which a pool is gone ends its operations, whose place others take that waited for their turn. They come after
/// those that only this map lets go.
#[test]
fn what_takes_the_place_of_an_operation_whose_pool_is_gone_passes_none_before_it() {
    for_few_seeds(|seed| {
        let mut world = calm(seed);
        world.submit_write(0, 1, "object1", None);
        world.pump(0);
        run(&mut world, QUIET, is_idle);
        let full = |world: &mut World, pool| {
            world.change_map(|model| model.pools.get_mut(&pool).unwrap().flags = 2);
        };
        full(&mut world, 1);
        full(&mut world, ERASURE);
        pass(&mut world, Duration::from_secs(5));
        let mut submit = |pool, until: &dyn Fn(&World) -> bool| {
            while !until(&world) {
                world.submit_write(0, pool, "object1", None);
                world.pump(0);
                // One that tries all the same is refused.
                pass(&mut world, Duration::from_secs(5));
            }
        };
        let held = |world: &World| world.clients[0].machine.objecter().waiting().len();
        submit(ERASURE, &|world| held(world) == 1);
        submit(1, &|world| held(world) == MAX_OPS + 4);
        world.change_map(|model| {
            model.pools.remove(&ERASURE);
            model.pools.get_mut(&1).unwrap().flags = 0;
        });
        run(&mut world, QUIET, is_idle);
        assert_eq!(world.clients[0].counts["no pool"], 1);
        check_writes(&world);
    });
}

/// What a client does not use may be anything.
#[test]
fn a_snapshot_of_a_pool_may_be_called_anything() {
    let mut world = calm(1);
    world.change_map(|model| model.pools.get_mut(&1).unwrap().snapshot = Some(b"caf\xe9"));
    pass(&mut world, Duration::from_secs(10));
    let epoch = world.model.epoch;
    assert_eq!(world.clients[0].machine.objecter().map().epoch(), epoch);
    world.submit_write(0, 1, "object1", None);
    world.pump(0);
    run(&mut world, QUIET, is_idle);
}

fn maps(changes: &[(u32, &Bytes)], whole: &[(u32, &Bytes)]) -> OsdMaps {
    let of = |maps: &[(u32, &Bytes)]| maps.iter().map(|&(at, map)| (at, map.clone())).collect();
    OsdMaps { fsid: FSID, changes: of(changes), whole: of(whole), oldest: 0, newest: 0 }
}

/// A map that is not the one that was said leads nowhere: not to an older one, and not round in circles.
#[test]
fn no_map_leads_back() {
    let now = Instant::now();
    let old = calm(1).model;
    let mut new = old.clone();
    new.epoch += 1;
    let (old_map, new_map) = (old.whole(), new.whole());
    let mut far = new.clone();
    far.epoch = u32::MAX;
    let lies = [
        maps(&[(new.epoch, &new.change_with(&old, &old_map))], &[]),
        maps(&[(new.epoch, &new.change_with(&old, &far.whole()))], &[]),
        maps(&[], &[(new.epoch, &old_map)]),
        maps(&[], &[(new.epoch, &far.whole())]),
        OsdMaps { fsid: Fsid([7; 16]), ..maps(&[], &[(new.epoch, &new_map)]) },
    ];
    for (index, lie) in lies.iter().enumerate() {
        let mut objecter = Objecter::new(Config::default());
        objecter.take_maps(now, &maps(&[], &[(old.epoch, &old_map)])).unwrap();
        let taken = objecter.take_maps(now, lie);
        assert_eq!(taken.is_err(), index < 4, "map {index}: {taken:?}");
        assert_eq!(objecter.map().epoch(), old.epoch, "map {index}");
        // What was before is of no use, what is now is.
        if index < 4 {
            let mut older = old.clone();
            older.epoch -= 1;
            objecter.take_maps(now, &maps(&[], &[(older.epoch, &older.whole())])).unwrap();
            assert_eq!(objecter.map().epoch(), old.epoch, "map {index}");
        }
        objecter.take_maps(now, &maps(&[], &[(new.epoch, &new_map)])).unwrap();
        assert_eq!(objecter.map().epoch(), new.epoch, "map {index}");
    }
}
