//! A disk that grows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{BlockDeviceOps, Disk, Error, ErrorKind, Result};
use blockyard_rbd::store::ObjectStore;

use crate::driver::{Rbd, Shared};

impl<S: ObjectStore> BlockDeviceOps for Rbd<S> {
    /// An image that is too small is made larger. It is never cut: what is past the end of a smaller disk stays in it.
    fn prepare_resize(&self, disk: &Disk, to: u64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        if disk.is_read_only() && to > shared.size.load(Ordering::Acquire) {
            let what = format!("cannot extend {}: it is read-only", shared.name);
            return Err(Error::new(ErrorKind::NotPermitted, what));
        }
        // On a thread of its own: whoever asks may be in a runtime, where nobody may wait.
        let grown = std::thread::spawn(move || grow(&shared, to)).join();
        grown.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Io, "the thread that resizes the image has panicked"))
        })
    }

    fn resize(&self, _disk: &Disk, to: u64) {
        self.shared.size.store(to, Ordering::Release);
    }
}

fn grow<S: ObjectStore>(shared: &Shared<S>, to: u64) -> Result<()> {
    let failed = || Error::new(ErrorKind::Io, format!("cannot extend {}", shared.name));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|err| failed().caused_by(err))?;
    runtime.block_on(shared.image.grow(to)).map_err(|err| failed().caused_by(err))
}
