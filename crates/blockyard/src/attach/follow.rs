//! The kernel's disk becomes read-only, and writable again, with ours.

use std::sync::Arc;

use blockyard_blkmq::{Disk, DiskListener, Event};
use tokio::sync::watch;

use super::helper;

/// Told whether the disk is read-only.
struct Told(watch::Sender<bool>);

impl DiskListener for Told {
    fn event(&self, _disk: &Disk, event: Event) {
        if let Event::ReadOnly(read_only) = event {
            self.0.send_replace(read_only);
        }
    }
}

/// Listens as long as it lives.
pub(super) struct ReadOnly {
    told: watch::Receiver<bool>,
    _listener: Arc<dyn DiskListener>,
}

impl ReadOnly {
    pub(super) fn of(disk: &Disk) -> Self {
        let (tell, told) = watch::channel(disk.is_read_only());
        let listener: Arc<dyn DiskListener> = Arc::new(Told(tell));
        disk.subscribe(&listener);
        Self { told, _listener: listener }
    }

    /// Waits until that changes; says what it is now.
    pub(super) async fn changed(&mut self) -> bool {
        if self.told.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
        *self.told.borrow_and_update()
    }
}

/// Has the kernel's disk refuse writes, or take them again. May wait for the disk.
pub(super) fn set_read_only(device: &str, read_only: bool) {
    match helper::look_at(device, Some(read_only)) {
        Ok(status) if status.success() => tracing::info!(device, read_only, "the kernel knows"),
        // It has said why.
        Ok(_) => tracing::warn!(device, read_only, "the kernel's disk stays as it is"),
        Err(err) => tracing::warn!(device, read_only, %err, "the kernel cannot be told"),
    }
}
