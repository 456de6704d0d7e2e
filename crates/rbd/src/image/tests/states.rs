//! What maps say of objects, as `rbd object-map check` has it.

use super::{Store, open, run, store};
use crate::format::{Features, Layout, ObjectExtent, ObjectMap, ObjectState, names};
use crate::image::{CreateOptions, Image, ask, create};
use crate::store::{Answer, NOSNAP, ObjectStore, Query, Request};

const OBJECT: u64 = 1 << 16;
const SIZE: u64 = 6 * OBJECT;

/// What the store tells of an object in a snapshot, or now (ceph: `src/librbd/operation/ObjectMapIterate.cc`).
async fn state(image: &Image<Store>, object: u64, at: u64) -> ObjectState {
    let snapshot_from = |least: u64| {
        let ids = image.snapshots().map(|(id, _, _)| id);
        ids.filter(|id| *id >= least).min().unwrap_or(NOSNAP)
    };
    let request = Request::read(vec![Query::Snapshots.into()]);
    let answers = image.data.operate(&image.data_object(object), request).await;
    let Ok([Answer::Snapshots(known)]) = answers.as_deref() else {
        return ObjectState::Nonexistent;
    };
    for clone in &known.clones {
        let (first, last) = match clone.id {
            NOSNAP => (snapshot_from(known.seq + 1), NOSNAP),
            id => (snapshot_from(clone.snapshots[0]), id),
        };
        if last < at {
            continue;
        }
        return match first {
            _ if at < first => break,
            _ if first == at => ObjectState::Exists,
            _ => ObjectState::ExistsClean,
        };
    }
    ObjectState::Nonexistent
}

/// The maps of an image and its snapshots say what is there. What is not there they may say to be there.
pub(super) async fn check_states(store: &Store, name: &str, log: &str) {
    let image = open(store, name).await;
    if !image.features().contains(Features::FAST_DIFF) {
        return;
    }
    let views = image.snapshots().map(|(id, _, size)| (id, size));
    for (at, size) in views.chain([(NOSNAP, image.size())]) {
        let of_view = names::object_map(image.id(), Some(at).filter(|at| *at != NOSNAP));
        let map = ask(store, &of_view, "object_map_load", |_| {}).await.unwrap();
        let map = ObjectMap::parse(&map).unwrap();
        for object in 0..image.layout().objects(size) {
            let said = map.state(object).unwrap();
            let is = state(&image, object, at).await;
            let says_there = matches!(said, ObjectState::Exists | ObjectState::ExistsClean);
            assert!(
                said == is || says_there && is == ObjectState::Nonexistent,
                "{name} at {at:#x}, object {object}: {said:?}, and it is {is:?}; after\n{log}"
            );
        }
    }
}

async fn made(store: &Store, name: &str, layout: Layout) -> Image<Store> {
    let options = CreateOptions { size: SIZE, layout, features: Features::DEFAULT };
    create(store, name, &options).await.unwrap();
    open(store, name).await
}

/// An image of two objects at its begin, the second of which has bytes in its first half only, and a clone of it.
async fn made_and_cloned(store: &Store) -> Image<Store> {
    let mut parent = made(store, "a", Layout::new(16).unwrap()).await;
    let length = usize::try_from(OBJECT * 3 / 2).unwrap();
    parent.write(0, vec![1; length].into()).await.unwrap();
    parent.create_snapshot("s").await.unwrap();
    parent.clone_snapshot("s", store, "c").await.unwrap();
    open(store, "c").await
}

#[test]
fn zeroes_where_an_object_has_nothing_do_not_change_it() {
    run(async {
        let layouts = [Layout::new(16).unwrap(), Layout::striped(16, OBJECT / 4, 3).unwrap()];
        for layout in layouts {
            let store = store();
            let mut image = made(&store, "a", layout).await;
            image.write(0, vec![1; 4096].into()).await.unwrap();
            image.create_snapshot("s").await.unwrap();
            for range in [8192..12288, OBJECT / 2..OBJECT] {
                let (offset, length) = (range.start, range.end - range.start);
                let extent = ObjectExtent { object: 0, offset, length, image_offset: offset };
                image.zero_extent(&extent).await.unwrap();
                assert_eq!(image.map_state(0), Some(ObjectState::ExistsClean));
                check_states(&store, "a", "zeroes behind the end").await;
            }
            image.zero(2048, 8192).await.unwrap();
            assert_eq!(image.map_state(0), Some(ObjectState::Exists));
            check_states(&store, "a", "zeroes over the end").await;
        }
    });
}

#[test]
fn zeroes_where_the_parent_has_none_copy_nothing() {
    run(async {
        let store = store();
        let mut clone = made_and_cloned(&store).await;
        clone.create_snapshot("t").await.unwrap();
        // Behind what the parent has of an object, and of one of which it has nothing.
        clone.zero(OBJECT * 3 / 2, OBJECT / 2).await.unwrap();
        clone.zero(3 * OBJECT, OBJECT).await.unwrap();
        for object in [1, 3] {
            assert_eq!(clone.map_state(object), Some(ObjectState::Nonexistent));
            assert_eq!(clone.object_size(object).await.unwrap(), None);
        }
        check_states(&store, "c", "zeroes over zeroes").await;
        clone.zero(OBJECT, 512).await.unwrap();
        assert_eq!(clone.map_state(1), Some(ObjectState::Exists));
        check_states(&store, "c", "zeroes over bytes").await;
        let size = usize::try_from(OBJECT / 2).unwrap();
        let found = clone.read(OBJECT, OBJECT / 2).await.unwrap();
        assert!(found[..512].iter().all(|byte| *byte == 0) && found[512..size] == [1; 32256]);
    });
}

#[test]
fn a_flatten_keeps_what_maps_say_of_changes() {
    run(async {
        let store = store();
        let mut clone = made_and_cloned(&store).await;
        clone.create_snapshot("t").await.unwrap();
        clone.write(0, vec![2; 4096].into()).await.unwrap();
        clone.create_snapshot("u").await.unwrap();
        check_states(&store, "c", "a write").await;
        clone.flatten().await.unwrap();
        // The first object changed between the snapshots; the second one was copied below both.
        check_states(&store, "c", "a flatten").await;
        let clean = Some(ObjectState::ExistsClean);
        assert_eq!((clone.map_state(0), clone.map_state(1)), (clean, clean));
    });
}
