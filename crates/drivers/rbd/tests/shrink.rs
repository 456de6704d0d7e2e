//! An image that somebody else makes smaller while it is a disk.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use blockyard_blkmq::{Bio, Op, Sector, Status};
use blockyard_buf::Segment;
use blockyard_rbd::dir::DirStore;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::live::{LiveImage, Options};
use common::{MIB, Made, wait};

/// What was acknowledged is there: so what is behind the new end is not acknowledged, and no part of it either.
#[test]
fn what_is_behind_the_new_end_fails() {
    let made = Made::new(4 * MIB, Layout::new(18).unwrap(), Features::DEFAULT);
    let (bdev, _guard) = made.open_live();
    let write = |at: u64, length: usize| {
        let data = [Segment::from_vec(vec![7; length])].into_iter().collect();
        bdev.submit_and_wait(0, Bio::with_data(Op::Write, Sector(at / 512), data)).status()
    };
    let others = |op, at: u64, length| {
        bdev.submit_and_wait(0, Bio::new(op, Sector(at / 512), length)).status()
    };
    assert_eq!(write(0, 4096), Status::Ok);
    // To the store it is another process.
    let other = DirStore::open(made.path(), false).unwrap();
    wait(async {
        let live = LiveImage::open(&other, "image", Options::default()).await.unwrap();
        live.resize(MIB + 4096, true).await.unwrap();
        live.close().await.unwrap();
    });
    assert_eq!(write(2 * MIB, 4096), Status::OutOfRange);
    assert_eq!(write(MIB, 8192), Status::OutOfRange, "it is not cut at the end");
    for op in [Op::Read, Op::WriteZeroes, Op::Discard, Op::BlockStatus] {
        assert_eq!(others(op, 2 * MIB, 4096), Status::OutOfRange, "{op:?}");
    }
    assert_eq!(write(MIB, 4096), Status::Ok);
    assert_eq!(bdev.submit_and_wait(0, Bio::flush()).status(), Status::Ok);
    let disk = Arc::clone(bdev.disk());
    disk.follow_size(MIB + 4096).unwrap();
    assert_eq!(disk.size_bytes(), MIB + 4096);
    assert_eq!(write(MIB, 4096), Status::Ok);
    assert_eq!(write(MIB + 4096, 4096), Status::OutOfRange);
}
