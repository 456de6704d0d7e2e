//! What is on record of a disk that is attached: enough to go on with it when its daemon has died.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Via, Wish};
use crate::disks::identity::DiskIdentity;
use crate::disks::throttle;
use crate::yard::follow::State;

/// The form of the files.
const VERSION: u32 = 2;

/// A disk that is attached, or was when its daemon died.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The name of the kernel's disk, as `ublkb0`.
    pub device: String,
    /// By which driver.
    pub via: Via,
    /// The number of the kernel's disk.
    pub number: u32,
    /// What tells this disk of the kernel from a later one of the same number.
    pub mark: u64,
    /// Its daemon.
    pub pid: u32,
    /// Where relative paths start.
    pub directory: PathBuf,
    /// What was asked for.
    pub wish: Wish,
    /// Which disk it is, whatever it is called.
    pub identity: DiskIdentity,
    /// Bytes of the disk, without what its last block is padded with.
    pub size: u64,
    /// It has that size since it was attached, and not by what it is.
    #[serde(default)]
    pub resized: bool,
    /// It was made read-only since.
    pub read_only: bool,
    /// The limits that it has since they were changed, by their settings.
    #[serde(default)]
    pub limits: Option<BTreeMap<String, String>>,
    /// Where the output of a daemon in the background goes.
    pub log: Option<PathBuf>,
}

impl Record {
    /// A record of what this process has attached.
    #[must_use]
    pub fn new(via: Via, number: u32, mark: u64, wish: Wish, identity: DiskIdentity) -> Self {
        Self {
            version: VERSION,
            device: format!("{}{number}", via.stem()),
            via,
            number,
            mark,
            pid: std::process::id(),
            // Without a directory, relative paths start at the root.
            directory: std::env::current_dir().unwrap_or_else(|_| "/".into()),
            wish,
            identity,
            size: 0,
            resized: false,
            read_only: false,
            limits: None,
            log: None,
        }
    }

    /// Takes down what has become of the disk.
    pub(super) fn note(&mut self, before: State, now: State) {
        self.resized |= before.size != now.size;
        self.size = now.size;
        if before.read_only != now.read_only {
            self.read_only = now.read_only;
        }
        if before.throttle != now.throttle {
            self.limits = Some(throttle::shown(&now.throttle));
        }
    }

    /// Where the kernel has it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{}", self.device)
    }

    /// Whether another daemon can go on with it: the kernel waits for one, and the bytes are still there.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        self.via != Via::NbdIoctl && !self.identity.is_volatile()
    }

    /// Reads the record of a device.
    ///
    /// # Errors
    /// Why it says nothing to this program: it is of another version, say.
    pub(super) fn parse(device: &str, text: &[u8]) -> io::Result<Self> {
        let value: Value = serde_json::from_slice(text)?;
        match value.get("version").and_then(Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                let what = format!("record version {version} is not supported, only {VERSION}");
                return Err(io::Error::other(what));
            }
            None => return Err(io::Error::other("record without a version")),
        }
        let record: Self = serde_json::from_value(value)?;
        if record.device != device
            || record.device != format!("{}{}", record.via.stem(), record.number)
        {
            return Err(io::Error::other("the record does not belong to its file name"));
        }
        Ok(record)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The record of a disk in a file that is attached as /dev/nbdN.
    pub(in crate::attach) fn record(number: u32, mark: u64, uri: &str) -> Record {
        let wish = Wish { uri: uri.into(), ..Wish::default() };
        let identity = DiskIdentity::of(&uri.parse().unwrap()).unwrap();
        Record::new(Via::Nbd, number, mark, wish, identity)
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_one_of_another_version_says_so() {
        let record = record(3, 7, "ram:1M");
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(Record::parse("nbd3", text.as_bytes()).unwrap(), record);
        let failed =
            |device, text: &str| Record::parse(device, text.as_bytes()).unwrap_err().to_string();
        assert!(failed("nbd4", &text).contains("does not belong to its file name"));
        let newer = text.replace(&format!("\"version\":{VERSION}"), "\"version\":99");
        assert!(failed("nbd3", &newer).contains("version 99"), "{newer}");
        assert!(failed("nbd3", "{}").contains("without a version"));
        assert!(!failed("nbd3", "{\"version\":").is_empty());
    }

    #[test]
    fn what_was_in_the_daemons_memory_cannot_be_recovered() {
        assert!(!record(0, 1, "ram:1M").is_recoverable());
        assert!(!record(0, 1, "null:1M").is_recoverable());
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut stored = record(0, 1, file.path().to_str().unwrap());
        assert!(stored.is_recoverable());
        stored.via = Via::NbdIoctl;
        assert!(!stored.is_recoverable(), "the kernel does not wait for another");
    }
}
