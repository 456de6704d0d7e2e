//! The end of a session: one event, whoever has brought it about.

use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{Bio, Outbox, Status};
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind};
use crate::tree::Tree;

/// When the last queue has ended, what was written is made durable, on all disks at once; then it is over.
pub(crate) struct Ending {
    state: Arc<(Mutex<State>, Condvar)>,
    /// Closed when it is over.
    alive: watch::Receiver<()>,
}

#[derive(Default)]
struct State {
    is_over: bool,
    /// What is not durable, and why; `None` if nobody has tried.
    flushed: Option<Vec<String>>,
}

/// It is over when this is dropped, also by a runtime that ends.
struct Living {
    state: Arc<(Mutex<State>, Condvar)>,
    /// Dropped after it was said.
    _living: watch::Sender<()>,
}

impl Drop for Living {
    fn drop(&mut self) {
        self.state.0.lock().is_over = true;
        self.state.1.notify_all();
    }
}

impl Ending {
    /// That of the session of `queues`, by the first queue thread.
    pub(crate) fn new(queues: Vec<JoinHandle<()>>, tree: Arc<Tree>, runtime: &Handle) -> Self {
        let (living, alive) = watch::channel(());
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let living = Living { state: Arc::clone(&state), _living: living };
        runtime.spawn(async move {
            for queue in queues {
                // One that has panicked has said so.
                let _ = queue.await;
            }
            let failed = flush(&tree).await;
            for error in &failed {
                tracing::error!(%error, "writes to a disk may be lost");
            }
            living.state.0.lock().flushed = Some(failed);
        });
        Self { state, alive }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.0.lock().is_over
    }

    pub(crate) async fn over(&self) {
        let mut alive = self.alive.clone();
        // Nothing is ever sent: it is closed in the end.
        while alive.changed().await.is_ok() {}
    }

    /// Waits until it is over, but no longer than this; says whether it is.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let mut state = self.state.0.lock();
        self.state.1.wait_while_for(&mut state, |state| !state.is_over, patience);
        state.is_over
    }

    /// Whether all is durable, once it is over.
    pub(crate) fn result(&self) -> Result<(), Error> {
        let state = self.state.0.lock();
        let what = match &state.flushed {
            Some(failed) if failed.is_empty() => return Ok(()),
            Some(failed) => failed.join("; "),
            None => "nothing was made durable: the queue threads have ended first".to_owned(),
        };
        Err(Error::new(ErrorKind::Io, what))
    }
}

/// Makes durable what was written to the disks, also to those that cannot be written any more. Says what could not be.
async fn flush(tree: &Tree) -> Vec<String> {
    let nodes = tree.nodes();
    let outbox = Arc::new(Outbox::default());
    for node in nodes.files.values() {
        let mut bio = Bio::flush().on_end(Arc::<Outbox>::clone(&outbox));
        bio.private = node.id;
        node.bdev.submit(0, bio);
    }
    let (mut failed, mut ended, mut left) = (Vec::new(), Vec::new(), nodes.files.len());
    while left > 0 {
        outbox.filled().await;
        outbox.take(&mut ended);
        for bio in ended.drain(..) {
            left -= 1;
            // What has no flush has not promised anything, and what is gone has been flushed as it went.
            if !matches!(bio.status(), Status::Ok | Status::NotSupported | Status::Offline) {
                let name = nodes.files.get(&bio.private).map_or("a disk", |node| &node.name);
                failed.push(format!("{name} cannot be made durable: {}", bio.status()));
            }
        }
    }
    failed
}
