//! The maps of a cluster of 7 OSDs, from its first epoch on.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

use blockyard_rados::encoding::{AddrType, EntityAddr, ObjectLocator, PgId, Reader};
use blockyard_rados::error::ErrorKind;
use blockyard_rados::maps::{Incremental, OsdMap, OsdState, Placed, Placer, PoolFlags, PoolKind};
use std::collections::BTreeMap;

const MAPS: &[u8] = include_bytes!("../testdata/maps/cluster.maps");
const LAST: u32 = 67;
/// The same of a cluster of Ceph 20.2.4: pools and parts of the map are encoded in newer versions.
const MAPS_20: &[u8] = include_bytes!("../testdata/maps/v20.maps");

type ByEpoch = BTreeMap<u32, &'static [u8]>;

/// Whole maps and changes.
fn maps() -> (ByEpoch, ByEpoch) {
    read(MAPS)
}

fn read(file: &'static [u8]) -> (ByEpoch, ByEpoch) {
    let (mut whole, mut changes) = (BTreeMap::new(), BTreeMap::new());
    let mut reader = Reader::new("reading test data", file);
    while !reader.is_empty() {
        let (epoch, is_change) = (reader.u32().unwrap(), reader.bool().unwrap());
        let bytes = reader.bytes().unwrap();
        if is_change { &mut changes } else { &mut whole }.insert(epoch, bytes);
    }
    (whole, changes)
}

/// All of a map but the encoded CRUSH map.
fn but_crush(map: &OsdMap) -> (String, String) {
    let text = format!("{map:?}");
    let (head, tail) = text.split_once("crush: b").unwrap();
    (head.to_owned(), tail[tail.rfind("blocklist: ").unwrap()..].to_owned())
}

#[test]
fn changes_lead_from_the_first_map_to_all_others() {
    for (file, last) in [(MAPS, LAST), (MAPS_20, 40)] {
        let (whole, changes) = read(file);
        let mut map = OsdMap::default();
        for epoch in 1..=last {
            map.apply(&Incremental::decode(changes[&epoch]).unwrap()).unwrap();
            assert_eq!(map.epoch(), epoch);
            if let Some(bytes) = whole.get(&epoch) {
                let whole = OsdMap::decode(bytes).unwrap();
                assert_eq!(but_crush(&map), but_crush(&whole), "epoch {epoch}");
                // A monitor of Ceph 20 leaves the newest tunables away in whole maps, while they are the usual ones.
                assert!(map.crush().starts_with(whole.crush()), "epoch {epoch}");
                assert!(file == MAPS_20 || map == whole, "epoch {epoch}");
            }
        }
        assert!(whole.len() > 10);
    }
}

#[test]
fn a_map_says_what_the_tools_of_ceph_say() {
    let map = OsdMap::decode(maps().0[&LAST]).unwrap();
    assert_eq!(map.fsid().to_string(), "6e32a7a1-7d3f-46f0-837a-fef504b5ca71");
    let names: Vec<_> = map.pools().keys().map(|&pool| map.pool_name(pool).unwrap()).collect();
    assert_eq!(names, ["device_health_metrics", "rbd", "ecpool", "meta", "odd"]);
    assert_eq!(map.pool_named("gone"), None);
    let pool = |name| &map.pools()[&map.pool_named(name).unwrap()];
    let ec = pool("ecpool");
    assert_eq!((ec.kind, ec.size, ec.min_size, ec.crush_rule), (PoolKind::Erasure, 5, 4, 1));
    assert_eq!((&*ec.erasure_code_profile, ec.stripe_width), ("ec", 12288));
    let meta = pool("meta");
    assert_eq!(meta.flags, PoolFlags::HASHPSPOOL | PoolFlags::POOL_SNAPS);
    assert_eq!(meta.snaps, BTreeMap::from([(1, "snap1".to_owned())]));
    assert_eq!((meta.last_force_resend, pool("odd").pg_num), (0, 12));
    assert_eq!(map.max_osd(), 7);
    let up: Vec<i32> = (-1..9).filter(|&osd| map.is_up(osd)).collect();
    assert_eq!(up, [0, 1, 2, 3, 6]);
    assert_eq!([0, 3, 5, 6].map(|osd| map.weight(osd)), [0x1_0000, 0x8000, 0x1_0000, 0]);
    assert_eq!(map.state(5), OsdState::empty());
    let addr = map.addrs(1).unwrap().msgr2().unwrap();
    assert_eq!(addr.to_string(), "v2:127.0.0.1:6800/6588");
    let listed =
        EntityAddr { kind: AddrType::ANY, nonce: 1234, socket: Some(([10, 0, 0, 1], 0).into()) };
    assert!(map.blocklisted(&listed).is_some());
    assert_eq!(map.blocklisted(&EntityAddr { nonce: 1235, ..listed }), None);
}

#[test]
fn damage_is_told_from_age_and_from_a_gap() {
    let (whole, changes) = maps();
    let bytes = whole[&LAST];
    for at in (0..bytes.len()).step_by(97) {
        let mut bad = bytes.to_vec();
        bad[at] ^= 0x20;
        assert!(OsdMap::decode(&bad).is_err(), "byte {at}");
        assert!(OsdMap::decode(&bytes[..at]).is_err(), "up to {at}");
    }
    let mut bad = bytes.to_vec();
    bad[100] ^= 1;
    assert_eq!(*OsdMap::decode(&bad).unwrap_err().kind(), ErrorKind::Corrupted { what: "map" });
    let mut map = OsdMap::decode(whole[&33]).unwrap();
    let error = map.apply(&Incremental::decode(changes[&35]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("next epoch"), "{error}");
    let mut other = OsdMap::decode(whole[&1]).unwrap();
    let far = Incremental::decode(changes[&1]).unwrap();
    assert!(other.apply(&far).is_err());
}

/// What `osdmaptool` prints of OSDs: `[1,-,2]`.
fn listed(osds: &[Option<i32>]) -> String {
    let name = |osd: &Option<i32>| osd.map_or("-".to_owned(), |osd| osd.to_string());
    format!("[{}]", osds.iter().map(name).collect::<Vec<_>>().join(","))
}

#[test]
fn every_group_and_object_is_where_osdmaptool_says() {
    let (groups, objects) = compare(MAPS, include_str!("../testdata/maps/cluster.placed"));
    assert!(groups > 800 && objects > 200, "{groups} groups, {objects} objects");
}

#[test]
fn every_group_is_where_osdmaptool_of_ceph_20_says() {
    let (groups, _) = compare(MAPS_20, include_str!("../testdata/maps/v20.placed"));
    assert!(groups > 250, "{groups} groups");
}

/// Compares, and counts groups and objects.
fn compare(file: &'static [u8], expected: &str) -> (u32, u32) {
    let whole = read(file).0;
    let (mut map, mut placer) = (OsdMap::default(), None);
    let (mut groups, mut objects) = (0, 0);
    for line in expected.lines() {
        if let Some(epoch) = line.strip_prefix("epoch ") {
            map = OsdMap::decode(whole[&epoch.parse().unwrap()]).unwrap();
            let placer = placer.get_or_insert_with(|| Placer::new(&map).unwrap());
            placer.update(&map).unwrap();
            continue;
        }
        let placer = placer.as_mut().unwrap();
        if let Some(rest) = line.strip_prefix("object '") {
            let (name, rest) = rest.split_once("' -> ").unwrap();
            let pool = rest.split('.').next().unwrap().parse().unwrap();
            let (_, pg) = map.object_group(&ObjectLocator::new(pool, ""), name).unwrap();
            let acting = listed(&placer.place(&map, pg).acting);
            assert_eq!(format!("{pg} -> {acting}"), rest, "epoch {}", map.epoch());
            objects += 1;
        } else {
            let (pg, rest) = line.split_once(" raw ").unwrap();
            let (pool, seed) = pg.split_once('.').unwrap();
            let pg =
                PgId { pool: pool.parse().unwrap(), seed: u32::from_str_radix(seed, 16).unwrap() };
            let placed = placer.place(&map, pg);
            let part = |osds: &[_], primary: Option<i32>| {
                format!("({}, p{})", listed(osds), primary.unwrap_or(-1))
            };
            let up = part(&placed.up, placed.up_primary);
            let acting = part(&placed.acting, placed.primary);
            let (_, expected) = rest.split_once("up ").unwrap();
            let at = placed.position.map(|at| placed.acting[at]);
            assert_eq!(at, placed.primary.map(Some), "epoch {} {pg}", map.epoch());
            assert_eq!(format!("{up} acting {acting}"), expected, "epoch {} {pg}", map.epoch());
            groups += 1;
        }
    }
    (groups, objects)
}

#[test]
fn a_namespace_and_a_key_are_hashed_too() {
    let map = OsdMap::decode(maps().0[&56]).unwrap();
    let group = |locator: &ObjectLocator, name| map.object_group(locator, name).unwrap();
    // From `ceph osd map rbd a ns1` at this epoch.
    let in_namespace = ObjectLocator::new(2, "ns1");
    assert_eq!(group(&in_namespace, "a"), (0x8b6b_b4ad, PgId { pool: 2, seed: 0xd }));
    let with_key = ObjectLocator { key: "a".into(), ..in_namespace.clone() };
    assert_eq!(group(&with_key, "b"), group(&in_namespace, "a"));
    let hashed = ObjectLocator { hash: 0x1f, ..ObjectLocator::new(2, "") };
    assert_eq!(group(&hashed, "whatever"), (0x1f, PgId { pool: 2, seed: 0x1f }));
    assert!(map.object_group(&ObjectLocator::new(9, ""), "a").is_err());
}

#[test]
fn a_group_that_there_is_not_is_nowhere() {
    let map = OsdMap::decode(maps().0[&LAST]).unwrap();
    let mut placer = Placer::new(&map).unwrap();
    for pg in [PgId { pool: 9, seed: 0 }, PgId { pool: 2, seed: 32 }] {
        assert_eq!(placer.place(&map, pg), Placed::default());
    }
}
