//! What a driver has of a hardware queue.

use std::fmt;
use std::sync::Weak;

use super::Hctx;
use crate::driver::Driver;
use crate::queue_map::QueueType;

/// A driver's way back to one of its hardware queues. It keeps nothing alive.
pub struct HctxHandle<D: Driver>(pub(super) Weak<Hctx<D>>);

impl<D: Driver> Clone for HctxHandle<D> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

impl<D: Driver> HctxHandle<D> {
    /// Which of the disk's hardware queues it is.
    #[must_use]
    pub fn index(&self) -> usize {
        self.0.upgrade().map_or(0, |hctx| hctx.index)
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> QueueType {
        self.0.upgrade().map_or(QueueType::Default, |hctx| hctx.kind)
    }

    /// How many requests can be out.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.0.upgrade().map_or(0, |hctx| hctx.tags.depth())
    }

    /// Requests that were handed back can be taken now.
    pub fn run(&self) {
        if let Some(hctx) = self.0.upgrade() {
            hctx.run();
        }
    }

    /// Works on the driver's part of the queue, as a completion does. Not to be called from within the driver's
    /// own methods. `None`: the queue is gone.
    pub fn with<R>(&self, f: impl FnOnce(&mut D::Hctx) -> R) -> Option<R> {
        self.0.upgrade()?.with_driver(f)
    }
}

impl<D: Driver> fmt::Debug for HctxHandle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hctx {}", self.index())
    }
}
