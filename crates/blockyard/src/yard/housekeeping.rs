//! Timeouts and retries: calls `Disk::tick` while something is in flight, and sleeps while nothing is.
//!
//! A queue thread that is about to sleep may have left something in flight; only then can there be a deadline.
//! It rings the bell, once until the bell is armed again. The housekeeper then asks the disks when they want to
//! be called, and goes on doing so until they want nothing. In an idle daemon no thread wakes up, so nothing
//! rings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use blockyard_blkmq::{Clock, Disk};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// "A second later is always early enough" (`Disk::tick`), and no more often than that costs anything.
const LONGEST: Duration = Duration::from_secs(1);
/// How often at most.
const SHORTEST: Duration = Duration::from_millis(1);

/// What queue threads ring.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    notify: Notify,
    /// A disk wants to be called sooner than it said.
    sooner: Notify,
}

impl Bell {
    /// Rings, also through a sleep that has begun: a disk has something to do now.
    fn alarm(&self) {
        self.sooner.notify_one();
        self.ring();
    }

    /// Sleeps so long, or until a disk has something to do.
    async fn sleep(&self, time: Duration) {
        let _either_is_fine = tokio::time::timeout(time, self.sooner.notified()).await;
    }

    /// Rings, unless it has been rung already. Cheap: a read of memory that rarely changes.
    pub fn ring(&self) {
        if !self.rung.load(Ordering::Relaxed) && !self.rung.swap(true, Ordering::SeqCst) {
            self.notify.notify_one();
        }
    }
}

/// The disks that are seen to.
#[derive(Default)]
pub struct Watched {
    bell: Arc<Bell>,
    disks: Mutex<Arc<[Arc<Disk>]>>,
}

impl Watched {
    /// None yet.
    #[must_use]
    pub fn new(bell: Arc<Bell>) -> Self {
        Self { bell, disks: Mutex::default() }
    }

    /// Sees to one more.
    pub fn add(&self, disk: &Arc<Disk>) {
        let bell = Arc::clone(&self.bell);
        disk.set_alarm(Arc::new(move || bell.alarm()));
        let mut disks = self.disks.lock();
        *disks = disks.iter().chain([disk]).cloned().collect();
        // What was submitted before has rung for others only.
        self.bell.alarm();
    }

    /// Sees to it no more.
    pub fn remove(&self, disk: &Arc<Disk>) {
        let mut disks = self.disks.lock();
        *disks = disks.iter().filter(|other| !Arc::ptr_eq(other, disk)).cloned().collect();
    }

    fn tick(&self) -> Option<u64> {
        let disks = Arc::clone(&self.disks.lock());
        disks.iter().filter_map(|disk| disk.tick()).min()
    }
}

/// Sees to `watched` for ever, on a thread that is no queue thread.
pub async fn keep(watched: Arc<Watched>, clock: Arc<dyn Clock>) {
    let bell = Arc::clone(&watched.bell);
    let tick = || watched.tick();
    loop {
        bell.notify.notified().await;
        loop {
            let deadline_ns = tick();
            // A disk that does long work in turns wants the next one at once: what else this thread has to do has its
            // turn between.
            tokio::task::yield_now().await;
            if let Some(deadline_ns) = deadline_ns {
                let wait = Duration::from_nanos(deadline_ns.saturating_sub(clock.now_ns()));
                bell.sleep(wait.clamp(SHORTEST, LONGEST)).await;
                continue;
            }
            // A busy daemon has often nothing in flight at the moment: look again after a while, not at the
            // next request.
            bell.sleep(LONGEST).await;
            bell.rung.store(false, Ordering::SeqCst);
            // What was submitted before that has not rung, what comes after does.
            if tick().is_none() {
                break;
            }
            bell.rung.store(true, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use blockyard_blkmq::{
        Bio, DiskConfig, Flags, MonotonicClock, Op, OpenMode, Sector, TagSet, TagSetConfig,
    };
    use blockyard_driver_ram::Ram;

    use super::*;

    #[tokio::test]
    async fn a_bell_wakes_once_until_it_is_armed_again() {
        let bell = Arc::new(Bell::default());
        (0..3).for_each(|_| bell.ring());
        bell.notify.notified().await;
        let again = tokio::time::timeout(Duration::from_millis(1), bell.notify.notified()).await;
        assert!(again.is_err());
        bell.rung.store(false, Ordering::SeqCst);
        bell.ring();
        bell.notify.notified().await;
    }

    #[tokio::test]
    async fn others_have_their_turn_while_a_disk_zeroes() {
        let (ram, bell) = (Ram::new(), Arc::new(Bell::default()));
        let set = TagSet::new(Arc::clone(&ram), TagSetConfig::default()).unwrap();
        let config = DiskConfig::new("ram0", Sector(1 << 20), Ram::limits());
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::new());
        let disk = Disk::alloc(&set, (), config, ram, Arc::clone(&clock)).unwrap();
        let bdev = disk.open(None, OpenMode::ReadWrite).unwrap();
        let watched = Arc::new(Watched::new(bell));
        watched.add(&disk);
        let keeper = tokio::spawn(keep(watched, clock));
        tokio::task::yield_now().await;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let zeroes = Bio::new(Op::WriteZeroes, Sector(0), 256 << 20).with_flags(Flags::NOUNMAP);
        bdev.submit(
            0,
            zeroes.on_end(Arc::new(move |_: Box<Bio>| end.store(true, Ordering::SeqCst))),
        );
        let seen = Arc::clone(&ended);
        let other = tokio::spawn(async move { seen.load(Ordering::SeqCst) });
        assert!(!other.await.unwrap(), "it ran before the last of the zeroes");
        let all = async {
            while !ended.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        keeper.abort();
    }

    #[tokio::test]
    async fn an_alarm_ends_a_sleep_also_one_that_begins_later() {
        let bell = Bell::default();
        bell.alarm();
        let slept = tokio::time::timeout(LONGEST, bell.sleep(Duration::from_secs(600))).await;
        assert!(slept.is_ok());
        bell.notify.notified().await;
    }
}
