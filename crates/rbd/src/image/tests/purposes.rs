//! Snapshots that nobody has made by name: of mirrors and groups, and those in the trash, which clones still need.

use super::{Store, open, run, store};
use crate::format::{Features, Layout, SnapshotNamespace, names};
use crate::image::{CreateOptions, Image, create, remove};
use crate::store::{Mutation, ObjectStore, Request};
use blockyard_rados::encoding::encoded;
use rustix::io::Errno;

const OBJECT: u64 = 4096;
const SIZE: u64 = 4 * OBJECT;
/// ceph: `cls_rbd_types.h`, `SNAPSHOT_NAMESPACE_TYPE_MIRROR`.
const MIRROR: u32 = 3;

async fn image(store: &Store) -> Image<Store> {
    let layout = Layout::new(12).unwrap();
    let options = CreateOptions { size: SIZE, layout, features: Features::DEFAULT };
    create(store, "a", &options).await.unwrap();
    let image = open(store, "a").await;
    image.write(0, vec![1; 4096].into()).await.unwrap();
    image
}

/// Makes a snapshot what a mirror has made.
async fn give_to_mirror(store: &Store, image: &mut Image<Store>, name: &str) {
    let mut record = image.snapshot_record(name).unwrap().clone();
    record.namespace = SnapshotNamespace::Other { kind: MIRROR, fields: "fields".into() };
    let key = names::snapshot_key(record.id);
    let set = Mutation::OmapSet([(key.into(), encoded(&record).into())].into());
    store.operate(&names::header(image.id()), Request::write(vec![set.into()])).await.unwrap();
    image.refresh().await.unwrap();
}

/// Without them a mirror has to copy all again, and a group is broken.
#[test]
fn a_name_is_that_of_a_snapshot_that_somebody_has_made() {
    run(async {
        let store = store();
        let mut image = image(&store).await;
        image.create_snapshot("s").await.unwrap();
        give_to_mirror(&store, &mut image, "s").await;
        for refused in [
            image.remove_snapshot("s").await,
            image.rollback("s").await,
            image.protect_snapshot("s").await,
            image.rename_snapshot("s", "t").await,
            image.clone_snapshot("s", &store, "c").await,
            Image::open_snapshot(&store, "a", "s").await.map(drop),
        ] {
            assert_eq!(refused.unwrap_err().errno(), Some(Errno::NOENT));
        }
        assert_eq!(image.snapshots().count(), 0);
        // The same name is another snapshot's.
        image.write(0, vec![2; 4096].into()).await.unwrap();
        image.create_snapshot("s").await.unwrap();
        let opened = Image::open_snapshot(&store, "a", "s").await.unwrap();
        assert_eq!(opened.read(0, 1).await.unwrap(), [2]);
        image.remove_snapshot("s").await.unwrap();
        let left: Vec<_> = image.snapshot_records().iter().map(|it| it.namespace.kind()).collect();
        assert_eq!(left, [MIRROR]);
        let refused = remove(&store, "a").await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::NOTEMPTY));
    });
}
