//! Removals that are stopped at any point: the same again goes on with them, and nothing stays that nobody knows of.

use super::{Store, open, run};
use crate::dir::DirStore;
use crate::dir::tests::simulated::Simulated;
use crate::format::{Features, Layout, names};
use crate::image::header::Header;
use crate::image::{CreateOptions, Image, create, remove};
use crate::store::{Answer, ObjectStore, Query, Request};
use crate::{Error, Result};
use rustix::io::Errno;
use std::future::{Future, poll_fn};
use std::task::Poll;

const OBJECT: u64 = 4096;
const SIZE: u64 = 4 * OBJECT;

/// Done, now or before.
fn done(result: &Result<()>, before: Errno, when: &str) {
    let was_done = |error: &Error| error.errno() == Some(before);
    assert!(result.as_ref().map_or_else(was_done, |()| true), "{when}: {result:?}");
}

/// A store with an image, its snapshot "s" and a clone of that.
async fn family(features: Features) -> (Simulated, Store) {
    let disk = Simulated::default();
    let store = DirStore::on(disk.clone()).unwrap();
    let options = CreateOptions { size: SIZE, layout: Layout::new(12).unwrap(), features };
    create(&store, "a", &options).await.unwrap();
    let mut image = open(&store, "a").await;
    let whole = usize::try_from(SIZE).unwrap();
    image.write(0, vec![1; whole].into()).await.unwrap();
    image.create_snapshot("s").await.unwrap();
    image.write(0, vec![2; whole].into()).await.unwrap();
    image.clone_snapshot("s", &store, "c").await.unwrap();
    (disk, store)
}

/// Does something until it is stopped: by an error of the disk, or as its process ends, after so many steps. Whether it came to
/// its end.
async fn stopped(
    disk: &Simulated,
    store: &Store,
    by_error: bool,
    steps: usize,
    work: impl Future<Output = Result<()>>,
) -> bool {
    if by_error {
        disk.fail_after(steps as u64);
        let result = work.await;
        return result.is_ok() && !disk.has_failed();
    }
    let users = store.users();
    let mut left = steps;
    let mut work = Box::pin(work);
    let ended = poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(_) => Poll::Ready(true),
        Poll::Pending if left == 0 => Poll::Ready(false),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    });
    let ended = ended.await;
    drop(work);
    // What was begun on a thread goes on.
    while store.users() > users {
        tokio::task::yield_now().await;
    }
    ended
}

/// The snapshots of which the store keeps something of an image's first object.
async fn kept(store: &Store, image: &Image<Store>) -> usize {
    let request = Request::read(vec![Query::Snapshots.into()]);
    match store.operate(&image.data_object(0), request).await.as_deref() {
        Ok([Answer::Snapshots(known)]) => {
            known.clones.iter().filter(|clone| clone.id != crate::store::NOSNAP).count()
        }
        _ => 0,
    }
}

/// The image "a" has lost its clone, and can be removed.
async fn has_no_child(store: &Store, when: &str) {
    let mut parent = open(store, "a").await;
    let children: Vec<_> = parent.snapshot_records().iter().map(|it| it.child_count).collect();
    assert_eq!(children, [0], "{when}");
    parent.remove_snapshot("s").await.unwrap();
    assert_eq!(kept(store, &parent).await, 0, "{when}");
    remove(store, "a").await.unwrap();
}

#[test]
fn a_clone_that_is_flattened_in_part_is_flattened_by_the_same_again() {
    run(async {
        for by_error in [true, false] {
            for steps in 0.. {
                let (disk, store) = family(Features::DEFAULT).await;
                let mut clone = open(&store, "c").await;
                let ended = stopped(&disk, &store, by_error, steps, clone.flatten()).await;
                let when = format!("by an error {by_error}, {steps} steps");
                done(&open(&store, "c").await.flatten().await, Errno::INVAL, &when);
                has_no_child(&store, &when).await;
                let clone = Image::open(&store, "c").await.unwrap();
                assert_eq!(clone.read(0, 10).await.unwrap(), [1; 10], "{when}");
                if ended {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_clone_that_is_removed_in_part_is_removed_by_the_same_again() {
    run(async {
        for by_error in [true, false] {
            for steps in 0.. {
                let (disk, store) = family(Features::DEFAULT).await;
                let ended = stopped(&disk, &store, by_error, steps, remove(&store, "c")).await;
                let when = format!("by an error {by_error}, {steps} steps");
                done(&remove(&store, "c").await, Errno::NOENT, &when);
                has_no_child(&store, &when).await;
                let (left, _) = store.list(None, 100).await.unwrap();
                let left: Vec<_> = left.iter().map(ToString::to_string).collect();
                assert!(left.iter().all(|name| !name.contains('.')), "{when}: {left:?}");
                if ended {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_snapshot_that_is_removed_in_part_is_removed_by_the_same_again() {
    run(async {
        for by_error in [true, false] {
            for steps in 0.. {
                let (disk, store) = family(Features::DEFAULT).await;
                remove(&store, "c").await.unwrap();
                let mut image = open(&store, "a").await;
                assert_eq!(kept(&store, &image).await, 1);
                let work = image.remove_snapshot("s");
                let ended = stopped(&disk, &store, by_error, steps, work).await;
                let when = format!("by an error {by_error}, {steps} steps");
                let mut image = open(&store, "a").await;
                done(&image.remove_snapshot("s").await, Errno::NOENT, &when);
                let header = Header::read(&store, image.id()).await.unwrap();
                assert!(header.snapshots.is_empty(), "{when}: {:?}", header.snapshots);
                assert_eq!(kept(&store, &image).await, 0, "{when}");
                let map = Request::read(vec![Query::Stat.into()]);
                let map = store.operate(&names::object_map(image.id(), Some(1)), map).await;
                assert!(map.is_err_and(|error| error.is_not_found()), "{when}");
                if ended {
                    break;
                }
            }
        }
    });
}

/// Without deep-flatten, snapshots of a clone need its parent when it needs it no more.
#[test]
fn the_last_snapshot_that_needs_a_parent_leaves_it() {
    run(async {
        for by_error in [true, false] {
            for steps in 0.. {
                let features = Features::DEFAULT.difference(Features::DEEP_FLATTEN);
                let (disk, store) = family(features).await;
                let mut clone = open(&store, "c").await;
                for name in ["t", "u"] {
                    clone.create_snapshot(name).await.unwrap();
                }
                clone.flatten().await.unwrap();
                clone.remove_snapshot("t").await.unwrap();
                let parent = open(&store, "a").await;
                assert_eq!(parent.snapshot_records()[0].child_count, 1);
                let work = clone.remove_snapshot("u");
                let ended = stopped(&disk, &store, by_error, steps, work).await;
                let when = format!("by an error {by_error}, {steps} steps");
                done(&open(&store, "c").await.remove_snapshot("u").await, Errno::NOENT, &when);
                has_no_child(&store, &when).await;
                if ended {
                    break;
                }
            }
        }
    });
}
