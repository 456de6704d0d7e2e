//! What operations do and refuse, on a real directory.

use crate::dir::DirStore;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{
    Answer, Mutation, NOSNAP, ObjectName, ObjectStore, Op, Query, Request, SnapContext, StoreWatch,
    WatchEvent,
};
use bytes::Bytes;
use rustix::io::Errno;
use std::time::Duration;
use tempfile::TempDir;

fn store() -> (TempDir, DirStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::open(directory.path(), true).unwrap();
    (directory, store)
}

fn name(text: &str) -> ObjectName {
    text.into()
}

fn write(store: &DirStore, object: &str, ops: Vec<Op>) -> Result<Vec<Answer>> {
    store.operate_blocking(&name(object), &Request::write(ops))
}

fn write_with(store: &DirStore, object: &str, snaps: &[u64], ops: Vec<Op>) -> Result<Vec<Answer>> {
    let context =
        SnapContext { seq: snaps.first().copied().unwrap_or_default(), snaps: snaps.to_vec() };
    store.operate_blocking(&name(object), &Request::Write { context, ops })
}

fn read_at(store: &DirStore, object: &str, snap: u64) -> Result<Bytes> {
    let request = Request::Read { snap, ops: vec![Op::read(0, 0)] };
    Ok(store.operate_blocking(&name(object), &request)?.remove(0).into_data())
}

fn read(store: &DirStore, object: &str) -> Result<Bytes> {
    read_at(store, object, NOSNAP)
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno().unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(60);
    runtime.block_on(async { tokio::time::timeout(limit, test).await }).unwrap()
}

#[test]
fn bytes_are_written_cut_zeroed_and_repeated() {
    let (_directory, store) = store();
    write(&store, "a", vec![Op::write(2, "abc")]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "\0\0abc");
    write(&store, "a", vec![Op::zero(3, 100)]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "\0\0a\0\0");
    write(&store, "a", vec![Op::truncate(3)]).unwrap();
    let same = Mutation::WriteSame { offset: 3, length: 4, data: "xy".into() };
    write(&store, "a", vec![same.into()]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "\0\0axyxy");
    let uneven = Mutation::WriteSame { offset: 0, length: 3, data: "xy".into() };
    assert_eq!(errno(write(&store, "a", vec![uneven.into()])), Errno::INVAL);
    write(&store, "a", vec![Op::write_full("new")]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "new");
    assert_eq!(errno(write(&store, "a", vec![Op::write(u64::MAX, "x")])), Errno::FBIG);
    // What is not there stays so.
    write(&store, "b", vec![Op::zero(0, 10)]).unwrap();
    write(&store, "b", vec![Op::truncate(10)]).unwrap();
    assert_eq!(errno(read(&store, "b")), Errno::NOENT);
    assert_eq!(errno(write(&store, "b", vec![Op::remove()])), Errno::NOENT);
    write(&store, "a", vec![Op::remove()]).unwrap();
    assert_eq!(errno(read(&store, "a")), Errno::NOENT);
}

#[test]
fn a_request_is_done_wholly_or_not_at_all() {
    let (directory, store) = store();
    let set =
        |value: &'static str| Op::from(Mutation::OmapSet([("k".into(), value.into())].into()));
    write(&store, "a", vec![Op::create(true), Op::write(0, "old"), set("1")]).unwrap();
    let failing = [
        vec![Op::write(0, "new"), set("2"), Op::create(true)],
        vec![set("2"), Op::write_full("new"), Op::exec("rbd", "set_size", "")],
        vec![Op::remove(), Op::assert_exists()],
        vec![Op::compare_extent(0, "odd".into()), Op::write(0, "new")],
    ];
    for ops in failing {
        write(&store, "a", ops.clone()).unwrap_err();
        assert_eq!(read(&store, "a").unwrap(), "old", "{ops:?}");
    }
    let get = Request::read(vec![Query::OmapGet(vec!["k".into()]).into()]);
    let Answer::Omap(page) = store.operate_blocking(&name("a"), &get).unwrap().remove(0) else {
        panic!("no keys");
    };
    assert_eq!(page.values[&b"k"[..]], "1");
    // Nor is a file left of what failed.
    drop(store);
    let files = walk(&directory.path().join("data"));
    assert_eq!(files, 1);
}

fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { walk(&path) } else { 1 })
        .sum()
}

#[test]
fn guards_compare_and_say_where_bytes_differ() {
    let (_directory, store) = store();
    write(&store, "a", vec![Op::write(0, "abcd")]).unwrap();
    write(&store, "a", vec![Op::compare_extent(2, Bytes::from_static(b"cd\0")), Op::write(0, "A")])
        .unwrap();
    assert_eq!(read(&store, "a").unwrap(), "Abcd");
    let error = write(&store, "a", vec![Op::compare_extent(1, "bxd".into()), Op::write(0, "B")]);
    assert!(matches!(error.unwrap_err().kind(), ErrorKind::Mismatch { at: 1 }));
    assert_eq!(
        errno(write(&store, "b", vec![Op::assert_exists(), Op::write(0, "x")])),
        Errno::NOENT
    );
    assert_eq!(errno(write(&store, "a", vec![Op::create(true)])), Errno::EXIST);
}

#[test]
fn a_snapshot_keeps_what_was_there() {
    let (directory, store) = store();
    let snapshot = || store.store.create_snapshot().unwrap();
    let first = snapshot();
    write_with(&store, "late", &[first], vec![Op::write(0, "late")]).unwrap();
    assert_eq!(errno(read_at(&store, "late", first)), Errno::NOENT);
    write(&store, "a", vec![Op::write(0, "one")]).unwrap();
    write(&store, "gone", vec![Op::write(0, "gone")]).unwrap();
    let second = snapshot();
    let snaps = [second, first];
    write_with(&store, "a", &snaps, vec![Op::write(0, "t")]).unwrap();
    write_with(&store, "a", &snaps, vec![Op::write(1, "w")]).unwrap();
    write_with(&store, "gone", &snaps, vec![Op::remove()]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "twe");
    assert_eq!(
        (read_at(&store, "a", first).unwrap(), read_at(&store, "a", second).unwrap()),
        ("one".into(), "one".into())
    );
    assert_eq!(
        (errno(read(&store, "gone")), read_at(&store, "gone", second).unwrap()),
        (Errno::NOENT, "gone".into())
    );
    let request = Request::read(vec![Query::Snapshots.into()]);
    let Answer::Snapshots(clones) = store.operate_blocking(&name("a"), &request).unwrap().remove(0)
    else {
        panic!("no clones");
    };
    assert_eq!(clones.clones[0].snapshots, [first, second]);
    assert_eq!((clones.clones[1].id, clones.seq), (NOSNAP, second));
    write_with(&store, "a", &snaps, vec![Op::rollback(first)]).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "one");
    store.store.remove_snapshot(first).unwrap();
    assert_eq!(read_at(&store, "a", second).unwrap(), "one");
    store.store.remove_snapshot(second).unwrap();
    assert_eq!(errno(read_at(&store, "gone", second)), Errno::NOENT);
    // Of "a" and "late" there are the heads, and nothing else.
    drop(store);
    assert_eq!(walk(&directory.path().join("data")), 2);
}

#[test]
fn a_clone_that_has_its_file_with_the_head_is_not_written() {
    let (_directory, store) = store();
    write(&store, "a", vec![Op::write(0, "old")]).unwrap();
    let snapshot = store.store.create_snapshot().unwrap();
    // Makes the clone, and needs no other bytes.
    let set = Mutation::SetXattr("x".into(), "1".into());
    write_with(&store, "a", &[snapshot], vec![set.into()]).unwrap();
    write_with(&store, "a", &[snapshot], vec![Op::write(0, "new")]).unwrap();
    assert_eq!(read_at(&store, "a", snapshot).unwrap(), "old");
    store.store.remove_snapshot(snapshot).unwrap();
    assert_eq!(read(&store, "a").unwrap(), "new");
}

#[test]
fn methods_run_beside_objects() {
    let (_directory, store) = store();
    let mut input = blockyard_rados::encoding::Writer::new();
    input.string("10ab");
    let set = vec![Op::create(true), Op::exec("rbd", "set_id", input.as_slice().to_vec())];
    write(&store, "rbd_id.x", set).unwrap();
    let get = Request::read(vec![Op::exec("rbd", "get_id", "")]);
    let id = store.operate_blocking(&name("rbd_id.x"), &get).unwrap().remove(0).into_data();
    assert_eq!(id, &b"\x04\0\0\x0010ab"[..]);
    let writes = Request::read(vec![Op::exec("rbd", "set_id", "")]);
    assert_eq!(errno(store.operate_blocking(&name("rbd_id.x"), &writes)), Errno::INVAL);
    assert_eq!(errno(write(&store, "x", vec![Op::exec("rgw", "x", "")])), Errno::OPNOTSUPP);
}

#[test]
fn holes_are_left_out_of_sparse_reads() {
    let (_directory, store) = store();
    let far = 1 << 20;
    write(&store, "a", vec![Op::write(far, vec![7; 4096])]).unwrap();
    let request = Request::read(vec![Op::sparse_read(0, 4 << 20)]);
    let Answer::Extents(extents) = store.operate_blocking(&name("a"), &request).unwrap().remove(0)
    else {
        panic!("no extents");
    };
    let total: u64 = extents.ranges.iter().map(|range| range.1).sum();
    assert_eq!(total, extents.data.len() as u64);
    let (start, length) = *extents.ranges.last().unwrap();
    assert_eq!(start + length, far + 4096);
    assert!(extents.data.ends_with(&[7; 4096]));
}

#[test]
fn objects_are_listed_page_by_page_in_their_namespace() {
    let (_directory, store) = store();
    run(async {
        let other = store.in_pool(store.pool(), "other").await.unwrap();
        for number in 0..5 {
            let object = name(&format!("o{number}"));
            store.operate(&object, Request::write(vec![Op::create(true)])).await.unwrap();
        }
        other.operate(&name("x"), Request::write(vec![Op::create(true)])).await.unwrap();
        let (first, next) = store.list(None, 3).await.unwrap();
        let (second, end) = store.list(next.as_ref(), 3).await.unwrap();
        assert_eq!((first.len(), &second[..], end), (3, &[name("o3"), name("o4")][..], None));
        assert_eq!(other.list(None, 3).await.unwrap().0, [name("x")]);
        assert!(store.in_pool(7, "").await.err().unwrap().is_not_found());
    });
}

#[test]
fn who_watches_is_told_and_heard() {
    let (_directory, store) = store();
    run(async {
        assert!(store.watch(&name("a")).await.err().unwrap().is_not_found());
        store.operate(&name("a"), Request::write(vec![Op::create(true)])).await.unwrap();
        let mut watch = store.watch(&name("a")).await.unwrap();
        let deaf = store.watch(&name("a")).await.unwrap();
        let watchers = Request::read(vec![Query::Watchers.into()]);
        let Answer::Watchers(known) = store.operate(&name("a"), watchers).await.unwrap().remove(0)
        else {
            panic!("no watchers");
        };
        assert_eq!(known.len(), 2);
        let object = name("a");
        let told = store.notify(&object, "news".into(), Duration::from_millis(200));
        let heard = async {
            let Some(WatchEvent::Notified { notify_id, payload, .. }) = watch.next().await else {
                panic!("nothing was told");
            };
            assert_eq!(payload, "news");
            watch.acknowledge(notify_id, "yes".into()).await.unwrap();
        };
        let (answers, ()) = tokio::join!(told, heard);
        let answers = answers.unwrap();
        assert_eq!(
            (answers.answered[0].0.1, &answers.answered[0].1[..]),
            (watch.cookie(), &b"yes"[..])
        );
        assert_eq!(answers.silent.iter().map(|who| who.1).collect::<Vec<_>>(), [deaf.cookie()]);
    });
}

#[test]
fn what_is_no_store_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let open = |create| DirStore::open(directory.path(), create).map(|_| ());
    let told = |result: std::result::Result<(), Error>| result.unwrap_err().to_string();
    assert!(told(open(false)).contains("no object store here"));
    std::fs::write(directory.path().join("objects.redb"), b"something else, and long enough")
        .unwrap();
    assert!(told(open(true)).contains("database"), "{}", told(open(true)));
}

#[test]
fn a_store_keeps_its_identity_and_a_newer_one_is_refused() {
    let (directory, store) = store();
    let id = store.id();
    drop(store);
    let store = DirStore::open(directory.path(), false).unwrap();
    assert_eq!(store.id(), id);
    store.store.set_format(b"blockyard object store 2").unwrap();
    drop(store);
    let error = DirStore::open(directory.path(), false).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[test]
fn a_database_that_is_cut_short_is_told_and_not_overwritten() {
    let (directory, store) = store();
    for number in 0..200 {
        write(&store, &format!("o{number}"), vec![Op::write_full("x")]).unwrap();
    }
    drop(store);
    let path = directory.path().join("objects.redb");
    let whole = std::fs::read(&path).unwrap();
    for length in [1, 300, 4096, 10_000, whole.len() / 2, whole.len() - 4096] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = DirStore::open(directory.path(), false).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("object store"), "{length}: {error}");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), length as u64, "{length}");
    }
    std::fs::write(&path, whole).unwrap();
    let store = DirStore::open(directory.path(), false).unwrap();
    assert_eq!(read(&store, "o7").unwrap(), "x");
}
