//! What daemons that died have left behind.

use blockyard_export_kernel_nbd as kernel_nbd;
use blockyard_export_ublk as ublk;
use serde::{Deserialize, Serialize};

use super::record::{self, Record};
use super::{Via, kernel, nbd, usage};
use crate::control::client;
use crate::error::Result;

/// A disk of the kernel whose daemon is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Where the kernel has it.
    pub path: String,
    /// By which driver.
    pub via: Via,
    /// Our disk; none if that is not on record any more.
    pub uri: Option<String>,
    /// Whether `recover` can go on with it.
    pub recoverable: bool,
}

/// Looks for them, and takes off record what is no more.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn left_behind() -> Result<Vec<LeftBehind>> {
    let records = record::all()?;
    let mut found = Vec::new();
    for record in &records {
        if client::is_alive(record.pid)? {
            continue;
        }
        if is_there(record) {
            found.push(LeftBehind {
                path: record.path(),
                via: record.via,
                uri: Some(record.wish.uri.clone()),
                recoverable: record.via != Via::NbdIoctl,
            });
        } else {
            record.forget();
        }
    }
    found.extend(unrecorded(&records));
    Ok(found)
}

/// Whether the kernel still has the very device that was attached.
pub(super) fn is_there(record: &Record) -> bool {
    match record.via {
        Via::Ublk => {
            usage::exists(&record.path())
                && ublk::find(record.number)
                    .is_ok_and(|found| found.is_some_and(|found| found.mark == record.mark))
        }
        Via::Nbd => kernel_nbd::backend(record.number)
            .is_some_and(|found| found == nbd::identifier(record.mark)),
        // It ends with its daemon.
        Via::NbdIoctl => false,
    }
}

/// Devices with our mark that died before they were on record.
fn unrecorded(records: &[Record]) -> Vec<LeftBehind> {
    let Ok(entries) = std::fs::read_dir("/sys/class/ublk-char") else { return Vec::new() };
    let number = |entry: std::fs::DirEntry| {
        entry.file_name().to_str()?.strip_prefix("ublkc")?.parse::<u32>().ok()
    };
    let mut found = Vec::new();
    for number in entries.flatten().filter_map(number) {
        let known = records.iter().any(|record| record.via == Via::Ublk && record.number == number);
        let Ok(Some(device)) = ublk::find(number) else { continue };
        let starting = device.state == ublk::State::Dead;
        let served = device.server.is_some_and(|pid| client::is_alive(pid).unwrap_or(true));
        if !known && !starting && !served && kernel::is_ours(device.mark) {
            found.push(LeftBehind {
                path: ublk::disk_path(number),
                via: Via::Ublk,
                uri: None,
                recoverable: false,
            });
        }
    }
    found
}

/// Removes one. What the kernel still wanted of it fails.
///
/// # Errors
/// It is in use, or the driver refuses.
pub fn remove(left: &LeftBehind) -> Result<()> {
    // Nobody can mount it meanwhile. Nothing can be flushed: there is nobody to take it.
    let claim = usage::claim(&left.path)?;
    match super::parse_device(&left.path)? {
        ("ublkb", number) => {
            drop(claim);
            ublk::remove(number).map_err(kernel::ublk_error)?;
        }
        (_, index) => {
            let mut driver = kernel_nbd::Driver::open().map_err(nbd::nbd_error)?;
            driver.disconnect(index).map_err(nbd::nbd_error)?;
            drop(claim);
        }
    }
    for record in record::all()?.iter().filter(|record| record.path() == left.path) {
        record.forget();
    }
    Ok(())
}
