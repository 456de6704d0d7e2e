//! The first flush of an end: it begins when clients are asked to leave, so that a disk which has much to write back has all of
//! that time for it, and the flushes of clients, and the last one, find little left.

use std::sync::Arc;

use blockyard_blkmq::{Bio, Disk, OpenMode, Status};
use tokio::sync::mpsc;

use super::YardDisk;
use crate::daemon::Losses;

/// Flushes of disks, which nobody waits for.
pub(super) struct FirstFlushes(Vec<(Arc<Disk>, mpsc::Receiver<Status>)>);

impl FirstFlushes {
    /// Of all disks that may have anything to flush.
    pub(super) fn begin(disks: &[YardDisk]) -> Self {
        let disks = disks.iter().filter(|it| it.open.has_to_be_flushed());
        let begun = disks.map(|it| it.open.disk()).filter_map(|disk| {
            let bdev = disk.open(None, OpenMode::ReadOnly).ok()?;
            let (tell, told) = mpsc::channel(1);
            let ended = move |bio: Box<Bio>| {
                // There is room for the only one.
                let _ = tell.try_send(bio.status());
            };
            bdev.submit(0, Bio::flush().on_end(Arc::new(ended)));
            Some((Arc::clone(disk), told))
        });
        Self(begun.collect())
    }

    /// Their disks are closed, so that they have ended. One may have been told what no later flush is told of.
    pub(super) fn note(self, losses: &mut Losses) {
        for (disk, mut told) in self.0 {
            match told.try_recv() {
                // What was not carried out, the last one was to do.
                Ok(Status::Ok | Status::Transport) | Err(_) => {}
                Ok(_) if losses.names(&disk) => {}
                Ok(failed) => losses.note_status(&disk, failed),
            }
        }
    }
}
