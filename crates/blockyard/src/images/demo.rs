//! Images to look at: one with a snapshot, and a clone of that.

use std::path::Path;

use blockyard_rbd::format::{Features, Layout};
use blockyard_rbd::image::{CreateOptions, create};

use super::{ImageSpec, Store, open_directory, own, rbd_error, read, wait};
use crate::error::Result;

/// The image.
pub(crate) const IMAGE: &str = "image";
/// Its snapshot.
pub(crate) const SNAPSHOT: &str = "start";
/// The clone of that.
pub(crate) const CLONE: &str = "clone";
const ORDER: u8 = 22;
/// What the snapshot and the clone begin with.
const TEXT: &[u8] = b"This is what the image was when its snapshot was made.\n";

/// Makes them in a directory, of so many bytes, as far as they are not there.
///
/// # Errors
/// The store cannot be written.
pub(crate) fn make(directory: &Path, size: u64) -> Result<()> {
    let store = open_directory(directory, "", true)?;
    wait(make_in(&store, size))?
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { namespace: String::new(), image: image.into(), snapshot: None }
}

async fn make_in(store: &Store, size: u64) -> Result<()> {
    let cannot = |err| rbd_error("cannot create the images of the demo", err);
    if read(store, &spec(CLONE)).await.is_ok() {
        return Ok(());
    }
    if read(store, &spec(IMAGE)).await.is_err() {
        let layout = Layout::new(ORDER).map_err(cannot)?;
        let options = CreateOptions { size, layout, features: Features::DEFAULT };
        create(store, IMAGE, &options).await.map_err(cannot)?;
    }
    let mut image = own(store, &spec(IMAGE)).await?;
    if image.snapshot_record(SNAPSHOT).is_err() {
        image.write(0, TEXT.into()).await.map_err(cannot)?;
        image.create_snapshot(SNAPSHOT).await.map_err(cannot)?;
    }
    image.clone_snapshot(SNAPSHOT, store, CLONE).await.map_err(cannot)?;
    image.close().await.map_err(cannot)
}
