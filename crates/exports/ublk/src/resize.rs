//! The kernel's disk grows and shrinks with ours.

use std::io;
use std::sync::Arc;

use blockyard_blkmq::{Disk, DiskListener, Event};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::found::open_control;

/// Told of a new size; the kernel is told from another thread, as that may wait.
struct Told(watch::Sender<()>);

impl DiskListener for Told {
    fn event(&self, _disk: &Disk, event: Event) {
        if matches!(event, Event::Resized { .. }) {
            self.0.send_replace(());
        }
    }
}

/// As long as it lives, device `id` follows the size of its disk.
pub(crate) struct Follow {
    _listener: Arc<dyn DiskListener>,
    task: JoinHandle<()>,
}

impl Follow {
    pub(crate) fn new(
        id: u32,
        disk: &Disk,
        size: impl Fn() -> u64 + Send + Sync + 'static,
        runtime: &Handle,
    ) -> Self {
        let (tell, mut told) = watch::channel(());
        let listener: Arc<dyn DiskListener> = Arc::new(Told(tell));
        disk.subscribe(&listener);
        let size = Arc::new(size);
        let task = runtime.spawn(async move {
            while told.changed().await.is_ok() {
                let size = Arc::clone(&size);
                let update =
                    move || open_control().map_err(io::Error::other)?.update_size(id, size());
                match tokio::task::spawn_blocking(update).await {
                    Ok(Err(err)) => tracing::warn!(
                        id,
                        %err,
                        "the kernel cannot resize a running device (Linux 6.16 can); \
                         detach it and attach it again"
                    ),
                    Ok(Ok(())) => tracing::info!(id, "kernel updated to the new size"),
                    Err(_ended) => return,
                }
            }
        });
        Self { _listener: listener, task }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.task.abort();
    }
}
