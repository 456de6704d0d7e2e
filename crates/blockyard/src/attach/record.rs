//! What is on record of a disk that is attached: enough to go on with it when its daemon has died.
//!
//! One file for each in the runtime directory, `attached/ublkb0.json`, written whole or not at all. It is gone
//! with the machine's next start, as is the kernel's disk.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Via, Wish};
use crate::control::{make_runtime_dir, runtime_dir};
use crate::error::{Error, Result};

/// The form of the files.
const VERSION: u32 = 1;
/// The largest file that is read.
const MAX_BYTES: u64 = 64 << 10;

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
    /// Bytes of the disk.
    pub size: u64,
    /// Where the output of a daemon in the background goes.
    pub log: Option<PathBuf>,
}

impl Record {
    /// A record of what this process has attached.
    #[must_use]
    pub fn new(device: String, via: Via, number: u32, mark: u64, wish: Wish, size: u64) -> Self {
        // Without a directory, relative paths start at the root.
        let directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let pid = std::process::id();
        let log = None;
        Self { version: VERSION, device, via, number, mark, pid, directory, wish, size, log }
    }

    /// Where the kernel has it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/dev/{}", self.device)
    }

    /// Puts it on record.
    ///
    /// # Errors
    /// The runtime directory cannot be written to.
    pub fn save(&self) -> Result<()> {
        let directory = directory()?;
        let path = file(&directory, &self.device);
        let write = || -> io::Result<()> {
            make_runtime_dir(&directory)?;
            let next = directory.join(format!("{}.{}", self.device, std::process::id()));
            let mut out = fs::File::create(&next)?;
            out.write_all(serde_json::to_string_pretty(self)?.as_bytes())?;
            out.sync_all()?;
            fs::rename(&next, &path)
        };
        write()
            .map_err(|err| Error::failed(format!("cannot write {}", path.display())).caused_by(err))
    }

    /// Takes it off record, unless another has taken its place.
    pub fn forget(&self) {
        let Ok(directory) = directory() else { return };
        let path = file(&directory, &self.device);
        if read(&path).is_ok_and(|found| found.mark == self.mark && found.pid == self.pid) {
            // Somebody may have been faster.
            let _ = fs::remove_file(&path);
            self.forget_log();
        }
    }
}

impl Record {
    /// What its daemon had to say is of no interest any more.
    pub(super) fn forget_log(&self) {
        if let Some(log) = &self.log {
            // Somebody may have looked at it and removed it.
            let _ = fs::remove_file(log);
        }
    }
}

/// All that is on record, by the names of the devices. What cannot be read is told and left out.
///
/// # Errors
/// The runtime directory cannot be read.
pub fn all() -> Result<Vec<Record>> {
    let directory = directory()?;
    let mut records = Vec::new();
    match fs::read_dir(&directory) {
        Ok(entries) => {
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|extension| extension == "json") {
                    match read(&path) {
                        Ok(record) => records.push(record),
                        Err(err) => {
                            tracing::warn!(path = %path.display(), %err, "not a record of ours");
                        }
                    }
                }
            }
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => {
            let what = format!("cannot read {}", directory.display());
            return Err(Error::failed(what).caused_by(err));
        }
    }
    records.sort_by(|a, b| (&a.device[..3], a.number).cmp(&(&b.device[..3], b.number)));
    Ok(records)
}

fn read(path: &Path) -> io::Result<Record> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    let record: Record = serde_json::from_str(&text)?;
    let (stem, number) = super::parse_device(&record.device).map_err(io::Error::other)?;
    if record.version != VERSION || record.device != format!("{stem}{}", record.number) {
        return Err(io::Error::other("another version, or not what its name says"));
    }
    debug_assert_eq!(number, record.number);
    Ok(record)
}

fn directory() -> Result<PathBuf> {
    Ok(runtime_dir()?.join("attached"))
}

fn file(directory: &Path, device: &str) -> PathBuf {
    directory.join(format!("{device}.json"))
}
