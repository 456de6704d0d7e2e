//! The kernel's end of a disk, whichever driver it is.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use blockyard_blkmq::Bdev;
use blockyard_export_kernel_nbd as kernel_nbd;
use blockyard_export_nbd::Server;
use blockyard_export_ublk as ublk;
use tokio::runtime::Handle;

use super::nbd::{NbdDevice, NbdIoctlDevice};
use super::record::Record;
use super::{Via, Wish};
use crate::error::{Error, ErrorKind, Result};

/// The upper half of the mark of a device of ours: "BYRD".
const MARK: u64 = 0x4259_5244 << 32;
/// Bits of a mark that are random; above them is the process id of the maker, which has 22 bits at most
/// (`PID_MAX_LIMIT`).
const RANDOM_BITS: u32 = 10;

/// What the kernel's requests go to.
pub(super) struct Below<'a> {
    pub(super) bdev: Arc<Bdev>,
    pub(super) threads: &'a [Handle],
    /// Serves the disk over NBD, under the name `export`.
    pub(super) server: &'a Arc<Server>,
    pub(super) export: &'a str,
}

/// A disk of the kernel that this process serves.
pub(super) enum Attachment {
    Ublk(Box<ublk::Device>),
    Nbd(NbdDevice),
    NbdIoctl(NbdIoctlDevice),
}

/// A mark that no other device has.
pub(super) fn new_mark() -> u64 {
    // The keys of a hasher are random.
    let random = RandomState::new().build_hasher().finish() & ((1 << RANDOM_BITS) - 1);
    MARK | u64::from(std::process::id()) << RANDOM_BITS | random
}

/// The process that made a device with that mark, if it was one of ours.
pub(super) fn maker(mark: u64) -> Option<u32> {
    let ours = mark & !0xffff_ffff == MARK;
    ours.then(|| u32::try_from((mark & 0xffff_ffff) >> RANDOM_BITS).unwrap_or(0))
}

impl Attachment {
    /// Attaches by the driver that was asked for, or else by the best there is. Must be called within a runtime,
    /// from where it may block.
    pub(super) fn attach(wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        if let Some(via) = wish.via {
            return Self::attach_via(via, wish, mark, below);
        }
        let mut missing = Vec::new();
        for via in [Via::Ublk, Via::Nbd, Via::NbdIoctl] {
            match Self::attach_via(via, wish, mark, below) {
                Err(err) if err.kind() == ErrorKind::Unavailable => missing.push((via, err)),
                attached => return attached,
            }
        }
        for (via, err) in &missing {
            tracing::info!(via = via.name(), error = ?err, "not available");
        }
        let what = "this kernel has neither ublk nor NBD";
        Err(Error::new(ErrorKind::Unavailable, what).help(
            "run: modprobe ublk_drv (Linux 6.0 or newer), or: modprobe nbd; \
             where neither is built, serve it to programs: blockyard serve",
        ))
    }

    fn attach_via(via: Via, wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        match via {
            Via::Ublk => {
                let config = ublk::Config {
                    id: wish.number,
                    depth: wish.depth,
                    mark,
                    ..ublk::Config::default()
                };
                ublk::Device::add(config, &below.bdev, below.threads)
                    .map(|device| Self::Ublk(Box::new(device)))
                    .map_err(ublk_error)
            }
            Via::Nbd => NbdDevice::attach(wish, mark, below.server, below.export, &below.bdev)
                .map(Self::Nbd),
            Via::NbdIoctl => NbdIoctlDevice::attach(wish, below.server, below.export, &below.bdev)
                .map(Self::NbdIoctl),
        }
    }

    /// Goes on with what another process had attached. As [`Attachment::attach`].
    pub(super) fn take_over(record: &Record, below: &Below<'_>) -> Result<Self> {
        let Below { bdev, server, export, .. } = below;
        let (number, mark) = (record.number, record.mark);
        match record.via {
            Via::Ublk => ublk::Device::take_over(number, bdev, below.threads)
                .map(|device| Self::Ublk(Box::new(device)))
                .map_err(ublk_error),
            Via::Nbd => NbdDevice::take_over(&record.wish, number, mark, server, export, bdev)
                .map(Self::Nbd),
            Via::NbdIoctl => {
                let what = format!("{} ended with its daemon", record.path());
                Err(Error::failed(what).help("attach it anew"))
            }
        }
    }

    pub(super) fn via(&self) -> Via {
        match self {
            Self::Ublk(_) => Via::Ublk,
            Self::Nbd(_) => Via::Nbd,
            Self::NbdIoctl(_) => Via::NbdIoctl,
        }
    }

    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Ublk(device) => device.id(),
            Self::Nbd(device) => device.index(),
            Self::NbdIoctl(device) => device.index(),
        }
    }

    pub(super) fn path(&self) -> String {
        match self {
            Self::Ublk(device) => device.path(),
            Self::Nbd(_) | Self::NbdIoctl(_) => kernel_nbd::path(self.number()),
        }
    }

    /// Whether another process could go on with it.
    pub(super) fn is_recoverable(&self) -> bool {
        match self {
            Self::Ublk(device) => device.is_recoverable(),
            Self::Nbd(_) => true,
            Self::NbdIoctl(_) => false,
        }
    }

    /// Takes it away. What was written to it has to be flushed by whoever wants that.
    pub(super) fn remove(self, runtime: &Handle) -> Result<()> {
        match self {
            Self::Ublk(mut device) => {
                device.stop(runtime).map_err(ublk_error)?;
                device.remove().map_err(ublk_error)
            }
            Self::Nbd(device) => device.remove(),
            Self::NbdIoctl(device) => device.remove(),
        }
    }
}

pub(super) fn ublk_error(err: ublk::Error) -> Error {
    use ublk::ErrorKind as Kind;
    let kind = match err.kind() {
        Kind::Unavailable => ErrorKind::Unavailable,
        Kind::Busy => ErrorKind::Busy,
        Kind::NotPermitted => ErrorKind::NotPermitted,
        Kind::NotFound | Kind::Unsuitable | Kind::Io => ErrorKind::Failed,
    };
    Error::new(kind, "ublk").caused_by(err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_who_made_it() {
        assert_eq!(maker(new_mark()), Some(std::process::id()));
        assert_eq!(maker(0), None);
        assert_eq!(maker(MARK | 4_194_303_u64 << RANDOM_BITS), Some(4_194_303));
    }
}
