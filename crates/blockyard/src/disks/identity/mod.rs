//! Which disk is meant, however it was named: what tells one disk from another, for all who have to know.
//!
//! A path is a name, and so is a URI: both mean another disk from another directory, after a rename, behind a link. The
//! identity of a file is its file system, inode and time of birth (an inode is used again when its file is gone), that of a block
//! device its number and what its maker says, that of an export its server's address and its name. It is written as
//! text, in records and journals, and compared as a value.

mod filesystem;
mod layers;
#[cfg(test)]
mod tests;
mod text;

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::disks::DiskPlan;
use crate::error::{Error, Result};

pub use text::BadIdentity;

/// Where the kernel tells what block devices are.
const SYSFS: &str = "/sys";

/// A device number.
type Number = (u32, u32);

/// Which disk it is. Two are equal if nothing is known that tells them apart, and both know as much;
/// [`DiskIdentity::same_disk`] and [`DiskIdentity::overlaps`] are what to ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskIdentity(Kind);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// Nothing of it is left when its owner ends.
    Volatile,
    /// A file.
    File {
        /// Of its file system.
        device: Number,
        inode: u64,
        /// Nanoseconds since 1970, where the file system keeps it.
        born: Option<i128>,
        /// Which file system that is, where its device may be another one after the next mount.
        filesystem: Option<String>,
    },
    /// A file that is not there: its folder, and its name in it.
    Absent { device: Number, inode: u64, name: OsString },
    /// A block device.
    Device {
        number: Number,
        /// Tells it from those that had its number before (`diskseq`), until the machine is started again.
        sequence: Option<u64>,
        /// What its maker gave it, with the partition, where it is known.
        serial: Option<String>,
    },
    /// What a kind of disk tells its disks apart by: an export of a server, an image of a store.
    Named { kind: String, words: Vec<Vec<u8>> },
}

impl DiskIdentity {
    /// The identity of the disk that a plan leads to, now. Nothing is opened, and nothing made.
    ///
    /// # Errors
    /// The path of a file cannot be looked at, or the folder that a new one is to be in is not there.
    pub fn of(plan: &DiskPlan) -> Result<Self> {
        if plan.kind.is_volatile {
            return Ok(Self(Kind::Volatile));
        }
        let own = plan.source.identity().map_err(|err| {
            Error::failed(format!("cannot identify the disk {}", plan.uri)).caused_by(err)
        })?;
        match (own, &plan.below) {
            (Some(own), _) => Ok(own),
            (None, Some(below)) => Self::of(below),
            (None, None) => Ok(Self(Kind::Volatile)),
        }
    }

    /// The identity of a disk of a kind, by words that only it has among those of its kind, wherever it is asked for. `kind` is a
    /// word of small letters that no other kind takes.
    #[must_use]
    pub fn of_words<W: Into<Vec<u8>>>(kind: &str, words: impl IntoIterator<Item = W>) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        Self(Kind::Named { kind: kind.to_owned(), words })
    }

    /// The identity of a file or a block device, or of a file that is not there yet.
    ///
    /// # Errors
    /// The path cannot be looked at.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(found) => {
                let mut identity = Self::of_metadata(&found);
                if let Kind::File { device, filesystem, .. } = &mut identity.0 {
                    *filesystem = filesystem::of(path, *device);
                }
                Ok(identity)
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => absent(path).map(Self),
            Err(err) => Err(err),
        }
    }

    /// The identity of what was opened.
    #[must_use]
    pub fn of_metadata(found: &Metadata) -> Self {
        if found.file_type().is_block_device() {
            let number = number(found.rdev());
            let sysfs = Path::new(SYSFS);
            let sequence = layers::sequence(sysfs, number);
            return Self(Kind::Device { number, sequence, serial: layers::serial(sysfs, number) });
        }
        let born =
            found.created().ok().map(|born| match born.duration_since(SystemTime::UNIX_EPOCH) {
                Ok(after) => after.as_nanos().cast_signed(),
                Err(before) => -before.duration().as_nanos().cast_signed(),
            });
        Self(Kind::File { device: number(found.dev()), inode: found.ino(), born, filesystem: None })
    }

    /// Nothing of it is left when its owner ends: memory.
    #[must_use]
    pub const fn is_volatile(&self) -> bool {
        matches!(self.0, Kind::Volatile)
    }

    /// Nothing is there yet: a file that is still to be made.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self.0, Kind::Absent { .. })
    }

    /// Whether both are the same disk, whatever led to them; both were found out since the machine was started. Two of
    /// memory never are.
    #[must_use]
    pub fn same_disk(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Device { number: one, .. }, Kind::Device { number: two, .. }) => {
                one == two && self.may_be(other)
            }
            (
                Kind::File { device: one, filesystem: one_on, .. },
                Kind::File { device: two, filesystem: two_on, .. },
            ) => {
                let both_known = one_on.is_some() && two_on.is_some();
                (both_known || one == two) && self.may_be(other)
            }
            (Kind::Volatile, _) => false,
            (one, two) => one == two,
        }
    }

    /// Whether it is the disk that was found out about before the machine was started again. The kernel may have given other
    /// numbers to devices since; what is not known for sure is not the same.
    #[must_use]
    pub fn is_still(&self, before: &Self) -> bool {
        match (&self.0, &before.0) {
            (Kind::Device { serial: one, .. }, Kind::Device { serial: two, .. }) => {
                one.is_some() && one == two
            }
            (Kind::File { born, .. }, Kind::File { .. }) => born.is_some() && self.may_be(before),
            _ => self.same_disk(before),
        }
    }

    /// Nothing but their numbers tells them apart, and what one of them does not know.
    fn may_be(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (
                Kind::File { inode: one, born: one_born, filesystem: one_on, .. },
                Kind::File { inode: two, born: two_born, filesystem: two_on, .. },
            ) => {
                one == two
                    && agree(one_born.as_ref(), two_born.as_ref())
                    && agree(one_on.as_ref(), two_on.as_ref())
            }
            (
                Kind::Device { sequence: one, serial: one_serial, .. },
                Kind::Device { sequence: two, serial: two_serial, .. },
            ) => {
                agree(one.as_ref(), two.as_ref()) && agree(one_serial.as_ref(), two_serial.as_ref())
            }
            _ => false,
        }
    }

    /// Whether writing to one may change the other, as far as this machine can tell: the same disk, a partition and its disk, a
    /// loop device and its file, what is mapped and what is below, a server by two names of this machine.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.overlaps_by(other, Path::new(SYSFS))
    }

    fn overlaps_by(&self, other: &Self, sysfs: &Path) -> bool {
        if self.same_disk(other) {
            return true;
        }
        if let (Kind::Named { kind: one, words: a }, Kind::Named { kind: two, words: b }) =
            (&self.0, &other.0)
        {
            let may_be = |(a, b): (&Vec<u8>, &Vec<u8>)| a == b || is_here(a) && is_here(b);
            return one == two && a.len() == b.len() && a.iter().zip(b).all(may_be);
        }
        layers::overlap(&self.layers(sysfs), &other.layers(sysfs))
    }

    fn layers(&self, sysfs: &Path) -> Vec<layers::Layer> {
        match &self.0 {
            Kind::File { device, inode, .. } => vec![layers::Layer::of_file(*device, *inode)],
            Kind::Device { number, .. } => layers::below(sysfs, *number),
            Kind::Volatile | Kind::Absent { .. } | Kind::Named { .. } => Vec::new(),
        }
    }
}

/// What only one of them knows is no difference.
fn agree<T: PartialEq>(one: Option<&T>, two: Option<&T>) -> bool {
    one.is_none() || two.is_none() || one == two
}

fn number(device: u64) -> Number {
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// A file that is not there: the folder is, or nothing can be made in it.
fn absent(path: &Path) -> io::Result<Kind> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::metadata(folder.unwrap_or(Path::new(".")))?;
    Ok(Kind::Absent { device: number(folder.dev()), inode: folder.ino(), name: name.into() })
}

/// Names that this machine has for itself: servers at two of them are perhaps one.
fn is_here(word: &[u8]) -> bool {
    word == b"localhost"
        || str::from_utf8(word)
            .is_ok_and(|host| host.parse().is_ok_and(|address: IpAddr| address.is_loopback()))
}
