//! Nobody has to wait for a store that does not answer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use blockyard_blkmq::{Bio, Op, Sector, Status};
use blockyard_buf::Segment;
use blockyard_conformance::QueueThread;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::live::{LiveImage, Options};
use common::{MIB, Made, live_driver, wait};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_is_out_fails_when_the_queue_is_cleared_and_is_done_all_the_same() {
    let made = Made::new(MIB, Layout::new(18).unwrap(), Features::DEFAULT);
    let (bdev, driver, _threads) = live_driver(&made.store, "image");
    let (_others_thread, others) = QueueThread::start_many(1);
    let (held, holds) = mpsc::channel();
    let (go_on, may_go_on) = tokio::sync::oneshot::channel::<()>();
    let other =
        others[0].block_on(LiveImage::open(&made.store, "image", Options::default())).unwrap();
    let other = Arc::new(other);
    let owner = Arc::clone(&other);
    // The lock is with somebody who does not give it back: a write waits for that.
    others[0].spawn(async move {
        let _alone = owner.alone().await.unwrap();
        held.send(()).unwrap();
        let _told = may_go_on.await;
    });
    holds.recv().unwrap();
    let write = |byte: u8, at: u64| {
        let (tell, told) = mpsc::channel();
        let data = [Segment::from_vec(vec![byte; 4096])].into_iter().collect();
        let bio = Bio::with_data(Op::Write, Sector(at / 512), data);
        bdev.submit(0, bio.on_end(Arc::new(move |bio: Box<Bio>| tell.send(bio.status()).unwrap())));
        told
    };
    let told = write(1, 0);
    let end = Instant::now() + LIMIT;
    let ended = loop {
        // It may not have begun to wait.
        driver.clear_queue();
        match told.try_recv() {
            Ok(status) => break status,
            Err(_) => assert!(Instant::now() < end, "it waits all the same"),
        }
        blockyard_conformance::pause();
    };
    assert_eq!(ended, Status::Io);
    driver.end();
    assert_eq!(write(2, 4096).recv().unwrap(), Status::Io, "what comes fails, too");
    go_on.send(()).unwrap();
    // What was begun goes on.
    let end = Instant::now() + LIMIT;
    let there = loop {
        let there = others[0].block_on(other.read(0, 8192)).unwrap();
        if there[0] == 1 {
            break there;
        }
        assert!(Instant::now() < end, "the write that was begun is given up");
        blockyard_conformance::pause();
    };
    assert_eq!(there, [[1; 4096], [0; 4096]].concat());
    wait(driver.close()).unwrap();
    others[0].block_on(other.close()).unwrap();
}
