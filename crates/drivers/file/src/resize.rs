//! A disk that grows.

use std::io;
use std::os::fd::AsFd;

use blockyard_blkmq::{BlockDeviceOps, Disk, Error, ErrorKind, Result, Sector};

use crate::driver::File;
use crate::open::size_now;

impl BlockDeviceOps for File {
    /// A file that is too short is extended, with a hole, and that outlives a power cut. It is never cut: what is past
    /// the end of a smaller disk stays in it.
    fn resize(&self, disk: &Disk, to: Sector) -> Result<()> {
        let path = self.context.health.path().display();
        let failed = |err: io::Error| {
            let what = format!("{path} cannot be made {} bytes long", to.bytes());
            Error::new(ErrorKind::Io, what).caused_by(err)
        };
        let size = size_now(self.file.as_fd(), self.context.is_block_device).map_err(failed)?;
        if to.bytes() <= size {
            return Ok(());
        }
        let refused = |kind, why: &str| {
            let what = format!("{path} has {size} bytes, and {why}");
            Err(Error::new(kind, what))
        };
        if self.context.is_block_device {
            return refused(ErrorKind::Invalid, "a device is made larger by whatever made it");
        }
        if disk.is_read_only() {
            return refused(ErrorKind::NotPermitted, "the disk is read-only");
        }
        rustix::fs::ftruncate(&self.file, to.bytes()).map_err(|err| failed(err.into()))?;
        rustix::fs::fsync(&self.file).map_err(|err| failed(err.into()))
    }
}
