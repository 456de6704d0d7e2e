//! Images on a store in a directory, whose disk is in memory.

mod crashes;
mod diffs;
mod faults;
mod fsx;
mod images;
mod partly;
mod purposes;
mod states;
mod upkeep;

use crate::dir::DirStore;
use crate::dir::tests::simulated::Simulated;
use crate::image::Image;
use std::time::Duration;

type Store = DirStore<Simulated>;

fn store() -> Store {
    DirStore::on(Simulated::default()).unwrap()
}

/// Opens an image to write it.
async fn open(store: &Store, name: &str) -> Image<Store> {
    let mut image = Image::open(store, name).await.unwrap();
    image.own().await.unwrap();
    image
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = Duration::from_secs(120);
    runtime.block_on(async { tokio::time::timeout(limit, test).await }).unwrap()
}
