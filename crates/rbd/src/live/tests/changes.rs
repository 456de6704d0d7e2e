//! Several who change an image as a whole at the same time: nobody loses data by it, and nobody hears what is not so.

use super::cluster::{Client, Cluster};
use super::protocol::{OBJECT, SIZE, image, open, run};
use crate::format::Features;
use crate::image::Image;
use crate::store::{ObjectStore, Op, Request};
use rustix::io::Errno;
use std::time::Duration;

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
