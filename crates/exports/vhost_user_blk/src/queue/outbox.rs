//! Where ended bios wait for their queue.

use std::task::{Context, Waker};

use blockyard_blkmq::{Bio, EndIo};
use parking_lot::Mutex;

/// Bios on their way through a queue: the block layer takes and gives boxes.
pub(super) type Bios = Vec<Box<Bio>>;

/// The disk puts ended bios in, from whatever thread, and wakes the queue if it sleeps.
#[derive(Default)]
pub(super) struct Outbox(Mutex<State>);

#[derive(Default)]
struct State {
    ended: Bios,
    /// Set while the queue sleeps.
    sleeper: Option<Waker>,
    /// The queue is gone.
    closed: bool,
}

impl Outbox {
    /// Moves what has ended to `into`, which is empty.
    pub(super) fn take(&self, into: &mut Bios) {
        debug_assert!(into.is_empty(), "what was taken before is lost");
        std::mem::swap(&mut self.0.lock().ended, into);
    }

    /// Asks to be woken. Says whether something has ended already.
    pub(super) fn sleep(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Some(cx.waker().clone());
        !state.ended.is_empty()
    }

    /// Asks not to be woken any more.
    pub(super) fn awake(&self) {
        self.0.lock().sleeper = None;
    }

    /// From now on, nobody is interested.
    pub(super) fn close(&self) {
        let ended = {
            let mut state = self.0.lock();
            state.closed = true;
            state.sleeper = None;
            std::mem::take(&mut state.ended)
        };
        // Each holds a reference to its outbox, and is dropped with no lock held.
        drop(ended);
    }
}

impl EndIo for Outbox {
    fn end_io(&self, bio: Box<Bio>) {
        let sleeper = {
            let mut state = self.0.lock();
            if state.closed {
                drop(state);
                return;
            }
            state.ended.push(bio);
            state.sleeper.take()
        };
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }
}
