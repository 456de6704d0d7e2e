//! The suite that every driver runs, on images of a real cluster that others may have open, too.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use blockyard_conformance::{Capabilities, STORES, Subject, cases};
use blockyard_lab::ceph::{Cluster, Options};
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, create};
use blockyard_rbd::store::rados::{Client, RadosStore};
use common::{MIB, open_live, wait};

const POOL: &str = "images";
const IMAGES: Capabilities =
    Capabilities { discard_zeroes: true, holes: true, can_grow: true, ..STORES };

macro_rules! cases {
    ($($case:ident)+) => {
        [$((stringify!($case), cases::$case as fn(&Subject))),+]
    };
}

/// One test, so that one cluster is started for all of them.
#[test]
fn images_of_a_cluster_are_disks_like_others() {
    let lab = Cluster::start(&Options::default()).unwrap();
    lab.create_pool(POOL, 8).unwrap();
    let arguments = ["--conf".to_owned(), lab.conf().display().to_string()];
    let client = wait(Client::shared(&arguments)).unwrap();
    let store = wait(RadosStore::open(&client, POOL, "")).unwrap();
    let all = cases![
        out_of_range unaligned read_only removed removed_under_load resized zero_length
        largest_sizes overlapping_writes flushes block_status write_zeroes discard
        secure_erase supplied_and_own_memory vectored many_queues nowait prefetch
        random_operations any_bytes file_ranges
    ];
    for (name, case) in all {
        println!("{name}");
        let (layout, features) = (Layout::new(18).unwrap(), Features::DEFAULT);
        let options = CreateOptions { size: 4 * MIB, layout, features };
        wait(create(&store, name, &options)).unwrap();
        let (bdev, guard) = open_live(&store, name);
        case(&Subject::new(bdev, guard).with(IMAGES));
    }
}
