//! The wish to end early, as a signal brings it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody wants an end, and whether there is something that has to be finished before it.
#[derive(Debug, Default)]
pub struct Interrupt {
    wanted: AtomicBool,
    heeded: AtomicBool,
}

impl Interrupt {
    /// Somebody wants an end. False: nothing keeps the process from ending at once, or it was told before.
    pub fn raise(&self) -> bool {
        !self.wanted.swap(true, Ordering::AcqRel) && self.heeded.load(Ordering::Acquire)
    }

    /// Whether an end is wanted.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    /// From now on, until what this returns is dropped, the first wish is seen to by whoever asks
    /// [`Interrupt::is_wanted`] often enough.
    pub fn heed(&self) -> Heeding<'_> {
        self.heeded.store(true, Ordering::Release);
        Heeding(self)
    }
}

/// Somebody asks often enough.
#[must_use]
#[derive(Debug)]
pub struct Heeding<'a>(&'a Interrupt);

impl Drop for Heeding<'_> {
    fn drop(&mut self) {
        self.0.heeded.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wish_is_seen_to_only_while_somebody_does() {
        let interrupt = Interrupt::default();
        drop(interrupt.heed());
        assert!(!interrupt.raise(), "nobody does any more");
        let interrupt = Interrupt::default();
        let heeding = interrupt.heed();
        assert!(!interrupt.is_wanted() && interrupt.raise() && interrupt.is_wanted());
        assert!(!interrupt.raise(), "the second wish");
        drop(heeding);
    }
}
