//! What a driver does for whoever opens its disks, apart from I/O (kernel: `struct block_device_operations`).

use crate::bdev::OpenMode;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::units::Sector;

/// Every operation has a default, so that a driver which needs none is `impl BlockDeviceOps for MyDisk {}`.
pub trait BlockDeviceOps: Send + Sync + 'static {
    /// Somebody opens the disk; `first`: nobody else has it open.
    ///
    /// # Errors
    /// Whatever forbids it.
    fn open(&self, _disk: &Disk, _mode: OpenMode, _first: bool) -> Result<()> {
        Ok(())
    }

    /// Somebody closed the disk; `last`: nobody has it open now.
    fn release(&self, _disk: &Disk, _last: bool) {}

    /// A command of the driver's own.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] (ENOTTY) for one that it does not know.
    fn ioctl(&self, disk: &Disk, command: u32, _argument: &[u8]) -> Result<Vec<u8>> {
        Err(Error::new(
            ErrorKind::NotSupported,
            format!("{}: no such command: {command:#x}", disk.name()),
        ))
    }

    /// Heads, sectors and cylinders, if the disk insists on some.
    fn geometry(&self, _disk: &Disk) -> Option<Geometry> {
        None
    }

    /// Whether the medium was changed since the last call.
    fn check_events(&self, _disk: &Disk) -> bool {
        false
    }

    /// Finds the size of a new medium out, and sets it.
    ///
    /// # Errors
    /// Whatever keeps it from telling.
    fn revalidate(&self, _disk: &Disk) -> Result<()> {
        Ok(())
    }

    /// Makes room for a new size in bytes, or says that it cannot be. The disk is used meanwhile, with the size that it has, so
    /// that this may take long.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] where the size is not this side's to choose, or whatever keeps it from being made:
    /// [`Disk::whole_blocks`] where the driver has no others.
    fn prepare_resize(&self, disk: &Disk, _to: u64) -> Result<()> {
        let what = format!("the size of {} is not ours to choose", disk.name());
        Err(Error::new(ErrorKind::NotSupported, what))
    }

    /// The disk gets the size in bytes that it was [prepared](Self::prepare_resize) for, or that the driver has
    /// [found](Disk::follow_size). Nothing is out, and everybody waits:
    /// there is nothing left to do that takes long or may fail.
    fn resize(&self, _disk: &Disk, _to: u64) {}

    /// Unlocks sectors that the disk hides, as a host protected area: called if partitions reach past its end.
    /// Says the size after that.
    fn unlock_native_capacity(&self, disk: &Disk) -> Sector {
        disk.capacity()
    }

    /// The page at `sector` is not needed any more by a swap device on the disk.
    fn swap_slot_free_notify(&self, _disk: &Disk, _sector: Sector) {}
}

/// For disks with nothing to say.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOps;

impl BlockDeviceOps for NoOps {}
