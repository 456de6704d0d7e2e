//! Images, snapshots and clones of either side are used by the other one.

use crate::tools::{check_map, diff, export, import, json, rbd};
use crate::{DATA, NAMESPACE, POOL, lab, run, store};
use blockyard_lab::ceph::Cluster as Lab;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, Image, create_with_data, list, remove};
use blockyard_rbd::live::{LiveImage, Options};
use blockyard_rbd::store::rados::{Client, RadosStore};
use blockyard_rbd::store::{ObjectStore, Op, Request};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;

const ORDER: u8 = 16;
const OBJECT: u64 = 1 << ORDER;
const SIZE: u64 = 24 * OBJECT + 4096;

/// An image and what it should be.
struct Ours {
    image: Image<RadosStore>,
    bytes: Vec<u8>,
}

fn index(offset: u64) -> usize {
    offset.try_into().unwrap()
}

impl Ours {
    async fn open(store: &RadosStore, name: &str, bytes: Vec<u8>) -> Self {
        let mut image = Image::open(store, name).await.unwrap();
        image.own().await.unwrap();
        Self { image, bytes }
    }

    async fn write(&mut self, offset: u64, length: u64, byte: u8) {
        let data = Bytes::from(vec![byte; index(length)]);
        self.image.write(offset, data).await.unwrap();
        self.bytes[index(offset)..index(offset + length)].fill(byte);
    }

    async fn zero(&mut self, offset: u64, length: u64) {
        self.image.zero(offset, length).await.unwrap();
        self.bytes[index(offset)..index(offset + length)].fill(0);
    }

    /// Some writes and zeroes, of which one is a whole object.
    async fn change(&mut self, rng: &mut StdRng) {
        // Of a clone's parent that is all zeroes there.
        self.zero(OBJECT, 512).await;
        for _ in 0..12 {
            let offset = rng.random_range(0..SIZE - 1);
            let length = rng.random_range(1..=(SIZE - offset).min(2 * OBJECT));
            let byte = rng.random_range(1..=255);
            match rng.random_range(0..4) {
                0 => self.zero(offset, length).await,
                _ => self.write(offset, length, byte).await,
            }
        }
        self.zero(3 * OBJECT, OBJECT).await;
        self.write(5 * OBJECT, OBJECT, 7).await;
    }

    async fn check(&self) {
        let size = self.bytes.len() as u64;
        assert!(self.image.read(0, size).await.unwrap() == self.bytes);
    }
}

fn seed() -> u64 {
    let seed = std::env::var("BLOCKYARD_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    eprintln!("BLOCKYARD_SEED={seed}");
    seed
}

fn feature_sets() -> Vec<(&'static str, Features, Layout, bool)> {
    let plain = Layout::new(ORDER).unwrap();
    let striped = Layout::striped(ORDER, OBJECT / 4, 3).unwrap();
    let without_map = Features::LAYERING | Features::EXCLUSIVE_LOCK;
    vec![
        ("layering", Features::LAYERING, plain, false),
        ("lock", without_map, plain, false),
        ("map", without_map | Features::OBJECT_MAP, plain, false),
        ("striped", Features::DEFAULT, striped, false),
        ("default", Features::DEFAULT, plain, false),
        ("data", Features::DEFAULT, plain, true),
    ]
}

/// What Ceph's tools say of an image of ours.
fn check_ours(lab: &Lab, name: &str, ours: &Ours, then: &[u8]) {
    let info = json(lab, &["info", name]);
    assert_eq!(info["size"].as_u64(), Some(ours.bytes.len() as u64), "{info}");
    assert_eq!(info["order"].as_u64(), Some(ORDER.into()), "{info}");
    assert_eq!(info["id"], ours.image.id(), "{info}");
    assert!(export(lab, name) == ours.bytes, "{name}");
    assert!(export(lab, &format!("{name}@s")) == then, "{name}@s");
    if !ours.image.features().contains(Features::OBJECT_MAP) {
        return;
    }
    check_map(lab, name);
    check_map(lab, &format!("{name}@s"));
    if ours.image.features().contains(Features::FAST_DIFF) {
        let fast = diff(lab, name, Some("s"), true);
        let covers = |at: u64| {
            fast.iter().any(|(offset, length, _)| (*offset..offset + length).contains(&at))
        };
        for (at, (now, then)) in ours.bytes.iter().zip(then).enumerate() {
            assert!(now == then || covers(at as u64), "{name}: byte {at} has changed");
        }
        let usage = json(lab, &["du", name]);
        assert!(usage["images"][0]["used_size"].as_u64().unwrap() > 0, "{usage}");
    }
}

#[test]
fn images_of_ours_are_what_rbd_says() {
    let lab = lab();
    let mut rng = StdRng::seed_from_u64(seed());
    run(async {
        let store = store(&lab).await;
        let data = store.cluster().pool(DATA).await.unwrap().id();
        for (name, features, layout, has_data_pool) in feature_sets() {
            let options = CreateOptions { size: SIZE, layout, features };
            let data = has_data_pool.then_some(data);
            create_with_data(&store, data, name, &options).await.unwrap();
            let mut ours = Ours::open(&store, name, vec![0; index(SIZE)]).await;
            ours.change(&mut rng).await;
            ours.image.create_snapshot("s").await.unwrap();
            let then = ours.bytes.clone();
            ours.change(&mut rng).await;
            ours.check().await;
            check_ours(&lab, name, &ours, &then);

            // A clone, which is changed, and cut off.
            let clone_name = format!("{name}-clone");
            ours.image.clone_snapshot("s", &store, &clone_name).await.unwrap();
            let mut clone = Ours::open(&store, &clone_name, then.clone()).await;
            clone.change(&mut rng).await;
            clone.check().await;
            assert!(export(&lab, &clone_name) == clone.bytes, "{clone_name}");
            if name != "default" {
                continue;
            }
            let children = json(&lab, &["children", "default@s"]);
            assert_eq!(children[0]["image"], clone_name, "{children}");
            rbd(&lab, &["flatten", "--no-progress", &clone_name]);
            let clone = Ours::open(&store, &clone_name, clone.bytes).await;
            clone.check().await;
            assert_eq!(clone.image.overlap(), 0);
            check_map(&lab, &clone_name);
            ours.image.rollback("s").await.unwrap();
            assert!(export(&lab, name) == then, "rolled back");
            check_map(&lab, name);
            ours.image.remove_snapshot("s").await.unwrap();
            assert_eq!(json(&lab, &["snap", "ls", name]).as_array().map(Vec::len), Some(0));
        }
        removed_and_listed(&lab, &store).await;
    });
}

/// All images are listed by both, and of one that is removed nothing is left.
async fn removed_and_listed(lab: &Lab, store: &RadosStore) {
    let id = Image::open(store, "default-clone").await.unwrap().id().to_owned();
    remove(store, "default-clone").await.unwrap();
    let ls = json(lab, &["ls"]);
    let theirs: Vec<_> = ls.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let ours = list(store).await.unwrap();
    for (name, ..) in feature_sets() {
        assert!(theirs.contains(&name), "{theirs:?}");
        assert!(ours.iter().any(|(known, _)| known == name), "{ours:?}");
    }
    assert!(!theirs.contains(&"default-clone"));
    let (mut place, mut objects) = (None, Vec::new());
    loop {
        let (names, next) = store.list(place.as_ref(), 100).await.unwrap();
        objects.extend(names.iter().map(ToString::to_string));
        let Some(next) = next else { break };
        place = Some(next);
    }
    assert!(objects.iter().any(|name| name == "rbd_directory"));
    let left: Vec<_> = objects.iter().filter(|name| name.contains(&id)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn who_uses_the_same_cluster_as_the_same_user_has_one_client() {
    let lab = lab();
    run(async {
        let of = |more: &[&str]| {
            let conf = lab.conf().display().to_string();
            let words = ["--conf", &conf].into_iter().chain(more.iter().copied());
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let (arguments, other) = (of(&[]), of(&["--id", "admin"]));
        let (one, two, three) = tokio::join!(
            Client::shared(&arguments),
            Client::shared(&arguments),
            Client::shared(&other)
        );
        let (one, two, three) = (one.unwrap(), two.unwrap(), three.unwrap());
        assert!(Arc::ptr_eq(&one, &two) && !Arc::ptr_eq(&one, &three));
        let closed = one.cluster().closed();
        let store = RadosStore::open(&one, POOL, "").await.unwrap();
        drop((one, two));
        store.operate(&"shared".into(), Request::write(vec![Op::create(false)])).await.unwrap();
        drop(store);
        // Its connections and its thread end.
        closed.await;
        assert!(Client::shared(&of(&["--id", "nobody"])).await.is_err());
    });
}

#[test]
fn images_of_rbd_are_read_written_and_cloned() {
    let lab = lab();
    let mut rng = StdRng::seed_from_u64(seed());
    let mut bytes = vec![0; index(SIZE)];
    rng.fill(&mut bytes[index(2 * OBJECT)..index(9 * OBJECT)]);
    rng.fill(&mut bytes[index(20 * OBJECT)..]);
    let object_size = format!("{OBJECT}B");
    let common = ["--object-size", &object_size];
    let striped = ["--stripe-unit", "16384", "--stripe-count", "3"];
    run(async {
        let store = store(&lab).await;
        for (name, options) in [
            ("theirs", &["--image-feature", "layering"][..]),
            ("theirs-default", &[]),
            ("theirs-striped", &striped),
            ("theirs-data", &["--data-pool", DATA]),
        ] {
            import(&lab, &bytes, name, &[&common, options].concat());
            rbd(&lab, &["snap", "create", "--no-progress", &format!("{name}@s")]);
            let mut ours = Ours::open(&store, name, bytes.clone()).await;
            ours.check().await;
            ours.change(&mut rng).await;
            assert!(export(&lab, name) == ours.bytes, "{name}");
            let then = Image::open_snapshot(&store, name, "s").await.unwrap();
            assert!(then.read(0, SIZE).await.unwrap() == bytes, "{name}@s");
            if name != "theirs" {
                check_map(&lab, name);
            }
        }
        clones_of_theirs(&lab, &store, &bytes, &mut rng).await;
    });
}

/// Clones of both versions, the second in a namespace.
async fn clones_of_theirs(lab: &Lab, store: &RadosStore, bytes: &[u8], rng: &mut StdRng) {
    rbd(lab, &["snap", "protect", "theirs-default@s"]);
    let parent = "theirs-default@s";
    rbd(lab, &["clone", "--rbd-default-clone-format", "1", parent, &format!("{POOL}/old")]);
    let new = format!("{POOL}/{NAMESPACE}/new");
    rbd(lab, &["clone", "--rbd-default-clone-format", "2", parent, &new]);
    let space = store.in_pool(store.pool(), NAMESPACE).await.unwrap();
    for (store, name, full) in [(store, "old", format!("{POOL}/old")), (&space, "new", new)] {
        let mut clone = Ours::open(store, name, bytes.to_vec()).await;
        clone.check().await;
        clone.change(rng).await;
        clone.image.create_snapshot("t").await.unwrap();
        let then = clone.bytes.clone();
        clone.change(rng).await;
        clone.check().await;
        assert!(export(lab, &full) == clone.bytes, "{full}");
        assert!(export(lab, &format!("{full}@t")) == then, "{full}@t");
        check_map(lab, &full);
        // Of one all is copied below its snapshot.
        if name == "old" {
            clone.image.remove_snapshot("t").await.unwrap();
        }
        clone.image.flatten().await.unwrap();
        check_map(lab, &full);
        if name == "new" {
            check_map(lab, &format!("{full}@t"));
            clone.image.remove_snapshot("t").await.unwrap();
        }
        assert!(export(lab, &full) == clone.bytes, "{full} by itself");
        assert!(json(lab, &["info", &full])["parent"].is_null());
    }
    // Neither of them is a child any more.
    rbd(lab, &["snap", "unprotect", "theirs-default@s"]);
    rbd(lab, &["snap", "rm", "--no-progress", "theirs-default@s"]);
}

/// What each snapshot of an image is for.
fn all_snapshots(lab: &Lab, image: &str) -> Vec<String> {
    let listed = json(lab, &["snap", "ls", "--all", image]);
    let kind = |snapshot: &serde_json::Value| snapshot["namespace"]["type"].to_string();
    listed.as_array().unwrap().iter().map(kind).collect()
}

/// Whoever removes it, and whoever has the last clone.
#[test]
fn a_snapshot_that_has_clones_is_removed_with_the_last_of_them() {
    let lab = lab();
    let mut rng = StdRng::seed_from_u64(seed());
    let mut bytes = vec![0; index(SIZE)];
    rng.fill(&mut bytes[..]);
    run(async {
        let store = store(&lab).await;
        import(&lab, &bytes, "base", &["--object-size", &format!("{OBJECT}B")]);
        for is_ours in [false, true] {
            rbd(&lab, &["snap", "create", "--no-progress", "base@s"]);
            let theirs = format!("{POOL}/left");
            rbd(&lab, &["clone", "--rbd-default-clone-format", "2", "base@s", &theirs]);
            let base = Image::open(&store, "base").await.unwrap();
            base.clone_snapshot("s", &store, "right").await.unwrap();
            if is_ours {
                rbd(&lab, &["snap", "rm", "--no-progress", "base@s"]);
            } else {
                let live = LiveImage::open(&store, "base", Options::default()).await.unwrap();
                live.remove_snapshot("s").await.unwrap();
                live.close().await.unwrap();
            }
            let flatten_ours = async || {
                let live = LiveImage::open(&store, "right", Options::default()).await.unwrap();
                live.flatten().await.unwrap();
                live.close().await.unwrap();
            };
            let flatten_theirs = || rbd(&lab, &["flatten", "--no-progress", &theirs]);
            if is_ours {
                flatten_theirs();
            } else {
                flatten_ours().await;
            }
            assert_eq!(all_snapshots(&lab, "base"), ["\"trash\""]);
            if is_ours {
                flatten_ours().await;
            } else {
                flatten_theirs();
            }
            assert_eq!(all_snapshots(&lab, "base"), [""; 0]);
            check_map(&lab, "base");
            for name in ["left", "right"] {
                assert!(export(&lab, name) == bytes, "{name}");
                blockyard_rbd::live::remove(&store, name).await.unwrap();
            }
        }
        rbd(&lab, &["rm", "--no-progress", "base"]);
    });
}

/// A clone of ours in another pool than its parent: rbd sees it, and its end takes the parent's snapshot with it.
#[test]
fn a_clone_of_ours_in_another_pool_is_one_for_rbd() {
    let lab = lab();
    let mut rng = StdRng::seed_from_u64(seed());
    let mut bytes = vec![0; index(SIZE)];
    rng.fill(&mut bytes[..]);
    run(async {
        let store = store(&lab).await;
        let pool = store.cluster().pool(DATA).await.unwrap().id();
        let other = store.in_pool(pool, "").await.unwrap();
        import(&lab, &bytes, "far", &["--object-size", &format!("{OBJECT}B")]);
        for is_flattened in [false, true] {
            rbd(&lab, &["snap", "create", "--no-progress", "far@s"]);
            let base = Image::open(&store, "far").await.unwrap();
            base.clone_snapshot("s", &other, "away").await.unwrap();
            let children = base.children(base.snapshot_record("s").unwrap().id).await.unwrap();
            assert_eq!(children.iter().map(|child| child.pool).collect::<Vec<_>>(), [pool]);
            assert_eq!(rbd(&lab, &["children", "far@s"]).trim(), format!("{DATA}/away"));
            rbd(&lab, &["snap", "rm", "--no-progress", "far@s"]);
            assert_eq!(all_snapshots(&lab, "far"), ["\"trash\""]);
            if is_flattened {
                let live = LiveImage::open(&other, "away", Options::default()).await.unwrap();
                live.flatten().await.unwrap();
                assert!(live.read(0, SIZE).await.unwrap() == bytes);
                live.close().await.unwrap();
                assert_eq!(all_snapshots(&lab, "far"), [""; 0]);
            }
            blockyard_rbd::live::remove(&other, "away").await.unwrap();
            assert_eq!(all_snapshots(&lab, "far"), [""; 0]);
        }
        rbd(&lab, &["rm", "--no-progress", "far"]);
    });
}
