//! What does not end, as a pool is full, a placement group is inactive or the monitors have no quorum: what does not need it goes
//! on.

use super::cluster::{Client, Cluster, Held, POOLS};
use super::protocol::{OBJECT, image, open, run};
use crate::live::LiveImage;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a read or a write may take, of the runtime's own time, beside something that waits for it.
const SOON: Duration = Duration::from_secs(10);
/// The first object of an image.
const FIRST: Held = Held::Writes(".0000000000000000");

type Live = Arc<LiveImage<Client>>;

/// An image whose owner has a snapshot and data, and another one who has it open.
async fn shared(seed: u64) -> (Arc<Cluster>, Client, Live, Live) {
    let cluster = Cluster::new(seed, 0);
    image(&cluster).await;
    let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
    let (owner, other) = (Arc::new(open(&one).await), Arc::new(open(&two).await));
    owner.write(0, vec![1; 10].into()).await.unwrap();
    owner.write(OBJECT, vec![2; 10].into()).await.unwrap();
    owner.create_snapshot("s").await.unwrap();
    owner.write(OBJECT, vec![3; 10].into()).await.unwrap();
    (cluster, one, owner, other)
}

/// A write that does not end.
async fn stuck(cluster: &Cluster, owner: &Live) -> JoinHandle<crate::Result<()>> {
    cluster.hold(FIRST);
    let owner = Arc::clone(owner);
    let stuck = tokio::spawn(async move { owner.write(0, vec![9; 10].into()).await });
    cluster.pass(1).await;
    stuck
}

/// Other objects are read and written for so many seconds.
async fn goes_on(cluster: &Cluster, owner: &Live, seconds: u64) {
    for byte in 0..u8::try_from(seconds).unwrap() {
        let read = timeout(SOON, owner.read(2 * OBJECT, 10)).await;
        assert_eq!(read.expect("reads hang").unwrap(), vec![byte.saturating_sub(1); 10]);
        let written = timeout(SOON, owner.write(2 * OBJECT, vec![byte; 10].into())).await;
        written.expect("writes hang").unwrap();
        cluster.pass(1).await;
    }
    owner.write(2 * OBJECT, vec![0; 10].into()).await.unwrap();
}

#[test]
fn one_write_that_does_not_end_stops_no_others_when_something_was_missed() {
    for seed in 0..20 {
        run(async {
            let (cluster, one, owner, _other) = shared(seed).await;
            let stuck = stuck(&cluster, &owner).await;
            cluster.cut(one.number());
            goes_on(&cluster, &owner, 20).await;
            assert!(!stuck.is_finished());
            cluster.let_go();
            stuck.await.unwrap().unwrap();
            assert_eq!(owner.read(0, 10).await.unwrap(), [9; 10]);
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}

/// Whoever wrote while the lock was somebody else's waits until it is had, and not for others who did so, too.
#[test]
fn one_of_the_first_writes_of_an_owner_that_does_not_end_stops_no_others() {
    for seed in 0..20 {
        run(async {
            let (cluster, _, owner, other) = shared(seed).await;
            other.write(OBJECT, vec![4; 10].into()).await.unwrap();
            assert!(!owner.status().borrow().is_owner);
            cluster.hold(FIRST);
            let write = |object| {
                let owner = Arc::clone(&owner);
                let write = async move { owner.write(object * OBJECT, vec![9; 10].into()).await };
                tokio::spawn(write)
            };
            let stuck = write(0);
            let others: Vec<_> = (1..8).map(write).collect();
            for other in others {
                timeout(SOON, other).await.expect("writes hang").unwrap().unwrap();
            }
            assert!(!stuck.is_finished() && owner.status().borrow().is_owner);
            cluster.let_go();
            stuck.await.unwrap().unwrap();
            assert_eq!(owner.read(7 * OBJECT, 10).await.unwrap(), [9; 10]);
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}

/// A full pool is emptied like that: the write that waits for space is the one that the removal helps.
#[test]
fn a_snapshot_is_removed_while_a_write_does_not_end() {
    for (seed, is_own) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        run(async {
            let (cluster, _, owner, other) = shared(seed).await;
            let stuck = stuck(&cluster, &owner).await;
            let who = Arc::clone(if is_own { &owner } else { &other });
            let removed = tokio::spawn(async move { who.remove_snapshot("s").await });
            goes_on(&cluster, &owner, 20).await;
            timeout(SOON, removed).await.expect("the removal hangs").unwrap().unwrap();
            assert!(!stuck.is_finished());
            cluster.let_go();
            stuck.await.unwrap().unwrap();
            owner.create_snapshot("s").await.unwrap();
            owner.write(0, vec![4; 10].into()).await.unwrap();
            assert_eq!(other.image().await.unwrap().snapshots().count(), 1);
            let image = other.image().await.unwrap();
            assert_eq!(image.flags(), crate::format::ImageFlags::empty());
        });
    }
}

/// Whoever wants the lock, or the image to be another one, waits; others do not.
#[test]
fn what_needs_the_image_alone_waits_for_a_write_that_does_not_end_and_others_do_not() {
    for seed in 0..10 {
        run(async {
            let (cluster, one, owner, other) = shared(seed).await;
            let stuck = stuck(&cluster, &owner).await;
            let resizes = Arc::clone(&other);
            let resized = tokio::spawn(async move { resizes.resize(20 * OBJECT, false).await });
            goes_on(&cluster, &owner, 30).await;
            let writes = Arc::clone(&other);
            let written = tokio::spawn(async move { writes.write(0, vec![7; 10].into()).await });
            goes_on(&cluster, &owner, 60).await;
            assert!(!stuck.is_finished() && !written.is_finished());
            cluster.let_go();
            stuck.await.unwrap().unwrap();
            timeout(Duration::from_secs(120), written).await.unwrap().unwrap().unwrap();
            let resized = timeout(Duration::from_secs(300), resized).await.unwrap().unwrap();
            if let Err(error) = resized {
                assert_eq!(error.errno(), Some(Errno::BUSY), "{error}");
            }
            assert_eq!(owner.read(0, 10).await.unwrap(), [7; 10]);
            assert!(!cluster.is_fenced(&one));
            assert_eq!(cluster.intruders(), Vec::<String>::new());
        });
    }
}

#[test]
fn no_disk_waits_for_the_monitors_while_a_snapshot_is_made_or_removed() {
    run(async {
        let (cluster, _, owner, other) = shared(3).await;
        cluster.hold(Held::Monitors);
        let made = tokio::spawn(async move { other.create_snapshot("t").await });
        goes_on(&cluster, &owner, 20).await;
        assert!(!made.is_finished());
        cluster.let_go();
        made.await.unwrap().unwrap();
        assert_eq!(owner.image().await.unwrap().snapshots().count(), 2);
        cluster.hold(Held::Monitors);
        let remover = Arc::clone(&owner);
        let removed = tokio::spawn(async move { remover.remove_snapshot("t").await });
        goes_on(&cluster, &owner, 20).await;
        assert!(!removed.is_finished());
        cluster.let_go();
        removed.await.unwrap().unwrap();
    });
}

/// Two snapshots at the same time: the older number is of no use when it comes later.
#[test]
fn snapshots_that_are_made_at_the_same_time_are_all_made() {
    for seed in 0..20 {
        run(async {
            let (_cluster, _, owner, other) = shared(seed).await;
            let (first, second, third) = tokio::join!(
                owner.create_snapshot("t"),
                other.create_snapshot("u"),
                owner.create_snapshot("v"),
            );
            first.and(second).and(third).unwrap();
            assert_eq!(owner.image().await.unwrap().snapshots().count(), 4);
        });
    }
}

#[test]
fn no_disk_waits_for_another_pool_while_a_snapshot_is_unprotected() {
    run(async {
        let (cluster, _, owner, other) = shared(4).await;
        owner.protect_snapshot("s").await.unwrap();
        cluster.hold(Held::Pool(POOLS[1]));
        let asked = tokio::spawn(async move { (other.unprotect_snapshot("s").await, other) });
        goes_on(&cluster, &owner, 20).await;
        let (refused, other) = asked.await.unwrap();
        assert_eq!(refused.unwrap_err().errno(), Some(Errno::TIMEDOUT));
        let error = owner.unprotect_snapshot("s").await.unwrap_err().to_string();
        assert!(error.contains("pool 2"), "{error}");
        assert_eq!(owner.remove_snapshot("s").await.unwrap_err().errno(), Some(Errno::BUSY));
        cluster.let_go();
        other.unprotect_snapshot("s").await.unwrap();
        other.remove_snapshot("s").await.unwrap();
    });
}

#[test]
fn a_snapshot_that_stays_half_unprotected_is_said_to_be_so_and_unprotected_again() {
    run(async {
        let (cluster, _, owner, _other) = shared(5).await;
        owner.protect_snapshot("s").await.unwrap();
        cluster.hold(Held::Pool(POOLS[1]));
        let unprotects = Arc::clone(&owner);
        let asked = tokio::spawn(async move { unprotects.unprotect_snapshot("s").await });
        cluster.pass(1).await;
        cluster.slow_down(400);
        let writes = Arc::clone(&owner);
        let slow = tokio::spawn(async move { writes.write(0, vec![9; 10].into()).await });
        cluster.pass(1).await;
        cluster.let_go();
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.errno(), Some(Errno::TIMEDOUT));
        assert!(error.to_string().contains("unprotect it again"), "{error}");
        cluster.slow_down(0);
        slow.await.unwrap().unwrap();
        owner.unprotect_snapshot("s").await.unwrap();
        owner.remove_snapshot("s").await.unwrap();
    });
}
