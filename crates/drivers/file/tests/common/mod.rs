//! Disks on files of several file systems, for tests. Mounts need root, and are gone even if the test fails.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::vec_box,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "tests"
)]

pub mod qemu;

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};

use blockyard_blkmq::{
    Bdev, Bio, Disk, DiskConfig, Extent, Flags, MonotonicClock, Op, OpenMode, Sector, Status,
    TagSet, TagSetConfig,
};
use blockyard_buf::Segment;
use blockyard_conformance::QueueThread;
use blockyard_driver_file::{Engine, Error, File, FileConfig, Info};
use tempfile::TempDir;

/// A disk in a file, open.
pub struct TestDisk {
    pub bdev: Bdev,
    pub disk: Arc<Disk>,
    pub info: Info,
    pub threads: Vec<QueueThread>,
}

pub fn open(config: &FileConfig) -> Result<TestDisk, Error> {
    open_with(config, TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], ..TagSetConfig::default() })
}

pub fn open_with(config: &FileConfig, tags: TagSetConfig) -> Result<TestDisk, Error> {
    open_shown(config, tags, u64::MAX)
}

/// The first `bytes` of a file.
pub fn open_shown(config: &FileConfig, tags: TagSetConfig, bytes: u64) -> Result<TestDisk, Error> {
    let (threads, handles) = QueueThread::start_many(tags.hw_queues[0]);
    let (file, mut info) = File::open(config, &handles)?;
    if bytes < info.size {
        file.show(bytes);
        (info.size, info.capacity) = (bytes, info.limits.logical_block_size.padded(bytes).0);
    }
    let set = TagSet::new(Arc::clone(&file), tags).unwrap();
    let mut disk = DiskConfig::new("file0", info.capacity, info.limits.clone());
    disk.tail_padding = u32::try_from(info.capacity.bytes() - info.size).unwrap();
    disk.read_only = info.read_only;
    let disk = Disk::alloc(&set, (), disk, file, Arc::new(MonotonicClock::new())).unwrap();
    let mode = if info.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let bdev = disk.open(None, mode).unwrap();
    Ok(TestDisk { bdev, disk, info, threads })
}

impl TestDisk {
    pub fn submit(&self, bio: Box<Bio>) -> Box<Bio> {
        self.bdev.submit_and_wait(0, bio)
    }

    pub fn write(&self, offset: u64, bytes: Vec<u8>) -> Status {
        let data = [Segment::from_vec(bytes)].into_iter().collect();
        self.submit(Bio::with_data(Op::Write, Sector(offset / 512), data)).status()
    }

    pub fn range(&self, op: Op, offset: u64, len: u64, flags: Flags) -> Box<Bio> {
        self.submit(Bio::new(op, Sector(offset / 512), len).with_flags(flags))
    }

    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let bio = self.range(Op::Read, offset, len, Flags::empty());
        assert_eq!(bio.status(), Status::Ok);
        bytes(&bio)
    }

    /// All at once, so that they are in flight together, and neighbours may become one request.
    pub fn submit_all(&self, mut bios: Vec<Box<Bio>>) -> Vec<Box<Bio>> {
        let (tell, told) = mpsc::channel();
        let count = bios.len();
        for (number, bio) in (0..).zip(&mut bios) {
            let tell = tell.clone();
            bio.private = number;
            bio.set_end(Arc::new(move |bio| tell.send(bio).unwrap()));
        }
        self.bdev.submit_all(0, &mut bios);
        let mut ended: Vec<Box<Bio>> = (0..count).map(|_| told.recv().unwrap()).collect();
        ended.sort_by_key(|bio| bio.private);
        ended
    }

    pub fn flush(&self) -> Status {
        self.submit(Bio::flush()).status()
    }

    /// As the block layer's users do: ask again for what is past the answer.
    pub fn map(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut all = Vec::new();
        let mut done = 0;
        while done < len {
            let bio = self.range(Op::BlockStatus, offset + done, len - done, Flags::empty());
            assert_eq!(bio.status(), Status::Ok);
            done += bio.extents.iter().map(|extent| extent.len).sum::<u64>();
            bio.extents.iter().for_each(|extent| extent.push(&mut all));
        }
        all
    }
}

pub fn bytes(bio: &Bio) -> Vec<u8> {
    bio.data().iter().flat_map(Segment::to_vec).collect()
}

pub fn run(command: &str) {
    let done = Command::new("sh").args(["-ec", command]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "`{command}` (as root?) failed: {said}");
}

/// A folder, perhaps a file system of its own: one that is in no folder any more, and only lives as long as
/// this process has it open. So nothing stays behind, however the test ends.
pub struct Place {
    pub name: &'static str,
    path: PathBuf,
    _keep: Keep,
}

enum Keep {
    Folder(TempDir),
    Detached(std::fs::File),
}

impl Place {
    /// The file system that temporary files are on.
    pub fn here() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { name: "here", path: folder.path().to_owned(), _keep: Keep::Folder(folder) }
    }

    pub fn tmpfs(size: &str) -> Self {
        Self::mounted("tmpfs", |at| format!("mount -t tmpfs -o size={size} tmpfs {at}"))
    }

    /// A read-only file system with one file.
    pub fn read_only(file: &str, size: u64) -> Self {
        Self::mounted("read-only", |at| {
            format!(
                "mount -t tmpfs tmpfs {at}; truncate -s {size} {at}/{file}; mount -o remount,ro {at}"
            )
        })
    }

    /// A file system of that kind on a loop device.
    pub fn on_loop(name: &'static str) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(320 << 20).unwrap();
        let quiet = if name == "ext4" { "-F" } else { "-f" };
        let image = image.path().display();
        run(&format!("mkfs.{name} -q {quiet} {image}"));
        Self::mounted(name, |at| format!("mount -o loop {image} {at}"))
    }

    pub fn on_device(device: &Path) -> Self {
        Self::mounted("device", |at| format!("mount {} {at}", device.display()))
    }

    fn mounted(name: &'static str, mount: impl FnOnce(String) -> String) -> Self {
        Self::mounted_by(name, |at| run(&mount(at.display().to_string())))
    }

    fn mounted_by(name: &'static str, mount: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        mount(folder.path());
        let root = std::fs::File::open(folder.path());
        run(&format!("umount -l {}", folder.path().display()));
        let root = root.unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), root.as_raw_fd());
        Self { name, path: path.into(), _keep: Keep::Detached(root) }
    }

    pub fn all() -> Vec<Self> {
        vec![Self::here(), Self::tmpfs("64m"), Self::on_loop("ext4"), Self::on_loop("xfs")]
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        path
    }
}

/// A loop device on a file, which goes when this process has it open no more.
pub struct Loop(pub PathBuf, std::fs::File);

impl Loop {
    pub fn on(file: &Path, options: &str) -> Self {
        let command = format!("losetup -f --show {options} {}", file.display());
        let made = Command::new("sh").args(["-ec", &command]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        let open = std::fs::File::open(&device);
        // While it is open this only marks it: see LO_FLAGS_AUTOCLEAR of losetup(8).
        run(&format!("losetup -d {}", device.display()));
        Self(device, open.unwrap())
    }
}

/// Every way to use a file at `path` for reading and writing that the kernel allows.
pub fn ways(path: &Path) -> Vec<FileConfig> {
    let mut ways = Vec::new();
    for engine in [Engine::Uring, Engine::Threads] {
        for direct in [false, true] {
            ways.push(FileConfig { engine, direct, ..FileConfig::new(path) });
        }
    }
    ways
}
