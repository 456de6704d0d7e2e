//! Waiting for a bio: by blocking the thread, or as a future.

use std::sync::Arc;

use event_listener::{Event, Listener};
use parking_lot::Mutex;

use crate::bdev::Bdev;
use crate::bio::{Bio, EndIo};

#[derive(Default)]
struct Slot {
    bio: Mutex<Option<Box<Bio>>>,
    ended: Event,
}

impl EndIo for Slot {
    fn end_io(&self, bio: Box<Bio>) {
        *self.bio.lock() = Some(bio);
        self.ended.notify(usize::MAX);
    }
}

impl Slot {
    fn submit(bdev: &Bdev, cpu: usize, mut bio: Box<Bio>) -> Arc<Self> {
        let slot = Arc::<Self>::default();
        bio.set_end(Arc::<Self>::clone(&slot));
        bdev.submit(cpu, bio);
        slot
    }
}

impl Bdev {
    /// Submits `bio` and blocks until it has ended. Never on a thread that the driver's completions come by.
    #[must_use]
    pub fn submit_and_wait(&self, cpu: usize, bio: Box<Bio>) -> Box<Bio> {
        let slot = Slot::submit(self, cpu, bio);
        loop {
            let listener = slot.ended.listen();
            if let Some(bio) = slot.bio.lock().take() {
                return bio;
            }
            listener.wait();
        }
    }

    /// Submits `bio` at once; the future is ready when it has ended.
    pub fn submit_async(
        &self,
        cpu: usize,
        bio: Box<Bio>,
    ) -> impl Future<Output = Box<Bio>> + Send + use<> {
        let slot = Slot::submit(self, cpu, bio);
        async move {
            loop {
                let listener = slot.ended.listen();
                if let Some(bio) = slot.bio.lock().take() {
                    return bio;
                }
                listener.await;
            }
        }
    }
}
