//! Several who change an image as a whole at the same time: nobody loses data by it, and nobody hears what is not so.

use super::cluster::{Client, Cluster};
use super::protocol::{OBJECT, SIZE, image, open, run};
use crate::format::Features;
use crate::image::Image;
use crate::store::{ObjectStore, Op, Request};
use rustix::io::Errno;

#[test]
fn one_who_does_not_allow_it_does_not_shrink_what_another_has_made_larger() {
    run(async {
        let cluster = Cluster::new(20, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (one, two) = (open(&one).await, open(&two).await);
        one.resize(2 * SIZE, false).await.unwrap();
        one.write(2 * SIZE - 10, vec![7; 10].into()).await.unwrap();
        // Its owner is asked; then it is done by the one who wants it.
        for _ in 0..2 {
            let error = two.resize(SIZE + OBJECT, false).await.unwrap_err();
            assert_eq!(error.errno(), Some(Errno::INVAL), "{error}");
            assert_eq!(two.image().await.unwrap().size(), 2 * SIZE);
            one.release().await.unwrap();
        }
        assert_eq!(two.read(2 * SIZE - 10, 10).await.unwrap(), [7; 10]);
        two.resize(SIZE + OBJECT, true).await.unwrap();
        assert_eq!(two.image().await.unwrap().size(), SIZE + OBJECT);
    });
}

#[test]
fn an_image_that_is_given_a_lock_is_written_under_it_from_then_on() {
    run(async {
        let cluster = Cluster::new(21, 0);
        let client = Client::new(&cluster, 100);
        super::protocol::create_with(&client, Features::LAYERING).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (writer, other) = (open(&one).await, open(&two).await);
        writer.write(0, vec![1; 10].into()).await.unwrap();
        assert_eq!(writer.owner(), None);
        let header = writer.shared.header.clone();
        let lock = Features::EXCLUSIVE_LOCK.bits();
        let set = crate::image::method("set_features", |w| {
            w.u64(lock);
            w.u64(lock);
        });
        let request: Vec<Op> = vec![set];
        two.operate(&header, Request::write(request)).await.unwrap();
        let before = cluster.intruders().len();
        other.tell_change().await;
        writer.write(0, vec![2; 10].into()).await.unwrap();
        assert!(writer.owner().is_some());
        other.write(0, vec![3; 10].into()).await.unwrap();
        assert_eq!(writer.owner(), None);
        assert_eq!(cluster.intruders().len(), before);
        assert_eq!(Image::open(&client, "a").await.unwrap().read(0, 10).await.unwrap(), [3; 10]);
    });
}

#[test]
fn what_was_so_before_is_no_sign_that_a_slow_owner_has_done_it() {
    run(async {
        let cluster = Cluster::new(22, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (owner, other) = (open(&one).await, open(&two).await);
        owner.write(0, vec![1; 10].into()).await.unwrap();
        owner.create_snapshot("s").await.unwrap();
        let slow = async {
            let _alone = owner.alone().await.unwrap();
            cluster.pass(20).await;
        };
        let create = async {
            cluster.pass(1).await;
            (other.create_snapshot("s").await, other.remove_snapshot("t").await)
        };
        let ((), (created, removed)) = tokio::join!(slow, create);
        assert_eq!(created.unwrap_err().errno(), Some(Errno::EXIST));
        assert_eq!(removed.unwrap_err().errno(), Some(Errno::NOENT));
    });
}

#[test]
fn what_was_so_before_is_no_sign_that_a_dead_owner_has_done_it() {
    run(async {
        let cluster = Cluster::new(23, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (owner, other) = (open(&one).await, open(&two).await);
        owner.write(0, vec![1; 10].into()).await.unwrap();
        owner.create_snapshot("s").await.unwrap();
        cluster.kill(&one);
        let error = other.create_snapshot("s").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EXIST), "{error}");
        let error = other.remove_snapshot("t").await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT), "{error}");
    });
}

#[test]
fn one_who_has_lost_his_watch_and_cannot_name_his_lock_after_another_yet_is_asked() {
    run(async {
        let cluster = Cluster::new(24, 0);
        image(&cluster).await;
        let (one, two) = (Client::new(&cluster, 1), Client::new(&cluster, 2));
        let (owner, other) = (open(&one).await, open(&two).await);
        owner.write(0, vec![1; 10].into()).await.unwrap();
        let slow = async {
            // Something is under way: the lock is called after the watch that is gone.
            let _under_way = owner.image().await.unwrap();
            cluster.cut(one.number());
            cluster.pass(20).await;
        };
        let write = async {
            cluster.pass(1).await;
            other.write(0, vec![2; 10].into()).await.unwrap();
        };
        tokio::join!(slow, write);
        assert!(!cluster.is_fenced(&one));
        owner.write(0, vec![3; 10].into()).await.unwrap();
        assert_eq!(cluster.intruders(), Vec::<String>::new());
    });
}

/// An image without a map of its objects is made larger as fast as one with a map: nothing is looked for in the new part.
#[test]
fn an_image_without_a_map_grows_by_its_size_alone() {
    run(async {
        let cluster = Cluster::new(25, 0);
        let client = Client::new(&cluster, 100);
        super::protocol::create_with(&client, Features::LAYERING).await;
        let live = open(&client).await;
        live.write(0, vec![1; 10].into()).await.unwrap();
        let before = cluster.requests();
        live.resize(80_000 * OBJECT, false).await.unwrap();
        let asked = cluster.requests() - before;
        assert!(asked < 100, "{asked} requests");
        assert_eq!(live.read(79_999 * OBJECT, 10).await.unwrap(), [0; 10]);
    });
}
