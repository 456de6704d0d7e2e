//! Where ended bios wait for their queue.

use blockyard_blkmq::{Bio, EndIo};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Ended bios of one queue. The disk puts them in, from whatever thread; the queue's task is woken if it sleeps.
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    ended: Vec<Box<Bio>>,
    asleep: bool,
}

impl Outbox {
    /// Moves what has ended to `into`, which is empty.
    pub(crate) fn take(&self, into: &mut Vec<Box<Bio>>) {
        debug_assert!(into.is_empty(), "what was taken before is lost");
        std::mem::swap(&mut self.state.lock().ended, into);
    }

    /// Waits until something has ended.
    pub(crate) async fn filled(&self) {
        {
            let mut state = self.state.lock();
            if !state.ended.is_empty() {
                return;
            }
            state.asleep = true;
        }
        // A word that comes in between is kept for whoever waits next.
        self.wake.notified().await;
    }
}

impl EndIo for Outbox {
    fn end_io(&self, bio: Box<Bio>) {
        let wake = {
            let mut state = self.state.lock();
            state.ended.push(bio);
            std::mem::take(&mut state.asleep)
        };
        if wake {
            self.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use blockyard_blkmq::Status;

    use super::*;

    #[tokio::test]
    async fn a_sleeper_wakes_and_one_who_is_late_does_not_sleep() {
        let outbox = Arc::new(Outbox::default());
        let end = |outbox: &Arc<Outbox>| {
            Bio::flush().on_end(Arc::<Outbox>::clone(outbox)).end(Status::Ok);
        };
        end(&outbox);
        outbox.filled().await;
        let mut ended = Vec::new();
        outbox.take(&mut ended);
        assert_eq!(ended.len(), 1);
        ended.clear();
        let sleeper = tokio::spawn({
            let outbox = Arc::clone(&outbox);
            async move { outbox.filled().await }
        });
        tokio::task::yield_now().await;
        end(&outbox);
        sleeper.await.unwrap();
    }
}
