//! An open disk, with those that it lies on, until they are closed together.

use std::iter;
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::{BlockLayer, Disk};
use blockyard_driver_nbd::Ledger;

use super::kind::DiskKind;
use super::remote::{Remote, has_to_be_flushed};
use crate::daemon::Losses;

/// An open disk. It has to be closed: a disk in the block layer lives as long as that.
pub struct OpenDisk {
    disk: Arc<Disk>,
    remote: Option<Remote>,
    below: Option<Box<Self>>,
    /// Its driver cannot write.
    only_reads: bool,
}

impl OpenDisk {
    pub(super) fn new(
        kind: &DiskKind,
        disk: Arc<Disk>,
        remote: Option<Remote>,
        below: Option<Box<Self>>,
    ) -> Self {
        let only_reads = kind.stays_read_only && disk.is_read_only();
        Self { disk, remote, below, only_reads }
    }

    /// Whether nobody can ever change it, as it was opened read-only.
    pub(super) fn only_reads(&self) -> bool {
        self.only_reads
    }

    /// What is used of it.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// It, and what it lies on, from the top down.
    pub fn layers(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |open| open.below.as_deref())
    }

    /// All of them that have a server.
    fn remotes(&self) -> impl Iterator<Item = &Remote> {
        self.layers().filter_map(|open| open.remote.as_ref())
    }

    /// Fails all that waits for a server, or is out, and with that the last flush. What is asked for after that may wait again.
    pub(crate) fn abandon(&self) {
        self.remotes().for_each(Remote::abandon);
    }

    /// What another process has sent before it died may still be carried out: nothing is written until that is over.
    pub(crate) fn hold_writes(&self) {
        self.remotes().for_each(Remote::hold_writes);
    }

    /// Whether a server may still carry out something, now that nothing more is submitted.
    pub(crate) fn may_change_late(&self) -> bool {
        self.remotes().any(|remote| remote.driver().may_change_late())
    }

    /// Whether a server may have something of it that was written and not flushed.
    pub(crate) fn tracks_unflushed(&self) -> bool {
        self.tracking().is_some()
    }

    /// Has that kept where it outlives this process.
    pub(crate) fn keep_ledger(&self, ledger: Arc<dyn Ledger>) {
        if let Some(remote) = self.tracking() {
            remote.driver().keep_ledger(ledger);
        }
    }

    /// Another process has died that had written to it and not flushed all of that. Says whether it may be lost: all flushes fail
    /// then.
    pub(crate) fn inherit_unflushed(&self) -> bool {
        self.tracking().is_some_and(Remote::inherit_unflushed)
    }

    fn tracking(&self) -> Option<&Remote> {
        self.remotes().find(|remote| remote.driver().tracks_unflushed())
    }

    /// Whether a last flush is good for anything.
    pub(crate) fn has_to_be_flushed(&self) -> bool {
        let itself = || has_to_be_flushed(&self.disk);
        self.remote.as_ref().map_or_else(itself, Remote::has_to_be_flushed)
    }

    /// What does that, for whoever learns later that there was another process; none if there is no need.
    pub(crate) fn holder(&self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        let holders: Vec<_> = self.remotes().map(Remote::holder).collect();
        (!holders.is_empty())
            .then(|| Arc::new(move || holders.iter().for_each(|hold| hold())) as Arc<_>)
    }

    /// Flushes and closes it, from the top down. A server has `limit` to take the last flush; disks of this machine take as long
    /// as they take. Nobody uses it any more.
    pub(crate) async fn close(&self, layer: &Arc<BlockLayer>, limit: Duration) -> Losses {
        let mut losses = Losses::default();
        for Self { disk, remote, .. } in self.layers() {
            // Its last flush is a real one.
            disk.end_faults();
            if let Some(remote) = remote {
                losses.note(remote.leave(limit).await);
            }
            let (layer, removed) = (Arc::clone(layer), Arc::clone(disk));
            let removed = tokio::task::spawn_blocking(move || layer.del_disk(&removed));
            match removed.await {
                Ok(flushed) => losses.note_status(disk, flushed),
                Err(err) => losses.note_failure(disk, &err),
            }
        }
        losses
    }

    /// The same where there is no runtime.
    pub(crate) fn close_now(&self, layer: &BlockLayer, limit: Duration) -> Losses {
        let mut losses = Losses::default();
        for Self { disk, remote, .. } in self.layers() {
            disk.end_faults();
            if let Some(remote) = remote {
                losses.note(remote.leave_now(limit));
            }
            losses.note_status(disk, layer.del_disk(disk));
        }
        losses
    }
}
