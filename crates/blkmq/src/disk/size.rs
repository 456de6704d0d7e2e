//! How large a disk is, and how that changes while it is used.

use super::{Disk, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::queue::{Life, Size};
use crate::units::Sector;

impl Disk {
    /// How large it is, in sectors of 512 bytes whatever its logical block size.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.queue.capacity()
    }

    /// How large it is in bytes: [`Disk::capacity`], less what its last block has of padding.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.queue.size_bytes()
    }

    /// Makes it larger or smaller, with no padding. Its users are told; what is past a new end fails from now on.
    ///
    /// # Errors
    /// As [`Disk::set_size`].
    pub fn set_capacity(&self, capacity: Sector) -> Result<()> {
        self.set_size(capacity, 0)
    }

    /// As [`Disk::set_capacity`], with [`DiskConfig::tail_padding`](crate::DiskConfig::tail_padding).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] past the largest size, or for more padding than a block has; [`ErrorKind::Offline`] once
    /// it is being removed.
    pub fn set_size(&self, capacity: Sector, tail_padding: u32) -> Result<()> {
        self.change_size(capacity, tail_padding)?.into_iter().for_each(|event| self.notify(event));
        Ok(())
    }

    /// As [`Disk::set_size`], and says what its users are to be told.
    fn change_size(&self, capacity: Sector, tail_padding: u32) -> Result<Option<Event>> {
        let size = Size::new(&self.name, capacity, tail_padding, &self.limits())?;
        if self.queue.life() != Life::Live {
            return Err(Error::new(ErrorKind::Offline, format!("{} is being removed", self.name)));
        }
        let (from, bytes) = (self.capacity(), self.size_bytes());
        self.queue.set_size(size);
        if size.bytes < bytes {
            self.forget_unflushed_past(size);
        }
        let changed = (from, bytes) != (size.capacity, size.bytes);
        Ok(changed.then_some(Event::Resized { from, to: capacity }))
    }

    /// Has the driver make room for a new size, then takes it as [`Disk::set_capacity`] does. Nothing is out when it does: it
    /// blocks until what is has ended.
    ///
    /// # Errors
    /// What the driver says, [`ErrorKind::Invalid`] for a size that is no multiple of the logical block, and the errors
    /// of [`Disk::set_capacity`].
    pub fn resize(&self, to: Sector) -> Result<()> {
        self.whole_blocks(to.bytes())?;
        self.resize_bytes(to.bytes())
    }

    /// As [`Disk::resize`], to any size that its driver can make; its last block is padded.
    ///
    /// # Errors
    /// What the driver says, and the errors of [`Disk::set_size`].
    pub fn resize_bytes(&self, to: u64) -> Result<()> {
        // One at a time: of two, the driver and the block layer would each take another for the last.
        let _resizing = self.resizing.lock();
        let (capacity, tail_padding) = self.limits().logical_block_size.padded(to);
        Size::new(&self.name, capacity, tail_padding, &self.limits())?;
        self.ops.prepare_resize(self, to)?;
        self.take_size(to, capacity, tail_padding)
    }

    /// Takes a size in bytes that the driver has found the disk to have, as somebody else has made it larger or smaller. As with
    /// [`Disk::resize_bytes`] nothing is out when it does, so that it blocks until what is has ended; but there is nothing to
    /// prepare.
    ///
    /// # Errors
    /// Those of [`Disk::set_size`].
    pub fn follow_size(&self, bytes: u64) -> Result<()> {
        let _resizing = self.resizing.lock();
        let (capacity, tail_padding) = self.limits().logical_block_size.padded(bytes);
        Size::new(&self.name, capacity, tail_padding, &self.limits())?;
        self.take_size(bytes, capacity, tail_padding)
    }

    fn take_size(&self, to: u64, capacity: Sector, tail_padding: u32) -> Result<()> {
        // What is padding and what is the disk's changes for the block that was the last, while the driver and the block layer
        // would each have another end: a write of that block must be before all of it, or after.
        self.warn_of_stalled();
        self.queue.freeze();
        self.ops.resize(self, to);
        let resized = self.change_size(capacity, tail_padding);
        self.queue.unfreeze();
        // Whoever is told may wait for I/O, as a kernel that freezes its own queue.
        resized?.into_iter().for_each(|event| self.notify(event));
        Ok(())
    }

    /// A size of whole logical blocks, for drivers that can make no other.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for another.
    pub fn whole_blocks(&self, bytes: u64) -> Result<Sector> {
        let block = self.limits().logical_block_size;
        if block.divides(bytes) {
            return Ok(Sector::from_bytes_floor(bytes));
        }
        let (name, block) = (&self.name, block.bytes());
        let what = format!("{bytes} is not a multiple of {block}, the block size of {name}");
        Err(Error::new(ErrorKind::Invalid, what))
    }
}
