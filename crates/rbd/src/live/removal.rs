//! Images that are removed: under their lock, so that nobody has them while their objects go.

use super::{LiveImage, Options, sweep};
use crate::error::Result;
use crate::image::{self, Image, trash};
use crate::store::ObjectStore;

/// Removes an image under its lock. One that has none, or no header any more, as it was removed in part, is to be nobody's: the
/// caller sees to that.
///
/// # Errors
/// As [`image::remove`]; those of [`LiveImage::write`], if somebody has its lock; why its header cannot be read.
pub async fn remove<S: ObjectStore>(store: &S, name: &str) -> Result<()> {
    match Image::open_to_remove(store, name).await {
        Ok(image) => remove_as(store, image, async |image| image.remove(name).await).await,
        Err(error) if error.is_not_found() => image::remove(store, name).await,
        Err(error) => Err(error),
    }
}

/// Removes an image in the trash for good, as [`remove`] does.
///
/// # Errors
/// As [`trash::remove`]; those of [`LiveImage::write`], if somebody has its lock; why its header cannot be read.
pub async fn remove_from_trash<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    match Image::by_id_to_remove(store, id).await {
        Ok(image) => remove_as(store, image, async |image| image.remove_from_trash().await).await,
        Err(error) if error.is_not_found() => trash::remove(store, id).await,
        Err(error) => Err(error),
    }
}

async fn remove_as<S: ObjectStore>(
    store: &S,
    image: Image<S>,
    remove: impl AsyncFnOnce(&mut Image<S>) -> Result<()>,
) -> Result<()> {
    let parent = sweep::parent_of(&image);
    let live = LiveImage::with(store, image, Options::default()).await?;
    let removed = match live.alone().await {
        Ok(mut image) => live.shared.note(remove(&mut image).await),
        Err(error) => Err(error),
    };
    // The lock went with the header.
    let _closed = live.close().await;
    if removed.is_ok() {
        sweep::sweep(store.clone(), parent).await;
    }
    removed
}
