//! What a lock is called, and what becomes of one that somebody has broken by hand.

use super::cluster::{Client, Cluster};
use super::protocol::{image, open, run};
use crate::format::names;
use crate::image::Image;
use crate::live::lock;
use rustix::io::Errno;

/// Ceph's clients take an owner for dead whose lock is called after a watch that is gone, and shut him out.
#[test]
fn a_lock_is_called_after_a_new_watch_at_once_also_while_a_write_takes_long() {
    for is_wanted in [false, true] {
        run(async {
            let cluster = Cluster::new(20, 0);
            image(&cluster).await;
            let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
            let (live, other) = (open(&one).await, open(&two).await);
            live.write(0, vec![1; 10].into()).await.unwrap();
            let header = names::header(other.image().await.unwrap().id());
            cluster.slow_down(60);
            let wanted = async {
                if is_wanted {
                    other.acquire().await.unwrap();
                }
            };
            let cut = async {
                cluster.pass(3).await;
                for _ in 0..3 {
                    cluster.cut(one.number());
                    cluster.pass(2).await;
                    let owner = lock::owner(&two, &header).await.unwrap().unwrap();
                    assert_eq!(owner.client.client.number, one.number());
                    assert!(lock::is_alive(&two, &header, &owner).await.unwrap(), "{is_wanted}");
                }
            };
            let (written, (), ()) = tokio::join!(live.write(0, vec![2; 10].into()), cut, wanted);
            written.unwrap();
            assert_eq!(other.owner().is_some(), is_wanted);
            live.write(0, vec![3; 10].into()).await.unwrap();
            assert_eq!(cluster.intruders(), Vec::<String>::new());
            assert!(!cluster.is_fenced(&one) && !cluster.is_fenced(&two));
            live.close().await.unwrap();
            assert_eq!(lock::owner(&two, &header).await.unwrap(), None);
        });
    }
}

/// The watch is another one between the choice of a name and the taking.
#[test]
fn a_lock_that_is_taken_by_the_name_of_a_watch_that_is_gone_gets_another() {
    run(async {
        let cluster = Cluster::new(23, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let live = open(&one).await;
        let header = names::header(live.image().await.unwrap().id());
        let naming = live.shared.naming.lock().await;
        let cut = async {
            cluster.pass(3).await;
            cluster.cut(one.number());
            cluster.pass(5).await;
            drop(naming);
        };
        let (acquired, ()) = tokio::join!(live.acquire(), cut);
        acquired.unwrap();
        cluster.pass(5).await;
        let owner = lock::owner(&two, &header).await.unwrap().unwrap();
        assert!(lock::is_alive(&two, &header, &owner).await.unwrap(), "{owner:?}");
        live.write(0, vec![1; 10].into()).await.unwrap();
        live.close().await.unwrap();
        assert_eq!(lock::owner(&two, &header).await.unwrap(), None);
    });
}

#[test]
fn whose_lock_is_broken_by_hand_is_kept_out() {
    run(async {
        let cluster = Cluster::new(21, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let live = open(&one).await;
        live.write(0, vec![1; 10].into()).await.unwrap();
        let by_hand = Image::open(&two, "a").await.unwrap();
        let (locker, _) = by_hand.lock_info().await.unwrap().lockers.pop_first().unwrap();
        let nobody = crate::format::lock::LockerId { cookie: "other".into(), ..locker.clone() };
        let error = by_hand.break_lock(&nobody).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT), "{error}");
        assert!(!cluster.is_fenced(&one));
        by_hand.break_lock(&locker).await.unwrap();
        let other = open(&two).await;
        other.write(0, vec![2; 10].into()).await.unwrap();
        let error = live.write(0, vec![3; 10].into()).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::SHUTDOWN), "{error}");
        assert_eq!(cluster.intruders(), Vec::<String>::new());
        // Nobody keeps himself out.
        let own = by_hand.lock_info().await.unwrap().lockers.pop_first().unwrap().0;
        by_hand.break_lock(&own).await.unwrap();
        assert!(!cluster.is_fenced(&two));
    });
}

/// As tools may do that keep nobody out.
#[test]
fn who_hears_that_another_one_has_his_lock_writes_no_more_without_it() {
    run(async {
        let cluster = Cluster::new(22, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (live, other) = (open(&one).await, open(&two).await);
        live.write(0, vec![1; 10].into()).await.unwrap();
        let owner = live.owner().unwrap();
        lock::break_it(&two, &other.shared.header, &owner).await.unwrap();
        other.write(0, vec![2; 10].into()).await.unwrap();
        live.status().wait_for(|status| !status.is_owner).await.unwrap();
        assert_eq!(live.owner(), None);
        live.write(0, vec![3; 10].into()).await.unwrap();
        assert_eq!(other.read(0, 1).await.unwrap(), [3]);
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}
