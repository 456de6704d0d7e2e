//! The in-flight region of all queues: memory that the front-end keeps, and brings to the next back-end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use blockyard_buf::SharedMapping;
use blockyard_vhost_user::queue::{RingPlace, region_len};
use blockyard_vhost_user::wire::Inflight;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::channel::Close;
use crate::device::RegionPart;

/// The region, and what it is for.
pub(crate) struct InflightFile {
    pub(crate) mapping: Arc<SharedMapping>,
    shape: Inflight,
}

impl InflightFile {
    /// Makes one for at most `most` queues, with `tail` bytes behind what the format needs.
    pub(crate) fn make(
        asked: Inflight,
        most: usize,
        tail: usize,
    ) -> Result<(Self, OwnedFd), Close> {
        check_size(asked)?;
        if asked.num_queues == 0 || usize::from(asked.num_queues) > most {
            return Err(Close::Refused(format!("{} queues in flight", asked.num_queues)));
        }
        let len = needed(asked) + tail as u64;
        let make = || {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("blockyard-inflight", flags)?;
            ftruncate(&file, len)?;
            fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
            Ok::<_, rustix::io::Errno>(file)
        };
        let file = make().map_err(|err| Close::Io(err.into()))?;
        let shape = Inflight { mmap_size: len, mmap_offset: 0, ..asked };
        Ok((Self { mapping: map(shape, &file)?, shape }, file))
    }

    /// One that was brought.
    pub(crate) fn brought(shape: Inflight, file: &OwnedFd) -> Result<Self, Close> {
        check_size(shape)?;
        let needed = needed(shape);
        if shape.num_queues == 0 || shape.mmap_size < needed {
            let what = format!("an in-flight region of {} bytes, not {needed}", shape.mmap_size);
            return Err(Close::Refused(what));
        }
        Ok(Self { mapping: map(shape, file)?, shape })
    }

    /// Where it is, and for what.
    pub(crate) const fn shape(&self) -> Inflight {
        self.shape
    }

    /// Bytes that the format needs.
    pub(crate) fn used(&self) -> usize {
        usize::try_from(needed(self.shape)).unwrap_or(usize::MAX)
    }

    /// That of one queue.
    pub(crate) fn part(&self, index: u32) -> Result<RegionPart, Close> {
        let Self { mapping, shape } = self;
        if index >= shape.num_queues.into() {
            return Err(Close::Refused(format!("queue {index} is not in the in-flight region")));
        }
        let len = region_len(shape.queue_size);
        let at = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(len);
        Ok(RegionPart { mapping: Arc::clone(mapping), part: mapping.segment(at, len) })
    }
}

fn check_size(shape: Inflight) -> Result<(), Close> {
    let checked = RingPlace::check_size(shape.queue_size.into());
    checked.map(drop).map_err(|err| Close::Refused(err.to_string()))
}

fn needed(shape: Inflight) -> u64 {
    region_len(shape.queue_size) as u64 * u64::from(shape.num_queues)
}

fn map(shape: Inflight, file: &OwnedFd) -> Result<Arc<SharedMapping>, Close> {
    SharedMapping::new(file.as_fd(), shape.mmap_offset, shape.mmap_size)
        .map_err(|err| Close::Refused(format!("the in-flight region cannot be mapped: {err}")))
}
