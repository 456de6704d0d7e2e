//! Lanes: tasks on the queue threads that take pieces from a planner and work on them.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc as sync};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use crate::error::{Error, Result};
use crate::queue_threads::QueueThreads;

/// Pieces that a planner is ahead of the lanes.
const AHEAD: usize = 64;
/// How often whoever waits has a look.
const LOOK: Duration = Duration::from_millis(100);

/// What is done with a piece, on the queue thread with that number.
pub(super) type Work<P> =
    dyn Fn(usize, P) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// Where a planner puts its pieces.
pub(super) struct Pieces<P> {
    sender: mpsc::Sender<P>,
    stop: Arc<AtomicBool>,
}

impl<P> Pieces<P> {
    /// Waits for a lane that takes the piece. False: nobody does any more.
    pub(super) fn put(&self, piece: P) -> bool {
        !self.stop.load(Ordering::Acquire) && self.sender.blocking_send(piece).is_ok()
    }
}

/// Runs a planner and lanes until all pieces are done, something fails, or `stop` is set; what is being worked on
/// is finished then. `look` is called every now and then.
pub(super) fn run<P: Send + 'static>(
    threads: &QueueThreads,
    depth: usize,
    stop: &Arc<AtomicBool>,
    work: &Arc<Work<P>>,
    plan: impl FnOnce(&Pieces<P>) -> Result<()> + Send,
    mut look: impl FnMut() -> Result<()>,
) -> Result<()> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let receiver = Arc::new(AsyncMutex::new(receiver));
    let failure: Arc<Mutex<Option<Error>>> = Arc::default();
    let fail = |failure: &Mutex<Option<Error>>, stop: &AtomicBool, err: Error| {
        failure.lock().get_or_insert(err);
        stop.store(true, Ordering::Release);
    };
    let (alive, ended) = sync::channel::<()>();
    for (cpu, thread) in threads.handles().iter().enumerate() {
        for _ in 0..depth {
            let (receiver, work, alive) = (Arc::clone(&receiver), Arc::clone(work), alive.clone());
            let (failure, stop) = (Arc::clone(&failure), Arc::clone(stop));
            thread.spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    let piece = receiver.lock().await.recv().await;
                    let Some(piece) = piece else { break };
                    if let Err(err) = work(cpu, piece).await {
                        fail(&failure, &stop, err);
                    }
                }
                drop(alive);
            });
        }
    }
    drop((alive, receiver));
    let pieces = Pieces { sender, stop: Arc::clone(stop) };
    std::thread::scope(|scope| {
        let planner = scope.spawn(|| {
            // With it goes the sender, so that the lanes end.
            let pieces = pieces;
            plan(&pieces)
        });
        while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if let Err(err) = look() {
                fail(&failure, stop, err);
            }
        }
        let planned = planner.join();
        let planned = planned.unwrap_or_else(|_| Err(Error::failed("the planner panicked")));
        match failure.lock().take() {
            Some(err) => Err(err),
            None => planned,
        }
    })
}
