//! Whose turn it is to wait for the driver, among the threads of a queue.
//!
//! Who has it keeps it over a request that should take no time: to wake another for each would take longer than most do. What
//! should take no time may yet hang, as a name on a file server that has gone: so one of those in line looks at times whether it
//! is the same request still, and takes the turn over if so.

use std::time::Duration;

use parking_lot::{Condvar, MutexGuard};

/// How long a request may keep the turn. What other requests wait for at most, for each that hangs.
const MOST_KEPT: Duration = Duration::from_millis(5);

/// Who has the turn, and since when. It is part of what its threads share under one lock.
#[derive(Default)]
pub(crate) struct Turns {
    /// Counts turns: each has its number.
    number: u64,
    held: bool,
    /// Whoever has it carries a request out meanwhile.
    keeping: bool,
    /// Counts requests over which it was kept.
    kept: u64,
    /// One of those in line looks at times.
    watched: bool,
}

/// A turn. It may be over before its thread knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn(u64);

impl Turns {
    fn begin(&mut self) -> Turn {
        self.number += 1;
        (self.held, self.keeping) = (true, false);
        Turn(self.number)
    }

    /// Whether it is that turn still. Its thread is back from its request.
    pub(crate) fn resume(&mut self, turn: Turn) -> bool {
        let is_it = self.held && Turn(self.number) == turn;
        if is_it {
            self.keeping = false;
        }
        is_it
    }

    /// The turn is kept over a request.
    pub(crate) fn keep(&mut self, line: &Condvar) {
        self.keeping = true;
        self.kept += 1;
        if !self.watched {
            line.notify_one();
        }
    }

    /// Others take their turn.
    pub(crate) fn pass_on(&mut self, line: &Condvar) {
        self.held = false;
        line.notify_one();
    }

    /// Gets in line, and waits until it is the calling thread's turn. `turns` finds them in what the lock guards.
    pub(crate) fn wait<S>(
        line: &Condvar,
        shared: &mut MutexGuard<'_, S>,
        turns: impl Fn(&mut S) -> &mut Self,
    ) -> Turn {
        loop {
            let these = turns(shared);
            if !these.held {
                return these.begin();
            }
            if these.watched || !these.keeping {
                line.wait(shared);
                continue;
            }
            these.watched = true;
            let kept = these.kept;
            let has_waited = line.wait_for(shared, MOST_KEPT).timed_out();
            let these = turns(shared);
            these.watched = false;
            if has_waited && these.keeping && these.kept == kept {
                return these.begin();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_turn_that_is_kept_too_long_is_another_s() {
        let shared = Arc::new((Mutex::new(Turns::default()), Condvar::new()));
        let (turns, line) = &*shared;
        let wait = |shared: &(Mutex<Turns>, Condvar)| {
            Turns::wait(&shared.1, &mut shared.0.lock(), |turns| turns)
        };
        let mine = wait(&shared);
        assert!(turns.lock().resume(mine));
        let (tell, told) = channel();
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (shared, tell) = (Arc::clone(&shared), tell.clone());
                std::thread::spawn(move || tell.send(wait(&shared)))
            })
            .collect();
        // Whether they are in line before or after this.
        turns.lock().keep(line);
        let second = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_ne!(second, mine);
        assert!(!turns.lock().resume(mine), "it is over");
        assert!(turns.lock().resume(second));
        // Over a request of its own, again; and it is passed on.
        turns.lock().keep(line);
        let third = told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(!turns.lock().resume(second) && turns.lock().resume(third));
        turns.lock().pass_on(line);
        assert_ne!(wait(&shared), third);
        for other in others {
            other.join().unwrap().unwrap();
        }
    }
}
