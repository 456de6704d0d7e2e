//! Disks of ours as disks of the Linux kernel: `attach`, `detach`, `recover`.
//!
//! A disk that is attached has a daemon of its own, which holds the kernel's end of it. What it takes to go on
//! with it, should the daemon die, is on record ([`record`]).

mod barriers;
mod daemon;
mod flushes;
mod helper;
mod interrupted;
mod keeper;
mod kernel;
mod launch;
mod leaving;
mod leftover;
mod log;
mod nbd;
mod opening;
pub mod record;
pub(crate) mod store;
mod unflushed;
pub(crate) mod usage;
mod wanted;

pub use daemon::run;
pub use launch::{Launched, launch};
pub use leftover::{
    Fate, LeftBehind, Standing, Survey, UnreadableRecord, clear_unused, has_ublk_device, on_record,
    orphans, remove, survey,
};
pub(crate) use nbd::check_times;
pub use opening::{Order, check_identity};

use serde::{Deserialize, Serialize};

use crate::disks::DiskPlan;
use crate::error::{Error, Result};

/// Requests that the kernel may have in each queue of a ublk device, unless told otherwise.
pub const DEFAULT_DEPTH: u16 = blockyard_export_ublk::DEFAULT_DEPTH;

/// The kernel's driver that a disk is attached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// ublk: /dev/ublkbN.
    Ublk,
    /// nbd: /dev/nbdN, set up by netlink.
    Nbd,
    /// nbd, set up by ioctls: works on every kernel, cannot be recovered.
    NbdIoctl,
}

impl Via {
    /// Its word on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ublk => "ublk",
            Self::Nbd => "nbd",
            Self::NbdIoctl => "nbd-ioctl",
        }
    }

    /// How the names of its devices begin.
    pub(crate) const fn stem(self) -> &'static str {
        match self {
            Self::Ublk => "ublkb",
            Self::Nbd | Self::NbdIoctl => "nbd",
        }
    }
}

/// What a user wants attached, and how.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// The disk.
    pub uri: String,
    /// By which driver; the best there is without.
    pub via: Option<Via>,
    /// The number of the kernel's disk.
    pub number: Option<u32>,
    /// Nobody may change it.
    pub read_only: bool,
    /// Queue threads.
    pub threads: Option<u16>,
    /// Requests that the kernel may have in each queue of a ublk device.
    pub depth: u16,
    /// Connections of an nbd device.
    pub connections: u16,
    /// After so many seconds the kernel gives a connection of an nbd device up, and asks on another.
    pub timeout_seconds: Option<u64>,
    /// So many seconds a nbd device waits for a new connection before its I/O fails.
    pub dead_timeout_seconds: u64,
    /// Its daemon may leave a device that is in use to the next one.
    pub hand_over: bool,
}

impl Wish {
    /// Whether the disk is never written to, as was asked for in either place.
    fn only_reads(&self) -> bool {
        let in_uri = || self.uri.parse::<DiskPlan>().is_ok_and(|plan| plan.options.read_only);
        self.read_only || in_uri()
    }
}

/// The name of a kernel's disk: `/dev/nbd0` and `nbd0` are the same.
#[must_use]
pub fn device_name(device: &str) -> &str {
    device.strip_prefix("/dev/").unwrap_or(device)
}

/// The driver and the number in the name of a kernel's disk.
///
/// # Errors
/// It is none of ublk or nbd.
pub fn parse_device(device: &str) -> Result<(Via, u32)> {
    let name = device_name(device);
    for via in [Via::Ublk, Via::Nbd] {
        if let Some(number) = name.strip_prefix(via.stem()).and_then(|rest| rest.parse().ok()) {
            return Ok((via, number));
        }
    }
    Err(Error::usage(format!("{device:?} is not an attached disk"))
        .help("use its path, e.g. /dev/ublkb0, or its URI; list attached disks: blockyard list"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_path_or_its_name() {
        assert_eq!(parse_device("/dev/ublkb12").unwrap(), (Via::Ublk, 12));
        assert_eq!(parse_device("nbd3").unwrap(), (Via::Nbd, 3));
        for wrong in ["/dev/sda", "nbd", "ublkbx", "/dev/nbd0p1", ""] {
            assert_eq!(parse_device(wrong).unwrap_err().kind().exit_code(), 64, "{wrong}");
        }
    }
}
