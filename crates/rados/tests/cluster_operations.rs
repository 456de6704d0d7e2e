//! Each operation, on OSDs of Ceph's.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which fail by panicking")]

mod common;

use blockyard_rados::net::ReadPolicy;
use blockyard_rados::osd::{
    ALL_NAMESPACES, AllocHint, Compare, Op, OpFlags, SnapContext, mismatch,
};
use bytes::Bytes;
use common::{
    ECANCELED, EEXIST, ENODATA, ENOENT, EOPNOTSUPP, EOVERFLOW, ERANGE, errno, pool, rados, run,
    shared,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

#[test]
fn what_we_write_the_tool_reads_and_the_other_way_round() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let data: Bytes = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let (ours, theirs) = (lab.dir().join("ours"), lab.dir().join("theirs"));
        pool.write_full("ours", data.clone()).await.unwrap();
        rados(&lab, &["get", "ours", ours.to_str().unwrap()]);
        assert!(fs::read(ours).unwrap() == data);
        fs::write(&theirs, &data[1..]).unwrap();
        rados(&lab, &["put", "theirs", theirs.to_str().unwrap()]);
        assert!(pool.read("theirs", 0, 0).await.unwrap() == data[1..]);
        let stat = pool.stat("theirs").await.unwrap();
        assert_eq!(stat.size, data.len() as u64 - 1);
        assert!(stat.modified.seconds > 1_700_000_000);
    });
}

#[test]
fn bytes_of_an_object() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let read = async || pool.read("bytes", 0, 0).await.unwrap();
        assert_eq!(errno(&pool.read("bytes", 0, 0).await.unwrap_err()), ENOENT);
        pool.write("bytes", 4, b"efgh".as_slice()).await.unwrap();
        assert_eq!(read().await, b"\0\0\0\0efgh"[..]);
        pool.write("bytes", 0, b"abcd".as_slice()).await.unwrap();
        pool.append("bytes", b"ij".as_slice()).await.unwrap();
        assert_eq!(read().await, b"abcdefghij"[..]);
        assert_eq!(pool.read("bytes", 2, 3).await.unwrap(), b"cde"[..]);
        assert_eq!(pool.read("bytes", 8, 100).await.unwrap(), b"ij"[..]);
        assert_eq!(pool.read("bytes", 100, 1).await.unwrap(), b""[..]);
        pool.zero("bytes", 1, 2).await.unwrap();
        pool.truncate("bytes", 6).await.unwrap();
        assert_eq!(read().await, b"a\0\0def"[..]);
        pool.truncate("bytes", 8).await.unwrap();
        assert_eq!(read().await, b"a\0\0def\0\0"[..]);
        pool.operate("bytes", vec![Op::write_same(0, 6, b"xy".as_slice().into())]).await.unwrap();
        assert_eq!(read().await, b"xyxyxy\0\0"[..]);
        pool.write_full("bytes", b"short".as_slice()).await.unwrap();
        assert_eq!(read().await, b"short"[..]);
        let hint = Op::alloc_hint(1 << 22, 1 << 12, AllocHint::RANDOM_WRITE);
        pool.operate("bytes", vec![hint, Op::append(b"er".as_slice().into())]).await.unwrap();
        assert_eq!(read().await, b"shorter"[..]);
        let extents = pool.sparse_read("bytes", 2, 100).await.unwrap();
        assert_eq!((extents.ranges, extents.data), (vec![(2, 5)], Bytes::from_static(b"orter")));
        pool.remove("bytes").await.unwrap();
        assert_eq!(errno(&pool.remove("bytes").await.unwrap_err()), ENOENT);
    });
}

#[test]
fn an_error_names_cluster_pool_object_and_operation() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let error =
            pool.query("no such thing", vec![Op::stat(), Op::read(0, 1)]).await.unwrap_err();
        let text = error.to_string();
        let fsid = lab.ceph(&["fsid"]).unwrap();
        for part in [fsid.trim(), "pool tests", "\"no such thing\"", "stat, read"] {
            assert!(text.contains(part), "{text}");
        }
    });
}

#[test]
fn creation_and_guards_keep_the_rest_of_a_request_from_being_done() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        pool.create("guarded", true).await.unwrap();
        assert_eq!(errno(&pool.create("guarded", true).await.unwrap_err()), EEXIST);
        pool.create("guarded", false).await.unwrap();
        let write = |text: &'static [u8]| Op::write_full(Bytes::from_static(text));
        let version = pool.operate("guarded", vec![write(b"one")]).await.unwrap().user_version;
        pool.set_xattr("guarded", "owner", b"me").await.unwrap();
        pool.set_xattr("guarded", "count", b"41").await.unwrap();
        let now = pool.query("guarded", vec![Op::stat()]).await.unwrap().user_version;
        assert_eq!(now, version + 2);
        let refusals: Vec<(Op, i32)> = vec![
            (Op::assert_version(version), ERANGE),
            (Op::assert_version(now + 1), EOVERFLOW),
            (Op::cmp_xattr("owner", Compare::Equal, b"you"), ECANCELED),
            (Op::cmp_xattr("owner", Compare::NotEqual, b"me"), ECANCELED),
            (Op::cmp_xattr_number("count", Compare::Greater, 41), ECANCELED),
            (Op::compare_extent(1, Bytes::from_static(b"nE")), 4096),
        ];
        for (guard, expected) in refusals {
            let error =
                pool.operate("guarded", vec![guard.clone(), write(b"two")]).await.unwrap_err();
            assert_eq!(errno(&error), expected, "{guard:?}");
            assert_eq!(pool.read("guarded", 0, 0).await.unwrap(), b"one"[..]);
        }
        assert_eq!(mismatch(-4096), Some(1));
        let missing = pool.operate("not there", vec![Op::stat(), write(b"x")]).await.unwrap_err();
        assert_eq!(errno(&missing), ENOENT);
        let all = vec![
            Op::stat(),
            Op::assert_version(now),
            Op::cmp_xattr("owner", Compare::Equal, b"me"),
            Op::cmp_xattr_number("count", Compare::GreaterOrEqual, 41),
            Op::compare_extent(0, Bytes::from_static(b"one")),
            write(b"two"),
            Op::set_xattr("count", b"42"),
        ];
        pool.operate("guarded", all).await.unwrap();
        assert_eq!(pool.read("guarded", 0, 0).await.unwrap(), b"two"[..]);
        assert_eq!(pool.xattr("guarded", "count").await.unwrap(), b"42"[..]);
    });
}

#[test]
fn attributes() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        pool.set_xattr("attributes", "a", b"1").await.unwrap();
        pool.set_xattr("attributes", "b", b"\0\xff").await.unwrap();
        rados(&lab, &["setxattr", "attributes", "theirs", "text"]);
        let all = pool.xattrs("attributes").await.unwrap();
        let names: Vec<_> = all.keys().cloned().collect();
        assert_eq!(names, [&b"a"[..], b"b", b"theirs"]);
        assert_eq!(all[&b"b"[..]], b"\0\xff"[..]);
        assert_eq!(rados(&lab, &["getxattr", "attributes", "a"]), "1");
        pool.remove_xattr("attributes", "a").await.unwrap();
        assert_eq!(errno(&pool.xattr("attributes", "a").await.unwrap_err()), ENODATA);
        assert_eq!(pool.xattr("attributes", "theirs").await.unwrap(), b"text"[..]);
    });
}

#[test]
fn keys_and_values() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let pairs: BTreeMap<String, String> =
            (0..250).map(|i| (format!("key{i:03}"), format!("value {i}"))).collect();
        pool.omap_set("keys", &pairs).await.unwrap();
        pool.omap_set("keys", &BTreeMap::from([(b"\x80binary".to_vec(), b"\0")])).await.unwrap();
        let page = pool.omap_keys("keys", b"", 100).await.unwrap();
        assert_eq!((page.keys.len(), &page.keys[99][..], page.more), (100, &b"key099"[..], true));
        let page = pool.omap_keys("keys", b"key248", 100).await.unwrap();
        assert_eq!(page.keys, [&b"key249"[..], b"\x80binary"]);
        assert!(!page.more);
        let page = pool.omap_values("keys", b"key009", 4, b"key01").await.unwrap();
        assert_eq!(page.values[&b"key012"[..]], b"value 12"[..]);
        assert_eq!((page.values.len(), page.more), (4, true));
        let found = pool.omap_get("keys", &["key001", "nothing"]).await.unwrap();
        assert_eq!(found, BTreeMap::from([("key001".into(), "value 1".into())]));
        let header = Bytes::from_static(b"header");
        pool.operate("keys", vec![Op::omap_set_header(header.clone())]).await.unwrap();
        assert_eq!(pool.omap_header("keys").await.unwrap(), header);
        pool.omap_remove("keys", &[b"\x80binary"]).await.unwrap();
        assert_eq!(rados(&lab, &["listomapkeys", "keys"]).lines().count(), 250);
        rados(&lab, &["setomapval", "keys", "theirs", "text"]);
        assert_eq!(pool.omap_get("keys", &["theirs"]).await.unwrap().len(), 1);
        pool.omap_remove("keys", &["key000", "key001"]).await.unwrap();
        assert_eq!(pool.omap_keys("keys", b"", 1).await.unwrap().keys, [&b"key002"[..]]);
        pool.operate("keys", vec![Op::omap_clear()]).await.unwrap();
        assert!(pool.omap_keys("keys", b"", 1).await.unwrap().keys.is_empty());
        assert_eq!(pool.omap_header("keys").await.unwrap(), b""[..]);
    });
}

#[test]
fn methods_of_classes() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        // `hello` is Ceph's example of a class.
        pool.call_writing("greeting", "hello", "record_hello", b"Blockyard").await.unwrap();
        assert_eq!(pool.read("greeting", 0, 0).await.unwrap(), b"Hello, Blockyard!"[..]);
        let said = pool.call("greeting", "hello", "say_hello", b"you").await.unwrap();
        assert_eq!(said, b"Hello, you!"[..]);
        let again = pool.call_writing("greeting", "hello", "record_hello", b"x").await;
        assert_eq!(errno(&again.unwrap_err()), EEXIST);
        let missing = pool.call("greeting", "hello", "no_such_method", b"").await.unwrap_err();
        assert_eq!(errno(&missing), EOPNOTSUPP);
    });
}

#[test]
fn snapshots_that_clients_make_themselves() {
    let lab = shared();
    run(async {
        let cluster = common::connect(&lab).await;
        cluster.create_pool("snapshots", 4).await.unwrap();
        let pool = cluster.pool("snapshots").await.unwrap();
        pool.write_full("object", b"first".as_slice()).await.unwrap();
        let one = cluster.create_snapshot_id(pool.id()).await.unwrap();
        let context = |snaps: &[u64]| SnapContext { seq: snaps[0], snaps: snaps.to_vec() };
        let writer = pool.clone().with_snapshots(context(&[one]));
        writer.write("object", 0, b"SECOND".as_slice()).await.unwrap();
        let two = cluster.create_snapshot_id(pool.id()).await.unwrap();
        assert!(two > one);
        let writer = pool.clone().with_snapshots(context(&[two, one]));
        writer.write_full("object", b"3".as_slice()).await.unwrap();
        let at = |snap| pool.clone().at_snapshot(snap);
        assert_eq!(at(one).read("object", 0, 0).await.unwrap(), b"first"[..]);
        assert_eq!(at(two).read("object", 0, 0).await.unwrap(), b"SECOND"[..]);
        assert_eq!(at(two).at_head().read("object", 0, 0).await.unwrap(), b"3"[..]);
        assert_eq!(at(two).stat("object").await.unwrap().size, 6);
        let kept = pool.snapshots("object").await.unwrap();
        assert_eq!(kept.seq, two);
        let ids: Vec<_> = kept.clones.iter().map(|clone| (clone.id, clone.size)).collect();
        assert_eq!(ids[..2], [(one, 5), (two, 6)]);
        assert_eq!(ids.len(), 3, "the head is the last one");
        writer.rollback("object", one).await.unwrap();
        assert_eq!(pool.read("object", 0, 0).await.unwrap(), b"first"[..]);
        cluster.delete_snapshot_id(pool.id(), one).await.unwrap();
        let old = pool.clone().with_flags(OpFlags::ORDER_SNAP).with_snapshots(context(&[one]));
        let error = old.write_full("object", b"late".as_slice()).await.unwrap_err();
        assert_eq!(errno(&error), 85, "EOLDSNAPC: {error}");
    });
}

#[test]
fn namespaces_and_keys_are_apart() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let (space, keyed) = (pool.clone().with_namespace("space"), pool.clone().with_key("k"));
        pool.write_full("apart", b"default".as_slice()).await.unwrap();
        space.write_full("apart", b"space".as_slice()).await.unwrap();
        keyed.write_full("apart", b"keyed".as_slice()).await.unwrap();
        assert_eq!(rados(&lab, &["get", "apart", "-"]), "default");
        assert_eq!(rados(&lab, &["-N", "space", "get", "apart", "-"]), "space");
        assert_eq!(rados(&lab, &["--object-locator", "k", "get", "apart", "-"]), "keyed");
        assert_eq!(space.read("apart", 0, 0).await.unwrap(), b"space"[..]);
        assert_eq!(keyed.locate("apart").unwrap().pg, keyed.locate("other").unwrap().pg);
    });
}

#[test]
fn lists_are_those_of_the_tool() {
    let lab = shared();
    run(async {
        let cluster = common::connect(&lab).await;
        cluster.create_pool("lists", 16).await.unwrap();
        let pool = cluster.pool("lists").await.unwrap();
        assert_eq!(pool.list().next().await.unwrap(), None);
        let space = pool.clone().with_namespace("space");
        let writes = (0..2500).map(|i| {
            let pool = if i % 5 == 0 { space.clone() } else { pool.clone() };
            async move { pool.create(&format!("object {i}"), true).await.unwrap() }
        });
        let tasks: Vec<_> = writes.map(tokio::spawn).collect();
        for task in tasks {
            task.await.unwrap();
        }
        pool.clone().with_key("key").create("keyed", true).await.unwrap();
        for (pool, arguments, count) in [
            (pool.clone(), &["ls"][..], 2001),
            (space, &["-N", "space", "ls"], 500),
            (pool.with_namespace(ALL_NAMESPACES), &["--all", "ls"], 2501),
        ] {
            let mut list = pool.list();
            let mut ours = BTreeSet::new();
            while let Some(object) = list.next().await.unwrap() {
                let fields = [object.namespace, object.name, object.key];
                let all = arguments[0] == "--all";
                let fields = fields.map(|field| field.to_string());
                let line = if all { &fields[..] } else { &fields[1..] }.join("\t");
                assert!(ours.insert(line.trim_end().to_owned()), "{line} came twice");
            }
            let text = lab.run(lab.tool("rados").args(["-p", "lists"]).args(arguments)).unwrap();
            let theirs: BTreeSet<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
            assert_eq!(ours.len(), count);
            assert!(
                ours == theirs,
                "{:?}",
                ours.symmetric_difference(&theirs).take(5).collect::<Vec<_>>()
            );
        }
    });
}

#[test]
fn replicas_answer_reads() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        let names: Vec<_> = (0..20).map(|i| format!("replica {i}")).collect();
        for name in &names {
            pool.write_full(name, name.clone()).await.unwrap();
        }
        for reads in [ReadPolicy::Balanced, ReadPolicy::Localized] {
            let pool = pool.clone().with_reads(reads);
            for name in names.iter().chain(&names) {
                assert_eq!(pool.read(name, 0, 0).await.unwrap(), name.as_bytes());
            }
        }
    });
}

#[test]
fn a_place_is_what_the_monitors_say() {
    let lab = shared();
    run(async {
        let pool = pool(&lab).await;
        for name in ["a", "somewhere", "ünïcode"] {
            let place = pool.locate(name).unwrap();
            let theirs = lab.ceph_json(&["osd", "map", common::POOL, name]).unwrap();
            assert_eq!(theirs["pgid"], place.pg.to_string());
            let acting: Vec<_> = place.placed.acting.iter().flatten().copied().collect();
            assert_eq!(theirs["acting"], serde_json::json!(acting));
        }
    });
}
