//! What daemons that died have left behind.
//!
//! Whatever may be somebody's is left alone: only a record, or a note that a device is being made, which nobody holds any more
//! proves that its daemon has died. Devices of ours that are neither here are of another runtime directory.

use std::io;
use std::path::{Path, PathBuf};

use blockyard_export_kernel_nbd as kernel_nbd;
use blockyard_export_ublk as ublk;
use serde::{Deserialize, Serialize};

use super::record::Record;
use super::store::{Contents, Store, Stored, Unreadable};
use super::{Via, kernel, nbd, usage};
use crate::error::{self, Error, Result};

/// Where the kernel lists the devices of the ublk driver, and its disks.
const UBLK_DEVICES: &str = "/sys/class/ublk-char";
const BLOCK_DEVICES: &str = "/sys/block";

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
    /// Why nothing is known of it.
    pub why: Option<String>,
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
    /// The kernel does not tell what has become of it.
    Unknown,
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

/// What the kernel says when it is looked for devices of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Device(Device),
    /// Nobody can tell what this one is, or, without a number, what any of this driver is.
    Unknown {
        via: Via,
        number: Option<u32>,
        why: String,
    },
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
        let Ok(held) = store.claim(record) else { continue };
        let forgotten = mark_of(record.via, record.number).and_then(|mark| {
            // One that was made between both looks.
            if mark == Some(record.mark) { Ok(()) } else { store.forget(record, &held) }
        });
        if let Err(err) = forgotten {
            tracing::warn!(device = record.path(), error = %err, "cannot remove the attach record");
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

fn sort(contents: Contents, seen: &[Seen]) -> Sorted {
    let Contents { records, unreadable, begun } = contents;
    let mut sorted = Sorted::default();
    let devices: Vec<_> = seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Device(device) => Some(*device),
            Seen::Unknown { .. } => None,
        })
        .collect();
    for Stored { record, .. } in records.iter().filter(|stored| !stored.is_served) {
        match (devices.iter().find(|device| device.is_of(record)), why_unknown(seen, record)) {
            (Some(device), _) => sorted.survey.left.push(left(record, fate(record, device), None)),
            (None, Some(why)) => {
                sorted.survey.left.push(left(record, Fate::Unknown, Some(why.to_owned())));
            }
            (None, None) => sorted.gone.push(record.clone()),
        }
    }
    let is_unreadable = |device: &Device| unreadable.iter().any(|it| it.device == device.name());
    for device in &devices {
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
                why: None,
                mark: device.mark,
            }),
            None if is_unreadable(device) => {}
            None => sorted.survey.elsewhere.push(device.path()),
        }
    }
    // One that cannot be looked at may be any.
    let all_known = devices.len() == seen.len();
    let there = |mark: u64| !all_known || devices.iter().any(|device| device.mark == mark);
    let dead = begun.iter().filter(|begun| !begun.is_served && !there(begun.mark));
    sorted.ended = dead.map(|begun| begun.mark).collect();
    let unreadable = unreadable.into_iter().map(|Unreadable { path, device, why }| {
        UnreadableRecord { device: format!("/dev/{device}"), path, why }
    });
    sorted.survey.unreadable = unreadable.collect();
    sorted
}

/// Why nobody can tell whether the device of a record is still there.
fn why_unknown<'a>(seen: &'a [Seen], record: &Record) -> Option<&'a str> {
    seen.iter().find_map(|seen| match seen {
        Seen::Unknown { via, number, why }
            if via.stem() == record.via.stem()
                && number.is_none_or(|number| number == record.number) =>
        {
            Some(&**why)
        }
        _ => None,
    })
}

fn fate(record: &Record, device: &Device) -> Fate {
    match record.is_recoverable() {
        _ if !device.has_disk => Fate::Unused,
        true => Fate::Recoverable,
        false => Fate::Lost,
    }
}

fn left(record: &Record, fate: Fate, why: Option<String>) -> LeftBehind {
    LeftBehind {
        path: record.path(),
        via: record.via,
        uri: Some(record.wish.uri.clone()),
        fate,
        log: record.log.clone(),
        why,
        mark: record.mark,
    }
}

/// The devices with a mark of ours, and what cannot be looked at.
fn devices() -> Vec<Seen> {
    let drivers = [(Via::Ublk, UBLK_DEVICES, "ublkc"), (Via::Nbd, BLOCK_DEVICES, "nbd")];
    let mut seen = Vec::new();
    for (via, directory, stem) in drivers {
        match numbers(Path::new(directory), stem) {
            Ok(numbers) => seen.extend(numbers.into_iter().filter_map(|number| see(via, number))),
            Err(err) => {
                let why = format!("{directory} cannot be read: {err}");
                seen.push(Seen::Unknown { via, number: None, why });
            }
        }
    }
    seen
}

/// Looks at one device; nothing if it is none of ours.
fn see(via: Via, number: u32) -> Option<Seen> {
    let has_disk = || match via {
        Via::Ublk => usage::has_disk(&ublk::disk_path(number)),
        Via::Nbd | Via::NbdIoctl => Ok(true),
    };
    match mark_of(via, number) {
        Ok(mark) => {
            let mark = mark.filter(|mark| kernel::is_ours(*mark))?;
            // One that may have a disk may be in use.
            let has_disk = has_disk().unwrap_or(true);
            Some(Seen::Device(Device { via, number, mark, has_disk }))
        }
        Err(err) => Some(Seen::Unknown { via, number: Some(number), why: in_a_line(&err) }),
    }
}

/// The mark that the kernel has for a device of that number; none if there is no device, or it has none. Those that were set up
/// by ioctls have none, and end with their daemons.
fn mark_of(via: Via, number: u32) -> Result<Option<u64>> {
    match via {
        Via::Ublk => {
            // Without a device there may be no driver that could be asked.
            if !has_ublk_device(number).map_err(unreadable)? {
                return Ok(None);
            }
            let found = ublk::find(number).map_err(kernel::ublk_error)?;
            Ok(found.map(|found| found.mark))
        }
        Via::Nbd | Via::NbdIoctl => {
            let backend = kernel_nbd::backend(number).map_err(unreadable)?;
            Ok(backend.as_deref().and_then(nbd::mark))
        }
    }
}

/// Whether the ublk driver has a device of that number, with or without a disk.
///
/// # Errors
/// It cannot be told.
pub fn has_ublk_device(number: u32) -> io::Result<bool> {
    let class = Path::new(UBLK_DEVICES);
    Ok(usage::is_in_sysfs(class)? && usage::is_in_sysfs(&class.join(format!("ublkc{number}")))?)
}

/// An error with all its causes.
fn in_a_line(err: &Error) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = error::describe(err, &mut text);
    text.replace("\n  ", "; ")
}

fn unreadable(err: io::Error) -> Error {
    Error::failed("cannot read the devices of the kernel (/sys)").caused_by(err)
}

/// The numbers of the entries of a directory of sysfs that are named so. A class of devices is there once its driver is.
///
/// # Errors
/// It cannot be read; there is no sysfs.
fn numbers(directory: &Path, stem: &str) -> io::Result<Vec<u32>> {
    if !usage::is_in_sysfs(directory)? {
        return Ok(Vec::new());
    }
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number: Option<u32> =
            name.to_str().and_then(|name| name.strip_prefix(stem)?.parse().ok());
        numbers.extend(number);
    }
    Ok(numbers)
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
                "device removed: its daemon has died, and it is unused"
            ),
            Err(err) => {
                tracing::warn!(device = left.path, error = %err, "cannot remove the device");
            }
        }
    }
    Store::open()?.sweep()
}

/// How what is on record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its daemon lives.
    Served,
    /// It has died.
    Left(Fate),
}

/// What is on record, and has not gone.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn on_record() -> Result<Vec<(Record, Standing)>> {
    let left = survey()?.left;
    let standing = |Stored { record, is_served }| {
        if is_served {
            return Some((record, Standing::Served));
        }
        let fate = left.iter().find(|left| left.mark == record.mark)?.fate;
        Some((record, Standing::Left(fate)))
    };
    Ok(Store::open()?.read()?.records.into_iter().filter_map(standing).collect())
}

/// What can be recovered.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn orphans() -> Result<Vec<Record>> {
    let can_be = |(record, standing): (Record, Standing)| {
        (standing == Standing::Left(Fate::Recoverable)).then_some(record)
    };
    Ok(on_record()?.into_iter().filter_map(can_be).collect())
}

/// Removes one. What the kernel still wanted of it fails, and so what is waiting for that can end.
///
/// # Errors
/// It is in use, somebody recovers it, or the driver refuses.
pub fn remove(left: &LeftBehind) -> Result<()> {
    remove_from(&Store::open()?, left, usage::check_unclaimed, take_away)
}

fn remove_from(
    store: &Store,
    left: &LeftBehind,
    check_unused: impl FnOnce(&str, u32) -> Result<()>,
    take_away: impl FnOnce(&LeftBehind) -> Result<()>,
) -> Result<()> {
    let records = store.read()?.records;
    let stored = records.iter().find(|stored| stored.record.mark == left.mark);
    // Nobody recovers it meanwhile.
    let held = stored.map(|stored| store.claim(&stored.record)).transpose()?;
    // It must not be opened: that may read from it, and there is nobody to answer. One that nobody was told of
    // is used by nobody, but for those who look at all disks, and wait for it now.
    if let Some(stored) = stored {
        check_unused(&left.path, stored.record.pid)?;
    }
    take_away(left)?;
    match (stored, held) {
        (Some(stored), Some(held)) => store.forget(&stored.record, &held)?,
        _ => store.end(left.mark),
    }
    Ok(())
}

/// Takes it from the kernel.
fn take_away(left: &LeftBehind) -> Result<()> {
    let (via, number) = super::parse_device(&left.path)?;
    if mark_of(via, number)? != Some(left.mark) {
        return Err(Error::failed(format!("{} is used by another process", left.path)));
    }
    match via {
        Via::Ublk => ublk::remove(number, left.mark).map_err(kernel::ublk_error),
        Via::Nbd | Via::NbdIoctl => kernel_nbd::Driver::open()
            .and_then(|mut driver| driver.disconnect(number))
            .map_err(nbd::nbd_error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::record;
    use super::super::store::BegunMark;
    use super::*;
    use crate::error::ErrorKind;

    fn nbd(number: u32, mark: u64) -> Seen {
        Seen::Device(Device { via: Via::Nbd, number, mark, has_disk: true })
    }

    fn unknown(via: Via, number: Option<u32>) -> Seen {
        Seen::Unknown { via, number, why: "out of memory".into() }
    }

    /// The record of a ublk device whose daemon has died.
    fn dead_ublk(number: u32, uri: &str) -> Stored {
        let mut record = record(number, 10, uri);
        (record.via, record.device) = (Via::Ublk, format!("ublkb{number}"));
        Stored { record, is_served: false }
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
        let stored = dead_ublk(0, "ram:1M");
        let dead = || Contents { records: vec![stored.clone()], ..Contents::default() };
        let seen =
            |has_disk| Seen::Device(Device { via: Via::Ublk, number: 0, mark: 10, has_disk });
        assert_eq!(fates(&sort(dead(), &[seen(true)])), [("/dev/ublkb0", Fate::Lost)]);
        assert_eq!(fates(&sort(dead(), &[seen(false)])), [("/dev/ublkb0", Fate::Unused)]);
        assert_eq!(sort(dead(), &[]).gone, [stored.record]);
    }

    /// Where `io_uring` is forbidden, say, the ublk driver cannot be asked.
    #[test]
    fn a_device_that_cannot_be_looked_at_stays_on_record() {
        let contents = || Contents {
            records: vec![dead_ublk(0, "/dev/zero"), stored(1, 11, false)],
            begun: vec![BegunMark { mark: 15, is_served: false }],
            ..Contents::default()
        };
        let gone = |sorted: &Sorted| {
            sorted.gone.iter().map(|record| record.device.clone()).collect::<Vec<_>>()
        };
        for number in [Some(0), None] {
            let sorted = sort(contents(), &[unknown(Via::Ublk, number), nbd(1, 99)]);
            assert_eq!(fates(&sorted), [("/dev/ublkb0", Fate::Unknown)]);
            assert_eq!(sorted.survey.left[0].why.as_deref(), Some("out of memory"));
            assert_eq!(gone(&sorted), ["nbd1"], "its number has another mark");
            assert_eq!(sorted.ended, [0_u64; 0], "it may be that one");
        }
        // Another that cannot be looked at is no reason.
        let sorted = sort(contents(), &[unknown(Via::Ublk, Some(7))]);
        assert_eq!(gone(&sorted), ["ublkb0", "nbd1"]);
        let sorted = sort(contents(), &[]);
        assert_eq!((gone(&sorted).len(), &sorted.ended[..]), (2, &[15][..]));
    }

    #[test]
    fn no_devices_are_told_from_a_list_that_is_not_there() {
        let sysfs = tempfile::tempdir().unwrap();
        let class = sysfs.path().join("class");
        let devices = class.join("ublk-char");
        numbers(&devices, "ublkc").unwrap_err();
        std::fs::create_dir(&class).unwrap();
        assert_eq!(numbers(&devices, "ublkc").unwrap(), [0_u32; 0]);
        for name in ["ublkc3", "ublkb4", "ublkcx"] {
            std::fs::create_dir_all(devices.join(name)).unwrap();
        }
        assert_eq!(numbers(&devices, "ublkc").unwrap(), [3]);
    }

    #[test]
    fn whatever_is_said_of_a_device_on_record_it_is_not_removed_while_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let record = record(0, 7, "/dev/zero");
        drop(store.save(&record).unwrap());
        for fate in [Fate::Unused, Fate::Lost, Fate::Recoverable] {
            let in_use = |_: &str, _| Err(Error::new(ErrorKind::Busy, "it is mounted"));
            let left = left(&record, fate, None);
            let removed = remove_from(&store, &left, in_use, |_| panic!("it is in use"));
            assert_eq!(removed.unwrap_err().kind(), ErrorKind::Busy);
            assert_eq!(store.read().unwrap().records.len(), 1);
        }
        remove_from(&store, &left(&record, Fate::Unused, None), |_, _| Ok(()), |_| Ok(())).unwrap();
        assert!(store.read().unwrap().records.is_empty());
    }
}
