//! Where requests go when one thing changes in the map.

use crate::world::{ERASURE, World};
use crate::{QUIET, calm, clients, for_few_seeds, pass, run};
use blockyard_rados::encoding::{ObjectLocator, PgId};
use std::time::Duration;

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
