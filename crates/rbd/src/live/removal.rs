//! Images that are removed: under their lock, so that nobody has them while their objects go.

use super::{LiveImage, Options, sweep};
use crate::error::{Error, Result};
use crate::image::{self, Image, trash};
use crate::store::ObjectStore;

/// Removes an image under its lock. One that has none is to be nobody's: the caller sees to that.
///
/// # Errors
/// As [`image::remove`]; those of [`LiveImage::write`], if somebody has its lock; why it cannot be opened.
pub async fn remove<S: ObjectStore>(store: &S, name: &str) -> Result<()> {
    let opened = match Image::open(store, name).await {
        Err(error) if is_for_good(&error) => {
            let (id, _) = image::find(store, name, None).await?;
            Image::without_its_parent(store, &id).await
        }
        opened => opened.map(Some),
    };
    match opened? {
        Some(image) => remove_as(store, image, async |image| image.remove(name).await).await,
        None => image::remove(store, name).await,
    }
}

/// Removes an image in the trash for good, as [`remove`] does.
///
/// # Errors
/// As [`trash::remove`]; those of [`LiveImage::write`], if somebody has its lock; why it cannot be opened.
pub async fn remove_from_trash<S: ObjectStore>(store: &S, id: &str) -> Result<()> {
    let opened = match Image::by_id(store, id).await {
        Err(error) if is_for_good(&error) => Image::without_its_parent(store, id).await,
        opened => opened.map(Some),
    };
    match opened? {
        Some(image) => remove_as(store, image, async |image| image.remove_from_trash().await).await,
        None => trash::remove(store, id).await,
    }
}

/// Whether an image that cannot be opened is not whole, and will not be: a parent of it is gone or damaged. It may be somebody's
/// all the same. One that cannot be opened now is not removed.
fn is_for_good(error: &Error) -> bool {
    error.is_not_found() || error.is_damage()
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
