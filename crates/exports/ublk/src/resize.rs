//! The kernel's disk grows and shrinks with ours.

use std::io;
use std::sync::Arc;

use blockyard_blkmq::{Bdev, Changed, Changes};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::found::open_control;
use crate::params;

/// As long as it lives, device `id` follows the size of its disk.
pub(crate) struct Follow(JoinHandle<()>);

impl Follow {
    pub(crate) fn new(id: u32, bdev: &Arc<Bdev>, runtime: &Handle) -> Self {
        Self(runtime.spawn(follow(id, Changes::of(bdev.disk()), Arc::clone(bdev))))
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the kernel of each new size, from another thread, as that may wait.
async fn follow(id: u32, mut changes: Changes, bdev: Arc<Bdev>) {
    loop {
        if !changes.next().await.contains(Changed::SIZE) {
            continue;
        }
        let size = params::size(&bdev);
        let update = move || open_control().map_err(io::Error::other)?.update_size(id, size);
        match tokio::task::spawn_blocking(update).await {
            Ok(Err(err)) => tracing::warn!(
                id,
                error = %err,
                "the kernel cannot resize a running device (Linux 6.16 can); \
                 detach it and attach it again"
            ),
            Ok(Ok(())) => tracing::info!(id, "kernel updated to the new size"),
            Err(_ended) => return,
        }
    }
}
