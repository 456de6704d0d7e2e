//! Timeouts and retries: calls `Disk::tick` while something is in flight, and sleeps while nothing is.
//!
//! A queue thread that is about to sleep may have left something in flight; only then can there be a deadline.
//! It rings the bell, once until the bell is armed again. The housekeeper then asks the disks when they want to
//! be called, and goes on doing so until they want nothing. In an idle daemon no thread wakes up, so nothing
//! rings.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

/// Nothing is due.
const NEVER: u64 = u64::MAX;

/// A disk that is seen to.
struct Seen {
    disk: Arc<Disk>,
    /// When it wants to be called next, as it has said itself.
    due_ns: AtomicU64,
    /// It wants to be called sooner than that.
    is_alarmed: Arc<AtomicBool>,
}

impl Seen {
    fn tick_if(&self, is_due: impl FnOnce(u64) -> bool) {
        // Taken first: one that comes meanwhile is for the next time.
        let is_alarmed = self.is_alarmed.swap(false, Ordering::AcqRel);
        if is_alarmed || is_due(self.due_ns.load(Ordering::Relaxed)) {
            self.due_ns.store(self.disk.tick().unwrap_or(NEVER), Ordering::Relaxed);
        }
    }
}

/// The disks that are seen to.
#[derive(Default)]
pub struct Watched {
    bell: Arc<Bell>,
    disks: Mutex<Arc<[Arc<Seen>]>>,
}

impl Watched {
    /// None yet.
    #[must_use]
    pub fn new(bell: Arc<Bell>) -> Self {
        Self { bell, disks: Mutex::default() }
    }

    /// Sees to one more.
    pub fn add(&self, disk: &Arc<Disk>) {
        let (bell, alarmed) = (Arc::clone(&self.bell), Arc::new(AtomicBool::new(true)));
        let is_alarmed = Arc::clone(&alarmed);
        disk.set_alarm(Arc::new(move || {
            alarmed.store(true, Ordering::Release);
            bell.alarm();
        }));
        let due_ns = AtomicU64::new(NEVER);
        let seen = Arc::new(Seen { disk: Arc::clone(disk), due_ns, is_alarmed });
        let mut disks = self.disks.lock();
        *disks = disks.iter().chain([&seen]).cloned().collect();
        // What was submitted before has rung for others only.
        self.bell.alarm();
    }

    /// Sees to it no more.
    pub fn remove(&self, disk: &Arc<Disk>) {
        let mut disks = self.disks.lock();
        *disks = disks.iter().filter(|other| !Arc::ptr_eq(&other.disk, disk)).cloned().collect();
    }

    /// Calls all disks. Says when the first wants to be called again.
    fn tick_all(&self) -> Option<u64> {
        self.tick(|_| true)
    }

    /// Calls those that have wanted that, until now.
    fn tick_due(&self, now_ns: u64) -> Option<u64> {
        self.tick(|due_ns| due_ns <= now_ns)
    }

    fn tick(&self, is_due: impl Fn(u64) -> bool) -> Option<u64> {
        let disks = Arc::clone(&self.disks.lock());
        disks.iter().for_each(|seen| seen.tick_if(&is_due));
        let due = disks.iter().map(|seen| seen.due_ns.load(Ordering::Relaxed));
        due.min().filter(|&due_ns| due_ns != NEVER)
    }
}

/// Sees to `watched` for ever, on a thread that is no queue thread.
pub async fn keep(watched: Arc<Watched>, clock: Arc<dyn Clock>) {
    let bell = Arc::clone(&watched.bell);
    let longest_ns = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    loop {
        bell.notify.notified().await;
        // A disk says nothing of what is asked of it later: all of them are called so often, and between only those that want it.
        let mut all_at_ns = 0;
        loop {
            let now_ns = clock.now_ns();
            let deadline_ns = if now_ns >= all_at_ns {
                all_at_ns = now_ns.saturating_add(longest_ns);
                watched.tick_all()
            } else {
                watched.tick_due(now_ns)
            };
            // A disk that does long work in turns wants the next one at once: what else this thread has to do has its
            // turn between.
            tokio::task::yield_now().await;
            if let Some(deadline_ns) = deadline_ns {
                let next_ns = deadline_ns.min(all_at_ns);
                let wait = Duration::from_nanos(next_ns.saturating_sub(clock.now_ns()));
                bell.sleep(wait.clamp(SHORTEST, LONGEST)).await;
                continue;
            }
            // A busy daemon has often nothing in flight at the moment: look again after a while, not at the
            // next request.
            bell.sleep(LONGEST).await;
            bell.rung.store(false, Ordering::SeqCst);
            // What was submitted before that has not rung, what comes after does.
            if watched.tick_all().is_none() {
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

    /// The time, and how often a disk was called, which asks for it each time.
    #[derive(Default)]
    struct Calls(AtomicU64);

    impl Clock for Calls {
        fn now_ns(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed);
            0
        }
    }

    #[test]
    fn an_alarm_is_for_the_disk_that_has_given_it() {
        let watched = Watched::new(Arc::default());
        let disk = |name: &str| {
            let calls = Arc::new(Calls::default());
            let set = TagSet::new(Ram::new(), TagSetConfig::default()).unwrap();
            let config = DiskConfig::new(name, Sector(8), Ram::limits());
            let clock = Arc::<Calls>::clone(&calls) as Arc<dyn Clock>;
            let disk = Disk::alloc(&set, (), config, Ram::new(), clock).unwrap();
            watched.add(&disk);
            (disk, calls)
        };
        let disks = [disk("ram0"), disk("ram1")];
        let called = || disks.each_ref().map(|(_, calls)| calls.0.swap(0, Ordering::Relaxed) > 0);
        assert_eq!((watched.tick_due(0), called()), (None, [true; 2]), "they are new");
        assert_eq!((watched.tick_due(0), called()), (None, [false; 2]));
        assert_eq!((watched.tick_all(), called()), (None, [true; 2]));
        let seen = Arc::clone(&watched.disks.lock());
        seen[1].due_ns.store(5, Ordering::Relaxed);
        assert_eq!((watched.tick_due(4), called()), (Some(5), [false; 2]));
        assert_eq!((watched.tick_due(5), called()), (None, [false, true]));
        seen[0].is_alarmed.store(true, Ordering::Relaxed);
        assert_eq!((watched.tick_due(0), called()), (None, [true, false]));
        watched.remove(&disks[0].0);
        assert_eq!((watched.tick_all(), called()), (None, [false, true]));
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
