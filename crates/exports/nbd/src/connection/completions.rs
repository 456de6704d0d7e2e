//! Where ended bios wait for their connection.

use std::task::{Context, Waker};

use blockyard_blkmq::{Bio, EndIo, Op};
use parking_lot::Mutex;

/// Bios on their way through a connection: the block layer takes and gives boxes.
pub(crate) type Bios = Vec<Box<Bio>>;

/// The outbox of a connection: the disk puts ended bios in, from whatever thread, and wakes the connection if
/// it sleeps.
#[derive(Default)]
pub(crate) struct Completions(Mutex<State>);

#[derive(Default)]
struct State {
    ended: Bios,
    /// Set while the connection sleeps.
    sleeper: Option<Waker>,
    /// The connection is gone.
    closed: bool,
}

impl Completions {
    /// Moves what has ended to `into`, which is empty.
    pub(crate) fn take(&self, into: &mut Bios) {
        debug_assert!(into.is_empty(), "what was taken before is lost");
        std::mem::swap(&mut self.0.lock().ended, into);
    }

    /// Asks to be woken. Says whether something has ended already.
    pub(crate) fn sleep(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Some(cx.waker().clone());
        !state.ended.is_empty()
    }

    /// Asks not to be woken any more.
    pub(crate) fn awake(&self) {
        self.0.lock().sleeper = None;
    }

    /// Wakes the connection, if it sleeps, to look at the state of the server.
    pub(crate) fn kick(&self) {
        let sleeper = self.0.lock().sleeper.take();
        if let Some(sleeper) = sleeper {
            sleeper.wake();
        }
    }

    /// From now on, nobody is interested.
    pub(crate) fn close(&self) {
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

impl EndIo for Completions {
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
}

#[cfg(test)]
mod tests {
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
        let (completions, count) = (Arc::new(Completions::default()), Arc::<Count>::default());
        let waker = Waker::from(Arc::clone(&count));
        let end =
            || Bio::flush().on_end(Arc::<Completions>::clone(&completions)).end(Default::default());
        end();
        assert!(completions.sleep(&Context::from_waker(&waker)), "one has ended before");
        end();
        end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let mut ended = Vec::new();
        completions.take(&mut ended);
        assert_eq!(ended.len(), 3);
        assert!(!completions.sleep(&Context::from_waker(&waker)));
        completions.awake();
        end();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_ends_after_the_connection_is_freed() {
        let completions = Arc::new(Completions::default());
        let bio = Bio::flush().on_end(Arc::<Completions>::clone(&completions));
        let early = Bio::flush().on_end(Arc::<Completions>::clone(&completions));
        early.end(Default::default());
        completions.close();
        bio.end(Default::default());
        assert_eq!(Arc::strong_count(&completions), 1);
    }
}
