//! What images do and refuse.

use super::{Store, open, run, store};
use crate::error::Error;
use crate::format::{Features, Layout, names};
use crate::image::{CreateOptions, Image, create, list, remove};
use crate::store::{Mutation, ObjectStore, Request};
use rustix::io::Errno;

const MIB: u64 = 1 << 20;

fn options(features: Features) -> CreateOptions {
    CreateOptions { size: 10 * MIB, layout: Layout::new(20).unwrap(), features }
}

async fn set_keys(store: &Store, id: &str, pairs: &[(&'static str, Vec<u8>)]) {
    let pairs = pairs.iter().map(|(key, value)| ((*key).into(), value.clone().into())).collect();
    let request = Request::write(vec![Mutation::OmapSet(pairs).into()]);
    store.operate(&names::header(id), request).await.unwrap();
}

#[test]
fn images_are_created_listed_and_removed_and_leave_nothing() {
    run(async {
        let store = store();
        create(&store, "b", &options(Features::DEFAULT)).await.unwrap();
        create(&store, "a", &options(Features::LAYERING)).await.unwrap();
        let again = create(&store, "a", &options(Features::DEFAULT)).await.unwrap_err();
        assert_eq!(again.errno(), Some(Errno::EXIST));
        let names: Vec<_> = list(&store).await.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        let mut image = open(&store, "b").await;
        image.write(3 * MIB - 3, "across".into()).await.unwrap();
        image.create_snapshot("s").await.unwrap();
        let refused = remove(&store, "b").await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::NOTEMPTY));
        image.remove_snapshot("s").await.unwrap();
        remove(&store, "b").await.unwrap();
        remove(&store, "a").await.unwrap();
        let (left, _) = store.list(None, 100).await.unwrap();
        assert_eq!(left, [names::DIRECTORY]);
        let gone = Image::open(&store, "b").await.err().unwrap();
        assert!(gone.is_not_found() && gone.to_string().contains("\"b\""), "{gone}");
    });
}

#[test]
fn features_that_are_not_known_are_refused_by_name() {
    run(async {
        let store = store();
        create(&store, "a", &options(Features::DEFAULT)).await.unwrap();
        let id = Image::<Store>::id_by_name(&store, "a").await.unwrap();
        let features =
            Features::DEFAULT | Features::JOURNALING | Features::from_bits_retain(1 << 33);
        set_keys(&store, &id, &[("features", features.bits().to_le_bytes().to_vec())]).await;
        let error = Image::open(&store, "a").await.err().unwrap().to_string();
        assert!(error.contains("journaling, bit 33"), "{error}");
        let bad = create(&store, "c", &options(Features::MIGRATING)).await.unwrap_err();
        assert!(bad.to_string().contains("migrating"));
        let alone = create(&store, "c", &options(Features::FAST_DIFF)).await.unwrap_err();
        assert!(alone.to_string().contains("needs object-map"));
    });
}

#[test]
fn a_damaged_map_is_not_believed() {
    run(async {
        let store = store();
        create(&store, "a", &options(Features::DEFAULT)).await.unwrap();
        let image = open(&store, "a").await;
        image.write(0, "data".into()).await.unwrap();
        let map = names::object_map(image.id(), None);
        let garbage = Request::write(vec![Mutation::WriteFull("garbage".into()).into()]);
        store.operate(&map, garbage).await.unwrap();
        let image = open(&store, "a").await;
        assert_eq!(image.read(0, 4).await.unwrap(), b"data");
        assert_eq!(image.header.flags.bits(), 3);
    });
}

#[test]
fn parents_that_go_round_are_refused() {
    run(async {
        let store = store();
        create(&store, "a", &options(Features::DEFAULT)).await.unwrap();
        let mut image = open(&store, "a").await;
        image.create_snapshot("s").await.unwrap();
        image.clone_snapshot("s", &store, "b").await.unwrap();
        let snapshot = image.snapshots().next().unwrap().0;
        // The parent's parent is the parent itself.
        let spec = crate::format::ParentSpec {
            pool: store.pool(),
            namespace: String::new(),
            image: image.id().to_owned(),
            snapshot,
        };
        let parent = crate::format::Parent { spec, overlap: Some(MIB) };
        let mut of_snapshot = image.header.snapshots[0].clone();
        of_snapshot.parent_overlap = Some(MIB);
        let key = "snapshot_0000000000000001";
        assert_eq!(names::snapshot_key(snapshot), key);
        let encode = blockyard_rados::encoding::encoded;
        set_keys(&store, image.id(), &[("parent", encode(&parent))]).await;
        set_keys(&store, image.id(), &[(key, blockyard_rados::encoding::encoded(&of_snapshot))])
            .await;
        let error: Error = Image::open(&store, "b").await.err().unwrap();
        assert!(error.to_string().contains("a loop of parents"), "{error}");
    });
}

#[test]
fn a_snapshot_is_read_and_not_written() {
    run(async {
        let store = store();
        create(&store, "a", &options(Features::DEFAULT)).await.unwrap();
        let mut image = open(&store, "a").await;
        image.write(5, "old".into()).await.unwrap();
        image.create_snapshot("s").await.unwrap();
        image.write(5, "new".into()).await.unwrap();
        let then = Image::open_snapshot(&store, "a", "s").await.unwrap();
        assert_eq!(then.read(5, 3).await.unwrap(), b"old");
        assert_eq!(then.write(5, "x".into()).await.unwrap_err().errno(), Some(Errno::ROFS));
        assert!(Image::open_snapshot(&store, "a", "t").await.err().unwrap().is_not_found());
        assert_eq!(image.read(10 * MIB, 1).await.unwrap_err().errno(), Some(Errno::INVAL));
        image.clone_snapshot("s", &store, "c").await.unwrap();
        assert_eq!(image.refresh().await.ok(), Some(()));
        // The clone still needs it.
        image.remove_snapshot("s").await.unwrap();
        assert!(image.remove_snapshot("s").await.unwrap_err().is_not_found());
        let trashed = image.snapshot_records()[0].name.clone();
        let refused = image.remove_trashed_snapshot_beside(&trashed).await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::BUSY));
        let mut clone = open(&store, "c").await;
        assert_eq!(clone.read(5, 3).await.unwrap(), b"old");
        clone.flatten().await.unwrap();
        image.remove_trashed_snapshot_beside(&trashed).await.unwrap();
        image.refresh().await.unwrap();
        assert!(image.snapshot_records().is_empty());
        assert_eq!(clone.read(5, 3).await.unwrap(), b"old");
    });
}
