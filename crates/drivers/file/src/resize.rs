//! A disk that grows.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use blockyard_blkmq::{BlockDeviceOps, Disk, Error, ErrorKind, Result};
use blockyard_sys::uninterrupted;
use rustix::fs::fsync;

use crate::driver::File;
use crate::open::{open_again, size_now};

impl BlockDeviceOps for File {
    /// A file that is too short is extended, with a hole, and that outlives a power cut. It is never cut: what is past
    /// the end of a smaller disk stays in it. One that others have truncated is not extended: what it has lost stays lost.
    fn prepare_resize(&self, disk: &Disk, to: u64) -> Result<()> {
        let path = self.context.health.path().display();
        let failed = |err: io::Error| {
            let what = format!("cannot resize {path} to {} bytes", to);
            Error::new(ErrorKind::Io, what).caused_by(err)
        };
        let size =
            size_now(self.files.data.as_fd(), self.context.is_block_device).map_err(failed)?;
        // Made longer, a file that has lost its end would have zeroes there, and nothing would tell that they are not the disk's.
        let is_cut =
            !self.context.is_block_device && size < self.context.size.load(Ordering::Acquire);
        if is_cut {
            self.context.health.was_cut(size, false);
        }
        if to <= size {
            return Ok(());
        }
        let refused = |kind, why: &str| {
            let what = format!("{path} has {size} bytes, and {why}");
            Err(Error::new(kind, what))
        };
        if is_cut {
            return refused(ErrorKind::Io, "was truncated by another program; reopen the disk");
        }
        if self.context.is_block_device {
            return refused(
                ErrorKind::Invalid,
                "a block device is resized by the tool that created it",
            );
        }
        if disk.is_read_only() {
            return refused(ErrorKind::NotPermitted, "the disk is read-only");
        }
        // A description of its own, so that it takes no error from the flushes; and what it hears is theirs too. Without one,
        // nothing is changed yet.
        let own = open_again(&self.files.data).map_err(failed)?;
        rustix::fs::ftruncate(&self.files.data, to).map_err(|err| failed(err.into()))?;
        uninterrupted(|| Ok(fsync(&own)?)).map_err(|err| {
            self.context.health.flush_failed(&err);
            failed(err)
        })
    }

    fn resize(&self, _disk: &Disk, to: u64) {
        self.context.size.store(to, Ordering::Release);
        self.context.health.is_mended(to);
    }
}
