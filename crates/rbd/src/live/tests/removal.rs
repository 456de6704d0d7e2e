//! Images that are removed while others want them.

use super::cluster::{Client, Cluster};
use super::protocol::{SIZE, image, open, run};
use crate::image::{Image, trash};
use crate::live::{remove, remove_from_trash};
use blockyard_rados::encoding::Utime;

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
