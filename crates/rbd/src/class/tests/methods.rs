//! What methods do: the cases of ceph's `src/test/cls_rbd/test_cls_rbd.cc` and `src/test/cls_lock/test_cls_lock.cc`.

use super::Memory;
use crate::error::Result;
use crate::format::lock::{
    AssertOp, BreakOp, LockInfo, LockOp, LockType, MAY_RENEW, SetCookieOp, UnlockOp,
};
use crate::format::{ChildSpec, Features, ObjectMap, ParentSpec, SnapshotInfo, SnapshotNamespace};
use crate::store::NOSNAP;
use blockyard_rados::encoding::{EntityName, EntityType, Reader, Utime, Writer, encoded};
use rustix::io::Errno;
use std::fmt::Debug;

const MIB: u64 = 1 << 20;

fn errno<T: Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno().unwrap()
}

fn header(features: Features) -> Memory {
    let mut object = Memory { seconds: 99, ..Memory::default() };
    create(&mut object, features, "rbd_data.1", None).unwrap();
    object
}

fn create(
    object: &mut Memory,
    features: Features,
    prefix: &str,
    pool: Option<i64>,
) -> Result<Vec<u8>> {
    object.rbd("create", |w| {
        w.u64(10 * MIB);
        w.u8(22);
        w.u64(features.bits());
        w.string(prefix);
        pool.into_iter().for_each(|pool| w.i64(pool));
    })
}

fn snap_add(object: &mut Memory, name: &str, id: u64) -> Result<Vec<u8>> {
    object.rbd("snapshot_add", |w| {
        w.string(name);
        w.u64(id);
        w.put(&SnapshotNamespace::User);
    })
}

fn parent() -> ParentSpec {
    ParentSpec { pool: 3, namespace: String::new(), image: "parent".into(), snapshot: 9 }
}

fn attach(object: &mut Memory, overlap: u64) -> Result<Vec<u8>> {
    object.rbd("parent_attach", |w| {
        w.put(&parent());
        w.u64(overlap);
        w.bool(false);
    })
}

fn overlap(object: &mut Memory, snapshot: u64) -> Vec<u8> {
    object.rbd("parent_overlap_get", |w| w.u64(snapshot)).unwrap()
}

#[test]
fn an_image_is_created_once_with_the_keys_of_ceph() {
    let mut object = header(Features::DEFAULT);
    assert_eq!(errno(create(&mut object, Features::DEFAULT, "rbd_data.2", None)), Errno::EXIST);
    let keys: Vec<_> = object.omap.iter().map(|(key, value)| (&key[..], &value[..])).collect();
    let time = &[99, 0, 0, 0, 0, 0, 0, 0][..];
    assert_eq!(
        keys,
        [
            (&b"access_timestamp"[..], time),
            (b"create_timestamp", time),
            (b"features", &[61, 0, 0, 0, 0, 0, 0, 0]),
            (b"modify_timestamp", time),
            (b"object_prefix", b"\x0a\0\0\0rbd_data.1"),
            (b"order", &[22]),
            (b"size", &[0, 0, 0xa0, 0, 0, 0, 0, 0]),
            (b"snap_seq", &[0; 8]),
        ]
    );
    let size = object.rbd("get_size", |w| w.u64(NOSNAP)).unwrap();
    assert_eq!(size, [22, 0, 0, 0xa0, 0, 0, 0, 0, 0]);
    let features = object.rbd("get_features", |w| {
        w.u64(NOSNAP);
        w.bool(true);
    });
    assert_eq!(features.unwrap(), [61, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let new = |features, prefix, pool| create(&mut Memory::default(), features, prefix, pool);
    assert_eq!(errno(new(Features::from_bits_retain(1 << 40), "p", None)), Errno::NOSYS);
    assert_eq!(errno(new(Features::OPERATIONS, "p", None)), Errno::INVAL);
    assert_eq!(errno(new(Features::DATA_POOL, "p", None)), Errno::INVAL);
    assert_eq!(errno(new(Features::LAYERING, "p", Some(3))), Errno::INVAL);
    assert_eq!(errno(new(Features::LAYERING, "", None)), Errno::INVAL);
    assert!(new(Features::DATA_POOL, "p", Some(3)).is_ok());
}

#[test]
fn input_that_is_cut_is_invalid() {
    let mut object = header(Features::DEFAULT);
    for name in [
        "create",
        "get_size",
        "set_size",
        "snapshot_add",
        "parent_attach",
        "child_attach",
        "set_flags",
    ] {
        assert_eq!(errno(object.call("rbd", name, &[1, 2, 3])), Errno::INVAL, "{name}");
    }
    assert!(
        super::method("rbd", "journal_start").is_none() && super::method("rgw", "lock").is_none()
    );
}

#[test]
fn snapshots_have_rising_numbers_and_names_of_their_own() {
    let mut object = header(Features::DEFAULT);
    snap_add(&mut object, "a", 10).unwrap();
    assert_eq!(errno(snap_add(&mut object, "b", 5)), Errno::STALE);
    assert_eq!(errno(snap_add(&mut object, "a", 11)), Errno::EXIST);
    assert_eq!(errno(snap_add(&mut object, "b", 10)), Errno::EXIST);
    snap_add(&mut object, "b", 300).unwrap();
    let context = object.rbd("get_snapcontext", |_| {}).unwrap();
    assert_eq!(context, b"\x2c\x01\0\0\0\0\0\0\x02\0\0\0\x2c\x01\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0");
    let info = object.rbd("snapshot_get", |w| w.u64(10)).unwrap();
    let info: SnapshotInfo = Reader::new("testing", &info).get().unwrap();
    assert_eq!((info.name.as_str(), info.image_size, info.timestamp.seconds), ("a", 10 * MIB, 99));
    assert_eq!(
        errno(object.rbd("snapshot_rename", |w| {
            w.u64(10);
            w.string("b");
        })),
        Errno::EXIST
    );
    object
        .rbd("set_protection_status", |w| {
            w.u64(10);
            w.u8(2);
        })
        .unwrap();
    assert_eq!(errno(object.rbd("snapshot_remove", |w| w.u64(10))), Errno::BUSY);
    object
        .rbd("set_protection_status", |w| {
            w.u64(10);
            w.u8(0);
        })
        .unwrap();
    object.rbd("snapshot_remove", |w| w.u64(10)).unwrap();
    assert_eq!(errno(object.rbd("snapshot_remove", |w| w.u64(10))), Errno::NOENT);
    // The newest number stays, so that no snapshot takes it again.
    assert_eq!(object.rbd("get_snapcontext", |_| {}).unwrap()[..8], [0x2c, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(errno(object.rbd("snapshot_set_limit", |w| w.u64(0))), Errno::RANGE);
    object.rbd("snapshot_set_limit", |w| w.u64(1)).unwrap();
    assert_eq!(errno(snap_add(&mut object, "c", 301)), Errno::DQUOT);
}

#[test]
fn many_snapshots_are_read_page_by_page() {
    let mut object = header(Features::DEFAULT);
    for id in 1..=200 {
        snap_add(&mut object, &format!("s{id}"), id).unwrap();
    }
    let context = object.rbd("get_snapcontext", |_| {}).unwrap();
    let ids = Reader::new("testing", &context[8..]).vec(8, Reader::u64).unwrap();
    assert_eq!(ids, (1..=200).rev().collect::<Vec<_>>());
}

#[test]
fn a_parent_shines_through_as_far_as_both_go_and_less_after_a_shrink() {
    let mut object = header(Features::DEFAULT);
    assert_eq!(errno(attach(&mut object, 0)), Errno::INVAL);
    attach(&mut object, 100 * MIB).unwrap();
    assert_eq!(errno(attach(&mut object, MIB)), Errno::EXIST);
    assert_eq!(overlap(&mut object, NOSNAP), [1, 0, 0, 0xa0, 0, 0, 0, 0, 0]);
    snap_add(&mut object, "a", 4).unwrap();
    object.rbd("set_size", |w| w.u64(MIB)).unwrap();
    object.rbd("set_size", |w| w.u64(20 * MIB)).unwrap();
    assert_eq!(overlap(&mut object, NOSNAP), [1, 0, 0, 0x10, 0, 0, 0, 0, 0]);
    assert_eq!(overlap(&mut object, 4), [1, 0, 0, 0xa0, 0, 0, 0, 0, 0]);
    let spec = object.rbd("parent_get", |_| {}).unwrap();
    assert_eq!(spec, encoded(&parent()));
    // Flattened with its snapshots, as it has deep-flatten.
    object.rbd("parent_detach", |_| {}).unwrap();
    assert_eq!((overlap(&mut object, NOSNAP), overlap(&mut object, 4)), (vec![0], vec![0]));
}

#[test]
fn snapshots_keep_a_parent_without_deep_flatten() {
    let mut object = header(Features::LAYERING);
    attach(&mut object, MIB).unwrap();
    snap_add(&mut object, "a", 4).unwrap();
    object.rbd("parent_detach", |_| {}).unwrap();
    assert_eq!(overlap(&mut object, NOSNAP), [0]);
    assert_eq!(overlap(&mut object, 4), [1, 0, 0, 0x10, 0, 0, 0, 0, 0]);
    assert_eq!(object.rbd("parent_get", |_| {}).unwrap(), encoded(&parent()));
    object.rbd("snapshot_remove", |w| w.u64(4)).unwrap();
    assert_eq!(object.rbd("parent_get", |_| {}).unwrap(), encoded(&ParentSpec::default()));
}

#[test]
fn a_snapshot_with_clones_stays() {
    let mut object = header(Features::DEFAULT);
    snap_add(&mut object, "a", 4).unwrap();
    let child = ChildSpec { pool: 1, namespace: String::new(), image: "c".into() };
    let with_child = |object: &mut Memory, name| {
        object.rbd(name, |w| {
            w.u64(4);
            w.put(&child);
        })
    };
    with_child(&mut object, "child_attach").unwrap();
    assert_eq!(errno(with_child(&mut object, "child_attach")), Errno::EXIST);
    assert_eq!(object.rbd("op_features_get", |_| {}).unwrap()[0], 1);
    assert_eq!(errno(object.rbd("snapshot_remove", |w| w.u64(4))), Errno::BUSY);
    object.rbd("snapshot_trash_add", |w| w.u64(4)).unwrap();
    let name = object.rbd("get_snapshot_name", |w| w.u64(4)).unwrap();
    assert_eq!(name[4..], *b"abababab-abab-abab-abab-abababababab");
    with_child(&mut object, "child_detach").unwrap();
    assert_eq!(errno(with_child(&mut object, "child_detach")), Errno::NOENT);
    object.rbd("snapshot_remove", |w| w.u64(4)).unwrap();
    assert_eq!(object.rbd("op_features_get", |_| {}).unwrap(), [0; 8]);
    assert!(!object.omap.contains_key(&b"op_features"[..]));
    assert_eq!(object.omap[&b"features"[..]][1], 0);
}

#[test]
fn the_directory_has_each_name_and_id_once() {
    let mut object = Memory::default();
    let pair = |object: &mut Memory, method, name: &str, id: &str| {
        object.rbd(method, |w| {
            w.string(name);
            w.string(id);
        })
    };
    for number in 0..150 {
        pair(&mut object, "dir_add_image", &format!("n{number:03}"), &format!("i{number:03}"))
            .unwrap();
    }
    assert_eq!(errno(pair(&mut object, "dir_add_image", "n001", "x")), Errno::EXIST);
    assert_eq!(errno(pair(&mut object, "dir_add_image", "x", "i001")), Errno::BADF);
    assert_eq!(errno(pair(&mut object, "dir_add_image", "x", "no-id")), Errno::INVAL);
    let list = object.rbd("dir_list", |w| {
        w.string("n010");
        w.u64(100);
    });
    let list = list.unwrap();
    assert_eq!((list[0], &list[8..12]), (100, &b"n011"[..]));
    let rename = |object: &mut Memory, from: &str, to: &str, id: &str| {
        object.rbd("dir_rename_image", |w| {
            w.string(from);
            w.string(to);
            w.string(id);
        })
    };
    assert_eq!(errno(rename(&mut object, "n001", "n002", "i001")), Errno::EXIST);
    assert_eq!(errno(rename(&mut object, "n001", "new", "i002")), Errno::STALE);
    rename(&mut object, "n001", "new", "i001").unwrap();
    assert_eq!(object.rbd("dir_get_name", |w| w.string("i001")).unwrap()[4..], *b"new");
    assert_eq!(errno(object.rbd("dir_get_id", |w| w.string("n001"))), Errno::NOENT);
    assert_eq!(errno(pair(&mut object, "dir_remove_image", "new", "i002")), Errno::STALE);
    pair(&mut object, "dir_remove_image", "new", "i001").unwrap();
}

#[test]
fn an_id_is_set_once() {
    let mut object = Memory::default();
    assert_eq!(errno(object.rbd("set_id", |w| w.string("10ab"))), Errno::NOENT);
    object.bytes = Some(Vec::new());
    assert_eq!(errno(object.rbd("get_id", |_| {})), Errno::NOENT);
    assert_eq!(errno(object.rbd("set_id", |w| w.string("a b"))), Errno::INVAL);
    object.rbd("set_id", |w| w.string("10ab")).unwrap();
    assert_eq!(errno(object.rbd("set_id", |w| w.string("10ab"))), Errno::EXIST);
    assert_eq!(object.rbd("get_id", |_| {}).unwrap(), b"\x04\0\0\x0010ab");
}

#[test]
fn the_map_follows_objects_and_snapshots() {
    let mut object = Memory::default();
    let resize = |object: &mut Memory, objects: u64, state: u8| {
        object.rbd("object_map_resize", |w| {
            w.u64(objects);
            w.u8(state);
        })
    };
    let update = |object: &mut Memory, range: (u64, u64), new: u8, only: Option<u8>| {
        object.rbd("object_map_update", |w| {
            w.u64(range.0);
            w.u64(range.1);
            w.u8(new);
            w.bool(only.is_some());
            only.into_iter().for_each(|only| w.u8(only));
        })
    };
    let states = |object: &mut Memory| {
        let map = object.rbd("object_map_load", |_| {}).unwrap();
        ObjectMap::parse(&map).unwrap().states().map(|state| state as u8).collect::<Vec<_>>()
    };
    resize(&mut object, 6, 0).unwrap();
    assert_eq!(errno(update(&mut object, (3, 7), 1, None)), Errno::RANGE);
    update(&mut object, (1, 3), 1, None).unwrap();
    let snapshot = object.rbd("object_map_load", |_| {}).unwrap();
    object.rbd("object_map_snap_add", |_| {}).unwrap();
    assert_eq!(states(&mut object), [0, 3, 3, 0, 0, 0]);
    // "Exists" also means those that have not changed.
    update(&mut object, (0, 6), 2, Some(1)).unwrap();
    update(&mut object, (1, 2), 3, Some(2)).unwrap();
    assert_eq!(states(&mut object), [0, 3, 2, 0, 0, 0]);
    object.call("rbd", "object_map_snap_remove", &snapshot).unwrap();
    assert_eq!(states(&mut object), [0, 1, 2, 0, 0, 0]);
    assert_eq!(errno(resize(&mut object, 2, 0)), Errno::STALE);
    resize(&mut object, 3, 0).unwrap();
    object.bytes.as_mut().unwrap()[18] ^= 1;
    assert_eq!(errno(object.rbd("object_map_load", |_| {})), Errno::INVAL);
}

#[test]
fn copyup_writes_only_what_is_not_there() {
    let mut object = Memory::default();
    object.call("rbd", "copyup", b"parent").unwrap();
    object.call("rbd", "copyup", b"late").unwrap();
    assert_eq!(object.bytes.as_deref(), Some(&b"parent"[..]));
    let mut input = Writer::new();
    input.vec(&[(2_u64, 1_u64), (8, 2)], |w, range| {
        w.u64(range.0);
        w.u64(range.1);
    });
    input.bytes(b"abc");
    let mut sparse = Memory::default();
    sparse.call("rbd", "sparse_copyup", input.as_slice()).unwrap();
    assert_eq!(sparse.bytes.as_deref(), Some(&b"\0\0a\0\0\0\0\0bc"[..]));
    let mut short = Writer::new();
    short.vec(&[(2_u64, u64::MAX)], |w, range| {
        w.u64(range.0);
        w.u64(range.1);
    });
    short.bytes(b"abc");
    assert_eq!(
        errno(Memory::default().call("rbd", "sparse_copyup", short.as_slice())),
        Errno::INVAL
    );
}

fn lock_op(cookie: &str, kind: LockType, seconds: u32, flags: u8) -> Vec<u8> {
    encoded(&LockOp {
        name: "l".into(),
        kind,
        cookie: cookie.into(),
        tag: "t".into(),
        description: String::new(),
        duration: Utime { seconds, nanoseconds: 0 },
        flags,
    })
}

#[test]
fn one_has_an_exclusive_lock_until_it_is_given_back_or_broken_or_its_time_is_over() {
    let mut object = Memory { client: 1, ..Memory::default() };
    let exclusive = lock_op("c", LockType::EXCLUSIVE, 0, 0);
    object.lock("lock", &exclusive).unwrap();
    assert_eq!(errno(object.lock("lock", &exclusive)), Errno::EXIST);
    object.lock("lock", &lock_op("c", LockType::EXCLUSIVE, 0, MAY_RENEW)).unwrap();
    let assert = |cookie: &str| {
        encoded(&AssertOp {
            name: "l".into(),
            kind: LockType::EXCLUSIVE,
            cookie: cookie.into(),
            tag: "t".into(),
        })
    };
    object.lock("assert_locked", &assert("c")).unwrap();
    object.client = 2;
    assert_eq!(errno(object.lock("assert_locked", &assert("c"))), Errno::BUSY);
    assert_eq!(errno(object.lock("lock", &exclusive)), Errno::BUSY);
    assert_eq!(
        errno(object.lock("unlock", &encoded(&UnlockOp { name: "l".into(), cookie: "c".into() }))),
        Errno::NOENT
    );
    let locker = EntityName { kind: EntityType::CLIENT, number: 1 };
    let broken = encoded(&BreakOp { name: "l".into(), locker, cookie: "c".into() });
    object.lock("break_lock", &broken).unwrap();
    object.lock("lock", &lock_op("c", LockType::EXCLUSIVE, 10, 0)).unwrap();
    object
        .lock(
            "set_cookie",
            &encoded(&SetCookieOp {
                name: "l".into(),
                kind: LockType::EXCLUSIVE,
                cookie: "c".into(),
                tag: "t".into(),
                new_cookie: "d".into(),
            }),
        )
        .unwrap();
    object.lock("assert_locked", &assert("d")).unwrap();
    (object.client, object.seconds) = (3, 11);
    object.lock("lock", &exclusive).unwrap();
    assert_eq!(object.lock("list_locks", &[]).unwrap(), b"\x01\x01\x09\0\0\0\x01\0\0\0\x01\0\0\0l");
}

#[test]
fn a_shared_lock_is_had_by_several() {
    let mut object = Memory { client: 1, ..Memory::default() };
    let shared = lock_op("c", LockType::SHARED, 0, 0);
    object.lock("lock", &shared).unwrap();
    object.client = 2;
    object.lock("lock", &shared).unwrap();
    assert_eq!(errno(object.lock("lock", &lock_op("d", LockType::EXCLUSIVE, 0, 0))), Errno::BUSY);
    let info = object.lock("get_info", b"\x01\x01\x05\0\0\0\x01\0\0\0l").unwrap();
    let info: LockInfo = Reader::new("testing", &info).get().unwrap();
    assert_eq!((info.lockers.len(), info.tag.as_str()), (2, "t"));
}
