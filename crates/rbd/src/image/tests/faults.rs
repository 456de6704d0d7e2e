//! Operations that fail or are given up in the middle, and what comes after them.

use super::{Store, open, run};
use crate::dir::DirStore;
use crate::dir::tests::simulated::Simulated;
use crate::format::{Features, ImageFlags, Layout, ObjectState, TrashEntry, names};
use crate::image::{CreateOptions, Image, create, list, method, remove, trash};
use crate::store::{Mutation, NOSNAP, ObjectStore, Op, Request};
use blockyard_rados::encoding::Utime;
use rustix::io::Errno;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

const OBJECT: u64 = 4096;
const SIZE: u64 = 8 * OBJECT;

fn index(offset: u64) -> usize {
    offset.try_into().unwrap()
}

fn bytes(byte: u8) -> bytes::Bytes {
    vec![byte; index(SIZE)].into()
}

/// A store, and an image whose bytes are all 1.
async fn image(features: Features) -> (Simulated, Store, Image<Store>) {
    let disk = Simulated::default();
    let store = DirStore::on(disk.clone()).unwrap();
    let options = CreateOptions { size: SIZE, layout: Layout::new(12).unwrap(), features };
    create(&store, "a", &options).await.unwrap();
    let image = open(&store, "a").await;
    image.write(0, bytes(1)).await.unwrap();
    image.flush().await.unwrap();
    (disk, store, image)
}

/// A future's result, unless it has to wait once more than so often: it is dropped then.
async fn polled<T>(future: impl Future<Output = T>, mut times: usize) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if times == 0 => Poll::Ready(None),
        Poll::Pending => {
            times -= 1;
            Poll::Pending
        }
    })
    .await
}

/// Writes, after having read the header if that is wanted first.
async fn write(image: &mut Image<Store>, byte: u8) {
    if image.write(0, bytes(byte)).await.is_err() {
        image.refresh().await.unwrap();
        image.write(0, bytes(byte)).await.unwrap();
    }
}

/// If there is a snapshot, it is what the image was.
async fn check_snapshot(store: &Store, is_made: bool, when: &str) {
    match Image::open_snapshot(store, "a", "s").await {
        Ok(snapshot) => {
            assert_eq!(snapshot.read(0, SIZE).await.unwrap(), bytes(1), "{when}");
        }
        Err(error) => assert!(error.is_not_found() && !is_made, "{when}: {error}"),
    }
}

#[test]
fn a_snapshot_keeps_its_bytes_whatever_fails_while_it_is_made() {
    run(async {
        for changes in 0.. {
            let (disk, store, mut image) = image(Features::DEFAULT).await;
            disk.fail_after(changes);
            let made = image.create_snapshot("s").await;
            if !disk.has_failed() {
                made.unwrap();
                return;
            }
            write(&mut image, 2).await;
            check_snapshot(&store, made.is_ok(), &format!("change {changes}")).await;
            // It can be used as before.
            let _there_or_not = image.remove_snapshot("s").await;
            image.create_snapshot("s").await.unwrap();
        }
    });
}

#[test]
fn a_snapshot_keeps_its_bytes_wherever_its_making_is_given_up() {
    run(async {
        for times in 0.. {
            let (_, store, mut image) = image(Features::DEFAULT).await;
            let users = store.users();
            let made = polled(image.create_snapshot("s"), times).await;
            while store.users() > users {
                tokio::task::yield_now().await;
            }
            write(&mut image, 2).await;
            check_snapshot(&store, made.is_some(), &format!("given up at {times}")).await;
            if let Some(made) = made {
                made.unwrap();
                return;
            }
        }
    });
}

#[test]
fn an_image_does_not_write_under_a_snapshot_that_was_removed_in_part() {
    run(async {
        for changes in 0.. {
            let (disk, store, mut image) = image(Features::DEFAULT).await;
            image.create_snapshot("s").await.unwrap();
            write(&mut image, 2).await;
            disk.fail_after(changes);
            let removed = image.remove_snapshot("s").await;
            if !disk.has_failed() {
                removed.unwrap();
                return;
            }
            write(&mut image, 3).await;
            check_snapshot(&store, false, &format!("change {changes}")).await;
            let again = open(&store, "a").await;
            assert_eq!(again.read(0, SIZE).await.unwrap(), bytes(3), "change {changes}");
            assert_eq!(again.header.context, image.header.context, "change {changes}");
        }
    });
}

#[test]
fn what_a_shrink_that_failed_has_left_does_not_come_back() {
    run(async {
        for features in [Features::LAYERING, Features::DEFAULT] {
            for changes in 0.. {
                let (disk, store, mut image) = image(features).await;
                let small = OBJECT + OBJECT / 2;
                disk.fail_after(changes);
                let cut = image.resize(small).await;
                let has_failed = disk.has_failed();
                let mut image = open(&store, "a").await;
                if image.size() == small {
                    image.resize(SIZE / 2).await.unwrap();
                    image.resize(SIZE).await.unwrap();
                    let mut expected = bytes(1).to_vec();
                    expected[index(small)..].fill(0);
                    let found = image.read(0, SIZE).await.unwrap();
                    assert_eq!(found, expected, "{features:?}, change {changes}");
                    // Nothing comes back beside what is written either.
                    for object in 0..SIZE / OBJECT {
                        image.write(object * OBJECT, "x".into()).await.unwrap();
                        expected[index(object * OBJECT)] = b'x';
                    }
                    let found = image.read(0, SIZE).await.unwrap();
                    assert_eq!(found, expected, "{features:?}, change {changes}");
                }
                if !has_failed {
                    cut.unwrap();
                    break;
                }
            }
        }
    });
}

/// Ceph's clients make an image larger by its size alone: they leave nothing behind its end, and look for nothing there.
#[test]
fn nothing_is_behind_the_end_of_an_image_whose_shrink_has_failed() {
    let small = OBJECT + OBJECT / 2;
    run(async {
        for (features, is_clone) in
            [(Features::LAYERING, false), (Features::DEFAULT, false), (Features::DEFAULT, true)]
        {
            for changes in 0.. {
                let (disk, store, mut parent) = image(features).await;
                if is_clone {
                    parent.create_snapshot("s").await.unwrap();
                    parent.clone_snapshot("s", &store, "c").await.unwrap();
                }
                let name = if is_clone { "c" } else { "a" };
                let mut image = open(&store, name).await;
                image.write(2 * OBJECT, "written".into()).await.unwrap();
                disk.fail_after(changes);
                let cut = image.resize(small).await;
                let has_failed = disk.has_failed();
                let when = format!("{features:?}, clone {is_clone}, change {changes}");
                let there = Image::open(&store, name).await.unwrap();
                if there.size() == small {
                    let grow = method("set_size", |w| w.u64(SIZE));
                    let grow = Request::write(vec![grow]);
                    store.operate(&names::header(image.id()), grow).await.unwrap();
                    let mut expected = bytes(1).to_vec();
                    expected[index(small)..].fill(0);
                    let there = Image::open(&store, name).await.unwrap();
                    assert!(there.read(0, SIZE).await.unwrap() == expected, "{when}");
                } else {
                    // It is as large as before, and so it can be cut again.
                    assert_eq!(there.size(), SIZE, "{when}");
                    let expected = bytes(1).slice(..index(small));
                    assert!(there.read(0, small).await.unwrap() == expected, "{when}");
                    open(&store, name).await.resize(small).await.unwrap();
                }
                if !has_failed {
                    cut.unwrap();
                    break;
                }
            }
        }
    });
}

#[test]
fn a_clone_whose_parent_is_gone_is_removed_wholly() {
    run(async {
        let (_, store, mut parent) = image(Features::DEFAULT).await;
        parent.create_snapshot("s").await.unwrap();
        parent.clone_snapshot("s", &store, "c").await.unwrap();
        let clone = open(&store, "c").await;
        clone.write(0, bytes(2)).await.unwrap();
        let id = clone.id().to_owned();
        let gone = Request::write(vec![Op::remove()]);
        store.operate(&names::header(parent.id()), gone).await.unwrap();
        remove(&store, "c").await.unwrap();
        let (left, _) = store.list(None, 100).await.unwrap();
        let of_clone = left.iter().filter(|name| format!("{name:?}").contains(&id));
        assert_eq!(of_clone.count(), 0, "{left:?}");
    });
}

#[test]
fn a_clone_that_is_not_made_leaves_nothing() {
    run(async {
        for changes in 0.. {
            let (disk, store, mut parent) = image(Features::DEFAULT).await;
            parent.create_snapshot("s").await.unwrap();
            disk.fail_after(changes);
            let made = parent.clone_snapshot("s", &store, "c").await;
            if !disk.has_failed() {
                return made.unwrap();
            }
            if made.is_err() {
                let names = list(&store).await.unwrap();
                assert!(!names.iter().any(|(name, _)| name == "c"), "change {changes}");
                parent.clone_snapshot("s", &store, "c").await.unwrap();
            }
            remove(&store, "c").await.unwrap();
            // It is not in use any more.
            parent.remove_snapshot("s").await.unwrap();
        }
    });
}

#[test]
fn one_who_only_reads_believes_no_map() {
    run(async {
        let (_, store, mut writer) = image(Features::DEFAULT).await;
        writer.zero(0, SIZE).await.unwrap();
        let reader = Image::open(&store, "a").await.unwrap();
        writer.write(0, bytes(2)).await.unwrap();
        assert_eq!(reader.read(0, SIZE).await.unwrap(), bytes(2));
        // Between two requests of its owner's, a map may have another size than the image.
        writer.resize(2 * SIZE).await.unwrap();
        let map = names::object_map(writer.id(), None);
        let garbage = Request::write(vec![Mutation::WriteFull("garbage".into()).into()]);
        store.operate(&map, garbage).await.unwrap();
        let reader = Image::open(&store, "a").await.unwrap();
        assert_eq!(reader.read(0, SIZE).await.unwrap(), bytes(2));
        let header = super::super::Header::read(&store, writer.id()).await.unwrap();
        assert_eq!(header.flags, ImageFlags::empty());
    });
}

#[test]
fn a_map_that_cannot_be_kept_is_invalid_and_the_write_goes_on() {
    run(async {
        let mut gone_on = 0;
        for changes in 0.. {
            let (disk, store, image) = image(Features::DEFAULT).await;
            image.zero(0, SIZE).await.unwrap();
            disk.fail_after(changes);
            let written = image.write(0, bytes(2)).await;
            if !disk.has_failed() {
                written.unwrap();
                break;
            }
            let header = super::super::Header::read(&store, image.id()).await.unwrap();
            if header.flags.contains(ImageFlags::OBJECT_MAP_INVALID) {
                written.unwrap();
                gone_on += 1;
                assert!(!image.has_map());
                assert_eq!(open(&store, "a").await.read(0, SIZE).await.unwrap(), bytes(2));
            }
        }
        assert!(gone_on > 0);
    });
}

#[test]
fn a_snapshot_is_removed_whose_map_is_damaged_and_nothing_is_told_of_what_changed() {
    run(async {
        let (_, store, mut image) = image(Features::DEFAULT).await;
        image.create_snapshot("s").await.unwrap();
        let (id, _, _) = image.snapshots().next().unwrap();
        let map = names::object_map(image.id(), Some(id));
        let garbage = Request::write(vec![Mutation::WriteFull("garbage".into()).into()]);
        store.operate(&map, garbage).await.unwrap();
        image.remove_snapshot("s").await.unwrap();
        let header = super::super::Header::read(&store, image.id()).await.unwrap();
        assert!(header.flags.contains(ImageFlags::FAST_DIFF_INVALID), "{:?}", header.flags);
    });
}

#[test]
fn what_is_cut_in_an_object_that_had_not_changed_has_changed() {
    run(async {
        let (_, store, mut parent) = image(Features::DEFAULT).await;
        parent.create_snapshot("s").await.unwrap();
        parent.clone_snapshot("s", &store, "c").await.unwrap();
        let mut clone = open(&store, "c").await;
        // Of the parent only a part of the first object is seen.
        clone.resize(OBJECT / 4).await.unwrap();
        clone.resize(SIZE).await.unwrap();
        clone.write(0, bytes(2)).await.unwrap();
        clone.create_snapshot("t").await.unwrap();
        assert_eq!(clone.map_state(0), Some(ObjectState::ExistsClean));
        clone.resize(OBJECT / 2).await.unwrap();
        assert_eq!(clone.map_state(0), Some(ObjectState::Exists));
    });
}

/// An operation that is given up at some point, and has come to rest.
async fn given_up<T>(store: &Store, operation: impl Future<Output = T>, times: usize) -> Option<T> {
    let users = store.users();
    let done = polled(operation, times).await;
    while store.users() > users {
        tokio::task::yield_now().await;
    }
    done
}

/// An image that has a name, of either kind, is not removed from the trash, and keeps its bytes.
async fn check_not_removed(store: &Store, id: &str, when: &str) {
    let opened = Image::open(store, "a").await;
    let is_listed = list(store).await.unwrap().iter().any(|(name, _)| name == "a");
    if opened.is_err() && !is_listed {
        return;
    }
    assert!(trash::remove(store, id).await.is_err(), "{when}");
    let image = Image::open_id(store, id.to_owned(), NOSNAP, 0).await.unwrap();
    assert_eq!(image.read(0, SIZE).await.unwrap(), bytes(1), "{when}");
}

#[test]
fn an_image_that_is_moved_to_the_trash_in_part_is_not_removed_and_can_be_moved_again() {
    run(async {
        for times in 0.. {
            let (_, store, image) = image(Features::DEFAULT).await;
            let (id, time) = (image.id().to_owned(), Utime::default());
            let moved = given_up(&store, trash::put(&store, "a", time, time), times).await;
            let when = format!("given up at {times}");
            check_not_removed(&store, &id, &when).await;
            if let Ok(entry) = trash::entry(&store, &id).await
                && entry.state == TrashEntry::MOVING
            {
                let refused = trash::remove(&store, &id).await.unwrap_err();
                assert_eq!(refused.errno(), Some(Errno::BUSY), "{when}");
                assert!(trash::restore(&store, &id, None).await.is_err(), "{when}");
            }
            if trash::list(&store).await.unwrap().iter().all(|(_, entry)| entry.state != 0) {
                assert_eq!(trash::put(&store, "a", time, time).await.unwrap(), id, "{when}");
            }
            assert_eq!(trash::restore(&store, &id, None).await.unwrap(), "a", "{when}");
            check_not_removed(&store, &id, &when).await;
            if moved.is_some() {
                return;
            }
        }
    });
}

#[test]
fn an_image_that_is_restored_in_part_is_not_removed_and_can_be_restored_or_moved_again() {
    run(async {
        for times in 0.. {
            let (_, store, image) = image(Features::DEFAULT).await;
            let (id, time) = (image.id().to_owned(), Utime::default());
            trash::put(&store, "a", time, time).await.unwrap();
            let restored = given_up(&store, trash::restore(&store, &id, None), times).await;
            let when = format!("given up at {times}");
            check_not_removed(&store, &id, &when).await;
            if Image::open(&store, "a").await.is_ok() && times % 2 == 0 {
                trash::put(&store, "a", time, time).await.unwrap();
            }
            if trash::entry(&store, &id).await.is_ok() {
                assert_eq!(trash::restore(&store, &id, None).await.unwrap(), "a", "{when}");
            }
            assert!(trash::list(&store).await.unwrap().is_empty(), "{when}");
            check_not_removed(&store, &id, &when).await;
            if restored.is_some() {
                return;
            }
        }
    });
}

#[test]
fn an_image_that_is_removed_from_the_trash_in_part_is_removed_wholly_and_not_restored() {
    run(async {
        for times in 0.. {
            let (_, store, image) = image(Features::DEFAULT).await;
            let time = Utime::default();
            let id = trash::put(&store, "a", time, time).await.unwrap();
            drop(image);
            let removed = given_up(&store, trash::remove(&store, &id), times).await;
            let Ok(entry) = trash::entry(&store, &id).await else {
                assert!(times > 0);
                if removed.is_some() {
                    return;
                }
                continue;
            };
            if entry.state == TrashEntry::REMOVING {
                let refused = trash::restore(&store, &id, None).await.unwrap_err();
                assert_eq!(refused.errno(), Some(Errno::BUSY), "given up at {times}");
            }
            trash::remove(&store, &id).await.unwrap();
            let (left, _) = store.list(None, 100).await.unwrap();
            assert_eq!(left, [names::DIRECTORY, names::TRASH], "given up at {times}");
        }
    });
}

#[test]
fn an_image_that_cannot_be_removed_or_restored_stays_in_the_trash_as_it_is() {
    run(async {
        let (_, store, mut image) = image(Features::DEFAULT).await;
        image.create_snapshot("s").await.unwrap();
        let time = Utime::default();
        let id = trash::put(&store, "a", time, time).await.unwrap();
        let refused = trash::remove(&store, &id).await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::NOTEMPTY), "{refused}");
        let options =
            CreateOptions { size: SIZE, layout: image.layout(), features: Features::DEFAULT };
        create(&store, "b", &options).await.unwrap();
        let refused = trash::restore(&store, &id, Some("b")).await.unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EXIST), "{refused}");
        assert_eq!(trash::entry(&store, &id).await.unwrap().state, TrashEntry::NORMAL);
        assert_eq!(trash::restore(&store, &id, None).await.unwrap(), "a");
    });
}
