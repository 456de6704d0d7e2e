//! Who waits for requests: as many queues as there is work for, and one at least.
//!
//! The driver wakes everybody who waits for its device by epoll(7), for each request; one of them finds it, and the others have
//! been woken for nothing. So a queue that is mostly woken for nothing rests: it does not watch the device until another one,
//! which has more than it can do, calls it. The last one that watches never rests.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// How many more times a queue is woken for nothing than for something before it rests.
const EMPTY_WAKES: u32 = 16;
/// Turns in a row that find as much as they take, after which another queue is called.
const FULL_TURNS: u32 = 64;

/// Those of a mount.
pub(crate) struct Watchers {
    watching: AtomicUsize,
    all: usize,
    called: Notify,
    is_over: AtomicBool,
}

impl Watchers {
    /// So many queues, which all watch at first.
    pub(crate) fn new(all: usize) -> Self {
        let called = Notify::new();
        Self { watching: AtomicUsize::new(all), all, called, is_over: AtomicBool::new(false) }
    }

    /// How many watch.
    pub(crate) fn watching(&self) -> usize {
        self.watching.load(Ordering::Acquire)
    }

    /// Has one that rests watch again, if there is one.
    pub(crate) fn call(&self) {
        if self.watching() < self.all {
            self.called.notify_one();
        }
    }

    /// Whether one of two or more may stop watching, which it does then.
    fn leave(&self) -> bool {
        let fewer = |watching: usize| (watching > 1).then(|| watching - 1);
        self.watching.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok()
    }

    /// The device is of no use any more: nobody has to find that out by himself.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
    }

    pub(crate) fn are_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// One queue's part in it.
#[derive(Default)]
pub(crate) struct Watch {
    rests: bool,
    /// It was woken, and has not looked yet.
    woken: bool,
    empty_wakes: u32,
    full_turns: u32,
}

impl Watch {
    /// The device has told that there is something.
    pub(crate) fn woken(&mut self) {
        self.woken = true;
    }

    /// A turn has found so much of at most `most`, and there may be more.
    pub(crate) fn found(&mut self, came: usize, most: usize, watchers: &Watchers) {
        if std::mem::take(&mut self.woken) {
            self.empty_wakes = match came {
                0 => self.empty_wakes + 1,
                _ => self.empty_wakes.saturating_sub(1),
            };
        }
        self.full_turns = if came == most { self.full_turns + 1 } else { 0 };
        if self.full_turns == FULL_TURNS {
            self.full_turns = 0;
            watchers.call();
        }
    }

    /// Whether it is to stop watching, which counts from now on.
    pub(crate) fn is_to_rest(&mut self, watchers: &Watchers) -> bool {
        if self.empty_wakes < EMPTY_WAKES {
            return false;
        }
        self.empty_wakes = 0;
        self.rests = watchers.leave();
        self.rests
    }

    /// Waits to be called.
    pub(crate) async fn called(&self, watchers: &Watchers) {
        watchers.called.notified().await;
    }

    /// It watches again.
    pub(crate) fn rejoin(&mut self, watchers: &Watchers) {
        self.rests = false;
        watchers.watching.fetch_add(1, Ordering::AcqRel);
    }

    /// It is gone, in whatever way: another one takes its place.
    pub(crate) fn gone(&mut self, watchers: &Watchers) {
        if !std::mem::replace(&mut self.rests, true) {
            watchers.watching.fetch_sub(1, Ordering::AcqRel);
            watchers.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_for_nothing_rests_but_the_last_one() {
        let watchers = Watchers::new(2);
        let (mut one, mut two) = (Watch::default(), Watch::default());
        for _ in 0..EMPTY_WAKES {
            assert!(!one.is_to_rest(&watchers) && !two.is_to_rest(&watchers));
            one.woken();
            one.found(0, 32, &watchers);
            two.woken();
            two.found(0, 32, &watchers);
        }
        assert!(one.is_to_rest(&watchers) && !two.is_to_rest(&watchers));
        assert_eq!(watchers.watching(), 1);
        // What is found without having been woken says nothing.
        two.found(0, 32, &watchers);
        assert_eq!(two.empty_wakes, 0);
        one.rejoin(&watchers);
        two.gone(&watchers);
        two.gone(&watchers);
        assert_eq!(watchers.watching(), 1);
    }

    #[tokio::test]
    async fn who_has_too_much_calls_another() {
        let watchers = Watchers::new(2);
        let (mut one, mut two) = (Watch::default(), Watch::default());
        two.empty_wakes = EMPTY_WAKES;
        assert!(two.is_to_rest(&watchers));
        for turn in 0..FULL_TURNS * 2 {
            // One that finds less in between has not too much.
            one.found(if turn == FULL_TURNS - 1 { 31 } else { 32 }, 32, &watchers);
        }
        one.found(32, 32, &watchers);
        two.called(&watchers).await;
        two.rejoin(&watchers);
        assert_eq!(watchers.watching(), 2);
    }
}
