//! A pool that is full is emptied: what removes and what only notes does not wait for space.

use crate::{client, lab, run};
use blockyard_lab::ceph::eventually;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::CreateOptions;
use blockyard_rbd::image::{create, list, trash};
use blockyard_rbd::live::{LiveImage, Options, remove, remove_from_trash};
use blockyard_rbd::store::rados::RadosStore;
use std::sync::Arc;

const SMALL: &str = "small";
const SIZE: u64 = 4 << 20;

#[test]
fn what_is_in_a_full_pool_can_be_removed() {
    let lab = lab();
    lab.create_pool(SMALL, 8).unwrap();
    run(async {
        let client = client(&lab).await;
        let store = RadosStore::open(&client, SMALL, "").await.unwrap();
        let layout = Layout::new(20).unwrap();
        let options = CreateOptions { size: SIZE, layout, features: Features::DEFAULT };
        for name in ["a", "b", "other"] {
            create(&store, name, &options).await.unwrap();
        }
        let live = LiveImage::open(&store, "a", Options::default()).await.unwrap();
        live.write(0, vec![1; 4 << 20].into()).await.unwrap();
        live.create_snapshot("s").await.unwrap();
        live.write(0, vec![2; 1 << 20].into()).await.unwrap();
        live.image().await.unwrap().clone_snapshot("s", &store, "c").await.unwrap();
        // The trash is there.
        let id = trash::put(&store, "other", Default::default(), Default::default()).await.unwrap();
        lab.ceph(&["osd", "pool", "set-quota", SMALL, "max_objects", "1"]).unwrap();
        eventually("a full pool", || {
            let pools = lab.ceph_json(&["osd", "pool", "ls", "detail"])?;
            let pools = pools.as_array().into_iter().flatten();
            let mut small = pools.filter(|pool| pool["pool_name"] == SMALL);
            let is_full = small.any(|pool| pool["flags_names"].to_string().contains("full_quota"));
            Ok(is_full.then_some(()))
        })
        .unwrap();
        store.cluster().newest_map().await.unwrap();
        live.create_snapshot("in a full pool").await.unwrap();
        // It waits for space, and stops nobody else.
        let live = Arc::new(live);
        let writer = Arc::clone(&live);
        let mut waits =
            tokio::spawn(async move { writer.write(2 << 20, vec![3; 4096].into()).await });
        let a_while = std::time::Duration::from_secs(1);
        assert!(tokio::time::timeout(a_while, &mut waits).await.is_err(), "there is no space");
        assert_eq!(live.read(0, 4096).await.unwrap(), [2; 4096]);
        live.remove_snapshot("in a full pool").await.unwrap();
        remove_from_trash(&store, &id).await.unwrap();
        // The clone needs it, and takes it along.
        live.remove_snapshot("s").await.unwrap();
        remove(&store, "c").await.unwrap();
        // What was removed is space for it, as soon as OSDs have told the monitors.
        lab.ceph(&["osd", "pool", "set-quota", SMALL, "max_objects", "0"]).unwrap();
        waits.await.unwrap().unwrap();
        live.resize(SIZE / 2, true).await.unwrap();
        assert!(live.image().await.unwrap().snapshot_records().is_empty());
        live.close().await.unwrap();
        remove(&store, "a").await.unwrap();
        let id = trash::put(&store, "b", Default::default(), Default::default()).await.unwrap();
        remove_from_trash(&store, &id).await.unwrap();
        assert!(list(&store).await.unwrap().is_empty());
    });
}
