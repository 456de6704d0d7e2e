//! What is below a block device: the disk of a partition, the file of a loop device, the devices of a mapping. As sysfs
//! tells it (Documentation/ABI/stable/sysfs-block; `loop` in drivers/block/loop.c).

use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Number, number};

/// Devices below a device that are looked at: far more than anybody stacks.
const MAX_LAYERS: usize = 256;
/// The unit of starts and sizes in sysfs.
const SECTOR: u64 = 512;
/// All of a file or a device.
const ALL: Range<u64> = 0..u64::MAX;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Base {
    Device(Number),
    /// The device of its file system, and its inode.
    File(Number, u64),
}

/// Bytes of a device or a file that a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    base: Base,
    range: Range<u64>,
    /// All of the range; else a part of it, nobody knows which.
    whole: bool,
}

impl Layer {
    pub(super) fn of_file(device: Number, inode: u64) -> Self {
        Self { base: Base::File(device, inode), range: ALL, whole: true }
    }
}

/// Whether two disks share bytes. Of two parts of the same device nobody knows: logical volumes are such, and do not.
pub(super) fn overlap(one: &[Layer], two: &[Layer]) -> bool {
    one.iter().any(|a| {
        two.iter().any(|b| {
            a.base == b.base
                && a.range.start < b.range.end
                && b.range.start < a.range.end
                && (a.whole || b.whole)
        })
    })
}

/// A device, and all that is below it.
pub(super) fn below(sysfs: &Path, device: Number) -> Vec<Layer> {
    let mut found = Vec::new();
    let mut next = vec![Layer { base: Base::Device(device), range: ALL, whole: true }];
    while let Some(layer) = next.pop() {
        if found.len() >= MAX_LAYERS {
            break;
        }
        if let Base::Device(number) = layer.base {
            next.extend(directly_below(sysfs, number, &layer));
        }
        found.push(layer);
    }
    found
}

fn directly_below(sysfs: &Path, device: Number, above: &Layer) -> Vec<Layer> {
    let folder = folder(sysfs, device);
    if let Some(start) = partition(&folder).and_then(|_| attribute(&folder, "start")) {
        let len = attribute(&folder, "size").unwrap_or(u64::MAX);
        let Some(disk) = read(&folder, "../dev").and_then(|text| parse_number(&text)) else {
            return Vec::new();
        };
        let place = (start.saturating_mul(SECTOR), len.saturating_mul(SECTOR));
        return vec![Layer {
            base: Base::Device(disk),
            range: shift(&above.range, place),
            ..*above
        }];
    }
    if let Some((file, inode)) = backing_file(&folder) {
        let start = attribute(&folder, "loop/offset").unwrap_or(0);
        let len = attribute(&folder, "loop/sizelimit").filter(|&len| len > 0);
        let range = shift(&above.range, (start, len.unwrap_or(u64::MAX)));
        return vec![Layer { base: Base::File(file, inode), range, ..*above }];
    }
    let Ok(slaves) = fs::read_dir(folder.join("slaves")) else { return Vec::new() };
    let slaves = slaves.flatten().filter_map(|slave| parse_number(&read(&slave.path(), "dev")?));
    slaves.map(|slave| Layer { base: Base::Device(slave), range: ALL, whole: false }).collect()
}

/// A range of a device that begins at `start` of another, and has `len` bytes.
fn shift(range: &Range<u64>, (start, len): (u64, u64)) -> Range<u64> {
    let place = |at: u64| start.saturating_add(at.min(len));
    place(range.start)..place(range.end)
}

/// The file of a loop device. One that is mounted over a block device is that device's node: no regular file.
fn backing_file(folder: &Path) -> Option<(Number, u64)> {
    let mut path = fs::read(folder.join("loop/backing_file")).ok()?;
    while path.last() == Some(&b'\n') {
        path.pop();
    }
    let path = PathBuf::from(OsString::from_vec(path));
    // A file that was removed has no path any more; nobody can name it as a disk either.
    let found = fs::metadata(&path).ok()?;
    found.file_type().is_file().then(|| (number(found.dev()), found.ino()))
}

/// The number that tells a device from those that had its place before, of the whole disk (`diskseq`, since Linux 5.15).
pub(super) fn sequence(sysfs: &Path, device: Number) -> Option<u64> {
    let folder = folder(sysfs, device);
    attribute(&folder, "diskseq").or_else(|| attribute(&folder, "../diskseq"))
}

/// What the maker of a device, or of a mapping, has given it. A partition has that of its disk, with its number and where it
/// begins.
pub(super) fn serial(sysfs: &Path, device: Number) -> Option<String> {
    let folder = folder(sysfs, device);
    let disk = match partition(&folder) {
        Some(_) => folder.join(".."),
        None => folder.clone(),
    };
    let names = ["dm/uuid", "md/uuid", "wwid", "device/wwid", "device/serial", "serial"];
    let serial = names.into_iter().find_map(|name| read(&disk, name))?;
    match (partition(&folder), attribute(&folder, "start")) {
        (Some(partition), start) => {
            Some(format!("{serial} part {partition} at {}", start.unwrap_or(0)))
        }
        (None, _) => Some(serial),
    }
}

fn folder(sysfs: &Path, (major, minor): Number) -> PathBuf {
    let link = sysfs.join(format!("dev/block/{major}:{minor}"));
    // Behind the link `..` is the disk of a partition.
    fs::canonicalize(&link).unwrap_or(link)
}

fn partition(folder: &Path) -> Option<u64> {
    attribute(folder, "partition")
}

fn attribute(folder: &Path, name: &str) -> Option<u64> {
    read(folder, name)?.parse().ok()
}

/// A file of sysfs, which is short; nothing if there is nothing in it.
fn read(folder: &Path, name: &str) -> Option<String> {
    let bytes = fs::read(folder.join(name)).ok()?;
    let text = String::from_utf8_lossy(bytes.trim_ascii()).into_owned();
    (!text.is_empty()).then_some(text)
}

fn parse_number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
