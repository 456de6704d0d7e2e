//! What becomes of a disk while it is used, for tasks that tell others of it in their own time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bitflags::bitflags;
use event_listener::Event as Bell;

use crate::disk::{Disk, DiskListener, Event};

bitflags! {
    /// What has changed. What it is now is asked of the disk.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Changed: u8 {
        /// Its size.
        const SIZE = 1 << 0;
        /// Whether it may be written.
        const READ_ONLY = 1 << 1;
        /// Its medium.
        const MEDIUM = 1 << 2;
        /// Its partitions.
        const PARTITIONS = 1 << 3;
        /// Its limits.
        const THROTTLE = 1 << 4;
    }
}

#[derive(Default)]
struct Heard {
    changed: AtomicU8,
    bell: Bell,
}

impl Heard {
    fn add(&self, changed: Changed) {
        self.changed.fetch_or(changed.bits(), Ordering::AcqRel);
        self.bell.notify(usize::MAX);
    }
}

impl DiskListener for Heard {
    fn event(&self, _disk: &Disk, event: Event) {
        self.add(match event {
            Event::Resized { .. } => Changed::SIZE,
            Event::ReadOnly(_) => Changed::READ_ONLY,
            Event::MediaChanged => Changed::MEDIUM,
            Event::Partitions => Changed::PARTITIONS,
            Event::Throttled => Changed::THROTTLE,
            Event::Added | Event::Removed | Event::Faults => return,
        });
    }
}

/// The changes of a disk, as long as this lives: those that come while nobody waits are told together, later. Somebody who tells
/// others of them, and has to wait for these, keeps nobody who changes the disk.
pub struct Changes(Arc<Heard>);

impl Changes {
    /// From now on.
    #[must_use]
    pub fn of(disk: &Disk) -> Self {
        let heard = Arc::<Heard>::default();
        let listener: Arc<dyn DiskListener> = Arc::clone(&heard) as _;
        disk.subscribe(&listener);
        Self(heard)
    }

    /// Waits until something has changed that was not told of; says what.
    pub async fn next(&mut self) -> Changed {
        loop {
            let bell = self.0.bell.listen();
            let changed = Changed::from_bits_truncate(self.0.changed.swap(0, Ordering::AcqRel));
            if !changed.is_empty() {
                return changed;
            }
            bell.await;
        }
    }

    /// Tells of these, whether or not they have changed.
    pub fn repeat(&self, changed: Changed) {
        self.0.add(changed);
    }
}
