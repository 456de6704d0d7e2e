//! The same calls of methods to a real OSD and to a store in a directory: nobody can tell which it is.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use blockyard_lab::ceph::{Cluster as Lab, Options};
use blockyard_rados::conf::{Arguments, ConfFile, Settings, Surroundings};
use blockyard_rados::encoding::{EntityName, EntityType, NOSNAP, Reader, Utime, Writer, encoded};
use blockyard_rados::net::{Cluster, Config, Pool};
use blockyard_rbd::Result;
use blockyard_rbd::dir::DirStore;
use blockyard_rbd::format::lock::{
    AssertOp, BreakOp, LockInfo, LockOp, LockType, SetCookieOp, UnlockOp,
};
use blockyard_rbd::format::{
    ChildSpec, ObjectMap, ObjectState, ParentSpec, Snapshot, SnapshotInfo, SnapshotNamespace,
};
use blockyard_rbd::store::{Answer, ObjectName, Op, Query, Request};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(150);
const POOL: &str = "classes";
const MIB: u64 = 1 << 20;

/// Both stores, and what was called.
struct Both {
    pool: Pool,
    dir: DirStore,
    calls: usize,
}

/// A number of the system, or what was given.
type Outcome = std::result::Result<Bytes, i32>;

fn of_dir(result: Result<Vec<Answer>>) -> Outcome {
    match result {
        Ok(mut answers) => Ok(answers.remove(0).into_data()),
        Err(error) => Err(error.errno().unwrap().raw_os_error()),
    }
}

fn of_pool(result: blockyard_rados::Result<Bytes>) -> Outcome {
    result.map_err(|error| match error.kind() {
        blockyard_rados::ErrorKind::Osd { errno } => *errno,
        _ => panic!("no answer of an OSD: {error}"),
    })
}

/// What is the same but for the time in it.
fn without_time(method: &str, output: &Bytes) -> Bytes {
    let reader = &mut Reader::new("testing", output);
    match method {
        "snapshot_get" => {
            let info: SnapshotInfo = reader.get().unwrap();
            encoded(&SnapshotInfo { timestamp: Utime::default(), ..info }).into()
        }
        "get_info" => {
            // Each knows its own clients.
            let lock: LockInfo = reader.get().unwrap();
            format!("{:?} {} {}", lock.kind, lock.tag, lock.lockers.len()).into()
        }
        name if name.ends_with("timestamp") => Bytes::new(),
        _ => output.clone(),
    }
}

impl Both {
    async fn create(&self, object: &str) {
        self.pool.create(object, true).await.unwrap();
        let create = Request::write(vec![Op::create(true)]);
        self.dir.operate_blocking(&object.into(), &create).unwrap();
    }

    async fn call(
        &mut self,
        object: &str,
        class: &'static str,
        method: &'static str,
        input: &[u8],
    ) -> Outcome {
        self.calls += 1;
        let writes = blockyard_rbd::class::method(class, method).unwrap().writes;
        let op = Op::exec(class, method, input.to_vec());
        let name: ObjectName = object.into();
        let (theirs, request) = if writes {
            (self.pool.call_writing(object, class, method, input).await, Request::write(vec![op]))
        } else {
            (self.pool.call(object, class, method, input).await, Request::read(vec![op]))
        };
        let theirs = of_pool(theirs).map(|output| without_time(method, &output));
        let ours = of_dir(self.dir.operate_blocking(&name, &request));
        let ours = ours.map(|output| without_time(method, &output));
        assert_eq!(ours, theirs, "{}: {class}.{method} of {object} with {input:02x?}", self.calls);
        self.same_keys(object, method).await;
        ours
    }

    async fn rbd(
        &mut self,
        object: &str,
        method: &'static str,
        input: impl FnOnce(&mut Writer),
    ) -> Outcome {
        let mut writer = Writer::new();
        input(&mut writer);
        self.call(object, "rbd", method, writer.as_slice()).await
    }

    /// Keys and bytes are the same, but for times.
    async fn same_keys(&self, object: &str, after: &str) {
        let theirs = self.pool.omap_values(object, b"", 1000, b"").await;
        let list = Query::OmapList { after: Bytes::new(), prefix: Bytes::new(), max: 1000 };
        let ours = self.dir.operate_blocking(&object.into(), &Request::read(vec![list.into()]));
        let Ok(theirs) = theirs else {
            return assert!(ours.is_err(), "{object} is here and not there after {after}");
        };
        let Answer::Omap(ours) = ours.unwrap().remove(0) else { panic!("no keys") };
        let timeless = |keys: BTreeMap<Bytes, Bytes>| -> Vec<(Bytes, Bytes)> {
            keys.into_iter()
                .map(|(key, value)| match key.starts_with(b"snapshot_") {
                    true => {
                        let snapshot: Snapshot = Reader::new("testing", &value).get().unwrap();
                        let timestamp = Utime::default();
                        (key, encoded(&Snapshot { timestamp, ..snapshot }).into())
                    }
                    false if key.ends_with(b"timestamp") => (key, Bytes::new()),
                    false => (key, value),
                })
                .collect()
        };
        assert_eq!(timeless(ours.values), timeless(theirs.values), "{object} after {after}");
        let theirs = self.pool.read(object, 0, 0).await.unwrap();
        let ours =
            of_dir(self.dir.operate_blocking(&object.into(), &Request::read(vec![Op::read(0, 0)])));
        assert_eq!(ours, Ok(theirs), "{object} after {after}");
    }
}

fn start() -> Lab {
    let lab = Lab::start(&Options::default()).unwrap();
    lab.create_pool(POOL, 8).unwrap();
    lab
}

async fn pool(lab: &Lab) -> Pool {
    let arguments = Arguments::parse([""; 0]).unwrap();
    let file = ConfFile::parse(&std::fs::read_to_string(lab.conf()).unwrap()).unwrap();
    let settings = Settings::new(&arguments, Surroundings::default()).with_file(file);
    let config = Config::from_settings(&settings).unwrap();
    Cluster::connect(config).await.unwrap().pool(POOL).await.unwrap()
}

async fn header(both: &mut Both) {
    const HEADER: &str = "rbd_header.1";
    let image = |features: u64, prefix: &'static str| {
        move |w: &mut Writer| {
            w.u64(10 * MIB);
            w.u8(22);
            w.u64(features);
            w.string(prefix);
            w.i64(-1);
        }
    };
    for (features, prefix) in
        [(1 << 20, "p"), (61, ""), (256, "p"), (128, "p"), (63, "rbd_data.1"), (61, "again")]
    {
        let _ = both.rbd(HEADER, "create", image(features, prefix)).await;
    }
    for method in [
        "get_size",
        "get_features",
        "get_flags",
        "get_parent",
        "parent_overlap_get",
        "snapshot_get",
    ] {
        for snapshot in [NOSNAP, 5] {
            let _ = both.rbd(HEADER, method, |w| w.u64(snapshot)).await;
        }
    }
    for (unit, count) in [(0, 1), (3 << 20, 2), (1 << 16, 16)] {
        let _ = both
            .rbd(HEADER, "set_stripe_unit_count", |w| {
                w.u64(unit);
                w.u64(count);
            })
            .await;
    }
    for method in [
        "get_stripe_unit_count",
        "get_object_prefix",
        "get_data_pool",
        "get_snapcontext",
        "parent_get",
        "op_features_get",
        "snapshot_get_limit",
        "get_create_timestamp",
        "parent_detach",
    ] {
        let _ = both.rbd(HEADER, method, |_| {}).await;
    }
    for (features, mask) in [(64, 64), (1, 1), (0, 32), (32, 32), (0, 4), (4, 4), (512, 512)] {
        let _ = both
            .rbd(HEADER, "set_features", |w| {
                w.u64(features);
                w.u64(mask);
            })
            .await;
    }
    snapshots(both, HEADER).await;
}

async fn snapshots(both: &mut Both, header: &'static str) {
    let parent = ParentSpec { pool: 3, namespace: "n".into(), image: "parent".into(), snapshot: 9 };
    for overlap in [0, 100 * MIB, 5] {
        let _ = both
            .rbd(header, "parent_attach", |w| {
                w.put(&parent);
                w.u64(overlap);
                w.bool(false);
            })
            .await;
    }
    for (name, id) in [("a", 4), ("a", 5), ("b", 4), ("b", 3), ("b", 8), ("c", 9)] {
        let _ = both
            .rbd(header, "snapshot_add", |w| {
                w.string(name);
                w.u64(id);
                w.put(&SnapshotNamespace::User);
            })
            .await;
    }
    let _ = both.rbd(header, "set_size", |w| w.u64(MIB)).await;
    let child = ChildSpec { pool: 1, namespace: "n".into(), image: "child".into() };
    for method in ["child_attach", "child_attach", "children_list", "child_detach", "child_detach"]
    {
        let _ = both
            .rbd(header, method, |w| {
                w.u64(4);
                w.put(&child);
            })
            .await;
    }
    for (flags, snapshot) in [(1, NOSNAP), (3, 4), (1, 77)] {
        let _ = both
            .rbd(header, "set_flags", |w| {
                w.u64(flags);
                w.u64(3);
                w.u64(snapshot);
            })
            .await;
    }
    for (snapshot, status) in [(4, 2), (4, 7), (NOSNAP, 2), (70, 2)] {
        let _ = both
            .rbd(header, "set_protection_status", |w| {
                w.u64(snapshot);
                w.u8(status);
            })
            .await;
    }
    for (id, name) in [(8, "c"), (8, "d"), (70, "e")] {
        let _ = both
            .rbd(header, "snapshot_rename", |w| {
                w.u64(id);
                w.string(name);
            })
            .await;
    }
    for (method, id) in [
        ("get_protection_status", 4),
        ("snapshot_get", 4),
        ("get_snapshot_name", 8),
        ("parent_overlap_get", 4),
        ("get_flags", 4),
        ("get_size", 4),
        ("snapshot_remove", 4),
        ("snapshot_remove", 8),
        ("snapshot_remove", 8),
    ] {
        let _ = both.rbd(header, method, |w| w.u64(id)).await;
    }
    for method in ["get_snapcontext", "parent_get", "parent_detach", "parent_detach", "parent_get"]
    {
        let _ = both.rbd(header, method, |_| {}).await;
    }
    for limit in [0, 1, 5, u64::MAX] {
        let _ = both.rbd(header, "snapshot_set_limit", |w| w.u64(limit)).await;
    }
}

async fn directory(both: &mut Both) {
    const DIRECTORY: &str = "rbd_directory";
    for (method, strings) in [
        ("dir_add_image", &["a", "ia"][..]),
        ("dir_add_image", &["b", "ib"]),
        ("dir_add_image", &["a", "ic"]),
        ("dir_add_image", &["c", "ia"]),
        ("dir_add_image", &["c", "i c"]),
        ("dir_add_image", &["c\u{e9} /", "ic"]),
        ("dir_get_id", &["a"]),
        ("dir_get_id", &["z"]),
        ("dir_get_name", &["ib"]),
        ("dir_get_name", &["z"]),
        ("dir_rename_image", &["a", "b", "ia"]),
        ("dir_rename_image", &["a", "d", "ib"]),
        ("dir_rename_image", &["a", "d", "ia"]),
        ("dir_remove_image", &["d", "ib"]),
        ("dir_remove_image", &["d", "ia"]),
        ("dir_remove_image", &["d", "ia"]),
    ] {
        let _ =
            both.rbd(DIRECTORY, method, |w| strings.iter().for_each(|text| w.string(text))).await;
    }
    let _ = both
        .rbd(DIRECTORY, "dir_list", |w| {
            w.string("");
            w.u64(10);
        })
        .await;
    both.create("rbd_id.a").await;
    for (method, id) in
        [("get_id", ""), ("set_id", "a b"), ("set_id", "10ab"), ("set_id", "10ab"), ("get_id", "")]
    {
        let _ = both.rbd("rbd_id.a", method, |w| w.string(id)).await;
    }
    for method in
        ["get_children", "add_child", "add_child", "get_children", "remove_child", "remove_child"]
    {
        let _ = both
            .rbd("rbd_children", method, |w| {
                w.u64(1);
                w.string("parent");
                w.u64(9);
                w.string("child");
            })
            .await;
    }
    let pairs = BTreeMap::from([("k", "v"), ("l", "w")]);
    let pairs: Vec<_> = pairs.iter().collect();
    let _ = both
        .rbd("rbd_header.1", "metadata_set", |w| {
            w.vec(&pairs, |w, (key, value)| {
                w.string(key);
                w.string(value);
            });
        })
        .await;
    for (method, key) in [
        ("metadata_get", "k"),
        ("metadata_get", "z"),
        ("metadata_remove", "k"),
        ("metadata_get", "k"),
    ] {
        let _ = both.rbd("rbd_header.1", method, |w| w.string(key)).await;
    }
}

async fn map_and_data(both: &mut Both) {
    const MAP: &str = "rbd_object_map.1";
    for (objects, state) in [(20_000, 0), (40_000, 1), (30_000, 0), (30_000, 1)] {
        let _ = both
            .rbd(MAP, "object_map_resize", |w| {
                w.u64(objects);
                w.u8(state);
            })
            .await;
    }
    for (start, end, state, only) in [
        (1, 3, 1, None),
        (0, 17_000, 3, Some(0)),
        (5, 5, 1, None),
        (0, 90_000, 1, None),
        (0, 9, 2, Some(1)),
    ] {
        let _ = both
            .rbd(MAP, "object_map_update", |w| {
                w.u64(start);
                w.u64(end);
                w.u8(state);
                w.bool(only.is_some());
                only.into_iter().for_each(|only| w.u8(only));
            })
            .await;
    }
    let loaded = both.rbd(MAP, "object_map_load", |_| {}).await.unwrap();
    assert_eq!(ObjectMap::parse(&loaded).unwrap().state(17_001), Some(ObjectState::Nonexistent));
    let _ = both.rbd(MAP, "object_map_snap_add", |_| {}).await;
    let _ = both.call(MAP, "rbd", "object_map_snap_remove", &loaded).await;
    let _ = both.call(MAP, "rbd", "object_map_save", &loaded).await;
    for data in [&b"parent"[..], b"late"] {
        let _ = both.call("rbd_data.1", "rbd", "copyup", data).await;
    }
    let _ = both
        .rbd("rbd_data.2", "sparse_copyup", |w| {
            w.vec(&[(2_u64, 1_u64), (8, 2)], |w, range| {
                w.u64(range.0);
                w.u64(range.1);
            });
            w.bytes(b"abc");
        })
        .await;
}

async fn locks(both: &mut Both) {
    let lock = |cookie: &str, kind, flags| {
        encoded(&LockOp {
            name: "l".into(),
            kind,
            cookie: cookie.into(),
            tag: "t".into(),
            description: "d".into(),
            duration: Utime::default(),
            flags,
        })
    };
    let held = |cookie: &str| {
        encoded(&AssertOp {
            name: "l".into(),
            kind: LockType::EXCLUSIVE,
            cookie: cookie.into(),
            tag: "t".into(),
        })
    };
    let name = encoded(&blockyard_rbd::format::lock::GetInfoOp { name: "l".into() });
    let unlock = |cookie: &str| encoded(&UnlockOp { name: "l".into(), cookie: cookie.into() });
    let nobody = EntityName { kind: EntityType::CLIENT, number: 1 << 50 };
    let set_cookie = encoded(&SetCookieOp {
        name: "l".into(),
        kind: LockType::EXCLUSIVE,
        cookie: "c".into(),
        tag: "t".into(),
        new_cookie: "e".into(),
    });
    for (method, input) in [
        ("get_info", name.clone()),
        ("lock", lock("c", LockType::NONE, 0)),
        ("lock", lock("c", LockType::EXCLUSIVE, 0)),
        ("lock", lock("c", LockType::EXCLUSIVE, 0)),
        ("lock", lock("c", LockType::EXCLUSIVE, 1)),
        ("lock", lock("d", LockType::EXCLUSIVE, 0)),
        ("lock", lock("d", LockType::SHARED, 0)),
        ("assert_locked", held("c")),
        ("assert_locked", held("d")),
        ("set_cookie", set_cookie.clone()),
        ("set_cookie", set_cookie),
        ("get_info", name.clone()),
        ("list_locks", Vec::new()),
        ("break_lock", encoded(&BreakOp { name: "l".into(), locker: nobody, cookie: "e".into() })),
        ("unlock", unlock("c")),
        ("unlock", unlock("e")),
        ("lock", lock("c", LockType::SHARED, 0)),
        ("lock", lock("d", LockType::SHARED, 0)),
        ("get_info", name),
    ] {
        let _ = both.call("rbd_header.1", "lock", method, &input).await;
    }
}

#[test]
fn a_directory_answers_as_an_osd_does() {
    let lab = start();
    let folder = tempfile::tempdir().unwrap();
    let dir = DirStore::open(folder.path(), true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let test = async {
        let mut both = Both { pool: pool(&lab).await, dir, calls: 0 };
        header(&mut both).await;
        directory(&mut both).await;
        map_and_data(&mut both).await;
        locks(&mut both).await;
        assert!(both.calls > 140, "{}", both.calls);
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await }).unwrap();
}
