//! The kernel's end of a disk, whichever driver it is.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use blockyard_blkmq::Bdev;
use blockyard_export_ublk as ublk;
use tokio::runtime::Handle;

use super::record::Record;
use super::{Via, Wish};
use crate::error::{Error, ErrorKind, Result};

/// The upper half of the mark of a device of ours: "BYRD".
const MARK: u64 = 0x4259_5244 << 32;

/// What the kernel's requests go to.
pub(super) struct Below<'a> {
    pub(super) bdev: Arc<Bdev>,
    pub(super) threads: &'a [Handle],
}

/// A disk of the kernel that this process serves.
pub(super) enum Attachment {
    Ublk(ublk::Device),
}

/// A mark that no other device has.
pub(super) fn new_mark() -> u64 {
    // The keys of a hasher are random.
    let random = RandomState::new().build_hasher().finish();
    MARK | (random & 0xffff_ffff)
}

/// Whether a device with that mark was made by us.
pub(super) fn is_ours(mark: u64) -> bool {
    mark & !0xffff_ffff == MARK
}

impl Attachment {
    /// Attaches by the driver that was asked for, or else by the best there is.
    pub(super) fn attach(wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        match wish.via {
            None | Some(Via::Ublk) => {
                let config = ublk::Config {
                    id: wish.number,
                    depth: wish.depth,
                    mark,
                    ..ublk::Config::default()
                };
                ublk::Device::add(config, &below.bdev, below.threads)
                    .map(Self::Ublk)
                    .map_err(ublk_error)
            }
            Some(Via::Nbd | Via::NbdIoctl) => {
                Err(Error::new(ErrorKind::Unavailable, "no nbd"))
            }
        }
    }

    /// Goes on with what another process had attached.
    pub(super) fn take_over(record: &Record, below: &Below<'_>) -> Result<Self> {
        match record.via {
            Via::Ublk => ublk::Device::take_over(record.number, &below.bdev, below.threads)
                .map(Self::Ublk)
                .map_err(ublk_error),
            Via::Nbd | Via::NbdIoctl => Err(Error::new(ErrorKind::Unavailable, "no nbd")),
        }
    }

    pub(super) fn via(&self) -> Via {
        match self {
            Self::Ublk(_) => Via::Ublk,
        }
    }

    pub(super) fn number(&self) -> u32 {
        match self {
            Self::Ublk(device) => device.id(),
        }
    }

    pub(super) fn path(&self) -> String {
        match self {
            Self::Ublk(device) => device.path(),
        }
    }

    /// Whether another process could go on with it.
    pub(super) fn is_recoverable(&self) -> bool {
        match self {
            Self::Ublk(device) => device.is_recoverable(),
        }
    }

    /// Takes it away. `claim` keeps others off until it is.
    pub(super) fn remove(self, claim: Option<File>, runtime: &Handle) -> Result<()> {
        match self {
            Self::Ublk(mut device) => {
                device.stop(runtime).map_err(ublk_error)?;
                // It is gone when the last who has it open has closed it.
                drop(claim);
                device.remove().map_err(ublk_error)
            }
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
