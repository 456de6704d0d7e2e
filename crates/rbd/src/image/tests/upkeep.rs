//! Names, notes, the trash, namespaces, protection, maps that are made anew, zeroes that are given back.

use super::{Store, open, run, store};
use crate::format::{Features, ImageFlags, Layout, ObjectMap, ObjectState, names};
use crate::image::{
    CreateOptions, Image, MapState, create, find, list, name_of, namespace, remove, rename, trash,
};
use crate::store::{Mutation, ObjectStore, Op, Request};
use blockyard_rados::encoding::{Utime, encoded};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;

async fn made(store: &Store, name: &str) {
    let layout = Layout::new(20).unwrap();
    let options = CreateOptions { size: 10 * MIB, layout, features: Features::DEFAULT };
    create(store, name, &options).await.unwrap();
}

async fn names_of(store: &Store) -> Vec<String> {
    list(store).await.unwrap().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn an_image_gets_another_name_and_keeps_all_else() {
    run(async {
        let store = store();
        made(&store, "a").await;
        made(&store, "c").await;
        let (id, _) = find(&store, "a", None).await.unwrap();
        let taken = rename(&store, "a", "c").await.unwrap_err();
        assert_eq!(taken.errno(), Some(Errno::EXIST));
        assert!(rename(&store, "nobody", "x").await.unwrap_err().is_not_found());
        assert!(rename(&store, "a", "x/y").await.is_err());
        rename(&store, "a", "b").await.unwrap();
        assert_eq!(names_of(&store).await, ["b", "c"]);
        assert_eq!(find(&store, "b", None).await.unwrap(), (id.clone(), None));
        assert!(find(&store, "a", None).await.unwrap_err().is_not_found());
        assert_eq!(name_of(&store, &id).await.unwrap(), ("b".to_owned(), false));
        remove(&store, "b").await.unwrap();
        remove(&store, "c").await.unwrap();
    });
}

#[test]
fn an_image_in_the_trash_is_had_back_or_is_gone() {
    run(async {
        let store = store();
        made(&store, "a").await;
        open(&store, "a").await.write(5, "kept".into()).await.unwrap();
        let until = Utime { seconds: 9, nanoseconds: 0 };
        let id = trash::put(&store, "a", Utime::default(), until).await.unwrap();
        assert!(names_of(&store).await.is_empty());
        assert!(Image::open(&store, "a").await.err().unwrap().is_not_found());
        let entries = trash::list(&store).await.unwrap();
        assert_eq!((entries[0].0.as_str(), entries[0].1.name.as_str()), (id.as_str(), "a"));
        assert_eq!((entries[0].1.kept_until, entries[0].1.state), (until, 0));
        assert_eq!(name_of(&store, &id).await.unwrap(), ("a".to_owned(), true));
        made(&store, "a").await;
        let taken = trash::restore(&store, &id, None).await.unwrap_err();
        assert_eq!(taken.errno(), Some(Errno::EXIST));
        assert_eq!(trash::restore(&store, &id, Some("b")).await.unwrap(), "b");
        let image = Image::open(&store, "b").await.unwrap();
        assert_eq!(image.read(5, 4).await.unwrap(), b"kept");
        assert!(trash::list(&store).await.unwrap().is_empty());
        let id = trash::put(&store, "b", Utime::default(), until).await.unwrap();
        trash::remove(&store, &id).await.unwrap();
        assert!(trash::remove(&store, &id).await.unwrap_err().is_not_found());
        remove(&store, "a").await.unwrap();
        let (left, _) = store.list(None, 100).await.unwrap();
        assert_eq!(left, [names::DIRECTORY, names::TRASH]);
    });
}

#[test]
fn namespaces_have_images_of_their_own() {
    run(async {
        let store = store();
        namespace::create(&store, "n").await.unwrap();
        let again = namespace::create(&store, "n").await.unwrap_err();
        assert_eq!(again.errno(), Some(Errno::EXIST));
        assert!(namespace::create(&store, "").await.is_err());
        assert_eq!(namespace::list(&store).await.unwrap(), ["n"]);
        let inside = store.in_pool(store.pool(), "n").await.unwrap();
        made(&inside, "a").await;
        assert!(names_of(&store).await.is_empty());
        let used = namespace::remove(&store, "n").await.unwrap_err();
        assert_eq!(used.errno(), Some(Errno::BUSY));
        remove(&inside, "a").await.unwrap();
        namespace::remove(&store, "n").await.unwrap();
        assert!(namespace::remove(&store, "n").await.unwrap_err().is_not_found());
    });
}

#[test]
fn notes_are_kept_page_by_page() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let image = Image::open(&store, "a").await.unwrap();
        for number in 0..150 {
            image.set_metadata(&format!("k{number:03}"), "v").await.unwrap();
        }
        assert_eq!(image.metadata().await.unwrap().len(), 150);
        assert_eq!(image.metadata_value("k149").await.unwrap(), "v");
        image.remove_metadata("k149").await.unwrap();
        assert!(image.remove_metadata("k149").await.unwrap_err().is_not_found());
        assert_eq!(image.set_metadata("", "v").await.unwrap_err().errno(), Some(Errno::INVAL));
    });
}

#[test]
fn snapshots_are_protected_renamed_and_limited() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let mut image = open(&store, "a").await;
        image.create_snapshot("s").await.unwrap();
        image.protect_snapshot("s").await.unwrap();
        let errno = |done: crate::error::Result<()>| done.unwrap_err().errno();
        assert_eq!(errno(image.protect_snapshot("s").await), Some(Errno::BUSY));
        assert_eq!(errno(image.remove_snapshot("s").await), Some(Errno::BUSY));
        image.rename_snapshot("s", "t").await.unwrap();
        assert_eq!(errno(image.unprotect_snapshot("s").await), Some(Errno::NOENT));
        image.unprotect_snapshot("t").await.unwrap();
        assert_eq!(errno(image.unprotect_snapshot("t").await), Some(Errno::INVAL));
        image.set_snapshot_limit(Some(1)).await.unwrap();
        assert_eq!(image.snapshot_limit().await.unwrap(), Some(1));
        assert_eq!(errno(image.create_snapshot("u").await), Some(Errno::DQUOT));
        image.set_snapshot_limit(None).await.unwrap();
        image.create_snapshot("u").await.unwrap();
        image.remove_snapshot("t").await.unwrap();
    });
}

/// Who unprotects it looks for clones of what it was when he began.
#[test]
fn a_snapshot_that_is_protected_while_it_is_unprotected_stays_protected() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let mut image = open(&store, "a").await;
        let mut other = open(&store, "a").await;
        image.create_snapshot("s").await.unwrap();
        image.protect_snapshot("s").await.unwrap();
        for children in [Ok(Vec::new()), Err(Errno::TIMEDOUT.into())] {
            let id = image.begin_unprotecting("s").await.unwrap();
            other.refresh().await.unwrap();
            other.protect_snapshot("s").await.unwrap();
            let ended = image.end_unprotecting(id, children).await;
            assert_eq!(ended.unwrap_err().errno(), Some(Errno::BUSY));
            other.refresh().await.unwrap();
            assert_eq!(other.remove_snapshot("s").await.unwrap_err().errno(), Some(Errno::BUSY));
        }
        image.unprotect_snapshot("s").await.unwrap();
        image.protect_snapshot("s").await.unwrap();
        let id = image.begin_unprotecting("s").await.unwrap();
        other.refresh().await.unwrap();
        other.unprotect_snapshot("s").await.unwrap();
        other.remove_snapshot("s").await.unwrap();
        let ended = image.end_unprotecting(id, Ok(Vec::new())).await;
        assert!(ended.unwrap_err().is_not_found());
    });
}

#[test]
fn a_map_that_lies_is_found_and_made_anew() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let mut image = open(&store, "a").await;
        image.write(3 * MIB, "data".into()).await.unwrap();
        image.create_snapshot("s").await.unwrap();
        assert_eq!(image.check_map(|_, _| {}).await.unwrap(), MapState::Right);
        let map = names::object_map(image.id(), None);
        let empty = encoded(&ObjectMap::new(10).unwrap());
        let lie = Request::write(vec![Op::write_full(empty)]);
        store.operate(&map, lie).await.unwrap();
        assert_eq!(image.check_map(|_, _| {}).await.unwrap(), MapState::Misses(3));
        let mut image = open(&store, "a").await;
        image.rebuild_map(|_, _| {}).await.unwrap();
        assert_eq!(image.check_map(|_, _| {}).await.unwrap(), MapState::Right);
        assert_eq!(image.read(3 * MIB, 4).await.unwrap(), b"data");
        let gone = Request::write(vec![Mutation::Remove.into()]);
        store.operate(&map, gone).await.unwrap();
        let mut image = open(&store, "a").await;
        assert_eq!(image.flags(), ImageFlags::all() & ImageFlags::from_bits_retain(3));
        assert_eq!(image.check_map(|_, _| {}).await.unwrap(), MapState::Invalid);
        image.rebuild_map(|_, _| {}).await.unwrap();
        assert!(image.flags().is_empty());
        let snapshot = Image::open_snapshot(&store, "a", "s").await.unwrap();
        assert_eq!(snapshot.check_map(|_, _| {}).await.unwrap(), MapState::Right);
    });
}

#[test]
fn zeroes_are_given_back_and_data_stays() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let mut image = open(&store, "a").await;
        let zeroes = vec![0; usize::try_from(2 * MIB).unwrap()];
        image.write(0, zeroes.into()).await.unwrap();
        image.write(MIB + 65536, "data".into()).await.unwrap();
        assert_eq!(image.used_bytes(None, false).await.unwrap(), 2 * MIB);
        assert!(image.sparsify(4097, |_, _| {}).await.is_err());
        assert_eq!(image.sparsify(65536, |_, _| {}).await.unwrap(), 2 * MIB - 65536);
        assert_eq!(image.used_bytes(None, false).await.unwrap(), MIB);
        let mut expected = vec![0; 65540];
        expected[65536..].copy_from_slice(b"data");
        assert_eq!(image.read(MIB, 65540).await.unwrap(), expected);
        assert_eq!(image.read(0, 4096).await.unwrap(), vec![0; 4096]);
    });
}

#[test]
fn a_map_is_right_that_gets_to_know_of_an_object_while_it_is_checked() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let image = Image::open(&store, "a").await.unwrap();
        let (map, mut known) = (names::object_map(image.id(), None), ObjectMap::new(10).unwrap());
        known.set(3, ObjectState::Exists);
        let note = Request::write(vec![Op::write_full(encoded(&known))]);
        let data = image.data_object(3);
        // Its owner notes an object, and makes it, after the map was read.
        let writes = |object, _| {
            if object == 3 {
                store.operate_blocking(&map, &note).unwrap();
                let write = Request::write(vec![Op::write_full("data".to_owned().into_bytes())]);
                store.operate_blocking(&data, &write).unwrap();
            }
        };
        assert_eq!(image.check_map(writes).await.unwrap(), MapState::Right);
        // One that stays unknown is missed.
        let empty = Request::write(vec![Op::write_full(encoded(&ObjectMap::new(10).unwrap()))]);
        store.operate(&map, empty).await.unwrap();
        assert_eq!(image.check_map(|_, _| {}).await.unwrap(), MapState::Misses(3));
    });
}

#[test]
fn an_open_image_that_gets_features_which_are_not_known_is_not_used_any_more() {
    run(async {
        let store = store();
        made(&store, "a").await;
        let mut image = open(&store, "a").await;
        image.create_snapshot("s").await.unwrap();
        let mut snapshot = Image::open_snapshot(&store, "a", "s").await.unwrap();
        let header = names::header(image.id());
        let set = |features: Features| {
            let value = features.bits().to_le_bytes().to_vec().into();
            let keys = [("features".into(), value)].into();
            Request::write(vec![Mutation::OmapSet(keys).into()])
        };
        let is_refused = |done: crate::error::Result<()>| {
            matches!(done.unwrap_err().kind(), crate::error::ErrorKind::Features { .. })
        };
        store.operate(&header, set(Features::DEFAULT | Features::JOURNALING)).await.unwrap();
        assert!(is_refused(image.refresh().await));
        assert!(is_refused(image.own().await));
        // It can be read as it was.
        snapshot.refresh().await.unwrap();
        let unknown = Features::from_bits_retain(1 << 60);
        store.operate(&header, set(Features::DEFAULT | unknown)).await.unwrap();
        assert!(is_refused(snapshot.refresh().await));
    });
}
