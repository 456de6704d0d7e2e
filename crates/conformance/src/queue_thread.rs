//! The thread that a driver's and a front-end's asynchronous half lives on.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A queue thread: a current-thread runtime, running until this is dropped.
pub struct QueueThread {
    /// Its runtime.
    pub handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl QueueThread {
    /// Starts one.
    ///
    /// # Panics
    /// If the system has no room for it.
    #[must_use]
    pub fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
        });
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Starts several. Their runtimes are what servers and drivers ask for.
    #[must_use]
    pub fn start_many(count: usize) -> (Vec<Self>, Vec<Handle>) {
        let threads: Vec<_> = (0..count).map(|_| Self::start()).collect();
        let handles = threads.iter().map(|thread| thread.handle.clone()).collect();
        (threads, handles)
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
