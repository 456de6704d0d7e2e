//! What the kernel waits for: requests for a file's data that were read from the device and are not answered yet, wherever they
//! are: put by, waiting for a tag, or with the driver.
//!
//! They are counted by epochs, so that those that came before a change can be told from those that come all the time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted by whether the epoch is even: whoever begins one has seen the last but one answered.
const PARITIES: usize = 2;

/// The epoch that a request has come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u64);

impl Epoch {
    fn parity(self) -> usize {
        usize::from(self.0 % PARITIES as u64 == 1)
    }
}

/// Those of one queue, in cache lines of its own: no other writes there.
#[derive(Default)]
#[repr(align(128))]
struct Count([AtomicU64; PARITIES]);

/// Those of a file.
pub(crate) struct Outstanding {
    epoch: AtomicU64,
    queues: Box<[Count]>,
}

impl Outstanding {
    pub(crate) fn new(queues: usize) -> Self {
        let queues = (0..queues.max(1)).map(|_| Count::default()).collect();
        Self { epoch: AtomicU64::new(0), queues }
    }

    fn of_queue(&self, queue: usize, epoch: Epoch) -> &AtomicU64 {
        &self.queues[queue % self.queues.len()].0[epoch.parity()]
    }

    /// A request has come by that queue.
    pub(crate) fn enter(&self, queue: usize) -> Epoch {
        loop {
            let epoch = Epoch(self.epoch.load(Ordering::SeqCst));
            self.of_queue(queue, epoch).fetch_add(1, Ordering::SeqCst);
            // Whoever has begun another one has either seen this request, or is seen here.
            if self.epoch.load(Ordering::SeqCst) == epoch.0 {
                return epoch;
            }
            self.leave(queue, epoch);
        }
    }

    /// It is answered.
    pub(crate) fn leave(&self, queue: usize, epoch: Epoch) {
        self.of_queue(queue, epoch).fetch_sub(1, Ordering::SeqCst);
    }

    /// Begins another epoch. Gives the one before, of which all is to be answered before this is called again.
    pub(crate) fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch.fetch_add(1, Ordering::SeqCst))
    }

    /// Whether all that has come in that epoch is answered.
    pub(crate) fn is_answered(&self, epoch: Epoch) -> bool {
        self.queues.iter().all(|count| count.0[epoch.parity()].load(Ordering::SeqCst) == 0)
    }

    /// How many are not answered.
    pub(crate) fn count(&self) -> u64 {
        let all = self.queues.iter().flat_map(|queue| &queue.0);
        all.map(|count| count.load(Ordering::SeqCst)).sum()
    }

    /// Whether all that has come is answered.
    pub(crate) fn is_idle(&self) -> bool {
        self.count() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn an_epoch_is_answered_whatever_comes_after_it() {
        let outstanding = Outstanding::new(2);
        let before = [0, 1, 1].map(|queue| (queue, outstanding.enter(queue)));
        let epoch = outstanding.next_epoch();
        let after = outstanding.enter(0);
        assert_ne!(after, epoch);
        for (queue, came) in before {
            assert_eq!(came, epoch);
            assert!(!outstanding.is_answered(epoch));
            outstanding.leave(queue, came);
        }
        assert!(outstanding.is_answered(epoch) && !outstanding.is_idle());
        assert_eq!(outstanding.next_epoch(), after);
        outstanding.enter(1);
        outstanding.leave(0, after);
        assert!(outstanding.is_answered(after) && !outstanding.is_idle());
    }

    #[test]
    fn an_epoch_ends_though_requests_come_all_the_time() {
        let (outstanding, ends) = (Arc::new(Outstanding::new(2)), Arc::new(AtomicBool::new(false)));
        let threads: Vec<_> = (0..2)
            .map(|queue| {
                let (outstanding, ends) = (Arc::clone(&outstanding), Arc::clone(&ends));
                std::thread::spawn(move || {
                    while !ends.load(Ordering::Relaxed) {
                        let epoch = outstanding.enter(queue);
                        outstanding.leave(queue, epoch);
                    }
                })
            })
            .collect();
        for _ in 0..2000 {
            let epoch = outstanding.next_epoch();
            while !outstanding.is_answered(epoch) {
                std::thread::yield_now();
            }
        }
        ends.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(outstanding.is_idle());
    }
}
