//! What daemons that died have left behind.
//!
//! Whatever may be somebody's is left alone: only a record, or a note that a device is being made, which nobody holds any more
//! proves that its daemon has died. Devices of ours that are neither here are of another runtime directory.

use std::path::PathBuf;

use blockyard_export_kernel_nbd as kernel_nbd;
use blockyard_export_ublk as ublk;
use serde::{Deserialize, Serialize};

use super::record::Record;
use super::store::{Contents, Store, Stored, Unreadable};
use super::{Via, kernel, nbd, usage};
use crate::error::{Error, Result};
use crate::identity::DiskIdentity;

/// A disk of the kernel whose daemon is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeftBehind {
    /// Where the kernel has it.
    pub path: String,
    /// By which driver.
    pub via: Via,
    /// Our disk; none if nobody was told of the device yet.
    pub uri: Option<String>,
    /// What can be done with it.
    pub fate: Fate,
    /// Where its daemon's output went.
    pub log: Option<PathBuf>,
    #[serde(skip)]
    mark: u64,
}

/// What can be done with what was left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// `recover` goes on with it.
    Recoverable,
    /// What was in it has gone with the daemon.
    Lost,
    /// Nobody uses it: it was not ready yet, or the kernel has taken its disk away.
    Unused,
}

/// What there is besides what is served.
#[derive(Debug, Default)]
pub struct Survey {
    /// What daemons that died have left behind.
    pub left: Vec<LeftBehind>,
    /// Records of another version, or damaged ones: their devices are somebody's.
    pub unreadable: Vec<UnreadableRecord>,
    /// Paths of devices of ours that nothing here says anything about.
    pub elsewhere: Vec<String>,
}

/// A record that says nothing to this program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableRecord {
    /// The path of its device.
    pub device: String,
    /// Where the record is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// A device of ours that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Device {
    via: Via,
    number: u32,
    mark: u64,
    /// There is a disk that somebody may use.
    has_disk: bool,
}

impl Device {
    fn name(&self) -> String {
        format!("{}{}", self.via.stem(), self.number)
    }

    fn path(&self) -> String {
        format!("/dev/{}", self.name())
    }

    fn is_of(&self, record: &Record) -> bool {
        (self.via, self.number, self.mark) == (record.via, record.number, record.mark)
    }
}

/// Looks around, and takes off record what is no more.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn survey() -> Result<Survey> {
    let store = Store::open()?;
    // In this order: what has come in between is on record.
    let devices = devices();
    let contents = store.read()?;
    let sorted = sort(contents, &devices);
    for record in &sorted.gone {
        // Somebody may be faster, or has made another of that name meanwhile.
        if let Ok(held) = store.claim(record)
            && let Err(err) = store.forget(record, &held)
        {
            tracing::warn!(device = record.path(), %err, "it stays on record");
        }
    }
    sorted.ended.iter().for_each(|mark| store.end(*mark));
    Ok(sorted.survey)
}

/// What a survey comes to.
#[derive(Debug, Default)]
struct Sorted {
    survey: Survey,
    /// On record, but there is no device any more.
    gone: Vec<Record>,
    /// Marks of devices that were begun, and that are not there.
    ended: Vec<u64>,
}

fn sort(contents: Contents, devices: &[Device]) -> Sorted {
    let Contents { records, unreadable, begun } = contents;
    let mut sorted = Sorted::default();
    for Stored { record, .. } in records.iter().filter(|stored| !stored.is_served) {
        match devices.iter().find(|device| device.is_of(record)) {
            Some(device) => sorted.survey.left.push(left(record, device)),
            None => sorted.gone.push(record.clone()),
        }
    }
    let is_unreadable = |device: &Device| unreadable.iter().any(|it| it.device == device.name());
    for device in devices {
        if records.iter().any(|stored| stored.record.mark == device.mark) {
            continue;
        }
        match begun.iter().find(|begun| begun.mark == device.mark) {
            Some(begun) if begun.is_served => {}
            Some(_) => sorted.survey.left.push(LeftBehind {
                path: device.path(),
                via: device.via,
                uri: None,
                fate: Fate::Unused,
                log: None,
                mark: device.mark,
            }),
            None if is_unreadable(device) => {}
            None => sorted.survey.elsewhere.push(device.path()),
        }
    }
    let there = |mark: u64| devices.iter().any(|device| device.mark == mark);
    let dead = begun.iter().filter(|begun| !begun.is_served && !there(begun.mark));
    sorted.ended = dead.map(|begun| begun.mark).collect();
    let unreadable = unreadable.into_iter().map(|Unreadable { path, device, why }| {
        UnreadableRecord { device: format!("/dev/{device}"), path, why }
    });
    sorted.survey.unreadable = unreadable.collect();
    sorted
}

fn left(record: &Record, device: &Device) -> LeftBehind {
    LeftBehind {
        path: record.path(),
        via: record.via,
        uri: Some(record.wish.uri.clone()),
        fate: match record.is_recoverable() {
            _ if !device.has_disk => Fate::Unused,
            true => Fate::Recoverable,
            false => Fate::Lost,
        },
        log: record.log.clone(),
        mark: record.mark,
    }
}

/// The devices with a mark of ours.
fn devices() -> Vec<Device> {
    let ublk = numbers("/sys/class/ublk-char", "ublkc").into_iter().filter_map(|number| {
        let mark = ublk::find(number).ok()??.mark;
        let has_disk = usage::exists(&ublk::disk_path(number));
        Some(Device { via: Via::Ublk, number, mark, has_disk })
    });
    let nbd = numbers("/sys/block", "nbd").into_iter().filter_map(|number| {
        let mark = nbd::mark(&kernel_nbd::backend(number)?)?;
        Some(Device { via: Via::Nbd, number, mark, has_disk: true })
    });
    ublk.chain(nbd).filter(|device| kernel::is_ours(device.mark)).collect()
}

/// The numbers of the entries of a directory that are named so.
fn numbers(directory: &str, stem: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let number =
        |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix(stem)?.parse().ok();
    entries.flatten().filter_map(number).collect()
}

/// Removes what daemons have left that died before anybody was told of their device, and the files that they have left. A
/// process that the kernel cannot end before that is waited for.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn clear_unused() -> Result<()> {
    for left in survey()?.left.iter().filter(|left| left.fate == Fate::Unused) {
        match remove(left) {
            Ok(()) => tracing::warn!(
                device = left.path,
                "removed: its daemon has died, and nobody uses it"
            ),
            Err(err) => tracing::warn!(device = left.path, %err, "cannot be removed"),
        }
    }
    Store::open()?.sweep()
}

/// What was left behind of a disk, and can be recovered.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn orphan_of(identity: &DiskIdentity) -> Result<Option<Record>> {
    let orphans = orphans()?;
    Ok(orphans.into_iter().find(|record| record.identity.same_disk(identity)))
}

/// What can be recovered.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn orphans() -> Result<Vec<Record>> {
    let left = survey()?.left;
    let is_orphan = |record: &Record| {
        left.iter().any(|left| left.fate == Fate::Recoverable && left.mark == record.mark)
    };
    let records = Store::open()?.read()?.records.into_iter().map(|stored| stored.record);
    Ok(records.filter(is_orphan).collect())
}

/// Removes one. What the kernel still wanted of it fails, and so what is waiting for that can end.
///
/// # Errors
/// It is in use, somebody recovers it, or the driver refuses.
pub fn remove(left: &LeftBehind) -> Result<()> {
    let store = Store::open()?;
    let records = store.read()?.records;
    let stored = records.iter().find(|stored| stored.record.mark == left.mark);
    // Nobody recovers it meanwhile.
    let held = stored.map(|stored| store.claim(&stored.record)).transpose()?;
    // It must not be opened: that may read from it, and there is nobody to answer. One that nobody was told of
    // is used by nobody, but for those who look at all disks, and wait for it now.
    if let Some(stored) = stored
        && left.fate != Fate::Unused
    {
        usage::check_unused(&left.path, stored.record.pid)?;
    }
    let (via, number) = super::parse_device(&left.path)?;
    let gone = || Error::failed(format!("{} is another's now", left.path));
    match via {
        Via::Ublk => {
            let found = ublk::find(number).map_err(kernel::ublk_error)?;
            found.filter(|found| found.mark == left.mark).ok_or_else(gone)?;
            ublk::remove(number).map_err(kernel::ublk_error)?;
        }
        _ => {
            let found = kernel_nbd::backend(number).as_deref().and_then(nbd::mark);
            found.filter(|mark| *mark == left.mark).ok_or_else(gone)?;
            let mut driver = kernel_nbd::Driver::open().map_err(nbd::nbd_error)?;
            driver.disconnect(number).map_err(nbd::nbd_error)?;
        }
    }
    match (stored, held) {
        (Some(stored), Some(held)) => store.forget(&stored.record, &held)?,
        _ => store.end(left.mark),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::store::BegunMark;
    use super::*;

    fn nbd(number: u32, mark: u64) -> Device {
        Device { via: Via::Nbd, number, mark, has_disk: true }
    }

    fn stored(number: u32, mark: u64, is_served: bool) -> Stored {
        Stored { record: record(number, mark, "/dev/zero"), is_served }
    }

    fn fates(sorted: &Sorted) -> Vec<(&str, Fate)> {
        sorted.survey.left.iter().map(|left| (&*left.path, left.fate)).collect()
    }

    #[test]
    fn only_what_is_proved_to_be_nobodys_is_left_behind() {
        let contents = Contents {
            records: vec![stored(0, 10, true), stored(1, 11, false), stored(2, 12, false)],
            unreadable: vec![Unreadable {
                path: "/run/nbd3.json".into(),
                device: "nbd3".into(),
                why: "it is of version 9".into(),
            }],
            begun: vec![
                BegunMark { mark: 14, is_served: true },
                BegunMark { mark: 15, is_served: false },
                BegunMark { mark: 17, is_served: false },
            ],
        };
        // Number 2 has been attached anew, by somebody else.
        let devices =
            [nbd(0, 10), nbd(1, 11), nbd(2, 99), nbd(3, 13), nbd(4, 14), nbd(5, 15), nbd(6, 16)];
        let sorted = sort(contents, &devices);
        assert_eq!(fates(&sorted), [("/dev/nbd1", Fate::Recoverable), ("/dev/nbd5", Fate::Unused)]);
        assert_eq!(sorted.survey.elsewhere, ["/dev/nbd2", "/dev/nbd6"]);
        assert_eq!(sorted.survey.unreadable[0].device, "/dev/nbd3");
        assert_eq!(sorted.gone.iter().map(|record| record.mark).collect::<Vec<_>>(), [12]);
        assert_eq!(sorted.ended, [17]);
    }

    #[test]
    fn a_disk_in_memory_is_lost_with_its_daemon_and_then_the_kernels_part_with_it() {
        let mut record = record(0, 10, "ram:1M");
        record.via = Via::Ublk;
        record.device = "ublkb0".into();
        let dead = || Contents {
            records: vec![Stored { record: record.clone(), is_served: false }],
            ..Contents::default()
        };
        let mut device = Device { via: Via::Ublk, number: 0, mark: 10, has_disk: true };
        assert_eq!(fates(&sort(dead(), &[device])), [("/dev/ublkb0", Fate::Lost)]);
        device.has_disk = false;
        assert_eq!(fates(&sort(dead(), &[device])), [("/dev/ublkb0", Fate::Unused)]);
        assert_eq!(sort(dead(), &[]).gone, [record]);
    }
}
