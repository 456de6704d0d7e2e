//! What a lock is called.

use super::cluster::{Client, Cluster};
use super::protocol::{image, open, run};
use crate::format::names;
use crate::live::lock;

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
