//! Where ended bios wait for the task that submitted them.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::bio::{Bio, EndIo};
use crate::op::Op;

/// The outbox of a front-end's queue or connection: the disk puts ended bios in, from whatever thread, and wakes the
/// task that submits them if it sleeps.
#[derive(Default)]
pub struct Outbox(Mutex<State>);

#[derive(Default)]
struct State {
    ended: Vec<Box<Bio>>,
    /// Set while the task sleeps.
    sleeper: Option<Waker>,
    /// Nobody wants to know how anything ends, but that it has.
    abandoned: bool,
    /// The task is gone.
    closed: bool,
}

impl Outbox {
    /// Moves what has ended to `into`, which is empty.
    pub fn take(&self, into: &mut Vec<Box<Bio>>) {
        debug_assert!(into.is_empty(), "what was taken before is lost");
        std::mem::swap(&mut self.0.lock().ended, into);
    }

    /// Asks to be woken. Says whether something has ended already.
    pub fn sleep(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Some(cx.waker().clone());
        !state.ended.is_empty()
    }

    /// Asks not to be woken any more.
    pub fn awake(&self) {
        self.0.lock().sleeper = None;
    }

    /// Waits until something has ended.
    pub async fn filled(&self) {
        poll_fn(|cx| if self.sleep(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        self.awake();
    }

    /// Wakes the task, if it sleeps in [`Outbox::sleep`], though nothing has ended: there is other news.
    pub fn kick(&self) {
        let sleeper = self.0.lock().sleeper.take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// From now on, what has not begun need not; the rest is waited for nevertheless.
    pub fn abandon(&self) {
        self.0.lock().abandoned = true;
    }

    /// From now on, nobody is interested.
    pub fn close(&self) {
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
    fn end_io(&self, mut bio: Box<Bio>) {
        if bio.op != Op::Read {
            // The memory of a write is not needed any more.
            drop(bio.take_data());
        }
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

    fn is_gone(&self) -> bool {
        let state = self.0.lock();
        state.closed || state.abandoned
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_a_sleeper_once_and_nobody_else() {
        let (outbox, count) = (Arc::new(Outbox::default()), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let end = || Bio::flush().on_end(Arc::<Outbox>::clone(&outbox)).end(Default::default());
        end();
        assert!(outbox.sleep(&Context::from_waker(&waker)), "one has ended before");
        end();
        end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let mut ended = Vec::new();
        outbox.take(&mut ended);
        assert_eq!(ended.len(), 3);
        assert!(!outbox.sleep(&Context::from_waker(&waker)));
        outbox.awake();
        end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_ends_after_its_task_is_freed() {
        let outbox = Arc::new(Outbox::default());
        let bio = Bio::flush().on_end(Arc::<Outbox>::clone(&outbox));
        let early = Bio::flush().on_end(Arc::<Outbox>::clone(&outbox));
        early.end(Default::default());
        outbox.close();
        bio.end(Default::default());
        assert_eq!(Arc::strong_count(&outbox), 1);
    }

    #[test]
    fn what_was_abandoned_is_waited_for() {
        let outbox = Arc::new(Outbox::default());
        let bio = Bio::flush().on_end(Arc::<Outbox>::clone(&outbox));
        assert!(!outbox.is_gone());
        outbox.abandon();
        assert!(outbox.is_gone());
        bio.end(Default::default());
        let mut ended = Vec::new();
        outbox.take(&mut ended);
        assert_eq!(ended.len(), 1);
    }

    #[test]
    fn a_task_waits_until_something_has_ended() {
        let (outbox, count) = (Arc::new(Outbox::default()), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut filled = pin!(outbox.filled());
        assert!(filled.as_mut().poll(&mut cx).is_pending());
        Bio::flush().on_end(Arc::<Outbox>::clone(&outbox)).end(Default::default());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(filled.as_mut().poll(&mut cx).is_ready());
    }
}
