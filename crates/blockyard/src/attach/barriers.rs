//! Order among the connections of a device of the kernel's NBD client.
//!
//! The kernel that waits too long for an answer asks the same on another connection at once, while what it had asked first
//! may still be with the disk, and end after something newer. With several connections nothing is let in, every so often,
//! before all that came earlier has ended: what is asked again finds the first one ended. That goes on whatever becomes of
//! the connections.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{io, thread};

use blockyard_blkmq::{Bdev, Disk, WaitLimit};

/// So often in the time after which the kernel gives a connection up, all that the disk was asked has ended.
const BARRIERS: u32 = 4;

/// How long a disk is left alone that has begun nothing of what it was asked: nothing is sent to it for now.
const PAUSE: Duration = Duration::from_millis(1);

/// Sees to it as long as it lives.
pub(super) struct Barriers {
    _stop: mpsc::Sender<()>,
    _longest_wait: Option<WaitLimit>,
}

impl Barriers {
    /// For a device whose connections the kernel gives up after `timeout`. Of a single one, only what the limits of the disk
    /// keep is let in before that.
    pub(super) fn start(
        bdev: &Arc<Bdev>,
        connections: usize,
        timeout: Duration,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        if connections <= 1 {
            // No other is asked, but the kernel gives up the only one on which it waits for too long.
            let longest_wait = Some(bdev.disk().limit_waits(timeout / 2));
            return Ok(Self { _stop: stop, _longest_wait: longest_wait });
        }
        let bdev = Arc::clone(bdev);
        thread::Builder::new().name("nbd-barriers".into()).spawn(move || {
            let interval = interval(timeout);
            // One that comes late puts off the next: several at once would only keep requests out.
            while stopped.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                if is_due(bdev.disk(), timeout) {
                    one_or_more(interval, || {
                        let begun = Instant::now();
                        until_all_has_ended(bdev.disk());
                        begun.elapsed()
                    });
                }
            }
        })?;
        Ok(Self { _stop: stop, _longest_wait: None })
    }
}

fn interval(timeout: Duration) -> Duration {
    timeout / BARRIERS
}

/// Whether something is with the disk that the kernel may ask again before the next but one barrier.
fn is_due(disk: &Disk, timeout: Duration) -> bool {
    let half = timeout / 2;
    disk.oldest().is_some_and(|oldest| oldest >= half)
}

/// What had to wait for a barrier that took long may have been asked again while it did: both are let in together then, and
/// the next barrier follows at once, so that nothing newer is before both have ended. Says how many it took.
fn one_or_more(long: Duration, mut barrier: impl FnMut() -> Duration) -> usize {
    let mut count = 1;
    while barrier() >= long {
        count += 1;
    }
    count
}

/// Waits for all that the disk was asked so far, and lets nothing in meanwhile. A connection may be gone while what it had
/// asked is still with the disk.
pub(super) fn until_all_has_ended(disk: &Disk) {
    let begun = Instant::now();
    // What its limits keep would end after something newer.
    let _no_waits = disk.limit_waits(Duration::ZERO);
    loop {
        disk.freeze();
        disk.unfreeze();
        // What has waited for a tag, as there are more requests than these, is out only now. First the time, so that nothing
        // is taken to have come later than it has.
        let since = begun.elapsed();
        if disk.oldest().is_none_or(|oldest| oldest < since) {
            return;
        }
        if disk.in_flight().is_empty() {
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use blockyard_blkmq::{
        Bio, BlockLayer, Clock, EndIo, Limits, MonotonicClock, Op, OpenMode, Sector, Status,
        TagSetConfig,
    };
    use blockyard_conformance::{HeldDisk, pause};

    use super::*;
    use crate::disks::DiskMaker;
    use crate::yard::queue_threads::QueueThreads;

    /// How long anything may take.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_asked_again_comes_after_a_barrier() {
        for seconds in [1, 3, 86400] {
            let timeout = Duration::from_secs(seconds);
            let interval = interval(timeout);
            // What has its first barrier behind it has another before it is asked again.
            assert!(!interval.is_zero() && interval * 2 <= timeout / 2);
        }
    }

    #[test]
    fn what_was_asked_twice_while_it_waited_ends_before_anything_newer_is_let_in() {
        let long = Duration::from_secs(1);
        let mut took = [3000, 1000, 999, 5000].map(Duration::from_millis).into_iter();
        assert_eq!(one_or_more(long, || took.next().unwrap()), 3);
        assert_eq!(took.len(), 1);
        assert_eq!(one_or_more(long, || Duration::ZERO), 1);
    }

    /// A device whose connections the kernel gives up before the disk answers.
    #[test]
    fn a_barrier_lets_nothing_in_before_what_came_earlier_has_ended() {
        let held = HeldDisk::new(TagSetConfig::default(), 1 << 20, Limits::default());
        let disk = Arc::clone(&held.disk);
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let (tell, told) = mpsc::channel();
        let write = |name: &'static str| {
            let tell = tell.clone();
            let ended = move |bio: Box<Bio>| tell.send((name, bio.status())).unwrap();
            bdev.submit(0, Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(ended)));
        };
        write("first");
        held.wait_for(1);
        assert!(!is_due(&disk, Duration::from_secs(3600)), "it is young");
        assert!(is_due(&disk, Duration::ZERO));
        let (stood, stands) = mpsc::channel();
        let barrier = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || {
                until_all_has_ended(&disk);
                stood.send(()).unwrap();
            })
        };
        let end = Instant::now() + PATIENCE;
        while !disk.show().contains("frozen 1") {
            assert!(Instant::now() < end, "no barrier has begun: {}", disk.show());
            pause();
        }
        write("again");
        assert_eq!((held.held(), stands.try_recv().is_err()), (1, true));
        assert_eq!(held.release(Status::Ok), 1);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), ("first", Status::Ok));
        stands.recv_timeout(PATIENCE).unwrap();
        barrier.join().unwrap();
        held.wait_for(1);
        assert_eq!(held.release(Status::Ok), 1);
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), ("again", Status::Ok));
        assert!(!is_due(&disk, Duration::ZERO), "nothing is with the disk");
        drop(bdev);
        BlockLayer::new().del_disk(&disk);
    }

    /// While the first is out, whose thread stands still, and the barrier has begun.
    #[test]
    fn what_is_asked_again_elsewhere_waits_for_what_was_asked_first() {
        let threads = QueueThreads::start(2).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let plan = "null:1M?latency=1ms".parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let disk = Arc::clone(open.disk());
        let bdev = Arc::new(disk.open(None, OpenMode::ReadWrite).unwrap());
        let (tell, told) = mpsc::channel();
        let (let_go, stands) = mpsc::channel::<()>();
        let (submit, submitted) = mpsc::channel();
        let write = |name: &'static str, thread: usize, stands: Option<mpsc::Receiver<()>>| {
            let (bdev, tell, submit) = (Arc::clone(&bdev), tell.clone(), submit.clone());
            let ended = move |_: Box<Bio>| tell.send(name).unwrap();
            let bio = Bio::new(Op::WriteZeroes, Sector(0), 4096).on_end(Arc::new(ended));
            threads.handles()[thread].spawn(async move {
                bdev.submit(thread, bio);
                submit.send(()).unwrap();
                // It ends on this thread, after this.
                let _ = stands.map(|stands| stands.recv());
            });
            submitted.recv_timeout(PATIENCE).unwrap();
        };
        write("first", 0, Some(stands));
        let barriers = Barriers::start(&bdev, 2, Duration::from_millis(4)).unwrap();
        let end = Instant::now() + PATIENCE;
        while !disk.show().contains("frozen 1") {
            assert!(Instant::now() < end, "no barrier has begun: {}", disk.show());
            pause();
        }
        write("again", 1, None);
        assert_eq!(disk.in_flight().len(), 1, "{}", disk.show());
        assert!(told.try_recv().is_err());
        drop(let_go);
        let order = [(); 2].map(|()| told.recv_timeout(PATIENCE).unwrap());
        assert_eq!(order, ["first", "again"]);
        drop((barriers, bdev));
        layer.del_disk(&disk);
        threads.shutdown();
    }

    /// A disk of that plan, opened.
    fn limited(plan: &str) -> (QueueThreads, Arc<BlockLayer>, Arc<Bdev>) {
        let threads = QueueThreads::start(1).unwrap();
        let layer = Arc::new(BlockLayer::new());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let plan = plan.parse().unwrap();
        let open = DiskMaker::new(&layer, threads.handles(), clock).open(&plan).unwrap();
        let bdev = Arc::new(open.disk().open(None, OpenMode::ReadWrite).unwrap());
        (threads, layer, bdev)
    }

    #[derive(Default)]
    struct Ended(AtomicUsize);

    impl EndIo for Ended {
        fn end_io(&self, bio: Box<Bio>) {
            assert_eq!(bio.status(), Status::Ok);
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn write(bdev: &Bdev, count: u64) -> Arc<Ended> {
        let ended = Arc::<Ended>::default();
        for at in 0..count {
            let zeroes = Bio::new(Op::WriteZeroes, Sector(8 * at), 4096);
            bdev.submit(0, zeroes.on_end(Arc::<Ended>::clone(&ended)));
        }
        ended
    }

    /// More than the disk takes at a time, let in or not.
    #[test]
    fn what_waits_for_a_tag_has_ended_as_well() {
        const COUNT: u64 = 100;
        for limits in ["", "&write_bps=1"] {
            let (threads, layer, bdev) = limited(&format!("null:1M?latency=2ms{limits}"));
            bdev.disk().set_nr_requests(8).unwrap();
            let ended = write(&bdev, COUNT);
            until_all_has_ended(bdev.disk());
            assert_eq!(ended.0.load(Ordering::SeqCst) as u64, COUNT, "{}", bdev.disk().show());
            layer.del_disk(bdev.disk());
            threads.shutdown();
        }
    }

    /// Nothing is begun before it has connections again.
    #[test]
    fn a_barrier_waits_for_a_disk_that_nothing_is_sent_to() {
        let (threads, layer, bdev) = limited("null:1M?latency=1ms");
        let disk = bdev.disk();
        disk.set_nr_requests(1).unwrap();
        disk.quiesce();
        disk.start_freeze();
        let ended = write(&bdev, 3);
        disk.unfreeze();
        let barrier = {
            let disk = Arc::clone(disk);
            thread::spawn(move || until_all_has_ended(&disk))
        };
        disk.unquiesce();
        barrier.join().unwrap();
        assert_eq!(ended.0.load(Ordering::SeqCst), 3);
        layer.del_disk(disk);
        threads.shutdown();
    }

    #[test]
    fn what_limits_keep_is_out_and_ends_before_anything_newer_is_let_in() {
        let (threads, layer, bdev) = limited("null:1M?write_bps=1");
        let ended = write(&bdev, 2);
        assert!(is_due(bdev.disk(), Duration::ZERO), "{}", bdev.disk().show());
        until_all_has_ended(bdev.disk());
        assert_eq!(ended.0.load(Ordering::SeqCst), 2);
        assert!(bdev.disk().oldest().is_none());
        layer.del_disk(bdev.disk());
        threads.shutdown();
    }

    #[test]
    fn of_a_single_connection_what_limits_keep_is_let_in_in_time() {
        let (threads, layer, bdev) = limited("null:1M?write_bps=1");
        let ended = write(&bdev, 2);
        let _barriers = Barriers::start(&bdev, 1, Duration::from_millis(20)).unwrap();
        let begun = Instant::now();
        while bdev.disk().oldest().is_some() {
            assert!(begun.elapsed() < PATIENCE, "{}", bdev.disk().show());
            pause();
            // As the daemon does.
            bdev.disk().tick();
        }
        assert_eq!(ended.0.load(Ordering::SeqCst), 2);
        layer.del_disk(bdev.disk());
        threads.shutdown();
    }
}
