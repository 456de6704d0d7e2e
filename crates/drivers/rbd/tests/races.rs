//! Requests to one object at once.
#![allow(clippy::unwrap_used, clippy::vec_box, reason = "tests")]

mod common;

use std::sync::{Arc, mpsc};

use blockyard_blkmq::{Bdev, Bio, Op, Sector, Status};
use blockyard_buf::Segment;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::Image;
use common::{MIB, Made, wait};

fn submit_together(bdev: &Bdev, bios: Vec<Box<Bio>>) {
    let (tell, told) = mpsc::channel();
    let count = bios.len();
    let mut plug: Vec<_> = bios
        .into_iter()
        .map(|bio| {
            let tell = tell.clone();
            bio.on_end(Arc::new(move |bio: Box<Bio>| tell.send(bio.status()).unwrap()))
        })
        .collect();
    bdev.submit_all(0, &mut plug);
    for _ in 0..count {
        assert_eq!(told.recv().unwrap(), Status::Ok);
    }
}

/// An object is removed while others write to it: whatever wins, the map says what is there. Who believes the map and who does
/// not read the same.
#[test]
fn the_map_says_what_is_there_whoever_removes_and_writes_at_once() {
    const OBJECT: u64 = 65536;
    let made = Made::new(2 * MIB, Layout::new(16).unwrap(), Features::DEFAULT);
    let (bdev, _guard) = made.open();
    for round in 1..=12_u8 {
        let bios = (0..8).flat_map(|object| {
            let write = |at: u64| {
                let data = [Segment::from_vec(vec![round; 4096])].into_iter().collect();
                Bio::with_data(Op::Write, Sector((object * OBJECT + at) / 512), data)
            };
            let zero = Bio::new(Op::WriteZeroes, Sector(object * OBJECT / 512), OBJECT);
            [write(0), zero, write(8192)]
        });
        submit_together(&bdev, bios.collect());
        for object in 0..8 {
            let read = Bio::new(Op::Read, Sector(object * OBJECT / 512), OBJECT);
            let bio = bdev.submit_and_wait(0, read);
            let seen: Vec<u8> = bio.data().iter().flat_map(Segment::to_vec).collect();
            let there = wait(async {
                // Nobody believes the map of an image that is not his.
                let image = Image::open(&made.store, "image").await.unwrap();
                image.read(object * OBJECT, OBJECT).await.unwrap()
            });
            assert!(seen == there, "round {round}, object {object}");
        }
    }
}
