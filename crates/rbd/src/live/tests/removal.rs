//! Images that are removed while others want them, and what the end of a clone leaves at its parent.

use super::cluster::{Client, Cluster};
use super::protocol::{SIZE, image, open, run};
use crate::format::Features;
use crate::format::names::header;
use crate::image::{Image, method, trash};
use crate::live::{LiveImage, Options, remove, remove_from_trash};
use crate::store::{Mutation, ObjectStore, Op, Request};
use blockyard_rados::encoding::Utime;
use rustix::io::Errno;

/// What is written to an image whose objects are going stays for ever.
#[test]
fn nobody_gets_an_image_that_is_being_removed() {
    for is_in_trash in [false, true] {
        run(async {
            let cluster = Cluster::new(30, 0);
            image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let live = open(&one).await;
            live.write(0, vec![1; usize::try_from(SIZE).unwrap()].into()).await.unwrap();
            live.close().await.unwrap();
            let other = open(&two).await;
            let id = other.image().await.unwrap().id().to_owned();
            if is_in_trash {
                trash::put(&one, "a", Utime::default(), Utime::default()).await.unwrap();
            }
            cluster.slow_down(10);
            let removed = async {
                match is_in_trash {
                    false => remove(&one, "a").await,
                    true => remove_from_trash(&one, &id).await,
                }
            };
            let wanted = async {
                cluster.pass(30).await;
                other.write(0, vec![2; 10].into()).await
            };
            let (removed, wanted) = tokio::join!(removed, wanted);
            removed.unwrap();
            assert!(wanted.is_err());
            assert_eq!(cluster.intruders(), Vec::<String>::new());
            let left = cluster.objects_with(&id).await;
            assert!(left.is_empty(), "{left:?}");
        });
    }
}

#[test]
fn an_image_is_removed_whose_owner_has_died_and_he_is_kept_out() {
    run(async {
        let cluster = Cluster::new(31, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        open(&one).await.write(0, vec![1; 10].into()).await.unwrap();
        cluster.kill(&one);
        remove(&two, "a").await.unwrap();
        assert!(cluster.is_fenced(&one));
        assert!(Image::open(&two, "a").await.is_err_and(|error| error.is_not_found()));
    });
}

/// He has its lock, and is not to lose it to one who could not read its header just then.
#[test]
fn an_image_that_cannot_be_opened_is_not_removed_from_its_owner() {
    for is_in_trash in [false, true] {
        run(async {
            let cluster = Cluster::new(34, 0);
            let first = image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let parent = open(&first).await;
            parent.create_snapshot("s").await.unwrap();
            parent.image().await.unwrap().clone_snapshot("s", &first, "c").await.unwrap();
            let owner = LiveImage::open(&one, "c", Options::default()).await.unwrap();
            owner.write(0, vec![1; 10].into()).await.unwrap();
            let id = owner.image().await.unwrap().id().to_owned();
            if is_in_trash {
                trash::put(&two, "c", Utime::default(), Utime::default()).await.unwrap();
            }
            // For the moment, he has no watch either.
            cluster.cut(one.number());
            cluster.fail_once(two.number(), &header(&id));
            let removed = match is_in_trash {
                false => remove(&two, "c").await,
                true => remove_from_trash(&two, &id).await,
            };
            assert_eq!(removed.unwrap_err().errno(), Some(Errno::IO));
            owner.write(0, vec![2; 10].into()).await.unwrap();
            assert_eq!(owner.read(0, 10).await.unwrap(), [2; 10]);
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}

/// Who could get the lock of a clone may have it, whatever its parent is.
#[test]
fn a_clone_whose_parent_cannot_be_read_is_removed_under_its_lock() {
    let damaged = || Mutation::OmapSet([("size".into(), vec![1; 3].into())].into()).into();
    for (damage, is_in_trash) in [(Op::remove(), false), (damaged(), false), (damaged(), true)] {
        run(async {
            let cluster = Cluster::new(35, 0);
            let first = image(&cluster).await;
            let two = Client::new(&cluster, 2);
            let parent = open(&first).await;
            parent.create_snapshot("s").await.unwrap();
            let parent_id = parent.image().await.unwrap().id().to_owned();
            parent.image().await.unwrap().clone_snapshot("s", &first, "c").await.unwrap();
            let clone = LiveImage::open(&first, "c", Options::default()).await.unwrap();
            clone.write(0, vec![1; usize::try_from(SIZE).unwrap()].into()).await.unwrap();
            let id = clone.image().await.unwrap().id().to_owned();
            clone.close().await.unwrap();
            let damage = Request::write(vec![damage]);
            two.operate(&header(&parent_id), damage).await.unwrap();
            assert!(Image::open(&two, "c").await.is_err());
            if is_in_trash {
                trash::put(&two, "c", Utime::default(), Utime::default()).await.unwrap();
                remove_from_trash(&two, &id).await.unwrap();
            } else {
                remove(&two, "c").await.unwrap();
            }
            assert_eq!(cluster.intruders(), Vec::<String>::new());
            let left = cluster.objects_with(&id).await;
            assert!(left.is_empty(), "{left:?}");
        });
    }
}

/// The snapshots of an image, by what they are for.
async fn kinds(client: &Client, name: &str) -> Vec<u32> {
    let image = Image::open(client, name).await.unwrap();
    image.snapshot_records().iter().map(|snapshot| snapshot.namespace.kind()).collect()
}

/// ceph: `SNAPSHOT_NAMESPACE_TYPE_TRASH`.
const TRASH: u32 = 2;

/// The parent's snapshot goes into the trash at once, and out of it with the last clone; whoever has the parent does that.
#[test]
fn a_snapshot_that_is_removed_before_its_clones_goes_with_the_last_of_them() {
    for has_owner in [false, true] {
        run(async {
            let cluster = Cluster::new(32, 0);
            let first = image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let parent = open(&one).await;
            parent.write(0, vec![7; 10].into()).await.unwrap();
            parent.create_snapshot("s").await.unwrap();
            for name in ["c", "d", "e", "f"] {
                parent.image().await.unwrap().clone_snapshot("s", &first, name).await.unwrap();
            }
            parent.remove_snapshot("s").await.unwrap();
            assert_eq!(kinds(&one, "a").await, [TRASH]);
            assert_eq!(parent.image().await.unwrap().snapshots().count(), 0);
            parent.create_snapshot("s").await.unwrap();
            parent.remove_snapshot("s").await.unwrap();
            if !has_owner {
                parent.close().await.unwrap();
            }
            // Flattened, by itself and by its owner for another; removed, also from the trash.
            let own = LiveImage::open(&two, "c", Options::default()).await.unwrap();
            assert_eq!(own.read(0, 10).await.unwrap(), [7; 10]);
            own.acquire().await.unwrap();
            own.flatten().await.unwrap();
            assert_eq!(own.read(0, 10).await.unwrap(), [7; 10]);
            let trashed = trash::put(&two, "d", Utime::default(), Utime::default());
            remove_from_trash(&two, &trashed.await.unwrap()).await.unwrap();
            remove(&two, "e").await.unwrap();
            assert_eq!(kinds(&one, "a").await, [TRASH], "f needs it");
            let owner = LiveImage::open(&two, "f", Options::default()).await.unwrap();
            owner.acquire().await.unwrap();
            let other = LiveImage::open(&first, "f", Options::default()).await.unwrap();
            other.flatten().await.unwrap();
            cluster.pass(60).await;
            assert!(kinds(&one, "a").await.is_empty(), "{has_owner}");
            assert_eq!(other.read(0, 10).await.unwrap(), [7; 10]);
            if has_owner {
                assert!(parent.owner().is_some(), "it was not given away");
                parent.close().await.unwrap();
            }
            remove(&two, "a").await.unwrap();
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}

/// A clone of a clone: the last one takes all that is in the trash with it.
#[test]
fn the_end_of_a_clone_goes_up_the_chain() {
    run(async {
        let cluster = Cluster::new(33, 0);
        let client = image(&cluster).await;
        let a = open(&client).await;
        a.write(0, vec![7; 10].into()).await.unwrap();
        a.create_snapshot("s").await.unwrap();
        a.image().await.unwrap().clone_snapshot("s", &client, "b").await.unwrap();
        let b = LiveImage::open(&client, "b", Options::default()).await.unwrap();
        b.create_snapshot("s").await.unwrap();
        b.image().await.unwrap().clone_snapshot("s", &client, "c").await.unwrap();
        for (live, name) in [(&a, "a"), (&b, "b")] {
            live.remove_snapshot("s").await.unwrap();
            assert_eq!(kinds(&client, name).await, [TRASH]);
        }
        b.close().await.unwrap();
        remove(&client, "c").await.unwrap();
        assert!(kinds(&client, "b").await.is_empty());
        remove(&client, "b").await.unwrap();
        assert!(kinds(&client, "a").await.is_empty());
        a.close().await.unwrap();
        remove(&client, "a").await.unwrap();
    });
}

/// Nobody has a lock of such an image, and the end of one is the end of what its parent keeps for it, all the same.
#[test]
fn the_end_of_a_clone_without_a_lock_takes_the_snapshot_with_it() {
    for is_in_trash in [false, true] {
        run(async {
            let cluster = Cluster::new(35, 0);
            let client = Client::new(&cluster, 100);
            super::protocol::create_with(&client, Features::LAYERING).await;
            let other = client.in_pool(super::cluster::POOLS[1], "").await.unwrap();
            let parent = open(&client).await;
            parent.create_snapshot("s").await.unwrap();
            // Of two pools.
            for into in [&client, &other] {
                parent.image().await.unwrap().clone_snapshot("s", into, "c").await.unwrap();
            }
            parent.remove_snapshot("s").await.unwrap();
            for from in [&client, &other] {
                assert_eq!(kinds(&client, "a").await, [TRASH]);
                match is_in_trash {
                    false => remove(from, "c").await.unwrap(),
                    true => {
                        let trashed = trash::put(from, "c", Utime::default(), Utime::default());
                        remove_from_trash(from, &trashed.await.unwrap()).await.unwrap();
                    }
                }
            }
            assert!(kinds(&client, "a").await.is_empty());
            parent.close().await.unwrap();
            remove(&client, "a").await.unwrap();
        });
    }
}

/// Such as an `rbd snap rm` that was cut short leaves (librbd puts each snapshot into the trash first), or a sweep that failed.
#[test]
fn snapshots_in_the_trash_that_nobody_needs_go_with_the_image() {
    for features in [Features::LAYERING, Features::DEFAULT] {
        for is_in_trash in [false, true] {
            run(async {
                let cluster = Cluster::new(36, 0);
                let client = Client::new(&cluster, 100);
                super::protocol::create_with(&client, features).await;
                let live = open(&client).await;
                for name in ["s", "t"] {
                    live.write(0, vec![1; 10].into()).await.unwrap();
                    live.create_snapshot(name).await.unwrap();
                }
                let (id, header) = {
                    let image = live.image().await.unwrap();
                    image.clone_snapshot("t", &client, "c").await.unwrap();
                    (image.id().to_owned(), header(image.id()))
                };
                for snapshot in [1, 2] {
                    let trash = method("snapshot_trash_add", |w| w.u64(snapshot));
                    client.operate(&header, Request::write(vec![trash])).await.unwrap();
                }
                live.close().await.unwrap();
                let error = remove(&client, "a").await.unwrap_err();
                assert_eq!(error.errno(), Some(Errno::NOTEMPTY), "{error}");
                assert!(error.to_string().contains("clones"), "{error}");
                remove(&client, "c").await.unwrap();
                match is_in_trash {
                    false => remove(&client, "a").await.unwrap(),
                    true => {
                        let time = Utime::default();
                        trash::put(&client, "a", time, time).await.unwrap();
                        remove_from_trash(&client, &id).await.unwrap();
                    }
                }
                let left = cluster.objects_with(&id).await;
                assert!(left.is_empty(), "{left:?}");
            });
        }
    }
}

/// It has a lock of its own, and somebody may have it, or have died with writes under way.
#[test]
fn a_clone_whose_parent_is_gone_or_damaged_is_removed_under_its_lock() {
    for (is_damaged, is_in_trash) in [(false, false), (true, false), (false, true), (true, true)] {
        run(async {
            let cluster = Cluster::new(37, 0);
            let first = image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let parent = open(&first).await;
            parent.create_snapshot("s").await.unwrap();
            let parent_id = parent.image().await.unwrap().id().to_owned();
            parent.image().await.unwrap().clone_snapshot("s", &first, "c").await.unwrap();
            parent.close().await.unwrap();
            let owner = LiveImage::open(&one, "c", Options::default()).await.unwrap();
            owner.write(0, vec![1; 10].into()).await.unwrap();
            let id = owner.image().await.unwrap().id().to_owned();
            if is_in_trash {
                trash::put(&two, "c", Utime::default(), Utime::default()).await.unwrap();
            }
            let broken = match is_damaged {
                false => Op::remove(),
                true => {
                    let key = crate::format::names::snapshot_key(1).into();
                    Mutation::OmapSet([(key, "x".into())].into()).into()
                }
            };
            two.operate(&header(&parent_id), Request::write(vec![broken])).await.unwrap();
            cluster.slow_down(5);
            // It is under way when he dies.
            let late = tokio::spawn(async move { owner.write(0, vec![2; 10].into()).await });
            cluster.pass(1).await;
            cluster.kill(&one);
            match is_in_trash {
                false => remove(&two, "c").await.unwrap(),
                true => remove_from_trash(&two, &id).await.unwrap(),
            }
            assert!(cluster.is_fenced(&one), "{is_damaged} {is_in_trash}");
            late.abort();
            let left = cluster.objects_with(&id).await;
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}
