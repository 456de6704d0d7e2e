//! The queue of a disk, for those who tune it, hold it, or look at it (kernel: `/sys/block/DISK/queue`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Disk, Event};
use crate::driver::InFlight;
use crate::error::Result;
use crate::queue::Queue;
use crate::sched::Kind;
use crate::stats::QueueStats;
use crate::throttle::{Throttle, ThrottleGroup};

impl Disk {
    /// The scheduler that orders its requests.
    #[must_use]
    pub fn scheduler(&self) -> Kind {
        self.queue.scheduler()
    }

    /// Changes the scheduler, under load too. Blocks until what is out has ended.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] where the driver wants none.
    ///
    /// [`ErrorKind::NotSupported`]: crate::ErrorKind::NotSupported
    pub fn set_scheduler(&self, kind: Kind) -> Result<()> {
        self.warn_of_stalled();
        self.queue.set_scheduler(kind)
    }

    /// Reads a tunable of its scheduler, having set it if `value` is given.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an unknown name or a value out of range, [`ErrorKind::NotSupported`] without
    /// a scheduler.
    ///
    /// [`ErrorKind::Invalid`]: crate::ErrorKind::Invalid
    /// [`ErrorKind::NotSupported`]: crate::ErrorKind::NotSupported
    pub fn tune_scheduler(&self, name: &str, value: Option<u64>) -> Result<u64> {
        self.queue.tune(name, value)
    }

    /// Requests that each of its hardware queues may hold, waiting ones included (sysfs: `nr_requests`).
    #[must_use]
    pub fn nr_requests(&self) -> usize {
        self.queue.requests()
    }

    /// Changes that number. Blocks until what is out has ended.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for none, or more than there are tags where no scheduler sorts.
    ///
    /// [`ErrorKind::Invalid`]: crate::ErrorKind::Invalid
    pub fn set_nr_requests(&self, count: usize) -> Result<()> {
        self.warn_of_stalled();
        self.queue.set_requests(count)
    }

    /// Has it keep to the limits of these groups, and no others: its own, and those of whatever it belongs to. What waits for the
    /// old ones keeps to the new ones. Whoever sets them ticks the disk ([`Disk::set_alarm`]).
    pub fn set_throttle(&self, groups: Vec<Arc<ThrottleGroup>>) {
        let mut kept_to = self.throttle.lock();
        groups.iter().for_each(|group| group.join(&self.queue));
        self.queue.set_throttle(&groups);
        let old = std::mem::replace(&mut *kept_to, groups);
        for group in old.iter().filter(|old| !kept_to.iter().any(|now| Arc::ptr_eq(old, now))) {
            group.leave(&self.queue);
        }
    }

    /// Changes its limits, at one moment: those of the first of its groups, which it gets if it has none. What waits keeps to the
    /// new ones.
    pub fn update_throttle(&self, change: impl FnOnce(&mut Throttle)) {
        match self.throttle().first() {
            Some(group) => group.update(change),
            None => {
                let mut throttle = Throttle::default();
                change(&mut throttle);
                self.set_throttle(vec![ThrottleGroup::new(throttle)]);
            }
        }
        self.notify(Event::Throttled);
    }

    /// The groups whose limits it keeps to.
    #[must_use]
    pub fn throttle(&self) -> Vec<Arc<ThrottleGroup>> {
        self.throttle.lock().clone()
    }

    /// Its limits keep nothing for longer than `longest`, as long as what this returns lives: where somebody waits for the end of
    /// what they keep, and cannot. What is let in before its time is paid for by what comes later to it, for up
    /// to a second.
    pub fn limit_waits(&self, longest: Duration) -> WaitLimit {
        let queue = Arc::downgrade(&self.queue);
        let longest_ns = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        let limit = WaitLimit { queue, limits: Arc::clone(&self.wait_limits), longest_ns };
        limit.change(&*self.queue, |limits| limits.push(longest_ns));
        self.queue.admit_due();
        limit
    }

    /// Lets in what has come by now, whatever its limits, also what has not got as far as those yet: for who waits until that has
    /// ended, and asks for nothing more. What comes later is kept as ever. It is paid for as with [`Disk::limit_waits`].
    pub fn admit_kept(&self) {
        self.queue.admit_kept();
    }

    /// How long ago it was asked for the oldest of what it has not answered: whatever that waits for, its limits, a fault, a tag,
    /// a lock or the driver, and however it is cut.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        self.queue.oldest_age_ns().map(Duration::from_nanos)
    }

    /// How long a request may be out before its driver is asked about it.
    pub fn set_timeout(&self, timeout: std::time::Duration) {
        self.queue.set_timeout(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Holds new I/O back, and waits until what is out has ended. Balance it with [`Disk::unfreeze`].
    pub fn freeze(&self) {
        self.warn_of_stalled();
        self.queue.freeze();
    }

    /// Holds new I/O back, and does not wait for what is out (kernel: `blk_freeze_queue_start`). Balance it with
    /// [`Disk::unfreeze`].
    pub fn start_freeze(&self) {
        self.warn_of_stalled();
        self.queue.start_freeze();
    }

    /// Lets I/O go on.
    pub fn unfreeze(&self) {
        self.queue.unfreeze();
    }

    /// Sends nothing more to the driver; what it has may end. Balance it with [`Disk::unquiesce`]. Waits for whoever is
    /// with the driver now, so that it is not for an [`EndIo`](crate::EndIo), which may be called by that one: see
    /// [`Disk::quiesce_nowait`].
    pub fn quiesce(&self) {
        self.queue.quiesce();
    }

    /// As [`Disk::quiesce`], from anywhere: what is on its way to the driver may still get there (kernel:
    /// `blk_mq_quiesce_queue_nowait`).
    pub fn quiesce_nowait(&self) {
        self.queue.quiesce_nowait();
    }

    /// Sends to the driver again.
    pub fn unquiesce(&self) {
        self.queue.unquiesce();
    }

    /// What it has done so far, and for how many milliseconds it was busy.
    #[must_use]
    pub fn stats(&self) -> (QueueStats, u64) {
        (self.queue.stats(), self.queue.busy_ms())
    }

    /// What is with the driver now: the hardware queue, and the request.
    #[must_use]
    pub fn in_flight(&self) -> Vec<(usize, InFlight)> {
        self.queue.in_flight()
    }

    /// The state of its queues in many words, for people who look for what is stuck.
    #[must_use]
    pub fn show(&self) -> String {
        self.queue.show()
    }

    /// Sees to timeouts and to what is to be tried again. Says when to call again, in the clock's time; a
    /// second later is always early enough.
    pub fn tick(&self) -> Option<u64> {
        let now_ns = self.queue.clock().now_ns();
        let next_ns = self.tick_faults(now_ns);
        self.queue.tick(now_ns).into_iter().chain(next_ns).min()
    }

    /// Has `alarm` called, from whatever thread, when [`Disk::tick`] has something to do sooner than it said last. Who
    /// sets it ticks the disk, on a thread that may take its time: drivers leave the rest of long work to it.
    pub fn set_alarm(&self, alarm: Arc<dyn Fn() + Send + Sync>) {
        self.queue.set_alarm(alarm);
    }
}

/// As long as it lives, the limits of a disk keep nothing for longer than it was [made](Disk::limit_waits) with.
#[must_use]
pub struct WaitLimit {
    queue: Weak<dyn Queue>,
    limits: Arc<Mutex<Vec<u64>>>,
    longest_ns: u64,
}

impl WaitLimit {
    /// Changes which there are: the shortest holds.
    fn change(&self, queue: &dyn Queue, change: impl FnOnce(&mut Vec<u64>)) {
        let mut limits = self.limits.lock();
        change(&mut limits);
        queue.set_longest_wait(limits.iter().copied().min().unwrap_or(u64::MAX));
    }
}

impl Drop for WaitLimit {
    fn drop(&mut self) {
        let Some(queue) = self.queue.upgrade() else { return };
        self.change(&*queue, |limits| {
            if let Some(at) = limits.iter().position(|&limit| limit == self.longest_ns) {
                limits.swap_remove(at);
            }
        });
    }
}
