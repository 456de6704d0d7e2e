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

/// Devices of ours that are not on record: their daemons died before they were ready.
fn unrecorded(records: &[Record]) -> Vec<LeftBehind> {
    let recorded = |mark: u64| records.iter().any(|record| record.mark == mark);
    let dead = |pid| usage::has_ended(pid) && !client::is_alive(pid).unwrap_or(true);
    let ublk = numbers("/sys/class/ublk-char", "ublkc").into_iter().filter_map(|number| {
        let mark = ublk::find(number).ok()??.mark;
        Some((Via::Ublk, ublk::disk_path(number), mark))
    });
    let nbd = numbers("/sys/block", "nbd").into_iter().filter_map(|number| {
        let mark = nbd::mark(&kernel_nbd::backend(number)?)?;
        Some((Via::Nbd, kernel_nbd::path(number), mark))
    });
    ublk.chain(nbd)
        .filter(|(_, _, mark)| !recorded(*mark) && kernel::maker(*mark).is_some_and(dead))
        .map(|(via, path, _)| LeftBehind { path, via, uri: None, recoverable: false })
        .collect()
}

/// The numbers of the entries of a directory that are named so.
fn numbers(directory: &str, stem: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let number =
        |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(stem)?.parse().ok();
    entries.flatten().filter_map(number).collect()
}

/// Removes what daemons have left that died before anybody was told of their device, so that nobody uses it. A
/// process that the kernel cannot end before that is waited for.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn clear_stillborn() -> Result<()> {
    let records = record::all()?;
    for left in unrecorded(&records) {
        match remove(&left) {
            Ok(()) => {
                tracing::warn!(device = left.path, "removed: its daemon died before it was ready");
            }
            Err(err) => tracing::warn!(device = left.path, %err, "cannot be removed"),
        }
    }
    Ok(())
}

/// Removes one. What the kernel still wanted of it fails, and so what is waiting for that can end.
///
/// # Errors
/// It is in use, or the driver refuses.
pub fn remove(left: &LeftBehind) -> Result<()> {
    // It must not be opened: that may read from it, and there is nobody to answer. One that nobody was told of
    // is used by nobody, but for those who look at all disks, and wait for it now.
    let records = record::all()?;
    if let Some(record) = records.iter().find(|record| record.path() == left.path) {
        usage::check_unused(&left.path, record.pid)?;
    }
    match super::parse_device(&left.path)? {
        ("ublkb", number) => ublk::remove(number).map_err(kernel::ublk_error)?,
        (_, index) => {
            let mut driver = kernel_nbd::Driver::open().map_err(nbd::nbd_error)?;
            driver.disconnect(index).map_err(nbd::nbd_error)?;
        }
    }
    for record in records.iter().filter(|record| record.path() == left.path) {
        record.forget();
    }
    Ok(())
}
