//! The threads that own hardware queues: each runs one runtime, on which all that belongs to its queues lives.

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

use crate::error::{Error, Result};

/// Bytes of stack of a queue thread. Nothing on it recurses.
const STACK_BYTES: usize = 512 << 10;
/// The most blocking jobs of a queue thread at a time.
const BLOCKING_THREADS: usize = 4;

/// Told each time a queue thread has run out of work and is about to sleep.
pub type OnPark = Arc<dyn Fn() + Send + Sync>;

/// Running queue threads. Dropping them ends them; what runs on them is dropped.
pub struct QueueThreads {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl QueueThreads {
    /// As many threads as there are CPUs for this process.
    #[must_use]
    pub fn default_count() -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Starts `count` threads, named `bq-0` and so on.
    ///
    /// # Errors
    /// The system has no room for a thread, or for what its runtime needs.
    pub fn start(count: usize) -> Result<Self> {
        Self::start_with(count, &(Arc::new(|| {}) as OnPark))
    }

    /// As [`QueueThreads::start`]; `on_park` is called on a queue thread before it sleeps, and must be cheap.
    ///
    /// # Errors
    /// As [`QueueThreads::start`].
    pub fn start_with(count: usize, on_park: &OnPark) -> Result<Self> {
        let (stop, _) = watch::channel(false);
        let mut started = Self { handles: Vec::new(), threads: Vec::new(), stop };
        for index in 0..count.max(1) {
            let failed = |err: std::io::Error| {
                Error::failed(format!("cannot start queue thread {index}")).caused_by(err).help(
                    "use fewer threads, or raise the limits of threads and files (ulimit -u -n)",
                )
            };
            let on_park = Arc::clone(on_park);
            let runtime = Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_name(format!("bq-{index}-io"))
                .on_thread_park(move || on_park())
                .build()
                .map_err(failed)?;
            started.handles.push(runtime.handle().clone());
            let mut stop = started.stop.subscribe();
            let thread = std::thread::Builder::new()
                .name(format!("bq-{index}"))
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    // Ends with the word to stop, or with whoever could give it.
                    let _ = runtime.block_on(stop.wait_for(|stop| *stop));
                    runtime.shutdown_background();
                })
                .map_err(failed)?;
            started.threads.push(thread);
        }
        Ok(started)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Never: one is the least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Where to start tasks, thread by thread.
    #[must_use]
    pub fn handles(&self) -> &[Handle] {
        &self.handles
    }

    /// Ends them, and waits until they are gone.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for QueueThreads {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // A thread that has panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for QueueThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueThreads").field("count", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn each_runs_its_own_tasks_and_all_are_joined() {
        let threads = QueueThreads::start(3).unwrap();
        let (tell, told) = mpsc::channel();
        for handle in threads.handles() {
            let tell = tell.clone();
            handle.spawn(async move {
                tokio::task::yield_now().await;
                tell.send(std::thread::current().name().map(str::to_owned)).unwrap();
            });
        }
        drop(tell);
        let mut names: Vec<_> = told.iter().flatten().collect();
        names.sort();
        assert_eq!(names, ["bq-0", "bq-1", "bq-2"]);
        // A task that never ends is dropped with its thread.
        let (kept, gone) = mpsc::channel::<()>();
        threads.handles()[0].spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        threads.shutdown();
        assert!(gone.recv().is_err());
    }

    #[test]
    fn a_thread_says_when_it_is_about_to_sleep_and_then_sleeps() {
        let parked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&parked);
        let (tell, told) = mpsc::channel();
        let on_park = move || {
            counter.fetch_add(1, Ordering::SeqCst);
            tell.send(()).unwrap();
        };
        let threads = QueueThreads::start_with(1, &(Arc::new(on_park) as OnPark)).unwrap();
        told.recv().unwrap();
        drop(threads);
        assert!(parked.load(Ordering::SeqCst) < 10, "it sleeps once for each time it wakes up");
    }
}
