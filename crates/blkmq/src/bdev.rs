//! A disk or a partition that somebody has opened: what front-ends submit to (kernel: `struct block_device`).

use std::fmt;
use std::sync::Arc;

use blockyard_buf::Segment;

use crate::bio::Bio;
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::geometry::Geometry;
use crate::limits::Limits;
use crate::op::{Op, Status};
use crate::partition_device::Partition;
use crate::reservation::{PrError, PrType, Registrant, Reservations};
use crate::units::{SECTOR_SIZE, Sector};

/// What it was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading only: what would change it fails.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
    /// By the block layer itself.
    Internal,
}

/// An open disk or partition. Dropping it closes it.
pub struct Bdev {
    disk: Arc<Disk>,
    part: Option<Arc<Partition>>,
    mode: OpenMode,
    registrant: Registrant,
}

/// A command that is no I/O (kernel: the `BLK*` and `HDIO_*` ioctls).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ioctl {
    /// `BLKGETSIZE64`: its size.
    GetSize,
    /// `HDIO_GETGEO`: heads, sectors, cylinders.
    GetGeometry,
    /// `BLKROGET`.
    GetReadOnly,
    /// `BLKROSET`.
    SetReadOnly(bool),
    /// `BLKFLSBUF`: makes what was written durable.
    Flush,
    /// A command that its driver knows.
    Driver {
        /// Which.
        command: u32,
        /// What goes with it.
        argument: Vec<u8>,
    },
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoctlReply {
    /// Done.
    Done,
    /// A size in bytes.
    Bytes(u64),
    /// Heads, sectors, cylinders.
    Geometry(Geometry),
    /// Yes or no.
    Flag(bool),
    /// What the driver says.
    Driver(Vec<u8>),
}

impl Bdev {
    pub(crate) fn new(
        disk: Arc<Disk>,
        part: Option<Arc<Partition>>,
        mode: OpenMode,
        registrant: u64,
    ) -> Self {
        Self { disk, part, mode, registrant: Registrant(registrant) }
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// The partition, if it is one.
    #[must_use]
    pub fn partition(&self) -> Option<&Arc<Partition>> {
        self.part.as_ref()
    }

    /// Its name: the disk's or the partition's.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.part {
            Some(part) => self.disk.partition_name(part.info().number),
            None => self.disk.name().to_owned(),
        }
    }

    /// How large it is.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.part.as_ref().map_or_else(|| self.disk.capacity(), |part| part.capacity())
    }

    /// How large it is in bytes: what [`Bdev::capacity`] says, less what the disk's last block has of padding, if that
    /// is within it.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let disk = self.disk.size_bytes();
        self.part.as_ref().map_or(disk, |part| {
            disk.saturating_sub(part.start().bytes()).min(part.capacity().bytes())
        })
    }

    /// Its heads, sectors and cylinders, and where it starts.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        let disk = self.disk.geometry();
        self.part.as_ref().map_or(disk, |part| disk.of_partition(part.start()))
    }

    /// What can be asked of it in one request.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.disk.limits()
    }

    /// Whether it cannot be changed, by this opener at least.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.mode == OpenMode::ReadOnly || self.disk.is_read_only()
    }

    /// Hands an operation to the disk, from the CPU (the queue thread) numbered `cpu`. It ends through its
    /// [`crate::EndIo`], maybe before this returns.
    pub fn submit(&self, cpu: usize, mut bio: Box<Bio>) {
        match self.admit(&mut bio) {
            Ok(()) => self.disk.queue.submit(cpu, self.registrant, bio),
            Err(status) => bio.end(status),
        }
    }

    /// Hands several operations over at once: they may be merged with each other, and the driver is told only
    /// after the last of them. `bios` is left empty.
    pub fn submit_all(&self, cpu: usize, bios: &mut Vec<Box<Bio>>) {
        if self.part.is_some() || self.mode == OpenMode::ReadOnly {
            let mut at = 0;
            while let Some(bio) = bios.get_mut(at) {
                match self.admit(bio) {
                    Ok(()) => at += 1,
                    Err(status) => bios.remove(at).end(status),
                }
            }
        }
        self.disk.queue.submit_all(cpu, self.registrant, bios);
    }

    /// Looks for completions of [`crate::Flags::POLLED`] operations; says how many there were.
    pub fn poll(&self, cpu: usize) -> usize {
        self.disk.queue.poll(cpu)
    }

    /// What this opener may do, and where its partition is. The rest is looked at when the bio is let in.
    fn admit(&self, bio: &mut Bio) -> Result<(), Status> {
        if self.mode == OpenMode::ReadOnly && bio.op.is_write() {
            return Err(Status::NotPermitted);
        }
        let Some(part) = &self.part else { return Ok(()) };
        if part.is_gone() {
            return Err(Status::Offline);
        }
        let bytes = bio.len().checked_add(bio.skew.into());
        let end = bytes.and_then(|len| bio.sector().checked_add(Sector(len.div_ceil(SECTOR_SIZE))));
        if end.is_none_or(|end| end > part.capacity()) {
            return Err(Status::OutOfRange);
        }
        if bio.op != Op::Flush {
            bio.iter.sector = bio.iter.sector + part.start();
            bio.part = Some(Arc::clone(part));
        }
        Ok(())
    }

    /// Reads a page, or writes it, and waits for it (kernel: `rw_page`). Not on a thread that completions come
    /// by.
    ///
    /// # Errors
    /// How it ended, if not well.
    pub fn rw_page(
        &self,
        cpu: usize,
        sector: Sector,
        page: Segment,
        write: bool,
    ) -> Result<(), Status> {
        let op = if write { Op::Write } else { Op::Read };
        match self
            .submit_and_wait(cpu, Bio::with_data(op, sector, [page].into_iter().collect()))
            .status()
        {
            Status::Ok => Ok(()),
            status => Err(status),
        }
    }

    /// Carries a command out.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] for one that the disk does not know, [`ErrorKind::Io`] if a flush fails.
    pub fn ioctl(&self, command: &Ioctl) -> Result<IoctlReply> {
        Ok(match command {
            Ioctl::GetSize => IoctlReply::Bytes(self.capacity().bytes()),
            Ioctl::GetGeometry => IoctlReply::Geometry(self.geometry()),
            Ioctl::GetReadOnly => IoctlReply::Flag(self.is_read_only()),
            Ioctl::SetReadOnly(read_only) => {
                self.disk.set_read_only(*read_only);
                IoctlReply::Done
            }
            Ioctl::Flush => {
                let status = self.submit_and_wait(0, Bio::flush()).status();
                if !status.is_ok() {
                    return Err(Error::new(
                        ErrorKind::Io,
                        format!("{}: flush failed", self.name()),
                    )
                    .caused_by(status));
                }
                IoctlReply::Done
            }
            Ioctl::Driver { command, argument } => {
                IoctlReply::Driver(self.disk.ops.ioctl(&self.disk, *command, argument)?)
            }
        })
    }

    /// Works on the disk's persistent reservations, as this opener (kernel: `struct pr_ops`).
    ///
    /// What waits is looked at again when it is let in. What is out may still end: see [`Bdev::preempt_and_abort`].
    ///
    /// # Errors
    /// As the operation says; [`PrError::NotWhole`] for a partition.
    pub fn reserve<R>(
        &self,
        f: impl FnOnce(&mut Reservations, Registrant) -> Result<R, PrError>,
    ) -> Result<R, PrError> {
        if self.part.is_some() {
            return Err(PrError::NotWhole);
        }
        self.disk.queue.fence().with(|reservations| f(reservations, self.registrant))
    }

    /// As [`Reservations::preempt`], after which nothing of those who were preempted is under way any more (kernel:
    /// `pr_preempt` with `abort`): blocks until what is out has ended.
    ///
    /// # Errors
    /// As those of [`Reservations::preempt`].
    pub fn preempt_and_abort(
        &self,
        key: u64,
        victim: u64,
        kind: PrType,
    ) -> Result<Vec<Registrant>, PrError> {
        let victims = self.reserve(|pr, me| pr.preempt(me, key, victim, kind))?;
        self.disk.freeze();
        self.disk.unfreeze();
        Ok(victims)
    }

    /// A swap device does not need the page at `sector` any more.
    pub fn swap_slot_free_notify(&self, sector: Sector) {
        let start = self.part.as_ref().map_or(Sector::ZERO, |part| part.start());
        self.disk.ops.swap_slot_free_notify(&self.disk, start + sector);
    }
}

impl fmt::Debug for Bdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bdev")
            .field("name", &self.name())
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Drop for Bdev {
    fn drop(&mut self) {
        if self.mode != OpenMode::Internal {
            // Nobody can come back as this opener.
            self.disk.queue.fence().with(|reservations| reservations.forget(self.registrant));
            self.disk.release();
        }
    }
}
