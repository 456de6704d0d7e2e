//! Where disks are registered and found: majors, names, partitions, and the lists that /proc shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::bdev::{Bdev, OpenMode};
use crate::bio::Bio;
use crate::disk::{Disk, DiskFlags, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::major::{DevNum, EXT_MAJOR, ExtMinors, Majors, own_devnum};
use crate::op::{Op, Status};
use crate::partition;
use crate::partition_device::Partition;
use crate::proc_fmt::{DiskstatsRow, PartitionsRow, diskstats, partitions};
use crate::units::Sector;

/// All disks of a yard.
#[derive(Default)]
pub struct BlockLayer {
    majors: Mutex<Majors>,
    ext_minors: Mutex<ExtMinors>,
    disks: RwLock<BTreeMap<String, Arc<Disk>>>,
}

impl BlockLayer {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a driver's major; 0 asks for a free one (kernel: `register_blkdev`).
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if it is taken, [`ErrorKind::Invalid`] past the largest.
    pub fn register_blkdev(&self, major: u32, name: &str) -> Result<u32> {
        Ok(self.majors.lock().register(major, name)?)
    }

    /// Gives a major back (kernel: `unregister_blkdev`).
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] unless it was registered under that name.
    pub fn unregister_blkdev(&self, major: u32, name: &str) -> Result<()> {
        Ok(self.majors.lock().unregister(major, name)?)
    }

    /// Makes a disk visible, and looks for partitions (kernel: `add_disk`). Blocks while the partition table is
    /// read.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] if there is one of that name, or with one of its device numbers.
    pub fn add_disk(&self, disk: &Arc<Disk>) -> Result<()> {
        if !disk.flags().contains(DiskFlags::HIDDEN) {
            let mut disks = self.disks.write();
            if disks.contains_key(disk.name()) {
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("a disk named {} already exists", disk.name()),
                ));
            }
            if let Some(other) = disks.values().find(|other| same_device(other, disk)) {
                let (DevNum { major, minor }, other) = (disk.dev(), other.name());
                return Err(Error::new(
                    ErrorKind::Exists,
                    format!("{} has the device number {major}:{minor} of {other}", disk.name()),
                ));
            }
            disks.insert(disk.name().to_owned(), Arc::clone(disk));
        }
        if !disk.flags().intersects(DiskFlags::HIDDEN | DiskFlags::NO_PART_SCAN) {
            self.scan_new(disk);
        }
        disk.notify(Event::Added);
        Ok(())
    }

    /// Removes a disk, under load too (kernel: `del_gendisk`): nobody finds it any more; what is out ends, what
    /// comes fails. Blocks until then. Says how the last flush has ended: unless that is [`Status::Ok`], what was written
    /// since the last good one may be lost.
    pub fn del_disk(&self, disk: &Arc<Disk>) -> Status {
        {
            let mut disks = self.disks.write();
            if disks.get(disk.name()).is_some_and(|found| Arc::ptr_eq(found, disk)) {
                disks.remove(disk.name());
            }
        }
        let (partitions, flushed) = disk.shut_down();
        self.give_minors_back(&partitions);
        flushed
    }

    /// Finds a disk by name.
    #[must_use]
    pub fn lookup(&self, name: &str) -> Option<Arc<Disk>> {
        self.disks.read().get(name).cloned()
    }

    /// All that are not hidden, by name.
    #[must_use]
    pub fn disks(&self) -> Vec<Arc<Disk>> {
        self.disks.read().values().cloned().collect()
    }

    /// Opens a disk, or a partition, by its name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none of that name, and those of [`Disk::open`].
    pub fn open(&self, name: &str, mode: OpenMode) -> Result<Bdev> {
        for disk in self.disks() {
            if disk.name() == name {
                return disk.open(None, mode);
            }
            let parts = disk.partitions();
            if let Some(part) =
                parts.iter().find(|part| disk.partition_name(part.info().number) == name)
            {
                return disk.open(Some(part.info().number), mode);
            }
        }
        Err(Error::new(ErrorKind::NotFound, format!("no disk or partition {name}")))
    }

    /// Reads the partition table anew; says how many partitions there are (kernel: `BLKRRPART`). Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] for a disk without partitions, [`ErrorKind::Busy`] while one of them is
    /// open, [`ErrorKind::Io`] if it cannot be read.
    pub fn rescan_partitions(&self, disk: &Arc<Disk>) -> Result<usize> {
        if disk.flags().intersects(DiskFlags::HIDDEN | DiskFlags::NO_PART_SCAN) {
            return Err(Error::new(
                ErrorKind::NotSupported,
                format!("{} has no partitions", disk.name()),
            ));
        }
        if disk.partitions().iter().any(|part| Arc::strong_count(part) > 2) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("a partition of {} is open", disk.name()),
            ));
        }
        let bdev = Bdev::new(Arc::clone(disk), None, OpenMode::Internal, 0);
        let mut read = |sector: Sector, bytes: &mut [u8]| {
            let bio = bdev.submit_and_wait(0, Bio::new(Op::Read, sector, bytes.len() as u64));
            let mut rest = bytes;
            for segment in bio.data() {
                let (now, later) = rest.split_at_mut(segment.len().min(rest.len()));
                segment.copy_to(now);
                rest = later;
            }
            if bio.status() == Status::Ok { Ok(()) } else { Err(bio.status()) }
        };
        let mut scan = || {
            partition::scan(&mut read, disk.limits().logical_block_size, disk.capacity()).map_err(
                |err| {
                    Error::new(
                        ErrorKind::Io,
                        format!("the partition table of {} cannot be read", disk.name()),
                    )
                    .caused_by(err)
                },
            )
        };
        let mut table = scan()?;
        if table.reaches_past_end() {
            let native = disk.ops.unlock_native_capacity(disk);
            if native > disk.capacity() {
                disk.set_capacity(native)?;
                table = scan()?;
            }
        }
        for warning in &table.warnings {
            tracing::warn!(disk = disk.name(), warning = %warning, "invalid partition table");
        }
        let parts: Vec<_> = table
            .partitions
            .into_iter()
            .filter_map(|info| {
                let dev = self.partition_dev(disk, info.number)?;
                Some(Arc::new(Partition::new(info, dev, disk.hw_queues())))
            })
            .collect();
        let count = parts.len();
        match disk.replace_partitions(parts) {
            Ok(old) => self.give_minors_back(&old),
            Err(new) => {
                self.give_minors_back(&new);
                let what = format!("{} is being removed", disk.name());
                return Err(Error::new(ErrorKind::Offline, what));
            }
        }
        disk.notify(Event::Partitions);
        Ok(count)
    }

    /// Asks a disk's driver whether its medium was changed (kernel: `disk_check_media_change`). If so, its size
    /// and its partitions are found out anew, and its users are told. Blocks.
    ///
    /// # Errors
    /// Whatever keeps the driver from telling the new size.
    pub fn check_events(&self, disk: &Arc<Disk>) -> Result<bool> {
        let Some(old) = disk.check_events()? else { return Ok(false) };
        self.give_minors_back(&old);
        if disk.capacity() > Sector::ZERO
            && !disk.flags().intersects(DiskFlags::HIDDEN | DiskFlags::NO_PART_SCAN)
        {
            self.scan_new(disk);
        }
        Ok(true)
    }

    /// Looks for partitions where it does not matter if that fails.
    fn scan_new(&self, disk: &Arc<Disk>) {
        if let Err(err) = self.rescan_partitions(disk) {
            tracing::warn!(disk = disk.name(), error = %err, "cannot read the partition table");
        }
    }

    /// The disk's own minors first, then extended ones. A disk with one minor has no place for partitions.
    fn partition_dev(&self, disk: &Disk, number: u32) -> Option<DevNum> {
        own_devnum(disk.dev(), disk.minors(), number).or_else(|| self.ext_minors.lock().take())
    }

    fn give_minors_back(&self, parts: &[Arc<Partition>]) {
        let mut ext = self.ext_minors.lock();
        for part in parts.iter().filter(|part| part.dev().major == EXT_MAJOR) {
            ext.give_back(part.dev());
        }
    }

    /// What /proc/partitions would show.
    #[must_use]
    pub fn proc_partitions(&self) -> String {
        let devices = self.devices();
        let rows: Vec<_> = devices
            .iter()
            .filter(|device| device.capacity() > Sector::ZERO)
            .map(|device| PartitionsRow {
                dev: device.dev(),
                capacity: device.capacity(),
                name: &device.name,
            })
            .collect();
        partitions(&rows)
    }

    /// What /proc/diskstats would show.
    #[must_use]
    pub fn proc_diskstats(&self) -> String {
        let devices = self.devices();
        let stats: Vec<_> = devices.iter().map(Device::stats).collect();
        let rows: Vec<_> = devices
            .iter()
            .zip(&stats)
            .map(|(device, (stats, busy_ms))| {
                DiskstatsRow::new(device.dev(), &device.name, stats, *busy_ms)
            })
            .collect();
        diskstats(&rows)
    }

    fn devices(&self) -> Vec<Device> {
        let mut devices = Vec::new();
        for disk in self.disks() {
            devices.push(Device {
                name: disk.name().to_owned(),
                disk: Arc::clone(&disk),
                part: None,
            });
            for part in disk.partitions() {
                devices.push(Device {
                    name: disk.partition_name(part.info().number),
                    disk: Arc::clone(&disk),
                    part: Some(part),
                });
            }
        }
        devices
    }
}

/// Whether two disks claim the same device number. Major 0 is none.
fn same_device(a: &Disk, b: &Disk) -> bool {
    let (first, second) = (a.dev(), b.dev());
    first.major != 0
        && first.major == second.major
        && first.minor < second.minor.saturating_add(b.minors())
        && second.minor < first.minor.saturating_add(a.minors())
}

/// A disk or a partition, for the lists.
struct Device {
    name: String,
    disk: Arc<Disk>,
    part: Option<Arc<Partition>>,
}

impl Device {
    fn dev(&self) -> DevNum {
        self.part.as_ref().map_or_else(|| self.disk.dev(), |part| part.dev())
    }

    fn capacity(&self) -> Sector {
        self.part.as_ref().map_or_else(|| self.disk.capacity(), |part| part.capacity())
    }

    fn stats(&self) -> (crate::stats::QueueStats, u64) {
        self.part.as_ref().map_or_else(|| self.disk.stats(), |part| part.stats())
    }
}
