//! The kernel's end of a disk, whichever driver it is.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use blockyard_blkmq::Bdev;
use blockyard_export_nbd::Server;
use blockyard_export_ublk as ublk;
use tokio::runtime::Handle;

use super::nbd::{NbdDevice, NbdIoctlDevice};
use super::record::Record;
use super::{Via, Wish};
use crate::error::{Error, ErrorKind, Result};

/// The upper half of the mark of a device of ours: "BYRD".
const MARK: u64 = 0x4259_5244 << 32;
const UPPER_HALF: u64 = 0xffff_ffff << 32;

/// What the kernel's requests go to.
pub(super) struct Below<'a> {
    pub(super) bdev: Arc<Bdev>,
    pub(super) threads: &'a [Handle],
    /// Serves the disk over NBD, under the name `export`.
    pub(super) server: &'a Arc<Server>,
    pub(super) export: &'a str,
    /// Another daemon could go on with it: its bytes are not in the memory of this one.
    pub(super) outlives_us: bool,
    /// How long it may keep a write back.
    pub(super) fence: Option<Duration>,
}

impl Below<'_> {
    /// As it was when the daemon before died. Whoever has opened it before that may write when it becomes writable again.
    pub(super) fn make_read_only_again(&self, record: &Record) {
        if record.read_only {
            self.bdev.disk().set_read_only(true);
        }
    }
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
    MARK | RandomState::new().build_hasher().finish() & !UPPER_HALF
}

/// Whether a device with that mark was made by this program, though maybe not here.
pub(super) fn is_ours(mark: u64) -> bool {
    mark & UPPER_HALF == MARK
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
        let what = "no kernel driver is loaded: neither ublk nor NBD";
        Err(Error::new(ErrorKind::Unavailable, what).help(
            "run: modprobe ublk_drv (Linux 6.0 or newer), or: modprobe nbd; \
             without these drivers, serve the disk over NBD: blockyard serve",
        ))
    }

    fn attach_via(via: Via, wish: &Wish, mark: u64, below: &Below<'_>) -> Result<Self> {
        match via {
            Via::Ublk => {
                let config = ublk::Config {
                    id: wish.number,
                    depth: wish.depth,
                    recoverable: below.outlives_us,
                    mark,
                };
                ublk::Device::add(config, &below.bdev, below.threads)
                    .map(|device| Self::Ublk(Box::new(device)))
                    .map_err(ublk_error)
            }
            Via::Nbd => NbdDevice::attach(wish, mark, below).map(Self::Nbd),
            Via::NbdIoctl => NbdIoctlDevice::attach(wish, below).map(Self::NbdIoctl),
        }
    }

    /// Goes on with what another process had attached. As [`Attachment::attach`].
    pub(super) fn take_over(record: &Record, below: &Below<'_>) -> Result<Self> {
        let number = record.number;
        match record.via {
            Via::Ublk => {
                below.make_read_only_again(record);
                let device =
                    ublk::Device::take_over(number, record.mark, &below.bdev, below.threads);
                device.map(|device| Self::Ublk(Box::new(device))).map_err(ublk_error)
            }
            Via::Nbd => NbdDevice::take_over(record, below).map(Self::Nbd),
            Via::NbdIoctl => {
                let what = format!("{} ended with its daemon", record.path());
                Err(Error::failed(what).help("attach it again"))
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

    /// Whether another process could go on with it.
    pub(super) fn is_recoverable(&self) -> bool {
        match self {
            Self::Ublk(device) => device.is_recoverable(),
            Self::Nbd(device) => device.is_recoverable(),
            Self::NbdIoctl(_) => false,
        }
    }

    /// Waits until somebody else has taken it away.
    pub(super) async fn gone(&mut self) {
        match self {
            Self::Ublk(device) => device.gone().await,
            Self::Nbd(device) => device.gone().await,
            Self::NbdIoctl(device) => device.gone().await,
        }
    }

    /// Takes it away. What was written to it has to be flushed by whoever wants that. Where it fails, it is served on as far
    /// as the kernel wants that, and can be tried again.
    pub(super) fn remove(&mut self, runtime: &Handle) -> Result<()> {
        match self {
            Self::Ublk(device) => match device.stop(runtime).and_then(|()| device.remove()) {
                // Somebody was faster.
                Err(err) if err.kind() == ublk::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(ublk_error),
            },
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
    fn a_mark_is_ours_and_no_other_devices() {
        let (one, other) = (new_mark(), new_mark());
        assert!(is_ours(one) && is_ours(other) && one != other);
        assert!(!is_ours(0) && !is_ours(one >> 32));
    }
}
