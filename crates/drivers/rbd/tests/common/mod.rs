//! Disks on images in temporary directories.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::any::Any;
use std::sync::Arc;

use blockyard_blkmq::{Bdev, Disk, DiskConfig, MonotonicClock, OpenMode, TagSet, TagSetConfig};
use blockyard_conformance::QueueThread;
use blockyard_driver_rbd::{Rbd, limits};
use blockyard_rbd::dir::DirStore;
use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, Image, create};
use blockyard_rbd::live::{LiveImage, Options};
use blockyard_rbd::store::ObjectStore;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// An image in a store of its own.
pub struct Made {
    directory: Arc<TempDir>,
    pub store: DirStore,
    name: &'static str,
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

impl Made {
    pub fn new(size: u64, layout: Layout, features: Features) -> Self {
        let directory = Arc::new(TempDir::new().unwrap());
        let store = DirStore::open(directory.path(), true).unwrap();
        let options = CreateOptions { size, layout, features };
        wait(create(&store, "image", &options)).unwrap();
        Self { directory, store, name: "image" }
    }

    /// A clone of a snapshot of it, which is all zeroes, but has objects.
    pub fn cloned(self) -> Self {
        wait(async {
            let mut image = Image::open(&self.store, self.name).await.unwrap();
            image.own().await.unwrap();
            for at in [0, MIB, 3 * MIB] {
                image.write(at, vec![0; 65536].into()).await.unwrap();
            }
            image.create_snapshot("snap").await.unwrap();
            image.clone_snapshot("snap", &self.store, "clone").await.unwrap();
        });
        Self { name: "clone", ..self }
    }

    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub fn image(&self) -> Image<DirStore> {
        wait(async {
            let mut image = Image::open(&self.store, self.name).await.unwrap();
            image.own().await.unwrap();
            image
        })
    }

    /// The disk, open, and what has to live as long.
    pub fn open(&self) -> (Bdev, impl Any + Send + Sync + use<>) {
        let (threads, handles) = QueueThread::start_many(2);
        let image = self.image();
        let shape = (image.size(), image.layout());
        let driver = Rbd::new("image", image, (), &handles);
        (disk(driver, shape), (threads, Arc::clone(&self.directory)))
    }

    /// The same of an image that others may have open, too.
    pub fn open_live(&self) -> (Bdev, impl Any + Send + Sync + use<>) {
        let (bdev, guard) = open_live(&self.store, self.name);
        (bdev, (guard, Arc::clone(&self.directory)))
    }
}

/// An image of any store, which others may have open, too, as a disk.
pub fn open_live<S: ObjectStore>(store: &S, name: &str) -> (Bdev, impl Any + Send + Sync + use<S>) {
    let (bdev, _driver, threads) = live_driver(store, name);
    (bdev, threads)
}

/// The same with its driver.
pub fn live_driver<S: ObjectStore>(store: &S, name: &str) -> (Bdev, Arc<Rbd<S>>, Vec<QueueThread>) {
    let (threads, handles) = QueueThread::start_many(2);
    let live = handles[0].block_on(LiveImage::open(store, name, Options::default())).unwrap();
    let shape = {
        let image = wait(live.image()).unwrap();
        (image.size(), image.layout())
    };
    let driver = Rbd::new(name, live, (), &handles);
    (disk(Arc::clone(&driver), shape), driver, threads)
}

fn disk<S: ObjectStore>(driver: Arc<Rbd<S>>, (size, layout): (u64, Layout)) -> Bdev {
    let limits = limits(&layout, false);
    let tags = TagSetConfig { cpus: 2, hw_queues: [2, 0, 0], depth: 16, ..TagSetConfig::default() };
    let set = TagSet::new(Arc::clone(&driver), tags).unwrap();
    let (capacity, tail_padding) = limits.logical_block_size.padded(size);
    let mut config = DiskConfig::new("rbd0", capacity, limits);
    config.tail_padding = tail_padding;
    let clock = Arc::new(MonotonicClock::new());
    let disk = Disk::alloc(&set, (), config, driver, clock).unwrap();
    disk.open(None, OpenMode::ReadWrite).unwrap()
}
