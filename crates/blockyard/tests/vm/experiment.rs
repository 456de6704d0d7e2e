//! The experiment: a 2 MiB RAM disk with 3 minors and 2 hardware queues of depth 2. The guest's kernel finds its
//! partitions, one takes mke2fs and is mounted, and its files are there after it was mounted again.

use crate::{nbd_guest, serve_tcp, succeed};
use tempfile::TempDir;

#[test]
fn the_two_mebibyte_disk_in_proc_partitions() {
    let (daemon, port) = serve_tcp(
        TempDir::new().unwrap(),
        0,
        &["ram:2M?minors=3&queues=2&depth=2", "--threads", "2"],
    );
    let script = format!("PORT={port}\n{}", include_str!("experiment.sh"));
    succeed(nbd_guest().program("sfdisk").program("mke2fs").script(&script).boot().unwrap());
    daemon.stop();
}
