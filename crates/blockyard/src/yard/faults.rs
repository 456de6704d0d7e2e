//! Faults that are injected into the disks of a yard. They do not wait for other changes of a disk, which may wait for what
//! they stall.

use std::sync::Arc;

use blockyard_blkmq::{Disk, ErrorKind as Kind, FaultSpec};

use super::{Yard, elsewhere};
use crate::disks::OpenDisk;
use crate::disks::fault::FaultReport;
use crate::error::{Error, ErrorKind, Result};

/// What the block layer says of a fault, with the exit code that it has.
fn refused(err: &blockyard_blkmq::Error) -> Error {
    let kind = match err.kind() {
        Kind::Invalid => ErrorKind::Usage,
        Kind::Busy | Kind::Exists | Kind::Resource => ErrorKind::Busy,
        _ => ErrorKind::Failed,
    };
    Error::new(kind, err.chain())
}

impl Yard {
    async fn with_disk<T: Send + 'static>(
        &self,
        disk: &str,
        change: impl FnOnce(&Arc<Disk>) -> blockyard_blkmq::Result<T> + Send + 'static,
    ) -> Result<T> {
        let open: Arc<OpenDisk> = self.disk(disk)?;
        elsewhere(move || change(open.disk()).map_err(|err| refused(&err))).await
    }

    /// Injects faults into a disk.
    ///
    /// # Errors
    /// There is no such disk, there cannot be such a fault, there are too many.
    pub async fn add_fault(&self, disk: &str, spec: FaultSpec) -> Result<FaultReport> {
        self.with_disk(disk, |disk| disk.add_fault(spec)).await.map(FaultReport::from)
    }

    /// The faults that are injected into a disk.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn faults(&self, disk: &str) -> Result<Vec<FaultReport>> {
        let open = self.disk(disk)?;
        Ok(open.disk().faults().into_iter().map(FaultReport::from).collect())
    }

    /// Ends a fault.
    ///
    /// # Errors
    /// There is no such disk, no such fault, or it has to stay.
    pub async fn clear_fault(&self, disk: &str, id: u64) -> Result<()> {
        self.with_disk(disk, move |disk| disk.clear_fault(id)).await
    }

    /// Ends all faults of a disk.
    ///
    /// # Errors
    /// There is no such disk, or one has to stay.
    pub async fn clear_faults(&self, disk: &str) -> Result<()> {
        self.with_disk(disk, |disk| disk.clear_faults().map(drop)).await
    }

    /// Ends the stalls of a disk, or one of them; says how many requests go on.
    ///
    /// # Errors
    /// There is no such disk, or no such stall.
    pub async fn release_stalled(&self, disk: &str, id: Option<u64>) -> Result<usize> {
        self.with_disk(disk, move |disk| disk.release_stalled(id)).await
    }
}
