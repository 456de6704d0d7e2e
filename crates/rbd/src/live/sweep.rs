//! What the end of a clone leaves at its parent: a snapshot that was removed while it had clones, and that nobody needs any
//! more (ceph: `src/librbd/image/DetachChildRequest.cc`).

use super::{LiveImage, Options, Shared};
use crate::error::Result;
use crate::format::ParentSpec;
use crate::format::notify::Work;
use crate::image::Image;
use crate::store::ObjectStore;
use std::pin::Pin;
use std::time::Duration;

/// How long whoever has the parent may take.
const LIMIT: Duration = Duration::from_secs(30);

/// The parent's snapshot that an image needs, or a snapshot of it.
pub(super) fn parent_of<S: ObjectStore>(image: &Image<S>) -> Option<ParentSpec> {
    image.parent_record().map(|parent| parent.spec.clone())
}

/// Removes a snapshot of which this was the last clone, if it is in the trash. One that stays, as its image cannot be had, is in
/// nobody's way, and is listed. The future has a type with a name, as a parent may be a clone itself.
pub(super) fn sweep<S: ObjectStore>(
    store: S,
    parent: Option<ParentSpec>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        if let Some(parent) = parent {
            let _stays = try_sweep(&store, &parent).await;
        }
    })
}

async fn try_sweep<S: ObjectStore>(store: &S, parent: &ParentSpec) -> Result<()> {
    let store = store.in_pool(parent.pool, &parent.namespace).await?;
    let image = Image::by_id(&store, &parent.image).await?;
    let records = image.snapshot_records().iter();
    let mut unneeded = records.filter(|it| it.id == parent.snapshot && it.is_in_trash());
    let Some(snapshot) = unneeded.find(|it| it.child_count == 0).cloned() else { return Ok(()) };
    let options = Options { lock_limit: LIMIT, ..Options::default() };
    let live = LiveImage::with(&store, image, options).await?;
    let (name, namespace) = (snapshot.name, snapshot.namespace);
    let removed = live.shared.maintain(Work::RemoveSnapshot { name, namespace }).await;
    let closed = live.close().await;
    removed.and(closed)
}

impl<S: ObjectStore> Shared<S> {
    /// The same, if the image has left this parent.
    pub(super) async fn sweep(&self, parent: Option<ParentSpec>) {
        if parent.is_none() {
            return;
        }
        let has_left = self.current().await.is_ok_and(|image| parent_of(&image).is_none());
        if has_left {
            sweep(self.store.clone(), parent).await;
        }
    }
}
